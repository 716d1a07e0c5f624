package train

import (
	"fmt"
	"math/rand/v2"

	"github.com/gomamba/mamba/nn"
)

// Document is a text in tokens. Its first Prompt tokens are given and not learned: no loss is counted for them.
type Document struct {
	Tokens []int
	Prompt int
}

// Batch is sequences of tokens for a language model, (batch, length) each in all three slices. A target is the token that
// follows in the same document, or nn.Ignore. Start is 1 where a document starts, 0 elsewhere: with nn.WithStart, documents in
// one sequence never see each other.
type Batch struct {
	IDs, Targets, Start []int
	Learned             int // the targets that are not nn.Ignore
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

// piece is a run of tokens of a document that each have one to predict after them.
type piece struct{ doc, from, n int }

// row is the pieces of one sequence.
type row []piece

func (r row) room(length int) int {
	for _, p := range r {
		length -= p.n
	}
	return length
}

// cut returns the pieces of documents that a sequence of the given length can hold: a whole document where it fits, without
// those that would teach nothing.
func cut(docs []Document, length int) (pieces []piece) {
	for i, d := range docs {
		for from := 0; from < len(d.Tokens)-1; from += length {
			n := min(length, len(d.Tokens)-1-from)
			if from+n >= d.Prompt { // the last target is not of the prompt
				pieces = append(pieces, piece{i, from, n})
			}
		}
	}
	return pieces
}

// pack puts pieces into rows: each into the first that has room among the last few that are not full. That leaves little
// empty, and cuts no document that fits.
func pack(pieces []piece, length int) (rows []row) {
	const last = 32
	var open []int // rows
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

// fill writes a row of a batch.
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
		b.Start[i] = 1 // what fills the row up is a document of its own
	}
}

func checkPack(docs []Document, batch, length int) ([]piece, error) {
	for _, size := range []struct {
		name  string
		value int
	}{{"batch", batch}, {"length", length}} {
		if size.value < 1 {
			return nil, fmt.Errorf("train: pack: %s is %d, want at least 1", size.name, size.value)
		}
	}
	for i, d := range docs {
		if d.Prompt < 0 || d.Prompt > len(d.Tokens) {
			return nil, fmt.Errorf("train: pack: document %d has a prompt of %d tokens, want 0 to %d, all that there are", i, d.Prompt, len(d.Tokens))
		}
	}
	pieces := cut(docs, length)
	if len(pieces) == 0 {
		return nil, fmt.Errorf("train: pack: none of %d documents has a token to learn", len(docs))
	}
	return pieces, nil
}

// Pack puts documents into as few batches as it can, each once, for evaluation. A document longer than a sequence is cut, and
// goes on in another without what came before. Where documents do not fill a sequence, or sequences the last batch, there is
// nothing to learn.
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

// Packer makes batches of documents without end: all of them in a random order, then all in another.
type Packer struct {
	docs          []Document
	pieces        []piece
	batch, length int
	seed          uint64
	at            Position
	rows          []row // of the epoch
}

// Position is a place in what a Packer makes.
type Position struct {
	Epoch int `json:"epoch"`
	Row   int `json:"row"` // sequences of the epoch that were handed out
}

// NewPacker returns a Packer at its beginning. The same documents, sizes and seed give the same batches.
func NewPacker(docs []Document, batch, length int, seed uint64) (*Packer, error) {
	pieces, err := checkPack(docs, batch, length)
	if err != nil {
		return nil, err
	}
	p := &Packer{docs: docs, pieces: pieces, batch: batch, length: length, seed: seed}
	p.shuffle()
	return p, nil
}

// shuffle makes the rows of the epoch.
func (p *Packer) shuffle() {
	pieces := append([]piece(nil), p.pieces...)
	rand.New(rand.NewPCG(p.seed, uint64(p.at.Epoch))).Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	p.rows = pack(pieces, p.length)
}

// Next returns the next batch. Its last sequences may be the first of another epoch.
func (p *Packer) Next() Batch {
	b := newBatch(p.batch, p.length)
	for i := range p.batch {
		if p.at.Row == len(p.rows) {
			p.at = Position{Epoch: p.at.Epoch + 1}
			p.shuffle()
		}
		b.fill(i, p.length, p.rows[p.at.Row], p.docs)
		p.at.Row++
	}
	return b
}

// Position returns where the Packer is.
func (p *Packer) Position() Position { return p.at }

// Go moves the Packer to a position that it, or one like it, returned.
func (p *Packer) Go(to Position) error {
	if to.Epoch < 0 {
		return fmt.Errorf("train: pack: epoch is %d, want at least 0", to.Epoch)
	}
	if to.Epoch != p.at.Epoch {
		p.at = Position{Epoch: to.Epoch}
		p.shuffle()
	}
	if to.Row < 0 || to.Row > len(p.rows) {
		return fmt.Errorf("train: pack: row is %d, want 0 to %d, those of epoch %d", to.Row, len(p.rows), to.Epoch)
	}
	p.at = to
	return nil
}

// Rows returns how many sequences the current epoch has.
func (p *Packer) Rows() int { return len(p.rows) }
