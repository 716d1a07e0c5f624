package kernel

import "runtime"

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

	U, Delta []T // (batch, length, channels)
	A        []T // (channels, state)
	B, C     Projection[T]

	D         []T    // (channels)
	Z         []T    // (batch, length, channels)
	ZStride   int    // between the steps of Z, which may lie in a wider matrix; 0 where they lie one behind the other
	DeltaBias []T    // (channels)
	Initial   []T    // (batch, channels, state): the state before the first step scanned
	Start     []bool // (batch, length): a new sequence starts here

	Softplus bool // Δ goes through softplus
	Reverse  bool // the last step is scanned first
}

// Projection is an operand B or C: (batch, length, groups, state), of which channel d reads group d/(channels/groups);
// or, with no groups, constant over time and batch: (channels, state).
type Projection[T Float] struct {
	Data   []T
	Groups int
	Stride int // between the steps of Data, which may lie in a wider matrix; 0 where they lie one behind the other
}

// stride returns the distance between two steps.
func (p Projection[T]) stride(state int) int {
	if p.Stride > 0 {
		return p.Stride
	}
	return p.Groups * state
}

// ScanGrad takes the gradients of a Scan's operands, in their shapes, and where those have a stride, with the same one.
// Those of absent operands are nil.
type ScanGrad[T Float] struct {
	U, Delta, A, B, C        []T
	D, Z, DeltaBias, Initial []T

	Y []T // optional: takes the output y (batch, length, channels), which the backward pass recomputes
}

const (
	// lanes is the number of channels that are scanned side by side: one AVX-512 register of float32.
	lanes = 16
	// tileSteps is the number of steps of a tile of the forward pass, at most: what a call of a kernel costs is spread over
	// 64 steps, and the strip's rows (four, 16 KiB) stay in the first-level cache. A wide block has fewer, so that what
	// it fetches ahead stays in the second-level cache.
	tileSteps = 64
	// backSteps is the number of steps between two checkpoints of the backward pass. A tile's states and decays of 16
	// states (2·16·16·16 lanes, 32 KiB of float32) stay in the first-level cache while they are used; and the checkpoints
	// of the channels at work take 1/16 of the memory of their states. The generator knows this number.
	backSteps = 16
	// maxBlock is the number of channels of a task, at most. The wider, the more of a memory page is used while the
	// processor knows where it lies; that counts where the pages are more than it can know of, in matrices of largeMatrix
	// numbers. There, at 1536 channels, blocks of 256 took 1.3 times as long; in smaller ones their longer tiles win.
	maxBlock    = 1536
	smallBlock  = 256
	largeMatrix = 1 << 22
	// backBlock is the same for the backward pass, which has more rows to hold in its caches, and checkpoints.
	backBlock = 128
)

// block is a run of channels that share one group of B and one of C, and that one task scans.
type block struct{ first, width int }

func (b block) strips() int { return (b.width + lanes - 1) / lanes }

// groupOf returns the group of p that channel d reads.
func (p Projection[T]) groupOf(d, channels int) int {
	if p.Groups == 0 {
		return 0
	}
	return d / (channels / p.Groups)
}

// sections cuts the channels where the group of B or that of C changes.
func (s *Scan[T]) sections() []block {
	var cut []block
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

// blocks cuts a section into blocks of at most so many channels, a multiple of lanes.
func (section block) blocks(width int) []block {
	var cut []block
	for d := 0; d < section.width; d += width {
		cut = append(cut, block{section.first + d, min(width, section.width-d)})
	}
	return cut
}

// blockWidth is the width of blocks that makes so many tasks, if there are enough channels.
func (s *Scan[T]) blockWidth(most, tasks int) int {
	return min(max(s.Batch*s.Channels/tasks/lanes, 1)*lanes, most)
}

// forwardSteps is the number of steps of a tile of blocks of that width.
func forwardSteps(width int) int { return max(min(tileSteps, tileSteps*256/width), backSteps) }

// Forward writes y (batch, length, channels) and, unless it is nil, the state after the last step scanned,
// final (batch, channels, state).
func (s *Scan[T]) Forward(y, final []T) {
	// No sum runs over channels, so the cut may depend on the number of processors.
	tasks := 1
	if procs := runtime.GOMAXPROCS(0); procs > 1 {
		tasks = 2 * procs
	}
	width := s.blockWidth(smallBlock, tasks)
	if s.Length*s.Channels >= largeMatrix {
		width = s.blockWidth(maxBlock, tasks)
	}
	steps := forwardSteps(width)
	var all []block
	for _, section := range s.sections() {
		all = append(all, section.blocks(width)...)
	}
	c := s.newChunks()
	defer func() { c.layout.space.Return() }()
	s.enterStates(c, all)
	tasks = s.Batch * len(all)
	Parallel(c.count*tasks, func(i int) {
		chunk := i / tasks
		run := s.newRun(steps, width, y)
		defer run.release()
		run.begin(i%tasks/len(all), all[i%len(all)])
		for strip := range run.block.strips() {
			run.enterChunk(c, chunk, strip)
		}
		from, to := c.bounds(chunk, s.Length)
		for at := from; at < to; at += steps {
			for strip := range run.block.strips() {
				run.advance(strip, at, min(at+steps, to))
			}
		}
		if final != nil && chunk == c.count-1 {
			run.leave(final)
		}
	})
}
