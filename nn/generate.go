package nn

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// GenerateConfig says how a Generator goes on from a prompt. A zero field stands for the default.
type GenerateConfig struct {
	Sampling // how a token is chosen; greedy by default

	MaxTokens  int    // the most tokens that a call adds to a sequence; required
	StopTokens []int  // a sequence ends behind any of these; none by default
	Seed       uint64 // of the random choices: the i-th prompt of Generate has the seed Seed+i
	Piece      int    // tokens of a prompt that are read at once, in a graph of that length; 512
}

// Generator goes on from prompts: it reads them in parallel, and then generates one token after another, at a cost in time
// and memory that does not grow with the length.
//
// It uses the model's weights without copying them, and so sees every change to them. It is not safe for concurrent use;
// several Generators may use one model at a time.
type Generator struct {
	lm  *LM
	cfg GenerateConfig
	sampler

	step        *reader // of one token, for the last batch
	piece, rest *reader // of whole pieces of a prompt, and of the last shorter one
}

// NewGenerator returns a Generator. What is wrong with the model or the options is an error that names it.
func NewGenerator(lm *LM, cfg GenerateConfig) (*Generator, error) {
	if err := lm.Err(); err != nil {
		return nil, err
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Piece == 0 {
		cfg.Piece = 512 // long enough for the matrix products, and short enough to be interrupted soon
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
	return &Generator{lm: lm, cfg: cfg, sampler: sampler{Sampling: cfg.Sampling}}, nil
}

// Generate goes on from prompts of any lengths, at least one token each, and returns the new tokens of each: MaxTokens, or
// fewer that end with a stop token. Each, unless it is nil, is called with every token as soon as it is chosen, and the
// index of its prompt.
//
// The prompts go on together, as a batch. Each of them is read by itself, so that there is no padding, and gives what it
// gives alone, as NewSequence(Seed+i, prompt...): bit for bit with package blas and up to 24 prompts, and otherwise up to
// the rounding of the matrix products.
//
// When the context ends, or each returns an error, Generate returns the tokens so far with that error; it looks at the
// context between steps, and between pieces of a prompt. A prompt that is empty or has a token outside the vocabulary is an
// error, before anything is computed.
func (g *Generator) Generate(ctx context.Context, prompts [][]int, each func(prompt, token int) error) ([][]int, error) {
	sequences := make([]*Sequence, len(prompts))
	for i, p := range prompts {
		sequences[i] = NewSequence(g.cfg.Seed+uint64(i), p...)
	}
	return g.Continue(ctx, sequences, each)
}

// Continue is Generate for sequences, which it leaves behind their new tokens, or behind what was read and generated before
// an error: a later call goes on from there. A sequence that does not fit the model is an error, before anything is
// computed.
func (g *Generator) Continue(ctx context.Context, sequences []*Sequence, each func(sequence, token int) error) ([][]int, error) {
	for i, s := range sequences {
		if slices.Contains(sequences[:i], s) {
			return nil, fmt.Errorf("nn: generate: sequence %d is sequence %d again, want a Clone", i, slices.Index(sequences, s))
		}
		if err := s.fits(g.lm); err != nil {
			return nil, fmt.Errorf("nn: generate: sequence %d %w", i, err)
		}
	}
	tokens := make([][]int, len(sequences))
	for _, s := range sequences {
		for _, token := range s.pending {
			s.seen.add(token)
		}
	}
	for _, s := range sequences {
		if err := g.prefill(ctx, s); err != nil {
			return tokens, err
		}
	}
	active := make([]int, len(sequences))
	for i := range active {
		active[i] = i
	}
	for len(active) > 0 {
		var err error
		if active, err = g.run(ctx, sequences, active, tokens, each); err != nil {
			return tokens, err
		}
	}
	return tokens, nil
}

// prefill reads all pending tokens of a sequence but the last, a piece at a time. No logits are computed: what comes behind
// the last token is left to the step that reads it.
func (g *Generator) prefill(ctx context.Context, s *Sequence) error {
	for len(s.pending) > 1 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(s.pending)-1, g.cfg.Piece)
		to := &g.rest
		if n == g.cfg.Piece {
			to = &g.piece
		}
		r, err := g.reader(to, 1, n, false)
		if err != nil {
			return err
		}
		s.load(r, 0)
		if err := r.read(s.pending[:n]); err != nil {
			return fmt.Errorf("nn: generate: %w", err)
		}
		if err := s.store(r, 0); err != nil {
			return fmt.Errorf("nn: generate: %w", err)
		}
		s.pending = s.pending[n:]
	}
	s.pending = slices.Clip(slices.Clone(s.pending)) // lets go of a long prompt
	return nil
}

// reader returns a reader of the size, the one that is kept if it has it.
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

// run generates tokens of the active sequences until one of them ends, and returns those that have not.
func (g *Generator) run(ctx context.Context, sequences []*Sequence, active []int, tokens [][]int, each func(sequence, token int) error) (left []int, err error) {
	r, err := g.reader(&g.step, len(active), 1, true)
	if err != nil {
		return nil, err
	}
	for row, i := range active {
		sequences[i].load(r, row)
	}
	defer func() {
		for row, i := range active {
			if wrong := sequences[i].store(r, row); wrong != nil {
				err = errors.Join(err, fmt.Errorf("nn: generate: sequence %d: %w", i, wrong))
			}
		}
	}()
	r.chooseGreedily(g.takesLargest())
	last := make([]int, len(active))
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for row, i := range active {
			last[row] = sequences[i].pending[0]
		}
		if err := r.read(last); err != nil {
			return nil, fmt.Errorf("nn: generate: %w", err)
		}
		// All choose before anyone is told, who may want to stop: the logits are there but once.
		for row, i := range active {
			token, wrong := g.choose(r, row, sequences[i])
			if wrong != nil {
				err = errors.Join(err, fmt.Errorf("nn: generate: sequence %d: %w", i, wrong))
				continue
			}
			tokens[i] = append(tokens[i], token)
		}
		if err != nil {
			return nil, err
		}
		for _, i := range active {
			token := tokens[i][len(tokens[i])-1]
			if each != nil {
				if err := each(i, token); err != nil {
					return nil, err
				}
			}
			if len(tokens[i]) < g.cfg.MaxTokens && !slices.Contains(g.cfg.StopTokens, token) {
				left = append(left, i)
			}
		}
		if len(left) < len(active) {
			return left, nil
		}
		left = left[:0]
	}
}

// choose chooses the next token of the sequence in a row of a reader.
func (g *Generator) choose(r *reader, row int, s *Sequence) (token int, err error) {
	s.pending = s.pending[:0]
	token, ok, err := r.best(row)
	if err != nil {
		return 0, err
	}
	vocab := g.lm.cfg.Vocab
	switch d := r.logits.Data().(type) {
	case []float32:
		if ok {
			break
		}
		token, err = choose(&g.sampler, d[row*vocab:(row+1)*vocab], s.seen, &s.random)
	case []float64:
		token, err = choose(&g.sampler, d[row*vocab:(row+1)*vocab], s.seen, &s.random)
	}
	if err != nil {
		return 0, err
	}
	s.pending = append(s.pending, token)
	s.seen.add(token)
	return token, nil
}

// Close frees what the Generator holds.
func (g *Generator) Close() error {
	var errs []error
	for _, r := range []*reader{g.step, g.piece, g.rest} {
		if r != nil {
			errs = append(errs, r.close())
		}
	}
	g.step, g.piece, g.rest = nil, nil, nil
	return errors.Join(errs...)
}
