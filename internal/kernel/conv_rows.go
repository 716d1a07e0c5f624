package kernel

// convRows is the inner loop of a convolution, over steps whose filters have the same number of taps. For step s, tap k and channel d:
//
//	sum_sd = bias_d + Σ_k taps_kd x_{s,k,d}
//
// Strides are in elements. They can be negative.
type convRows[T Float] struct {
	steps, width, n int

	y    rowsOf[T] // by step
	x    rowsOf[T] // by step
	next int       // elements from the x of a tap to the x of the next tap of the same step
	taps rowsOf[T] // by tap
	bias []T       // (n), or nil; it may be the same memory as y if there is one step
	silu bool
	dy   rowsOf[T] // by step; if it has data, the result is dy·siluSlope(sum)

	slope rowsOf[T] // by step; if it has data, it gets siluSlope(sum), and the result is silu of the sum
}

// rowsOf describes equally spaced rows of data.
type rowsOf[T Float] struct {
	data     []T
	at, step int // index of the first row, and elements from one row to the next
}

func (r rowsOf[T]) row(i, n int) []T { return r.data[r.at+i*r.step:][:n] }

func (r rowsOf[T]) from(i int) rowsOf[T] { return rowsOf[T]{r.data, r.at + i*r.step, r.step} }

// run writes to y the sums, or silu of the sums, or dy·siluSlope of the sums.
func (c *convRows[T]) run() {
	if _, ok := asm32(c.y.data); ok {
		a := c.args()
		convFilter32(&a, c.steps)
		return
	}
	for s := range c.steps {
		y := c.y.row(s, c.n)
		if c.bias == nil {
			clear(y)
		} else {
			copy(y, c.bias)
		}
		for k := range c.width {
			addProduct(y, c.taps.row(k, c.n), c.xRow(s, k))
		}
		switch {
		case c.dy.data != nil:
			siluBack(y, c.dy.row(s, c.n), y)
		case c.slope.data != nil:
			slope := c.slope.row(s, c.n)
			for i, v := range y {
				y[i], slope[i] = silu(v), siluSlope(v)
			}
		case c.silu:
			siluOf(y, y)
		}
	}
}

func (c *convRows[T]) xRow(s, k int) []T { return c.x.data[c.x.at+s*c.x.step+k*c.next:][:c.n] }

// sum adds Σ dy·x over the steps to each row of taps, and Σ dy over the steps to the bias.
func (c *convRows[T]) sum() {
	done := 0
	if _, ok := asm32(c.dy.data); ok {
		if done = c.steps - c.steps%convSteps; done > 0 {
			a := c.args()
			convSum32(&a, done)
		}
	}
	for s := done; s < c.steps; s++ {
		dy := c.dy.row(s, c.n)
		if c.bias != nil {
			sumOf(c.bias, c.bias, dy)
		}
		for k := range c.width {
			addProduct(c.taps.row(k, c.n), dy, c.xRow(s, k))
		}
	}
}

// convSteps is the number of steps that the assembly processes at a time.
const convSteps = 4

// convArgs holds the fields of convRows for the assembly. Strides are in bytes.
type convArgs struct {
	y, x, taps, bias, dy, slope                     *float32
	yStep, xStep, xNext, tapNext, dyStep, slopeStep int
	n, width, silu                                  int
	ahead                                           int // from a row of x to the row that is prefetched: the processor does not follow rows that are part of wider ones
}

// args returns the arguments of the assembly. It panics if a row does not lie within its slice.
func (c *convRows[T]) args() convArgs {
	a := convArgs{
		y: first(c.y, c.steps, c.n), x: first(c.x, c.steps, c.n), taps: first(c.taps, c.width, c.n), dy: first(c.dy, c.steps, c.n), slope: first(c.slope, c.steps, c.n),
		yStep: 4 * c.y.step, xStep: 4 * c.x.step, xNext: 4 * c.next, tapNext: 4 * c.taps.step, dyStep: 4 * c.dy.step, slopeStep: 4 * c.slope.step,
		n: c.n, width: c.width, ahead: 4 * 3 * convSteps * c.x.step,
	}
	c.xRow(0, c.width-1)
	c.xRow(c.steps-1, c.width-1)
	if c.bias != nil {
		a.bias = first(rowsOf[T]{data: c.bias}, 1, c.n)
	}
	if c.silu {
		a.silu = 1
	}
	return a
}

// first returns the address of the first of some rows of n float32, nil if r has no data. It panics if the last row does not lie within
// the data.
func first[T Float](r rowsOf[T], rows, n int) *float32 {
	if r.data == nil {
		return nil
	}
	_ = r.row(rows-1, n)
	return &any(r.row(0, n)).([]float32)[0]
}
