package mamba_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// The exported names of the minGRU, with right arguments and the exceptions of wrong ones.
func init() {
	others = append(others, func(g *gpu) []call {
		f, s := g.floats, g.stream
		on := func() any {
			return &cuda.MinGRU{Batch: 2, Length: 3, Channels: 4, Z: f(24), Candidate: f(24), H: f(8), Start: array[uint8](g, 6)}
		}
		fine := append(absent("0.", "H", "Start"), "0.Batch=0", "0.Length=0")
		ofDevice := g.without(methods("cuda.MinGRU", on, map[string]call{
			"Forward":  {args: func() []any { return []any{s, f(24), f(8)} }, fine: append(absent("", "3"), fine...)},
			"Backward": {args: func() []any { return []any{s, f(24), f(8), f(24), f(24), f(8)} }, fine: append(absent("", "2", "3", "6"), fine...)},
		}))
		ofOp := call{name: "op.MinGRU", f: op.MinGRU, fine: []string{"0.H=nil", "0.Start=nil"}, args: func() []any {
			n, _ := inputs()
			return []any{op.MinGRUInputs{Z: n(2, 3, 4), Candidate: n(2, 3, 4), H: n(2, 4), Start: n(2, 3)}}
		}}
		cfg := layer.MinGRUConfig{Channels: 4}
		return slices.Concat(ofDevice, []call{ofOp}, configured("MinGRU", layer.NewMinGRU, cfg),
			methods("layer.MinGRU", func() any { return layer.NewMinGRU(cfg) }, mixer(shape{2, 4})))
	})
}

// The operator computes its definition.
func TestMinGRU(t *testing.T) {
	const batch, length, channels = 3, 9, 70
	r := rand.New(rand.NewPCG(1, 1))
	for range 5 {
		g := G.NewGraph()
		draw := func(name string, f func() float64, shape ...int) (*G.Node, []float64) {
			v := make([]float64, tensor.Shape(shape).TotalSize())
			for i := range v {
				v[i] = f()
			}
			return G.NodeFromAny(g, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v)), G.WithName(name)), v
		}
		z, zs := draw("z", func() float64 { return 3 * r.NormFloat64() }, batch, length, channels)
		candidate, candidates := draw("candidate", r.NormFloat64, batch, length, channels)
		h0, state := draw("h", r.NormFloat64, batch, channels)
		start, starts := draw("start", func() float64 { return float64(r.IntN(4) / 3) }, batch, length)
		y, h, err := op.MinGRU(op.MinGRUInputs{Z: z, Candidate: candidate, H: h0, Start: start})
		if err != nil {
			t.Fatal(err)
		}
		vm := G.NewTapeMachine(g)
		defer vm.Close()
		if err := vm.RunAll(); err != nil {
			t.Fatal(err)
		}
		gotY, gotH := y.Value().Data().([]float64), h.Value().Data().([]float64)
		for i := range batch * channels {
			b, d, h := i/channels, i%channels, state[i]
			for step := range length {
				at := (b*length+step)*channels + d
				if starts[b*length+step] != 0 {
					h = 0
				}
				u := 1 / (1 + math.Exp(-zs[at]))
				h = (1-u)*h + u*candidates[at]
				if math.Abs(gotY[at]-h) > 1e-14 {
					t.Fatalf("y of sequence %d, step %d, channel %d is %v, want %v", b, step, d, gotY[at], h)
				}
			}
			if gotH[i] != gotY[(b*length+length-1)*channels+d] {
				t.Fatalf("h of sequence %d, channel %d is %v, want that of the last step", b, d, gotH[i])
			}
		}
	}
}
