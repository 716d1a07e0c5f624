package op

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/internal/operator"
)

// With FreeAfterUse the memory of a chain of operators does not grow with its length, the results are the same in every run, a value in the middle is
// gone, and one that is kept or that no operator reads stays.
func TestFreeAfterUse(t *testing.T) {
	const rows, channels, most = 64, 1 << 10, 12
	var want []float32
	var before int64
	for _, test := range []struct {
		name   string
		length int
		free   bool
	}{{"all stay", most, false}, {"short", 4, true}, {"long", most, true}} {
		device := gputest.Open(t, cuda.Open)
		p, err := On(device, cuda.Strict)
		if err != nil {
			t.Fatal(err)
		}
		g := G.NewGraph()
		x := G.NewTensor(g, f32, 3, G.WithShape(1, rows, channels), G.WithName("x"), G.WithInit(G.Ones()))
		var all G.Nodes
		y := G.Must(p.Upload(x))
		for range test.length {
			parts, err := Split(y, channels/2, channels/2)
			if err != nil {
				t.Fatal(err)
			}
			half := G.Must(Activate(G.Must(Add(parts[0], parts[1])), SiLU)) // both parts are equal
			y = G.Must(Concat(2, half, half))
			all = append(all, y)
		}
		if test.free {
			FreeAfterUse(g, all[1])
		}
		m := G.NewTapeMachine(g)
		for run := range 3 {
			m.Reset()
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
			got, err := y.Value().(*operator.Tensor).ToHost()
			if err != nil {
				t.Fatalf("%s, run %d: the last value: %v", test.name, run, err)
			}
			if test.length == most {
				if want == nil {
					want = got.Data().([]float32)
				}
				for i, v := range got.Data().([]float32) {
					if v != want[i] {
						t.Fatalf("%s, run %d: element %d is %v, want %v", test.name, run, i, v, want[i])
					}
				}
			}
			if _, err := all[1].Value().(*operator.Tensor).ToHost(); err != nil {
				t.Errorf("%s, run %d: a value that is kept: %v", test.name, run, err)
			}
			_, err = all[2].Value().(*operator.Tensor).ToHost()
			if gone := err != nil && strings.Contains(err.Error(), "op.FreeAfterUse"); gone != test.free {
				t.Errorf("%s, run %d: reading a value in the middle: %v", test.name, run, err)
			}
		}
		used, _ := device.Memory()
		switch one := int64(4 * rows * channels); {
		case test.name == "short":
			before = used
		case test.free && used != before:
			t.Errorf("%d operators use %d bytes, %d use %d", 4, before, most, used)
		case !test.free && used < most*one:
			t.Errorf("without FreeAfterUse %d bytes are used, want at least %d", used, most*one)
		}
		m.Close()
	}
	FreeAfterUse(nil)
}

// With FreeAfterUse, gradients that Gorgonia adds do not stay after the run, whatever the number of summands, and the sums are the same.
func TestFreeAfterUseOfSums(t *testing.T) {
	var want []float32
	var before int64
	for _, test := range []struct {
		name   string
		length int
		free   bool
	}{{"short", 3, true}, {"long", 6, true}, {"all stay", 6, false}} {
		device := gputest.Open(t, cuda.Open)
		p, err := On(device, cuda.Strict)
		if err != nil {
			t.Fatal(err)
		}
		g := G.NewGraph()
		x := G.NewTensor(g, f32, 3, G.WithShape(1, 2, 512), G.WithName("x"), G.WithInit(G.Uniform(-1, 1)))
		rng := rand.New(rand.NewPCG(5, 5))
		for i := range x.Value().Data().([]float32) {
			x.Value().Data().([]float32)[i] = rng.Float32()
		}
		y := G.Must(p.Upload(x))
		for i := range test.length {
			a := y
			for _, f := range []Activation{SiLU, GELU, Sigmoid}[:1+i%3] { // a node with two to four readers
				y = G.Must(Add(G.Must(Activate(a, f)), y))
			}
			parts, err := Split(y, 256, 256)
			if err != nil {
				t.Fatal(err)
			}
			y = G.Must(Concat(2, G.Must(Gate(parts[0], parts[1], SiLU)), parts[0]))
		}
		loss := G.Must(G.Sum(G.Must(Download(y))))
		grads, err := G.Grad(loss, x)
		if err != nil {
			t.Fatal(err)
		}
		if test.free {
			FreeAfterUse(g)
		}
		m := G.NewTapeMachine(g)
		for run := range 3 {
			m.Reset()
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
			got := grads[0].Value().Data().([]float32)
			if test.name == "long" && run == 0 {
				want = slices.Clone(got)
			}
			if want != nil && !slices.Equal(got, want) {
				t.Errorf("%s, run %d: the gradients are not those of the first run with FreeAfterUse", test.name, run)
			}
		}
		used, _ := device.Memory()
		switch {
		case test.name == "short":
			before = used
		case test.free && used != before:
			t.Errorf("%d operators use %d bytes, half as many %d", test.length, used, before)
		case !test.free && used <= before:
			t.Errorf("without FreeAfterUse %d bytes are used, want more than %d", used, before)
		}
		m.Close()
	}
}

// With FreeAfterUse an activated norm is computed again for the gradients that read it, which are the same, and less memory is held than when the norms are
// kept.
func TestFreeAfterUseRepeats(t *testing.T) {
	var want []float32
	var most int64
	for _, free := range []bool{false, true} {
		device := gputest.Open(t, cuda.Open)
		p, err := On(device, cuda.Strict)
		if err != nil {
			t.Fatal(err)
		}
		g := G.NewGraph()
		const rows, channels, length = 8, 128, 6
		x := G.NewTensor(g, f32, 3, G.WithShape(1, rows, channels), G.WithName("x"))
		v := make([]float32, rows*channels)
		for i, rng := 0, rand.New(rand.NewPCG(5, 6)); i < len(v); i++ {
			v[i] = rng.Float32()
		}
		if err := G.Let(x, tensor.New(tensor.WithShape(1, rows, channels), tensor.WithBacking(v))); err != nil {
			t.Fatal(err)
		}
		y := G.Must(p.Upload(x))
		before := y
		var norms G.Nodes
		for i := range length { // every second one reads a result that is computed again twice, once as its residual
			a := G.Must(ActivatedNorm(y, nil, nil, before, ActivatedNormConfig{Eps: 1e-5, Activation: SiLU, NormResidual: i%2 > 0}))
			norms = append(norms, a)
			before, y = y, G.Must(Scale(a, nil, 0.5)) // which is not computed again
			if i%2 > 0 {
				before = a
			}
		}
		grads, err := G.Grad(G.Must(G.Sum(G.Must(Download(y)))), x)
		if err != nil {
			t.Fatal(err)
		}
		if free {
			norms = nil
		}
		FreeAfterUse(g, norms...)
		m := G.NewTapeMachine(g)
		for run := range 3 {
			m.Reset()
			if err := m.RunAll(); err != nil {
				t.Fatalf("freed %t, run %d: %v", free, run, err)
			}
			got := grads[0].Value().Data().([]float32)
			if want == nil {
				want = slices.Clone(got)
			}
			if !slices.Equal(got, want) {
				t.Errorf("freed %t, run %d: the gradients differ", free, run)
			}
		}
		_, held := device.Memory()
		if one := int64(4 * rows * channels); !free {
			most = held
		} else if held > most-length/2*one {
			t.Errorf("%d bytes are held, and %d with %d results that are kept, want %d bytes less", held, most, length, length/2*one)
		}
		m.Close()
	}
}

// With FreeAfterUse the backward pass computes results of norms, activations and depthwise convolutions again instead of keeping them. The gradients are the
// same bit for bit, also of the last weight alone, where the operand of a norm has no other reader left.
func TestFreeAfterUseComputesAgain(t *testing.T) {
	const blocks, side, channels = 4, 16, 32
	for _, all := range []bool{true, false} {
		var want [][]float64
		var held [2]int64
		for i, free := range []bool{false, true} {
			device := gputest.Open(t, cuda.Open)
			p, err := On(device, cuda.Strict)
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(1, 2))
			g := G.NewGraph()
			var with G.Nodes
			node := func(shape ...int) *G.Node {
				with = append(with, leaf(g, fmt.Sprint("leaf", len(with)), f32, shape, normal(r, tensor.Shape(shape).TotalSize())))
				return G.Must(p.Upload(with[len(with)-1]))
			}
			y := node(1, side, side, channels)
			for range blocks {
				taps, weight := node(channels, 1, 3, 3), node(channels, channels)
				h := G.Must(LayerNorm(y, nil, nil, 1e-5))
				h = G.Must(Conv(h, taps, nil, ConvConfig{Padding: []int{1}, Groups: channels, SiLU: true}))
				h = G.Must(Activate(G.Must(LayerNorm(h, nil, nil, 1e-5)), GELU))
				y = G.Must(Linear(h, weight, nil))
			}
			if !all {
				with = with[len(with)-1:]
			}
			grads, err := G.Grad(G.Must(G.Sum(G.Must(Download(y)))), with...)
			if err != nil {
				t.Fatal(err)
			}
			if free {
				FreeAfterUse(g)
			}
			m := G.NewTapeMachine(g)
			for run := range 3 {
				m.Reset()
				if err := m.RunAll(); err != nil {
					t.Fatal(err)
				}
				for j, n := range grads {
					if got := elements(n.Value()); len(want) <= j {
						want = append(want, got)
					} else if !slices.Equal(got, want[j]) {
						t.Errorf("all %v, free %v, run %d: gradient %d is another", all, free, run, j)
					}
				}
			}
			m.Close()
			_, held[i] = device.Memory()
		}
		if least := int64(3 * blocks * 4 * side * side * channels); all && held[0]-held[1] < least {
			t.Errorf("a step holds %d bytes, and without FreeAfterUse %d, want %d more", held[1], held[0], least)
		}
	}
}
