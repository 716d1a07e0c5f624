package kernel

// Conv is a causal depthwise convolution over time, a filter of its own for each channel d:
//
//	y_t = f(Σ_k w_dk x_{t-(width-1)+k} + bias_d)   f is silu if asked, else nothing
//
// What lies before the first step is read from the context, or is nothing. No step reads what lies before its own
// sequence's start. Absent operands are nil. The caller has checked the sizes.
type Conv[T Float] struct {
	Batch, Length, Channels, Width int

	X       []T    // (batch, length, channels)
	XStride int    // between the steps of X, which may lie in a wider matrix; 0 where they lie one behind the other
	Weight  []T    // (channels, width)
	Bias    []T    // (channels)
	Context []T    // (batch, width-1, channels): the steps before the first, the oldest first
	Start   []bool // (batch, length): a new sequence starts here
	SiLU    bool
}

// ConvGrad takes the gradients of a Conv's operands, in their shapes, that of X with its stride. Those of absent operands are nil.
type ConvGrad[T Float] struct {
	X, Weight, Bias, Context []T
}

// convPart is what one task computes: steps [from, to) of one batch, size channels from first on.
type convPart struct {
	batch, tile, from, to, first, size int
}

// tileSteps is the number of steps of a task. A task of the backward pass recomputes width-1 steps of the next one and
// holds a part of the weight's gradient, width rows of float64; so the steps grow with the width.
func (c *Conv[T]) tileSteps() int { return max(128, 8*c.Width) }

// tiles is the number of parts that the length is cut into.
func (c *Conv[T]) tiles() int { return (c.Length + c.tileSteps() - 1) / c.tileSteps() }

// parts runs a task for each part of the problem.
func (c *Conv[T]) parts(task func(p convPart)) {
	// 256 channels make rows of at least a kilobyte; short inputs take more, so that a task is worth a hand-over.
	size := max(256, piece/min(c.Length, c.tileSteps()))
	across := (c.Channels + size - 1) / size
	Parallel(c.Batch*c.tiles()*across, func(i int) {
		p := convPart{batch: i / across / c.tiles(), tile: i / across % c.tiles(), first: i % across * size}
		p.from = p.tile * c.tileSteps()
		p.to = min(p.from+c.tileSteps(), c.Length)
		p.size = min(size, c.Channels-p.first)
		task(p)
	})
}

// row returns a part's channels of row t of x (batch, length, channels).
func (c *Conv[T]) row(x []T, p convPart, t int) []T {
	return x[(p.batch*c.Length+t)*c.Channels+p.first:][:p.size]
}

// rowX is row for X and its gradient.
func (c *Conv[T]) rowX(x []T, p convPart, t int) []T {
	stride := c.Channels
	if c.XStride > 0 {
		stride = c.XStride
	}
	return x[(p.batch*c.Length+t)*stride+p.first:][:p.size]
}

// contextRow is row for a context (batch, width-1, channels).
func (c *Conv[T]) contextRow(context []T, p convPart, row int) []T {
	return context[(p.batch*(c.Width-1)+row)*c.Channels+p.first:][:p.size]
}

// input returns the input of step t, at most width-1 before the first; nil where there is none.
func (c *Conv[T]) input(p convPart, t int) []T {
	switch {
	case t >= 0:
		return c.rowX(c.X, p, t)
	case c.Context != nil:
		return c.contextRow(c.Context, p, t+c.Width-1)
	}
	return nil
}

func (c *Conv[T]) starts(batch, t int) bool {
	return c.Start != nil && t >= 0 && c.Start[batch*c.Length+t]
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

// taps returns the weight as (width, channels), so that the loops run over channels.
func (c *Conv[T]) taps() []T {
	taps := make([]T, len(c.Weight))
	for d := range c.Channels {
		for k, w := range c.Weight[d*c.Width : (d+1)*c.Width] {
			taps[k*c.Channels+d] = w
		}
	}
	return taps
}

// tap returns a part's channels of the tap that reads the step that many steps back.
func (c *Conv[T]) tap(taps []T, p convPart, back int) []T {
	return taps[(c.Width-1-back)*c.Channels+p.first:][:p.size]
}

// filter writes y_t before silu. Steps that are out of reach are left out, not multiplied by zero: they may be NaN.
func (c *Conv[T]) filter(y, taps []T, p convPart, t int) {
	if c.Bias != nil {
		copy(y, c.Bias[p.first:])
	} else {
		clear(y)
	}
	for back := range c.Width {
		x := c.input(p, t-back)
		if x == nil {
			return
		}
		addProduct(y, c.tap(taps, p, back), x)
		if c.starts(p.batch, t-back) {
			return
		}
	}
}

// Forward writes y (batch, length, channels) and, unless it is nil, the context (batch, width-1, channels) of what comes
// next: the last width-1 steps of the context and x, zero where a sequence starts after them.
func (c *Conv[T]) Forward(y, context []T) {
	taps := c.taps()
	c.parts(func(p convPart) {
		for t := p.from; t < p.to; t++ {
			row := c.row(y, p, t)
			c.filter(row, taps, p, t)
			if c.SiLU {
				for i, v := range row {
					row[i] = silu(v)
				}
			}
		}
	})
	if context == nil {
		return
	}
	clear(context)
	for b := range c.Batch {
		p := convPart{batch: b, size: c.Channels}
		for i := range c.Width - 1 {
			if t := c.Length - (c.Width - 1) + i; c.reachesEnd(b, t) {
				copy(c.contextRow(context, p, i), c.input(p, t))
			}
		}
	}
}

// Backward writes every element of grad's slices, from the gradient dy of the output and, unless it is nil, dcontext of
// the context of what comes next. The output before silu is computed again.
func (c *Conv[T]) Backward(dy, dcontext []T, grad *ConvGrad[T]) {
	taps := c.taps()
	sums := c.newConvSums()
	c.parts(func(p convPart) {
		d := c.beforeSiLU(dy, taps, p)
		c.sumWeight(sums, d, p)
		first := p.from
		if p.from == 0 && grad.Context != nil {
			first = -(c.Width - 1)
		}
		for t := first; t < p.to; t++ {
			var dx []T
			if t >= 0 {
				dx = c.rowX(grad.X, p, t)
			} else {
				dx = c.contextRow(grad.Context, p, t+c.Width-1)
			}
			c.filterBack(dx, d, taps, p, t)
			if i := t + c.Width - 1 - c.Length; dcontext != nil && i >= 0 && c.reachesEnd(p.batch, t) {
				Add(dx, c.contextRow(dcontext, p, i))
			}
		}
	})
	c.sumTiles(sums, grad)
}

// convRows are the gradients of the outputs before silu, of a part's channels.
type convRows[T Float] struct {
	data                []T
	from, stride, first int
}

func (r convRows[T]) row(t, size int) []T { return r.data[(t-r.from)*r.stride+r.first:][:size] }

// beforeSiLU returns the gradients of the outputs before silu, for a part's steps and for those behind it that read it.
func (c *Conv[T]) beforeSiLU(dy, taps []T, p convPart) convRows[T] {
	if !c.SiLU {
		return convRows[T]{data: dy[p.batch*c.Length*c.Channels:], stride: c.Channels, first: p.first}
	}
	to := min(p.to+c.Width-1, c.Length)
	d := convRows[T]{data: make([]T, (to-p.from)*p.size), from: p.from, stride: p.size}
	for t := p.from; t < to; t++ {
		row := d.row(t, p.size)
		c.filter(row, taps, p, t)
		for i, g := range c.row(dy, p, t) {
			row[i] = g * siluSlope(row[i])
		}
	}
	return d
}

// filterBack writes the gradient of the input of step t: the sum over the steps that read it.
func (c *Conv[T]) filterBack(dx []T, d convRows[T], taps []T, p convPart, t int) {
	clear(dx)
	for ahead := range min(c.Width, c.Length-t) {
		if ahead > 0 && c.starts(p.batch, t+ahead) {
			return
		}
		if t+ahead >= 0 {
			addProduct(dx, c.tap(taps, p, ahead), d.row(t+ahead, p.size))
		}
	}
}

// convSums holds each tile's part of the gradients of weight and bias, in float64 so that the error does not grow with
// the length: (batch, tile, width, channels) and (batch, tile, channels).
type convSums struct{ weight, bias []float64 }

func (c *Conv[T]) newConvSums() *convSums {
	s := &convSums{weight: make([]float64, c.Batch*c.tiles()*c.Width*c.Channels)}
	if c.Bias != nil {
		s.bias = make([]float64, c.Batch*c.tiles()*c.Channels)
	}
	return s
}

func (c *Conv[T]) sumWeight(s *convSums, d convRows[T], p convPart) {
	tile := p.batch*c.tiles() + p.tile
	for t := p.from; t < p.to; t++ {
		g := d.row(t, p.size)
		if s.bias != nil {
			sum := s.bias[tile*c.Channels+p.first:][:p.size]
			for i, v := range g {
				sum[i] += float64(v)
			}
		}
		for back := range c.Width {
			x := c.input(p, t-back)
			if x == nil {
				break
			}
			sum := s.weight[(tile*c.Width+c.Width-1-back)*c.Channels+p.first:][:p.size]
			for i, v := range g {
				sum[i] += float64(v) * float64(x[i])
			}
			if c.starts(p.batch, t-back) {
				break
			}
		}
	}
}

// sumTiles adds the tiles' parts, in their order.
func (c *Conv[T]) sumTiles(s *convSums, grad *ConvGrad[T]) {
	tiles := c.Batch * c.tiles()
	taps := make([]T, len(c.Weight)) // (width, channels)
	sumBatches(tiles, s.weight, taps)
	for d := range c.Channels {
		for k := range c.Width {
			grad.Weight[d*c.Width+k] = taps[k*c.Channels+d]
		}
	}
	if grad.Bias != nil {
		sumBatches(tiles, s.bias, grad.Bias)
	}
}
