package op

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// DropoutConfig are the options of Dropout and DropPath. What is dropped is a function of Seed, Layer, the step and the position alone.
type DropoutConfig struct {
	Rate  float64 // the probability to drop an element, at least 0 and below 1
	Seed  uint64
	Layer int // another one for each use in a model, so that they drop differently: 0 to 2^32-1
}

// Dropout returns x with each element set to 0 with probability Rate, and the others multiplied with 1/(1-Rate). x is (batch, …) of any axes;
// the result has its shape. step (1), of int, is the number of the training step: each step drops other elements, and the same step drops the
// same ones, on the host and on a device. A negative step drops nothing, for evaluation.
//
// Use it instead of gorgonia.Dropout, which draws from the clock, and which is one node for different rates.
//
// Errors: an operand that is missing, or of another type or shape; a Rate or Layer out of its range; when it runs, a step above 2^31-1.
//
// Sources: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting"; Salmon et al., "Parallel Random Numbers: As
// Easy as 1, 2, 3", for the generator, Philox4x32-10.
func Dropout(x, step *G.Node, cfg DropoutConfig) (*G.Node, error) {
	return newDropout("dropout", x, step, cfg, func(tensor.Shape) int { return 1 })
}

// DropPath returns x with each sequence of the batch set to 0 with probability Rate, and the others multiplied with 1/(1-Rate), as
// Dropout does for elements: around the branch of a residual connection, it leaves out the layer for these sequences.
//
// Source: Huang et al., "Deep Networks with Stochastic Depth".
func DropPath(x, step *G.Node, cfg DropoutConfig) (*G.Node, error) {
	return newDropout("drop path", x, step, cfg, func(s tensor.Shape) int { return s.TotalSize() / s[0] })
}

func newDropout(name string, x, step *G.Node, cfg DropoutConfig, each func(tensor.Shape) int) (*G.Node, error) {
	c := newChecker(name, "x", x)
	if c.err != nil {
		return nil, c.err
	}
	if x.Dims() == 0 || x.Shape().TotalSize() == 0 {
		c.errorf("x has shape %v, want at least one axis and one element", x.Shape())
	}
	c.numbers("x", x)
	c.ints("step", step, "(1)", 1)
	if !(cfg.Rate >= 0 && cfg.Rate < 1) {
		c.errorf("Rate is %v, want at least 0 and below 1", cfg.Rate)
	}
	if cfg.Layer < 0 || int64(cfg.Layer) > math.MaxUint32 {
		c.errorf("Layer is %d, want 0 to 2^32-1", cfg.Layer)
	}
	if c.err != nil {
		return nil, c.err
	}
	f := dropout[float32]{cfg, each(x.Shape())}
	return c.apply1(f, dropout[float64](f), x.Shape())
}

type dropout[T kernel.Float] struct {
	DropoutConfig
	each int
}

// Check refuses a step that a device does not hold.
func (f dropout[T]) Check(_ []tensor.Shape, ints [][]int) error {
	if len(ints[1]) > 0 && ints[1][0] > math.MaxInt32 {
		return fmt.Errorf("step is %d, want at most 2^31-1", ints[1][0])
	}
	return nil
}

func (f dropout[T]) drop(step int, to, from []T) {
	kernel.Drop(kernel.Dropout{Rate: f.Rate, Seed: f.Seed, Layer: uint32(f.Layer), Step: step, Each: f.each}, to, from)
}

func (f dropout[T]) Forward(in []value[T], out [][]T) { f.drop(in[1].Ints[0], out[0], in[0].Data) }

func (f dropout[T]) Backward(in []value[T], dout, grad [][]T) {
	f.drop(in[1].Ints[0], grad[0], dout[0])
}

func (f dropout[T]) dropOn(s *cuda.Stream, step onDevice, to, from array) error {
	return cuda.Dropout{Rate: f.Rate, Seed: f.Seed, Layer: uint32(f.Layer), Each: f.each}.Apply(s, from, step.Ids, to)
}

func (f dropout[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, f.dropOn(s, in[1], out[0], in[0].Array)
}

func (dropout[T]) Linear() {}

func (f dropout[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return f.dropOn(s, in[1], grad[0], dout[0])
}
