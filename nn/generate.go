package nn

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/gomamba/mamba/internal/work"
)

// GenerateConfig holds the options of a Generator. A zero field stands for the default.
type GenerateConfig struct {
	Sampling // how a token is chosen; greedy by default

	MaxTokens  int    // maximum number of tokens that a call adds to a sequence; required
	StopTokens []int  // a sequence ends after any of these tokens; none by default
	Seed       uint64 // seed of the random choices; prompt i of Generate has the seed Seed+i
	Piece      int    // maximum number of tokens of a prompt that one run reads; 512 by default, 2048 on a device
}

// Generator continues prompts. It reads them in parallel, and then generates one token after another, at a cost in time and memory
// per token that does not grow with the length.
//
// It uses the model's weights without copying them, so each call sees every change before it. One goroutine may use a Generator at a time;
// a second one gets an error. Several Generators may use one model at the same time.
type Generator struct {
	lm       *LM // nil once closed
	cfg      GenerateConfig
	samplers samplers

	mu          sync.Mutex
	step        *reader // for one token of each sequence of the last batch
	piece, rest *reader // for whole pieces of a prompt, and for its last, shorter piece
}

// NewGenerator returns a Generator. An invalid model or option is an error that names it, and so is a model that has a layer
// without a state of fixed size, such as attention without a window.
func NewGenerator(lm *LM, cfg GenerateConfig) (*Generator, error) {
	if err := lm.steps(); err != nil {
		return nil, err
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Piece == 0 {
		cfg.Piece = 512 // long enough for the matrix products, and short enough to be interrupted soon
		if !lm.Params().Place().OnHost() {
			cfg.Piece = 2048
		}
	}
	if cfg.MaxTokens < 1 {
		return nil, fmt.Errorf("nn: MaxTokens is %d, want at least 1", cfg.MaxTokens)
	}
	if cfg.Piece < 1 {
		return nil, fmt.Errorf("nn: Piece is %d, want at least 1, or 0 for the default", cfg.Piece)
	}
	if i := outside(cfg.StopTokens, lm.cfg.Vocab); i >= 0 {
		return nil, fmt.Errorf("nn: StopTokens[%d] is %d, want 0 to %d", i, cfg.StopTokens[i], lm.cfg.Vocab-1)
	}
	cfg.StopTokens = slices.Clone(cfg.StopTokens)
	return &Generator{lm: lm, cfg: cfg}, nil
}

// enter locks the Generator for a call. If it returns nil, the caller must call g.mu.Unlock.
func (g *Generator) enter() error {
	switch {
	case g == nil:
		return errClosed
	case !g.mu.TryLock():
		return errInUse
	case g.lm == nil:
		g.mu.Unlock()
		return errClosed
	}
	return nil
}

// Generate continues prompts of any lengths, at least one token each. It returns the new tokens of each prompt: MaxTokens of them,
// or fewer if the last one is a stop token. Each, unless it is nil, is called with the index of a prompt and a token, for every
// token as soon as it is chosen.
//
// The prompts are continued together, as a batch. Each of them is read by itself, so there is no padding. A prompt gives what it
// gives alone, as NewSequence(Seed+i, prompt...): bit for bit with package blas and up to 24 prompts, and up to the rounding of the
// matrix products otherwise.
//
// When the context ends, or each returns an error, Generate returns the tokens so far and that error. It checks the context between
// steps, and between pieces of a prompt. A prompt that is empty or has a token outside the vocabulary is an error before anything
// is computed.
func (g *Generator) Generate(ctx context.Context, prompts [][]int, each func(prompt, token int) error) ([][]int, error) {
	var seed uint64
	if g != nil { // Continue returns the error of a nil Generator
		seed = g.cfg.Seed
	}
	sequences := make([]*Sequence, len(prompts))
	for i, p := range prompts {
		sequences[i] = NewSequence(seed+uint64(i), p...)
		sequences[i].once = true
	}
	return g.Continue(ctx, sequences, each)
}

// Continue is Generate for sequences. Each sequence is then after its new tokens, and a later call continues from there.
//
// After an error too, a later call continues from there. A sequence is then after the last step in which all sequences of the batch
// chose a token, or after the last piece of its prompt that was read; it has the state, the pending tokens, the random source and
// the set of seen tokens of that moment. A sequence that does not fit the model is an error before anything is computed.
func (g *Generator) Continue(ctx context.Context, sequences []*Sequence, each func(sequence, token int) error) ([][]int, error) {
	if err := g.enter(); err != nil {
		return nil, fmt.Errorf("nn: generate: the generator is %w", err)
	}
	defer g.mu.Unlock()
	if ctx == nil {
		return nil, fmt.Errorf("nn: generate: the context is missing, want one such as context.Background()")
	}
	for i, s := range sequences {
		switch {
		case s == nil:
			return nil, fmt.Errorf("nn: generate: sequence %d is missing, want one that NewSequence returned", i)
		case slices.Contains(sequences[:i], s):
			return nil, fmt.Errorf("nn: generate: sequence %d is sequence %d again, want a Clone", i, slices.Index(sequences, s))
		case !s.using.TryLock():
			return nil, fmt.Errorf("nn: generate: sequence %d is %w", i, errInUse)
		}
		defer s.using.Unlock()
		if err := s.fits(g.lm); err != nil {
			return nil, fmt.Errorf("nn: generate: sequence %d %w", i, err)
		}
	}
	for _, s := range sequences {
		for _, token := range s.pending {
			s.seen.add(token) // Append did it before, but a file may lack it
		}
	}
	tokens := make([][]int, len(sequences))
	active := make([]int, len(sequences))
	for i := range active {
		active[i] = i
	}
	for len(active) > 0 {
		for _, i := range active {
			if err := sequences[i].fits(g.lm); err != nil { // each may have appended anything
				return tokens, fmt.Errorf("nn: generate: sequence %d %w", i, err)
			}
		}
		var err error
		if active, err = g.run(ctx, sequences, active, tokens, each); err != nil {
			return tokens, err
		}
	}
	return tokens, nil
}

// prefill reads all pending tokens of a sequence but the last, one piece at a time, and sets a row of a reader, which is zeros, to the state after them. It
// computes no logits: the step that reads the last token computes the logits of the next token. On a device the state stays there, and
// read is the number of tokens that the row has read and the sequence has not. After an error the sequence is after the last piece that was
// read.
func (g *Generator) prefill(ctx context.Context, s *Sequence, to *reader, row int) (read int, err error) {
	var last *reader // has read the last piece
	defer func() {
		if read == 0 || err == nil && last.decoding != nil {
			return
		}
		if wrong := last.bringState(); wrong != nil {
			err = errors.Join(err, fmt.Errorf("nn: generate: %w", wrong))
		} else {
			s.store(last, 0, read)
		}
		read = 0
	}()
	for len(s.pending)-read > 1 {
		if err := ctx.Err(); err != nil {
			return read, err
		}
		if read == 0 && readOnHost(g.lm, []*Sequence{s}, g.cfg.Piece) {
			continue
		}
		n := min(len(s.pending)-read-1, g.cfg.Piece)
		kept := &g.rest
		if n == g.cfg.Piece {
			kept = &g.piece
		}
		r, err := g.reader(kept, 1, n, false)
		if err != nil {
			return read, err
		}
		if last == nil {
			err = s.load(r, 0)
		} else if last != r {
			err = r.take(0, last, 0, 1)
		}
		if err == nil {
			err = r.read(s.pending[read : read+n])
		}
		if err != nil {
			return read, fmt.Errorf("nn: generate: %w", err)
		}
		r.commit()
		last, read = r, read+n
	}
	switch {
	case last != nil:
		err = to.take(row, last, 0, 1)
	case s.state != nil || s.kept != nil:
		err = s.load(to, row)
	}
	if err != nil {
		return read, fmt.Errorf("nn: generate: %w", err)
	}
	return read, nil
}

// reader returns a reader of the size, the kept one if it has that size.
func (g *Generator) reader(kept **reader, batch, length int, logits bool) (*reader, error) {
	if r := *kept; r != nil {
		if r.batch() == batch && r.length() == length {
			return r, nil
		}
		*kept = nil
		if err := r.close(); err != nil {
			return nil, fmt.Errorf("nn: generate: %w", err)
		}
	}
	r, err := newReader(g.lm, batch, length, logits)
	*kept = r
	return r, err
}

// run reads the pending tokens of the active sequences and generates tokens. It returns when a sequence ends, or has got other pending tokens
// from each. The result are the sequences that have not ended.
//
// A sequence is consistent at any time, for each to look at and after any error: a token is appended to its pending tokens when it is
// chosen, and removed when the state that has read it is stored.
func (g *Generator) run(ctx context.Context, sequences []*Sequence, active []int, tokens [][]int, each func(sequence, token int) error) (left []int, err error) {
	r, err := g.reader(&g.step, len(active), 1, true)
	if err != nil {
		return nil, err
	}
	steps, read := 0, make([]int, len(active)) // tokens that the reader has read: all rows together, and before these each row by itself
	defer func() {
		if steps == 0 && !slices.ContainsFunc(read, func(n int) bool { return n > 0 }) {
			return
		}
		if len(left) == 0 && !slices.ContainsFunc(active, func(i int) bool { return !sequences[i].once }) {
			return // nobody reads the states, whose copy can take longer than the steps
		}
		if wrong := r.bringState(); wrong != nil {
			err = errors.Join(err, fmt.Errorf("nn: generate: %w", wrong))
			return
		}
		for row, i := range active {
			if read[row]+steps > 0 {
				sequences[i].store(r, row, read[row]+steps)
			}
		}
	}()
	if slices.ContainsFunc(active, func(i int) bool { return sequences[i].state == nil }) {
		if err := r.zero(); err != nil { // all rows at once: a fill for each state of each row would take as long as half the steps of a short call
			return nil, fmt.Errorf("nn: generate: %w", err)
		}
	}
	for row, i := range active {
		if read[row], err = g.prefill(ctx, sequences[i], r, row); err != nil {
			return nil, err
		}
	}
	r.chooseGreedily(g.cfg.takesLargest())
	r.refresh()
	last, chosen := make([]int, len(active)), make([]choice, len(active))
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for row, i := range active {
			last[row] = sequences[i].pending[read[row]+steps]
		}
		r.expectMore(!slices.ContainsFunc(active, func(i int) bool { return len(tokens[i])+1 >= g.cfg.MaxTokens }))
		if err := r.read(last); err != nil {
			return nil, fmt.Errorf("nn: generate: %w", err)
		}
		g.samplers.next(r, chosen, func(row int) (*Sequence, Sampling) { return sequences[active[row]], g.cfg.Sampling })
		for row, i := range active {
			if wrong := chosen[row].err; wrong != nil {
				err = errors.Join(err, fmt.Errorf("nn: generate: sequence %d: %w", i, wrong))
			}
		}
		if err != nil {
			return nil, err
		}
		r.commit()
		steps++
		for row, i := range active {
			sequences[i].take(chosen[row])
			tokens[i] = append(tokens[i], chosen[row].token)
		}
		more := false
		for row, i := range active {
			token := chosen[row].token
			if each != nil {
				if err := each(i, token); err != nil {
					return nil, err
				}
			}
			if len(tokens[i]) < g.cfg.MaxTokens && !slices.Contains(g.cfg.StopTokens, token) {
				left = append(left, i)
			}
		}
		for row, i := range active {
			more = more || len(sequences[i].pending) > read[row]+steps+1
		}
		if more || len(left) < len(active) {
			return left, nil
		}
		left = left[:0]
	}
}

// choice is a token and the sequence's random source after it was drawn, or an error.
type choice struct {
	token  int
	random rand.PCG
	err    error
}

// samplers lends a sampler to each goroutine that chooses tokens.
type samplers struct {
	mu   sync.Mutex
	free []*sampler
}

// next sets chosen to the next token of each of the first rows of a reader: that of the sequence in the row, with the Sampling that of returns. It
// leaves the sequences as they are.
func (p *samplers) next(r *reader, chosen []choice, of func(row int) (*Sequence, Sampling)) {
	size := max(1, 1<<13/r.lm.cfg.Vocab) // rows whose choice takes longer than to let another goroutine begin
	if r.chosen() {
		size = len(chosen)
	}
	work.ParallelRange(len(chosen), size, func(from, to int) {
		m := p.take()
		defer p.give(m)
		for row := from; row < to; row++ {
			var s *Sequence
			s, m.Sampling = of(row)
			chosen[row] = m.next(r, row, s)
		}
	})
}

func (p *samplers) take() *sampler {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.free) - 1
	if last < 0 {
		return new(sampler)
	}
	m := p.free[last]
	p.free = p.free[:last]
	return m
}

func (p *samplers) give(m *sampler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, m)
}

// next returns the next token of the sequence in a row of a reader.
func (m *sampler) next(r *reader, row int, s *Sequence) (c choice) {
	c.random = s.random
	var best bool
	if c.token, best, c.err = r.best(row); best || c.err != nil {
		return c
	}
	vocab := r.lm.cfg.Vocab
	switch d := r.out.logits.Data().(type) {
	case []float32:
		c.token, c.err = choose(m, d[row*vocab:(row+1)*vocab], s.seen, s.chosen, &c.random)
	case []float64:
		c.token, c.err = choose(m, d[row*vocab:(row+1)*vocab], s.seen, s.chosen, &c.random)
	}
	return c
}

// Close frees the graphs and the memory on a device. Calls after Close return an error, a second Close too.
func (g *Generator) Close() error {
	if err := g.enter(); err != nil {
		return fmt.Errorf("nn: close: the generator is %w", err)
	}
	defer g.mu.Unlock()
	g.lm = nil
	var errs []error
	for _, r := range []*reader{g.step, g.piece, g.rest} {
		if r != nil {
			errs = append(errs, r.close())
		}
	}
	g.step, g.piece, g.rest = nil, nil, nil
	return errors.Join(errs...)
}
