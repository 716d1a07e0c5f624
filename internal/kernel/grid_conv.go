package kernel

import (
	"gonum.org/v1/gonum/blas"

	"github.com/gomamba/mamba/internal/work"
)

// ConvShape has the sizes of a convolution over a grid of three axes. Grids of fewer axes have the size 1 along the first axes.
type ConvShape struct {
	Batch, Channels, Filters, Groups int
	In, Out                          [3]int // cells of the grids with Channels and with Filters numbers a cell
	Kernel, Stride                   [3]int
	Padding                          [3]int // cells of zeros before the first of In
	Dilation                         [3]int
}

// GridConv is a convolution over a grid. With x (batch, in…, channels) and y (batch, out…, filters), for each cell o of out:
//
//	y_of = Σ_k Σ_c w_fck x_{o·stride - padding + k·dilation, c} + bias_f
//
// A cell outside of the grid has no term. The sum over c is over the channels of the filter's group. Transposed exchanges the grids: x is (batch,
// out…, filters) and y (batch, in…, channels), the transpose of the linear map above. The caller has checked the sizes.
type GridConv[T Float] struct {
	ConvShape
	Transposed bool
	SiLU       bool // apply silu to the sum

	X      []T
	Weight []T // (filters, channels/groups, kernel…)
	Bias   []T // one number for each channel of y, or nil
	Gemm   Gemm[T]
}

func product3(n [3]int) int { return n[0] * n[1] * n[2] }

// taps returns the number of cells of the kernel.
func (s *ConvShape) taps() int { return product3(s.Kernel) }

// depthwise reports whether each channel has one filter of its own.
func (s *ConvShape) depthwise() bool { return s.Groups == s.Channels && s.Groups == s.Filters }

// pointwise reports whether each cell of y is made of one cell of x, the same one.
func (s *ConvShape) pointwise() bool {
	return s.taps() == 1 && s.In == s.Out && s.Stride == [3]int{1, 1, 1} && s.Padding == [3]int{}
}

// width returns the length of a row of the matrix of columns: the inputs of one cell and one group, in the order (kernel…, channels).
func (s *ConvShape) width() int { return s.taps() * s.Channels / s.Groups }

// sizes returns the number of elements of a value on In and on Out.
func (s *ConvShape) sizes() (in, out int) {
	return s.Batch * product3(s.In) * s.Channels, s.Batch * product3(s.Out) * s.Filters
}

// Forward writes y.
func (c *GridConv[T]) Forward(y []T) {
	c.sums(y)
	if c.SiLU {
		Gate(SiLU, y, y, nil)
	}
}

// sums writes y before silu.
func (c *GridConv[T]) sums(y []T) {
	if c.Transposed {
		c.spread(y, c.X, c.Bias)
	} else {
		c.correlate(y, c.X, c.Bias)
	}
}

// Backward writes the gradients that are not nil, from the gradient dy of y. It computes the sums before silu again.
func (c *GridConv[T]) Backward(dy, dx, dWeight, dBias []T) {
	if c.SiLU {
		w := work.Borrow[T](len(dy))
		defer w.Return()
		c.sums(w.Data)
		GateBackward(SiLU, w.Data, nil, dy, w.Data, nil)
		dy = w.Data
	}
	if dBias != nil {
		sumRows(dBias, dy)
	}
	in, out := c.X, dy
	if c.Transposed {
		in, out = dy, c.X
	}
	if dWeight != nil {
		c.weightSums(dWeight, in, out)
	}
	switch {
	case dx == nil:
	case c.Transposed:
		c.correlate(dx, dy, nil)
	default:
		c.spread(dx, dy, nil)
	}
}

// columnsLimit is the largest number of elements of a matrix of columns, unless a single block of rows has more. It does not depend on the
// size of the grid, and 2 MiB of float32 stay in the processor's cache between their writing and their product.
const columnsLimit = 1 << 19

// eachPiece calls do for consecutive pieces of the cells of Out, in the order in which they are in memory.
func (s *ConvShape) eachPiece(do func(first, n int)) {
	cells := s.Batch * product3(s.Out)
	most := cells
	if !s.pointwise() {
		most = max(columnsLimit/s.width(), 64)
	}
	for first := 0; first < cells; first += most {
		do(first, min(most, cells-first))
	}
}

// orderedWeight returns the weight as (filters, kernel…, channels/groups), the order of the columns. It may be the weight itself.
func (c *GridConv[T]) orderedWeight() work.Space[T] {
	k, n := c.taps(), c.Channels/c.Groups
	if k == 1 || n == 1 {
		return work.Space[T]{Data: c.Weight}
	}
	w := work.Borrow[T](len(c.Weight))
	transposeEach(w.Data, c.Weight, n, k)
	return w
}

// transposeEach writes the transposes (columns, rows) of the matrices (rows, columns) of x.
func transposeEach[T Float](y, x []T, rows, columns int) {
	size := rows * columns
	work.ParallelRange(len(x)/size, max(piece/size, 1), func(from, to int) {
		for m := from; m < to; m++ {
			a, b := x[m*size:(m+1)*size], y[m*size:(m+1)*size]
			for i := range rows {
				for j := range columns {
					b[j*rows+i] = a[i*columns+j]
				}
			}
		}
	})
}

// fillRows writes row, or zeros if it is nil, to each row of y.
func fillRows[T Float](y, row []T) {
	if row == nil {
		work.ParallelRange(len(y), piece, func(from, to int) { clear(y[from:to]) })
		return
	}
	n := len(row)
	work.ParallelRange(len(y)/n, max(piece/n, 1), func(from, to int) {
		for i := from; i < to; i++ {
			copy(y[i*n:(i+1)*n], row)
		}
	})
}

// correlate writes y (batch, out…, filters) from x (batch, in…, channels).
func (c *GridConv[T]) correlate(y, x, bias []T) {
	if c.depthwise() {
		c.depthwiseForward(y, x, bias)
		return
	}
	var beta T
	if bias != nil {
		fillRows(y, bias)
		beta = 1
	}
	w := c.orderedWeight()
	defer w.Return()
	width, filters := c.width(), c.Filters/c.Groups
	col := c.columns()
	defer col.Return()
	c.eachPiece(func(first, n int) {
		for g := range c.Groups {
			a, stride := c.gather(col.Data, x, g, first, n)
			c.Gemm(blas.NoTrans, blas.Trans, n, filters, width, 1, a, stride, w.Data[g*filters*width:], width, beta, y[first*c.Filters+g*filters:], c.Filters)
		}
	})
}

// spread writes x (batch, in…, channels), the transpose of the linear map of correlate applied to y, plus bias in each cell.
func (c *GridConv[T]) spread(x, y, bias []T) {
	if c.depthwise() {
		c.depthwiseBackward(x, y, bias)
		return
	}
	w := c.orderedWeight()
	defer w.Return()
	width, filters := c.width(), c.Filters/c.Groups
	if c.pointwise() {
		var beta T
		if bias != nil {
			fillRows(x, bias)
			beta = 1
		}
		n := c.Channels / c.Groups
		for g := range c.Groups {
			c.Gemm(blas.NoTrans, blas.NoTrans, c.Batch*product3(c.Out), n, filters, 1, y[g*filters:], c.Filters, w.Data[g*filters*n:], n, beta, x[g*n:], c.Channels)
		}
		return
	}
	fillRows(x, bias)
	col := c.columns()
	defer col.Return()
	c.eachPiece(func(first, n int) {
		for g := range c.Groups {
			c.Gemm(blas.NoTrans, blas.NoTrans, n, width, filters, 1, y[first*c.Filters+g*filters:], c.Filters, w.Data[g*filters*width:], width, 0, col.Data, width)
			c.scatter(x, col.Data, g, first, n)
		}
	})
}

// weightSums writes the gradient of the weight, from x (batch, in…, channels) and y (batch, out…, filters), of which one is a gradient.
func (c *GridConv[T]) weightSums(dw, x, y []T) {
	if c.depthwise() {
		c.depthwiseWeight(dw, x, y)
		return
	}
	width, filters := c.width(), c.Filters/c.Groups
	ordered := work.Borrow[T](len(dw))
	defer ordered.Return()
	col := c.columns()
	defer col.Return()
	c.eachPiece(func(first, n int) {
		for g := range c.Groups {
			a, stride := c.gather(col.Data, x, g, first, n)
			c.Gemm(blas.Trans, blas.NoTrans, filters, width, n, 1, y[first*c.Filters+g*filters:], c.Filters, a, stride, T(min(first, 1)), ordered.Data[g*filters*width:], width)
		}
	})
	transposeEach(dw, ordered.Data, c.taps(), c.Channels/c.Groups)
}

// columns borrows the matrix of columns of the largest piece.
func (c *GridConv[T]) columns() (w work.Space[T]) {
	if !c.pointwise() {
		c.eachPiece(func(first, n int) {
			if first == 0 {
				w = work.Borrow[T](n * c.width())
			}
		})
	}
	return w
}

// cell is the index of a cell of a grid and its coordinates.
type cell struct {
	batch, z, y, x int
}

// cellAt returns the cell with index i of grids of the sizes n.
func cellAt(i int, n [3]int) cell {
	return cell{x: i % n[2], y: i / n[2] % n[1], z: i / n[2] / n[1] % n[0], batch: i / n[2] / n[1] / n[0]}
}

// gather returns the matrix of columns of n cells of Out from first on, and its stride: x itself, or written to col.
func (c *GridConv[T]) gather(col, x []T, group, first, n int) ([]T, int) {
	size := c.Channels / c.Groups
	if c.pointwise() {
		return x[first*c.Channels+group*size:], c.Channels
	}
	width := c.width()
	work.ParallelRange(n, max(piece/width, 1), func(from, to int) {
		for i := from; i < to; i++ {
			row, o := col[i*width:(i+1)*width], cellAt(first+i, c.Out)
			c.eachTap(o, func(tap, at int, inside bool) {
				if to := row[tap*size : (tap+1)*size]; inside {
					copy(to, x[at*c.Channels+group*size:])
				} else {
					clear(to)
				}
			})
		}
	})
	return col, width
}

// eachTap calls do for each cell of the kernel at a cell of Out, with its index, and the index of its cell of In if that is inside.
func (s *ConvShape) eachTap(o cell, do func(tap, at int, inside bool)) {
	tap := 0
	for kz := range s.Kernel[0] {
		z := o.z*s.Stride[0] - s.Padding[0] + kz*s.Dilation[0]
		for ky := range s.Kernel[1] {
			y := o.y*s.Stride[1] - s.Padding[1] + ky*s.Dilation[1]
			line := ((o.batch*s.In[0]+z)*s.In[1] + y) * s.In[2]
			for kx := range s.Kernel[2] {
				x := o.x*s.Stride[2] - s.Padding[2] + kx*s.Dilation[2]
				do(tap, line+x, z >= 0 && z < s.In[0] && y >= 0 && y < s.In[1] && x >= 0 && x < s.In[2])
				tap++
			}
		}
	}
}

// eachReader calls do for each cell of Out that reads a cell of In, with the index of the cell of the kernel and of the cell of Out.
func (s *ConvShape) eachReader(i cell, do func(tap, at int)) {
	tap := 0
	for kz := range s.Kernel[0] {
		z, inZ := s.reader(0, i.z, kz)
		for ky := range s.Kernel[1] {
			y, inY := s.reader(1, i.y, ky)
			line := ((i.batch*s.Out[0]+z)*s.Out[1] + y) * s.Out[2]
			for kx := range s.Kernel[2] {
				if x, inX := s.reader(2, i.x, kx); inX && inY && inZ {
					do(tap, line+x)
				}
				tap++
			}
		}
	}
}

// reader returns the coordinate along an axis at which Out reads the coordinate i of In with the cell k of the kernel, and whether there is one.
func (s *ConvShape) reader(axis, i, k int) (int, bool) {
	o := i + s.Padding[axis] - k*s.Dilation[axis]
	return o / s.Stride[axis], o >= 0 && o%s.Stride[axis] == 0 && o/s.Stride[axis] < s.Out[axis]
}

// scatter adds the columns of n cells of Out from first on to x.
func (c *GridConv[T]) scatter(x, col []T, group, first, n int) {
	size, width := c.Channels/c.Groups, c.width()
	// The images that the piece has cells of.
	image := product3(c.In)
	begin := cellAt(first, c.Out).batch * image
	end := (cellAt(first+n-1, c.Out).batch + 1) * image
	work.ParallelRange(end-begin, max(piece/width, 1), func(from, to int) {
		for i := begin + from; i < begin+to; i++ {
			row := x[i*c.Channels+group*size:][:size]
			c.eachReader(cellAt(i, c.In), func(tap, at int) {
				if at -= first; at >= 0 && at < n {
					sumOf(row, row, col[at*width+tap*size:][:size])
				}
			})
		}
	})
}

// depthwiseTaps returns the weight as (kernel…, channels).
func (c *GridConv[T]) depthwiseTaps() work.Space[T] {
	w := work.Borrow[T](len(c.Weight))
	transposeEach(w.Data, c.Weight, c.Channels, c.taps())
	return w
}

func (c *GridConv[T]) depthwiseForward(y, x, bias []T) {
	taps := c.depthwiseTaps()
	defer taps.Return()
	n := c.Channels
	fillRows(y, bias)
	work.ParallelRange(len(y)/n, max(piece/(n*c.taps()), 1), func(from, to int) {
		for i := from; i < to; i++ {
			row := y[i*n : (i+1)*n]
			c.eachTap(cellAt(i, c.Out), func(tap, at int, inside bool) {
				if inside {
					addProduct(row, taps.Data[tap*n:(tap+1)*n], x[at*n:(at+1)*n])
				}
			})
		}
	})
}

func (c *GridConv[T]) depthwiseBackward(x, y, bias []T) {
	taps := c.depthwiseTaps()
	defer taps.Return()
	n := c.Channels
	fillRows(x, bias)
	work.ParallelRange(len(x)/n, max(piece/(n*c.taps()), 1), func(from, to int) {
		for i := from; i < to; i++ {
			row := x[i*n : (i+1)*n]
			c.eachReader(cellAt(i, c.In), func(tap, at int) {
				addProduct(row, taps.Data[tap*n:(tap+1)*n], y[at*n:(at+1)*n])
			})
		}
	})
}

// depthwiseWeight adds the terms of a task in T and the tasks' sums in float64, so that the error does not grow with the size of the grid.
func (c *GridConv[T]) depthwiseWeight(dw, x, y []T) {
	n, size, cells := c.Channels, len(dw), c.Batch*product3(c.Out)
	each := max(256, cells/64)
	parts := work.Borrow[T]((cells + each - 1) / each * size)
	defer parts.Return()
	work.ParallelRange(cells, each, func(from, to int) {
		sum := parts.Data[from/each*size:][:size]
		clear(sum)
		for i := from; i < to; i++ {
			row := y[i*n : (i+1)*n]
			c.eachTap(cellAt(i, c.Out), func(tap, at int, inside bool) {
				if inside {
					addProduct(sum[tap*n:(tap+1)*n], row, x[at*n:(at+1)*n])
				}
			})
		}
	})
	sums := work.Borrow[T](size)
	defer sums.Return()
	sumRows(sums.Data, parts.Data)
	transposeEach(dw, sums.Data, c.taps(), n)
}
