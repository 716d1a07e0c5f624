package operator

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/cuda"
)

// Float is a type of number that operators compute with.
type Float interface{ float32 | float64 }

// Function computes an operator on the host, for one type of number. It has a fixed list of operands, of which optional ones may be absent,
// and one or more results.
//
// Gorgonia merges operators of one name, functions with equal fields, and the same operands. So a function's fields are all of its parameters, and
// hold no pointers. A function must not keep a reference to a value, since a machine may overwrite any value before the backward pass runs.
type Function[T Float] interface {
	// Forward writes every element of every result.
	Forward(in []Operand[T], out [][]T)
	// Backward computes the gradients from the operands and the results' gradients dout. It writes every element of every gradient that is
	// not nil.
	Backward(in []Operand[T], dout, grad [][]T)
}

// Operand is the value of an operand on the host. The zero Operand is an absent one.
type Operand[T Float] struct {
	Shape tensor.Shape
	Data  []T    // of Numbers, in row-major order
	Ints  []int  // of Ints, in row-major order
	Marks []bool // of Marks, in row-major order

	Narrow *blas.Weights // of Numbers instead of Data, for a function that TakesNarrow
}

// Keeper is a function whose forward pass can keep values for its backward pass. Without the kept values the backward pass recomputes them,
// and the gradients are the same.
type Keeper[T Float] interface {
	Function[T]
	// Keeps returns the number of elements to keep, 0 if the function keeps none.
	Keeps() int
	// ForwardKeeping is Forward that also writes every element of kept.
	ForwardKeeping(in []Operand[T], out [][]T, kept []T)
	// BackwardKept is Backward that reads kept.
	BackwardKept(in []Operand[T], dout, grad [][]T, kept []T)
}

// Eager is a function with a single result, a scalar, whose forward pass can compute the gradients. The operator of the gradients multiplies them by the gradient
// of the result. If they are missing it calls Backward, and they are the same.
type Eager[T Float] interface {
	Function[T]
	// ForwardGradients is Forward that also writes every element of every gradient that is not nil, for a gradient of the result of 1.
	ForwardGradients(in []Operand[T], out, grad [][]T)
}

// Checker is a function that refuses some values of its integer operands, such as an index out of range. Check returns an error that names
// the operand and the element. It reads shapes and integers only. On the host it runs before Forward and Backward. On a device it runs after
// ForwardOn has queued its kernels, while the device works, and once for each copy of the integers. So kernels must not read or write out of range
// with an integer that Check refuses.
type Checker interface {
	Check(shapes []tensor.Shape, ints [][]int) error
}

// OnDevice is the function of float32 of an operator that also runs on a device.
type OnDevice interface {
	// ForwardOn queues kernels that write every result. If keep is true, it also returns the values that BackwardOn needs, nil for none.
	// Otherwise it must be possible to capture what it does (cuda.Stream.Capture), if it can run on a captured stream at all.
	ForwardOn(s *cuda.Stream, p cuda.Precision, in []DeviceOperand, out []cuda.Array[float32], keep bool) (Kept, error)
	// BackwardOn queues kernels that write every gradient that is not absent. The gradient dout of a result that is not used is absent,
	// unless the operator has only one result.
	BackwardOn(s *cuda.Stream, p cuda.Precision, in []DeviceOperand, dout, grad []cuda.Array[float32], kept Kept) error
}

// Chained is a function of which consecutive uses can be queued together on a device: the first operand of each is the first result of the one
// before, which nothing else reads.
type Chained interface {
	// ForwardChain is ForwardOn of each link, without values to keep. All links are functions of the same type. The first results of all but
	// the last need not be written.
	ForwardChain(s *cuda.Stream, p cuda.Precision, links []Link) error
}

// Link is a function with its operands and results on a device.
type Link struct {
	F   OnDevice
	In  []DeviceOperand
	Out []cuda.Array[float32]
}

// DeviceOperand is the value of an operand on a device. The zero DeviceOperand is an absent one.
type DeviceOperand struct {
	Shape               tensor.Shape
	cuda.Array[float32]                   // of Numbers
	Weight              *Weight           // the weight whose value Array is, or nil
	Narrow              *Narrow           // of Numbers instead of Array, for a function that TakesNarrow
	Ids                 cuda.Array[int32] // of Ints
	Ints                []int             // of Ints: the same numbers on the host; nil if they are only on the device
	Marks               cuda.Array[uint8] // of Marks
	tensor              *Tensor           // the value, if it is a tensor
}

// Steady is a function that queues the same work whenever its operands, results, gradients and kept values are in the same memory. While a stream runs ahead (cuda/ahead.go), the function
// is not called for work that is queued already.
type Steady interface {
	// Kept returns the memory of the values that ForwardOn has kept, and a function that allocates memory for them once more, in the order in which ForwardOn does.
	Kept(k Kept) (memory []uintptr, again func(*cuda.Stream) (Kept, error))
}

// Limited is a function whose device function does not support all sizes. Fits returns an error that names the size.
type Limited interface {
	Fits(p cuda.Precision) error
}

// Kept is the values that a forward pass on a device keeps for the backward pass. Free frees their memory.
type Kept interface{ Free() }

// Passer is a function that returns one of its operands as one of its results on a device. The function adds its own gradient of the operand
// to the gradient of this result, unless the operand is Passed.
type Passer interface{ Passes() (result, operand int) }

// Bounded is a Checker that knows from which to which integer all of operand i's are right. A device then checks only those that have others.
type Bounded interface {
	Bounds(i int) (least, most int)
}

// RowSummer is a function of two results on a device with one gradient, that of its first operand, a table: the gradient of the second result, and the rows of the gradient of
// the first one, which are added to the rows of the table that the Ints of its second operand name. See Split.
type RowSummer interface {
	RowSum() (rows, width, table int)
}

// Linear is a function whose BackwardOn reads no numbers of its operands, only shapes, integers and marks. With FreeAfterUse the operands can then be
// freed before the backward pass. BackwardOn gets them without an array.
type Linear interface{ Linear() }

// Repeatable is a function of one result that takes little time on a device, if Repeatable returns true. With FreeAfterUse the result is freed when the operators of the forward pass have
// read it, and the first gradient that reads it has it computed again. BackwardOn must read all operands, so that they are still there.
type Repeatable interface{ Repeatable() bool }

// Kind is what the elements of an operand are.
type Kind int

const (
	Numbers Kind = iota // of the operator's type, float32 or float64
	Ints                // of int
	Marks               // of int, float32 or float64; a non-zero element marks its place
)

// In describes an operand of an operator.
type In struct {
	Name string
	Node *G.Node // nil if the operand is absent
	Kind Kind
	// Passed says that the operand's gradient is the gradient of the only result, or on a device that of the result that a Passer returns it as. It is passed on
	// without a copy, and Backward does not get to write it.
	Passed bool
}

// Definition defines an operator: its functions, its operands and the shapes of its results.
type Definition struct {
	Name    string
	Float32 Function[float32] // runs on a device too if it implements OnDevice
	Float64 Function[float64]
	Dtype   tensor.Dtype // of Numbers and of the results
	In      []In
	Out     []tensor.Shape
}

// Apply adds an operator to the graph of its operands and returns a node for each of its results. Where the operands are decides where the
// operator runs. Ints and Marks are copied to a device if they are needed there. A result that is a scalar is copied to the host.
//
// Errors: operands of Numbers in different places; operands on a device, for an operator that has no function there; results that exceed the
// memory.
func Apply(d Definition) (G.Nodes, error) {
	nodes, err := apply(d)
	if err != nil {
		return nil, fmt.Errorf("op: %s: %w", d.Name, err)
	}
	return nodes, nil
}
