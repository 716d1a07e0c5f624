package kernel

import (
	"math"
	"slices"
	"testing"
)

// widen copies v (rows, width) to the first columns of rows of stride elements. The other columns are NaN.
func widen(v []float32, width, stride int) []float32 {
	w := make([]float32, len(v)/width*stride)
	for i := range w {
		w[i] = float32(math.NaN())
	}
	for i := 0; i < len(v)/width; i++ {
		copy(w[i*stride:], v[i*width:(i+1)*width])
	}
	return w
}

// equalRows reports whether wide, whose rows have stride elements, holds v (rows, width) in its first columns and NaN in the others.
func equalRows(wide, v []float32, width, stride int) bool {
	for i, x := range wide {
		if row, column := i/stride, i%stride; column < width && x != v[row*width+column] || column >= width && x == x {
			return false
		}
	}
	return true
}

// Operands that are part of wider matrices give the same results. Nothing but their gradients is written.
func TestScanStrides(t *testing.T) {
	c := scanCase{batch: 2, length: 70, channels: 34, state: 5, bGroups: 1, cGroups: 2, d: true, z: true, bias: true, softplus: true}
	var dense *Scan[float32]
	dense = dense.narrow(c.make64(1))
	wide := *dense
	wide.Z, wide.ZStride = widen(dense.Z, 34, 71), 71
	wide.B.Data, wide.B.Stride = widen(dense.B.Data, 5, 9), 9
	wide.C.Data, wide.C.Stride = widen(dense.C.Data, 10, 23), 23

	y, wideY := like(dense.U), like(dense.U)
	dense.Forward(y, nil)
	wide.Forward(wideY, nil)
	if !slices.Equal(y, wideY) {
		t.Error("y differs")
	}
	g, wideG := dense.newGrad(), wide.newGrad()
	wideG.Y = like(dense.U)
	dense.Backward(dense.U, nil, g)
	wide.Backward(dense.U, nil, wideG)
	if !slices.Equal(wideG.Y, y) {
		t.Error("y of the backward pass differs")
	}
	if !equalRows(wideG.Z, g.Z, 34, 71) || !equalRows(wideG.B, g.B, 5, 9) || !equalRows(wideG.C, g.C, 10, 23) {
		t.Error("a gradient with a stride differs")
	}
	for name, want := range g.named() {
		if got := wideG.named()[name]; len(got) == len(want) && !slices.Equal(got, want) {
			t.Errorf("gradient of %s differs", name)
		}
	}
}

func TestConvStride(t *testing.T) {
	v := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(math.Sin(float64(i)))
		}
		return x
	}
	const batch, length, channels, width, stride = 2, 9, 7, 4, 13
	dense := Conv[float32]{Batch: batch, Length: length, Channels: channels, Width: width,
		X: v(batch * length * channels), Weight: v(channels * width), Bias: v(channels), SiLU: true}
	wide := dense
	wide.X, wide.XStride = widen(dense.X, channels, stride), stride
	y, wideY := like(dense.X), like(dense.X)
	dense.Forward(y, nil)
	wide.Forward(wideY, nil)
	if !slices.Equal(y, wideY) {
		t.Error("y differs")
	}
	grad := func(c *Conv[float32]) *ConvGrad[float32] {
		return &ConvGrad[float32]{X: like(c.X), Weight: like(c.Weight), Bias: like(c.Bias)}
	}
	g, wideG := grad(&dense), grad(&wide)
	dense.Backward(y, nil, g)
	wide.Backward(y, nil, wideG)
	if !equalRows(wideG.X, g.X, channels, stride) || !slices.Equal(wideG.Weight, g.Weight) || !slices.Equal(wideG.Bias, g.Bias) {
		t.Error("a gradient differs")
	}
}
