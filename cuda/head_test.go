package cuda

import (
	"math"
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

// TestHeadFew compares the head of a small vocabulary and few columns, which is one kernel, with the operations one after another: odd sizes, rows that do not count, numbers that are
// not finite.
func TestHeadFew(t *testing.T) {
	testHeadFew[float32](t, 1e-5)
	testHeadFew[BFloat16](t, 2e-2)
}

func testHeadFew[T Activation](t *testing.T, tol float64) {
	s := open(t)
	const ignore = 3
	r := rand.New(rand.NewPCG(16, 64))
	for i, z := range []struct{ rows, in, vocabulary int }{{leastNarrowRows, 64, 16}, {leastNarrowRows + 33, 12, 5}, {leastNarrowRows + 64, 64, 1}, {3*leastNarrowRows + 1, 40, 15}, {leastNarrowRows + 7, 64, 16}} {
		x, w, targets := numbers[T](r, z.rows*z.in, 1), numbers[T](r, z.vocabulary*z.in, 0.3), make([]int32, z.rows)
		for i := range targets {
			targets[i] = r.Int32N(int32(z.vocabulary))
		}
		if i == 4 { // rows that are not finite
			for j, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e30, -1e30, 1e-40} {
				x[(j*67+5)*z.in+j] = v
			}
			targets[5], targets[2*67+5] = ignore, 0
		}
		h := &Head[T]{Rows: z.rows, In: z.in, Vocabulary: z.vocabulary, Ignore: ignore, Precision: Strict, X: put[T](t, s, x), Weight: put[T](t, s, w), Targets: putInts(t, s, targets)}
		if typeName[T]() == "bf16" {
			h.Precision = BF16
		}
		if !h.isFew() {
			t.Fatalf("%+v is not computed by one kernel", z)
		}
		dloss := put[float32](t, s, []float64{0.5})
		padded := h.padded()
		logits, state := blank[T](t, s, z.rows*padded), blank[float32](t, s, CrossEntropyState(z.rows))
		loss, dx, dweight := blank[float32](t, s, 1), blank[float32](t, s, z.rows*z.in), blank[float32](t, s, z.vocabulary*z.in)
		do(t, Multiply(s, h.Precision, z.rows, z.in, z.vocabulary, h.X, h.Weight, logits, padded),
			CrossEntropyForward(s, z.rows, z.vocabulary, padded, ignore, logits, h.Targets, state, loss),
			CrossEntropyBackward(s, z.rows, z.vocabulary, padded, ignore, logits, h.Targets, state, dloss),
			MultiplyBackward(s, h.Precision, z.rows, z.in, z.vocabulary, h.X, h.Weight, logits, padded, dx, dweight))
		gotLoss, alone, gotDx, gotDweight := blank[float32](t, s, 1), blank[float32](t, s, 1), blank[float32](t, s, dx.n), blank[float32](t, s, dweight.n)
		g, err := h.Forward(s, gotLoss, true)
		do(t, err, g.Scale(s, dloss, gotDx, gotDweight))
		g.Free()
		_, err = h.Forward(s, alone, false)
		do(t, err)
		if a, b := get(t, s, gotLoss), get(t, s, alone); !same(a[0], b[0]) {
			t.Errorf("%+v: the loss is %v with gradients and %v without", z, a[0], b[0])
		}
		for _, of := range []struct {
			name      string
			got, want Array[float32]
		}{{"loss", gotLoss, loss}, {"dx", gotDx, dx}, {"dweight", gotDweight, dweight}} {
			got, want := get(t, s, of.got), get(t, s, of.want)
			most := 0.
			for _, v := range want {
				if !math.IsNaN(v) && !math.IsInf(v, 0) {
					most = max(most, math.Abs(v))
				}
			}
			for j := range want {
				if !same(got[j], want[j]) && !(math.Abs(got[j]-want[j]) <= tol*most) {
					t.Fatalf("%+v: %s[%d] is %v, want %v", z, of.name, j, got[j], want[j])
				}
			}
		}
	}
}
