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

// isDepthwise reports whether each channel has one filter of its own.
func (s *ConvShape) isDepthwise() bool { return s.Groups == s.Channels && s.Groups == s.Filters }

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
	if c.isDepthwise() && !c.Transposed {
		taps := c.depthwiseTaps(false)
		defer taps.Return()
		c.depthwise(y, c.X, taps.Data, c.Bias, nil, c.SiLU)
		return
	}
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
		if c.isDepthwise() && !c.Transposed {
			taps := c.depthwiseTaps(false)
			defer taps.Return()
			c.depthwise(w.Data, c.X, taps.Data, c.Bias, dy, false)
		} else {
			c.sums(w.Data)
			GateBackward(SiLU, w.Data, nil, dy, w.Data, nil)
		}
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
	if c.isDepthwise() {
		taps := c.depthwiseTaps(false)
		defer taps.Return()
		c.depthwise(y, x, taps.Data, bias, nil, false)
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
	if c.isDepthwise() {
		c.depthwiseSpread(x, y, bias)
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
	if c.isDepthwise() {
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
	width, run := c.width(), c.Kernel[2]*size
	work.ParallelRange(n, max(piece/width, 1), func(from, to int) {
		for from < to {
			o := cellAt(first+from, c.Out) // the first of some cells of a line
			cells := min(to-from, c.Out[2]-o.x)
			part := col[from*width : (from+cells)*width] // from the columns of the next taps of a line on
			for kz := range c.Kernel[0] {
				z := o.z*c.Stride[0] - c.Padding[0] + kz*c.Dilation[0]
				for ky := range c.Kernel[1] {
					y := o.y*c.Stride[1] - c.Padding[1] + ky*c.Dilation[1]
					if z < 0 || z >= c.In[0] || y < 0 || y >= c.In[1] {
						for i := range cells {
							clear(part[i*width:][:run])
						}
					} else {
						line := x[((o.batch*c.In[0]+z)*c.In[1]+y)*c.In[2]*c.Channels:][:c.In[2]*c.Channels]
						for i := range cells {
							c.gatherLine(part[i*width:][:run], line, o.x+i, group)
						}
					}
					part = part[min(run, len(part)):]
				}
			}
			from += cells
		}
	})
	return col, width
}

// gatherLine writes the columns of the taps of a line, for the coordinate o of Out.
func (c *GridConv[T]) gatherLine(col, line []T, o, group int) {
	if at := o*c.Stride[2] - c.Padding[2]; at < 0 || at+(c.Kernel[2]-1)*c.Dilation[2] >= c.In[2] {
		clear(col)
	} else if c.joined() {
		copy(col, line[at*c.Channels:])
		return
	}
	for s := c.spans(o, group, 0, c.In[2]); s.next(); {
		copy(col[s.col:][:s.n], line[s.x:])
	}
}

// joined reports whether the inputs of neighbouring taps of a line are neighbours.
func (c *ConvShape) joined() bool { return c.Groups == 1 && c.Dilation[2] == 1 }

// span goes over the parts of a line of In that a cell of Out reads: n elements each, from x on in the line, and from col on in the columns of the line's taps.
type span struct {
	col, x, n        int
	stepCol, stepX   int
	tap, taps, at    int
	dilation, lo, hi int
}

// spans returns the spans of a group for the coordinate o of Out, in the cells [lo, hi) of the line: one if the inputs are joined.
func (c *GridConv[T]) spans(o, group, lo, hi int) span {
	size, at := c.Channels/c.Groups, o*c.Stride[2]-c.Padding[2]
	if c.joined() {
		first, last := max(lo-at, 0), min(hi-at, c.Kernel[2])
		s := span{col: first * size, x: (at + first) * size, n: (last - first) * size}
		if last > first {
			s.taps = 1
		}
		return s
	}
	return span{col: -size, x: at*c.Channels + group*size - c.Dilation[2]*c.Channels, n: size, stepCol: size, stepX: c.Dilation[2] * c.Channels,
		taps: c.Kernel[2], at: at - c.Dilation[2], dilation: c.Dilation[2], lo: lo, hi: hi}
}

// next goes to the next span, and reports whether there is one.
func (s *span) next() bool {
	for s.tap < s.taps {
		s.tap++
		s.col, s.x, s.at = s.col+s.stepCol, s.x+s.stepX, s.at+s.dilation
		if s.dilation == 0 || s.at >= s.lo && s.at < s.hi {
			return true
		}
	}
	return false
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
	begin, end := cellAt(first, c.Out), cellAt(first+n-1, c.Out)
	// The lines of the images that the piece has cells of, in parts, which do not depend on the number of processors.
	lines := c.In[0] * c.In[1]
	from, to := begin.batch*lines, (end.batch+1)*lines
	long := max(piece/width, 64)
	parts := (c.In[2] + long - 1) / long
	work.ParallelRange((to-from)*parts, max(piece/width/min(long, c.In[2]), 1), func(a, b int) {
		for i := a; i < b; i++ {
			at := from + i/parts
			lo := i % parts * long
			hi := min(lo+long, c.In[2])
			line := x[at*c.In[2]*c.Channels:][:c.In[2]*c.Channels]
			in := cell{batch: at / lines, z: at / c.In[1] % c.In[0], y: at % c.In[1]}
			// The cells of Out along the last axis that can read the part.
			least := max((lo+c.Padding[2]-(c.Kernel[2]-1)*c.Dilation[2]+c.Stride[2]-1)/c.Stride[2], 0)
			most := min((hi-1+c.Padding[2])/c.Stride[2]+1, c.Out[2])
			for kz := range c.Kernel[0] {
				z, inZ := c.reader(0, in.z, kz)
				for ky := range c.Kernel[1] {
					y, inY := c.reader(1, in.y, ky)
					if !inZ || !inY {
						continue
					}
					begin := ((in.batch*c.Out[0]+z)*c.Out[1]+y)*c.Out[2] - first // of the line of Out, in the piece
					for o := max(least, -begin); o < min(most, n-begin); o++ {
						row := col[(begin+o)*width+(kz*c.Kernel[1]+ky)*c.Kernel[2]*size:]
						if at := o*c.Stride[2] - c.Padding[2]; c.joined() && at >= lo && at+c.Kernel[2] <= hi {
							part := line[at*size:][:c.Kernel[2]*size]
							sumOf(part, part, row[:len(part)])
							continue
						}
						for s := c.spans(o, group, lo, hi); s.next(); {
							sumOf(line[s.x:][:s.n], line[s.x:][:s.n], row[s.col:][:s.n])
						}
					}
				}
			}
		}
	})
}

// depthwiseTaps returns the weight as (kernel…, channels), from the last tap to the first if turned is set.
func (c *GridConv[T]) depthwiseTaps(turned bool) work.Space[T] {
	w, n := work.Borrow[T](len(c.Weight)), c.Channels
	transposeEach(w.Data, c.Weight, n, c.taps())
	for i, j := 0, len(w.Data)-n; turned && i < j; i, j = i+n, j-n {
		for k := range n {
			w.Data[i+k], w.Data[j+k] = w.Data[j+k], w.Data[i+k]
		}
	}
	return w
}

// eachRun cuts the cells [from, to) of Out into runs of neighbouring cells along the last axis that read the same taps. do gets the first of them, their number,
// where the input of the first is, and a list of the taps, for a depthwise convolution.
func (s *ConvShape) eachRun(from, to int, do func(first, steps, x int, list []gridTap)) {
	var memory [64]gridTap
	list := memory[:0]
	size, stride, step := s.Kernel[2], s.Stride[2], s.Dilation[2]
	for from < to {
		o := cellAt(from, s.Out)
		end := min(o.x+to-from, s.Out[2])
		for x := o.x; x < end; {
			at := x*stride - s.Padding[2]
			low, high := 0, 0 // the taps along the last axis that have an input
			if at < 0 {
				low = (step - 1 - at) / step
			}
			if at < s.In[2] {
				high = min((s.In[2]-1-at)/step+1, size)
			}
			steps := 1
			if low == 0 && high == size {
				steps = min((s.In[2]-1-(size-1)*step+s.Padding[2])/stride+1, end) - x
			}
			list = list[:0]
			for kz := range s.Kernel[0] {
				z := o.z*s.Stride[0] - s.Padding[0] + kz*s.Dilation[0]
				for ky := range s.Kernel[1] {
					y := o.y*s.Stride[1] - s.Padding[1] + ky*s.Dilation[1]
					if z < 0 || z >= s.In[0] || y < 0 || y >= s.In[1] {
						continue
					}
					line, tap := ((o.batch*s.In[0]+z)*s.In[1]+y)*s.In[2], (kz*s.Kernel[1]+ky)*size
					for kx := low; kx < high; kx++ {
						list = append(list, gridTap{(line + kx*step) * s.Channels, (tap + kx) * s.Channels})
					}
				}
			}
			do(from, steps, at*s.Channels, list)
			x += steps
			from += steps
		}
	}
}

// depthwiseTask returns the number of cells of a task.
func (s *ConvShape) depthwiseTask() int { return max(4*piece/(s.Channels*s.taps()), 64) }

// depthwise writes to y, in each cell of Out, the sum, or silu of it, or dy·siluSlope of it if dy is not nil.
func (c *GridConv[T]) depthwise(y, x, taps, bias, dy []T, silu bool) {
	n := c.Channels
	work.ParallelRange(c.Batch*product3(c.Out), c.depthwiseTask(), func(from, to int) {
		c.eachRun(from, to, func(first, steps, at int, list []gridTap) {
			r := gridRows[T]{steps: steps, n: n, y: rowsOf[T]{y, first * n, n}, x: rowsOf[T]{x, at, c.Stride[2] * n}, taps: taps, list: list, bias: bias, silu: silu}
			if dy != nil {
				r.dy = rowsOf[T]{dy, first * n, n}
			}
			r.run()
		})
	})
}

// depthwiseSpread is spread for a depthwise convolution. With a stride of 1 it is a convolution with the kernel turned round.
func (c *GridConv[T]) depthwiseSpread(x, y, bias []T) {
	n := c.Channels
	if c.Stride == [3]int{1, 1, 1} {
		back := GridConv[T]{ConvShape: c.ConvShape}
		back.In, back.Out = c.Out, c.In
		for i := range 3 {
			back.Padding[i] = c.Dilation[i]*(c.Kernel[i]-1) - c.Padding[i]
		}
		taps := c.depthwiseTaps(true)
		defer taps.Return()
		back.depthwise(x, y, taps.Data, bias, nil, false)
		return
	}
	taps := c.depthwiseTaps(false)
	defer taps.Return()
	fillRows(x, bias)
	work.ParallelRange(len(x)/n, c.depthwiseTask(), func(from, to int) {
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
	each := max(256, (cells+63)/64)
	parts := work.Borrow[T]((cells + each - 1) / each * size)
	defer parts.Return()
	work.ParallelRange(cells, each, func(from, to int) {
		sums := parts.Data[from/each*size:][:size]
		clear(sums)
		c.eachRun(from, to, func(first, steps, at int, list []gridTap) {
			r := gridRows[T]{steps: steps, n: n, dy: rowsOf[T]{y, first * n, n}, x: rowsOf[T]{x, at, c.Stride[2] * n}, taps: sums, list: list}
			r.sum()
		})
	})
	sums := work.Borrow[T](size)
	defer sums.Return()
	sumRows(sums.Data, parts.Data)
	transposeEach(dw, sums.Data, c.taps(), n)
}
