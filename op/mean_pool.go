package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// MeanPool returns the mean of x (batch, length, channels) over time, or of x (batch, grid…, channels) over the cells of its grid: (batch, channels).
// mask (batch, length) or (batch, grid…), of float32, float64 or int, says which steps count: those where it is not 0. The others, such as padding,
// may hold anything. A nil mask counts all. The mean of no step is 0.
//
// Errors: an x that is missing; an operand of another type or shape.
func MeanPool(x, mask *G.Node) (*G.Node, error) {
	c := newChecker("mean pool", "x", x)
	axes, want := "(batch, length, channels)", []int{0, 0, 0}
	if x != nil && len(x.Shape()) > 3 {
		axes, want = "(batch, grid…, channels)", make([]int, len(x.Shape()))
	}
	s := c.required("x", x, axes, want...)
	channels := s[len(s)-1]
	c.marks("mask", mask, s[:len(s)-1]...)
	f := meanPool[float32]{s[0], s[1 : len(s)-1].TotalSize(), channels}
	return c.apply1(f, meanPool[float64](f), tensor.Shape{s[0], channels})
}

type meanPool[T kernel.Float] struct{ batch, length, channels int }

func (f meanPool[T]) kernel(in []value[T]) *kernel.MeanPool {
	return &kernel.MeanPool{Batch: f.batch, Length: f.length, Channels: f.channels, Mask: in[1].Marks}
}

func (f meanPool[T]) Forward(in []value[T], out [][]T) {
	kernel.MeanPoolForward(f.kernel(in), out[0], in[0].Data)
}

func (f meanPool[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.MeanPoolBackward(f.kernel(in), grad[0], dout[0])
}

func (f meanPool[T]) onDevice(in []onDevice) *cuda.MeanPool {
	return &cuda.MeanPool{Batch: f.batch, Length: f.length, Channels: f.channels, Mask: in[1].Marks}
}

func (f meanPool[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, f.onDevice(in).Forward(s, in[0].Array, out[0])
}

func (meanPool[T]) Linear() {}

func (f meanPool[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return f.onDevice(in).Backward(s, dout[0], grad[0])
}
