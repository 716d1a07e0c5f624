//go:build amd64 && !noasm

package kernel

import (
	"math"
	"math/bits"
	"slices"
	"unsafe"

	"github.com/gomamba/mamba/internal/cpu"
	"github.com/gomamba/mamba/internal/work"
)

// scanKernels holds the assembly functions of one level that process states. states is indexed by pass, by whether B and C are vectors, and
// by log2 of the number of states; back likewise, without the pass.
type scanKernels struct {
	lanes  int // float32 per vector; a strip is one or two vectors wide
	states [3][2][]func(*scanArgs)
	back   [2][]func(*scanBackArgs)
	small  [2]map[int]func(*scanSmallArgs) // by pass and number of states: a whole tile in one call
	tile   func(*scanTileArgs)             // or nil
}

// The garbage collector reads the arguments at any time, also while a kernel runs. So where a kernel changes a pointer there, the pointer must stay inside of its
// array: one past the end, into memory that Go has not given out, ends the program.
//
// The fields of the arguments below are set one by one. The compiler would build a composite literal elsewhere and copy it in larger pieces,
// for which the processor must wait.

// scanArgs are the arguments of scanAdvance, scanForward and scanRecompute.
type scanArgs struct {
	h, a         *float32 // (state, lanes): the state, and A·log2(e)
	dt, du       *float32 // (step, lanes)
	b, c         *float32 // a float32 per step and state, or a vector
	y            *float32 // (step, lanes): Σ C h
	keep         *float32 // (step, state, two, lanes): only scanRecompute writes it, and the states after the last step
	bStep, cStep int      // bytes from a step to the next step
	steps        int
	// scanForward writes the states that enter the left-th step to kept, and those that enter every backSteps-th after it keptStep bytes further on. With a left of
	// 0 it writes none. keptAt is the offset of the next ones.
	kept                   *float32
	left, keptAt, keptStep int
	ahead                  *scanAhead // or nil
}

// scanAhead tells a kernel which rows of the block's next tile to prefetch into the second-level cache while it computes. Each strip of a
// block prefetches an equal part of the lines, row by row.
type scanAhead struct {
	at, zAt     int         // bytes from the first row to the next line, and the same for z
	left, lines int         // cache lines left in the current row, and cache lines per row
	jump, zJump int         // bytes from the end of a row to the next row, and the same for z
	z           [2]*float32 // z and its gradient
	rows        [5]*float32 // u, Δ, then y, or dy and the gradients of u and Δ
	states      *float32    // the state that the next strip or tile of the backward pass begins from, a line for each step
	statesAt    int         // bytes to the next line
}

// scanBackArgs are the arguments of scanBackward.
type scanBackArgs struct {
	rows                         *float32 // (step, lanes): dt of the last step; du, dOut, gB and dDelta follow as layBack lays them
	keep                         *float32 // (step, state, two, lanes): the last step, as scanRecompute writes it
	carry, a, dA                 *float32 // (state, lanes)
	b, c, dB, dC                 *float32 // of the last step: a float32 per step and state, or a vector
	bStep, cStep, dBStep, dCStep int      // bytes from a step to the step before it
	steps                        int
}

// scanTileArgs are the arguments of scanTile.
type scanTileArgs struct {
	rows                *float32 // (step, lanes): dt; the other rows follow as layBack lays them
	keep                *float32 // (step, state of the group, two, lanes), and the states after the last step
	h, scaled           *float32 // (state, lanes): the state that enters, and A·log2(e)
	carry, a, dA        *float32 // (state, lanes)
	b, c                *float32 // of the first step: a float32 per step and state
	dB, dC              *float32 // the same, of the last step
	bStep, cStep, dStep int      // bytes from a step to the next step
	steps, groups       int
	ahead               *scanAhead // or nil
}

// scanPrepareArgs are the arguments of scanPrepare.
type scanPrepareArgs struct {
	dt, du, u              *float32 // (step, lanes)
	cells                  *int32   // of each step
	delta, from            *float32 // rows of cell 0, that are step and uStep bytes apart
	other                  *float32 // another operand to prefetch
	bias                   *float32 // or nil
	step, uStep, otherStep int
	ahead                  int // bytes in cells to the step whose rows are prefetched, or 0
	steps, width, softplus int
}

// scanSmallArgs are the arguments of scanAdvanceSmall and scanForwardSmall.
type scanSmallArgs struct {
	cells                        *int32   // of each step
	delta, from, y, z            *float32 // rows of cell 0, that are step, uStep, yStep and zStep bytes apart; z may be nil
	bias, d                      *float32 // or nil
	h, a                         *float32 // (state, lanes): the state, and A·log2(e)
	b, c                         *float32 // a float32 per step and state
	step, uStep, yStep, zStep    int
	bStep, cStep                 int // bytes from a step to the next step
	ahead                        int // as in scanPrepareArgs
	steps, width, softplus, adds int
}

// scanFinishArgs are the arguments of scanFinish.
type scanFinishArgs struct {
	cells              *int32   // of each step
	y                  *float32 // the row of cell 0; rows are yStep bytes apart
	acc, u             *float32 // (step, lanes)
	d                  *float32 // or nil
	z                  *float32 // the row of cell 0; rows are zStep bytes apart; or nil
	yStep, zStep       int
	steps, width, adds int
}

// scanPrepareBackArgs are the arguments of scanPrepareBack.
type scanPrepareBackArgs struct {
	cells                     *int32   // of each step
	rows                      *float32 // (step, lanes): dt; the other rows follow as layBack lays them
	delta, from, dy, z        *float32 // rows of cell 0, that are step, uStep, yStep and zStep bytes apart; z may be nil
	bias                      *float32 // or nil
	step, uStep, yStep, zStep int
	ahead                     int // as in scanPrepareArgs
	steps, width, softplus    int
}

// scanFinishBackArgs are the arguments of scanFinishBack.
type scanFinishBackArgs struct {
	cells                        *int32   // of each step
	rows                         *float32 // (step, lanes): dt; the other rows follow as layBack lays them
	gd, gu, out, dz              *float32 // rows of cell 0, that are step, uStep, yStep and zStep bytes apart; out and dz may be nil
	d                            *float32 // or nil
	sumD, sumBias                *float32
	step, uStep, yStep, zStep    int
	ahead                        int // as in scanPrepareArgs
	steps, width, softplus, adds int
}

var scanAVX512 = scanKernels{
	lanes: 16,
	states: [3][2][]func(*scanArgs){
		scanAdvance: {
			{scanAdvance1AVX512, scanAdvance2AVX512, scanAdvance4AVX512, scanAdvance8AVX512, scanAdvance16AVX512},
			{scanAdvanceVectors1AVX512, scanAdvanceVectors2AVX512, scanAdvanceVectors4AVX512, scanAdvanceVectors8AVX512, scanAdvanceVectors16AVX512},
		},
		scanForward: {
			{scanForward1AVX512, scanForward2AVX512, scanForward4AVX512, scanForward8AVX512, scanForward16AVX512},
			{scanForwardVectors1AVX512, scanForwardVectors2AVX512, scanForwardVectors4AVX512, scanForwardVectors8AVX512, scanForwardVectors16AVX512},
		},
		scanRecompute: {
			{scanRecompute1AVX512, scanRecompute2AVX512, scanRecompute4AVX512, scanRecompute8AVX512, scanRecompute16AVX512},
			{scanRecomputeVectors1AVX512, scanRecomputeVectors2AVX512, scanRecomputeVectors4AVX512, scanRecomputeVectors8AVX512, scanRecomputeVectors16AVX512},
		},
	},
	back: [2][]func(*scanBackArgs){
		{scanBackward1AVX512, scanBackward2AVX512, scanBackward4AVX512, scanBackward8AVX512, scanBackward16AVX512},
		{scanBackwardVectors1AVX512, scanBackwardVectors2AVX512, scanBackwardVectors4AVX512, scanBackwardVectors8AVX512, scanBackwardVectors16AVX512},
	},
	small: [2]map[int]func(*scanSmallArgs){
		scanAdvance: {1: scanAdvanceSmall1AVX512, 2: scanAdvanceSmall2AVX512},
		scanForward: {1: scanForwardSmall1AVX512, 2: scanForwardSmall2AVX512},
	},
	tile: scanTileAVX512,
}

var scanAVX2 = scanKernels{
	lanes: 8,
	states: [3][2][]func(*scanArgs){
		scanAdvance: {
			{scanAdvance1AVX2, scanAdvance2AVX2, scanAdvance4AVX2, scanAdvance8AVX2},
			{scanAdvanceVectors1AVX2, scanAdvanceVectors2AVX2, scanAdvanceVectors4AVX2, scanAdvanceVectors8AVX2},
		},
		scanForward: {
			{scanForward1AVX2, scanForward2AVX2, scanForward4AVX2, scanForward8AVX2},
			{scanForwardVectors1AVX2, scanForwardVectors2AVX2, scanForwardVectors4AVX2, scanForwardVectors8AVX2},
		},
		scanRecompute: {
			{scanRecompute1AVX2, scanRecompute2AVX2, scanRecompute4AVX2, scanRecompute8AVX2},
			{scanRecomputeVectors1AVX2, scanRecomputeVectors2AVX2, scanRecomputeVectors4AVX2, scanRecomputeVectors8AVX2},
		},
	},
	back: [2][]func(*scanBackArgs){
		{scanBackward1AVX2, scanBackward2AVX2, scanBackward4AVX2, scanBackward8AVX2},
		{scanBackwardVectors1AVX2, scanBackwardVectors2AVX2, scanBackwardVectors4AVX2, scanBackwardVectors8AVX2},
	},
	small: [2]map[int]func(*scanSmallArgs){
		scanAdvance: {1: scanAdvanceSmall1AVX2, 2: scanAdvanceSmall2AVX2},
		scanForward: {1: scanForwardSmall1AVX2, 2: scanForwardSmall2AVX2},
	},
}

// scanAsm runs a scan's phases in assembly.
type scanAsm struct {
	*scanKernels
	run  *scanRun[float32]
	back *scanBack[float32]
	a    [][]float32 // for each strip (state, lanes): A·log2(e)

	// If B or C is constant, the kernels read a vector of lanes for each value of both. The other one is then widened to (tile, state,
	// lanes), once for each tile of a block. Its gradient is widened too.
	vectors bool
	b, c    []float32
	dB, dC  []float32
	wide    wideTile
	whole   bool // a tile is scanned in one call

	// The arguments of scanKernels. They are here because the compiler would allocate a local variable: it does not see that a function
	// that is called through a variable keeps no pointer.
	args     scanArgs
	backArgs scanBackArgs
	tileArgs scanSmallArgs
	bothArgs scanTileArgs
	ahead    scanAhead
}

// wideTile identifies the tile for which B and C are widened.
type wideTile struct{ batch, first, from, to int }

func newScanAsm[T Float](r *scanRun[T]) *scanAsm {
	run, ok := any(r).(*scanRun[float32])
	if !ok || level == cpu.Generic {
		return nil
	}
	if run.own == nil {
		run.own = &scanAsm{run: run}
	}
	s := run.own
	s.scanKernels, s.vectors = &scanAVX512, r.B.Groups == 0 || r.C.Groups == 0
	if level == cpu.AVX2 {
		s.scanKernels = &scanAVX2
	}
	return s
}

// cut appends the groups of states that the kernels process at a time.
func (s *scanAsm) cut(all []states) []states {
	for n := 0; n < s.run.State; {
		count := 1 << (min(len(s.scanKernels.back[0]), bits.Len(uint(s.run.State-n))) - 1)
		all = append(all, states{n, count})
		n += count
	}
	return all
}

// lay takes the arrays from a layout, for tiles of at most steps steps.
func (s *scanAsm) lay(from any, steps int) {
	r, l := s.run, from.(*work.Layout[float32])
	s.a = slices.Grow(s.a[:0], r.width())[:r.width()]
	for i := range s.a {
		s.a[i] = l.Array(r.State * lanes)
	}
	wide, wideB, wideC := steps*r.State*lanes, s.vectors && r.B.Groups > 0, s.vectors && r.C.Groups > 0
	s.b, s.c = l.ArrayIf(wideB, wide), l.ArrayIf(wideC, wide)
	s.dB, s.dC = l.ArrayIf(wideB && s.back != nil, wide), l.ArrayIf(wideC && s.back != nil, wide)
}

// begin prepares a strip of a new block.
func (s *scanAsm) begin(strip, width int) {
	scaleOf(s.a[strip], s.run.strips[strip].a, math.Log2E)
	s.wide = wideTile{}
}

// widen widens B and C of the steps [from, to), unless they are already widened.
func (s *scanAsm) widen(from, to int) {
	tile := wideTile{s.run.batch, s.run.block.first, from, to}
	if s.wide == tile {
		return
	}
	s.wide = tile
	widen := func(wide []float32, p Projection[float32], group int) {
		if wide == nil {
			return
		}
		for i := from; i < to; i++ {
			for n, v := range p.Data[s.run.projectionAt(p, group, i):][:s.run.State] {
				lane := wide[((i-from)*s.run.State+n)*lanes:][:lanes]
				for l := range lane {
					lane[l] = v
				}
			}
		}
	}
	widen(s.b, s.run.B, s.run.bGroup)
	widen(s.c, s.run.C, s.run.cGroup)
}

// projection returns the address of B or C for state n at the i-th step scanned, and the bytes to the next step. The tile begins at step
// from.
func (s *scanAsm) projection(p Projection[float32], constant, wide, ordered []float32, group, from, i, n int) (*float32, int) {
	r := s.run
	switch {
	case p.Groups == 0:
		return &constant[n*lanes], 0
	case s.vectors:
		return &wide[((i-from)*r.State+n)*lanes], 4 * r.State * lanes
	case ordered != nil:
		return &ordered[(i-from)*r.State+n], 4 * r.State
	}
	return &p.Data[r.projectionAt(p, group, i)+n], s.bytes(p.stride(r.State))
}

// lane returns the address of the value of a strip's l-th channel in the vector at p. Without vectors all channels share the value at p.
func (s *scanAsm) lane(p *float32, l int) *float32 {
	if !s.vectors {
		return p
	}
	return (*float32)(unsafe.Add(unsafe.Pointer(p), 4*l))
}

func (s *scanAsm) scan(pass scanPass, strip int, ns states, from int, seg segment) {
	r := s.run
	st := &r.strips[strip]
	if s.vectors {
		s.widen(from, min(from+len(r.cells)/2, r.Length))
	}
	b, bStep := s.projection(r.B, st.b, s.b, r.ordered[0], r.bGroup, from, seg.from, ns.first)
	c, cStep := s.projection(r.C, st.c, s.c, r.ordered[1], r.cGroup, from, seg.from, ns.first)
	at, state := (seg.from-from)*lanes, ns.first*lanes
	kernel := s.scanKernels.states[pass][flag(s.vectors)][bits.TrailingZeros(uint(ns.count))]
	args := &s.args
	args.bStep, args.cStep, args.steps, args.ahead = bStep, cStep, seg.to-seg.from, s.lookAhead(pass, strip, ns, from, seg)
	kept := r.firstKept(pass, seg.from)
	args.keptStep = 4 * r.keptStride()
	for l := 0; l < st.width; l += s.lanes {
		if args.left = 0; kept < seg.to {
			args.left, args.keptAt, args.kept = kept-seg.from+1, 0, &r.kept(r.batch, kept, st.first)[state+l]
		}
		args.h, args.a, args.dt, args.du = &st.h[state+l], &s.a[strip][state+l], &r.dt[at+l], &r.du[at+l]
		args.b, args.c, args.y = s.lane(b, l), s.lane(c, l), &r.y[at+l]
		if pass == scanRecompute {
			args.keep = &s.back.keep[(seg.from-from+seg.before)*ns.count*2*lanes+l]
		}
		kernel(args)
		args.ahead = nil
	}
}

// lookAhead returns the part of the next tile that this strip prefetches, or nil if there is none.
func (s *scanAsm) lookAhead(pass scanPass, strip int, ns states, from int, seg segment) *scanAhead {
	r := s.run
	tile := len(r.cells) / 2
	at := from + tile
	if pass == scanRecompute {
		at = from - tile
	}
	if ns.first > 0 || at < 0 || at >= r.Length || r.order != nil { // in an order, prepare and the others prefetch
		return nil
	}
	a := &s.ahead
	step, zStep := s.bytes(r.Channels), s.bytes(r.zStride())
	a.lines = r.block.strips()
	next := strip*tile + seg.from - from // index of the next line; each step prefetches one
	a.at, a.zAt = next/a.lines*step+next%a.lines*64, next/a.lines*zStep+next%a.lines*64
	a.left = a.lines - next%a.lines
	a.jump, a.zJump = step-64*a.lines, zStep-64*a.lines
	st := &r.strips[0]
	ahead := r.step(at) - r.base
	row, rowZ := r.origin(r.all, st)+ahead*r.Channels, r.origin(r.ofZ, st)+ahead*r.zStride()
	u, delta := &r.U[row], &r.Delta[row]
	a.rows = [5]*float32{u, delta, u, u, u}
	a.z = [2]*float32{u, u}
	switch {
	case pass == scanForward:
		a.rows[2] = &r.out[row]
	case pass == scanRecompute:
		a.states, a.statesAt = &s.back.next[0], 0
		a.rows[2], a.rows[3], a.rows[4] = &s.back.dy[row], &s.back.grad.U[row], &s.back.grad.Delta[row]
		if r.Z != nil {
			a.z[1] = &s.back.grad.Z[rowZ]
		}
	}
	if r.Z != nil {
		a.z[0] = &r.Z[rowZ]
	}
	return a
}

// wholeTiles reports whether there is a kernel for both.
func (s *scanAsm) wholeTiles() bool { return s.tile != nil && !s.vectors && s.run.State%8 == 0 }

// both is scan for scanRecompute, and scanBack, for all states of a segment.
func (s *scanAsm) both(strip, from int, seg segment) {
	r, back := s.run, s.back
	all := states{0, r.State}
	st, last, args := &r.strips[strip], seg.to-1, &s.bothArgs
	args.b, args.bStep = s.projection(r.B, nil, nil, r.ordered[0], r.bGroup, from, seg.from, 0)
	args.c, args.cStep = s.projection(r.C, nil, nil, r.ordered[1], r.cGroup, from, seg.from, 0)
	args.dB, args.dStep = s.gradient(r.B, nil, nil, back.dB, from, last, all)
	args.dC, _ = s.gradient(r.C, nil, nil, back.dC, from, last, all)
	args.rows, args.keep, args.h, args.scaled = &r.dt[(seg.from-from)*lanes], &back.keep[0], &back.enters[0], &s.a[strip][0]
	if seg.fresh {
		args.h = &back.zero[0]
	}
	args.carry, args.a, args.dA = &back.carry[strip][0], &st.a[0], &back.sums[strip].a[0]
	args.steps, args.groups, args.ahead = seg.to-seg.from, r.State/8, s.lookAhead(scanRecompute, strip, all, from, seg)
	s.tile(args)
}

func (s *scanAsm) scanBack(strip int, ns states, from int, seg segment) {
	r, back := s.run, s.back
	st, sums := &r.strips[strip], &back.sums[strip]
	last := seg.to - 1
	b, bStep := s.projection(r.B, st.b, s.b, r.ordered[0], r.bGroup, from, last, ns.first)
	c, cStep := s.projection(r.C, st.c, s.c, r.ordered[1], r.cGroup, from, last, ns.first)
	dB, dBStep := s.gradient(r.B, sums.b, s.dB, back.dB, from, last, ns)
	dC, dCStep := s.gradient(r.C, sums.c, s.dC, back.dC, from, last, ns)
	at, state := (last-from)*lanes, ns.first*lanes
	kernel := s.scanKernels.back[flag(s.vectors)][bits.TrailingZeros(uint(ns.count))]
	args := &s.backArgs
	args.bStep, args.cStep, args.dBStep, args.dCStep, args.steps = -bStep, -cStep, -dBStep, -dCStep, seg.to-seg.from
	for l := 0; l < st.width; l += s.lanes {
		args.rows, args.keep = &r.dt[at+l], &back.keep[(last-from+seg.before)*ns.count*2*lanes+l]
		args.carry, args.a, args.dA = &back.carry[strip][state+l], &st.a[state+l], &sums.a[state+l]
		args.b, args.c, args.dB, args.dC = s.lane(b, l), s.lane(c, l), s.lane(dB, l), s.lane(dC, l)
		kernel(args)
	}
	s.narrow(s.dB, back.dB, from, seg, ns)
	s.narrow(s.dC, back.dC, from, seg, ns)
}

// gradient is projection for the gradient of B or C.
func (s *scanAsm) gradient(p Projection[float32], constant, wide, part []float32, from, i int, ns states) (*float32, int) {
	r := s.run
	switch {
	case p.Groups == 0:
		return &constant[ns.first*lanes], 0
	case s.vectors:
		clear(wide[:(i-from+1)*ns.count*lanes])
		return &wide[(i-from)*ns.count*lanes], 4 * ns.count * lanes
	}
	return &part[r.step(i)*r.State+ns.first], s.bytes(r.State)
}

// narrow adds the lanes of a widened gradient to the gradient.
func (s *scanAsm) narrow(wide, part []float32, from int, seg segment, ns states) {
	if wide == nil {
		return
	}
	for i := seg.from; i < seg.to; i++ {
		row := part[s.run.step(i)*s.run.State+ns.first:]
		for n := range ns.count {
			for _, v := range wide[((i-from)*ns.count+n)*lanes:][:lanes] {
				row[n] += v
			}
		}
	}
}

// at returns the address of element i of v, or nil if v is nil.
func at(v []float32, i int) *float32 {
	if v == nil {
		return nil
	}
	return &v[i]
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// bytes returns the bytes from one step scanned to the next, for rows that are stride elements apart.
func (s *scanAsm) bytes(stride int) int {
	if s.run.Reverse { // the next step scanned is the one before in time
		return -4 * stride
	}
	return 4 * stride
}

// cellsAhead returns the bytes from a step in cells to that of the next tile, or 0 if there is none, or lookAhead prefetches its rows.
func (s *scanAsm) cellsAhead() int {
	if r := s.run; !s.whole && r.order == nil || r.tile[2] < 0 || r.tile[2] >= r.Length {
		return 0
	}
	return 2 * len(s.run.cells)
}

// advance scans a strip through a tile in one call, or returns false if there is no kernel for that.
func (s *scanAsm) advance(pass scanPass, strip, from, to int) bool {
	r := s.run
	kernel := s.small[pass][r.State]
	if s.whole = kernel != nil && !s.vectors && r.Start == nil && !r.keepsDelta; !s.whole {
		return false
	}
	st := &r.strips[strip]
	row, u, y, z := r.origin(r.all, st), r.origin(r.ofU, st), r.origin(r.ofY, st), r.origin(r.ofZ, st)
	args := &s.tileArgs
	args.cells, args.ahead, args.steps, args.softplus, args.adds = &r.cells[0], s.cellsAhead(), to-from, flag(r.Softplus), flag(r.addsY)
	args.step, args.uStep, args.yStep, args.zStep = 4*r.all.stride, 4*r.ofU.stride, 4*r.ofY.stride, 4*r.ofZ.stride
	args.b, args.bStep = s.projection(r.B, nil, nil, r.ordered[0], r.bGroup, from, from, 0)
	args.c, args.cStep = s.projection(r.C, nil, nil, r.ordered[1], r.cGroup, from, from, 0)
	for l := 0; l < st.width; l += s.lanes {
		args.h, args.a, args.width = &st.h[l], &s.a[strip][l], min(s.lanes, st.width-l)
		args.delta, args.from, args.y, args.z = &r.Delta[row+l], &r.U[u+l], at(r.out, y+l), at(r.Z, z+l)
		args.bias, args.d = at(r.DeltaBias, st.first+l), at(r.D, st.first+l)
		kernel(args)
	}
	s.whole = false
	return true
}

func (s *scanAsm) prepare(strip, from, to int) {
	r := s.run
	st := &r.strips[strip]
	row, u := r.origin(r.all, st), r.origin(r.ofU, st)
	var args scanPrepareArgs
	args.cells, args.ahead, args.step, args.uStep, args.steps, args.softplus = &r.cells[0], s.cellsAhead(), 4*r.all.stride, 4*r.ofU.stride, to-from, flag(r.Softplus)
	for l := 0; l < st.width; l += s.lanes {
		args.dt, args.du, args.u, args.width = &r.dt[l], &r.du[l], &r.u[l], min(s.lanes, st.width-l)
		args.delta, args.from, args.bias = &r.Delta[row+l], &r.U[u+l], at(r.DeltaBias, st.first+l)
		if args.other, args.otherStep = args.from, args.uStep; r.out != nil {
			args.other, args.otherStep = &r.out[r.origin(r.ofY, st)+l], 4*r.ofY.stride
		}
		if level == cpu.AVX512 {
			scanPrepareAVX512(&args)
		} else {
			scanPrepareAVX2(&args)
		}
	}
}

func (s *scanAsm) finish(strip, from, to int) {
	r := s.run
	st := &r.strips[strip]
	row, rowZ := r.origin(r.ofY, st), r.origin(r.ofZ, st)
	var args scanFinishArgs
	args.cells, args.yStep, args.zStep, args.steps, args.adds = &r.cells[0], 4*r.ofY.stride, 4*r.ofZ.stride, to-from, flag(r.addsY)
	for l := 0; l < st.width; l += s.lanes {
		args.y, args.acc, args.u, args.width = &r.out[row+l], &r.y[l], &r.u[l], min(s.lanes, st.width-l)
		args.d, args.z = at(r.D, st.first+l), at(r.Z, rowZ+l)
		if level == cpu.AVX512 {
			scanFinishAVX512(&args)
		} else {
			scanFinishAVX2(&args)
		}
	}
}

func (s *scanAsm) prepareBack(strip, from, to int) {
	r, back := s.run, s.back
	st := &r.strips[strip]
	row, u, y, rowZ := r.origin(r.all, st), r.origin(r.ofU, st), r.origin(r.ofY, st), r.origin(r.ofZ, st)
	var args scanPrepareBackArgs
	args.cells, args.ahead, args.steps, args.softplus = &r.cells[0], s.cellsAhead(), to-from, flag(r.Softplus)
	args.step, args.uStep, args.yStep, args.zStep = 4*r.all.stride, 4*r.ofU.stride, 4*r.ofY.stride, 4*r.ofZ.stride
	for l := 0; l < st.width; l += s.lanes {
		args.rows, args.width = &r.dt[l], min(s.lanes, st.width-l)
		args.delta, args.from, args.dy, args.z, args.bias = &r.Delta[row+l], &r.U[u+l], &back.dy[y+l], at(r.Z, rowZ+l), at(r.DeltaBias, st.first+l)
		if level == cpu.AVX512 {
			scanPrepareBackAVX512(&args)
		} else {
			scanPrepareBackAVX2(&args)
		}
	}
}

func (s *scanAsm) finishBack(strip, from, to int) {
	r, back, grad := s.run, s.back, s.back.grad
	st, sums := &r.strips[strip], &back.sums[strip]
	row, u, y, rowZ := r.origin(r.all, st), r.origin(r.ofU, st), r.origin(r.ofY, st), r.origin(r.ofZ, st)
	var args scanFinishBackArgs
	args.cells, args.ahead, args.steps, args.softplus, args.adds = &r.cells[0], s.cellsAhead(), to-from, flag(r.Softplus), flag(r.addsU)
	args.step, args.uStep, args.yStep, args.zStep = 4*r.all.stride, 4*r.ofU.stride, 4*r.ofY.stride, 4*r.ofZ.stride
	for l := 0; l < st.width; l += s.lanes {
		args.rows, args.sumD, args.sumBias, args.width = &r.dt[l], &sums.d[l], &sums.bias[l], min(s.lanes, st.width-l)
		args.gu, args.gd, args.out, args.dz, args.d = &grad.U[u+l], &grad.Delta[row+l], at(grad.Y, y+l), at(grad.Z, rowZ+l), at(r.D, st.first+l)
		if level == cpu.AVX512 {
			scanFinishBackAVX512(&args)
		} else {
			scanFinishBackAVX2(&args)
		}
	}
}
