package task

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestBigramByHand counts "abab": a before b twice, b before a once.
func TestBigramByHand(t *testing.T) {
	b, err := NewBigram([]byte("abab"))
	if err != nil {
		t.Fatal(err)
	}
	b.Discount, b.Prior = 0.5, 4
	pb, pc := 3.0/260, 1.0/260 // (2 + 1) / (4 + 256) and (0 + 1) / (4 + 256)
	for _, test := range []struct {
		previous, next byte
		want           float64
	}{
		{'a', 'b', (2 - 0.5 + (0.5*1+4)*pb) / (2 + 4)},
		{'a', 'c', (0.5*1 + 4) * pc / (2 + 4)},
		{'b', 'a', (1 - 0.5 + (0.5*1+4)*pb) / (1 + 4)},
		{'z', 'b', pb},
	} {
		if got := b.Probability(test.previous, test.next); math.Abs(got-test.want) > 1e-15 {
			t.Errorf("p(%c|%c) = %v, want %v", test.next, test.previous, got, test.want)
		}
	}

	batches := []Batch{
		{IDs: []int{'a', 'b'}, Targets: []int{'b', 'a'}},
		{IDs: []int{'z', 0}, Targets: []int{'b', ignore}},
	}
	want := -(math.Log2((1.5+4.5*pb)/6) + math.Log2((0.5+4.5*pb)/5) + math.Log2(pb)) / 3
	if got, err := b.BitsPerByte(batches); err != nil || math.Abs(got-want) > 1e-12 {
		t.Errorf("bits per byte are %v, want %v (%v)", got, want, err)
	}
}

func TestBigramSumsToOne(t *testing.T) {
	b, err := NewBigram([]byte(strings.Repeat("the quick brown fox jumps over the lazy dog. ", 20)))
	if err != nil {
		t.Fatal(err)
	}
	for previous := range 256 {
		sum := 0.0
		for next := range 256 {
			p := b.Probability(byte(previous), byte(next))
			if !(p > 0) {
				t.Fatalf("p(%d|%d) = %v", next, previous, p)
			}
			sum += p
		}
		if math.Abs(sum-1) > 1e-12 {
			t.Errorf("probabilities after %d sum to %v", previous, sum)
		}
	}
}

// TestBigramFindsEntropy draws text from a known chain: its entropy is a bound that a good bigram comes close to.
func TestBigramFindsEntropy(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 50_000)
	for i := 1; i < len(text); i++ {
		// The next letter is the same with probability 3/4, and one of three others otherwise.
		text[i] = text[i-1]
		if random.IntN(4) == 0 {
			text[i] = (text[i] + byte(1+random.IntN(3))) % 4
		}
	}
	entropy := -(0.75*math.Log2(0.75) + 0.25*math.Log2(0.25/3))
	b, err := NewBigram(text[:40_000])
	if err != nil {
		t.Fatal(err)
	}
	batches, err := Windows(text[40_000:], 4, 100, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.BitsPerByte(batches)
	if err != nil || math.Abs(got-entropy) > 0.03 {
		t.Errorf("bits per byte are %v, entropy is %v (%v)", got, entropy, err)
	}
}

// TestBigramChoosesSmoothing checks that the choice is at least as good as adding one, on text with rare pairs.
func TestBigramChoosesSmoothing(t *testing.T) {
	text, err := GoSource(200_000)
	if err != nil {
		t.Fatal(err)
	}
	train, heldOut, err := Split(text, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	batches, err := Windows(heldOut.Join(), 8, 64, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewBigram(train.Join())
	if err != nil {
		t.Fatal(err)
	}
	chosen, err := b.BitsPerByte(batches)
	if err != nil {
		t.Fatal(err)
	}
	// With a flat p(b), no discount and prior 256 the formula is (c(ab) + 1) / (c(a) + 256).
	b.Discount, b.Prior = 0, 256
	for i := range b.single {
		b.single[i] = 1.0 / 256
	}
	addOne, err := b.BitsPerByte(batches)
	if err != nil {
		t.Fatal(err)
	}
	if chosen > addOne {
		t.Errorf("chosen smoothing costs %v bits per byte, adding one %v", chosen, addOne)
	}
}

func TestBigramErrors(t *testing.T) {
	if _, err := NewBigram([]byte("a")); err == nil || !strings.Contains(err.Error(), "text has 1 bytes, should have at least 2") {
		t.Errorf("one byte: %v", err)
	}
	b, err := NewBigram([]byte("ab"))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		batches []Batch
		want    string
	}{
		{nil, "no targets in 0 batches"},
		{[]Batch{{IDs: []int{1}, Targets: []int{ignore}}}, "no targets in 1 batches"},
		{[]Batch{{IDs: []int{1, 2}, Targets: []int{1}}}, "batch 0 has 2 ids and 1 targets"},
		{[]Batch{{IDs: []int{256}, Targets: []int{1}}}, "id 256 and target 1 at 0, should be from 0 to 255"},
		{[]Batch{{IDs: []int{0}, Targets: []int{-1}}}, "id 0 and target -1 at 0"},
	} {
		if _, err := b.BitsPerByte(test.batches); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %s", test.batches, err, test.want)
		}
	}
}
