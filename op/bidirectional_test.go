package op

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
)

// bidirectionalSizes are the sizes of a BidirectionalMamba with random operands.
type bidirectionalSizes struct {
	batch, length, channels, state, width, rank int
	bias, start                                 bool
	BidirectionalConfig
}

func (z bidirectionalSizes) inputs(seed uint64) []grad.Input {
	r := rand.New(rand.NewPCG(seed, 31))
	input := func(name string, shape ...int) grad.Input {
		v := normal(r, tensor.Shape(shape).TotalSize())
		for i := range v {
			v[i] *= 0.7
		}
		return grad.Input{Name: name, Value: dense(tensor.Float64, shape, v)}
	}
	in := []grad.Input{input("XZ", z.batch, z.length, 2*z.channels)}
	for _, d := range []string{"Forward", "Backward"} {
		in = append(in, input(d+".Conv", z.channels, 1, z.width), input(d+".XProj", z.rank+2*z.state, z.channels), input(d+".DtProj", z.channels, z.rank),
			input(d+".DtBias", z.channels), input(d+".ALog", z.channels, z.state), input(d+".D", z.channels))
		if z.bias {
			in = append(in, input(d+".ConvBias", z.channels))
		}
	}
	if z.start {
		marks := make([]float64, z.batch*z.length)
		for i := range marks {
			marks[i] = float64(r.IntN(4) / 3)
		}
		in = append(in, grad.Input{Name: "Start", Value: dense(tensor.Int, []int{z.batch, z.length}, marks), Constant: true})
	}
	return in
}

func (z bidirectionalSizes) operands(in G.Nodes) (b BidirectionalInputs) {
	b.XZ, in = in[0], in[1:]
	for _, w := range []*DirectionWeights{&b.Forward, &b.Backward} {
		*w = DirectionWeights{Conv: in[0], XProj: in[1], DtProj: in[2], DtBias: in[3], ALog: in[4], D: in[5]}
		if in = in[6:]; z.bias {
			w.ConvBias, in = in[0], in[1:]
		}
	}
	if z.start {
		b.Start = in[0]
	}
	return b
}

func (z bidirectionalSizes) use(seed uint64) use {
	return use{fmt.Sprintf("bidirectional Mamba %v", z), func(in G.Nodes) (G.Nodes, error) {
		return one(BidirectionalMamba(z.operands(in), z.BidirectionalConfig))
	}, z.inputs(seed)}
}

func bidirectionalUses(scale int) []use {
	return []use{
		bidirectionalSizes{2, 3 * scale, 2 * scale, 3, 3, 2, true, true, BidirectionalConfig{}}.use(1),
		bidirectionalSizes{1, 5, 3 * scale, 2, 1, 1, false, false, BidirectionalConfig{Average: true}}.use(2),
	}
}

// The one operator is the composition of the operators that define it.
func TestBidirectionalIsComposed(t *testing.T) {
	for i, z := range []bidirectionalSizes{
		{3, 37, 20, 16, 4, 3, true, false, BidirectionalConfig{Average: true}},
		{2, 70, 5, 3, 2, 1, false, true, BidirectionalConfig{}},
		{2, 1, 17, 1, 4, 2, true, true, BidirectionalConfig{Average: true}},
		{1, 2, 16, 5, 7, 2, true, false, BidirectionalConfig{}},
	} {
		u := z.use(uint64(i))
		composed := use{"composed", func(in G.Nodes) (G.Nodes, error) {
			f := bidirectional[float64]{z.BidirectionalConfig, z.batch, z.length, z.channels, z.state, z.width, z.rank}
			return one(f.composed(z.operands(in)))
		}, u.in}
		for _, c := range []struct {
			dt        tensor.Dtype
			tolerance float64
		}{{tensor.Float64, 1e-12}, {tensor.Float32, 2e-5}} {
			got, err := u.run(c.dt, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			want, err := composed.run(c.dt, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := sameResults(got, want, c.tolerance); err != nil {
				t.Errorf("%s, %v: %v", u.name, c.dt, err)
			}
		}
	}
}

func TestBidirectionalErrors(t *testing.T) {
	z := bidirectionalSizes{2, 3, 4, 2, 3, 1, true, true, BidirectionalConfig{}}
	for _, c := range []struct {
		change func(in *BidirectionalInputs, g *G.ExprGraph)
		want   string
	}{
		{func(in *BidirectionalInputs, _ *G.ExprGraph) { in.XZ = nil }, "op: bidirectional Mamba: XZ is missing"},
		{func(in *BidirectionalInputs, g *G.ExprGraph) {
			in.XZ = leaf(g, "odd", tensor.Float64, []int{2, 3, 7}, make([]float64, 42))
		},
			"op: bidirectional Mamba: XZ has 7 columns, want an even number: 2·channels"},
		{func(in *BidirectionalInputs, g *G.ExprGraph) { in.Backward.DtBias = nil },
			"op: bidirectional Mamba: Backward.DtBias is missing, want a node of shape (channels)"},
		{func(in *BidirectionalInputs, g *G.ExprGraph) {
			in.Backward.Conv = leaf(g, "wide", tensor.Float64, []int{4, 1, 5}, make([]float64, 20))
		},
			"op: bidirectional Mamba: Backward.Conv has shape (4, 1, 5), want (channels, 1, width) = (4, 1, 3)"},
		{func(in *BidirectionalInputs, g *G.ExprGraph) {
			in.Forward.XProj = leaf(g, "short", tensor.Float64, []int{4, 4}, make([]float64, 16))
		},
			"op: bidirectional Mamba: Forward.XProj has shape (4, 4), want (rank + 2·state, channels) = (5, 4)"},
	} {
		g := G.NewGraph()
		var nodes G.Nodes
		for _, in := range z.inputs(1) {
			nodes = append(nodes, G.NodeFromAny(g, in.Value, G.WithName(in.Name)))
		}
		in := z.operands(nodes)
		c.change(&in, g)
		if _, err := BidirectionalMamba(in, z.BidirectionalConfig); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}
