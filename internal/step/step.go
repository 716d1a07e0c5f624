// Package step computes one step of generation of a language model of Mamba blocks on the host: one token of each sequence of a batch, in
// float32. A step is one job that all processors go through together (work.Walk). It computes what the operators of package op compute for
// a length of 1, bit for bit, for weights in float32. ReadPieces does the same for pieces of several prompts together.
package step

import (
	"math"
	"runtime"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/internal/work"
)

// MostRows is the largest batch that a Step is for: more sequences are faster with products that pack their operands.
const MostRows = 24

// Config has the sizes and the weights of a model.
type Config struct {
	Batch                               int
	Model, Channels, State, Width, Rank int
	Eps                                 float64

	Embedding *blas.Weights // (vocabulary, model)
	Blocks    []Block
	Norm      []float32     // (model)
	Head      *blas.Weights // (vocabulary, model)
}

// Block has the weights of a Mamba block, in the shapes that kernel.BlockWeights lists. The biases of the products and of the convolution may be nil.
type Block struct {
	InProj, XProj, DtProj, OutProj *blas.Weights

	Norm, ALog, D, DtBias     []float32
	Conv                      []float32
	ConvBias, InBias, OutBias []float32
}

// Step is a model with the states of a batch. One goroutine may use a Step at a time.
//
// A step writes the new states beside the old ones, so that nothing has changed until Commit.
type Step struct {
	Config
	walk  *work.Walk[worker]
	most  int   // processors
	procs int   // for which tasks is made
	tasks []int // of each phase
	cuts  []cut

	x      []float32 // (batch, model): the residual stream
	vz     []float32 // (batch, 2·channels)
	u      []float32 // (batch, channels)
	rbc    []float32 // (batch, rank + 2·state)
	delta  []float32 // (batch, channels)
	s      []float32 // (batch, channels): the results of the scans
	logits []float32 // (batch, vocabulary)
	best   []int     // (tasks of the head, batch): the largest logit of each task, as largest returns it

	blocks []block
	at     int  // the current states
	last   int  // the row of a context that is the newest
	run    int  // number of runs
	stale  bool // a and taps are older than the weights
}

// block is what a Step has for each block.
type block struct {
	scan *kernel.ScanStep
	taps []float32 // (width, channels): tap 0 reads the step itself
	// context is a ring of rows (width, batch, channels): the convolution's inputs of the last width-1 steps, and a row for the next step.
	context []float32
	// states has what a scan reads and writes, in the order in which it goes through it: (strips, 1 + 2·batch, state, lanes), A and the states of each sequence
	// before and after a step, in turn. Of many short arrays the processor would prefetch little.
	states []float32
}

// The phases of a block.
const (
	inPhase   = iota // norm, in_proj, convolution
	xPhase           // x_proj
	scanPhase        // dt_proj, scan
	outPhase         // out_proj
	phases
)

// worker is the memory of a goroutine.
type worker struct {
	kernel.ScanStepper
	input    []float32 // (batch, the widest input): what a product reads
	scratch  []float32 // of the activations of a product
	prepared blas.Prepared
	key      int // the phase of the run that prepared is for

	taps, inputs [][]float32
}

// New returns a Step with states of zeros.
func New(cfg Config) *Step {
	s := &Step{Config: cfg, stale: true}
	b, c := cfg.Batch, cfg.Channels
	s.x, s.vz, s.u, s.rbc = make([]float32, b*cfg.Model), make([]float32, 2*b*c), make([]float32, b*c), make([]float32, b*s.columns())
	s.delta, s.s, s.logits = make([]float32, b*c), make([]float32, b*c), make([]float32, b*cfg.Head.Outputs())
	strips, taps, context := kernel.Strips(c)*s.stride(), c*cfg.Width, cfg.Width*b*c
	memory := make([]float32, len(cfg.Blocks)*(strips+taps+context))
	size.HugePages(memory)
	for _, w := range cfg.Blocks {
		of := block{states: memory[:strips], taps: memory[strips:][:taps], context: memory[strips+taps:][:context]}
		memory = memory[strips+taps+context:]
		of.scan = kernel.NewScanStep(c, cfg.State, w.D, w.DtBias, of.states, s.stride())
		s.blocks = append(s.blocks, of)
	}
	s.most = s.mostProcessors()
	s.walk = work.NewWalk(s.newWorker, s.task, s.ahead)
	return s
}

func (c *Config) columns() int { return c.Rank + 2*c.State }

// stride returns the number of elements of a strip of a block's states.
func (c *Config) stride() int { return kernel.StripSize(c.State) * (1 + 2*c.Batch) }

// strips returns what the scan of the channels [from, to) reads and writes.
func (s *Step) strips(b *block, from, to int) []float32 {
	return b.states[from/granule*s.stride() : parts(to, granule)*s.stride()]
}

// state returns the strips of a sequence's state before a step, or after it if after is 1.
func (s *Step) state(b *block, row, after int) []float32 {
	return b.states[kernel.StripSize(s.State)*(1+2*row+(s.at+after)%2):]
}

func (s *Step) newWorker() *worker {
	scratch := s.Head.Scratch(s.Batch)
	for _, b := range s.Blocks {
		for _, w := range []*blas.Weights{b.InProj, b.XProj, b.DtProj, b.OutProj} {
			scratch = max(scratch, w.Scratch(s.Batch))
		}
	}
	return &worker{
		input: make([]float32, s.Batch*s.Model), scratch: make([]float32, scratch),
		taps: make([][]float32, s.Width), inputs: make([][]float32, s.Width),
	}
}

// Refresh makes the next step look at the weights that a Step keeps in another layout: A_log and the convolution's. Call it after weights may
// have changed.
func (s *Step) Refresh() { s.stale = true }

// Logits returns the logits (batch, vocabulary) of the last Read. The next Read overwrites them.
func (s *Step) Logits() []float32 { return s.logits }

// Best returns the token of the largest logit of a sequence after the last Read, the lowest of several, or -1 if the largest is infinite or a logit is NaN.
func (s *Step) Best(row int) int {
	logits := s.logits[row*s.Head.Outputs():]
	best := s.best[row]
	for at := row; at < len(s.best); at += s.Batch {
		if s.best[at] < 0 {
			return -1
		}
		if logits[s.best[at]] > logits[best] {
			best = s.best[at]
		}
	}
	if math.IsInf(float64(logits[best]), 0) {
		return -1
	}
	return best
}

// largest returns the index of the largest number of v[from:to], the lowest of several, or -1 if one is NaN.
func largest(v []float32, from, to int) int {
	best := from
	for i, x := range v[from:to] {
		if x > v[best] {
			best = from + i
		} else if x != x {
			return -1
		}
	}
	return best
}

// Read reads a token for each sequence, all in the vocabulary, and computes the logits of the next ones.
func (s *Step) Read(tokens []int) {
	s.run++
	if procs := min(runtime.GOMAXPROCS(0), s.most); procs != s.procs {
		s.procs = procs
		s.cutTasks()
	}
	if s.stale {
		s.stale = false
		work.Parallel(len(s.blocks), func(i int) { s.refresh(i) })
	}
	for i, token := range tokens {
		s.Embedding.Row(token, s.x[i*s.Model:(i+1)*s.Model])
	}
	s.walk.Run(s.tasks, s.procs)
}

// Commit makes the states after the last Read the current ones.
func (s *Step) Commit() {
	s.at = 1 - s.at
	s.last = (s.last + 1) % s.Width
}

func (s *Step) refresh(i int) {
	b, w := &s.blocks[i], &s.Blocks[i]
	b.scan.SetA(w.ALog, 0, kernel.Strips(s.Channels))
	for d := range s.Channels {
		for k := range s.Width {
			b.taps[k*s.Channels+d] = w.Conv[d*s.Width+s.Width-1-k]
		}
	}
}

// granule is the unit in which outputs are cut into tasks: a cache line of results, and a strip of a scan.
const granule = kernel.StripLanes

// unit returns the unit of a phase: less than a granule where there would be few tasks.
func unit(phase int) int {
	switch phase % phases {
	case xPhase:
		return 1
	case outPhase:
		return granule / 2
	}
	return granule
}

// mostProcessors returns the largest number of processors for a step: few for a small model, where to wait for each other takes longer than what they gain.
func (s *Step) mostProcessors() int {
	const least = 1 << 17 // bytes of a block's weights for a processor, times the sequences
	bytes := 0
	for phase := range phases*len(s.Blocks) + 1 {
		bytes += s.weights(phase).Bytes()
	}
	return max(1, bytes/(len(s.Blocks)+1)*s.Batch/least)
}

// cutTasks cuts the phases into tasks. That depends on the number of processors. The results do not. A processor's share of a long phase is several tasks,
// so that those that are faster take tasks of others: the processors of a server do not get the same share of the memory's speed.
func (s *Step) cutTasks() {
	s.tasks, s.cuts = s.tasks[:0], s.cuts[:0]
	for phase := range phases*len(s.Blocks) + 1 {
		const least, last = 1 << 14, 1 << 16 // bytes of a task: a few µs, and of the last of several for a processor
		w, unit, each := s.weights(phase), unit(phase), 1
		bytes := w.Bytes()
		n := min(parts(w.Outputs(), unit), bytes/least)
		if phase%phases == scanPhase {
			n = kernel.Strips(s.Channels)
			bytes += 4 * len(s.blocks[0].states)
		}
		if s.procs > 1 {
			for bytes/s.procs>>each >= last && parts(w.Outputs(), unit)/s.procs>>each > 0 {
				each++
			}
		}
		n = max(1, min(n, s.procs*each))
		var c cut
		for i := phase % phases; i < phase && c == nil; i += phases { // blocks have the same cuts, unless their types differ
			if s.tasks[i] == n && s.weights(i).Outputs() == w.Outputs() {
				c = s.cuts[i]
			}
		}
		if c == nil {
			c = newCut(w.Outputs(), unit, n, each)
		}
		s.tasks, s.cuts = append(s.tasks, n), append(s.cuts, c)
	}
	s.best = make([]int, s.tasks[len(s.tasks)-1]*s.Batch)
}

func parts(n, size int) int { return (n + size - 1) / size }

// cut is how the outputs of a phase are cut into tasks: task i has the outputs [cut[i], cut[i+1]).
type cut []int

// newCut cuts outputs into shares of some tasks each, if their number is a multiple of it. A task is half of what is left of its share: a product is fastest in
// large parts, and small ones at the end make the processors end together.
func newCut(outputs, unit, tasks, each int) cut {
	if tasks%each != 0 {
		each = 1
	}
	c, units, shares := make(cut, tasks+1), parts(outputs, unit), tasks/each
	for i := range c {
		from, to := units*(i/each)/shares, units*(i/each+1)/shares
		c[i] = min((to-(to-from)>>(i%each))*unit, outputs)
	}
	return c
}

// task returns the outputs of task i.
func (c cut) task(i int) (from, to int) { return c[i], c[i+1] }

// first returns the outputs of the first task of a place's share.
func (s *Step) first(phase, place int) (from, to int) {
	first, last := work.Share(s.tasks[phase], place, s.procs)
	return s.cuts[phase][first], s.cuts[phase][min(first+1, last)]
}

// context returns the row of a ring that is k steps before the newest, or the row for the next step if k is -1.
func (s *Step) context(b *block, k int) []float32 {
	n := s.Batch * s.Channels
	return b.context[(s.last-k+s.Width)%s.Width*n:][:n]
}

func (s *Step) task(w *worker, phase, i int) {
	key := s.run*len(s.tasks) + phase
	first := w.key != key // the worker's first task of the phase
	w.key = key
	if phase == len(s.tasks)-1 {
		if first {
			w.prepared = s.normed(w, s.Head, s.Norm)
		}
		from, to := s.cuts[phase].task(i)
		vocabulary := s.Head.Outputs()
		s.Head.MulRange(s.logits, vocabulary, w.prepared, from, to, false)
		for row := range s.Batch { // while they are in this processor's cache
			s.best[i*s.Batch+row] = largest(s.logits[row*vocabulary:], from, to)
		}
		return
	}
	weights, b := &s.Blocks[phase/phases], &s.blocks[phase/phases]
	switch phase % phases {
	case inPhase:
		if first {
			w.prepared = s.normed(w, weights.InProj, weights.Norm)
		}
		from, to := s.cuts[phase].task(i)
		s.in(w, weights, b, from, to)
	case xPhase:
		if first {
			w.prepared = weights.XProj.Prepare(s.u, s.Channels, s.Batch, w.scratch)
		}
		from, to := s.cuts[phase].task(i)
		weights.XProj.MulRange(s.rbc, s.columns(), w.prepared, from, to, false)
	case scanPhase:
		if first {
			w.prepared = weights.DtProj.Prepare(s.rbc, s.columns(), s.Batch, w.scratch)
		}
		from, to := s.cuts[phase].task(i)
		weights.DtProj.MulRange(s.delta, s.Channels, w.prepared, from, to, false)
		if s.most > 1 { // else a small model, whose states are in the cache. The scan alone would wait for each strip.
			work.FetchAll(s.strips(b, from, to))
		}
		s.scan(w, b, from/granule, parts(to, granule))
	case outPhase:
		if first {
			w.prepared = weights.OutProj.Prepare(s.s, s.Channels, s.Batch, w.scratch)
		}
		from, to := s.cuts[phase].task(i)
		if weights.OutBias != nil {
			s.addBias(s.x, weights.OutBias, s.Model, from, to)
		}
		weights.OutProj.MulRange(s.x, s.Model, w.prepared, from, to, true)
	}
}

// ahead fetches a part of what the first task of a place's share reads, and reports whether there is more to fetch.
func (s *Step) ahead(_ *worker, phase, place, part int) bool {
	const most = 1 << 18 / work.FetchBytes // parts: a piece of the second-level cache
	weights := s.weights(phase)
	from, to := s.first(phase, place)
	if n := weights.FetchParts(to - from); part < n {
		weights.Fetch(from, to, part)
		return part < most
	} else if part -= n; phase%phases != scanPhase {
		return false
	}
	v := s.strips(&s.blocks[phase/phases], from, to)
	work.Fetch(v, part)
	return part < min(most, work.FetchParts(v))
}

// weights returns the weights of a phase.
func (s *Step) weights(phase int) *blas.Weights {
	if phase == phases*len(s.Blocks) {
		return s.Head
	}
	b := &s.Blocks[phase/phases]
	return [phases]*blas.Weights{b.InProj, b.XProj, b.DtProj, b.OutProj}[phase%phases]
}

// normed returns the norm of the residual stream, prepared for weights.
func (s *Step) normed(w *worker, weights *blas.Weights, norm []float32) blas.Prepared {
	n := kernel.RMSNorm[float32]{Channels: s.Model, Eps: s.Eps, X: s.x, Weight: norm}
	n.ForwardRows(w.input, 0, s.Batch)
	return weights.Prepare(w.input, s.Model, s.Batch, w.scratch)
}

func (s *Step) addBias(y, bias []float32, width, from, to int) {
	for row := range s.Batch {
		kernel.AddTo(y[row*width+from:row*width+to], bias[from:to])
	}
}

// in computes the outputs [from, to) of in_proj, and of the convolution where they are its inputs.
func (s *Step) in(w *worker, weights *Block, b *block, from, to int) {
	weights.InProj.MulRange(s.vz, 2*s.Channels, w.prepared, from, to, false)
	if weights.InBias != nil {
		s.addBias(s.vz, weights.InBias, 2*s.Channels, from, to)
	}
	if to = min(to, s.Channels); from < to {
		s.conv(w, weights, b, from, to)
	}
}

// conv computes the convolution of the channels [from, to).
func (s *Step) conv(w *worker, weights *Block, b *block, from, to int) {
	var bias []float32
	if weights.ConvBias != nil {
		bias = weights.ConvBias[from:to]
	}
	for row := range s.Batch {
		at := row * s.Channels
		copy(s.context(b, -1)[at+from:at+to], s.vz[2*at+from:])
		for k := range s.Width {
			w.taps[k] = b.taps[k*s.Channels+from:][:to-from]
			w.inputs[k] = s.context(b, k-1)[at+from : at+to]
		}
		kernel.ConvStep(s.u[at+from:at+to], bias, w.taps, w.inputs)
	}
}

// scan computes the strips [from, to).
func (s *Step) scan(w *worker, b *block, from, to int) {
	const strips = 8 // whose A stays in the first-level cache for all sequences
	for ; from < to; from += strips {
		for row := range s.Batch {
			at, bc := row*s.Channels, s.rbc[row*s.columns()+s.Rank:][:2*s.State]
			r := kernel.ScanStepRow{
				U: s.u[at : at+s.Channels], Delta: s.delta[at : at+s.Channels], Z: s.vz[2*at+s.Channels : 2*at+2*s.Channels], Y: s.s[at : at+s.Channels],
				B: bc[:s.State], C: bc[s.State:], Before: s.state(b, row, 0), After: s.state(b, row, 1),
			}
			b.scan.Advance(&w.ScanStepper, &r, from, min(from+strips, to))
		}
	}
}

// LoadState sets the state of one sequence before block i: context (width-1, channels), from the oldest to the newest, and scan (channels, state).
// nil stands for zeros.
func (s *Step) LoadState(row, i int, context, scan []float32) {
	b := &s.blocks[i]
	if to := s.state(b, row, 0); scan == nil {
		for at := range kernel.Strips(s.Channels) {
			clear(to[at*s.stride():][:kernel.StripSize(s.State)])
		}
	} else {
		b.scan.LayState(to, scan)
	}
	for k := range s.Width - 1 {
		if to := s.context(b, k)[row*s.Channels:][:s.Channels]; context == nil {
			clear(to)
		} else {
			copy(to, context[(s.Width-2-k)*s.Channels:])
		}
	}
}

// StoreState copies the state of one sequence to context and scan, as LoadState has them.
func (s *Step) StoreState(row, i int, context, scan []float32) {
	b := &s.blocks[i]
	b.scan.UnlayState(scan, s.state(b, row, 0))
	for k := range s.Width - 1 {
		copy(context[(s.Width-2-k)*s.Channels:][:s.Channels], s.context(b, k)[row*s.Channels:])
	}
}
