package cuda

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestHead(t *testing.T) {
	testHead[float32](t)
	testHead[BFloat16](t)
}

// A head has the bits of its operations over all rows, and in chunks of rows their numbers.
func testHead[T Activation](t *testing.T) {
	s := open(t)
	const rows, in, vocabulary, padded, ignore = 150, 5, smallVocabulary + 3, smallVocabulary + 8, -1
	r := rand.New(rand.NewPCG(4, 4))
	draw := func(n int) Array[T] {
		v := make([]float64, n)
		for i := range v {
			v[i] = r.NormFloat64()
		}
		return put[T](t, s, v)
	}
	targets := make([]int32, rows)
	for i := range targets {
		if targets[i] = r.Int32N(vocabulary); i%7 == 0 {
			targets[i] = ignore
		}
	}
	h := &Head[T]{Rows: rows, In: in, Vocabulary: vocabulary, Ignore: ignore, Precision: Strict, X: draw(rows * in), Weight: draw(vocabulary * in), Targets: putInts(t, s, targets)}
	if typeName[T]() == "bf16" {
		h.Precision = BF16
	}
	dloss := put[float32](t, s, []float64{0.5}) // with 128 targets that count, scaling is exact
	results := func(f func(loss, dx, dweight Array[float32]) error) [][]float64 {
		loss, dx, dweight := blank[float32](t, s, 1), blank[float32](t, s, rows*in), blank[float32](t, s, vocabulary*in)
		do(t, f(loss, dx, dweight))
		return [][]float64{get(t, s, loss), get(t, s, dx), get(t, s, dweight)}
	}
	want := results(func(loss, dx, dweight Array[float32]) error {
		logits, state := blank[T](t, s, rows*padded), blank[float32](t, s, CrossEntropyState(rows))
		return firstError(
			Multiply(s, h.Precision, rows, in, vocabulary, h.X, h.Weight, logits, padded),
			CrossEntropyForward(s, rows, vocabulary, padded, ignore, logits, h.Targets, state, loss),
			CrossEntropyBackward(s, rows, vocabulary, padded, ignore, logits, h.Targets, state, dloss),
			MultiplyBackward(s, h.Precision, rows, in, vocabulary, h.X, h.Weight, logits, padded, dx, dweight))
	})
	head := func(loss, dx, dweight Array[float32]) error {
		g, err := h.Forward(s, loss, true)
		if err != nil {
			return err
		}
		defer g.Free()
		return g.Scale(s, dloss, dx, dweight)
	}
	for i, got := range results(head) {
		if !slices.Equal(got, want[i]) {
			t.Errorf("result %d has other bits than the operations", i)
		}
	}
	defer func(n int) { headLogits = n }(headLogits)
	headLogits = 64 * padded
	for i, got := range results(head) {
		near(t, "in chunks", got, want[i], 1e-5)
	}
}
