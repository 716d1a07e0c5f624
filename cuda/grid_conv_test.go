package cuda

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/kernel"
)

// gridConvs are convolutions that need each kernel: with one and with four channels at a time, of planes, in several tiles, parts and pieces.
func gridConvs() (all []GridConv) {
	plane := func(batch, height, width, channels, filters, groups int) ConvShape {
		s := ConvShape{
			Batch: batch, Channels: channels, Filters: filters, Groups: groups, In: [3]int{1, height, width}, Kernel: [3]int{1, 3, 3},
			Stride: [3]int{1, 1, 1}, Padding: [3]int{0, 1, 1}, Dilation: [3]int{1, 1, 1},
		}
		s.Out = s.In
		return s
	}
	strided := plane(2, 9, 7, 12, 8, 4)
	strided.Stride, strided.Out = [3]int{1, 2, 3}, [3]int{1, 5, 3}
	volume := plane(1, 5, 3, 6, 4, 1)
	volume.In[0], volume.Out[0], volume.Kernel[0], volume.Padding[0] = 4, 4, 2, 1
	volume.Out[0] = 5
	wide := plane(2, 6, 5, 8, 8, 8)
	wide.Kernel, wide.Dilation, wide.Padding = [3]int{1, 2, 4}, [3]int{1, 1, 2}, [3]int{0, 1, 3}
	wide.Out = [3]int{1, 7, 5}
	stack := plane(2, 3, 4, 8, 8, 8)
	stack.In[0], stack.Out[0] = 3, 3
	patches := plane(2, 8, 12, 3, 20, 1)
	patches.Kernel, patches.Stride, patches.Padding, patches.Out = [3]int{1, 4, 4}, [3]int{1, 4, 4}, [3]int{}, [3]int{1, 2, 3}
	one := plane(2, 3, 5, 8, 12, 1)
	one.Kernel, one.Padding = [3]int{1, 1, 1}, [3]int{}
	long := plane(1, 1, 130, 5, 7, 1)
	long.Kernel, long.Padding = [3]int{1, 1, 3}, [3]int{0, 0, 1}
	for _, s := range []ConvShape{
		plane(7, 5, 9, 4, 8, 1), long, plane(2, 7, 5, 4, 4, 4), plane(1, 33, 3, 100, 100, 100), plane(2, 2, 70, 6, 6, 6), plane(1, 1, 1, 132, 132, 132), plane(2, 5, 7, 3, 5, 1),
		strided, volume, wide, stack, patches, one,
	} {
		for _, transposed := range []bool{false, true} {
			for _, silu := range []bool{false, true} {
				all = append(all, GridConv{ConvShape: s, Transposed: transposed, SiLU: silu})
			}
		}
	}
	return all
}

// Results and gradients are those of the host, without the gradients that are not wanted too, and the same bits in a second run; with each set of kernels.
func TestGridConv(t *testing.T) {
	s := open(t)
	defer func(limit, kernels int) { columnsLimit, s.device.kernels = limit, kernels }(columnsLimit, s.device.kernels)
	columnsLimit = 0 // 64 cells at a time
	newest := s.device.kernels
	r := rand.New(rand.NewPCG(14, 3))
	for _, c := range gridConvs() {
		host := kernel.GridConv[float64]{ConvShape: kernel.ConvShape(c.ConvShape), Transposed: c.Transposed, SiLU: c.SiLU, Gemm: blas.Implementation{}.Dgemm}
		in, out := c.lengths()
		host.X, host.Weight = numbers[float32](r, in, 1), numbers[float32](r, c.Filters*c.Channels/c.Groups*c.taps(), 0.5)
		dy := numbers[float32](r, out, 1)
		if c.SiLU {
			host.Bias = numbers[float32](r, c.biases(), 1)
		}
		y, dx, dw, db := make([]float64, out), make([]float64, in), make([]float64, len(host.Weight)), make([]float64, c.biases())
		host.Forward(y)
		host.Backward(dy, dx, dw, db)
		c.X, c.Weight, c.Bias = put[float32](t, s, host.X), put[float32](t, s, host.Weight), put[float32](t, s, host.Bias)
		d := put[float32](t, s, dy)
		for _, p := range []struct {
			Precision
			tol float64
		}{{Strict, 2e-5}, {FP16x3, 2e-5}, {TF32, 5e-3}, {BF16, 3e-2}} {
			t.Run(fmt.Sprintf("%+v transposed %t SiLU %t %v", c.ConvShape, c.Transposed, c.SiLU, p.Precision), func(t *testing.T) {
				c := c
				c.Precision = p.Precision
				var first [][]float64
				for run := range 3 {
					if s.device.kernels = newest; run == 2 {
						s.device.kernels = 70
					}
					gy, gx, gw, gb := blank[float32](t, s, out), blank[float32](t, s, in), blank[float32](t, s, len(dw)), blank[float32](t, s, len(db))
					do(t, c.Forward(s, gy), c.Backward(s, d, gx, gw, gb))
					got := [][]float64{get(t, s, gy), get(t, s, gx), get(t, s, gw), get(t, s, gb)}
					if run != 1 {
						first = got
						near(t, "y", got[0], y, p.tol)
						near(t, "dx", got[1], dx, p.tol)
						near(t, "dweight", got[2], dw, p.tol)
						near(t, "dbias", got[3], db, p.tol)
						do(t, c.Backward(s, d, Array[float32]{}, gw, Array[float32]{}), c.Backward(s, d, gx, Array[float32]{}, gb))
						near(t, "dweight alone", get(t, s, gw), dw, p.tol)
						near(t, "dx without dweight", get(t, s, gx), dx, p.tol)
					}
					for i := range got {
						if !slices.Equal(got[i], first[i]) {
							t.Errorf("result %d has other bits in the second run", i)
						}
					}
				}
			})
		}
	}
}
