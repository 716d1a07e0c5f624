package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
)

// CrossEntropy returns the mean of -log softmax(logits)_target over the targets that are not equal to ignore. The logits are (batch,
// length, vocabulary), the targets (batch, length) of int, and the result is a scalar. The logits have a gradient. Result and gradient
// are the same bit for bit for any number of processors.
//
// If every target is ignored, the loss and its gradient are 0. (PyTorch returns 0/0, which is NaN, so one batch that holds only padding
// destroys the weights.)
//
// Errors: an operand that is missing, or of another type or shape; and when the graph runs, a target that is neither in the vocabulary
// nor equal to ignore.
func CrossEntropy(logits, targets *G.Node, ignore int) (*G.Node, error) {
	c := newChecker("cross-entropy", "logits", logits)
	c.required("logits", logits, "(batch, length, vocabulary)", 0, 0, 0)
	if c.err != nil {
		return nil, c.err
	}
	s := logits.Shape()
	c.ints("targets", targets, "(batch, length)", s[0], s[1])
	if c.err != nil {
		return nil, c.err
	}
	return apply1(crossEntropy{ignore}, operands{[]string{"logits", "targets"}, G.Nodes{logits, targets}}, c.dt,
		tensor.ScalarShape())
}

type crossEntropy struct{ ignore int }

func (f crossEntropy) String() string       { return fmt.Sprintf("cross-entropy{ignore: %d}", f.ignore) }
func (crossEntropy) differentiable() []bool { return []bool{true, false} }

func (f crossEntropy) check(in []operand) error {
	length, vocabulary := in[0].shape[1], in[0].shape[2]
	for i, target := range in[1].data.([]int) {
		if target != f.ignore && (target < 0 || target >= vocabulary) {
			return fmt.Errorf("targets[%d, %d] is %d, want 0 to %d, the vocabulary, or %d, which is ignored",
				i/length, i%length, target, vocabulary-1, f.ignore)
		}
	}
	return nil
}

func (f crossEntropy) forward(in, out []operand) {
	if out[0].is32() {
		floats[float32](out[0])[0] = crossEntropyKernel[float32](f, in).Forward()
	} else {
		floats[float64](out[0])[0] = crossEntropyKernel[float64](f, in).Forward()
	}
}

func (f crossEntropy) backward(in, dout, grad []operand) {
	if dout[0].is32() {
		crossEntropyKernel[float32](f, in).Backward(floats[float32](dout[0])[0], floats[float32](grad[0]))
	} else {
		crossEntropyKernel[float64](f, in).Backward(floats[float64](dout[0])[0], floats[float64](grad[0]))
	}
}

func crossEntropyKernel[T kernel.Float](f crossEntropy, in []operand) *kernel.CrossEntropy[T] {
	return &kernel.CrossEntropy[T]{
		Vocabulary: in[0].shape[2], Logits: floats[T](in[0]), Targets: in[1].data.([]int), Ignore: f.ignore,
	}
}
