package op

import (
	"sync/atomic"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/kernel"
)

// keeper is a function whose forward pass can keep values for its backward pass, which computes them again where they were
// not kept: the gradients are the same.
type keeper interface {
	function
	// keeps is the number of elements to keep; 0 if the function keeps none.
	keeps() int
	// forwardKeeping is forward that also writes every element of kept.
	forwardKeeping(in, out []operand, kept operand)
	// backwardKept is backward that reads kept.
	backwardKept(in, dout, grad []operand, kept operand)
}

// keeps is the number of elements that the operator keeps if its gradients are asked for.
func (o *operator) keeps() int {
	if k, ok := o.f.(keeper); ok {
		return k.keeps()
	}
	return 0
}

// keeping is a result that carries kept values, from an operator to the one that computes its gradients. It goes the way of
// any value, so that each run of each machine has its own. Whoever overwrites a result does not reach what is kept: nothing
// but a view reads a keeping, and the view is of the tensor alone.
//
// A graph that is not differentiated has none, and the lisp machine, which differentiates without asking beforehand, none
// either. Should a machine copy the value, the copy is a plain tensor: what was kept is computed again.
type keeping struct {
	*tensor.Dense
	kept atomic.Pointer[loan]
}

func newKeeping(result G.Value, kept loan) *keeping {
	k := &keeping{Dense: result.(*tensor.Dense)}
	k.kept.Store(&kept)
	return k
}

// keptBy returns what a value carries, absent if nothing.
func keptBy(v G.Value) (kept loan) {
	if k, ok := v.(*keeping); ok {
		if l := k.kept.Load(); l != nil {
			return *l
		}
	}
	return kept
}

// takeKept is keptBy for the only reader, who gives back what he takes: nobody finds it in the value from then on.
func takeKept(v G.Value) (kept loan) {
	if k, ok := v.(*keeping); ok {
		if l := k.kept.Swap(nil); l != nil {
			return *l
		}
	}
	return kept
}

// loan is a vector in borrowed memory.
type loan struct {
	operand
	space32 kernel.Space[float32]
	space64 kernel.Space[float64]
}

func borrow(dt tensor.Dtype, n int) (l loan) {
	l.shape = tensor.Shape{n}
	if dt == tensor.Float32 {
		l.space32 = kernel.Borrow[float32](n)
		l.data = l.space32.Data
	} else {
		l.space64 = kernel.Borrow[float64](n)
		l.data = l.space64.Data
	}
	return l
}

// giveBack ends the loan; nobody may use the vector from then on.
func (l loan) giveBack() {
	l.space32.Return()
	l.space64.Return()
}
