package op

import (
	"sync/atomic"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/work"
)

// keeper is a function whose forward pass can keep values for its backward pass. Without the kept values the backward pass recomputes them,
// and the gradients are the same.
type keeper interface {
	function
	// keeps returns the number of elements to keep, 0 if the function keeps none.
	keeps() int
	// forwardKeeping is forward that also writes every element of kept.
	forwardKeeping(in, out []operand, kept operand)
	// backwardKept is backward that reads kept.
	backwardKept(in, dout, grad []operand, kept operand)
}

// keeps returns the number of elements that the operator keeps if its gradients are computed.
func (o *operator) keeps() int {
	if k, ok := o.f.(keeper); ok {
		return k.keeps()
	}
	return 0
}

// keeping is a result that carries kept values from an operator to the operator of its gradients. It travels like any value, so each run of
// each machine has its own. An operator that overwrites a result cannot reach the kept values: only views read a keeping, and a view shows
// the tensor alone.
//
// A graph without gradients has no keeping. On the lisp machine there is none either, since that machine does not call SymDiff. If a machine
// copies the value, the copy is a plain tensor, and the backward pass recomputes the kept values.
type keeping struct {
	*tensor.Dense
	kept atomic.Pointer[loan]
}

func newKeeping(result G.Value, kept loan) *keeping {
	k := &keeping{Dense: result.(*tensor.Dense)}
	k.kept.Store(&kept)
	return k
}

// keptBy returns the kept values that v carries, or an absent operand if it carries none.
func keptBy(v G.Value) (kept loan) {
	if k, ok := v.(*keeping); ok {
		if l := k.kept.Load(); l != nil {
			return *l
		}
	}
	return kept
}

// takeKept is keptBy for the only reader. It removes the kept values from v, and the caller must call giveBack.
func takeKept(v G.Value) (kept loan) {
	if k, ok := v.(*keeping); ok {
		if l := k.kept.Swap(nil); l != nil {
			return *l
		}
	}
	return kept
}

// loan is a vector in memory that is borrowed from the kernels' workspace.
type loan struct {
	operand
	space32 work.Space[float32]
	space64 work.Space[float64]
}

func borrow(dt tensor.Dtype, n int) (l loan) {
	l.shape = tensor.Shape{n}
	if dt == tensor.Float32 {
		l.space32 = work.Borrow[float32](n)
		l.data = l.space32.Data
	} else {
		l.space64 = work.Borrow[float64](n)
		l.data = l.space64.Data
	}
	return l
}

// giveBack returns the memory to the workspace. The vector must not be used afterwards.
func (l loan) giveBack() {
	l.space32.Return()
	l.space64.Return()
}
