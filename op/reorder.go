package op

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"unique"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// Reorder returns the cells of x (batch, grid…, channels) in an order: y (batch, cells, channels), with
//
//	y_i = x_{order_i}
//
// A grid has one to three axes. GridScan reads and writes through its orders, without a copy; use Reorder for layers that know no order, such
// as a convolution over time. Reorder with order.Inverse() undoes it, and computes the gradient.
//
// Errors: an x that is missing, or of another type or shape; an order that is missing, has an error, or has another number of cells than x.
func Reorder(x *G.Node, order Order) (*G.Node, error) {
	c := newChecker("reorder", "x", x)
	s := c.cells("x", x, "channels", 0)
	l := c.orders("order", "x", s, order)
	f := reorder[float32]{s[0], s[len(s)-1], l}
	return c.apply1(f, reorder[float64](f), tensor.Shape{s[0], s[1 : len(s)-1].TotalSize(), s[len(s)-1]})
}

// cells checks an operand that must be present, (batch, grid…, last) with a grid of one to three axes. last is the size of the last axis, 0 for any.
func (c *checker) cells(name string, n *G.Node, last string, size int) tensor.Shape {
	want := []int{0, 0, size}
	if n != nil {
		if axes := len(n.Shape()); axes == 4 || axes == 5 {
			want = slices.Insert(want, 0, make([]int, axes-3)...)
		}
	}
	return c.required(name, n, fmt.Sprintf("(batch, grid…, %s) with a grid of one to three axes", last), want...)
}

// orders checks the orders of the cells of x, whose shape is s.
func (c *checker) orders(name, x string, s tensor.Shape, all ...Order) orders {
	grid := s[1 : len(s)-1]
	var cells []int32
	for i, o := range all {
		at := name
		if len(all) > 1 {
			at = fmt.Sprintf("%s[%d]", name, i)
		}
		if err := o.Err(); err != nil {
			c.errorf("%s: %w", at, err)
		} else if c.err == nil && o.Len() != grid.TotalSize() {
			c.errorf("%s has %d cells, want %d, those of the grid %v of %s", at, o.Len(), grid.TotalSize(), grid, x)
		}
		cells = append(cells, o.list()...)
	}
	return orders{len(all), intern(cells)}
}

// orders is some orders of one number of cells, as a parameter of a function.
type orders struct {
	count int
	cells unique.Handle[string] // the orders one after another
}

// lists returns the cells of each order, which must not be written.
func (o orders) lists() (all [][]int32) {
	cells := interned(o.cells)
	for i := range o.count {
		all = append(all, cells[i*len(cells)/o.count:(i+1)*len(cells)/o.count])
	}
	return all
}

// len returns the number of cells.
func (o orders) len() int { return len(interned(o.cells)) / o.count }

// GoString names the orders in the name of an operator, the same in every run of a program.
func (o orders) GoString() string {
	return fmt.Sprintf("%d orders %x", o.count, sha256.Sum256([]byte(o.cells.Value())))
}

type reorder[T kernel.Float] struct {
	batch, channels int
	Order           orders // exported, so that fmt calls its GoString
}

func (f reorder[T]) Forward(in []value[T], out [][]T) {
	kernel.Gather(out[0], in[0].Data, f.batch, f.channels, f.Order.lists()[0])
}

func (f reorder[T]) Backward(in []value[T], dout, grad [][]T) {
	kernel.Scatter(grad[0], dout[0], f.batch, f.channels, f.Order.lists()[0])
}

func (f reorder[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	order, err := cuda.GridOrders(s, f.Order.lists())
	if err != nil {
		return nil, err
	}
	return nil, cuda.Gather(s, f.batch, f.Order.len(), f.channels, order, in[0].Array, out[0])
}

func (reorder[T]) Linear() {}

func (f reorder[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	order, err := cuda.GridOrders(s, f.Order.lists())
	if err != nil {
		return err
	}
	return cuda.Scatter(s, f.batch, f.Order.len(), f.channels, order, dout[0], grad[0])
}
