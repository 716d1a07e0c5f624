package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// InstanceNorm returns (x - mean) / sqrt(variance + eps) · weight + bias, with mean and variance of each channel of each sequence, over the cells
// of its grid: x (batch, grid…, channels), weight (channels) or nil for ones, bias (channels) or nil for zeros, and the result has x's shape. The
// variance is divided by the number of cells.
//
// Errors: an operand that is missing, or of another type or shape; an eps that is negative or not finite.
//
// Source: Ulyanov et al., "Instance Normalization: The Missing Ingredient for Fast Stylization".
func InstanceNorm(x, weight, bias *G.Node, eps float64) (*G.Node, error) {
	c := newChecker("instance norm", "x", x)
	shape, rows, channels := c.rows("x", x, "channels")
	f := channelNorm[float32]{groups: shape[0], rows: rows / shape[0], channels: channels, eps: eps}
	c.scaled(weight, bias, channels, eps)
	return c.apply1(f, channelNorm[float64](f), shape)
}

// ActivatedNormConfig are the options of ActivatedNorm.
type ActivatedNormConfig struct {
	Eps          float64
	Activation   Activation
	NormResidual bool // the residual is normalized too, without weight and bias
}

// ActivatedNorm returns f(InstanceNorm(x) + residual), the end of a residual block, by one operator: x and residual are (batch, grid…, channels), weight and
// bias (channels), and the result has x's shape. Weight, bias and residual can be nil. With NormResidual the sum is with InstanceNorm(residual). It is
// Activate of Add of InstanceNorm, but the backward pass reads only x, the residual and their statistics: the machine holds neither the norms nor the sum. On a
// GPU and after FreeAfterUse it does not hold the result either: gradients that read it have it computed again.
//
// Errors: an operand that is missing, or of another type or shape; NormResidual without a residual; an eps that is negative or not finite; an unknown
// activation.
//
// Source: He et al., "Deep Residual Learning for Image Recognition", figure 2, with the norm of Ulyanov et al.
func ActivatedNorm(x, weight, bias, residual *G.Node, cfg ActivatedNormConfig) (*G.Node, error) {
	c := newChecker("activated norm", "x", x)
	shape, rows, channels := c.rows("x", x, "channels")
	c.optional("weight", weight, "(channels)", channels)
	c.optional("bias", bias, "(channels)", channels)
	c.optional("residual", residual, "(batch, grid…, channels)", shape...)
	if cfg.NormResidual && residual == nil {
		c.errorf("NormResidual is true and the residual is missing, want both or neither")
	}
	c.eps(cfg.Eps)
	c.activation(cfg.Activation)
	f := activatedNorm[float32]{shape[0], rows / shape[0], channels, cfg}
	return c.apply1(f, activatedNorm[float64](f), shape)
}

// BatchNorm returns (x - mean) / sqrt(variance + eps) · weight + bias, with mean and variance of each channel over the cells of all sequences of the
// batch: x (batch, …, channels), weight (channels) or nil for ones, bias (channels) or nil for zeros. It returns y in x's shape, and the mean
// and the variance (channels), divided by the number of cells, from which a caller can keep running statistics for BatchNormWith.
//
// Errors: an operand that is missing, or of another type or shape; an eps that is negative or not finite.
//
// Source: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", algorithm 1.
func BatchNorm(x, weight, bias *G.Node, eps float64) (y, mean, variance *G.Node, err error) {
	c := newChecker("batch norm", "x", x)
	shape, rows, channels := c.rows("x", x, "channels")
	f := channelNorm[float32]{groups: 1, rows: rows, channels: channels, eps: eps, returns: true}
	c.scaled(weight, bias, channels, eps)
	n, err := c.apply(f, channelNorm[float64](f), shape, tensor.Shape{channels}, tensor.Shape{channels})
	n = append(n, nil, nil, nil)
	return n[0], n[1], n[2], err
}

// BatchNormWith is BatchNorm with the given mean and variance (channels), for evaluation.
//
// Source: Ioffe and Szegedy, algorithm 2.
func BatchNormWith(x, weight, bias, mean, variance *G.Node, eps float64) (*G.Node, error) {
	c := newChecker("batch norm", "x", x)
	shape, rows, channels := c.rows("x", x, "channels")
	f := channelNorm[float32]{groups: 1, rows: rows, channels: channels, eps: eps}
	c.optional("weight", weight, "(channels)", channels)
	c.optional("bias", bias, "(channels)", channels)
	c.required("mean", mean, "(channels)", channels)
	c.required("variance", variance, "(channels)", channels)
	c.eps(eps)
	return c.apply1(f, channelNorm[float64](f), shape)
}

// scaled checks weight and bias of a norm that computes its statistics.
func (c *checker) scaled(weight, bias *G.Node, channels int, eps float64) {
	c.optional("weight", weight, "(channels)", channels)
	c.optional("bias", bias, "(channels)", channels)
	c.numbers("mean", nil)
	c.numbers("variance", nil)
	c.eps(eps)
}

// channelNorm is the function of InstanceNorm and BatchNorm. With returns it also returns the mean and the variance.
type channelNorm[T kernel.Float] struct {
	groups, rows, channels int
	eps                    float64
	returns                bool
}

// On the host.

func (f channelNorm[T]) kernel(in []value[T]) *kernel.ChannelNorm[T] {
	return &kernel.ChannelNorm[T]{
		Groups: f.groups, Rows: f.rows, Channels: f.channels, Eps: f.eps,
		X: in[0].Data, Weight: in[1].Data, Bias: in[2].Data, Mean: in[3].Data, Variance: in[4].Data,
	}
}

func (f channelNorm[T]) Forward(in []value[T], out [][]T) {
	y, mean, variance := three(out)
	f.kernel(in).Forward(y, mean, variance)
}

func (f channelNorm[T]) Backward(in []value[T], dout, grad [][]T) {
	dy, dmean, dvariance := three(dout)
	f.kernel(in).Backward(dy, dmean, dvariance, kernel.ChannelNormGrad[T]{X: grad[0], Weight: grad[1], Bias: grad[2], Mean: grad[3], Variance: grad[4]})
}

// On a device.

func (f channelNorm[T]) onDevice(in []onDevice) *cuda.ChannelNorm {
	return &cuda.ChannelNorm{
		Groups: f.groups, Rows: f.rows, Channels: f.channels, Eps: float32(f.eps),
		X: in[0].Array, Weight: in[1].Array, Bias: in[2].Array, Mean: in[3].Array, Variance: in[4].Array,
	}
}

func (f channelNorm[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	y, mean, variance := three(out)
	k, err := f.onDevice(in).Forward(s, y, mean, variance, keep)
	if k == nil {
		return nil, err
	}
	return k, err
}

func (f channelNorm[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, k kept) error {
	dy, dmean, dvariance := three(dout)
	return orZeros(s, dy, f.groups*f.rows*f.channels, func(dy array) error {
		return f.onDevice(in).Backward(s, k.(*cuda.ChannelNormKept), dy, dmean, dvariance,
			&cuda.ChannelNormGrad{X: grad[0], Weight: grad[1], Bias: grad[2], Mean: grad[3], Variance: grad[4]})
	})
}

// activatedNorm is the function of ActivatedNorm. Its operands are x, weight, bias, residual.
type activatedNorm[T kernel.Float] struct {
	groups, rows, channels int
	cfg                    ActivatedNormConfig
}

// On the host.

func (f activatedNorm[T]) kernel(in []value[T]) *kernel.ActivatedNorm[T] {
	return &kernel.ActivatedNorm[T]{
		ChannelNorm: kernel.ChannelNorm[T]{
			Groups: f.groups, Rows: f.rows, Channels: f.channels, Eps: f.cfg.Eps, X: in[0].Data, Weight: in[1].Data, Bias: in[2].Data,
		},
		Activation: f.cfg.Activation, Residual: in[3].Data, NormResidual: f.cfg.NormResidual,
	}
}

func (f activatedNorm[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0]) }

func (f activatedNorm[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], grad[0], grad[1], grad[2], grad[3])
}

// On a device.

func (f activatedNorm[T]) onDevice(in []onDevice) *cuda.ChannelNorm {
	return &cuda.ChannelNorm{
		Groups: f.groups, Rows: f.rows, Channels: f.channels, Eps: float32(f.cfg.Eps), X: in[0].Array, Weight: in[1].Array, Bias: in[2].Array,
		Activated: true, Activation: cuda.Nonlinearity(f.cfg.Activation), Residual: in[3].Array, NormResidual: f.cfg.NormResidual,
	}
}

// Repeatable implements operator.Repeatable.
func (activatedNorm[T]) Repeatable() bool { return true }

func (f activatedNorm[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	k, err := f.onDevice(in).Forward(s, out[0], array{}, array{}, keep)
	if k == nil {
		return nil, err
	}
	return k, err
}

func (f activatedNorm[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, k kept) error {
	return f.onDevice(in).Backward(s, k.(*cuda.ChannelNormKept), dout[0], array{}, array{},
		&cuda.ChannelNormGrad{X: grad[0], Weight: grad[1], Bias: grad[2], Residual: grad[3]})
}

// three returns a list of one or three, with zero values for those that are missing.
func three[V any](s []V) (a, b, c V) {
	if a = s[0]; len(s) == 3 {
		b, c = s[1], s[2]
	}
	return a, b, c
}
