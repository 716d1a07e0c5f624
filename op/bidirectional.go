package op

import (
	"cmp"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
)

// DirectionWeights holds the weights of a direction of BidirectionalMamba: those of a Mamba block between InProj and OutProj.
type DirectionWeights struct {
	Conv     *G.Node // (channels, 1, width); the last tap is for the step itself
	ConvBias *G.Node // optional: (channels)
	XProj    *G.Node // (rank + 2·state, channels)
	DtProj   *G.Node // (channels, rank)
	DtBias   *G.Node // (channels)
	ALog     *G.Node // (channels, state): A = -exp(ALog)
	D        *G.Node // (channels)
}

// BidirectionalInputs holds the operands of BidirectionalMamba.
type BidirectionalInputs struct {
	XZ       *G.Node          // (batch, length, 2·channels): x and z
	Forward  DirectionWeights // of the direction over time
	Backward DirectionWeights // of the direction from the end of each sequence to its beginning
	Start    *G.Node          // optional: (batch, length); a non-zero element starts a new sequence at its step
}

// BidirectionalConfig are the options of BidirectionalMamba.
type BidirectionalConfig struct {
	Average bool // half of the sum of the two directions, instead of the sum
}

// BidirectionalMamba returns the part between InProj and OutProj of a Mamba block that reads its sequences in both directions. x and z are the halves of XZ
// along its last axis. Each direction computes
//
//	u       = silu(causal convolution of x)
//	r, B, C = u·XProjᵀ
//	y       = SelectiveScan(u, r·DtProjᵀ, A, B, C, D, z)
//
// with Δ = softplus(r·DtProjᵀ + DtBias) in the scan. The direction Backward does so with each sequence in reverse order. The result
// (batch, length, channels) is the sum of both, in the order of XZ.
//
// On the host it is one operator. It keeps no values for its gradients, and computes those before the scans again. On a device it is the
// operators of the lines above.
//
// Errors: an operand that is missing, or of another type or shape than listed in BidirectionalInputs and DirectionWeights.
//
// Source: Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", 2024, algorithm 1.
func BidirectionalMamba(in BidirectionalInputs, cfg BidirectionalConfig) (*G.Node, error) {
	c := newChecker("bidirectional Mamba", "XZ", in.XZ)
	s := c.required("XZ", in.XZ, "(batch, length, 2·channels)", 0, 0, 0)
	f := bidirectional[float32]{BidirectionalConfig: cfg, batch: s[0], length: s[1], channels: max(s[2]/2, 1)}
	if s[2]%2 != 0 {
		c.errorf("XZ has %d columns, want an even number: 2·channels", s[2])
	}
	for d, w := range []DirectionWeights{in.Forward, in.Backward} {
		name := []string{"Forward.", "Backward."}[d]
		f.width = c.required(name+"Conv", w.Conv, "(channels, 1, width)", f.channels, 1, f.width)[2]
		c.optional(name+"ConvBias", w.ConvBias, "(channels)", f.channels)
		columns := c.required(name+"XProj", w.XProj, "(rank + 2·state, channels)", 0, f.channels)
		f.rank = c.required(name+"DtProj", w.DtProj, "(channels, rank)", f.channels, f.rank)[1]
		c.required(name+"DtBias", w.DtBias, "(channels)", f.channels)
		f.state = c.required(name+"ALog", w.ALog, "(channels, state)", f.channels, f.state)[1]
		c.required(name+"D", w.D, "(channels)", f.channels)
		if want := f.rank + 2*f.state; columns[0] != want {
			c.errorf("%sXProj has shape %v, want (rank + 2·state, channels) = (%d, %d)", name, columns, want, f.channels)
		}
	}
	c.start(in.Start, f.batch, f.length)
	if c.err == nil && !PlaceOf(in.XZ).OnHost() {
		return f.composed(in)
	}
	return c.apply1(f, bidirectional[float64](f), tensor.Shape{f.batch, f.length, f.channels})
}

// bidirectional is the function of BidirectionalMamba on the host. Its operands are XZ, the weights of both directions in the order of
// DirectionWeights, and Start.
type bidirectional[T kernel.Float] struct {
	BidirectionalConfig
	batch, length, channels, state, width, rank int
}

// directionWeights is the number of operands of a direction.
const directionWeights = 7

// ofDirection returns those of the operands, or of their gradients, that belong to a direction.
func ofDirection[V any](all []V, d int) kernel.BlockWeights[V] {
	w := all[1+d*directionWeights:]
	return kernel.BlockWeights[V]{Conv: w[0], ConvBias: w[1], XProj: w[2], DtProj: w[3], DtBias: w[4], ALog: w[5], D: w[6]}
}

func (f bidirectional[T]) kernel(in []value[T]) *kernel.Bidirectional[T] {
	b := &kernel.Bidirectional[T]{
		Batch: f.batch, Length: f.length, Channels: f.channels, State: f.state, Width: f.width, Rank: f.rank,
		XZ: in[0].Data, Start: in[len(in)-1].Marks, Scale: 1, Gemm: gemm[T](),
	}
	if f.Average {
		b.Scale = 0.5
	}
	for d := range b.Directions {
		w := ofDirection(in, d)
		b.Directions[d] = kernel.MapBlock(w, func(_ BlockWeight, v value[T]) []T { return v.Data })
		b.Products[d] = kernel.BlockWeights[kernel.Gemm[T]]{XProj: gemmWith(w.XProj), DtProj: gemmWith(w.DtProj)}
	}
	return b
}

// TakesNarrow says that XProj and DtProj may be narrow.
func (bidirectional[T]) TakesNarrow(i int) bool {
	at := (i - 1) % directionWeights
	return i > 0 && (at == 2 || at == 3)
}

func (f bidirectional[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0]) }

func (f bidirectional[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], &kernel.BidirectionalGrad[T]{
		XZ: grad[0], Directions: [2]kernel.BlockWeights[[]T]{ofDirection(grad, 0), ofDirection(grad, 1)},
	})
}

// composed returns the result as a composition of operators.
func (f bidirectional[T]) composed(in BidirectionalInputs) (_ *G.Node, err error) {
	do := func(n *G.Node, e error) *G.Node {
		err = cmp.Or(err, e)
		return n
	}
	split := func(n *G.Node, sizes ...int) G.Nodes {
		parts, e := Split(n, sizes...)
		return append(parts, G.Nodes{do(nil, e), nil, nil}...)
	}
	xz := split(in.XZ, f.channels, f.channels)
	direction := func(w DirectionWeights, x *G.Node, reverse bool) *G.Node {
		if reverse {
			x = do(Reverse(x, in.Start))
		}
		u := do(CausalConv(CausalConvInputs{X: x, Weight: w.Conv, Bias: w.ConvBias, Start: in.Start}, CausalConvConfig{SiLU: true}))
		if reverse {
			u = do(Reverse(u, in.Start))
		}
		rbc := split(do(Linear(u, w.XProj, nil)), f.rank, f.state, f.state)
		return do(SelectiveScan(ScanInputs{
			U: u, Delta: do(Linear(rbc[0], w.DtProj, nil)), A: do(NegExp(w.ALog)), B: rbc[1], C: rbc[2], D: w.D, Z: xz[1], DeltaBias: w.DtBias, Start: in.Start,
		}, ScanConfig{DeltaSoftplus: true, Reverse: reverse}))
	}
	y := do(Add(direction(in.Forward, xz[0], false), direction(in.Backward, xz[0], true)))
	if f.Average {
		y = do(Scale(y, nil, 0.5))
	}
	return y, err
}
