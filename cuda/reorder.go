package cuda

// Gather queues y (batch, cells, channels), the rows of x in an order: y_i = x_{order_i}. GridOrders makes order of a
// single order.
func Gather(s *Stream, batch, cells, channels int, order Array[int32], x, y Array[float32]) error {
	return reorderCells(s, "gather", batch, cells, channels, order, x, y)
}

// Scatter queues y (batch, cells, channels) with y_{order_i} = x_i. It undoes Gather.
func Scatter(s *Stream, batch, cells, channels int, order Array[int32], x, y Array[float32]) error {
	return reorderCells(s, "scatter", batch, cells, channels, order, x, y)
}

func reorderCells(s *Stream, name string, batch, cells, channels int, order Array[int32], x, y Array[float32]) error {
	size := count(batch, cells, channels)
	if err := firstError(
		atLeast(0, name, "batch", batch, "cells", cells, "channels", channels),
		expect(name, "order", order.n, cells, "x", x.n, size, "y", y.n, size), s.usable(),
	); err != nil {
		return err
	}
	return s.run("reorder", name, blocksOf(size, 256), order.address, x.address, y.address, size, cells, channels)
}
