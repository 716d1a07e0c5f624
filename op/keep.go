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
	kept atomic.Pointer[operand]
}

func newKeeping(result G.Value, kept operand) *keeping {
	k := &keeping{Dense: result.(*tensor.Dense)}
	k.kept.Store(&kept)
	return k
}

// keptBy returns what a value carries, absent if nothing.
func keptBy(v G.Value) operand {
	if k, ok := v.(*keeping); ok {
		if kept := k.kept.Load(); kept != nil {
			return *kept
		}
	}
	return operand{}
}

// takeKept is keptBy for the only reader, who gives back what he takes: nobody finds it in the value from then on.
func takeKept(v G.Value) operand {
	if k, ok := v.(*keeping); ok {
		if kept := k.kept.Swap(nil); kept != nil {
			return *kept
		}
	}
	return operand{}
}

// borrow returns a vector in memory to be given back.
func borrow(dt tensor.Dtype, n int) operand {
	if dt == tensor.Float32 {
		return operand{tensor.Shape{n}, kernel.Borrow[float32](n)}
	}
	return operand{tensor.Shape{n}, kernel.Borrow[float64](n)}
}

// giveBack ends the loan of a borrowed vector; that of an absent one is nothing.
func (o operand) giveBack() {
	switch d := o.data.(type) {
	case []float32:
		kernel.GiveBack(d)
	case []float64:
		kernel.GiveBack(d)
	}
}
