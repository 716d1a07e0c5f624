package train

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/nn"
)

// Document is a text as tokens. The first Prompt tokens are given and not learned: they add nothing to the loss.
type Document struct {
	Tokens []int
	Prompt int
}

// sequences are the tokens of a batch, (batch, length), row by row.
type sequences struct {
	ids     []int
	targets []int // the token that follows in the same document, or nn.Ignore
	start   []int // 1 where a document starts, 0 elsewhere: with nn.WithStart, documents in one sequence do not see each other
}

func newSequences(batch, length int) sequences {
	n := batch * length
	return sequences{make([]int, n), make([]int, n), make([]int, n)}
}

// piece is n tokens of a document, beginning at from. Each of them has a token after it to predict.
type piece struct{ doc, from, n int }

// row holds the pieces of one sequence.
type row []piece

func (r row) room(length int) int {
	for _, p := range r {
		length -= p.n
	}
	return length
}

// cut divides documents into pieces of at most length tokens. It leaves out pieces in which every target is of the prompt.
func cut(docs []Document, length int) (pieces []piece) {
	for i, d := range docs {
		for from := 0; from < len(d.Tokens)-1; from += length {
			n := min(length, len(d.Tokens)-1-from)
			if from+n >= d.Prompt { // the last target, token from+n, is not of the prompt
				pieces = append(pieces, piece{i, from, n})
			}
		}
	}
	return pieces
}

// pack puts pieces into rows: each into the first row with room, among the last 32 rows that are not full, or into a new row. This
// leaves little of the rows empty, and divides no piece.
func pack(pieces []piece, length int) (rows []row) {
	const last = 32
	var open []int // indices of the rows with room
next:
	for _, p := range pieces {
		for i, r := range open {
			if rows[r].room(length) >= p.n {
				rows[r] = append(rows[r], p)
				if rows[r].room(length) == 0 {
					open = append(open[:i], open[i+1:]...)
				}
				continue next
			}
		}
		rows = append(rows, row{p})
		if p.n < length {
			if open = append(open, len(rows)-1); len(open) > last {
				open = open[1:]
			}
		}
	}
	return rows
}

// single reports whether no two of the pieces of documents fit into one row. Then no token needs to know where documents start: the first column is a start anyway, and what
// follows a document in its row has no targets.
func single(docs []Document, length int) bool {
	least, next := length, length // the smallest two
	for _, p := range cut(docs, length) {
		if p.n <= least {
			least, next = p.n, least
		} else {
			next = min(next, p.n)
		}
	}
	return least+next > length
}

// fill writes row at, which has the pieces of r.
func (s sequences) fill(at, length int, r row, docs []Document) {
	from, to := at*length, (at+1)*length
	ids, next, start := s.ids[from:to], s.targets[from:to], s.start[from:to]
	clear(start)
	for _, p := range r {
		d := docs[p.doc]
		start[0] = 1
		copy(ids, d.Tokens[p.from:p.from+p.n])
		given := min(max(d.Prompt-p.from-1, 0), p.n)
		ignore(next[:given])
		copy(next[given:], d.Tokens[p.from+1+given:p.from+1+p.n])
		ids, next, start = ids[p.n:], next[p.n:], start[p.n:]
	}
	if len(ids) > 0 {
		start[0] = 1 // the rest of the row is a document of its own
		clear(ids)
		ignore(next)
	}
}

func ignore(targets []int) {
	for i := range targets {
		targets[i] = nn.Ignore
	}
}

// batchBytes returns the bytes of the three slices of sequences.
func batchBytes(batch, length int) size.Bytes { return size.Of(8, 3, batch, length) }

func checkPack(docs []Document, batch, length int) ([]piece, error) {
	for _, size := range []struct {
		name  string
		value int
	}{{"batch", batch}, {"length", length}} {
		if size.value < 1 {
			return nil, fmt.Errorf("train: pack: %s is %d, want at least 1", size.name, size.value)
		}
	}
	if err := batchBytes(batch, length).Fits("a batch"); err != nil {
		return nil, fmt.Errorf("train: pack: batch is %d, length is %d: %w", batch, length, err)
	}
	for i, d := range docs {
		if d.Prompt < 0 || d.Prompt > len(d.Tokens) {
			return nil, fmt.Errorf("train: pack: document %d has a prompt of %d tokens, want 0 to %d, its length", i, d.Prompt, len(d.Tokens))
		}
	}
	pieces := cut(docs, length)
	if len(pieces) == 0 {
		return nil, fmt.Errorf("train: pack: none of %d documents has a token to learn", len(docs))
	}
	return pieces, nil
}

// Pack returns all documents once, packed into few batches, for evaluation. A document that is longer than a sequence is divided: its
// next part stands in another sequence, without the context before it. Places that no document fills have the target nn.Ignore.
//
// Errors: batch or length less than 1; a Prompt below 0 or above the number of tokens; no token to learn in any document.
func Pack(docs []Document, batch, length int) ([]Batch, error) {
	pieces, err := checkPack(docs, batch, length)
	if err != nil {
		return nil, err
	}
	var batches []Batch
	for rows := range slices.Chunk(pack(pieces, length), batch) {
		b, err := newSequences(batch, length).packed(rows, docs, batch, length)
		if err != nil {
			return nil, err
		}
		batches = append(batches, b)
	}
	return batches, nil
}

// packed returns the batch of at most batch rows, in the memory of s.
func (s sequences) packed(rows []row, docs []Document, batch, length int) (Batch, error) {
	for i := range batch {
		var r row
		if i < len(rows) {
			r = rows[i]
		}
		s.fill(i, length, r, docs)
	}
	return NewTokenBatch(length, s.ids, s.targets, s.start)
}

// Packer is a Source of batches of documents. Each epoch has all documents once, in a new random order.
type Packer struct {
	docs          []Document
	batch, length int
	epochs        epochs[row]
}

// NewPacker returns a Packer at its beginning. The same documents, sizes and seed give the same batches. It has the errors of Pack.
func NewPacker(docs []Document, batch, length int, seed uint64) (*Packer, error) {
	pieces, err := checkPack(docs, batch, length)
	if err != nil {
		return nil, err
	}
	return &Packer{docs, batch, length, newEpochs(func(epoch int) []row {
		pieces := slices.Clone(pieces)
		rand.New(rand.NewPCG(seed, uint64(epoch))).Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		return pack(pieces, length)
	})}, nil
}

func (p *Packer) check() error {
	if p == nil || p.length == 0 {
		return fmt.Errorf("train: pack: the packer is missing, want one that NewPacker returned")
	}
	return nil
}

// Next returns the next batch. Its last sequences may belong to the next epoch. It is an error if NewPacker did not make the packer.
func (p *Packer) Next() (Batch, error) {
	if err := p.check(); err != nil {
		return Batch{}, err
	}
	s := newSequences(p.batch, p.length)
	p.fill(s)
	return NewTokenBatch(p.length, s.ids, s.targets, s.start)
}

// fill writes the next batch.
func (p *Packer) fill(s sequences) {
	for i := range p.batch {
		s.fill(i, p.length, p.epochs.next(), p.docs)
	}
}

// Skip passes over batches, as so many calls of Next do.
func (p *Packer) Skip(batches int) error {
	if err := p.check(); err != nil {
		return err
	}
	return p.epochs.skip(batches, p.batch)
}

// Position returns the position after the last batch.
func (p *Packer) Position() Position { return p.epochs.at }

// Go moves the Packer to a position that Position returned, of this Packer or of one with the same documents, sizes and seed. After an
// error the Packer is where it was.
func (p *Packer) Go(to Position) error {
	if err := p.check(); err != nil {
		return err
	}
	if err := p.epochs.goTo(to); err != nil {
		return fmt.Errorf("train: pack: %w", err)
	}
	return nil
}

// Rows returns the number of sequences of the current epoch.
func (p *Packer) Rows() int { return len(p.epochs.items) }

// early is the Packer of a trainer. The next batch can be made while something else runs, if a step has one. Then the next batch but one overwrites a batch.
type early struct {
	*Packer
	single bool // the batches have no starts
	one    bool // a step has one batch, so that batches can have their memory in turn
	memory [2]sequences
	values [2]map[string]*tensor.Dense // of the batch in each memory
	turn   int
	from   Position       // of the batch that is made, which is the position of the source until it is asked for
	made   chan nextBatch // nil if none is made
	next   *nextBatch     // it, when it is there
}

type nextBatch struct {
	Batch
	err error
}

// prepare begins to make the next batch.
func (e *early) prepare() {
	if e.made != nil || e.next != nil {
		return
	}
	e.from = e.Packer.Position()
	made := make(chan nextBatch, 1)
	e.made = made
	go func() {
		b, err := e.inTurn()
		made <- nextBatch{b, err}
	}()
}

// inTurn returns the next batch, in the memory of the last but one.
func (e *early) inTurn() (b Batch, err error) {
	e.turn ^= 1
	s, values := &e.memory[e.turn], &e.values[e.turn]
	if s.ids == nil {
		*s = newSequences(e.batch, e.length)
	}
	e.Packer.fill(*s)
	if *values == nil {
		b, err = NewTokenBatch(e.length, s.ids, s.targets, s.start)
		*values = e.without(b).Values
		return b, err
	}
	return Batch{*values, weightOf(s.targets)}, nil
}

// without returns a batch without its starts if it needs none.
func (e *early) without(b Batch) Batch {
	if e.single {
		delete(b.Values, "start")
	}
	return b
}

// wait returns the batch when it is made; nil if prepare was not called.
func (e *early) wait() *nextBatch {
	if e.made != nil {
		b := <-e.made
		e.made, e.next = nil, &b
	}
	return e.next
}

func (e *early) Next() (Batch, error) {
	if b := e.wait(); b != nil {
		e.next = nil
		return b.Batch, b.err
	}
	if e.one {
		return e.inTurn()
	}
	b, err := e.Packer.Next()
	return e.without(b), err
}

func (e *early) Position() Position {
	if e.wait() != nil {
		return e.from
	}
	return e.Packer.Position()
}

func (e *early) Go(to Position) error {
	e.wait()
	err := e.Packer.Go(to)
	if err == nil {
		e.next = nil
	}
	return err
}

func (e *early) Skip(batches int) error {
	if batches > 0 && e.wait() != nil {
		e.next = nil
		batches--
	}
	return e.Packer.Skip(batches)
}
