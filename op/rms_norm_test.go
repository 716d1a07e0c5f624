package op

import (
	"math"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

func TestRMSNorm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batch, length, width := size(t, "batch", 3), size(t, "length", 4), size(t, "width", 6)
		eps := rapid.SampledFrom([]float64{0.1, 1e-3, 1}).Draw(t, "eps")
		x, weight := drawInput(t, "x", batch, length, width), drawInput(t, "weight", width)
		data := x.Value.Data().([]float64)
		for i, v := range data { // away from zero, where the norm is not linear within a step of the finite differences
			data[i] = v + math.Copysign(0.3, v)
		}
		var want []float64
		for row := range batch * length {
			var squares float64
			for _, v := range data[row*width : (row+1)*width] {
				squares += v * v
			}
			for i, v := range data[row*width : (row+1)*width] {
				want = append(want, v/math.Sqrt(squares/float64(width)+eps)*elements(weight.Value)[i])
			}
		}
		use{
			f:  func(in G.Nodes) (G.Nodes, error) { return one(RMSNorm(in[0], in[1], eps)) },
			in: []grad.Input{x, weight},
		}.holds(t, want)
	})
}

// A row whose squares overflow or underflow its type has the right norm, and a row of zeros gives zeros.
func TestRMSNormRange(t *testing.T) {
	for _, test := range []struct {
		x, eps float64
		want   float64
	}{{1e30, 1e-5, 1}, {1e-30, 0, 1}, {0, 1e-5, 0}} {
		x := grad.Input{Name: "x", Value: dense(tensor.Float64, []int{1, 1, 2}, []float64{test.x, -test.x})}
		weight := grad.Input{Name: "weight", Value: dense(tensor.Float64, []int{2}, []float64{2, 3})}
		u := use{
			f:  func(in G.Nodes) (G.Nodes, error) { return one(RMSNorm(in[0], in[1], test.eps)) },
			in: []grad.Input{x, weight},
		}
		got, err := u.run(tensor.Float32, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []float64{2 * test.want, -3 * test.want} {
			if math.Abs(got["result 0"][i]-want) > 1e-6 {
				t.Errorf("RMS norm of %v and %v, eps %v: %v", test.x, -test.x, test.eps, got["result 0"])
				break
			}
		}
		for name, v := range got {
			for _, e := range v {
				if math.IsNaN(e) {
					t.Errorf("RMS norm of %v and %v, eps %v: %s is %v", test.x, -test.x, test.eps, name, v)
				}
			}
		}
	}
}
