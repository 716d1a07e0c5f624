package train

import (
	"fmt"
	"math/rand/v2"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/nn"
)

// Document is a text as tokens. The first Prompt tokens are given and not learned: they add nothing to the loss.
type Document struct {
	Tokens []int
	Prompt int
}

// Batch holds sequences of tokens for a language model. Each of its slices has shape (batch, length), row by row.
type Batch struct {
	IDs     []int // the tokens
	Targets []int // the token that follows in the same document, or nn.Ignore
	Start   []int // 1 where a document starts, 0 elsewhere: with nn.WithStart, documents in one sequence do not see each other
	Learned int   // number of targets that are not nn.Ignore
}

func newBatch(batch, length int) Batch {
	n := batch * length
	b := Batch{IDs: make([]int, n), Targets: make([]int, n), Start: make([]int, n)}
	for i := range b.Targets {
		b.Targets[i] = nn.Ignore
		if i%length == 0 {
			b.Start[i] = 1
		}
	}
	return b
}

// check returns an error unless each slice has n elements and Learned is the number of learned targets. The error names the field.
func (b Batch) check(n int) error {
	for _, s := range []struct {
		name   string
		length int
	}{{"IDs", len(b.IDs)}, {"Targets", len(b.Targets)}, {"Start", len(b.Start)}} {
		if s.length != n {
			return fmt.Errorf("its %s has %d elements, want %d, batch times length", s.name, s.length, n)
		}
	}
	learned := 0
	for _, target := range b.Targets {
		if target != nn.Ignore {
			learned++
		}
	}
	if b.Learned != learned {
		return fmt.Errorf("its Learned is %d, want %d, the number of Targets that are not nn.Ignore", b.Learned, learned)
	}
	return nil
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

// fill writes the pieces of r into row at of the batch.
func (b *Batch) fill(at, length int, r row, docs []Document) {
	i := at * length
	for _, p := range r {
		d := docs[p.doc]
		b.Start[i] = 1
		for k := range p.n {
			b.IDs[i] = d.Tokens[p.from+k]
			if next := p.from + k + 1; next >= d.Prompt {
				b.Targets[i] = d.Tokens[next]
				b.Learned++
			}
			i++
		}
	}
	if i < (at+1)*length {
		b.Start[i] = 1 // the rest of the row is a document of its own
	}
}

// batchBytes returns the bytes of the three slices of a Batch.
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
	for i, r := range pack(pieces, length) {
		if i%batch == 0 {
			batches = append(batches, newBatch(batch, length))
		}
		batches[len(batches)-1].fill(i%batch, length, r, docs)
	}
	return batches, nil
}

// Packer makes batches of documents without end. Each epoch has all documents once, in a new random order.
type Packer struct {
	docs          []Document
	pieces        []piece
	batch, length int
	seed          uint64
	at            Position
	rows          []row // of the epoch
}

// Position is a place in the sequences that a Packer makes.
type Position struct {
	Epoch int `json:"epoch"`
	Row   int `json:"row"` // number of sequences of the epoch that Next has returned
}

// NewPacker returns a Packer at its beginning. The same documents, sizes and seed give the same batches. It has the errors of Pack.
func NewPacker(docs []Document, batch, length int, seed uint64) (*Packer, error) {
	pieces, err := checkPack(docs, batch, length)
	if err != nil {
		return nil, err
	}
	p := &Packer{docs: docs, pieces: pieces, batch: batch, length: length, seed: seed}
	p.rows = p.shuffled(0)
	return p, nil
}

// shuffled returns the rows of an epoch.
func (p *Packer) shuffled(epoch int) []row {
	pieces := append([]piece(nil), p.pieces...)
	rand.New(rand.NewPCG(p.seed, uint64(epoch))).Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	return pack(pieces, p.length)
}

// Next returns the next batch. Its last sequences may belong to the next epoch.
func (p *Packer) Next() Batch {
	b := newBatch(p.batch, p.length)
	for i := range p.batch {
		if p.at.Row == len(p.rows) {
			p.at = Position{Epoch: p.at.Epoch + 1}
			p.rows = p.shuffled(p.at.Epoch)
		}
		b.fill(i, p.length, p.rows[p.at.Row], p.docs)
		p.at.Row++
	}
	return b
}

// Position returns the position after the last batch.
func (p *Packer) Position() Position { return p.at }

// Go moves the Packer to a position that Position returned, of this Packer or of one with the same documents, sizes and seed. After an
// error the Packer is where it was.
func (p *Packer) Go(to Position) error {
	if p == nil || p.length == 0 {
		return fmt.Errorf("train: pack: the packer is missing, want one that NewPacker returned")
	}
	if to.Epoch < 0 {
		return fmt.Errorf("train: pack: epoch is %d, want at least 0", to.Epoch)
	}
	rows := p.rows
	if to.Epoch != p.at.Epoch {
		rows = p.shuffled(to.Epoch)
	}
	if to.Row < 0 || to.Row > len(rows) {
		return fmt.Errorf("train: pack: row is %d, want 0 to %d, the number of rows of epoch %d", to.Row, len(rows), to.Epoch)
	}
	p.at, p.rows = to, rows
	return nil
}

// Rows returns the number of sequences of the current epoch.
func (p *Packer) Rows() int { return len(p.rows) }
