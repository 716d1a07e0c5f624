package kernel

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	gonum "gonum.org/v1/gonum/blas"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/benchtest"
	"github.com/gomamba/mamba/internal/work"
)

// reference computes a convolution and its gradients by the definition.
func (c *GridConv[T]) reference(dy []T) map[string][]T {
	_, out := c.sizes()
	x, y, dx, dWeight := c.X, make([]T, len(dy)), make([]T, len(c.X)), make([]T, len(c.Weight))
	n, filters, taps := c.Channels/c.Groups, c.Filters/c.Groups, c.taps()
	terms := func(f func(o, i, w int)) { // calls f with the index in out, in and weight of each product
		for at := range out {
			k := at % c.Filters
			o := cellAt(at/c.Filters, c.Out)
			for tap := range taps {
				j := cellAt(tap, c.Kernel)
				i := [3]int{o.z*c.Stride[0] - c.Padding[0] + j.z*c.Dilation[0], o.y*c.Stride[1] - c.Padding[1] + j.y*c.Dilation[1],
					o.x*c.Stride[2] - c.Padding[2] + j.x*c.Dilation[2]}
				if slices.Min(i[:]) < 0 || i[0] >= c.In[0] || i[1] >= c.In[1] || i[2] >= c.In[2] {
					continue
				}
				for ch := range n {
					f(at, (((o.batch*c.In[0]+i[0])*c.In[1]+i[1])*c.In[2]+i[2])*c.Channels+k/filters*n+ch, (k*n+ch)*taps+tap)
				}
			}
		}
	}
	if c.Transposed {
		terms(func(o, i, w int) { y[i] += c.Weight[w] * x[o] })
	} else {
		terms(func(o, i, w int) { y[o] += c.Weight[w] * x[i] })
	}
	dBias := make([]T, c.Filters)
	if c.Transposed {
		dBias = make([]T, c.Channels)
	}
	dsum := slices.Clone(dy)
	for i := range y {
		if c.Bias != nil {
			y[i] += c.Bias[i%len(dBias)]
		}
		if c.SiLU {
			dsum[i] *= siluSlope(y[i])
			y[i] = silu(y[i])
		}
		dBias[i%len(dBias)] += dsum[i]
	}
	if c.Transposed {
		terms(func(o, i, w int) { dx[o] += c.Weight[w] * dsum[i]; dWeight[w] += x[o] * dsum[i] })
	} else {
		terms(func(o, i, w int) { dx[i] += c.Weight[w] * dsum[o]; dWeight[w] += x[i] * dsum[o] })
	}
	return map[string][]T{"y": y, "dx": dx, "dWeight": dWeight, "dBias": dBias}
}

func drawGridConv(t *rapid.T) *GridConv[float64] {
	axes := func(name string, sizes ...int) (n [3]int) {
		for i := range n {
			n[i] = rapid.SampledFrom(sizes).Draw(t, name)
		}
		return n
	}
	c := &GridConv[float64]{Transposed: rapid.Bool().Draw(t, "transposed"), SiLU: rapid.Bool().Draw(t, "SiLU"), Gemm: blas.Implementation{}.Dgemm}
	c.Batch, c.Groups = rapid.IntRange(1, 2).Draw(t, "batch"), rapid.SampledFrom([]int{1, 1, 2, 3, 17}).Draw(t, "groups")
	each := [][2]int{{1, 1}, {1, 1}, {3, 2}, {1, 2}, {4, 1}, {16, 16}}
	n := rapid.SampledFrom(each).Draw(t, "channels and filters of a group")
	c.Channels, c.Filters = c.Groups*n[0], c.Groups*n[1]
	c.Kernel, c.Stride, c.Dilation = axes("kernel", 1, 1, 2, 3, 4), axes("stride", 1, 1, 1, 2, 3), axes("dilation", 1, 1, 1, 2)
	if c.Padding = axes("padding", 0, 1, 1, 2, 5); rapid.IntRange(0, 3).Draw(t, "usual") == 0 {
		c.Kernel, c.Stride, c.Padding, c.Dilation = [3]int{1, 3, 3}, [3]int{1, 1, 1}, [3]int{0, 1, 1}, [3]int{1, 1, 1}
	}
	c.In = axes("cells", 1, 2, 5, 7)
	for i := range c.In {
		span := c.Dilation[i]*(c.Kernel[i]-1) + 1
		end := rapid.IntRange(0, 2).Draw(t, "padding at the end")
		c.In[i] = max(c.In[i], span-c.Padding[i]-end)
		c.Out[i] = (c.In[i]+c.Padding[i]+end-span)/c.Stride[i] + 1
	}
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 7))
	in, out := c.sizes()
	biases := c.Filters
	if c.Transposed {
		in, biases = out, c.Channels
	}
	c.X, c.Weight = normals(r, in), normals(r, c.Filters*c.Channels/c.Groups*c.taps())
	if rapid.Bool().Draw(t, "bias") {
		c.Bias = normals(r, biases)
	}
	return c
}

// results returns the result and the gradients by name. Each element was NaN before.
func (c *GridConv[T]) results(dy []T) map[string][]T {
	biases := c.Filters
	if c.Transposed {
		biases = c.Channels
	}
	y, dx, dWeight, dBias := like(dy), like(c.X), like(c.Weight), like(make([]T, biases))
	c.Forward(y)
	c.Backward(dy, dx, dWeight, dBias)
	return map[string][]T{"y": y, "dx": dx, "dWeight": dWeight, "dBias": dBias}
}

func (c *GridConv[T]) narrow() *GridConv[float32] {
	v := any(c).(*GridConv[float64])
	return &GridConv[float32]{ConvShape: c.ConvShape, Transposed: c.Transposed, SiLU: c.SiLU, X: narrow(v.X), Weight: narrow(v.Weight), Bias: narrow(v.Bias),
		Gemm: blas.Implementation{}.Sgemm}
}

func TestGridConvAgainstReference(t *testing.T) {
	eachLevel(t, func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { compareGridConv(t, drawGridConv(t)) }) })
}

// Convolutions whose columns are gathered in several pieces, and one whose lines are spread in several parts.
func TestGridConvInPieces(t *testing.T) {
	image := ConvShape{Batch: 2, Channels: 64, Filters: 4, Groups: 1, In: [3]int{1, 35, 31}, Out: [3]int{1, 35, 31},
		Kernel: [3]int{1, 3, 3}, Stride: [3]int{1, 1, 1}, Padding: [3]int{0, 1, 1}, Dilation: [3]int{1, 1, 1}}
	sequence := ConvShape{Batch: 1, Channels: 3, Filters: 2, Groups: 1, In: [3]int{1, 1, 20000}, Out: [3]int{1, 1, 10000},
		Kernel: [3]int{1, 1, 9}, Stride: [3]int{1, 1, 2}, Padding: [3]int{0, 0, 4}, Dilation: [3]int{1, 1, 1}}
	for _, s := range []ConvShape{image, sequence} {
		r := rand.New(rand.NewPCG(3, 5))
		in, _ := s.sizes()
		compareGridConv(t, &GridConv[float64]{ConvShape: s, X: normals(r, in), Weight: normals(r, s.Filters*s.width()), Gemm: blas.Implementation{}.Dgemm})
	}
}

func compareGridConv(t interface{ Fatalf(string, ...any) }, c *GridConv[float64]) {
	size, out := c.sizes()
	if !c.Transposed {
		size = out
	}
	dy := normals(rand.New(rand.NewPCG(1, 2)), size)
	want, n := c.reference(dy), c.narrow()
	for name, got := range c.results(dy) {
		if err := far(got, want[name], 1e-12); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	narrow := narrow(dy)
	first := n.results(narrow)
	for name, got := range first {
		if err := far(got, want[name], 2e-5); err != nil {
			t.Fatalf("float32: %s: %v", name, err)
		}
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	for name, got := range n.results(narrow) {
		if !slices.Equal(got, first[name]) {
			t.Fatalf("%s has other bits with three processors", name)
		}
	}
}

// The working memory does not grow with the grid. All columns of this volume at once would be 56 MB.
func TestGridConvMemory(t *testing.T) {
	s := ConvShape{Batch: 1, Channels: 4, Filters: 4, Groups: 1, In: [3]int{64, 64, 32}, Out: [3]int{64, 64, 32},
		Kernel: [3]int{3, 3, 3}, Stride: [3]int{1, 1, 1}, Padding: [3]int{1, 1, 1}, Dilation: [3]int{1, 1, 1}}
	in, out := s.sizes()
	c := &GridConv[float32]{ConvShape: s, X: make([]float32, in), Weight: make([]float32, s.Filters*s.width()), Gemm: blas.Implementation{}.Sgemm}
	y, dx, dw := make([]float32, out), make([]float32, in), make([]float32, len(c.Weight))
	work.ReleaseWorkspaces()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c.Forward(y)
	c.Backward(y, dx, dw, nil)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d bytes of working memory, want at most 16 MiB", n)
	}
}

// BenchmarkGridConv measures the convolutions of small image models, in float32. gemm is the matrix product of the forward pass alone, and copy a copy of x.
func BenchmarkGridConv(b *testing.B) {
	plane := func(side, channels, filters, kernel, stride, groups int) ConvShape {
		out, padding := (side-1)/stride+1, kernel/2
		if kernel == stride {
			out, padding = side/stride, 0
		}
		return ConvShape{
			Batch: 1, Channels: channels, Filters: filters, Groups: groups, In: [3]int{1, side, side}, Out: [3]int{1, out, out},
			Kernel: [3]int{1, kernel, kernel}, Stride: [3]int{1, stride, stride}, Padding: [3]int{0, padding, padding}, Dilation: [3]int{1, 1, 1},
		}
	}
	volume := plane(24, 32, 32, 3, 1, 1)
	volume.In[0], volume.Out[0], volume.Kernel[0], volume.Padding[0] = 24, 24, 3, 1
	for _, c := range []struct {
		name  string
		shape ConvShape
	}{
		{"depthwise3x3-56-96", plane(56, 96, 96, 3, 1, 96)},
		{"depthwise3x3-256-96", plane(256, 96, 96, 3, 1, 96)},
		{"stem3x3-224-3to48", plane(224, 3, 48, 3, 2, 1)},
		{"down3x3-56-96to192", plane(56, 96, 192, 3, 2, 1)},
		{"patch16-224-3to192", plane(224, 3, 192, 16, 16, 1)},
		{"dense3x3-128-32", plane(128, 32, 32, 3, 1, 1)},
		{"dense3x3x3-24-32", volume},
	} {
		r := rand.New(rand.NewPCG(5, 5))
		in, out := c.shape.sizes()
		weights := c.shape.Filters * c.shape.width()
		x, y, w, dx, dw := narrow(normals(r, in)), narrow(normals(r, out)), narrow(normals(r, weights)), make([]float32, in), make([]float32, weights)
		g := &GridConv[float32]{ConvShape: c.shape, X: x, Weight: w, Gemm: blas.Implementation{}.Sgemm}
		run := func(name string, f func()) {
			b.Run(c.name+"/"+name, func(b *testing.B) {
				benchtest.Processors(b)
				for b.Loop() {
					f()
				}
			})
		}
		run("forward", func() { g.Forward(y) })
		run("backward", func() { g.Backward(y, dx, dw, nil) })
		run("copy", func() { Sum(dx, x, x) })
		if rows, width := out/c.shape.Filters, c.shape.width(); !c.shape.isDepthwise() {
			a := make([]float32, rows*width)
			run("gemm", func() {
				g.Gemm(gonum.NoTrans, gonum.Trans, rows, c.shape.Filters, width, 1, a, width, w, width, 0, y, c.shape.Filters)
			})
		}
	}
}
