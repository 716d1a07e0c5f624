package nn

import (
	"math"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// If the mixer's output is zero, a block is the identity, and a stack is its final norm.
func TestResidual(t *testing.T) {
	const width, eps = 3, 2.5
	stack := NewMambaStack(Config{DModel: width, NLayer: 2, DState: 2, NormEps: eps}, WithDtype(tensor.Float64), WithSeed(0))
	r := rand.New(rand.NewPCG(1, 1))
	scramble(stack.Params(), r)
	for _, name := range []string{"layers.0.mixer.out_proj.weight", "layers.1.mixer.out_proj.weight"} {
		stack.Params().ByName(name).Value.Zero()
	}
	x := normal(r, 2*4*width)
	in := leaf(G.NewGraph(), "x", tensor.Float64, x, 2, 4, width)
	got := forward(t, must(stack.Blocks()[0].Apply(in)), must(stack.Apply(in)))

	weight := elements(stack.Params().ByName("norm_f.weight").Value)
	var normed []float64
	for i := 0; i < len(x); i += width {
		var square float64
		for _, v := range x[i : i+width] {
			square += v * v / width
		}
		for j, v := range x[i : i+width] {
			normed = append(normed, v/math.Sqrt(square+eps)*weight[j])
		}
	}
	want := results{"block": x, "stack": normed}
	if err := (results{"block": got[0], "stack": got[1]}).near(want, 1e-14); err != nil {
		t.Error(err)
	}
}

// The mixer's input is normalised: with three times the input and nine times NormEps its output is the same.
func TestNormOfBlock(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	x := normal(r, 2*4*3)
	mixed := func(scale, eps float64) []float64 {
		block := NewMambaBlock(Config{DModel: 3, DState: 2, NormEps: eps}, WithDtype(tensor.Float64), WithSeed(0))
		scramble(block.Params(), rand.New(rand.NewPCG(2, 2)))
		in := make([]float64, len(x))
		for i, v := range x {
			in[i] = scale * v
		}
		y := forward(t, must(block.Apply(leaf(G.NewGraph(), "x", tensor.Float64, in, 2, 4, 3))))[0]
		for i := range y {
			y[i] -= in[i]
		}
		return y
	}
	want := results{"mixer": mixed(1, 0.5)}
	if err := (results{"mixer": mixed(3, 4.5)}).near(want, 1e-13); err != nil {
		t.Error(err)
	}
	if (results{"mixer": mixed(3, 0.5)}).near(want, 1e-2) == nil {
		t.Error("NormEps does not change the result")
	}
}
