package cuda

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestNarrowSpecial compares the kernels of compute capability 9.0 that do several things at once with those of float32 one after another, where single numbers are infinite, no
// numbers, huge or tiny.
func TestNarrowSpecial(t *testing.T) {
	s := open(t)
	if !s.device.hopper {
		t.Skip("these kernels are for compute capability 9.0 alone")
	}
	group(t, 0)
	const rows, model, wide, rank = 333, 64, 128, stepRank
	r := rand.New(rand.NewPCG(31, 31))
	special := []float64{math.Inf(1), math.Inf(-1), math.NaN(), 3e38, -3e38, 1e30, 1e-40, 0x1.fffffep100, 0}
	draw := func(width int) Array[float32] {
		v := numbers[float32](r, rows*width, 1)
		for i, x := range special {
			v[(i*37+2)*width+i*5%width] = x
		}
		clear(v[7*width : 8*width]) // a row of zeros
		return put[float32](t, s, v)
	}
	fresh := func(n int) Array[float32] { return blank[float32](t, s, n) }
	small := func(n int) Array[float32] { return put[float32](t, s, numbers[float32](r, n, 0.1)) }
	check := func(what string, got, want Array[float32]) {
		t.Helper()
		a := get(t, s, got)
		for i, w := range get(t, s, want) {
			if !same(a[i], w) && !(math.Abs(a[i]-w) <= 1e-5*(1+math.Abs(w))) {
				t.Fatalf("%s: number %d is %v, want %v", what, i, a[i], w)
			}
		}
	}
	for _, eps := range []float32{1e-5, 0} {
		x, weight, w, n := draw(model), small(model), small(wide*model), fresh(rows*model)
		c, plain, scales := fresh(rows*wide), fresh(rows*wide), fresh(rows)
		do(t, splitNorm(s, rows, wide, model, eps, x, weight, w, c, scales), RMSNormForward(s, rows, model, eps, x, weight, n),
			rowsProduct(s, rows, wide, model, matrix(n, model), transposed(w, model), 0, matrix(plain, wide)))
		check("norm and product", c, plain)

		dc, dn, residual := draw(wide), fresh(rows*model), small(rows*model)
		dx, dweight, dxPlain, dweightPlain := fresh(rows*model), fresh(model), fresh(rows*model), fresh(model)
		do(t, splitNormBackward(s, rows, wide, model, eps, x, weight, w, dc, residual, dx, dweight),
			rowsProduct(s, rows, model, wide, matrix(dc, wide), matrix(w, model), 0, matrix(dn, model)),
			RMSNormBackward(s, rows, model, eps, x, weight, dn, residual, dxPlain, dweightPlain))
		check("gradient of the norm's operand", dx, dxPlain)
		check("gradient of the norm's weight", dweight, dweightPlain)

		x = small(rows * model)
		sum, sumPlain := fresh(wide*model), fresh(wide*model)
		do(t, RMSNormForward(s, rows, model, eps, x, weight, n), splitNorm(s, rows, wide, model, eps, x, weight, w, c, scales))
		_, err := columnsProduct(s, wide, model, rows, Matrix[float32]{Data: dc, Stride: wide, Transposed: true}, matrix(n, model), matrix(sumPlain, model))
		do(t, err, groupNormSum(s, wide, model, rows, dc, x, scales, weight, sum))
		check("gradient of the weight after the norm", sum, sumPlain)
	}

	const columns = rank + 32
	u, w, weight := draw(wide), small(columns*wide), small(wide*rank)
	c, to, plain, toPlain := fresh(rows*columns), fresh(rows*wide), fresh(rows*columns), fresh(rows*wide)
	do(t, groupSteps(s, rows, columns, wide, u, w, c, weight, to), rowsProduct(s, rows, columns, wide, matrix(u, wide), transposed(w, wide), 0, matrix(plain, columns)),
		rowsProduct(s, rows, wide, rank, matrix(c, columns), transposed(weight, rank), 0, matrix(toPlain, wide)))
	check("x_proj", c, plain)
	check("step sizes", to, toPlain)

	c = small(rows * columns)
	d := draw(wide)
	dr, dw, drPlain, dwPlain := fresh(rows*columns), fresh(wide*rank), fresh(rows*columns), fresh(wide*rank)
	_, err := columnsProduct(s, wide, rank, rows, Matrix[float32]{Data: d, Stride: wide, Transposed: true}, matrix(c, columns), matrix(dwPlain, rank))
	do(t, stepGradients(s, rows, wide, columns, d, weight, c, dr, dw), err,
		rowsProduct(s, rows, rank, wide, matrix(d, wide), matrix(weight, rank), 0, matrix(drPlain, columns)))
	check("gradient of the step sizes' weight", dw, dwPlain)
	check("gradient of x_proj's result", dr, drPlain)

	y := draw(model)
	sum, sumPlain := fresh(model*wide), fresh(model*wide)
	_, err = columnsProduct(s, model, wide, rows, Matrix[float32]{Data: y, Stride: model, Transposed: true}, matrix(u, wide), matrix(sumPlain, wide))
	do(t, groupSum(s, model, wide, rows, Matrix[float32]{Data: y, Stride: model, Transposed: true}, matrix(u, wide), matrix(sum, wide)), err)
	check("gradient of out_proj's weight", sum, sumPlain)
}

// TestEarly checks which kernels begin early, and after which of them the next one may read a matrix before they have ended: not after those that can write one.
func TestEarly(t *testing.T) {
	s := open(t)
	if !s.device.overlaps {
		t.Skip("kernels begin early from compute capability 9.0 on")
	}
	const rows, width = leastNarrowRows, 16
	x, y, w := blank[float32](t, s, rows*width), blank[float32](t, s, rows*width), zeros[float32](t, s, width*width)
	ids := putInts(t, s, make([]int32, rows))
	state, loss := blank[float32](t, s, CrossEntropyState(rows)), blank[float32](t, s, 1)
	mean := func() error { return entropyMean(s, rows, -1, ids, state, loss) }
	for _, step := range []struct {
		name  string
		queue func() error
		early bool
	}{
		{"a fill", func() error { return y.Fill(s, 0) }, false},
		{"a loss after a fill", mean, false},
		{"a loss after a kernel", mean, true},
		{"a product", func() error {
			return rowsProduct(s, rows, width, width, matrix(x, width), matrix(w, width), 0, matrix(y, width))
		}, false},
		{"a loss", mean, true},
		{"a sum of parts", func() error { return s.sumParts([]partSum{sumOf(w, x, rows/width)}) }, false},
		{"a loss", mean, true},
		{"a loss", mean, true},
		{"an embedding", func() error { return EmbeddingForward(s, rows, width, width, w, ids, x) }, false},
		{"a loss", mean, true},
		{"the gradient of logits", func() error { return CrossEntropyBackward(s, rows, width, width, -1, x, ids, state, loss) }, false},
		{"a loss", mean, true},
		{"a copy", func() error { return y.CopyOf(s, x) }, false},
	} {
		if do(t, step.queue()); s.early != step.early {
			t.Errorf("after %s the next kernel can read a matrix early: %v, want %v", step.name, s.early, step.early)
		}
	}
}
