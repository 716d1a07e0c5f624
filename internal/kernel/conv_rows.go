package kernel

// convRows is the inner loop of a convolution, over some steps whose filters have the same number of taps. With s the step,
// k the tap and d the channel,
//
//	sum_sd = bias_d + Σ_k taps_kd x_{s,k,d}
//
// where the rows of taps and of x may go forward or backward in memory. All strides are in numbers.
type convRows[T Float] struct {
	steps, width, n int

	y    rowsOf[T] // by step
	x    rowsOf[T] // by step
	next int       // what lies between the x of a step and one tap, and those of the same step and the next tap
	taps rowsOf[T] // by tap
	bias []T       // (n), or nil; it may be y's only row
	silu bool
	dy   rowsOf[T] // by step; if it is there, the result is dy·siluSlope(sum)
}

// rowsOf are rows in memory that other numbers may lie between.
type rowsOf[T Float] struct {
	data     []T
	at, step int // the first row's beginning, and from a row to the next
}

func (r rowsOf[T]) row(i, n int) []T { return r.data[r.at+i*r.step:][:n] }

func (r rowsOf[T]) from(i int) rowsOf[T] { return rowsOf[T]{r.data, r.at + i*r.step, r.step} }

// run writes y: the sums, or silu of them, or dy·siluSlope of them.
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
		case c.silu:
			siluOf(y, y)
		}
	}
}

func (c *convRows[T]) xRow(s, k int) []T { return c.x.data[c.x.at+s*c.x.step+k*c.next:][:c.n] }

// sum adds, to the row of taps k, the sum of dy·x over the steps, and to the bias that of dy.
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

// convSteps is the number of steps that the assembly takes at a time.
const convSteps = 4

// convArgs are convRows for the assembly, which knows the order of the fields. Strides are in bytes.
type convArgs struct {
	y, x, taps, bias, dy                 *float32
	yStep, xStep, xNext, tapNext, dyStep int
	n, width, silu                       int
}

// args returns the addresses, once it has seen that all rows lie within their slices.
func (c *convRows[T]) args() convArgs {
	a := convArgs{
		y: first(c.y, c.steps, c.n), x: first(c.x, c.steps, c.n), taps: first(c.taps, c.width, c.n), dy: first(c.dy, c.steps, c.n),
		yStep: 4 * c.y.step, xStep: 4 * c.x.step, xNext: 4 * c.next, tapNext: 4 * c.taps.step, dyStep: 4 * c.dy.step,
		n: c.n, width: c.width,
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

// first returns the address of the first number of n rows of float32, nil if there are none.
func first[T Float](r rowsOf[T], rows, n int) *float32 {
	if r.data == nil {
		return nil
	}
	_ = r.row(rows-1, n)
	return &any(r.row(0, n)).([]float32)[0]
}
