package kernel

import "github.com/gomamba/mamba/internal/work"

// Gather writes y (batch, cells, channels): the rows of x in an order, y_i = x_{order_i}.
func Gather[T Float](y, x []T, batch, channels int, order []int32) {
	eachCell(batch, order, func(i, cell int) { copy(y[i*channels:][:channels], x[cell*channels:]) })
}

// Scatter undoes Gather: it writes y_{order_i} = x_i.
func Scatter[T Float](y, x []T, batch, channels int, order []int32) {
	eachCell(batch, order, func(i, cell int) { copy(y[cell*channels:][:channels], x[i*channels:]) })
}

// eachCell calls f with the index of each row of (batch, cells, channels), and that of the cell that the order names there.
func eachCell(batch int, order []int32, f func(i, cell int)) {
	const piece = 256
	work.ParallelRange(batch*len(order), piece, func(from, to int) {
		for i := from; i < to; i++ {
			step := i % len(order)
			f(i, i-step+int(order[step]))
		}
	})
}
