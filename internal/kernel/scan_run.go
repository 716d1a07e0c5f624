package kernel

import (
	"slices"
	"sync"
	"unsafe"

	"github.com/gomamba/mamba/internal/work"
)

// scanRun is the workspace of a task, which scans one block of channels in one batch. It has the operands that are constant over time,
// transposed to (state, lanes), and the current state. It is reused, by one task at a time.
//
// A strip goes through a tile in three phases: prepare computes Δ and Δ·u, scan updates the states, finish adds D·u and applies the gate.
// Each phase has assembly for float32 (scan_amd64.go). The loops in this file define what the assembly computes.
type scanRun[T Float] struct {
	*Scan[T]
	layout work.Layout[T]
	widest int // the largest number of channels of a block
	batch  int
	block  block
	strips []strip[T] // the first block.strips() are those of the current block
	states []states   // the groups of states that the kernels process at a time

	dt, du, u []T // (tile, lanes): Δ, Δ·u and u of the current tile
	y         []T // (tile, lanes): Σ C h
	out       []T // takes the output of a forward pass; nil in the backward pass
	b, c      []T // (lanes): a value of B or C, once for each lane
	bGroup    int
	cGroup    int

	order         []int32 // of the block's direction; nil without orders
	all, ofU, ofY rows    // of Delta; of U; of the output. Their gradients are alike
	ofZ           rows
	keepsDelta    bool    // the caller of advance reads dt
	addsU, addsY  bool    // the block adds to the gradient of U, and to the output, of the directions before
	tile          [3]int  // the steps for which cells are set, and the first step of the tile that comes next
	base          int     // of an order 0, else the time of the first step of the tile
	cells         []int32 // (two, tile): the cell, or the time minus base, of each step of the tile, and of the tile that comes next
	ordered       [2][]T  // (tile, state): B and C in the order of the steps, if there is an order

	asm *scanAsm // the workspace of the assembly; nil if the Go code runs
	//lint:ignore U1000 a build without assembly has no use for it
	own *scanAsm // kept while asm is nil, to be reused
}

// strip is a range of at most 16 channels, one for each lane.
type strip[T Float] struct {
	first, width int
	a, b, c      []T // (state, lanes); b and c only where they are constant
	h            []T // (state, lanes)
}

// rows is how an operand is laid out: the elements from one step to the next, and the first of the channels that it has.
type rows struct{ stride, first int }

// states is a range of states that are scanned together.
type states struct{ first, count int }

// segment is a run of steps. Where fresh is set, its first step begins from a zero state.
type segment struct {
	from, to int
	fresh    bool
	before   int // segments before it in the tile; only the backward pass sets it
}

// scanRuns and scanBacks hold the workspaces that are not in use, of float32 and of float64.
var scanRuns, scanBacks [2]sync.Pool

// recycle returns a value that was put into the pool for T, or a new one.
func recycle[T Float, V any](pools *[2]sync.Pool) *V {
	if v, ok := pools[poolOf[T]()].Get().(*V); ok {
		return v
	}
	return new(V)
}

func poolOf[T Float]() int {
	var zero T
	return int(unsafe.Sizeof(zero)/4 - 1)
}

// newRun returns a workspace for tiles of at most steps steps and blocks of at most width channels. release returns it to the pool.
func (s *Scan[T]) newRun(steps, width int, out []T) *scanRun[T] {
	r := recycle[T, scanRun[T]](&scanRuns)
	r.init(s, width, out)
	r.layout.Lay(func(l *work.Layout[T]) { r.lay(l, steps) })
	return r
}

func (r *scanRun[T]) init(s *Scan[T], widest int, out []T) {
	r.Scan, r.out, r.widest = s, out, widest
	r.asm = newScanAsm(r)
	r.states = append(r.states[:0], states{0, s.State})
	if r.asm != nil {
		r.states = r.asm.cut(r.states[:0])
	}
}

func (r *scanRun[T]) release() {
	r.layout.Return()
	r.Scan, r.out, r.keepsDelta = nil, nil, false
	scanRuns[poolOf[T]()].Put(r)
}

// width is the number of strips that the widest block has.
func (r *scanRun[T]) width() int { return (min(r.Channels, r.widest) + lanes - 1) / lanes }

// lay takes the run's arrays from a layout.
func (r *scanRun[T]) lay(l *work.Layout[T], steps int) {
	for _, row := range []*[]T{&r.dt, &r.du, &r.u, &r.y} {
		*row = l.Array(steps * lanes)
	}
	r.layStrips(l, steps)
}

func (r *scanRun[T]) layStrips(l *work.Layout[T], steps int) {
	r.b, r.c = l.Array(lanes), l.Array(lanes)
	r.cells = slices.Grow(r.cells[:0], 2*steps)[:2*steps]
	for i := range r.ordered {
		r.ordered[i] = l.ArrayIf(r.Orders != nil, steps*r.State)
	}
	size := r.State * lanes
	r.strips = slices.Grow(r.strips[:0], r.width())[:r.width()]
	for i := range r.strips {
		r.strips[i] = strip[T]{a: l.Array(size), h: l.Array(size), b: l.ArrayIf(r.B.Groups == 0, size), c: l.ArrayIf(r.C.Groups == 0, size)}
	}
	if r.asm != nil {
		r.asm.lay(any(l), steps)
	}
}

// begin prepares the workspace for a block.
func (r *scanRun[T]) begin(batch int, blk block) {
	r.batch, r.block = batch, blk
	r.bGroup, r.cGroup = r.B.groupOf(blk.first, r.Channels), r.C.groupOf(blk.first, r.Channels)
	r.all, r.ofZ, r.tile, r.order, r.base = rows{r.Channels, 0}, rows{r.zStride(), 0}, [3]int{}, nil, 0
	r.ofU, r.ofY, r.addsU, r.addsY = r.all, r.all, false, false
	if r.Orders != nil {
		each := r.Channels / len(r.Orders)
		direction := blk.first / each
		r.order = r.Orders[direction]
		if r.OneU {
			r.ofU, r.addsU = rows{each, direction * each}, direction > 0
		}
		if r.Merge {
			r.ofY, r.addsY = rows{each, direction * each}, direction > 0
		}
	}
	for i := range blk.strips() {
		st := &r.strips[i]
		st.first, st.width = blk.first+i*lanes, min(lanes, blk.width-i*lanes)
		if r.Strips != nil {
			st.a = r.Strips[st.first*r.State:][:lanes*r.State]
		} else {
			st.load(st.a, r.A, r.State)
		}
		if r.B.Groups == 0 {
			st.load(st.b, r.B.Data, r.State)
		}
		if r.C.Groups == 0 {
			st.load(st.c, r.C.Data, r.State)
		}
		if r.asm != nil {
			r.asm.begin(i, st.width)
		}
	}
}

// load transposes the strip's rows of from (channels, state) to (state, lanes); lanes without a channel are zero.
func (st *strip[T]) load(to, from []T, state int) {
	if st.width < lanes {
		clear(to)
	}
	for l := range st.width {
		for n, v := range from[(st.first+l)*state : (st.first+l+1)*state] {
			to[n*lanes+l] = v
		}
	}
}

// layStrips writes A as the strips have it: keptStride numbers.
func (s *Scan[T]) layStrips(to []T) {
	for d := 0; d < s.Channels; d += lanes {
		st := strip[T]{first: d, width: min(lanes, s.Channels-d)}
		st.load(to[d*s.State:][:lanes*s.State], s.A, s.State)
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

// fresh reports whether a sequence starts between the i-th step scanned of batch b and the step scanned before it. Then the
// i-th step begins from a zero state, whatever the state was.
//
// A start at time t separates t-1 from t. Forward, t is fresh; in reverse, t-1 is.
func (s *Scan[T]) fresh(b, i int) bool {
	if s.Start == nil {
		return false
	}
	t := s.step(i)
	if s.Reverse {
		t++
	}
	return t < s.Length && s.Start[b*s.Length+t]
}

// segment returns the steps from i on, before to, of which only the first may be fresh.
func (r *scanRun[T]) segment(i, to int) segment {
	s := segment{from: i, to: to, fresh: r.fresh(r.batch, i)}
	if r.Start != nil {
		for s.to = i + 1; s.to < to && !r.fresh(r.batch, s.to); s.to++ {
		}
	}
	return s
}

// segmentBefore returns the segment that ends before to, as segment cuts them from on.
func (r *scanRun[T]) segmentBefore(from, to int) segment {
	i := from
	if r.Start != nil {
		for i = to - 1; i > from && !r.fresh(r.batch, i); i-- {
		}
	}
	return segment{from: i, to: to, fresh: r.fresh(r.batch, i)}
}

// ofBatch returns the batch's part of m (batch, channels, state).
func (r *scanRun[T]) ofBatch(m []T) []T { return m[r.batch*r.Channels*r.State:] }

// enter sets a strip's state to the initial state, or to zero if Initial is nil.
func (r *scanRun[T]) enter(strip int) {
	st := &r.strips[strip]
	if r.Initial == nil {
		clear(st.h)
		return
	}
	st.load(st.h, r.ofBatch(r.Initial), r.State)
}

// enterChunk sets a strip's state to the state that enters a chunk.
func (r *scanRun[T]) enterChunk(c *chunks[T], chunk, strip int) {
	if chunk == 0 {
		r.enter(strip)
		return
	}
	r.strips[strip].load(r.strips[strip].h, r.ofBatch(r.ofChunk(c.enter, chunk)), r.State)
}

// leave copies the state of every strip to final (batch, channels, state).
func (r *scanRun[T]) leave(final []T) {
	for i := range r.block.strips() {
		r.strips[i].store(r.ofBatch(final), r.strips[i].h, r.State)
	}
}

// visit sets cells for the tile of the steps [from, to), and for the tile after it in the pass, which begins at step next. A next outside the
// length stands for none.
func (r *scanRun[T]) visit(from, to, next int) {
	if tile := [3]int{from, to, next}; r.tile == tile {
		return
	} else {
		r.tile = tile
	}
	half := len(r.cells) / 2
	if r.order == nil {
		r.base = r.step(from) // so that a length of more than 2³¹ steps fits into the cells
		for t := range half {
			r.cells[t] = int32(r.step(min(from+t, r.Length-1)) - r.base)
			r.cells[half+t] = int32(r.step(min(max(next+t, 0), r.Length-1)) - r.base)
		}
		return
	}
	copy(r.cells, r.order[from:to])
	if next >= 0 && next < r.Length {
		for n := copy(r.cells[half:], r.order[next:]); n < half; n++ { // the last tile is shorter
			r.cells[half+n] = r.cells[half+n-1]
		}
	}
	r.gather(r.ordered[0], r.B, r.bGroup, to-from)
	r.gather(r.ordered[1], r.C, r.cGroup, to-from)
}

// gather copies the states of B or C of the first steps of the tile to to (step, state).
func (r *scanRun[T]) gather(to []T, p Projection[T], group, steps int) {
	from, stride := p.Data[r.batch*r.Length*p.stride(r.State)+group*r.State:], p.stride(r.State)
	if r.State == 1 { // a copy of one number would take longer than the scan of a narrow block
		for t, cell := range r.cells[:steps] {
			to[t] = from[int(cell)*stride]
		}
		return
	}
	for t, cell := range r.cells[:steps] {
		copy(to[t*r.State:][:r.State], from[int(cell)*stride:])
	}
}

// origin returns the index of the strip's first channel at the time base, or in cell 0, of the batch.
func (r *scanRun[T]) origin(rs rows, st *strip[T]) int {
	return (r.batch*r.Length+r.base)*rs.stride + st.first - rs.first
}

// row returns the strip's part of the row of m at the i-th step scanned, which must be in the tile that visit was called for.
func (r *scanRun[T]) row(m []T, rs rows, st *strip[T], i int) []T {
	return m[r.origin(rs, st)+int(r.cells[i-r.tile[0]])*rs.stride:][:st.width]
}

func (s *Scan[T]) zStride() int {
	if s.ZStride > 0 {
		return s.ZStride
	}
	return s.Channels
}

// projectionAt returns the index of the states of B or C at the i-th step scanned.
func (r *scanRun[T]) projectionAt(p Projection[T], group, i int) int {
	return (r.batch*r.Length+r.step(i))*p.stride(r.State) + group*r.State
}

// spread returns B or C at the i-th step scanned for state n, a value for each lane.
func (r *scanRun[T]) spread(p Projection[T], constant, buf, ordered []T, group, i, n int) []T {
	if p.Groups == 0 {
		return constant[n*lanes : (n+1)*lanes]
	}
	data, at := p.Data, 0
	if ordered == nil {
		at = r.projectionAt(p, group, i)
	} else {
		data, at = ordered, (i-r.tile[0])*r.State
	}
	v := data[at+n]
	for l := range buf {
		buf[l] = v
	}
	return buf
}

// advance scans a strip through the steps [from, to). Without an output it only updates the state.
func (r *scanRun[T]) advance(strip, from, to int) {
	pass := scanForward
	if r.out == nil {
		pass = scanAdvance
	}
	r.visit(from, to, to)
	if r.States == nil && r.asm != nil && r.asm.advance(pass, strip, from, to) {
		return
	}
	r.prepare(strip, from, to)
	clear(r.y[:(to-from)*lanes])
	for i := from; i < to; {
		s := r.segment(i, to)
		for _, n := range r.states {
			r.scan(pass, strip, n, from, s, nil)
		}
		i = s.to
	}
	if r.out != nil {
		r.finish(strip, from, to)
	}
}

// prepare computes Δ and Δ·u for the steps [from, to).
func (r *scanRun[T]) prepare(strip, from, to int) {
	if r.asm != nil {
		r.asm.prepare(strip, from, to)
		return
	}
	st := &r.strips[strip]
	for i := from; i < to; i++ {
		at := (i - from) * lanes
		u, delta := r.row(r.U, r.ofU, st, i), r.row(r.Delta, r.all, st, i)
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

// scanPass says what scan computes in addition to the state.
type scanPass int

const (
	scanAdvance   scanPass = iota // nothing
	scanForward                   // adds Σ C h to y, and writes the states that enter the tiles of the backward pass to States
	scanRecompute                 // adds Σ C h to y, and writes the decay a_t and the state h_{t-1} to keep
)

// scan updates some states of a strip through a segment of the tile that begins at from. keep is (step of the tile, state, two, lanes). It also
// gets the states after the segment, as those before the step after it.
//
// A step that begins from a zero state is computed like any other step: if exp(Δ A) is infinite or NaN, exp(Δ A)·0 is NaN, and so the state
// must be NaN too.
func (r *scanRun[T]) scan(pass scanPass, strip int, ns states, from int, s segment, keep []T) {
	st := &r.strips[strip]
	if s.fresh {
		clear(st.h[ns.first*lanes : (ns.first+ns.count)*lanes])
	}
	if r.asm != nil {
		r.asm.scan(pass, strip, ns, from, s)
		return
	}
	w, kept := st.width, r.firstKept(pass, s.from)
	for i := s.from; i < s.to; i++ {
		if i == kept {
			copy(r.kept(r.batch, i, st.first)[ns.first*lanes:], st.h[ns.first*lanes:(ns.first+ns.count)*lanes])
			kept += r.backSteps()
		}
		at := (i - from) * lanes
		dt, du, acc := r.dt[at:at+w], r.du[at:at+w], r.y[at:at+w]
		for n := ns.first; n < ns.first+ns.count; n++ {
			a, h := st.a[n*lanes:][:w], st.h[n*lanes:][:w]
			b := r.spread(r.B, st.b, r.b, r.ordered[0], r.bGroup, i, n)[:w]
			if pass == scanRecompute {
				kept := keep[((i-from+s.before)*ns.count+n-ns.first)*2*lanes:]
				decay := kept[:w]
				copy(kept[lanes:], h)
				for l := range h {
					decay[l] = exp(dt[l] * a[l])
					h[l] = decay[l]*h[l] + du[l]*b[l]
				}
				copy(kept[(2*ns.count+1)*lanes:], h)
			} else {
				for l := range h {
					h[l] = exp(dt[l]*a[l])*h[l] + du[l]*b[l]
				}
			}
			if pass != scanAdvance {
				c := r.spread(r.C, st.c, r.c, r.ordered[1], r.cGroup, i, n)[:w]
				for l := range acc {
					acc[l] += c[l] * h[l]
				}
			}
		}
	}
}

// finish adds D·u to Σ C h and writes it, gated, to the output.
func (r *scanRun[T]) finish(strip, from, to int) {
	if r.asm != nil {
		r.asm.finish(strip, from, to)
		return
	}
	st := &r.strips[strip]
	for i := from; i < to; i++ {
		at := (i - from) * lanes
		acc, u, y := r.y[at:at+st.width], r.u[at:at+st.width], r.row(r.out, r.ofY, st, i)
		if r.D != nil {
			for l := range acc {
				acc[l] += r.D[st.first+l] * u[l]
			}
		}
		if r.Z != nil {
			for l, z := range r.row(r.Z, r.ofZ, st, i) {
				acc[l] *= silu(z)
			}
		}
		if !r.addsY {
			copy(y, acc)
			continue
		}
		for l, v := range acc {
			y[l] += v
		}
	}
}
