package kernel

import "github.com/gomamba/mamba/internal/work"

// A scan of few channels is cut into chunks of time, so that more processors than strips can work on it. The state that leaves a chunk
// follows from the state that enters it and two values that do not depend on that state: the state h' that leaves the chunk if a zero state
// enters, and the sum of the chunk's Δ:
//
//	h_leave = h' + exp(A ΣΔ) h_enter
//
// This is computed for one chunk after another. Then all chunks can be scanned at the same time. The gradient of the state goes back
// through the chunks in the same way. Chunks cost a second pass over the exponentials. So only scans of less than minStrips strips are cut,
// into the number of chunks that makes maxChunks tasks. The cut depends on the sizes alone, so results are the same for any number of
// processors.
const (
	minStrips = 4
	maxChunks = 8
	minChunk  = 1024 // steps
)

// chunks describes how the length of a scan is cut. Most scans have one chunk.
type chunks[T Float] struct {
	count, steps int // number of chunks; steps of each but the last, a multiple of a tile

	layout work.Layout[T]
	enter  []T // (chunk, batch, channels, state): the state that enters; nil with one chunk
	carry  []T // (chunk, batch, channels, state): the gradient of the state that leaves
	decay  []T // (chunk, batch, channels, state): exp(A ΣΔ)
}

func (s *Scan[T]) newChunks(sections []block) *chunks[T] {
	strips := 0
	for _, section := range sections {
		strips += s.Batch * section.strips()
	}
	if s.OneU || s.Merge { // one direction after another
		strips /= len(s.Orders)
	}
	c := &s.chunks
	*c = chunks[T]{count: 1, steps: s.Length}
	if strips >= minStrips || s.Length < 2*minChunk {
		return c
	}
	c.count = min(maxChunks/strips, s.Length/minChunk)
	c.steps = (s.Length/c.count + tileSteps - 1) / tileSteps * tileSteps
	c.count = (s.Length + c.steps - 1) / c.steps
	return c
}

// bounds returns the steps of a chunk.
func (c *chunks[T]) bounds(chunk, length int) (from, to int) {
	return chunk * c.steps, min((chunk+1)*c.steps, length)
}

// ofChunk returns a chunk's part of m (chunk, batch, channels, state).
func (s *Scan[T]) ofChunk(m []T, chunk int) []T {
	size := s.Batch * s.Channels * s.State
	return m[chunk*size : (chunk+1)*size]
}

// enterStates computes the states that enter the chunks. With one chunk it does nothing.
func (s *Scan[T]) enterStates(c *chunks[T], blocks []block) {
	if c.count == 1 {
		return
	}
	size := c.count * s.Batch * s.Channels * s.State
	c.layout.Lay(func(l *work.Layout[T]) { c.enter, c.carry, c.decay = l.Array(size), l.Array(size), l.Array(size) })
	// At first, c.enter of a chunk has the state that the chunk before it leaves if a zero state enters that.
	tasks := s.Batch * len(blocks)
	work.Parallel(c.count*tasks, func(i int) {
		chunk := i / tasks
		run := s.newRun(tileSteps, maxBlock, nil)
		run.keepsDelta = true
		defer run.release()
		run.begin(i%tasks/len(blocks), blocks[i%len(blocks)])
		from, to := c.bounds(chunk, s.Length)
		for strip := range run.block.strips() {
			st := &run.strips[strip]
			if clear(st.h); chunk == 0 {
				run.enter(strip)
			}
			var sum [lanes]float64
			for at := from; at < to; at += tileSteps {
				next := min(at+tileSteps, to)
				run.advance(strip, at, next)
				for i := at; i < next; i++ {
					for l, dt := range run.dt[(i-at)*lanes:][:st.width] {
						sum[l] += float64(dt)
					}
				}
			}
			if chunk+1 < c.count {
				st.store(run.ofBatch(s.ofChunk(c.enter, chunk+1)), st.h, s.State)
			}
			for n := range s.State { // the states are not needed any more
				for l := range st.width {
					st.h[n*lanes+l] = exp(st.a[n*lanes+l] * T(sum[l]))
				}
			}
			st.store(run.ofBatch(s.ofChunk(c.decay, chunk)), st.h, s.State)
		}
	})
	for chunk := 1; chunk+1 < c.count; chunk++ { // c.enter of chunk 1 is complete, since chunk 0 began from the initial state
		s.combine(c, chunk, c.enter, chunk+1, chunk)
	}
}

// combine adds decay·m[from] to m[to]. m is (chunk, batch, channels, state), and decay is that of the chunk between. It adds nothing if a
// sequence starts in that chunk, not even a NaN. Otherwise a NaN is added even if the decay is zero. A zero adds nothing, also if the decay
// of the whole chunk overflows although that of each step does not.
func (s *Scan[T]) combine(c *chunks[T], between int, m []T, to, from int) {
	own, before, decay := s.ofChunk(m, to), s.ofChunk(m, from), s.ofChunk(c.decay, between)
	size := s.Channels * s.State
	for b := range s.Batch {
		if s.starts(c, between, b) {
			continue
		}
		for i := b * size; i < (b+1)*size; i++ {
			if before[i] != 0 {
				own[i] += decay[i] * before[i]
			}
		}
	}
}

// starts reports whether a sequence of batch b starts in a chunk.
func (s *Scan[T]) starts(c *chunks[T], chunk, b int) bool {
	from, to := c.bounds(chunk, s.Length)
	for i := from; i < to; i++ {
		if s.fresh(b, i) {
			return true
		}
	}
	return false
}

// carryGradients computes the gradients of the states that leave the chunks, from the gradients of the final state and of the output.
func (s *Scan[T]) carryGradients(c *chunks[T], stripes [][]block, newBack func(stripe, chunk int) *scanBack[T]) {
	tasks := s.Batch * len(stripes)
	work.Parallel((c.count-1)*tasks, func(i int) {
		chunk := 1 + i/tasks
		r := newBack(i%tasks, chunk)
		r.carries = true
		defer r.releaseBack()
		from, to := c.bounds(chunk, s.Length)
		for _, blk := range stripes[i%len(stripes)] {
			r.begin(i%tasks/len(stripes), blk)
			for strip := range blk.strips() { // from a zero state: the carry depends only on the decays
				r.enterBack(strip, chunk == c.count-1)
				for at := to; at > from; at = (at - 1) / s.backSteps() * s.backSteps() {
					r.backward(strip, (at-1)/s.backSteps()*s.backSteps(), at)
				}
				r.strips[strip].store(r.ofBatch(s.ofChunk(c.carry, chunk-1)), r.carry[strip], s.State)
			}
		}
	})
	for chunk := c.count - 2; chunk > 0; chunk-- {
		s.combine(c, chunk, c.carry, chunk-1, chunk)
	}
}
