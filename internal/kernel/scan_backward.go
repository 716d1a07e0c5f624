package kernel

import (
	"slices"

	"github.com/gomamba/mamba/internal/work"
)

// The backward pass. g_t is the gradient of h_t, a_t = exp(Δ_t A), and ȳ is the gradient of the output before the gate.
// docs/selective_scan.md derives the formulas.
//
//	ȳ_t = dy_t silu(z_t)              dz_t = dy_t (Σ C h + D u) silu'(z_t)
//	g_t = C_t ȳ_t + a_{t+1} g_{t+1}   at the last step, the final state's gradient takes the place of a_{t+1} g_{t+1}
//	dC = ȳ h      dB = g Δ u          du = D ȳ + Δ Σ_n g B
//	dΔ = Σ_n g (B u + A a h_{t-1})    dA = Σ_t g Δ a h_{t-1}
//	dD = Σ ȳ u    dinitial = a_0 g_0
//
// Each task first scans forward and keeps the state every backSteps steps, as a checkpoint, unless the forward pass has written these states. Then it goes through the tiles from the last to
// the first, recomputes their states from the checkpoint, and computes the gradients.

// Backward writes every element of grad's slices. dy is the gradient of y, dfinal that of the final state, nil for zeros.
func (s *Scan[T]) Backward(dy, dfinal []T, grad *ScanGrad[T]) {
	plan := scanPlans.Get().(*scanPlan)
	defer scanPlans.Put(plan)
	stripes := s.stripes(plan)
	rows := s.Batch * len(stripes) * s.Length * s.State
	c := s.newChunks(plan.sections)
	defer c.layout.Return()
	s.enterStates(c, plan.blocks)

	// dB and dC are sums over channels, and the gradients of the parameters are sums over the batch. Every task writes its part of them to
	// its own memory. The parts are then added in the order of the tasks.
	param := newParamParts(s, grad, c.count)
	defer param.layout.Return()
	var partB, partC work.Space[T] // (batch, stripe, length, state)
	if s.B.Groups > 0 {
		partB = work.Borrow[T](rows)
		defer partB.Return()
	}
	if s.C.Groups > 0 {
		partC = work.Borrow[T](rows)
		defer partC.Return()
	}
	b := backPass[T]{c, dy, dfinal, grad, partB.Data, partC.Data}
	if c.count > 1 {
		b := b // what a function takes along needs memory
		s.carryGradients(c, stripes, func(stripe, chunk int) *scanBack[T] { return s.backFor(&b, stripe, chunk) })
	}
	for _, phase := range s.phases(plan, len(stripes), s.OneU, c) {
		if n := c.count * s.Batch * len(phase); work.Alone(n) {
			for i := range n {
				s.backward(&b, stripes, phase, param, i)
			}
		} else {
			b := b
			work.Parallel(n, func(i int) { s.backward(&b, stripes, phase, param, i) })
		}
	}
	sumProjection(s, s.B, stripes, b.b, grad.B)
	sumProjection(s, s.C, stripes, b.c, grad.C)
	param.sum()
}

// backPass is what all tasks of a backward pass have in common.
type backPass[T Float] struct {
	chunks     *chunks[T]
	dy, dfinal []T
	grad       *ScanGrad[T]
	b, c       []T // the stripes' parts of the gradients of B and C; nil for those that are constant
}

// backFor returns a workspace for a chunk of a stripe.
func (s *Scan[T]) backFor(b *backPass[T], stripe, chunk int) *scanBack[T] {
	r := s.newBack(b.chunks, b.dy, b.dfinal, b.grad)
	from, to := b.chunks.bounds(chunk, s.Length)
	if s.Reverse {
		from, to = s.Length-to, s.Length-from
	}
	rows := s.Length * s.State
	if b.b != nil {
		r.dB = b.b[stripe*rows : (stripe+1)*rows]
		clear(r.dB[from*s.State : to*s.State])
	}
	if b.c != nil {
		r.dC = b.c[stripe*rows : (stripe+1)*rows]
		clear(r.dC[from*s.State : to*s.State])
	}
	return r
}

// backward is task i of a phase.
func (s *Scan[T]) backward(b *backPass[T], stripes [][]block, phase [][]int, param *paramParts[T], i int) {
	tasks := s.Batch * len(phase)
	chunk, batch := i/tasks, i%tasks/len(phase)
	for _, stripe := range phase[i%len(phase)] {
		r := s.backFor(b, batch*len(stripes)+stripe, chunk)
		for _, blk := range stripes[stripe] {
			r.begin(batch, blk)
			r.run(b.chunks, chunk, param)
		}
		r.releaseBack()
	}
}

// stripes cuts the channels into stripes, which are runs of blocks. A task of the backward pass processes one stripe. More stripes keep more
// cores busy, but each has its own dB and dC.
func (s *Scan[T]) stripes(p *scanPlan) [][]block {
	p.sections = s.sections(p.sections[:0])
	sections := p.sections
	together := s.among() * len(sections) // at the same time
	if s.OneU {
		together = s.among()
	}
	p.blocks, p.stripes = p.blocks[:0], p.stripes[:0]
	width := s.blockWidth(backBlock, 8)
	most := 0 // so that the stripes' parts of blocks stay where they are
	for _, section := range sections {
		most += pieces(section.width, width)
	}
	p.blocks = slices.Grow(p.blocks, most)
	for _, section := range sections {
		first := len(p.blocks)
		p.blocks = section.blocks(p.blocks, width)
		blocks := p.blocks[first:]
		// 16 tasks are enough for most processors. The stripes' dB and dC, stripes·2·state elements per step, stay below half the size of U,
		// except that up to 4 stripes are always allowed, so that cores have work.
		n := (16 + together - 1) / together
		n = min(n, max(section.width/(4*s.State), 4), len(blocks))
		for i := range n {
			p.stripes = append(p.stripes, blocks[i*len(blocks)/n:(i+1)*len(blocks)/n])
		}
	}
	return p.stripes
}

// sumProjection adds the stripes' parts of the gradient of B or C.
func sumProjection[T Float](s *Scan[T], p Projection[T], stripes [][]block, part, grad []T) {
	if p.Groups == 0 {
		return
	}
	if n := s.Batch * pieces(s.Length, projectionSteps); work.Alone(n) {
		for i := range n {
			sumProjectionOf(s, p, stripes, part, grad, i)
		}
	} else {
		work.Parallel(n, func(i int) { sumProjectionOf(s, p, stripes, part, grad, i) })
	}
}

// projectionSteps is the number of steps of a task of sumProjection.
const projectionSteps = 256

func sumProjectionOf[T Float](s *Scan[T], p Projection[T], stripes [][]block, part, grad []T, i int) {
	across := pieces(s.Length, projectionSteps)
	batch, from := i/across, i%across*projectionSteps
	count := min(projectionSteps, s.Length-from)
	space := work.Borrow[T](count * s.State)
	defer space.Return()
	for g := range p.Groups {
		sum := space.Data
		clear(sum)
		for j, stripe := range stripes {
			if p.groupOf(stripe[0].first, s.Channels) == g {
				sumOf(sum, sum, part[((batch*len(stripes)+j)*s.Length+from)*s.State:][:len(sum)])
			}
		}
		for t := range count {
			at := from + t
			if s.Orders != nil { // the parts are in the order scanned
				at = int(s.Orders[g][at])
			}
			copy(grad[(batch*s.Length+at)*p.stride(s.State)+g*s.State:][:s.State], sum[t*s.State:])
		}
	}
}

// scanBack is the workspace of the backward pass over one block of channels of one row of the batch.
type scanBack[T Float] struct {
	scanRun[T]
	dy, dfinal []T
	grad       *ScanGrad[T]

	checkpoints []T // (tile, strip, state, lanes): the state that enters the tile, where it is not in States
	enters      []T // (state, lanes): the checkpoint of the current tile and strip
	next        []T // the checkpoint that is read after it
	zero        []T // (state, lanes): the state at the start of a sequence
	keep        []T // (step of the tile, state, two, lanes): a_t and h_{t-1}. After each segment there is a further step, with the state after the segment
	dOut        []T // (tile, lanes): the gradient of Σ C h
	gB, dDelta  []T // (tile, lanes): Σ_n g B, and Σ_n g A a h_{t-1}
	//lint:ignore U1000 only the assembly has use for them
	slope, gate, gateSlope []T  // (tile, lanes): the derivative of softplus; silu(z); dy times its derivative
	dB, dC                 []T  // (length, state): the stripe's part, or nil if B or C is constant. In the order scanned if there is an order
	carries                bool // only the gradient of the state is wanted
	carry                  [backBlock / lanes][]T
	sums                   [backBlock / lanes]stripSums[T]
	totals                 work.Layout[float64]
}

// newBack returns a workspace for the backward pass over a stripe. releaseBack returns it to the pool.
func (s *Scan[T]) newBack(c *chunks[T], dy, dfinal []T, grad *ScanGrad[T]) *scanBack[T] {
	r := recycle[T, scanBack[T]](&scanBacks)
	r.init(s, backBlock, nil)
	r.dy, r.dfinal, r.grad = dy, dfinal, grad
	if r.asm != nil {
		r.asm.back = any(r).(*scanBack[float32])
	}
	r.layout.Lay(func(l *work.Layout[T]) { r.layBack(l, c.steps) })
	r.totals.Lay(func(l *work.Layout[float64]) {
		for i := range r.width() {
			r.sums[i].layTotals(s, l)
		}
	})
	return r
}

func (r *scanBack[T]) releaseBack() {
	r.layout.Return()
	r.totals.Return()
	r.Scan, r.dy, r.dfinal, r.grad, r.dB, r.dC, r.carries = nil, nil, nil, nil, nil, nil, false
	scanBacks[poolOf[T]()].Put(r)
}

func (r *scanBack[T]) layBack(l *work.Layout[T], steps int) {
	// The assembly expects these arrays one after another, in this order, without gaps. There are none, since a row of 16 lanes fills whole
	// cache lines.
	for _, row := range []*[]T{&r.dt, &r.du, &r.dOut, &r.gB, &r.dDelta, &r.u, &r.y, &r.slope, &r.gate, &r.gateSlope} {
		*row = l.Array(backRows * lanes)
	}
	r.layStrips(l, r.backSteps())
	size := r.State * lanes
	tiles := (steps + r.backSteps() - 1) / r.backSteps()
	if r.States != nil {
		tiles = 1
	}
	r.checkpoints = l.Array(tiles * r.width() * size)
	r.zero = l.Array(size)
	clear(r.zero)
	r.enters, r.next = r.zero, r.zero
	most := 0
	for _, n := range r.states {
		most = max(most, n.count)
	}
	slots := r.backSteps() + 1
	if r.Start != nil { // a segment can have one step
		slots = 2 * r.backSteps()
	}
	r.keep = l.Array(slots * most * 2 * lanes)
	for i := range r.width() {
		r.carry[i] = l.Array(size)
		r.sums[i].lay(r.Scan, l)
	}
}

// enterBack sets the gradient of a strip's state after the last step of a chunk: that of the final state for the last chunk, else zero.
func (r *scanBack[T]) enterBack(strip int, last bool) {
	clear(r.carry[strip])
	if last && r.dfinal != nil {
		r.strips[strip].load(r.carry[strip], r.ofBatch(r.dfinal), r.State)
	}
}

// run computes the gradients of a chunk of a block.
func (r *scanBack[T]) run(c *chunks[T], chunk int, param *paramParts[T]) {
	strips := r.block.strips()
	from, to := c.bounds(chunk, r.Length)
	size, tiles := r.State*lanes, (to-from+r.backSteps()-1)/r.backSteps()
	checkpoint := func(tile, strip int) []T {
		if at := from + tile*r.backSteps(); r.States != nil && at > 0 {
			return r.kept(r.batch, at, r.strips[strip].first)
		}
		return r.checkpoints[(tile*strips+strip)*size:][:size]
	}
	for i := range strips {
		r.enterChunk(c, chunk, i)
		r.enterBack(i, chunk == c.count-1)
		if chunk < c.count-1 {
			r.strips[i].load(r.carry[i], r.ofBatch(r.ofChunk(c.carry, chunk)), r.State)
		}
		r.sums[i].reset()
	}
	for tile := range tiles {
		at := from + tile*r.backSteps()
		if r.States != nil && at > 0 {
			break
		}
		for i := range strips {
			copy(checkpoint(tile, i), r.strips[i].h)
			if tile < tiles-1 && r.States == nil {
				r.advance(i, at, at+r.backSteps())
			}
		}
	}
	for tile := tiles - 1; tile >= 0; tile-- {
		at := from + tile*r.backSteps()
		for i := range strips {
			r.enters = checkpoint(tile, i)
			if r.next = r.enters; i+1 < strips {
				r.next = checkpoint(tile, i+1)
			} else if tile > 0 {
				r.next = checkpoint(tile-1, 0)
			}
			r.backward(i, at, min(at+r.backSteps(), to))
			if tile%(tileSteps/r.backSteps()) == 0 {
				r.sums[i].flush()
			}
		}
	}
	for i := range strips {
		st := &r.strips[i]
		if r.Initial != nil && chunk == 0 {
			st.store(r.ofBatch(r.grad.Initial), r.carry[i], r.State)
		}
		param.take(r.Scan, r.batch*c.count+chunk, st, &r.sums[i])
	}
}

// backward computes the gradients of a strip for the steps [from, to), from the last to the first. For each group of states it runs forward
// from the checkpoint, then back.
func (r *scanBack[T]) backward(strip, from, to int) {
	r.visit(from, to, from-r.backSteps())
	r.prepareBack(strip, from, to)
	if r.asm != nil && r.asm.wholeTiles() {
		for i := to; i > from; { // a segment that does not begin the tile begins from a zero state
			s := r.segmentBefore(from, i)
			if r.asm.both(strip, from, s); s.fresh {
				clear(r.carry[strip])
			}
			i = s.from
		}
	} else {
		r.groups(strip, from, to)
	}
	if !r.carries {
		r.finishBack(strip, from, to)
	}
}

// groups goes through the states of a tile forward and back, for one group of states after another.
func (r *scanBack[T]) groups(strip, from, to int) {
	copy(r.strips[strip].h, r.enters)
	for _, n := range r.states {
		segments := 0
		for i := from; i < to; segments++ {
			s := r.segment(i, to)
			s.before = segments
			r.scan(scanRecompute, strip, n, from, s, r.keep)
			i = s.to
		}
		for i := to; i > from; {
			segments--
			s := r.segmentBefore(from, i)
			s.before = segments
			r.scanBack(strip, n, from, s)
			if s.fresh { // nothing crosses a start, not even a NaN
				clear(r.carry[strip][n.first*lanes : (n.first+n.count)*lanes])
			}
			i = s.from
		}
	}
}

// prepareBack is prepare, writes to dOut the gradient of the output before the gate, from the gradient dy of the output, and sets the sums over the states
// to zero.
func (r *scanBack[T]) prepareBack(strip, from, to int) {
	if r.asm != nil {
		r.asm.prepareBack(strip, from, to)
		return
	}
	for _, sum := range [][]T{r.y, r.gB, r.dDelta} {
		clear(sum[:(to-from)*lanes])
	}
	r.prepare(strip, from, to)
	st := &r.strips[strip]
	for i := from; i < to; i++ {
		dOut := r.dOut[(i-from)*lanes:][:st.width]
		copy(dOut, r.row(r.dy, r.ofY, st, i))
		if r.Z != nil {
			for l, z := range r.row(r.Z, r.ofZ, st, i) {
				dOut[l] *= silu(z)
			}
		}
	}
}

// scanBack carries the gradient of a group of states of a strip back through a segment of the tile that begins at step from.
func (r *scanBack[T]) scanBack(strip int, ns states, from int, s segment) {
	if r.asm != nil {
		r.asm.scanBack(strip, ns, from, s)
		return
	}
	st, sums := &r.strips[strip], &r.sums[strip]
	w := st.width
	for i := s.to - 1; i >= s.from; i-- {
		at := (i - from) * lanes
		dt, du, dOut := r.dt[at:at+w], r.du[at:at+w], r.dOut[at:at+w]
		gB, dDelta := r.gB[at:at+w], r.dDelta[at:at+w]
		for n := ns.first; n < ns.first+ns.count; n++ {
			kept := r.keep[((i-from+s.before)*ns.count+n-ns.first)*2*lanes:]
			decay, state, next := kept[:w], kept[lanes:][:w], kept[(2*ns.count+1)*lanes:][:w]
			a, carry := st.a[n*lanes:][:w], r.carry[strip][n*lanes:][:w]
			b := r.spread(r.B, st.b, r.b, r.ordered[0], r.bGroup, i, n)[:w]
			c := r.spread(r.C, st.c, r.c, r.ordered[1], r.cGroup, i, n)[:w]
			dA := sums.a[n*lanes:][:w]
			var sumB, sumC T
			if r.dB == nil {
				constB := sums.b[n*lanes:][:w]
				for l := range constB {
					constB[l] += (c[l]*dOut[l] + carry[l]) * du[l]
				}
			}
			if r.dC == nil {
				constC := sums.c[n*lanes:][:w]
				for l := range constC {
					constC[l] += dOut[l] * next[l]
				}
			}
			for l := range carry {
				g := c[l]*dOut[l] + carry[l]
				sumB += g * du[l]
				sumC += dOut[l] * next[l]
				carry[l] = decay[l] * g
				q := carry[l] * state[l]
				gB[l] += g * b[l]
				dDelta[l] += a[l] * q
				dA[l] += dt[l] * q
			}
			row := r.step(i)*r.State + n
			if r.dB != nil {
				r.dB[row] += sumB
			}
			if r.dC != nil {
				r.dC[row] += sumC
			}
		}
	}
}

// finishBack writes the gradients of u, Δ and z for the steps [from, to) of a strip, and the output if grad.Y is not nil. It adds to the
// gradients of D and of Δ's bias.
func (r *scanBack[T]) finishBack(strip, from, to int) {
	if r.asm != nil {
		r.asm.finishBack(strip, from, to)
		return
	}
	st, sums := &r.strips[strip], &r.sums[strip]
	for i := from; i < to; i++ {
		at := (i - from) * lanes
		dt, u, y := r.dt[at:at+st.width], r.u[at:at+st.width], r.y[at:at+st.width]
		dOut, gB, dDelta := r.dOut[at:at+st.width], r.gB[at:at+st.width], r.dDelta[at:at+st.width]
		gu, gd, delta := r.row(r.grad.U, r.ofU, st, i), r.row(r.grad.Delta, r.all, st, i), r.row(r.Delta, r.all, st, i)
		for l := range dOut {
			v := dt[l] * gB[l]
			if r.D != nil {
				v += r.D[st.first+l] * dOut[l]
				sums.d[l] += dOut[l] * u[l]
			}
			if r.addsU {
				v += gu[l]
			}
			gu[l] = v
			v = dDelta[l] + u[l]*gB[l]
			if r.Softplus {
				raw := delta[l]
				if r.DeltaBias != nil {
					raw += r.DeltaBias[st.first+l]
				}
				v *= softplusSlope(raw)
			}
			gd[l] = v
			sums.bias[l] += v
		}
		if r.D != nil && (r.Z != nil || r.grad.Y != nil) {
			for l := range y {
				y[l] += r.D[st.first+l] * u[l]
			}
		}
		if r.Z != nil {
			dy, dz := r.row(r.dy, r.ofY, st, i), r.row(r.grad.Z, r.ofZ, st, i)
			for l, z := range r.row(r.Z, r.ofZ, st, i) {
				dz[l] = dy[l] * y[l] * siluSlope(z)
			}
		}
		if r.grad.Y != nil {
			out := r.row(r.grad.Y, r.ofY, st, i)
			copy(out, y)
			if r.Z != nil {
				for l, z := range r.row(r.Z, r.ofZ, st, i) {
					out[l] *= silu(z)
				}
			}
		}
	}
}
