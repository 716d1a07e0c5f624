package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/kernel"
)

// numbers returns random numbers that T holds exactly, so that device and host have the same operands.
func numbers[T Activation](r *rand.Rand, n int, scale float64) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = float64(toFloat(fromFloat[T](float32(r.NormFloat64() * scale))))
	}
	return v
}

func fromFloat[T Activation](x float32) T {
	var v T
	switch p := any(&v).(type) {
	case *BFloat16:
		*p = ToBFloat16(x)
	case *float32:
		*p = x
	}
	return v
}

func toFloat[T Activation](x T) float32 {
	if b, ok := any(x).(BFloat16); ok {
		return b.Float32()
	}
	return float32(any(x).(float32))
}

// put uploads numbers as T. For nil it returns the zero Array.
func put[T Activation](t testing.TB, s *Stream, v []float64) Array[T] {
	t.Helper()
	if v == nil {
		return Array[T]{}
	}
	host := make([]T, len(v))
	for i := range v {
		host[i] = fromFloat[T](float32(v[i]))
	}
	a, err := Upload(s, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Free)
	return a
}

// blank returns an array of n NaN, so that an element that is not written fails the test.
func blank[T Activation](t testing.TB, s *Stream, n int) Array[T] {
	t.Helper()
	a, err := NewArray[T](s, n)
	if err == nil {
		err = a.Fill(s, 0xff)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Free)
	return a
}

func putInts[T Element](t testing.TB, s *Stream, v []T) Array[T] {
	t.Helper()
	a, err := Upload(s, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Free)
	return a
}

func get[T Activation](t testing.TB, s *Stream, a Array[T]) []float64 {
	t.Helper()
	if a.Absent() {
		return nil
	}
	host, v := make([]T, a.n), make([]float64, a.n)
	if err := a.CopyTo(s, host); err != nil {
		t.Fatal(err)
	}
	for i := range v {
		v[i] = float64(toFloat(host[i]))
	}
	return v
}

// near fails the test if the distance of got from want exceeds tol times the largest magnitude of want, or tol if that is larger.
func near(t *testing.T, what string, got, want []float64, tol float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d numbers, want %d", what, len(got), len(want))
		return
	}
	scale, far, at := 1.0, 0.0, 0
	for _, w := range want {
		scale = max(scale, math.Abs(w))
	}
	for i, w := range want {
		if d := math.Abs(got[i] - w); !(d <= far) {
			far, at = d, i
		}
	}
	if !(far <= tol*scale) {
		t.Errorf("%s: element %d of %d is %v, want %v (largest %g)", what, at, len(want), got[at], want[at], scale)
	}
}

// productOf returns beta c + alpha a b in float64, of m x k and k x n elements a and b. The rows of c are stride elements apart.
func productOf(m, n, k int, alpha float32, a, b func(i, j int) float64, beta float32, c []float64, stride int) []float64 {
	c = slices.Clone(c)
	for i := range m {
		for j := range n {
			sum := float64(beta) * c[i*stride+j]
			for l := range k {
				sum += float64(alpha) * a(i, l) * b(l, j)
			}
			c[i*stride+j] = sum
		}
	}
	return c
}

// do fails the test at the first error.
func do(t testing.TB, errs ...error) {
	t.Helper()
	if err := firstError(errs...); err != nil {
		t.Fatal(err)
	}
}

// tolerance returns exact for float32, and 1/128 for bfloat16, which has 8 bits.
func tolerance[T Activation](exact float64) float64 {
	if typeName[T]() == "bf16" {
		return 1.0 / 128
	}
	return exact
}

func both(t *testing.T, f func(t *testing.T), g func(t *testing.T)) {
	t.Run("float32", f)
	t.Run("bfloat16", g)
}

func TestMatMul(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { testMatMul[float32, float32](t, s) }, func(t *testing.T) {
		testMatMul[BFloat16, BFloat16](t, s)
		testMatMul[BFloat16, float32](t, s)
	})
}

func TestMatrixErrors(t *testing.T) {
	m := Matrix[float32]{Data: Array[float32]{n: 11}, Stride: 4}
	for want, err := range map[string]error{
		"a has a stride of 4, want 5 to 2^31-1": m.check("a", 2, 5),
		"a has 11 elements, want 12":            m.check("a", 3, 4),
		"a has a stride of 2147483648, want 4":  Matrix[float32]{Stride: 1 << 31}.check("a", 1, 4),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want %q", err, want)
		}
	}
}

func testMatMul[A, C Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(5, 5))
	for range 40 {
		m, n, k := 1+r.IntN(70), 1+r.IntN(70), 1+r.IntN(90)
		draw := func(rows, width int) (Matrix[A], []float64, func(i, j int) float64) {
			x := Matrix[A]{Transposed: r.IntN(2) == 0}
			lr, lw := x.rowsAndWidth(rows, width)
			x.Stride = lw + r.IntN(5)
			v := numbers[A](r, lr*x.Stride, 1)
			x.Data = put[A](t, s, v)
			return x, v, func(i, j int) float64 {
				if x.Transposed {
					i, j = j, i
				}
				return v[i*x.Stride+j]
			}
		}
		a, _, atA := draw(m, k)
		b, _, atB := draw(k, n)
		alpha, beta, stride := []float32{1, -0.75}[r.IntN(2)], float32(r.IntN(2)), n+r.IntN(4)
		before := numbers[C](r, m*stride, 1)
		c := put[C](t, s, before)
		do(t, MatMulScaled(s, Strict, m, n, k, alpha, a, b, beta, Matrix[C]{Data: c, Stride: stride}))
		want := productOf(m, n, k, alpha, atA, atB, beta, before, stride)
		near(t, fmt.Sprint(m, n, k, alpha, beta), get(t, s, c), want, tolerance[C](1e-6))
	}
}

// TestMatMulAcross multiplies operands of which both lie across k, as for the gradient of a weight, in TF32.
func TestMatMulAcross(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(26, 26))
	for _, size := range [][3]int{{256, 300, 1024}, {289, 260, 1032}} {
		m, n, k := size[0], size[1], size[2]
		x, y := numbers[float32](r, k*(m+5), 1), numbers[float32](r, k*(n+3), 1)
		c, again := blank[float32](t, s, m*n), blank[float32](t, s, m*n)
		a, b := Matrix[float32]{put[float32](t, s, x), m + 5, true}, Matrix[float32]{put[float32](t, s, y), n + 3, false}
		do(t, MatMul(s, TF32, m, n, k, a, b, 0, matrix(c, n)), MatMul(s, TF32, m, n, k, a, b, 0, matrix(again, n)))
		want := make([]float64, m*n)
		for l := range k {
			for i := range m {
				for j := range n {
					want[i*n+j] += x[l*(m+5)+i] * y[l*(n+3)+j]
				}
			}
		}
		near(t, fmt.Sprint(size), get(t, s, c), want, 2e-3)
		if !slices.Equal(get(t, s, c), get(t, s, again)) {
			t.Errorf("%v: a second product differs", size)
		}
	}
}

// TestMatMulNarrow multiplies matrices of many rows, for some of which there are kernels of ours.
func TestMatMulNarrow(t *testing.T) {
	s := open(t)
	testMatMulNarrow(t, s, leastNarrowRows+37, [][2]int{{4, 128}, {128, 4}, {16, 64}, {64, 16}, {256, 8}, {8, 256}, {68, 12}, {12, 36}, {64, 128}, {36, 128}})
	split(t, 0)
	testMatMulNarrow(t, s, 150, [][2]int{{64, 128}, {36, 128}, {20, 32}, {160, 80}})
	group(t, 100)
	for _, rows := range []int{100, 150, 2300} {
		testMatMulNarrow(t, s, rows, [][2]int{{64, 128}, {36, 128}, {20, 32}, {256, 64}, {44, 212}, {132, 20}})
	}
}

func testMatMulNarrow(t *testing.T, s *Stream, rows int, sizes [][2]int) {
	r := rand.New(rand.NewPCG(27, 27))
	for _, size := range sizes {
		n, k := size[0], size[1]
		matrix := func(rows, width int) (Matrix[float32], func(i, j int) float64) {
			stride := width + 4*r.IntN(2)
			v := numbers[float32](r, rows*stride, 1)
			return Matrix[float32]{Data: put[float32](t, s, v), Stride: stride}, func(i, j int) float64 { return v[i*stride+j] }
		}
		check := func(what string, m, n, k int, a, b Matrix[float32], atA, atB func(i, j int) float64, beta float32, stride int) {
			before := numbers[float32](r, m*stride, 1)
			c := put[float32](t, s, before)
			do(t, MatMul(s, Strict, m, n, k, a, b, beta, Matrix[float32]{Data: c, Stride: stride}))
			near(t, fmt.Sprint(what, size), get(t, s, c), productOf(m, n, k, 1, atA, atB, beta, before, stride), 1e-6)
		}
		across := func(at func(i, j int) float64) func(i, j int) float64 {
			return func(i, j int) float64 { return at(j, i) }
		}
		x, atX := matrix(rows, k)
		w, atW := matrix(k, n)
		check("rows ", rows, n, k, x, w, atX, atW, float32(r.IntN(2)), n+4*r.IntN(2))
		v, atV := matrix(n, k)
		v.Transposed = true
		check("rows, along ", rows, n, k, x, v, atX, across(atV), float32(r.IntN(2)), n)
		y, atY := matrix(rows, n)
		y.Transposed = true
		check("columns ", n, k, rows, y, x, across(atY), atX, 0, k)
	}
}

// split makes products of at least rows rows use tensor cores by the kernels of compute capability 8.0, for a test, and group by those of 9.0.
func split(t *testing.T, rows int) { least(t, rows, math.MaxInt) }

func group(t *testing.T, rows int) { least(t, math.MaxInt, rows) }

func least(t *testing.T, split, group int) {
	before, beforeGroup := leastSplitRows, leastGroupRows
	t.Cleanup(func() { leastSplitRows, leastGroupRows = before, beforeGroup })
	leastSplitRows, leastGroupRows = split, group
}

// TestMatMulNarrowSpecial multiplies rows with one number that is not zero: infinite, not a number, the largest and a very small one, beside numbers that cannot be divided into
// parts of bfloat16.
func TestMatMulNarrowSpecial(t *testing.T) {
	s := open(t)
	for _, by := range []func(*testing.T, int){split, group} {
		by(t, 0)
		testMatMulNarrowSpecial(t, s)
	}
}

func testMatMulNarrowSpecial(t *testing.T, s *Stream) {
	const rows, n, k = 300, 20, 32
	special := []float64{math.Inf(1), math.Inf(-1), math.NaN(), math.MaxFloat32, -math.MaxFloat32, 0x1p-100, 1 + 0x1p-23}
	x, w := make([]float64, rows*k), make([]float64, n*k)
	for i, v := range []float64{0, 1, -1, 1 + 0x1p-23, -4, 0x1p-20, 2, 0x1.fffffep100} {
		for l := range k {
			w[i*k+l] = v
		}
	}
	for i, v := range special {
		x[(40*i+3)*k+(3*i)%k] = v
	}
	want := make([]float64, rows*n)
	for i := range want {
		for l := range k {
			want[i] += x[i/n*k+l] * w[i%n*k+l]
		}
		want[i] = float64(float32(want[i]))
	}
	c := blank[float32](t, s, rows*n)
	do(t, MatMul(s, Strict, rows, n, k, matrix(put[float32](t, s, x), k), transposed(put[float32](t, s, w), k), 0, matrix(c, n)))
	for i, got := range get(t, s, c) {
		if !same(got, want[i]) {
			t.Errorf("row %d, column %d is %v, want %v", i/n, i%n, got, want[i])
		}
	}
}

func TestRMSNorm(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { testNorm[float32](t, s) }, func(t *testing.T) { testNorm[BFloat16](t, s) })
}

func testNorm[T Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(6, 6))
	for _, size := range [][2]int{{1, 1}, {3, 5}, {70, 33}, {1000, 64}, {37, 40}, {41, 128}, {300, 768}, {20, 1000}, {5, 3000}, {5, 5000}} {
		rows, width := size[0], size[1]
		x, w, dy := numbers[float32](r, rows*width, 3), numbers[float32](r, width, 1), numbers[T](r, rows*width, 1)
		residual := numbers[float32](r, rows*width, 1)
		n := kernel.RMSNorm[float64]{Channels: width, Eps: 1e-5, X: x, Weight: w}
		y, dx, dw := make([]float64, rows*width), make([]float64, rows*width), make([]float64, width)
		n.Forward(y)
		n.Backward(dy, dx, dw)
		ax, aw, ay, ady := put[float32](t, s, x), put[float32](t, s, w), blank[T](t, s, rows*width), put[T](t, s, dy)
		adx, adw, res := blank[float32](t, s, rows*width), blank[float32](t, s, width), put[float32](t, s, residual)
		do(t, RMSNormForward(s, rows, width, 1e-5, ax, aw, ay),
			RMSNormBackward(s, rows, width, 1e-5, ax, aw, ady, Array[float32]{}, adx, adw))
		near(t, fmt.Sprint("y ", size), get(t, s, ay), y, tolerance[T](1e-6))
		near(t, fmt.Sprint("dx ", size), get(t, s, adx), dx, 2e-6)
		near(t, fmt.Sprint("dw ", size), get(t, s, adw), dw, 2e-6)
		do(t, RMSNormBackward(s, rows, width, 1e-5, ax, aw, ady, res, adx, adw))
		for i := range dx {
			dx[i] += residual[i]
		}
		near(t, fmt.Sprint("dx with residual ", size), get(t, s, adx), dx, 2e-6)
	}
	// A row whose squares overflow float32.
	x := []float64{1e25, -1e25, 2e25, 0}
	y := blank[T](t, s, 4)
	do(t, RMSNormForward(s, 1, 4, 1e-5, put[float32](t, s, x), put[float32](t, s, []float64{1, 1, 1, 1}), y))
	near(t, "large", get(t, s, y), []float64{0.81649658, -0.81649658, 1.6329932, 0}, tolerance[T](1e-6))
}

func TestConv(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { testConv[float32](t, s) }, func(t *testing.T) { testConv[BFloat16](t, s) })
}

func testConv[T Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(7, 7))
	coin := func() bool { return r.IntN(2) == 0 }
	widths := []int{4, 4, 4, 1, 2, 3, 7, 16}
	if typeName[T]() == "float" {
		widths = append(widths, 17, 40)
	}
	for i := range 80 {
		batch, length, channels, width := 1+r.IntN(3), 1+r.IntN(150), 1+r.IntN(200), widths[r.IntN(len(widths))]
		usual := i >= 60 // what the kernels that read several channels at a time compute
		if usual {
			length, channels, width = 1+r.IntN(700), 4*(1+r.IntN(50)), 4
		}
		stride, rows := channels+r.IntN(3)*channels, batch*length
		c := kernel.Conv[float64]{Batch: batch, Length: length, Channels: channels, Width: width, XStride: stride,
			X: numbers[T](r, rows*stride, 1), Weight: numbers[float32](r, channels*width, 1), SiLU: coin()}
		if coin() {
			c.Bias = numbers[float32](r, channels, 1)
		}
		if coin() && width > 1 {
			c.Context = numbers[float32](r, batch*(width-1)*channels, 1)
		}
		var start []uint8
		if coin() {
			c.Start, start = make([]bool, rows), make([]uint8, rows)
			often := 6
			if usual { // so that there are tiles without a start
				often = 60
			}
			for i := range start {
				if r.IntN(often) == 0 {
					c.Start[i], start[i] = true, 1
				}
			}
		}
		dy, dnext := numbers[T](r, rows*channels, 1), []float64(nil)
		if coin() && width > 1 && !usual {
			dnext = numbers[float32](r, batch*(width-1)*channels, 1)
		}
		y, next := make([]float64, rows*channels), make([]float64, batch*(width-1)*channels)
		dx := make([]float64, rows*stride)
		g := kernel.ConvGrad[float64]{X: dx, Weight: make([]float64, channels*width), Bias: like[float64](c.Bias), Context: like[float64](c.Context)}
		c.Forward(y, next)
		c.Backward(dy, dnext, &g)

		on := &Conv[T]{Batch: batch, Length: length, Channels: channels, Width: width, XStride: stride, X: put[T](t, s, c.X),
			Weight: put[float32](t, s, c.Weight), Bias: put[float32](t, s, c.Bias), Context: put[float32](t, s, c.Context), SiLU: c.SiLU}
		if start != nil {
			on.Start = putInts(t, s, start)
		}
		ay, anext, adx := blank[T](t, s, rows*channels), blank[float32](t, s, len(next)), put[T](t, s, make([]float64, rows*stride))
		adw, adb, adc := blank[float32](t, s, channels*width), Array[float32]{}, Array[float32]{}
		if c.Bias != nil {
			adb = blank[float32](t, s, channels)
		}
		if c.Context != nil {
			adc = blank[float32](t, s, len(c.Context))
		}
		do(t, on.Forward(s, ay, anext), on.Backward(s, put[T](t, s, dy), put[float32](t, s, dnext), adx, stride, adw, adb, adc))
		what := fmt.Sprintf("batch %d, length %d, channels %d, width %d, stride %d, SiLU %v, bias %v, context %v, start %v, dnext %v: ", batch,
			length, channels, width, stride, c.SiLU, c.Bias != nil, c.Context != nil, c.Start != nil, dnext != nil)
		near(t, what+"y", get(t, s, ay), y, tolerance[T](2e-6))
		near(t, what+"next", get(t, s, anext), next, 0)
		near(t, what+"dx", get(t, s, adx), dx, tolerance[T](4e-6))
		near(t, what+"dweight", get(t, s, adw), g.Weight, 1e-5)
		near(t, what+"dbias", get(t, s, adb), g.Bias, 1e-5)
		near(t, what+"dcontext", get(t, s, adc), g.Context, 4e-6)
	}
}

// A convolution of no sequences, steps or channels has gradients of nothing, and passes the context and its gradient on.
func TestConvOfNothing(t *testing.T) {
	s := open(t)
	for _, n := range [][3]int{{0, 5, 4}, {2, 0, 4}, {2, 0, 3}, {2, 5, 0}, {0, 0, 0}} {
		for _, width := range []int{1, 3, 4, 20} {
			batch, length, channels := n[0], n[1], n[2]
			rows, kept := batch*length, batch*(width-1)*channels
			c := &Conv[float32]{Batch: batch, Length: length, Channels: channels, Width: width, XStride: 8, X: zeros[float32](t, s, strided(rows, 8, channels)),
				Weight: zeros[float32](t, s, channels*width), Context: put[float32](t, s, eachIs(kept, 3))}
			next, dw, db, dc := blank[float32](t, s, kept), blank[float32](t, s, channels*width), blank[float32](t, s, channels), blank[float32](t, s, kept)
			none := zeros[float32](t, s, rows*channels)
			do(t, c.Forward(s, none, next), c.Backward(s, none, put[float32](t, s, eachIs(kept, 5)), zeros[float32](t, s, strided(rows, 8, channels)), 8, dw, db, dc))
			what := fmt.Sprintf("%v, width %d: ", n, width)
			near(t, what+"next", get(t, s, next), eachIs(kept, 3), 0)
			near(t, what+"dweight", get(t, s, dw), make([]float64, channels*width), 0)
			near(t, what+"dbias", get(t, s, db), make([]float64, channels), 0)
			near(t, what+"dcontext", get(t, s, dc), eachIs(kept, 5), 0)
			do(t, c.Backward(s, none, Array[float32]{}, zeros[float32](t, s, strided(rows, 8, channels)), 8, dw, db, dc))
			near(t, what+"dcontext without dnext", get(t, s, dc), make([]float64, kept), 0)
		}
	}
}

func eachIs(n int, v float64) []float64 { return slices.Repeat([]float64{v}, n) }

func TestEmbedding(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(8, 8))
	for _, size := range [][3]int{{1, 1, 1}, {500, 16, 64}, {77, 300, 33}, {4000, 5, 100}, {300, 99, 64}, {700, 150, 40}} {
		rows, vocabulary, width := size[0], size[1], size[2]
		ids, ids32 := make([]int, rows), make([]int32, rows)
		for i := range ids {
			ids[i] = r.IntN(vocabulary)
			ids32[i] = int32(ids[i])
		}
		w, dx, before := numbers[float32](r, vocabulary*width, 1), numbers[float32](r, rows*width, 1), numbers[float32](r, vocabulary*width, 1)
		x, dw := make([]float64, rows*width), make([]float64, vocabulary*width)
		kernel.Embedding(x, w, ids, width)
		kernel.EmbeddingBackward(dw, dx, ids, width)
		for i := range dw {
			dw[i] += before[i]
		}
		ax, adw, atwice := blank[float32](t, s, rows*width), put[float32](t, s, before), put[float32](t, s, before)
		packed := blank[float32](t, s, EmbeddingPacked(rows, width))
		on := putInts(t, s, ids32)
		do(t, EmbeddingForward(s, rows, width, vocabulary, put[float32](t, s, w), on, ax),
			EmbeddingBackward(s, rows, width, vocabulary, on, ids, put[float32](t, s, dx), adw),
			EmbeddingPack(s, rows, width, vocabulary, ids, put[float32](t, s, dx), atwice, packed),
			EmbeddingAdd(s, rows, width, vocabulary, packed, atwice), EmbeddingAdd(s, rows, width, vocabulary, packed, atwice))
		near(t, fmt.Sprint("x ", size), get(t, s, ax), x, 0)
		near(t, fmt.Sprint("dw ", size), get(t, s, adw), dw, 1e-6)
		for i := range dw {
			dw[i] += dw[i] - before[i]
		}
		near(t, fmt.Sprint("dw of packed rows, added twice ", size), get(t, s, atwice), dw, 1e-6)
	}
	ones := put[float32](t, s, slices.Repeat([]float64{1}, 12))
	err := EmbeddingBackward(s, 2, 1, 3, putInts(t, s, []int32{0, 3}), []int{0, 3}, ones, ones)
	if err == nil || !strings.Contains(err.Error(), "ids[1] is 3, want 0 to 2") {
		t.Errorf("a token outside: %v", err)
	}
	outside, x := putInts(t, s, []int32{0, 3, -1, 1, 2, 1 << 30, 0, 0, 0, 0, 0, 0}), blank[float32](t, s, 12)
	do(t, EmbeddingForward(s, 12, 1, 3, ones, outside, x), EmbeddingBackward(s, 12, 1, 3, outside, make([]int, 12), ones, ones))
	near(t, "rows of tokens outside", get(t, s, x), []float64{1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1}, 0)
	near(t, "gradient without tokens outside", get(t, s, ones), []float64{8, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0)
}

func TestCrossEntropy(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { testCrossEntropy[float32](t, s) }, func(t *testing.T) { testCrossEntropy[BFloat16](t, s) })
}

func testCrossEntropy[T Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(9, 9))
	for _, size := range [][3]int{{1, 1, 1}, {40, 16, 16}, {33, 2049, 2049}, {9, 50277, 50277}, {1500, 257, 257}, {7, 50277, 50280}, {3, 2056, 2056}} {
		for _, scale := range []float64{1, 60} {
			rows, vocabulary, stride := size[0], size[1], size[2]
			logits, targets, targets32 := numbers[T](r, rows*vocabulary, scale), make([]int, rows), make([]int32, rows)
			for i := range targets {
				if targets[i] = r.IntN(vocabulary); r.IntN(4) == 0 && rows > 1 {
					targets[i] = -100
				}
				targets32[i] = int32(targets[i])
			}
			c := kernel.CrossEntropy[float64]{Vocabulary: vocabulary, Logits: logits, Targets: targets, Ignore: -100}
			want := []float64{c.Forward()}
			d := make([]float64, len(logits))
			c.Backward(0.75, d)
			spread := make([]float64, rows*stride)
			for i := range rows {
				copy(spread[i*stride:], logits[i*vocabulary:(i+1)*vocabulary])
			}
			a, state, loss := put[T](t, s, spread), blank[float32](t, s, CrossEntropyState(rows)), blank[float32](t, s, 1)
			on := putInts(t, s, targets32)
			do(t, CrossEntropyForward(s, rows, vocabulary, stride, -100, a, on, state, loss),
				CrossEntropyBackward(s, rows, vocabulary, stride, -100, a, on, state, put[float32](t, s, []float64{0.75})))
			what := fmt.Sprintf("%v, scale %v: ", size, scale)
			near(t, what+"loss", get(t, s, loss), want, 2e-6)
			var got []float64
			for i, all := 0, get(t, s, a); i < rows; i++ {
				got = append(got, all[i*stride:i*stride+vocabulary]...)
			}
			near(t, what+"dlogits", got, d, 2e-6+tolerance[T](0)/float64(rows))
		}
	}
	// A logit that is not a number, beside others and beside infinite ones.
	for _, beside := range []float64{1, math.Inf(-1)} {
		for _, at := range []int{0, 2050, 2055} {
			logits := slices.Repeat([]float64{beside}, 2056)
			logits[at] = math.NaN()
			a, state, loss := put[T](t, s, logits), blank[float32](t, s, 3), put[float32](t, s, []float64{0})
			do(t, CrossEntropyForward(s, 1, 2056, 2056, -100, a, putInts(t, s, []int32{1}), state, loss))
			if got := get(t, s, loss); got[0] == got[0] {
				t.Errorf("the loss with NaN at %d beside %v is %v, want NaN", at, beside, got[0])
			}
		}
	}
	// One that another thread finds than the logits that are finite.
	for _, logits := range [][]float64{{math.Inf(-1), 1, math.NaN(), 2}, {1, math.Inf(-1), 2, math.NaN()}} {
		a, state, loss := put[T](t, s, logits), blank[float32](t, s, 3), put[float32](t, s, []float64{0})
		do(t, CrossEntropyForward(s, 1, 4, 4, -100, a, putInts(t, s, []int32{1}), state, loss))
		if got := get(t, s, loss); got[0] == got[0] {
			t.Errorf("the loss of %v is %v, want NaN", logits, got[0])
		}
	}
	// Every target is ignored.
	a, state, loss := put[T](t, s, []float64{1, 2}), blank[float32](t, s, 3), blank[float32](t, s, 1)
	on := putInts(t, s, []int32{-100})
	do(t, CrossEntropyForward(s, 1, 2, 2, -100, a, on, state, loss), CrossEntropyBackward(s, 1, 2, 2, -100, a, on, state, put[float32](t, s, []float64{1})))
	near(t, "loss of nothing", append(get(t, s, loss), get(t, s, a)...), []float64{0, 0, 0}, 0)
}

func TestAdamW(t *testing.T) {
	s := open(t)
	for _, lengths := range [][]int{{1, 100, adamFewPiece, adamFewPiece + 1, 3*adamFewPiece - 5}, {1, adamPiece, adamPiece + 1, 3*adamPiece - 5, adamFew}} {
		testAdamW(t, s, lengths)
	}
}

func testAdamW(t *testing.T, s *Stream, lengths []int) {
	r := rand.New(rand.NewPCG(10, 10))
	a := AdamW{Scale: 1, Beta1: 0.9, Rest1: 0.1, Beta2: 0.99, Rest2: 0.01, Rate: 0.01, Root: 1.5, Eps: 1e-8, Keep: 0.98}
	var on []AdamWeight
	var host [][4][]float64
	sum := 0.0
	for i, n := range lengths {
		w := [4][]float64{numbers[float32](r, n, 1), numbers[float32](r, n, 1), numbers[float32](r, n, 1), numbers[float32](r, n, 1)}
		for j := range w[3] {
			w[3][j] *= w[3][j]
			sum += w[1][j] * w[1][j]
		}
		d := AdamWeight{Weight: put[float32](t, s, w[0]), Grad: put[float32](t, s, w[1]), M: put[float32](t, s, w[2]), V: put[float32](t, s, w[3]), Decay: i%2 == 0}
		if i > 2 {
			d.Half = blank[BFloat16](t, s, n)
		}
		host, on = append(host, w), append(on, d)
	}
	length := math.Sqrt(sum + 7)
	for _, clip := range []float64{0, length / 2, 2 * length} { // later calls reuse the table of the first
		norm, err := a.Step(s, on, clip, 7)
		do(t, err)
		near(t, "norm", []float64{norm}, []float64{length}, 1e-12)
		for i, w := range host {
			k := kernel.AdamW[float64]{Scale: 1, Beta1: 0.9, Rest1: 0.1, Beta2: 0.99, Rest2: 0.01, Rate: 0.01, Root: 1.5, Eps: 1e-8, Keep: 1}
			if on[i].Decay {
				k.Keep = 0.98
			}
			if clip == length/2 {
				k.Scale = 0.5
			}
			k.Step(w[0], slices.Clone(w[1]), w[2], w[3])
			for j, x := range []Array[float32]{on[i].Weight, on[i].Grad, on[i].M, on[i].V} {
				near(t, fmt.Sprint("weight ", i, " array ", j), get(t, s, x), w[j], 1e-6)
			}
			if i > 2 {
				near(t, "half", get(t, s, on[i].Half), w[0], 1.0/256)
			}
		}
	}
	for _, wrong := range []float64{math.NaN(), math.Inf(1)} { // nothing changes
		before := [][]float64{get(t, s, on[1].Weight), get(t, s, on[1].M), get(t, s, on[1].V)}
		do(t, on[0].Grad.CopyFrom(s, []float32{float32(wrong)}))
		norm, err := a.Step(s, on, 1, 0)
		do(t, err)
		if !math.IsNaN(norm) && !math.IsInf(norm, 1) {
			t.Errorf("the norm with a gradient of %v is %v", wrong, norm)
		}
		for j, x := range []Array[float32]{on[1].Weight, on[1].M, on[1].V} {
			near(t, "after a gradient that is not finite", get(t, s, x), before[j], 0)
		}
	}
	sum = 0
	var many []AdamWeight
	for range 1500 { // more parts than threads that add them
		v := numbers[float32](r, 3, 1)
		many = append(many, AdamWeight{Weight: blank[float32](t, s, 3), Grad: put[float32](t, s, v), M: blank[float32](t, s, 3), V: blank[float32](t, s, 3)})
		sum += v[0]*v[0] + v[1]*v[1] + v[2]*v[2]
	}
	norm, err := a.Step(s, many, 0, 0)
	do(t, err)
	near(t, "norm of many", []float64{norm}, []float64{math.Sqrt(sum)}, 1e-12)
	on[0].M = on[1].M
	if _, err := a.Step(s, on, 0, 0); err == nil || !strings.Contains(err.Error(), "weight 0 has 1 elements") {
		t.Errorf("moments of another length: %v", err)
	}
}

// TestLargest compares the indices with those of a plain loop, for rows of one and of several parts, with equal, infinite and missing numbers.
func TestLargest(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(31, 31))
	nan, inf := math.NaN(), math.Inf(1)
	for _, width := range []int{1, 2, 31, 300, 2047, 4096, 9001} {
		for _, rows := range []int{1, 3, 70} {
			x := make([]float64, rows*width)
			want := make([]int32, rows)
			for row := range rows {
				v := x[row*width:][:width]
				for i := range v {
					v[i] = float64(r.IntN(9)) - 20 // many are equal
				}
				some := r.IntN(width)
				switch row % 8 {
				case 1:
					v[some] = nan
				case 2:
					v[some] = inf
				case 3:
					v[some] = -inf
				case 4:
					for i := range v {
						v[i] = -inf
					}
				case 5:
					for i := range v {
						v[i] = -inf
					}
					v[some] = -3
				case 6:
					v[some], v[r.IntN(width)] = inf, nan
				}
				for i := range v {
					if v[i] > v[want[row]] {
						want[row] = int32(i)
					}
				}
				if slices.ContainsFunc(v, math.IsNaN) || math.IsInf(v[want[row]], 0) {
					want[row] = -1
				}
			}
			index := putInts(t, s, make([]int32, rows))
			do(t, Largest(s, rows, width, put[float32](t, s, x), index))
			got := make([]int32, rows)
			do(t, index.CopyTo(s, got))
			if !slices.Equal(got, want) {
				t.Errorf("%d rows of %d: %v, want %v", rows, width, got, want)
			}
		}
	}
}

func TestElementwise(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { testElementwise[float32](t, s) }, func(t *testing.T) { testElementwise[BFloat16](t, s) })
}

func testElementwise[T Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(11, 11))
	for _, size := range [][3]int{{1, 1, 1}, {1000, 33, 40}, {17, 300, 300}, {20000, 3, 7}} {
		rows, width, stride := size[0], size[1], size[2]
		x, bias := numbers[T](r, rows*stride, 1), numbers[float32](r, width, 1)
		a, sums := put[T](t, s, x), blank[float32](t, s, width)
		do(t, AddBias(s, rows, width, a, stride, put[float32](t, s, bias)))
		for i := range rows {
			for j := range width {
				x[i*stride+j] += bias[j]
			}
		}
		got := get(t, s, a)
		near(t, fmt.Sprint("bias ", size), got, x, tolerance[T](1e-6))
		want := make([]float64, width)
		for i := range rows {
			for j := range width {
				want[j] += got[i*stride+j]
			}
		}
		do(t, ColumnSums(s, rows, width, a, stride, sums))
		near(t, fmt.Sprint("column sums ", size), get(t, s, sums), want, 1e-5)
		there, back := blank[BFloat16](t, s, len(x)), blank[T](t, s, len(x))
		do(t, Convert(s, a, there), Convert(s, there, back))
		near(t, "converted", get(t, s, back), got, 1.0/256)
	}
	a, b := put[float32](t, s, []float64{1, 2, 3}), put[float32](t, s, []float64{10, 20, 30})
	do(t, Add(s, a, b, a))
	near(t, "sum", get(t, s, a), []float64{11, 22, 33}, 0)
}
