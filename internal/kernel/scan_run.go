package kernel

// scanRun is the scan of one block of channels in one batch: the operands that do not change over time, transposed to
// (state, lanes), and the running state. It is made once for each processor and begins anew with each block.
type scanRun[T Float] struct {
	*Scan[T]
	batch  int
	block  block
	strips []strip[T] // as many as the widest block has

	dt, du, u []T // (tile, lanes): Δ, Δ·u and u of the current tile
	y         []T // (tile, lanes): Σ C h
	b, c      []T // (lanes): a value of B or C, once for each lane
	bGroup    int
	cGroup    int
}

// strip is a run of at most 16 channels, one for each lane.
type strip[T Float] struct {
	first, width int
	a, b, c      []T // (state, lanes); b and c only where they are constant
	h            []T // (state, lanes)
}

func (s *Scan[T]) newRun() *scanRun[T] {
	r := &scanRun[T]{
		Scan: s,
		dt:   make([]T, tileSteps*lanes), du: make([]T, tileSteps*lanes), u: make([]T, tileSteps*lanes),
		y: make([]T, tileSteps*lanes),
		b: make([]T, lanes), c: make([]T, lanes),
	}
	size := s.State * lanes
	for range (min(s.Channels, maxBlock) + lanes - 1) / lanes {
		st := strip[T]{a: make([]T, size), h: make([]T, size)}
		if s.B.Groups == 0 {
			st.b = make([]T, size)
		}
		if s.C.Groups == 0 {
			st.c = make([]T, size)
		}
		r.strips = append(r.strips, st)
	}
	return r
}

// begin goes to the beginning of a block.
func (r *scanRun[T]) begin(batch int, blk block) {
	r.batch, r.block = batch, blk
	r.bGroup, r.cGroup = r.B.groupOf(blk.first, r.Channels), r.C.groupOf(blk.first, r.Channels)
	for i := range blk.strips() {
		st := &r.strips[i]
		st.first, st.width = blk.first+i*lanes, min(lanes, blk.width-i*lanes)
		st.load(st.a, r.A, r.State)
		if r.B.Groups == 0 {
			st.load(st.b, r.B.Data, r.State)
		}
		if r.C.Groups == 0 {
			st.load(st.c, r.C.Data, r.State)
		}
	}
}

// load transposes the strip's rows of from (channels, state) to (state, lanes).
func (st *strip[T]) load(to, from []T, state int) {
	for l := range st.width {
		for n, v := range from[(st.first+l)*state : (st.first+l+1)*state] {
			to[n*lanes+l] = v
		}
	}
}

// store transposes from (state, lanes) to the strip's rows of to (channels, state).
func (st *strip[T]) store(to, from []T, state int) {
	for l := range st.width {
		row := to[(st.first+l)*state : (st.first+l+1)*state]
		for n := range row {
			row[n] = from[n*lanes+l]
		}
	}
}

// step returns the time of the i-th step scanned.
func (s *Scan[T]) step(i int) int {
	if s.Reverse {
		return s.Length - 1 - i
	}
	return i
}

// fresh reports whether no state enters the i-th step scanned: the state before it is zero, whatever it was.
//
// A start at time t separates t-1 from t. Forward, nothing enters t; in reverse, nothing enters t-1.
func (r *scanRun[T]) fresh(i int) bool {
	if i == 0 && r.Initial == nil {
		return true
	}
	if r.Start == nil {
		return false
	}
	t := r.step(i)
	if r.Reverse {
		t++
	}
	return t < r.Length && r.Start[r.batch*r.Length+t]
}

// ofBatch returns the batch's part of m (batch, channels, state).
func (r *scanRun[T]) ofBatch(m []T) []T { return m[r.batch*r.Channels*r.State:] }

// enter sets a strip's state to the initial one. Without one the first step is fresh, and sets the state itself.
func (r *scanRun[T]) enter(strip int) {
	if r.Initial != nil {
		r.strips[strip].load(r.strips[strip].h, r.ofBatch(r.Initial), r.State)
	}
}

// leave copies the state of every strip to final (batch, channels, state).
func (r *scanRun[T]) leave(final []T) {
	for i := range r.block.strips() {
		r.strips[i].store(r.ofBatch(final), r.strips[i].h, r.State)
	}
}

// row returns the strip's part of the row at the i-th step scanned of m (batch, length, channels).
func (r *scanRun[T]) row(m []T, st *strip[T], i int) []T {
	at := (r.batch*r.Length+r.step(i))*r.Channels + st.first
	return m[at : at+st.width]
}

// rowZ is row for z and its gradient.
func (r *scanRun[T]) rowZ(m []T, st *strip[T], i int) []T {
	stride := r.Channels
	if r.ZStride > 0 {
		stride = r.ZStride
	}
	at := (r.batch*r.Length+r.step(i))*stride + st.first
	return m[at : at+st.width]
}

// prepare computes Δ and Δ·u for the steps [from, to).
func (r *scanRun[T]) prepare(st *strip[T], from, to int) {
	for i := from; i < to; i++ {
		at := (i - from) * lanes
		u, delta := r.row(r.U, st, i), r.row(r.Delta, st, i)
		for l, v := range delta {
			if r.DeltaBias != nil {
				v += r.DeltaBias[st.first+l]
			}
			if r.Softplus {
				v = softplus(v)
			}
			r.dt[at+l] = v
			r.u[at+l] = u[l]
			r.du[at+l] = v * u[l]
		}
	}
}

// spread returns B or C at the i-th step scanned for state n, a value for each lane.
func (r *scanRun[T]) spread(p Projection[T], constant, buf []T, group, i, n int) []T {
	if p.Groups == 0 {
		return constant[n*lanes : (n+1)*lanes]
	}
	v := p.Data[(r.batch*r.Length+r.step(i))*p.stride(r.State)+group*r.State+n]
	for l := range buf {
		buf[l] = v
	}
	return buf
}

// forward scans the steps [from, to) of a strip and writes their y; with a nil y it only advances the state.
//
// This is where assembly goes in: one strip, one tile, the state in registers.
func (r *scanRun[T]) forward(strip, from, to int, y []T) {
	st := &r.strips[strip]
	r.prepare(st, from, to)
	w := st.width
	for i := from; i < to; i++ {
		at := (i - from) * lanes
		dt, du, acc := r.dt[at:at+w], r.du[at:at+w], r.y[at:at+w]
		clear(acc)
		fresh := r.fresh(i)
		for n := range r.State {
			a, h := st.a[n*lanes:][:w], st.h[n*lanes:][:w]
			b := r.spread(r.B, st.b, r.b, r.bGroup, i, n)[:w]
			if fresh {
				for l := range h {
					h[l] = du[l] * b[l]
				}
			} else {
				for l := range h {
					h[l] = exp(dt[l]*a[l])*h[l] + du[l]*b[l]
				}
			}
			if y != nil {
				c := r.spread(r.C, st.c, r.c, r.cGroup, i, n)[:w]
				for l := range acc {
					acc[l] += c[l] * h[l]
				}
			}
		}
		if y != nil {
			r.finish(st, i, acc, r.u[at:at+w], r.row(y, st, i))
		}
	}
}

// finish adds D·u to acc and writes it, gated, to y.
func (r *scanRun[T]) finish(st *strip[T], i int, acc, u, y []T) {
	if r.D != nil {
		for l := range acc {
			acc[l] += r.D[st.first+l] * u[l]
		}
	}
	if r.Z == nil {
		copy(y, acc)
		return
	}
	for l, z := range r.rowZ(r.Z, st, i) {
		y[l] = acc[l] * silu(z)
	}
}
