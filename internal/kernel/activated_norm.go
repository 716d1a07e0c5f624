package kernel

import "github.com/gomamba/mamba/internal/work"

// ActivatedNorm is y = f(norm(x) + r), where r is a residual in the shape of x, its norm without weight and bias, or nothing. The backward pass computes the
// sum again.
type ActivatedNorm[T Float] struct {
	ChannelNorm[T]
	Activation   Activation
	Residual     []T // or nil
	NormResidual bool
}

// residualNorm returns the norm of the residual.
func (n *ActivatedNorm[T]) residualNorm() *ChannelNorm[T] {
	return &ChannelNorm[T]{Groups: n.Groups, Rows: n.Rows, Channels: n.Channels, Eps: n.Eps, X: n.Residual}
}

// sum writes the sum before the activation.
func (n *ActivatedNorm[T]) sum(to []T) {
	n.ChannelNorm.Forward(to, nil, nil)
	r := n.Residual
	if n.NormResidual {
		b := work.Borrow[T](len(to))
		defer b.Return()
		r = b.Data
		n.residualNorm().Forward(r, nil, nil)
	}
	if r != nil {
		AddRows(to, to, r)
	}
}

// Forward writes y.
func (n *ActivatedNorm[T]) Forward(y []T) {
	n.sum(y)
	Gate(n.Activation, y, y, nil)
}

// Backward writes the gradients of x, weight, bias and residual, of which all but the first can be nil, from that of y.
func (n *ActivatedNorm[T]) Backward(dy, dx, dweight, dbias, dresidual []T) {
	b := work.Borrow[T](len(dy))
	defer b.Return()
	d := b.Data // of the sum
	n.sum(d)
	GateBackward(n.Activation, d, nil, dy, d, nil)
	n.ChannelNorm.Backward(d, nil, nil, ChannelNormGrad[T]{X: dx, Weight: dweight, Bias: dbias})
	if n.NormResidual {
		n.residualNorm().Backward(d, nil, nil, ChannelNormGrad[T]{X: dresidual})
	} else {
		copy(dresidual, d)
	}
}
