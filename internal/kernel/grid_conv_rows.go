package kernel

// gridRows is the inner loop of a depthwise convolution over a grid, over steps that read the same taps. For step s, tap k of the list and channel d:
//
//	sum_sd = bias_d + Σ_k taps_{list_k.tap, d} x_{s, list_k.x, d}
//
// Strides and places are in elements.
type gridRows[T Float] struct {
	steps, n int

	y    rowsOf[T] // by step
	x    rowsOf[T] // by step; the places of the list are relative to its rows, which may lie outside of the data
	taps []T
	list []gridTap
	bias []T // (n), or nil
	silu bool
	dy   rowsOf[T] // by step; if it has data, the result is dy·siluSlope(sum)
}

// gridTap is where a tap and its input are: the distance of the input from the row of the step, and the index of the tap. In the arguments of the assembly they are
// in bytes.
type gridTap struct{ x, tap int }

func (c *gridRows[T]) input(s int, t gridTap) []T { return c.x.data[c.x.at+s*c.x.step+t.x:][:c.n] }

// run writes to y the sums, or silu of the sums, or dy·siluSlope of the sums.
func (c *gridRows[T]) run() {
	if _, ok := asm32(c.y.data); ok && len(c.list) > 0 {
		var list [64]gridTap
		a := c.args(list[:0])
		gridFilter32(&a, c.steps)
		return
	}
	for s := range c.steps {
		y := c.y.row(s, c.n)
		if c.bias == nil {
			clear(y)
		} else {
			copy(y, c.bias)
		}
		for _, t := range c.list {
			addProduct(y, c.taps[t.tap:][:c.n], c.input(s, t))
		}
		switch {
		case c.dy.data != nil:
			siluBack(y, c.dy.row(s, c.n), y)
		case c.silu:
			siluOf(y, y)
		}
	}
}

// sum adds Σ dy·x over the steps to each tap of the list.
func (c *gridRows[T]) sum() {
	done := 0
	if _, ok := asm32(c.dy.data); ok && len(c.list) > 0 {
		if done = c.steps - c.steps%convSteps; done > 0 {
			var list [64]gridTap
			a := c.args(list[:0])
			gridSum32(&a, done)
		}
	}
	for s := done; s < c.steps; s++ {
		for _, t := range c.list {
			addProduct(c.taps[t.tap:][:c.n], c.dy.row(s, c.n), c.input(s, t))
		}
	}
}

// gridArgs holds the fields of gridRows for the assembly. Strides are in bytes.
type gridArgs struct {
	y, x, taps, bias, dy *float32
	list                 *gridTap // in bytes; x is the first row of its places
	yStep, xStep, dyStep int
	n, width, silu       int
}

// args returns the arguments of the assembly. It panics if a row does not lie within its slice. The list is written to memory.
func (c *gridRows[T]) args(memory []gridTap) gridArgs {
	a := gridArgs{
		y: first(c.y, c.steps, c.n), dy: first(c.dy, c.steps, c.n), yStep: 4 * c.y.step, xStep: 4 * c.x.step, dyStep: 4 * c.dy.step, n: c.n, width: len(c.list),
	}
	least := c.list[0].x
	for _, t := range c.list {
		least = min(least, t.x)
		c.input(0, t)
		c.input(c.steps-1, t)
		_ = c.taps[t.tap:][:c.n]
	}
	for _, t := range c.list {
		memory = append(memory, gridTap{4 * (t.x - least), 4 * t.tap})
	}
	a.list = &memory[0]
	a.x, a.taps = first(rowsOf[T]{data: c.x.data, at: c.x.at + least}, 1, c.n), first(rowsOf[T]{data: c.taps}, 1, c.n)
	if c.bias != nil {
		a.bias = first(rowsOf[T]{data: c.bias}, 1, c.n)
	}
	if c.silu {
		a.silu = 1
	}
	return a
}
