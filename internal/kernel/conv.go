package kernel

import "github.com/gomamba/mamba/internal/work"

// Conv is a causal depthwise convolution over time. Each channel d has its own filter:
//
//	y_t = f(Σ_k w_dk x_{t-(width-1)+k} + bias_d)   f is silu if SiLU is set, else the identity
//
// The steps before the first are read from the context. Without a context, and before the start of the sequence that t belongs to, there
// are no terms. Absent operands are nil. The caller has checked the sizes.
type Conv[T Float] struct {
	Batch, Length, Channels, Width int

	X       []T    // (batch, length, channels)
	XStride int    // elements between two steps of X, which can be part of a wider matrix; 0 means channels
	FromEnd bool   // step t is row length-1-t of X and of its gradient; all else stays in the order of the steps
	Weight  []T    // (channels, width)
	Bias    []T    // (channels)
	Context []T    // (batch, width-1, channels): the steps before the first, from the oldest to the newest
	Start   []bool // (batch, length): a new sequence starts here
	SiLU    bool
	Taps    []T // optional: Weight as layTaps writes it. A caller with many small convolutions by one weight makes it once
	Slope   []T // optional: (batch, length, channels): Forward writes the derivative of silu at the sums, and Backward then need not compute the sums again
}

// ConvGrad receives the gradients of a Conv's operands. Each has the shape and the stride of its operand. Those of absent operands are nil.
type ConvGrad[T Float] struct {
	X, Weight, Bias, Context []T
}

// convPart is the part of the problem that one task computes: steps [from, to) of one row of the batch, channels [first, first+size).
type convPart struct {
	batch, tile, from, to, first, size int
}

// tileSteps returns the number of steps of a task. It grows with the width: a task of the backward pass recomputes width-1 steps of the
// next task, and holds width+1 rows of sums for the gradients of weight and bias.
func (c *Conv[T]) tileSteps() int { return max(64, 8*c.Width) }

// tiles returns the number of parts that the length is cut into.
func (c *Conv[T]) tiles() int { return (c.Length + c.tileSteps() - 1) / c.tileSteps() }

// cut returns the number of parts of the problem, and the number of channels of each but the last.
func (c *Conv[T]) cut() (parts, size int) {
	// Rows of at least 1024 channels are read at the speed of memory. Where there are few steps, a task takes longer rows, so that its work
	// is worth the cost of starting it.
	size = max(1024, piece/min(c.Length, c.tileSteps()))
	across := pieces(c.Channels, size)
	size = (pieces(c.Channels, across) + 15) / 16 * 16 // tasks of equal size
	return c.Batch * c.tiles() * pieces(c.Channels, size), size
}

// part returns part i of parts of that size.
func (c *Conv[T]) part(i, size int) convPart {
	across := pieces(c.Channels, size)
	p := convPart{batch: i / across / c.tiles(), tile: i / across % c.tiles(), first: i % across * size}
	p.from = p.tile * c.tileSteps()
	p.to = min(p.from+c.tileSteps(), c.Length)
	p.size = min(size, c.Channels-p.first)
	return p
}

// rows returns the part's channels of x (batch, length, channels), from step t on.
func (c *Conv[T]) rows(x []T, p convPart, t int) rowsOf[T] {
	return rowsOf[T]{x, (p.batch*c.Length+t)*c.Channels + p.first, c.Channels}
}

// rowsX is rows for X and its gradient.
func (c *Conv[T]) rowsX(x []T, p convPart, t int) rowsOf[T] {
	stride := c.Channels
	if c.XStride > 0 {
		stride = c.XStride
	}
	if c.FromEnd {
		return rowsOf[T]{x, ((p.batch+1)*c.Length-1-t)*stride + p.first, -stride}
	}
	return rowsOf[T]{x, (p.batch*c.Length+t)*stride + p.first, stride}
}

// rowsContext is rows for a context (batch, width-1, channels). t is negative: step -1 is the last of the context.
func (c *Conv[T]) rowsContext(context []T, p convPart, t int) rowsOf[T] {
	return rowsOf[T]{context, (p.batch*(c.Width-1)+t+c.Width-1)*c.Channels + p.first, c.Channels}
}

// input returns the input of step t, which is at least -(width-1). It returns nil for t < 0 without a context.
func (c *Conv[T]) input(p convPart, t int) []T {
	switch {
	case t >= 0:
		return c.rowsX(c.X, p, t).row(0, p.size)
	case c.Context != nil:
		return c.rowsContext(c.Context, p, t).row(0, p.size)
	}
	return nil
}

func (c *Conv[T]) starts(batch, t int) bool {
	return c.Start != nil && t >= 0 && c.Start[batch*c.Length+t]
}

// reach returns the number of taps that have an input at step t: from t back to the start of its sequence, or to the first step if there
// is no context. The first x taps read X, the others the context.
//
// The terms of other taps are left out, not multiplied by zero, since zero times NaN is NaN.
func (c *Conv[T]) reach(batch, t int) (taps, x int) {
	taps = c.Width
	if c.Context == nil {
		taps = min(taps, t+1)
	}
	if c.Start != nil {
		for back := range taps {
			if c.starts(batch, t-back) {
				taps = back + 1
				break
			}
		}
	}
	return taps, min(taps, t+1)
}

// reachAhead returns which outputs read the input at step t: those of the steps t+from to t+to-1. t is negative in the context.
func (c *Conv[T]) reachAhead(batch, t int) (from, to int) {
	to = min(c.Width, c.Length-t)
	for ahead := 1; ahead < to && c.Start != nil; ahead++ {
		if c.starts(batch, t+ahead) {
			to = ahead
		}
	}
	return max(0, -t), to
}

// reachesEnd reports whether step t belongs to the sequence that the last step belongs to.
func (c *Conv[T]) reachesEnd(batch, t int) bool {
	for t++; t < c.Length; t++ {
		if c.starts(batch, t) {
			return false
		}
	}
	return true
}

// taps returns Taps, or memory with what layTaps writes.
func (c *Conv[T]) taps() work.Space[T] {
	if c.Taps != nil {
		return work.Space[T]{Data: c.Taps}
	}
	w := work.Borrow[T](len(c.Weight))
	c.layTaps(w.Data)
	return w
}

// layTaps writes the weight transposed to (width, channels), so that the loops run over channels.
func (c *Conv[T]) layTaps(taps []T) {
	if c.Width == 4 { // the usual width, without an inner loop
		n := c.Channels
		t0, t1, t2, t3 := taps[:n], taps[n:2*n], taps[2*n:3*n], taps[3*n:4*n]
		for d := range t0 {
			row := c.Weight[4*d : 4*d+4]
			t0[d], t1[d], t2[d], t3[d] = row[0], row[1], row[2], row[3]
		}
		return
	}
	for d := range c.Channels {
		for k, v := range c.Weight[d*c.Width : (d+1)*c.Width] {
			taps[k*c.Channels+d] = v
		}
	}
}

// tapsBack returns the part's channels of the taps, or of the sums of their gradients. The first row is the tap that reads back steps
// before the current step, the next row the tap that reads back+1 steps before, and so on.
func (c *Conv[T]) tapsBack(taps []T, p convPart, back int) rowsOf[T] {
	return rowsOf[T]{taps, (c.Width-1-back)*c.Channels + p.first, -c.Channels}
}

// eachRun cuts the steps [t, to) into runs of steps with the same reach, and calls do for each run with its first step, its number of
// steps, and its reach.
func (c *Conv[T]) eachRun(batch, t, to int, do func(t, steps, taps, x int)) {
	for t < to {
		taps, x := c.reach(batch, t)
		steps := 1
		for ; t+steps < to && x == taps; steps++ {
			if nextTaps, nextX := c.reach(batch, t+steps); nextTaps != taps || nextX != x {
				break
			}
		}
		do(t, steps, taps, x)
		t += steps
	}
}

// filter writes to y, for the steps [t, to), f of the sums, or dy·f' of the sums if dy has data. If slope has data, it gets f' of the sums. Step t is the
// first row of y, of dy and of slope.
func (c *Conv[T]) filter(y, dy, slope rowsOf[T], taps []T, p convPart, t, to int) {
	var bias []T
	if c.Bias != nil {
		bias = c.Bias[p.first:][:p.size]
	}
	begin := t
	c.eachRun(p.batch, t, to, func(t, steps, reach, inX int) {
		x := c.rowsX(c.X, p, t)
		r := convRows[T]{steps: steps, width: inX, n: p.size, y: y.from(t - begin), x: x, next: -x.step,
			taps: c.tapsBack(taps, p, 0), bias: bias}
		if reach > inX {
			// This is a run of one step. The other terms of its sum come from the context.
			r.run()
			before := c.rowsContext(c.Context, p, -1)
			r = convRows[T]{steps: 1, width: reach - inX, n: p.size, y: r.y, x: before, next: -before.step,
				taps: c.tapsBack(taps, p, inX), bias: r.y.row(0, p.size)}
		}
		r.silu = c.SiLU
		if dy.data != nil {
			r.dy = dy.from(t - begin)
		}
		if slope.data != nil {
			r.slope = slope.from(t - begin)
		}
		r.run()
	})
}

// Forward writes y (batch, length, channels) and, unless it is nil, the context of the steps that follow (batch, width-1, channels): the
// last width-1 steps of Context and X together, zero where a sequence starts after the step.
func (c *Conv[T]) Forward(y, context []T) {
	taps := c.taps()
	defer taps.Return()
	if parts, size := c.cut(); work.Alone(parts) {
		for i := range parts {
			c.forward(y, taps.Data, c.part(i, size))
		}
	} else {
		work.Parallel(parts, func(i int) { c.forward(y, taps.Data, c.part(i, size)) })
	}
	if context == nil {
		return
	}
	clear(context)
	for b := range c.Batch {
		p := convPart{batch: b, size: c.Channels}
		for i := range c.Width - 1 {
			if t := c.Length - (c.Width - 1) + i; c.reachesEnd(b, t) {
				copy(c.rowsContext(context, p, i-(c.Width-1)).row(0, p.size), c.input(p, t))
			}
		}
	}
}

func (c *Conv[T]) forward(y, taps []T, p convPart) {
	c.filter(c.rows(y, p, p.from), rowsOf[T]{}, c.rows(c.Slope, p, p.from), taps, p, p.from, p.to)
}

// Backward writes every element of grad's slices. dy is the gradient of y. dcontext is the gradient of Forward's context, nil for zeros.
// Without Slope, Backward recomputes the output before silu.
func (c *Conv[T]) Backward(dy, dcontext []T, grad *ConvGrad[T]) {
	taps := c.taps()
	defer taps.Return()
	sums := work.Borrow[T](c.Batch * c.tiles() * c.sumsSize())
	defer sums.Return()
	if parts, size := c.cut(); work.Alone(parts) {
		for i := range parts {
			c.backward(dy, dcontext, grad, taps.Data, sums.Data, c.part(i, size))
		}
	} else {
		work.Parallel(parts, func(i int) { c.backward(dy, dcontext, grad, taps.Data, sums.Data, c.part(i, size)) })
	}
	c.sumTiles(sums.Data, grad)
}

func (c *Conv[T]) backward(dy, dcontext []T, grad *ConvGrad[T], taps, sums []T, p convPart) {
	d := c.rows(dy, p, p.from)
	if c.SiLU { // d is the gradient before silu, for the part's steps and the later steps that read them
		to := min(p.to+c.Width-1, c.Length)
		w := work.Borrow[T]((to - p.from) * p.size)
		defer w.Return()
		dy, slope := d, c.rows(c.Slope, p, p.from)
		d = rowsOf[T]{w.Data, 0, p.size}
		if c.Slope == nil {
			c.filter(d, dy, rowsOf[T]{}, taps, p, p.from, to)
		} else {
			clear(w.Data)
			for i := range to - p.from {
				addProduct(d.row(i, p.size), dy.row(i, p.size), slope.row(i, p.size))
			}
		}
	}
	c.sumWeight(sums, d, p)
	c.filterBack(grad, d, taps, p)
	if dcontext == nil {
		return
	}
	for i := range c.Width - 1 {
		t := c.Length - (c.Width - 1) + i
		if (t >= p.from || t < 0 && p.from == 0) && t < p.to && c.reachesEnd(p.batch, t) {
			if dx := c.inputGrad(grad, p, t); dx.data != nil {
				row := dx.row(0, p.size)
				sumOf(row, row, c.rowsContext(dcontext, p, i-(c.Width-1)).row(0, p.size))
			}
		}
	}
}

// inputGrad returns the rows of the gradient of the input from step t on. They have no data if the input has no gradient.
func (c *Conv[T]) inputGrad(grad *ConvGrad[T], p convPart, t int) rowsOf[T] {
	switch {
	case t >= 0:
		return c.rowsX(grad.X, p, t)
	case grad.Context != nil:
		return c.rowsContext(grad.Context, p, t)
	}
	return rowsOf[T]{}
}

// filterBack writes the gradients of the part's inputs, and the first part also that of the context. Each is a sum over the steps that
// read the input. d has the rows of the part's steps and of the steps after it that read them.
func (c *Conv[T]) filterBack(grad *ConvGrad[T], d rowsOf[T], taps []T, p convPart) {
	t := p.from
	if p.from == 0 && grad.Context != nil {
		t = -(c.Width - 1)
	}
	for t < p.to {
		from, to := c.reachAhead(p.batch, t)
		steps := 1
		for ; t >= 0 && t+steps < p.to; steps++ {
			if _, next := c.reachAhead(p.batch, t+steps); next != to {
				break
			}
		}
		dx := c.inputGrad(grad, p, t)
		if to <= from {
			clear(dx.row(0, p.size))
		} else {
			r := convRows[T]{steps: steps, width: to - from, n: p.size, y: dx, x: d.from(t + from - p.from), next: d.step,
				taps: c.tapsBack(taps, p, from)}
			r.run()
		}
		t += steps
	}
}

// sumsSize returns the size of a tile's part of the gradients of weight and bias: (width+1, channels), the bias in the last row.
//
// The sums within a tile are in T, the sums over tiles in float64, so that the error does not grow with the length.
func (c *Conv[T]) sumsSize() int { return (c.Width + 1) * c.Channels }

// sumWeight writes a part's sums.
func (c *Conv[T]) sumWeight(sums []T, d rowsOf[T], p convPart) {
	tile := sums[(p.batch*c.tiles()+p.tile)*c.sumsSize():][:c.sumsSize()]
	for k := range c.Width + 1 {
		clear(tile[k*c.Channels+p.first:][:p.size])
	}
	c.eachRun(p.batch, p.from, p.to, func(t, steps, reach, inX int) {
		x := c.rowsX(c.X, p, t)
		r := convRows[T]{steps: steps, width: inX, n: p.size, x: x, next: -x.step, taps: c.tapsBack(tile, p, 0),
			bias: tile[c.Width*c.Channels+p.first:][:p.size], dy: d.from(t - p.from)}
		r.sum()
		if reach > inX {
			before := c.rowsContext(c.Context, p, -1)
			r = convRows[T]{steps: 1, width: reach - inX, n: p.size, x: before, next: -before.step,
				taps: c.tapsBack(tile, p, inX), dy: r.dy}
			r.sum()
		}
	})
}

// sumTiles adds the tiles' parts in order.
func (c *Conv[T]) sumTiles(sums []T, grad *ConvGrad[T]) {
	if len(sums) == 0 {
		clear(grad.Weight)
		clear(grad.Bias)
		return
	}
	if n := (c.Width + 1) * pieces(c.Channels, sumChannels); work.Alone(n) {
		for i := range n {
			c.sumTile(sums, grad, i)
		}
	} else {
		work.Parallel(n, func(i int) { c.sumTile(sums, grad, i) })
	}
}

// sumChannels is the number of channels of a task of sumTiles.
const sumChannels = 256

func (c *Conv[T]) sumTile(sums []T, grad *ConvGrad[T], i int) {
	across := pieces(c.Channels, sumChannels)
	k, first := i/across, i%across*sumChannels
	size := min(sumChannels, c.Channels-first)
	rows, tiles := sums[k*c.Channels+first:], c.Batch*c.tiles()
	switch {
	case k < c.Width:
		sum := rows[:size] // of the first tile, which nothing else reads
		sumColumns(sum, rows, tiles, c.sumsSize())
		for d, v := range sum {
			grad.Weight[(first+d)*c.Width+k] = v
		}
	case grad.Bias != nil:
		sumColumns(grad.Bias[first:first+size], rows, tiles, c.sumsSize())
	}
}

// ConvStep is one step of a Conv with SiLU, for some channels: y = silu(bias + Σ_k taps_k·inputs_k), where tap 0 reads the step itself, and tap k
// the step k before. bias may be nil. The result is that of a Conv bit for bit.
func ConvStep(y, bias []float32, taps, inputs [][]float32) {
	if bias == nil {
		clear(y)
	} else {
		copy(y, bias)
	}
	for k, tap := range taps {
		addProduct(y, tap, inputs[k])
	}
	siluOf(y, y)
}

// AddTo adds x to y.
func AddTo(y, x []float32) { sumOf(y, y, x) }
