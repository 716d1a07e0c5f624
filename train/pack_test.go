package train

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/nn"
)

// drawDocuments draws documents whose tokens are all different, so that a token identifies its document and position.
func drawDocuments(t *rapid.T) (docs []Document) {
	next := 0
	for range rapid.IntRange(1, 12).Draw(t, "documents") {
		var d Document
		for range rapid.IntRange(0, 20).Draw(t, "tokens") {
			d.Tokens = append(d.Tokens, next)
			next++
		}
		d.Prompt = rapid.IntRange(0, len(d.Tokens)).Draw(t, "prompt")
		docs = append(docs, d)
	}
	return docs
}

// learnable returns the tokens of a document that are targets: all but the first and the prompt.
func learnable(docs []Document) (tokens []int) {
	for _, d := range docs {
		if n := max(d.Prompt, 1); n < len(d.Tokens) {
			tokens = append(tokens, d.Tokens[n:]...)
		}
	}
	return tokens
}

// checkBatch checks the properties of every batch, and returns its targets.
func ints(b Batch, name string) []int { return b.Values[name].Data().([]int) }

func checkBatch(t *rapid.T, docs []Document, b Batch, batch, length int) (targets []int) {
	whole := map[int]int{} // for a document that fits a sequence: from its first token to its last token with a target
	for _, d := range docs {
		if n := len(d.Tokens) - 1; n > 0 && n <= length {
			whole[d.Tokens[0]] = d.Tokens[n-1]
		}
	}
	ids, marks := ints(b, "ids"), ints(b, "start")
	targetOf := ints(b, "targets")
	filled := func(i int) bool { return ids[i] != 0 || targetOf[i] != nn.Ignore || marks[i] == 0 }
	for i, id := range ids {
		if i%length == 0 && marks[i] != 1 {
			t.Fatalf("sequence %d has no start at its first position", i/length)
		}
		if target := targetOf[i]; target != nn.Ignore {
			targets = append(targets, target)
			if target != id+1 {
				t.Fatalf("position %d: token %d with target %d", i, id, target)
			}
		}
		if marks[i] == 0 && ids[i-1]+1 != id && (id != 0 || targetOf[i] != nn.Ignore) {
			t.Fatalf("position %d: token %d after %d without a start", i, id, ids[i-1])
		}
		if last, ok := whole[id]; ok && marks[i] == 1 && filled(i) && targetOf[i] != nn.Ignore {
			end := i + last - id
			if end/length != i/length || ids[end] != last {
				t.Fatalf("the document at position %d fits a sequence, but is divided", i)
			}
		}
	}
	if b.Weight != float64(len(targets)) || len(ids) != batch*length {
		t.Fatalf("%v learned and %d tokens, want %d and %d", b.Weight, len(ids), len(targets), batch*length)
	}
	return targets
}

// Each token that can be learned is a target once, and no token of a prompt is a target.
func TestPack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := drawDocuments(t)
		batch, length := rapid.IntRange(1, 3).Draw(t, "batch"), rapid.IntRange(1, 12).Draw(t, "length")
		batches, err := Pack(docs, batch, length)
		want := learnable(docs)
		if (err != nil) != (len(want) == 0) {
			t.Fatalf("%d tokens to learn, error %v", len(want), err)
		}
		var got []int
		for _, b := range batches {
			got = append(got, checkBatch(t, docs, b, batch, length)...)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Fatalf("targets %v, want %v", got, want)
		}
	})
}

// The same holds in every epoch of a Packer. The orders of epochs differ, and from each position a Packer continues as it would have.
func TestPacker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := drawDocuments(t)
		length := rapid.IntRange(1, 12).Draw(t, "length")
		want := learnable(docs)
		if len(want) == 0 {
			t.Skip("the drawn documents have no token to learn")
		}
		p, err := NewPacker(docs, 1, length, 7)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			var got []int
			for done := false; !done; done = p.Position().Row == p.Rows() {
				got = append(got, checkBatch(t, docs, must(p.Next()), 1, length)...)
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Fatalf("targets %v, want %v", got, want)
			}
		}

		batch := rapid.IntRange(1, 3).Draw(t, "batch")
		whole, _ := NewPacker(docs, batch, length, 8)
		for range rapid.IntRange(0, 9).Draw(t, "batches") {
			must(whole.Next())
		}
		other, _ := NewPacker(docs, batch, length, 8)
		if err := other.Go(whole.Position()); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if a, b := must(whole.Next()), must(other.Next()); !reflect.DeepEqual(a, b) {
				t.Fatalf("%v after a jump, want %v", b, a)
			}
		}
	})
}

func TestPackerOrders(t *testing.T) {
	var docs []Document
	for i := range 40 {
		docs = append(docs, Document{Tokens: []int{i, i + 1, i + 2}})
	}
	order := func(p *Packer) (ids []int) {
		for range 20 { // documents of which two fill a sequence
			ids = append(ids, ints(must(p.Next()), "ids")...)
		}
		return ids
	}
	a, _ := NewPacker(docs, 1, 4, 1)
	b, _ := NewPacker(docs, 1, 4, 2)
	first := order(a)
	if slices.Equal(first, order(a)) || slices.Equal(first, order(b)) {
		t.Error("two epochs or seeds have the same order")
	}
}

func TestPackErrors(t *testing.T) {
	doc := Document{Tokens: []int{1, 2}}
	for _, test := range []struct {
		docs          []Document
		batch, length int
		want          string
	}{
		{[]Document{doc}, 0, 4, "train: pack: batch is 0, want at least 1"},
		{[]Document{doc}, 1, -1, "train: pack: length is -1, want at least 1"},
		{[]Document{doc, {Tokens: []int{1}, Prompt: 2}}, 1, 4, "document 1 has a prompt of 2 tokens, want 0 to 1, its length"},
		{[]Document{{Tokens: []int{1}}, {}}, 1, 4, "none of 2 documents has a token to learn"},
		{nil, 1, 4, "none of 0 documents has a token to learn"},
	} {
		if _, err := Pack(test.docs, test.batch, test.length); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
		if _, err := NewPacker(test.docs, test.batch, test.length, 0); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
	}
	p, err := NewPacker([]Document{doc}, 1, 4, 0)
	if err != nil {
		t.Fatal(err)
	}
	must(p.Next())
	before := p.Position()
	for _, at := range []Position{{-1, 0}, {0, 2}, {3, -1}} {
		if err := p.Go(at); err == nil {
			t.Errorf("no error at position %v", at)
		}
		if p.Position() != before {
			t.Errorf("the packer is at %v after an error, want %v as before", p.Position(), before)
		}
	}
}

// Only the last 32 rows with room are looked at, so that packing takes time in proportion to the pieces.
func TestPackWindow(t *testing.T) {
	pieces := make([]piece, 33, 34)
	for i := range pieces {
		pieces[i] = piece{doc: i, n: 6}
	}
	rows := pack(append(pieces, piece{doc: 33, n: 4}), 10)
	if len(rows) != 33 || len(rows[0]) != 1 || len(rows[1]) != 2 {
		t.Errorf("%d rows, of which the first have %d and %d pieces, want 33, 1 and 2", len(rows), len(rows[0]), len(rows[1]))
	}
}
