package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/gomamba/mamba/internal/kernel"
)

// The norms on the device equal the host's in float64, for each kernel and for rows of any width, also far from zero.
func TestNormsOfGrids(t *testing.T) {
	s := open(t)
	widths := []int{1, 3, 4, 100, 384, 772, 1028, 3076, 52, 96, 192, 700, 1024, 3072}
	for _, width := range widths[:times(len(widths), 8)] { // one of each kernel first
		for _, offset := range []float64{0, 1e4} {
			const rows = 37
			r := rand.New(rand.NewPCG(uint64(width), 3))
			x, dy, w, b := numbers[float32](r, rows*width, 1), numbers[float32](r, rows*width, 1), numbers[float32](r, width, 1), numbers[float32](r, width, 1)
			for i := range x {
				x[i] = float64(float32(x[i] + offset))
			}
			dX, dDY, dW, dB := put[float32](t, s, x), put[float32](t, s, dy), put[float32](t, s, w), put[float32](t, s, b)
			check := func(what string, got, want []float64, tol float64) {
				t.Helper()
				near(t, fmt.Sprintf("%s of width %d, offset %g", what, width, offset), got, want, tol*math.Sqrt(float64(width)))
			}
			y, dx, dw, db := blank[float32](t, s, rows*width), blank[float32](t, s, rows*width), blank[float32](t, s, width), blank[float32](t, s, width)
			wantY, wantDX, wantDW, wantDB := make([]float64, rows*width), make([]float64, rows*width), make([]float64, width), make([]float64, width)
			if width > 1 { // the norm of one number is 0 or, with rounding, anything
				n := &LayerNorm{Rows: rows, Width: width, Eps: 1e-5, X: dX, Weight: dW, Bias: dB}
				do(t, n.Forward(s, y), n.Backward(s, dDY, dx, dw, db))
				host := &kernel.LayerNorm[float64]{Channels: width, Eps: 1e-5, X: x, Weight: w, Bias: b}
				host.Forward(wantY)
				host.Backward(dy, wantDX, wantDW, wantDB)
				for i, got := range []Array[float32]{y, dx, dw, db} {
					check(fmt.Sprint("layer norm: result ", i), get(t, s, got), [][]float64{wantY, wantDX, wantDW, wantDB}[i], 2e-6)
				}
			}
			for _, groups := range []int{1, 37} {
				if groups > 1 && width > 100 { // a group has one row
					continue
				}
				c := &ChannelNorm{Groups: groups, Rows: rows / groups, Channels: width, Eps: 0.1, X: dX, Weight: dW, Bias: dB}
				mean, variance := blank[float32](t, s, groups*width), blank[float32](t, s, groups*width)
				kept, err := c.Forward(s, y, mean, variance, true)
				do(t, err, c.Backward(s, kept, dDY, Array[float32]{}, Array[float32]{}, &ChannelNormGrad{X: dx, Weight: dw, Bias: db}))
				kept.Free()
				wantMean, wantVariance := make([]float64, groups*width), make([]float64, groups*width)
				host := &kernel.ChannelNorm[float64]{Groups: groups, Rows: rows / groups, Channels: width, Eps: 0.1, X: x, Weight: w, Bias: b}
				host.Forward(wantY, wantMean, wantVariance)
				host.Backward(dy, nil, nil, kernel.ChannelNormGrad[float64]{X: wantDX, Weight: wantDW, Bias: wantDB})
				for i, got := range []Array[float32]{y, dx, dw, db, mean, variance} {
					check(fmt.Sprintf("channel norm of %d groups: result %d", groups, i), get(t, s, got),
						[][]float64{wantY, wantDX, wantDW, wantDB, wantMean, wantVariance}[i], 2e-6)
				}
				r := numbers[float32](rand.New(rand.NewPCG(7, uint64(width))), rows*width, 1)
				dR, dDR, wantDR := put[float32](t, s, r), blank[float32](t, s, rows*width), make([]float64, rows*width)
				for f := Nonlinearity(0); f < 10 && offset == 0 && width <= 384; f++ { // each with a residual, and with its norm
					c.Activated, c.Activation, c.Residual, c.NormResidual = true, f%5, dR, f >= 5
					kept, err := c.Forward(s, y, Array[float32]{}, Array[float32]{}, true)
					do(t, err, c.Backward(s, kept, dDY, Array[float32]{}, Array[float32]{}, &ChannelNormGrad{X: dx, Weight: dw, Bias: db, Residual: dDR}))
					kept.Free()
					host := &kernel.ActivatedNorm[float64]{ChannelNorm: *host, Activation: kernel.Activation(f % 5), Residual: r, NormResidual: f >= 5}
					host.Forward(wantY)
					host.Backward(dy, wantDX, wantDW, wantDB, wantDR)
					for i, got := range []Array[float32]{y, dx, dw, db, dDR} {
						check(fmt.Sprintf("activated norm %d of %d groups: result %d", f, groups, i), get(t, s, got),
							[][]float64{wantY, wantDX, wantDW, wantDB, wantDR}[i], 4e-6)
					}
				}
			}
		}
	}
}

// A row and a channel of floats of any magnitude neither overflow nor underflow.
func TestNormsOfExtremes(t *testing.T) {
	s := open(t)
	for _, size := range []float64{1e-30, 1e-18, 1, 1e18, 1e38} {
		x := make([]float64, 64)
		for i := range x {
			x[i] = float64(float32(size * math.Sin(float64(i))))
		}
		in, y := put[float32](t, s, x), blank[float32](t, s, len(x))
		want := make([]float64, len(x))
		for _, width := range []int{32, 31 + 1} {
			do(t, (&LayerNorm{Rows: 64 / width, Width: width, X: in}).Forward(s, y))
			(&kernel.LayerNorm[float64]{Channels: width, X: x}).Forward(want)
			near(t, fmt.Sprint("layer norm of ", size), get(t, s, y), want, 1e-5)
		}
		_, err := (&ChannelNorm{Groups: 1, Rows: 16, Channels: 4, X: in}).Forward(s, y, Array[float32]{}, Array[float32]{}, false)
		do(t, err)
		(&kernel.ChannelNorm[float64]{Groups: 1, Rows: 16, Channels: 4, X: x}).Forward(want, nil, nil)
		near(t, fmt.Sprint("channel norm of ", size), get(t, s, y), want, 1e-5)
	}
}

// The norms of many rows have the same bits in every run.
func TestNormsOfGridsAreDeterministic(t *testing.T) {
	s := open(t)
	const rows, width = 1537, 36
	r := rand.New(rand.NewPCG(2, 9))
	x, dy := put[float32](t, s, numbers[float32](r, rows*width, 1)), put[float32](t, s, numbers[float32](r, rows*width, 1))
	n := &LayerNorm{Rows: rows, Width: width, Eps: 1e-5, X: x}
	c := &ChannelNorm{Groups: 1, Rows: rows, Channels: width, Eps: 1e-5, X: x}
	var first []float64
	for range times(10, 2) {
		dx, dw, db := blank[float32](t, s, rows*width), blank[float32](t, s, width), blank[float32](t, s, width)
		do(t, n.Backward(s, dy, dx, dw, db))
		got := append(append(get(t, s, dx), get(t, s, dw)...), get(t, s, db)...)
		kept, err := c.Forward(s, dx, Array[float32]{}, Array[float32]{}, true)
		do(t, err, c.Backward(s, kept, dy, Array[float32]{}, Array[float32]{}, &ChannelNormGrad{X: dx, Weight: dw, Bias: db}))
		kept.Free()
		got = append(append(append(got, get(t, s, dx)...), get(t, s, dw)...), get(t, s, db)...)
		if first == nil {
			first = got
		}
		for i := range got {
			if got[i] != first[i] {
				t.Fatalf("number %d is %v and was %v in the first run", i, got[i], first[i])
			}
		}
	}
}

func BenchmarkGridOps(b *testing.B) {
	s := open(b)
	const n = 128 * 56 * 56 * 96 // VMamba-T's first stage, a batch of 128
	x, dy, y := blank[float32](b, s, n), blank[float32](b, s, n), blank[float32](b, s, n)
	do(b, x.Fill(s, 0x3f), dy.Fill(s, 0x3d))
	run := func(name string, bytes int, f func() error) {
		b.Run(name, func(b *testing.B) { measure(b, s, bytes, f) })
	}
	for _, width := range []int{96, 192, 384, 768, 1536} {
		w, bias, dw, db := blank[float32](b, s, width), blank[float32](b, s, width), blank[float32](b, s, width), blank[float32](b, s, width)
		do(b, w.Fill(s, 0x3f), bias.Fill(s, 0x3f))
		l := &LayerNorm{Rows: n / width, Width: width, Eps: 1e-5, X: x, Weight: w, Bias: bias}
		run(fmt.Sprint("LayerNorm/forward/", width), 8*n, func() error { return l.Forward(s, y) })
		run(fmt.Sprint("LayerNorm/backward/", width), 12*n, func() error { return l.Backward(s, dy, y, dw, db) })
	}
	for _, channels := range []int{32, 48} {
		const cells = 768 * 1024 // with 48 channels as many numbers as above; with 32 channels a grid of 128³ would be 1.7 times as many
		c := &ChannelNorm{Groups: 1, Rows: cells, Channels: channels, Eps: 1e-5, X: x}
		size := cells * channels
		kept, err := c.Forward(s, y, Array[float32]{}, Array[float32]{}, true)
		do(b, err)
		run(fmt.Sprint("InstanceNorm/forward/", channels), 12*size, func() error {
			_, err := c.Forward(s, y, Array[float32]{}, Array[float32]{}, false)
			return err
		})
		run(fmt.Sprint("InstanceNorm/backward/", channels), 20*size, func() error {
			return c.Backward(s, kept, dy, Array[float32]{}, Array[float32]{}, &ChannelNormGrad{X: y})
		})
		kept.Free()
	}
	merge := &Blocks{Batch: 128, Wide: [3]int{1, 56, 56}, Deep: [3]int{1, 28, 28}, Block: [3]int{1, 2, 2}, Channels: 96, FirstFastest: true}
	run("SpaceToDepth", 8*n, func() error { return merge.SpaceToDepth(s, x, y) })
	run("DepthToSpace", 8*n, func() error { return merge.DepthToSpace(s, x, y) })
	for _, f := range []Nonlinearity{SiLU, GELU, ReLU} {
		run(fmt.Sprint("Activate/forward/", f), 8*n, func() error { return Gate(s, f, x, Array[float32]{}, y) })
		run(fmt.Sprint("Activate/backward/", f), 12*n, func() error { return GateBackward(s, f, x, Array[float32]{}, dy, y, Array[float32]{}) })
	}
	run("AddRows", 8*n, func() error { return AddRows(s, x, dy.Slice(0, 56*56*96), y) })
	run("CopyRows", 8*n/2, func() error { return CopyRows(s, n/192, 96, x, 96, y, 192) })
	for _, mode := range []Interpolation{InterpolateNearest, InterpolateLinear, InterpolateCubic} {
		p := &Interpolate{Batch: 128, Channels: 96, From: [3]int{1, 28, 28}, To: [3]int{1, 56, 56}, Mode: mode}
		run(fmt.Sprint("Interpolate/forward/", mode), 5*n, func() error { return p.Forward(s, x, y) })
		run(fmt.Sprint("Interpolate/backward/", mode), 5*n, func() error { return p.Backward(s, x, y) })
	}
	for _, largest := range []bool{false, true} {
		p := &Window{Batch: 128, Channels: 96, From: [3]int{1, 56, 56}, To: [3]int{1, 28, 28}, Size: [3]int{1, 2, 2}, Stride: [3]int{1, 2, 2}, Max: largest}
		run(fmt.Sprint("Window/forward/max=", largest), 5*n, func() error { return p.Forward(s, x, y) })
		run(fmt.Sprint("Window/backward/max=", largest), 5*n, func() error { return p.Backward(s, x, dy, y) })
	}
	mean := &MeanPool{Batch: 128, Length: 56 * 56, Channels: 96}
	run("MeanPool/forward", 4*n, func() error { return mean.Forward(s, x, y) })
	run("MeanPool/backward", 4*n, func() error { return mean.Backward(s, x, y) })
}
