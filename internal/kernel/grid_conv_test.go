package kernel

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/blas"
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
