package op

import (
	"fmt"
	"math"
	"slices"
	"unique"
	"unsafe"

	memory "github.com/gomamba/mamba/internal/size"
)

// Order is the order in which a scan visits the cells of a grid: a permutation of the cells, which are numbered row by row. Cell
// (y, x) of a grid (height, width) has number y·width + x. Orders of the same cells are equal (==).
//
// An Order that was made of wrong sizes keeps its error: Err and every use of it return that error. The zero Order is missing.
type Order struct {
	cells unique.Handle[string] // the int32 of the cells, in the order visited. A handle is compared by content, and collected
	err   string
}

// NewOrder returns the order that visits cells[0] first, then cells[1], and so on. Errors: cells that are not a permutation of the numbers
// from 0 to len(cells)-1; no cell.
func NewOrder(cells []int) (Order, error) {
	if len(cells) == 0 {
		return Order{}, fmt.Errorf("op: order: the cells are missing, want at least one")
	}
	at := make([]int, len(cells))
	for i, c := range cells {
		if c < 0 || c >= len(cells) {
			return Order{}, fmt.Errorf("op: order: cells[%d] is %d, want a number from 0 to %d", i, c, len(cells)-1)
		}
		if at[c] > 0 {
			return Order{}, fmt.Errorf("op: order: cells[%d] is %d like cells[%d], want each cell once", i, c, at[c]-1)
		}
		at[c] = i + 1
	}
	o := newOrder("order", func(i int) int { return cells[i] }, len(cells))
	if o.err != "" {
		return Order{}, o.Err()
	}
	return o, nil
}

// newOrder returns the order of a grid whose i-th cell f returns. Errors: a size below 1; more cells than an int32 can count or the memory
// holds.
func newOrder(name string, f func(i int) int, grid ...int) Order {
	failed := func(err error) Order { return Order{err: fmt.Sprintf("op: %s: %v", name, err)} }
	n := 1
	for i, s := range grid {
		if s < 1 {
			return failed(fmt.Errorf("size %d is %d, want at least 1", i, s))
		}
		if s > math.MaxInt32/n {
			return failed(fmt.Errorf("the sizes are %d, want at most %d cells", grid, math.MaxInt32))
		}
		n *= s
	}
	if len(grid) == 0 {
		return failed(fmt.Errorf("the sizes are missing, want at least one"))
	}
	if err := memory.Of(4, n).Fits(fmt.Sprintf("the %d cells", n)); err != nil {
		return failed(err)
	}
	cells := make([]int32, n)
	for i := range cells {
		cells[i] = int32(f(i))
	}
	return Order{cells: intern(cells)}
}

// intern returns a handle of numbers. The handles of equal numbers are equal.
func intern(v []int32) unique.Handle[string] {
	return unique.Make(unsafe.String((*byte)(unsafe.Pointer(unsafe.SliceData(v))), 4*len(v)))
}

// interned returns the numbers of a handle, which must not be written.
func interned(h unique.Handle[string]) []int32 {
	if h == (unique.Handle[string]{}) {
		return nil
	}
	s := h.Value()
	return unsafe.Slice((*int32)(unsafe.Pointer(unsafe.StringData(s))), len(s)/4)
}

// Rows returns the order that visits the cells of a grid of any number of axes row by row: the order of their numbers.
func Rows(grid ...int) Order { return newOrder("rows", func(i int) int { return i }, grid...) }

// Columns returns the order that visits the cells of a grid column by column: the i-th is cell (i mod height, i div height).
func Columns(height, width int) Order {
	return newOrder("columns", func(i int) int { return i%height*width + i/height }, height, width)
}

// Windows returns the order that visits the cells of a grid in square windows of size cells a side, row by row, and the cells of each window
// row by row. At the right and the lower edge the windows are smaller if size does not divide the sides. The published LocalMamba pads the
// image with zeros there instead. A size below 1 is an error.
//
// Source: Huang et al., "LocalMamba: Visual State Space Model with Windowed Selective Scan", 2024.
func Windows(height, width, size int) Order {
	if size < 1 {
		return Order{err: fmt.Sprintf("op: windows: size is %d, want at least 1", size)}
	}
	return newOrder("windows", func(i int) int {
		rows := min(size, height) // of the band of windows that the cell is in
		band := i / (rows * width)
		i -= band * rows * width
		top := band * rows
		rows = min(rows, height-top)
		columns := min(size, width) // of the window
		left := i / (rows * columns) * columns
		i -= left * rows
		columns = min(columns, width-left)
		return (top+i/columns)*width + left + i%columns
	}, height, width)
}

// Slices returns the order that interleaves n slices of equal size: the cells of a grid, row by row, are cut into n slices of L/n cells, and
// the step i·n+s visits cell s·(L/n)+i. With n = depth, it follows a line through the depth of a volume, then the next line. An n that
// does not divide the number of cells is an error.
//
// Source: Xing et al., "SegMamba: Long-range Sequential Modeling Mamba For 3D Medical Image Segmentation", 2024.
func Slices(n int, grid ...int) Order {
	o := Rows(grid...)
	if o.err != "" {
		return o
	}
	length := o.Len()
	if n < 1 || length%n != 0 {
		return Order{err: fmt.Sprintf("op: slices: n is %d, want a number that divides the %d cells", n, length)}
	}
	return newOrder("slices", func(i int) int { return i%n*(length/n) + i/n }, grid...)
}

// VMambaOrders returns the four directions of VMamba: rows, columns, and both reversed.
//
// Source: Liu et al., "VMamba: Visual State Space Model", 2024.
func VMambaOrders(height, width int) []Order {
	rows, columns := Rows(height, width), Columns(height, width)
	return []Order{rows, columns, rows.Reversed(), columns.Reversed()}
}

// VimOrders returns the two directions of Vim: forward and backward.
//
// Source: Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", 2024.
func VimOrders(length int) []Order { return []Order{Rows(length), Rows(length).Reversed()} }

// LocalMambaOrders returns the eight directions of which each layer of a LocalMamba uses some, most often four: rows, columns, windows of 2
// and windows of 7, each followed by its reverse.
func LocalMambaOrders(height, width int) (all []Order) {
	for _, o := range []Order{Rows(height, width), Columns(height, width), Windows(height, width, 2), Windows(height, width, 7)} {
		all = append(all, o, o.Reversed())
	}
	return all
}

// SegMambaOrders returns the three directions of SegMamba: forward, backward, and the slices of Slices.
func SegMambaOrders(n int, grid ...int) []Order {
	return []Order{Rows(grid...), Rows(grid...).Reversed(), Slices(n, grid...)}
}

// Err returns the error of the sizes of which the order was made, or an error if the order is missing.
func (o Order) Err() error {
	switch {
	case o.err != "":
		return fmt.Errorf("%s", o.err)
	case o == Order{}:
		return fmt.Errorf("op: order: the order is missing, want one that NewOrder, Rows or another function of orders returned")
	}
	return nil
}

// list returns the cells in the order visited, which must not be written.
func (o Order) list() []int32 { return interned(o.cells) }

// Len returns the number of cells, 0 if the order has an error.
func (o Order) Len() int { return len(o.list()) }

// Cells returns the numbers of the cells in the order visited.
func (o Order) Cells() []int {
	cells := make([]int, o.Len())
	for i, c := range o.list() {
		cells[i] = int(c)
	}
	return cells
}

// Reversed returns the order that visits the same cells from the last to the first.
func (o Order) Reversed() Order {
	if o.Len() == 0 {
		return o
	}
	cells := slices.Clone(o.list())
	slices.Reverse(cells)
	return Order{cells: intern(cells)}
}

// Inverse returns the order whose i-th cell is the step at which o visits cell i. Reorder with it undoes Reorder with o.
func (o Order) Inverse() Order {
	if o.Len() == 0 {
		return o
	}
	cells := make([]int32, o.Len())
	for i, c := range o.list() {
		cells[c] = int32(i)
	}
	return Order{cells: intern(cells)}
}

// String returns the number of cells and the first of them.
func (o Order) String() string {
	if err := o.Err(); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("order of %d cells, %d first", o.Len(), o.list()[:min(o.Len(), 8)])
}
