package kernel

import (
	"math"
	"slices"
	"sync"

	"github.com/gomamba/mamba/internal/work"
)

// Scan is one selective scan (S6; Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
// algorithm 2 with the zero-order hold of A and the simplified one of B): for each batch b, channel d and state n,
//
//	Δ_t = Delta_t + DeltaBias_d, through softplus if asked
//	h_t = exp(Δ_t A_dn) h_{t-1} + Δ_t B_tn u_t
//	y_t = (Σ_n C_tn h_t + D_d u_t) · silu(Z_t)
//
// Absent operands are nil. The caller has checked the sizes.
type Scan[T Float] struct {
	Batch, Length, Channels, State int

	// Among is the number of sequences that are scanned at the same time, in this call and others; 0 means Batch. The more there are, the fewer parts are the
	// channels cut into, and the order of sums over channels depends on that.
	Among int

	U, Delta []T // (batch, length, channels)
	A        []T // (channels, state)
	B, C     Projection[T]

	// Strips, unless it is nil, is A as the strips have it, from layStrips. A caller with many small scans of one A makes it once. B and C then have one group.
	Strips []T // (channels rounded up to strips, state), each strip as (state, lanes)

	D         []T    // (channels)
	Z         []T    // (batch, length, channels)
	ZStride   int    // elements between two steps of Z, which can be part of a wider matrix; 0 means channels
	DeltaBias []T    // (channels)
	Initial   []T    // (batch, channels, state): the state before the first step scanned
	Start     []bool // (batch, length): a new sequence starts here

	// States, unless it is nil, has KeptStates elements. Forward writes the states that enter each tile of the backward pass but the first, and Backward
	// reads them instead of computing them again.
	States []T // (batch, tile-1, channels rounded up to strips, state), each strip as (state, lanes)

	Softplus bool // Δ goes through softplus
	Reverse  bool // the last step is scanned first

	// Orders make the scan one over the cells of a grid, in len(Orders) directions at once. Direction k has the k-th equal part of the
	// channels, scans Orders[k][i] as the i-th step, and has groups of B and C of its own. Reverse, Start and Z must then be absent.
	// B and C vary over time.
	Orders [][]int32
	OneU   bool // U is (batch, length, channels/directions): all directions read the same
	Merge  bool // y is (batch, length, channels/directions): the sum over the directions

	// What a pass uses is here, so that it allocates little.
	chunks chunks[T]
	param  paramParts[T]
}

// Projection is an operand B or C, of shape (batch, length, groups, state). Channel d reads group d/(channels/groups). With Groups 0 it is
// constant over time and batch, of shape (channels, state).
type Projection[T Float] struct {
	Data   []T
	Groups int
	Stride int // elements between two steps of Data, which can be part of a wider matrix; 0 means groups·state
}

// stride returns the distance between two steps.
func (p Projection[T]) stride(state int) int {
	if p.Stride > 0 {
		return p.Stride
	}
	return p.Groups * state
}

// ScanGrad has the slices for the gradients of a Scan's operands. Each has the shape and the stride of its operand, and is nil where the
// operand is.
type ScanGrad[T Float] struct {
	U, Delta, A, B, C        []T
	D, Z, DeltaBias, Initial []T

	Y []T // optional: gets the output y (batch, length, channels), which the backward pass recomputes
}

const (
	// lanes is the number of channels that are scanned together: one AVX-512 register of float32.
	lanes = 16
	// tileSteps is the largest number of steps of a tile of the forward pass. 64 steps make up for the cost of a call, and the strip's
	// four rows (16 KiB) stay in the first-level cache. A wide block has shorter tiles, so that what it prefetches stays in the
	// second-level cache.
	tileSteps = 64
	// mostBack is the largest number of steps of a tile of the backward pass. backRows is the number of rows of each of its arrays: with
	// 80 rows, 16 steps of different arrays have different addresses modulo 4096, so that a load need not wait for the store of another
	// array. The generator _gen has the same number.
	mostBack = 64
	backRows = 80
	// backSteps is the number of steps between two checkpoints of the backward pass. With 16 states, a tile's states and decays
	// (2·16·16·16 lanes, 32 KiB of float32) stay in the first-level cache. The checkpoints need 1/16 of the memory of the states. The
	// generator _gen has the same number.
	backSteps = 16
	// maxBlock is the largest number of channels of a task, for matrices of at least largeMatrix numbers; smallBlock is it for smaller
	// ones. A large matrix has more pages than the processor's TLB has entries, and a wide block uses more of each page. At 1536 channels,
	// blocks of 256 took 1.3 times as long. In smaller matrices the longer tiles of narrow blocks are faster.
	maxBlock    = 1536
	smallBlock  = 256
	largeMatrix = 1 << 22
	// backBlock is the largest number of channels of a block of the backward pass, which keeps more rows in its caches.
	backBlock = 128
)

// block is a range of channels that one task scans. They share a group of B and a group of C.
type block struct{ first, width int }

func (b block) strips() int { return (b.width + lanes - 1) / lanes }

// groupOf returns the group of p that channel d reads.
func (p Projection[T]) groupOf(d, channels int) int {
	if p.Groups == 0 {
		return 0
	}
	return d / (channels / p.Groups)
}

// scanPlan says how a pass is cut into tasks. It is memory that passes use again.
type scanPlan struct {
	sections, blocks []block
	stripes          [][]block
	numbers          []int
	tasks            [][]int
	phases           [][][]int
}

var scanPlans = sync.Pool{New: func() any { return new(scanPlan) }}

// sections cuts the channels where the group of B or the group of C changes, and appends the parts to cut.
func (s *Scan[T]) sections(cut []block) []block {
	for d := 0; d < s.Channels; {
		end := s.Channels
		for _, p := range []Projection[T]{s.B, s.C} {
			if p.Groups > 0 {
				size := s.Channels / p.Groups
				end = min(end, (d/size+1)*size)
			}
		}
		cut = append(cut, block{d, end - d})
		d = end
	}
	return cut
}

// blocks cuts a section into blocks of at most width channels, and appends them to cut. width is a multiple of lanes.
func (section block) blocks(cut []block, width int) []block {
	for d := 0; d < section.width; d += width {
		cut = append(cut, block{section.first + d, min(width, section.width-d)})
	}
	return cut
}

// blockWidth returns the width of blocks, at most most, that gives the number of tasks, if there are enough channels.
func (s *Scan[T]) blockWidth(most, tasks int) int {
	channels := s.Channels
	if s.OneU || s.Merge { // a task goes through all directions
		channels /= len(s.Orders)
	}
	return min(max(s.among()*channels/tasks/lanes, 1)*lanes, most)
}

func (s *Scan[T]) among() int { return max(s.Among, s.Batch) }

// forwardSteps returns the steps of a tile, for blocks of that width.
func forwardSteps(width int) int { return max(min(tileSteps, tileSteps*256/width), backSteps) }

// backSteps returns the steps of a tile of the backward pass, a divisor of tileSteps. Few states leave room in the cache for more steps, which make
// up for the cost of the calls.
func (s *Scan[T]) backSteps() int {
	switch {
	case s.State == 1:
		return mostBack
	case s.State <= 3:
		return 2 * backSteps
	}
	return backSteps
}

// KeptStates returns the number of elements of States, 0 where they are not worth their memory or Forward could not write them.
func (s *Scan[T]) KeptStates() int {
	if s.State < 4 || s.State > 16 || s.Orders != nil || s.B.Groups > 1 || s.C.Groups > 1 {
		return 0
	}
	return s.Batch * max(0, (s.Length-1)/s.backSteps()) * s.keptStride()
}

// keptStride returns the number of elements of the states of all channels at one step in States.
func (s *Scan[T]) keptStride() int { return (s.Channels + lanes - 1) / lanes * lanes * s.State }

// kept returns the part of States of the strip that begins at a channel, for the tile that begins at step i.
func (s *Scan[T]) kept(batch, i, first int) []T {
	tile := batch*((s.Length-1)/s.backSteps()) + i/s.backSteps() - 1
	return s.States[tile*s.keptStride()+first*s.State:][:lanes*s.State]
}

// firstKept returns the first step from i on before which a pass writes the states to States, math.MaxInt if it does not.
func (s *Scan[T]) firstKept(pass scanPass, i int) int {
	if s.States == nil || pass != scanForward {
		return math.MaxInt
	}
	tile := s.backSteps()
	return max((i+tile-1)/tile, 1) * tile
}

// Forward writes y (batch, length, channels) and, unless it is nil, the state after the last step scanned,
// final (batch, channels, state).
func (s *Scan[T]) Forward(y, final []T) {
	// No sum runs over channels, so the cut can depend on the number of processors without changing the result.
	tasks := 1
	if procs := work.Processors(); procs > 1 {
		tasks = 2 * procs
	}
	width := s.blockWidth(smallBlock, tasks)
	if s.Length*s.Channels >= largeMatrix {
		width = s.blockWidth(maxBlock, tasks)
	}
	p := scanPlans.Get().(*scanPlan)
	defer scanPlans.Put(p)
	p.sections, p.blocks = s.sections(p.sections[:0]), p.blocks[:0]
	for _, section := range p.sections {
		p.blocks = section.blocks(p.blocks, width)
	}
	c := s.newChunks(p.sections)
	defer c.layout.Return()
	s.enterStates(c, p.blocks)
	for _, phase := range s.phases(p, len(p.blocks), s.Merge, c) {
		if n := c.count * s.Batch * len(phase); work.Alone(n) {
			for i := range n {
				s.forward(y, final, p.blocks, phase, c, width, i)
			}
		} else {
			work.Parallel(n, func(i int) { s.forward(y, final, p.blocks, phase, c, width, i) })
		}
	}
}

// forward is task i of a phase.
func (s *Scan[T]) forward(y, final []T, blocks []block, phase [][]int, c *chunks[T], width, i int) {
	tasks, steps := s.Batch*len(phase), forwardSteps(width)
	chunk := i / tasks
	run := s.newRun(steps, width, y)
	defer run.release()
	from, to := c.bounds(chunk, s.Length)
	for _, blk := range phase[i%len(phase)] {
		run.begin(i%tasks/len(phase), blocks[blk])
		for strip := range run.block.strips() {
			run.enterChunk(c, chunk, strip)
		}
		for at := from; at < to; at += steps {
			for strip := range run.block.strips() {
				run.advance(strip, at, min(at+steps, to))
			}
		}
		if final != nil && chunk == c.count-1 {
			run.leave(final)
		}
	}
}

// phases returns which of n blocks, or stripes, the tasks of a pass process. Phases run one after another, and each task goes through its blocks
// one after another. If the directions of a scan write to one array, the sum there must have the same order in every run: a task then goes
// through the blocks of all directions that write to the same columns, or, with chunks, each direction is a phase.
func (s *Scan[T]) phases(p *scanPlan, n int, oneArray bool, c *chunks[T]) (phases [][][]int) {
	if s.Orders == nil {
		p.numbers, p.tasks = p.numbers[:0], slices.Grow(p.tasks[:0], n)
		for i := range n {
			p.numbers = append(p.numbers, i)
		}
		for i := range n {
			p.tasks = append(p.tasks, p.numbers[i:i+1])
		}
		p.phases = append(p.phases[:0], p.tasks)
		return p.phases
	}
	each := n // blocks of a direction
	if oneArray {
		each /= len(s.Orders)
	}
	for i := range n {
		switch k := i / each; {
		case k == 0 && i == 0, k > 0 && i%each == 0 && c.count > 1:
			phases = append(phases, make([][]int, each))
		}
		last := phases[len(phases)-1]
		last[i%each] = append(last[i%each], i)
	}
	return phases
}
