package op

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// Interpolation is how Interpolate finds the values between the cells of a grid.
type Interpolation = kernel.Interpolation

// The interpolations.
const (
	InterpolateNearest = kernel.InterpolateNearest // cell j of n is cell j·m/n of m, rounded down
	InterpolateLinear  = kernel.InterpolateLinear  // between two cells along each axis: bilinear, trilinear
	InterpolateCubic   = kernel.InterpolateCubic   // between four cells along each of two axes: bicubic, with a = -0.75 as PyTorch has it
)

// InterpolateConfig configures Interpolate.
type InterpolateConfig struct {
	Size         []int // the cells of the result along each axis of the grid, 1 to 3 axes
	Mode         Interpolation
	AlignCorners bool // the centres of the corner cells of both grids meet, not their outer edges; for linear and cubic
}

// Interpolate returns x (batch, grid…, channels) on a grid of another size: (batch, size…, channels). Positions and weights are PyTorch's
// (torch.nn.functional.interpolate without a scale factor and without antialiasing), computed in float64. For nearest, PyTorch multiplies j by m/n in
// float32, and so takes the cell before where the product is rounded to below a whole number.
//
// Errors: an x that is missing, or of another type or shape; a Size of another number of axes than the grid, or with a size below 1; an unknown Mode;
// a cubic Mode for a grid that has not two axes; AlignCorners with InterpolateNearest.
//
// Source: Keys, "Cubic Convolution Interpolation for Digital Image Processing", equation 15 for the cubic kernel.
func Interpolate(x *G.Node, cfg InterpolateConfig) (*G.Node, error) {
	c := newChecker("interpolation", "x", x)
	shape := c.grid("x", x, len(cfg.Size), "Size")
	switch {
	case !cfg.Mode.Known():
		c.errorf("Mode is %d, want InterpolateNearest, InterpolateLinear or InterpolateCubic", int(cfg.Mode))
	case cfg.Mode == InterpolateCubic && len(cfg.Size) != 2:
		c.errorf("Mode is InterpolateCubic and Size %v, want two sizes", cfg.Size)
	case cfg.Mode == InterpolateNearest && cfg.AlignCorners:
		c.errorf("AlignCorners is set, want it only for InterpolateLinear and InterpolateCubic")
	}
	if c.err != nil {
		return nil, c.err
	}
	result := shape.Clone()
	for i, n := range cfg.Size {
		if result[1+i] = n; n < 1 || n > maxCells {
			c.errorf("Size is %v, want sizes of 1 to %d", cfg.Size, maxCells)
		}
	}
	last := len(shape) - 1
	f := kernel.Interpolate{
		Batch: shape[0], Channels: shape[last], From: gridOf(shape[:last]), To: gridOf(result[:last]), Mode: cfg.Mode, AlignCorners: cfg.AlignCorners,
	}
	return c.apply1(interpolate[float32]{f}, interpolate[float64]{f}, result)
}

// maxCells is the largest size of an axis of a grid.
const maxCells = 1 << 20

type interpolate[T kernel.Float] struct{ kernel.Interpolate }

func (f interpolate[T]) Forward(in []value[T], out [][]T) {
	kernel.InterpolateForward(&f.Interpolate, out[0], in[0].Data)
}

func (f interpolate[T]) Backward(_ []value[T], dout, grad [][]T) {
	kernel.InterpolateBackward(&f.Interpolate, grad[0], dout[0])
}

func (f interpolate[T]) onDevice() *cuda.Interpolate {
	return &cuda.Interpolate{
		Batch: f.Batch, Channels: f.Channels, From: f.From, To: f.To, Mode: cuda.Interpolation(f.Mode), AlignCorners: f.AlignCorners,
	}
}

func (f interpolate[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, f.onDevice().Forward(s, in[0].Array, out[0])
}

func (interpolate[T]) Linear() {}

func (f interpolate[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, _ []onDevice, dout, grad []array, _ kept) error {
	return f.onDevice().Backward(s, dout[0], grad[0])
}

// PoolConfig configures MaxPool and AvgPool. Each slice has a number for each axis of the grid.
type PoolConfig struct {
	Kernel  []int // the cells of a window, 1 to 3 axes
	Stride  []int // the cells from a window to the next; Kernel if it is nil
	Padding []int // the cells before and after the grid, at most half of Kernel; none if it is nil

	// ExcludePadding takes the mean over the cells of a window that are in the grid. Otherwise those of the padding count as zeros. The padding
	// never has the maximum.
	ExcludePadding bool
}

// MaxPool returns the largest number of each window of the grid of x (batch, grid…, channels), for each channel: (batch, windows…, channels), with
// (cells + 2·padding - kernel)/stride + 1 windows along an axis, rounded down. The maximum of a window with a NaN is NaN. The gradient goes to
// the first cell with the maximum.
//
// Errors: an x that is missing, or of another type or shape; a slice of another number of axes than the grid; a Kernel or Stride below 1; a Padding
// that is negative or above half of Kernel; a window that is larger than the grid with its padding.
func MaxPool(x *G.Node, cfg PoolConfig) (*G.Node, error) { return pool("max pool", x, cfg, true) }

// AvgPool is MaxPool with the mean of each window.
func AvgPool(x *G.Node, cfg PoolConfig) (*G.Node, error) {
	return pool("average pool", x, cfg, false)
}

func pool(name string, x *G.Node, cfg PoolConfig, largest bool) (*G.Node, error) {
	c := newChecker(name, "x", x)
	shape, axes := c.grid("x", x, len(cfg.Kernel), "Kernel"), len(cfg.Kernel)
	stride, padding := cfg.Stride, cfg.Padding
	if stride == nil {
		stride = cfg.Kernel
	}
	if padding == nil {
		padding = make([]int, axes)
	}
	if len(stride) != axes || len(padding) != axes {
		c.errorf("Stride is %v and Padding %v, want %d sizes as in Kernel, or nil", stride, padding, axes)
	}
	if c.err != nil {
		return nil, c.err
	}
	last, result := len(shape)-1, shape.Clone()
	one := [3]int{1, 1, 1}
	f := kernel.Window{
		Batch: shape[0], Channels: shape[last], From: gridOf(shape[:last]), Size: one, Stride: one, Max: largest, ExcludePadding: cfg.ExcludePadding && !largest,
	}
	for i, k := range cfg.Kernel {
		switch {
		case k < 1 || stride[i] < 1 || max(k, stride[i]) > maxCells:
			c.errorf("Kernel is %v and Stride %v, want sizes of 1 to %d", cfg.Kernel, stride, maxCells)
		case padding[i] < 0 || 2*padding[i] > k:
			c.errorf("Padding is %v, want sizes of 0 to half of Kernel, %v", padding, cfg.Kernel)
		case shape[1+i]+2*padding[i] < k:
			c.errorf("Kernel is %v, want at most the sizes of the grid with its padding, %v and %v", cfg.Kernel, shape[1:last], padding)
		default:
			result[1+i] = (shape[1+i]+2*padding[i]-k)/stride[i] + 1
			f.Size[3-axes+i], f.Stride[3-axes+i], f.Padding[3-axes+i] = k, stride[i], padding[i]
		}
	}
	f.To = gridOf(result[:last])
	return c.apply1(window[float32]{f}, window[float64]{f}, result)
}

type window[T kernel.Float] struct{ kernel.Window }

func (f window[T]) Forward(in []value[T], out [][]T) {
	kernel.WindowForward(&f.Window, out[0], in[0].Data)
}

func (f window[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.WindowBackward(&f.Window, grad[0], dout[0], in[0].Data)
}

func (f window[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, (*cuda.Window)(&f.Window).Forward(s, in[0].Array, out[0])
}

func (f window[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return (*cuda.Window)(&f.Window).Backward(s, in[0].Array, dout[0], grad[0])
}
