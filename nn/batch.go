package nn

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/step"
)

// BatchConfig holds the options of a Batch. A zero field stands for the default.
type BatchConfig struct {
	Piece int // maximum number of tokens that one call of Read reads; 64 by default, 512 on a device
}

// Batch generates tokens for sequences that come and go, as a server needs it: sequences join and leave between any two steps, each with its own
// Sampling, and Read reads prompts in pieces between the steps of the others.
//
//	left, err := batch.Read(s, …)      // until no token is left to read
//	err = batch.Join(s, sampling)
//	err = batch.Step(func(s *Sequence, next Next) { … }) // one token for each sequence that has joined
//	err = batch.Leave(s)
//
// A sequence gets the tokens that a Generator with the same Piece gives it alone, whatever runs beside it: bit for bit on the host with package
// blas, and up to the rounding of the matrix products on a device.
//
// One goroutine may use a Batch at a time; a second one gets an error. It uses the model's weights without copying them. Change them only while
// no sequence is in the batch.
type Batch struct {
	lm       *LM // nil once closed
	piece    int
	samplers samplers

	mu      sync.Mutex
	chosen  []choice  // of the rows, by the last step
	rows    []member  // row i is row i%most of group i/most
	groups  []*reader // all but the last have most rows; the last can have more rows than sequences
	most    int
	spare   []*reader // groups of earlier numbers of sequences, the last one left last
	prompts []*reader // graphs for pieces of one prompt, the last one used last
}

// member is a sequence that has joined.
type member struct {
	*Sequence
	how  Sampling
	read int // pending tokens that the row has read and the sequence has not
}

const (
	// rowsAlike is the largest number of rows for which a product computes each row as it computes it alone, and a step is one job.
	rowsAlike = step.MostRows
	// A graph is made once for each number of tokens and each number of sequences. keptPrompts of the last ones are kept.
	keptPrompts = 32
	// mostTogether is the number of tokens of prompts that one graph on a device reads: more of them at once take no less time for each.
	mostTogether = 4096
	mostRows     = 64
	keptRows     = 4 * mostRows // of the graphs for prompts that are kept
)

// keptGroups returns the number of groups of earlier sizes that are kept.
func (b *Batch) keptGroups() int {
	if b.most > rowsAlike {
		return 8 // of 1, 2, 4, … 128 rows
	}
	return 4
}

// NewBatch returns a Batch without sequences. An invalid model or option is an error that names it, and so is a model that has a layer
// without a state of fixed size, such as attention without a window.
func NewBatch(lm *LM, cfg BatchConfig) (*Batch, error) {
	if err := lm.steps(); err != nil {
		return nil, err
	}
	if cfg.Piece < 0 {
		return nil, fmt.Errorf("nn: Piece is %d, want at least 1, or 0 for the default", cfg.Piece)
	}
	b := &Batch{lm: lm, piece: cfg.Piece, most: rowsAlike}
	host := lm.Params().Place().OnHost()
	if !host {
		b.most = 1 << 30
	}
	if b.piece == 0 {
		b.piece = 64 // as long as a step of some tens of sequences, which wait for it
		if !host {
			b.piece = 512
		}
	}
	return b, nil
}

// enter locks the Batch for a call. If it returns nil, the caller must call b.mu.Unlock.
func (b *Batch) enter(call string) error {
	err := errInUse
	switch {
	case b == nil:
		err = errClosed
	case !b.mu.TryLock():
	case b.lm == nil:
		b.mu.Unlock()
		err = errClosed
	default:
		return nil
	}
	return fmt.Errorf("nn: %s: the batch is %w", call, err)
}

// Len returns the number of sequences that have joined.
func (b *Batch) Len() int {
	if b == nil {
		return 0
	}
	return len(b.rows)
}

// Piece returns the maximum number of tokens that one call of Read reads. States after a multiple of it are those that a sequence with a longer
// prompt passes too.
func (b *Batch) Piece() int {
	if b == nil {
		return 0
	}
	return b.piece
}

// Read reads one piece of the pending tokens of each sequence, all but the last. It returns the number of tokens that are left to read before
// each can join. Pieces of several sequences share the matrix products, so that together they take less time than apart: on the host any, with the same results bit for bit;
// on a device those of sequences at their beginning whose lengths are not far apart, and those of the same length. After an error each sequence is as it was before the call, or after its piece. On a device the state stays
// there; its memory is free when the sequence is dropped, or some time after it is garbage. A sequence that does not fit the model is an error
// before anything is computed.
func (b *Batch) Read(sequences ...*Sequence) (left []int, err error) {
	if err := b.enter("read"); err != nil {
		return nil, err
	}
	defer b.mu.Unlock()
	if len(sequences) == 0 {
		sequences = []*Sequence{nil} // an error
	}
	for _, s := range sequences {
		if err := b.admits(s); err != nil {
			return nil, fmt.Errorf("nn: read: the sequence %w", err)
		}
		defer s.using.Unlock()
	}
	if !readOnHost(b.lm, sequences, b.piece) {
		if err := b.read(sequences); err != nil {
			return nil, fmt.Errorf("nn: read: %w", err)
		}
	}
	for _, s := range sequences {
		left = append(left, len(s.pending)-1)
	}
	return left, nil
}

// read reads a piece of each sequence with graphs.
func (b *Batch) read(sequences []*Sequence) error {
	if b.lm.Params().Place().OnHost() {
		for _, s := range sequences {
			if err := b.readPiece(s); err != nil {
				return err
			}
		}
		return nil
	}
	for len(sequences) > 0 {
		n, length, begins := b.pieceOf(sequences[0])
		var group, others []*Sequence
		for _, s := range sequences {
			if _, l, at := b.pieceOf(s); l == length && at == begins && len(group) < max(1, min(mostRows, mostTogether/max(length, 1))) {
				group = append(group, s)
			} else {
				others = append(others, s)
			}
		}
		if sequences = others; n == 0 {
			continue
		}
		if err := b.readTogether(group, length, begins); err != nil {
			return err
		}
	}
	return b.lm.Params().Place().Do(func(s *cuda.Stream) error { return s.Synchronize() })
}

// pieceOf returns the number of tokens of a sequence's next piece and the length of the graph that reads it on a device. The graph for sequences at their beginning has room for a longer piece,
// so that prompts of most lengths share few graphs.
func (b *Batch) pieceOf(s *Sequence) (n, length int, begins bool) {
	n = min(len(s.pending)-1, b.piece)
	if n == 0 || s.state != nil || s.kept != nil {
		return n, n, false
	}
	grain := max(16, 1<<bits.Len(uint(n-1))/4)
	return n, min((n+grain-1)/grain*grain, b.piece), true
}

// readTogether reads a piece of each sequence of a group on a device, with one run of a graph of this length. If the device lacks the memory for it, it reads the halves of the group.
func (b *Batch) readTogether(group []*Sequence, length int, begins bool) error {
	err := b.readGroup(group, length, begins)
	var memory *cuda.OutOfMemory
	if half := len(group) / 2; half > 0 && errors.As(err, &memory) {
		if err = b.readTogether(group[:half], length, begins); err == nil {
			err = b.readTogether(group[half:], length, begins)
		}
	}
	return err
}

func (b *Batch) readGroup(group []*Sequence, length int, begins bool) error {
	rows := 1
	for rows < len(group) {
		rows *= 4 // few sizes, so that their graphs are made once
	}
	r, err := kept(&b.prompts, keptPrompts, func(r *reader) bool { return r.batch() == rows && r.length() == length && (r.starts != nil) == begins },
		func() (*reader, error) {
			if begins {
				return newBeginningReader(b.lm, rows, length)
			}
			return newReader(b.lm, rows, length, false)
		})
	for total := 0; err == nil && len(b.prompts) > 1; total = 0 { // each row has the memory of two states
		for _, r := range b.prompts {
			total += r.batch()
		}
		if total <= keptRows {
			break
		}
		err = b.prompts[0].close()
		b.prompts = slices.Delete(b.prompts, 0, 1)
	}
	if err != nil {
		return err
	}
	tokens := make([]int, rows*length)
	clear(r.starts)
	for row, s := range group {
		n, _, _ := b.pieceOf(s)
		at := (row+1)*length - n // a sequence at its beginning is at the end of its row; what is before it is of no sequence
		copy(tokens[at:], s.pending[:n])
		if begins {
			r.starts[at] = 1
		} else if err := s.load(r, row); err != nil {
			return err
		}
	}
	if begins {
		if err = r.begin(); err != nil {
			return err
		}
	}
	if err = r.read(tokens); err != nil {
		return err
	}
	r.commit()
	after := make([]*keptState, len(group))
	for row := range group {
		if after[row], err = r.keep(row); err != nil {
			for _, k := range after[:row] {
				k.release()
			}
			return err
		}
	}
	for row, s := range group {
		n, _, _ := b.pieceOf(s)
		s.forget()
		s.kept = after[row]
		s.read(n)
	}
	return nil
}

// readPiece reads a piece of a sequence with a graph on the host.
func (b *Batch) readPiece(s *Sequence) error {
	n := min(len(s.pending)-1, b.piece)
	if n == 0 {
		return nil
	}
	r, err := kept(&b.prompts, keptPrompts, func(r *reader) bool { return r.length() == n }, func() (*reader, error) { return newReader(b.lm, 1, n, false) })
	if err == nil {
		err = s.load(r, 0)
	}
	if err == nil {
		err = r.read(s.pending[:n])
	}
	if err == nil {
		r.commit()
		s.store(r, 0, n)
	}
	return err
}

// admits locks a sequence that fits the model, or returns an error.
func (b *Batch) admits(s *Sequence) error {
	switch {
	case s == nil:
		return errors.New("is missing, want one that NewSequence returned")
	case !s.using.TryLock():
		return fmt.Errorf("is %w, or has joined a batch", errInUse)
	}
	if err := s.fits(b.lm); err != nil {
		s.using.Unlock()
		return err
	}
	for _, token := range s.pending {
		s.seen.add(token) // Append did it before, but a file may lack it
	}
	return nil
}

// kept returns a reader that fits from a list of the last ones used, or makes one. The list then ends with it.
func kept(list *[]*reader, most int, fits func(*reader) bool, newOne func() (*reader, error)) (*reader, error) {
	if i := slices.IndexFunc(*list, fits); i >= 0 {
		r := (*list)[i]
		*list = append(slices.Delete(*list, i, i+1), r)
		return r, nil
	}
	r, err := newOne()
	if err != nil {
		return nil, err
	}
	return r, keep(list, most, r)
}

// keep appends a reader to a list, and closes the first of the list if there are too many.
func keep(list *[]*reader, most int, r *reader) (err error) {
	if *list = append(*list, r); len(*list) > most {
		err = (*list)[0].close()
		*list = slices.Delete(*list, 0, 1)
	}
	return err
}

// Join adds a sequence with one pending token to the next step. Until it leaves, no other call may use it. It is an error if more tokens are
// pending, which Read has to read before, or if an option of how is out of its range.
func (b *Batch) Join(s *Sequence, how Sampling) error {
	if err := b.enter("join"); err != nil {
		return err
	}
	defer b.mu.Unlock()
	if err := how.check(); err != nil {
		return err
	}
	if err := b.admits(s); err != nil {
		return fmt.Errorf("nn: join: the sequence %w", err)
	}
	err := b.add(s, how)
	if err != nil {
		s.using.Unlock()
		err = fmt.Errorf("nn: join: %w", err)
	}
	return err
}

func (b *Batch) add(s *Sequence, how Sampling) error {
	if n := len(s.pending); n > 1 {
		return fmt.Errorf("the sequence has %d pending tokens, want 1: Read reads the others", n)
	}
	if err := b.resize(len(b.rows) + 1); err != nil {
		return err
	}
	r, row := b.at(len(b.rows))
	if len(b.rows) == 0 {
		for _, r := range append(b.spare, r) {
			r.refresh() // the weights may have changed
		}
	}
	if err := s.load(r, row); err != nil {
		return err
	}
	b.rows = append(b.rows, member{s, how, 0})
	return nil
}

// at returns the reader and its row of row i.
func (b *Batch) at(i int) (*reader, int) { return b.groups[i/b.most], i % b.most }

// resize makes groups for n rows. The last group gets room for an eighth more rows on average (on a device, a power of two), and becomes smaller when
// half of it is empty (on a device, two thirds), so that its size changes seldom.
func (b *Batch) resize(n int) error {
	for len(b.groups) > (n+b.most-1)/b.most {
		last := len(b.groups) - 1
		r := b.groups[last]
		b.groups = b.groups[:last]
		if err := keep(&b.spare, b.keptGroups(), r); err != nil {
			return err
		}
	}
	if n == 0 {
		return nil
	}
	group := (n - 1) / b.most
	rows := n - group*b.most
	for len(b.groups) <= group {
		b.groups = append(b.groups, nil)
	}
	old := b.groups[group]
	grain := max(1, (1<<bits.Len(uint(rows)))/8)
	size, shrinks := min((rows+grain-1)/grain*grain, b.most), 2
	if b.most > rowsAlike { // a graph on a device takes long to make, and the states of all rows as many copies to move
		size, shrinks = 1<<bits.Len(uint(rows-1)), 3
	}
	if old != nil && rows <= old.batch() && shrinks*rows > old.batch() {
		return nil
	}
	r, err := kept(&b.spare, b.keptGroups(), func(r *reader) bool { return r.batch() == size }, func() (*reader, error) { return newReader(b.lm, size, 1, true) })
	if err != nil {
		b.groups = slices.DeleteFunc(b.groups, func(r *reader) bool { return r == nil })
		if old != nil && rows <= old.batch() { // there is no memory to become smaller, and no need
			return nil
		}
		return err
	}
	b.spare = b.spare[:len(b.spare)-1] // r, which is the last
	if old != nil {
		if err := r.take(0, old, 0, min(rows, len(b.rows)-group*b.most)); err != nil {
			return errors.Join(err, r.close())
		}
		err = keep(&b.spare, b.keptGroups(), old)
	}
	b.groups[group] = r
	return err
}

// Next is what a step has chosen for a sequence. It is valid in the call that it is passed to.
type Next struct {
	Token int
	Err   error // if the logits have a NaN, or their largest is infinite; the sequence has then left the batch and cannot be continued

	r   *reader
	row int
}

// Logits returns a copy of the logits from which the token was chosen, before any penalty.
func (n Next) Logits() ([]float64, error) {
	if n.r == nil || n.r.lm == nil {
		return nil, errors.New("nn: Logits: Next is not one that Batch.Step passed, want to be called from the function that Step calls")
	}
	if d := n.r.decoding; d != nil && d.greedy {
		if err := d.Logits(d.logits); err != nil {
			return nil, fmt.Errorf("nn: Logits: %w", err)
		}
	}
	return n.r.logits(n.row), nil
}

// Step reads the pending token of each sequence that has joined, and chooses its next one, which is then its pending token. It calls each, unless it is
// nil, with every sequence and its token. Each may not call the Batch. If Step returns an error, no sequence has changed.
func (b *Batch) Step(each func(s *Sequence, next Next)) error {
	if err := b.enter("step"); err != nil {
		return err
	}
	defer b.mu.Unlock()
	for g, r := range b.groups {
		rows := b.rows[g*b.most : min((g+1)*b.most, len(b.rows))]
		tokens, greedy := make([]int, r.batch()), true
		for i, m := range rows {
			tokens[i] = m.pending[m.read]
			greedy = greedy && m.how.takesLargest()
		}
		r.chooseGreedily(greedy)
		if err := r.read(tokens); err != nil {
			return fmt.Errorf("nn: step: %w", err)
		}
	}
	for _, r := range b.groups {
		r.commit()
	}
	b.chosen = slices.Grow(b.chosen[:0], len(b.rows))[:len(b.rows)]
	for g, r := range b.groups {
		rows := b.rows[g*b.most : min((g+1)*b.most, len(b.rows))]
		b.samplers.next(r, b.chosen[g*b.most:][:len(rows)], func(row int) (*Sequence, Sampling) { return rows[row].Sequence, rows[row].how })
	}
	var failed []*Sequence
	for i := range b.rows {
		m := &b.rows[i]
		m.read++
		next := Next{}
		next.r, next.row = b.at(i)
		c := b.chosen[i]
		if next.Token, next.Err = c.token, c.err; c.err != nil {
			failed = append(failed, m.Sequence)
		} else {
			m.take(c)
		}
		if each != nil {
			each(m.Sequence, next)
		}
	}
	for _, s := range failed {
		s.pending = nil
		if err := b.remove(b.row(s)); err != nil {
			return fmt.Errorf("nn: step: %w", err)
		}
	}
	return nil
}

// row returns the row of a sequence, or -1.
func (b *Batch) row(s *Sequence) int {
	return slices.IndexFunc(b.rows, func(m member) bool { return m.Sequence == s })
}

// Leave removes a sequence from the batch. The sequence is then after its last token, and any call can continue it.
func (b *Batch) Leave(s *Sequence) error { return b.leave("leave", s, true) }

// Drop removes a sequence that nobody continues. Its state is lost, so that a later use of it is an error.
func (b *Batch) Drop(s *Sequence) error { return b.leave("drop", s, false) }

func (b *Batch) leave(call string, s *Sequence, store bool) error {
	if err := b.enter(call); err != nil {
		return err
	}
	defer b.mu.Unlock()
	i := b.row(s)
	if i < 0 {
		return fmt.Errorf("nn: %s: the sequence is not in the batch, want one that has joined", call)
	}
	m := b.rows[i]
	if !store {
		s.pending = nil
		s.forget()
	} else if m.read > 0 {
		r, row := b.at(i)
		if err := r.bringRow(row); err != nil {
			return fmt.Errorf("nn: %s: %w", call, err)
		}
		s.store(r, row, m.read)
	}
	if err := b.remove(i); err != nil {
		return fmt.Errorf("nn: %s: %w", call, err)
	}
	return nil
}

// remove takes row i out of the batch. The last row moves to its place.
func (b *Batch) remove(i int) error {
	last := len(b.rows) - 1
	if i != last {
		r, row := b.at(i)
		from, fromRow := b.at(last)
		if err := r.take(row, from, fromRow, 1); err != nil {
			return err
		}
	}
	b.rows[i].using.Unlock()
	b.rows[i] = b.rows[last]
	b.rows[last] = member{}
	b.rows = b.rows[:last]
	return b.resize(last)
}

// Close frees the graphs and the memory on a device. The sequences in the batch are dropped. Calls after Close return an error, a second Close
// too.
func (b *Batch) Close() error {
	if err := b.enter("close"); err != nil {
		return err
	}
	defer b.mu.Unlock()
	for _, m := range b.rows {
		m.pending = nil
		m.forget()
		m.using.Unlock()
	}
	var errs []error
	for _, r := range slices.Concat(b.groups, b.spare, b.prompts) {
		errs = append(errs, r.close())
	}
	b.lm, b.rows, b.groups, b.spare, b.prompts = nil, nil, nil, nil, nil
	return errors.Join(errs...)
}
