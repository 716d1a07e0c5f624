package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/work"
)

// referenceNorm is the norm of the numbers at the given places, with one weight and bias for each: y, and the gradient of x from that of y.
func referenceNorm(x, w, b, dy []float64, eps float64, y, dx, hat []float64) {
	n := float64(len(x))
	var mean, variance, g, gh float64
	for _, v := range x {
		mean += v / n
	}
	for _, v := range x {
		variance += (v - mean) * (v - mean) / n
	}
	s := 1 / math.Sqrt(variance+eps)
	for i, v := range x {
		hat[i] = (v - mean) * s
		y[i] = hat[i]*w[i] + b[i]
		g, gh = g+dy[i]*w[i]/n, gh+dy[i]*w[i]*hat[i]/n
	}
	for i := range x {
		dx[i] = s * (dy[i]*w[i] - g - hat[i]*gh)
	}
}

// The norms and their gradients equal their definition, in both types, also far from zero.
func TestNormsAgainstReference(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			rows, channels := rapid.SampledFrom([]int{2, 3, 63, 65, 700}).Draw(t, "rows"), rapid.SampledFrom([]int{1, 2, 5, 16, 33, 130}).Draw(t, "channels")
			groups := rapid.SampledFrom([]int{1, 2, 3}).Draw(t, "groups")
			offset := rapid.SampledFrom([]float64{0, 1000}).Draw(t, "offset")
			r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 4))
			n := groups * rows * channels
			x, dy, w, b := normals(r, n), normals(r, n), normals(r, channels), normals(r, channels)
			for i := range x {
				x[i] = float64(float32(x[i] + offset))
			}
			zeros := func(n int) []float64 { return make([]float64, n) }
			const eps = 0.1
			compare := func(what string, got, want []float64, narrowed []float32, tol float64) {
				if err := far(got, want, 1e-10); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if err := far(narrowed, want, tol); err != nil {
					t.Fatalf("%s in float32: %v", what, err)
				}
			}
			of := func(instance bool) {
				y, dx, dw, db := zeros(n), zeros(n), zeros(channels), zeros(channels)
				each, stride, count := n/channels, 1, channels // lines of the norm, the distance of their numbers, and how many
				if instance {
					each, stride, count = groups*channels, channels, rows
				}
				for line := range each {
					first := line * channels
					if instance {
						first = line/channels*rows*channels + line%channels
					}
					lx, lw, lb, ld, ly, ldx, lh := zeros(count), zeros(count), zeros(count), zeros(count), zeros(count), zeros(count), zeros(count)
					for i := range count {
						at := first + i*stride
						lx[i], lw[i], lb[i], ld[i] = x[at], w[at%channels], b[at%channels], dy[at]
					}
					referenceNorm(lx, lw, lb, ld, eps, ly, ldx, lh)
					for i := range count {
						at := first + i*stride
						y[at], dx[at] = ly[i], ldx[i]
						dw[at%channels] += ld[i] * lh[i]
						db[at%channels] += ld[i]
					}
				}
				gy, gdx, gdw, gdb := zeros(n), zeros(n), zeros(channels), zeros(channels)
				y32, dx32, dw32, db32 := narrow(gy), narrow(gdx), narrow(gdw), narrow(gdb)
				if instance {
					c := &ChannelNorm[float64]{Groups: groups, Rows: rows, Channels: channels, Eps: eps, X: x, Weight: w, Bias: b}
					c.Forward(gy, nil, nil)
					c.Backward(dy, nil, nil, ChannelNormGrad[float64]{X: gdx, Weight: gdw, Bias: gdb})
					c32 := &ChannelNorm[float32]{Groups: groups, Rows: rows, Channels: channels, Eps: eps, X: narrow(x), Weight: narrow(w), Bias: narrow(b)}
					c32.Forward(y32, nil, nil)
					c32.Backward(narrow(dy), nil, nil, ChannelNormGrad[float32]{X: dx32, Weight: dw32, Bias: db32})
				} else {
					l := &LayerNorm[float64]{Channels: channels, Eps: eps, X: x, Weight: w, Bias: b}
					l.Forward(gy)
					l.Backward(dy, gdx, gdw, gdb)
					l32 := &LayerNorm[float32]{Channels: channels, Eps: eps, X: narrow(x), Weight: narrow(w), Bias: narrow(b)}
					l32.Forward(y32)
					l32.Backward(narrow(dy), dx32, dw32, db32)
				}
				sums := 4e-6 + 1e-7*float64(groups*rows)
				compare("y", gy, y, y32, 4e-6)
				compare("dx", gdx, dx, dx32, 4e-6)
				compare("dweight", gdw, dw, dw32, sums)
				compare("dbias", gdb, db, db32, sums)
			}
			of(false)
			of(true)
		})
	})
}

// A row and a channel of float32 of any magnitude neither overflow nor underflow.
func TestNormsSizes(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, size := range []float64{1e-38, 1e-20, 1e19, 3e38} {
			x, want := make([]float64, 60), make([]float64, 60)
			for i := range x {
				x[i] = float64(float32(size * math.Sin(float64(i))))
			}
			y := make([]float32, 60)
			(&LayerNorm[float64]{Channels: 30, X: x}).Forward(want)
			(&LayerNorm[float32]{Channels: 30, X: narrow(x)}).Forward(y)
			if err := far(y, want, 1e-5); err != nil {
				t.Errorf("layer norm of %v: %v", size, err)
			}
			(&ChannelNorm[float64]{Groups: 2, Rows: 10, Channels: 3, X: x}).Forward(want, nil, nil)
			(&ChannelNorm[float32]{Groups: 2, Rows: 10, Channels: 3, X: narrow(x)}).Forward(y, nil, nil)
			if err := far(y, want, 1e-5); err != nil {
				t.Errorf("channel norm of %v: %v", size, err)
			}
		}
	})
}

// Blocks of cells are where their definition says, and come back.
func TestBlocks(t *testing.T) {
	for _, b := range []Blocks{
		{Batch: 2, Wide: [3]int{1, 4, 6}, Deep: [3]int{1, 2, 3}, Block: [3]int{1, 2, 2}, Channels: 3, FirstFastest: true},
		{Batch: 1, Wide: [3]int{3, 5, 4}, Deep: [3]int{2, 2, 4}, Block: [3]int{2, 3, 1}, Channels: 2},
		{Batch: 1, Wide: [3]int{3, 5, 4}, Deep: [3]int{1, 1, 4}, Block: [3]int{2, 3, 1}, Channels: 2, FirstFastest: true},
	} {
		parts := b.parts()
		x := make([]float64, b.Batch*b.Wide[0]*b.Wide[1]*b.Wide[2]*b.Channels)
		for i := range x {
			x[i] = float64(i + 1)
		}
		y := make([]float64, b.Batch*b.Deep[0]*b.Deep[1]*b.Deep[2]*parts*b.Channels)
		SpaceToDepth(&b, y, x)
		back := make([]float64, len(x))
		DepthToSpace(&b, back, y)
		seen := 0
		for i, v := range x {
			c, cell := i%b.Channels, i/b.Channels
			w, h, d, batch := cell%b.Wide[2], cell/b.Wide[2]%b.Wide[1], cell/b.Wide[2]/b.Wide[1]%b.Wide[0], cell/b.Wide[2]/b.Wide[1]/b.Wide[0]
			dd, hh, ww := d/b.Block[0], h/b.Block[1], w/b.Block[2]
			if dd >= b.Deep[0] || hh >= b.Deep[1] || ww >= b.Deep[2] {
				v = 0
			} else {
				seen++
				i, j, k := d%b.Block[0], h%b.Block[1], w%b.Block[2]
				part := (i*b.Block[1]+j)*b.Block[2] + k
				if b.FirstFastest {
					part = (k*b.Block[1]+j)*b.Block[0] + i
				}
				if got := y[((((batch*b.Deep[0]+dd)*b.Deep[1]+hh)*b.Deep[2]+ww)*parts+part)*b.Channels+c]; got != v {
					t.Fatalf("%+v: element %d is %v, want %v", b, i, got, v)
				}
			}
			if back[i] != v {
				t.Fatalf("%+v: element %d comes back as %v, want %v", b, i, back[i], v)
			}
		}
		rest := 0
		for _, v := range y {
			if v == 0 {
				rest++
			}
		}
		if rest != len(y)-seen {
			t.Errorf("%+v: %d zeros, want %d", b, rest, len(y)-seen)
		}
	}
}

// A negative number and zero become zero, and a NaN stays.
func TestReLU(t *testing.T) {
	x, y, dx := []float32{-1, 0, 2, float32(math.NaN()), float32(math.Inf(-1))}, make([]float32, 5), make([]float32, 5)
	Gate(ReLU, y, x, nil)
	GateBackward(ReLU, dx, nil, []float32{1, 2, 3, 4, 5}, x, nil)
	if got := fmt.Sprint(y, dx); got != "[0 0 2 NaN 0] [0 0 3 4 0]" {
		t.Errorf("ReLU and its gradient are %s", got)
	}
}

// GELU in float32 is that of float64 to within rounding, also of infinities.
func TestGELU(t *testing.T) {
	for x := float32(-12); x < 12; x += 0.0037 {
		y, want := gelu(x), gelu(float64(x))
		if !(math.Abs(float64(y)-want) <= 4e-7*math.Abs(float64(x))) {
			t.Fatalf("GELU of %v is %v, want %v", x, y, want)
		}
		if slope, want := geluSlope(x), geluSlope(float64(x)); !(math.Abs(float64(slope)-want) <= 6e-7) {
			t.Fatalf("the slope of GELU at %v is %v, want %v", x, slope, want)
		}
	}
	if got := fmt.Sprint(gelu(float32(math.Inf(1))), geluSlope(float32(math.Inf(1))), geluSlope(float32(math.Inf(-1))), gelu(float32(math.NaN()))); got != "+Inf 1 0 NaN" {
		t.Errorf("GELU and its slopes at infinity are %s", got)
	}
}

// The maximum of a window with a NaN is NaN, and its gradient goes there; of equal numbers to the first one.
func TestWindowNaN(t *testing.T) {
	nan := math.NaN()
	p := &Window{Batch: 1, Channels: 1, From: [3]int{1, 1, 6}, To: [3]int{1, 1, 3}, Size: [3]int{1, 1, 2}, Stride: [3]int{1, 1, 2}, Max: true}
	y, dx := make([]float64, 3), make([]float64, 6)
	x := []float64{5, nan, 7, 7, math.Inf(-1), math.Inf(-1)}
	WindowForward(p, y, x)
	WindowBackward(p, dx, []float64{1, 2, 3}, x)
	if got := fmt.Sprint(y, dx); got != "[NaN 7 -Inf] [0 1 2 0 3 0]" {
		t.Errorf("the maxima and the gradients are %s", got)
	}
}

func BenchmarkGrid(b *testing.B) {
	const cells, channels = 3136, 96
	r := rand.New(rand.NewPCG(1, 1))
	x := narrow(normals(r, cells*channels))
	y, dx, w, dw, db := like(x), like(x), x[:channels], like(x[:channels]), like(x[:channels])
	run := func(name string, bytes int, f func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(bytes * len(y)))
			benchtest.Processors(b)
			for b.Loop() {
				f()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(y)), "ns/element")
		})
	}
	run("copy", 8, func() { work.ParallelRange(len(y), piece, func(from, to int) { copy(y[from:to], x[from:to]) }) })
	l := &LayerNorm[float32]{Channels: channels, Eps: 1e-5, X: x, Weight: w, Bias: w}
	run("LayerNorm/forward", 8, func() { l.Forward(y) })
	run("LayerNorm/backward", 12, func() { l.Backward(x, dx, dw, db) })
	c := &ChannelNorm[float32]{Groups: 1, Rows: cells, Channels: channels, Eps: 1e-5, X: x, Weight: w, Bias: w}
	run("InstanceNorm/forward", 16, func() { c.Forward(y, nil, nil) })
	run("InstanceNorm/backward", 28, func() { c.Backward(x, nil, nil, ChannelNormGrad[float32]{X: dx, Weight: dw, Bias: db}) })
	merge := &Blocks{Batch: 1, Wide: [3]int{1, 56, 56}, Deep: [3]int{1, 28, 28}, Block: [3]int{1, 2, 2}, Channels: channels, FirstFastest: true}
	run("SpaceToDepth", 8, func() { SpaceToDepth(merge, y, x) })
	for _, f := range []Activation{SiLU, GELU, ReLU} {
		run(fmt.Sprintf("Activate/forward/%v", f), 8, func() { Gate(f, y, x, nil) })
		run(fmt.Sprintf("Activate/backward/%v", f), 12, func() { GateBackward(f, dx, nil, y, x, nil) })
	}
	for mode := range interpolations {
		p := &Interpolate{Batch: 1, Channels: channels, From: [3]int{1, 28, 28}, To: [3]int{1, 56, 56}, Mode: mode}
		run(fmt.Sprintf("Interpolate/forward/%v", mode), 5, func() { InterpolateForward(p, y, x[:28*28*channels]) })
		run(fmt.Sprintf("Interpolate/backward/%v", mode), 5, func() { InterpolateBackward(p, dx[:28*28*channels], x) })
	}
	for _, largest := range []bool{false, true} {
		p := &Window{Batch: 1, Channels: channels, From: [3]int{1, 56, 56}, To: [3]int{1, 28, 28}, Size: [3]int{1, 2, 2}, Stride: [3]int{1, 2, 2}, Max: largest}
		run(fmt.Sprintf("Window/forward/max=%t", largest), 5, func() { WindowForward(p, y[:28*28*channels], x) })
		run(fmt.Sprintf("Window/backward/max=%t", largest), 9, func() { WindowBackward(p, dx, y[:28*28*channels], x) })
	}
	mean := &MeanPool{Batch: 1, Length: cells, Channels: channels}
	run("MeanPool/forward", 4, func() { MeanPoolForward(mean, dw, x) })
}
