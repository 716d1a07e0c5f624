package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
	memory "github.com/gomamba/mamba/internal/size"
)

// LinearCrossEntropy returns CrossEntropy of the logits Linear(x, weight, nil): x (batch, length, in), weight (vocabulary, in), targets (batch,
// length) of int. It computes the logits in chunks of rows, on the host of at most 512 rows, on a device of at most 2^28 logits, in the precision of the product. If the graph has gradients,
// the forward pass computes those of a chunk while it has its logits. So the logits of all rows are never in memory, and no product is computed twice, except
// by the lisp machine, whose backward pass computes the logits again.
//
// Errors: those of Linear and of CrossEntropy, and the logits of a chunk that exceed the memory.
func LinearCrossEntropy(x, weight, targets *G.Node, ignore int) (*G.Node, error) {
	c := newChecker("linear cross-entropy", "x", x)
	s := c.required("x", x, "(batch, length, in)", 0, 0, 0)
	vocabulary := c.required("weight", weight, "(vocabulary, in)", 0, s[2])[0]
	c.ints("targets", targets, "(batch, length)", s[0], s[1])
	f := headLoss[float32]{product{s[0] * s[1], s[2], vocabulary}, ignore}
	if c.err == nil && operator.PlaceOf(x).OnHost() {
		if err := memory.Of(c.dt.Size(), min(f.rows, kernel.HeadRows), vocabulary).Fits("the logits of a chunk of rows"); err != nil {
			c.errorf("%w", err)
		}
	}
	return c.apply1(f, headLoss[float64](f), tensor.ScalarShape())
}

// headLoss is the function of LinearCrossEntropy.
type headLoss[T kernel.Float] struct {
	product
	ignore int
}

func (f headLoss[T]) Check(shapes []tensor.Shape, ints [][]int) error {
	return checkTargets(shapes[2], ints[2], f.out, f.ignore, "the vocabulary")
}

// Bounds says which targets need no check.
func (f headLoss[T]) Bounds(int) (least, most int) { return 0, f.out - 1 }

func (headLoss[T]) TakesNarrow(i int) bool { return i == 1 }

func (f headLoss[T]) Forward(in []value[T], out [][]T) { f.ForwardGradients(in, out, make([][]T, 2)) }

func (f headLoss[T]) ForwardGradients(in []value[T], out, grad [][]T) {
	h := kernel.Head[T]{Rows: f.rows, In: f.in, Vocabulary: f.out, X: in[0].Data, Weight: in[1].Data, Targets: in[2].Ints, Ignore: f.ignore, Logits: gemmWith(in[1]), Gemm: gemm[T]()}
	out[0][0] = h.Forward(grad[0], grad[1])
}

func (f headLoss[T]) Backward(in []value[T], dout, grad [][]T) {
	f.ForwardGradients(in, [][]T{make([]T, 1)}, grad)
	for _, g := range grad[:2] {
		for i := range g {
			g[i] *= dout[0][0]
		}
	}
}

// Linear says that the backward pass on a device reads no operand.
func (headLoss[T]) Linear() {}

func (f headLoss[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	if p == cuda.BF16 {
		return headOn[cuda.BFloat16](f, s, p, in, out[0], keep)
	}
	return headOn[float32](f, s, p, in, out[0], keep)
}

func headOn[T cuda.Activation, N kernel.Float](f headLoss[N], s *cuda.Stream, p cuda.Precision, in []onDevice, loss array, keep bool) (kept, error) {
	operands, free, err := as[T](s, keep, in[0], in[1])
	if err != nil {
		return nil, err
	}
	defer free()
	h := &cuda.Head[T]{
		Rows: f.rows, In: f.in, Vocabulary: f.out, Ignore: operator.Int32(f.ignore), Precision: p, X: operands[0], Weight: operands[1], Targets: in[2].Ids,
	}
	k, err := h.Forward(s, loss, keep)
	if k == nil {
		return nil, err // not a kept with a nil pointer
	}
	return k, err
}

func (f headLoss[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, _ []onDevice, dout, grad []array, values kept) error {
	return values.(*cuda.HeadGradients).Scale(s, dout[0], grad[0], grad[1])
}
