package cuda

import (
	"errors"
	"fmt"
)

// MLP is y = f(x·W1ᵀ + B1)·W2ᵀ + B2, for Rows vectors x. op.MLP defines it. Products are in T, as is the result of the first one; y and gradients are
// float32.
type MLP[T Activation] struct {
	Rows, In, Hidden, Out int
	F                     Nonlinearity
	Precision             Precision // of the products

	X      Array[float32] // (rows, in)
	W1, W2 Array[T]       // (hidden, in), (out, hidden)
	B1, B2 Array[float32] // optional: (hidden), (out)
}

// MLPKept holds the values of an MLP's forward pass that its backward pass needs. Free it once.
type MLPKept[T Activation] struct{ h Array[T] }

// Free frees the array.
func (k *MLPKept[T]) Free() {
	k.h.Free()
	*k = MLPKept[T]{}
}

// MLPGrad receives the gradients of an MLP's operands, in their shapes. Those of absent operands are absent.
type MLPGrad struct{ X, W1, B1, W2, B2 Array[float32] }

func (m *MLP[T]) check() error {
	if m == nil {
		return missing("MLP")
	}
	return firstError(
		m.F.err(), atLeast(0, "MLP", "Rows", m.Rows), atLeast(1, "MLP", "In", m.In, "Hidden", m.Hidden, "Out", m.Out),
		expect("MLP", "X", m.X.n, count(m.Rows, m.In), "W1", m.W1.n, count(m.Hidden, m.In), "W2", m.W2.n, count(m.Out, m.Hidden)),
		optional("MLP", "B1", m.B1, m.Hidden, "B2", m.B2, m.Out),
	)
}

// kernel returns a kernel's name, and the columns of a thread: 16 bytes if all rows begin at multiples of them.
func (m *MLP[T]) kernel(direction string, addresses ...uintptr) (string, int) {
	columns := int(16 / size[T]())
	together := uintptr(m.Hidden) * uintptr(size[T]())
	for _, a := range addresses {
		together |= a
	}
	if together%16 != 0 {
		columns = 1
	}
	return fmt.Sprintf("mlp_%s_%s_%d", direction, typeName[T](), columns), columns
}

// Forward queues y (rows, out). With keep, it returns the values that Backward needs.
func (m *MLP[T]) Forward(s *Stream, y Array[float32], keep bool) (_ *MLPKept[T], err error) {
	if err := firstError(m.check(), s.usable()); err != nil {
		return nil, err
	}
	if err := expect("MLP", "y", y.n, count(m.Rows, m.Out)); err != nil {
		return nil, err
	}
	if m.Rows == 0 {
		return &MLPKept[T]{}, nil
	}
	var work temporaries
	defer func() { work.free() }()
	x, g := as[T](s, &work, m.X.Slice(0, m.Rows*m.In), &err), take[T](s, &work, m.Rows*m.Hidden, &err)
	h := g // without keep the activation overwrites it
	if keep && err == nil {
		h, err = NewArray[T](s, m.Rows*m.Hidden)
	}
	if err != nil {
		return nil, err
	}
	name, columns := m.kernel("forward", h.address, g.address)
	err = firstError(
		Multiply(s, m.Precision, m.Rows, m.In, m.Hidden, x, m.W1, h, m.Hidden),
		s.run("mlp", name, blocksOf(m.Rows*m.Hidden/columns, 256), h.address, m.B1.address, g.address, m.Rows, m.Hidden, int32(m.F)),
		Multiply(s, m.Precision, m.Rows, m.Hidden, m.Out, g, m.W2, y, m.Out),
	)
	if err == nil && !m.B2.Absent() {
		err = AddBias(s, m.Rows, m.Out, y, m.Out, m.B2)
	}
	if !keep {
		return nil, err
	}
	if err != nil {
		h.Free()
		return nil, err
	}
	return &MLPKept[T]{h}, nil
}

// Backward queues the gradients of all operands. Its inputs are the values that Forward kept and the gradient dy of its result. Two runs on the same
// operands give the same gradients, bit for bit.
func (m *MLP[T]) Backward(s *Stream, k *MLPKept[T], dy Array[float32], grad *MLPGrad) (err error) {
	if err := m.check(); err != nil {
		return err
	}
	if k == nil || grad == nil {
		return errors.New("cuda: MLP: the kept values or the gradients are missing, want what Forward kept, and arrays for the gradients")
	}
	if err := firstError(
		expect("MLP", "dy", dy.n, count(m.Rows, m.Out), "kept h", k.h.n, count(m.Rows, m.Hidden), "the gradient of X", grad.X.n, m.X.n,
			"the gradient of W1", grad.W1.n, m.W1.n, "the gradient of W2", grad.W2.n, m.W2.n),
		optional("MLP", "the gradient of B1", grad.B1, m.Hidden, "the gradient of B2", grad.B2, m.Out), s.usable(),
	); err != nil {
		return err
	}
	if m.Rows == 0 {
		return firstError(grad.W1.Fill(s, 0), grad.W2.Fill(s, 0), orNothing(grad.B1, s), orNothing(grad.B2, s))
	}
	var work temporaries
	defer func() { work.free() }()
	x, d := as[T](s, &work, m.X.Slice(0, m.Rows*m.In), &err), as[T](s, &work, dy.Slice(0, m.Rows*m.Out), &err)
	g, dh := take[T](s, &work, m.Rows*m.Hidden, &err), take[T](s, &work, m.Rows*m.Hidden, &err)
	name, columns := m.kernel("backward", k.h.address, g.address, dh.address)
	over := blocksOf((m.Hidden+columns-1)/columns, 32)
	over.threads = 256
	each := max(64, m.Rows*int(over.x)/(16*max(s.multiprocessors(), 1)), (m.Rows+mostRows-1)/mostRows)
	over.y = int64((m.Rows + each - 1) / each)
	parts := take[float32](s, &work, int(over.y)*m.Hidden, &err)
	if err != nil {
		return err
	}
	if err := firstError(
		MatMul(s, m.Precision, m.Rows, m.Hidden, m.Out, matrix(d, m.Out), matrix(m.W2, m.Hidden), 0, matrix(dh, m.Hidden)),
		s.run("mlp", name, over, k.h.address, m.B1.address, dh.address, g.address, parts.address, m.Rows, m.Hidden, each, int32(m.F)),
		MultiplyBackward(s, m.Precision, m.Rows, m.Hidden, m.Out, g, m.W2, d, m.Out, Array[float32]{}, grad.W2),
		MultiplyBackward(s, m.Precision, m.Rows, m.In, m.Hidden, x, m.W1, dh, m.Hidden, grad.X, grad.W1),
	); err != nil {
		return err
	}
	if !grad.B1.Absent() {
		if err := s.sumParts([]partSum{sumOf(grad.B1.Slice(0, m.Hidden), parts, int(over.y))}); err != nil {
			return err
		}
	}
	if !grad.B2.Absent() {
		return ColumnSums(s, m.Rows, m.Out, dy, m.Out, grad.B2)
	}
	return nil
}
