package layer

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/grad"
	"github.com/gomamba/mamba/internal/gputest"
)

// plain is a layer that is not over time, with the shape of an input.
type plain struct {
	name   string
	make   func(opts ...Option) anyLayer
	shape  []int
	result string // shape of the result
	params string
}

func plains() []plain {
	return []plain{
		{"layer norm", func(o ...Option) anyLayer { return NewLayerNorm(LayerNormConfig{Channels: 6}, o...) }, []int{2, 3, 4, 6}, "(2, 3, 4, 6)",
			"weight (6), bias (6)"},
		{"layer norm without bias", func(o ...Option) anyLayer { return NewLayerNorm(LayerNormConfig{Channels: 6, NoBias: true}, o...) }, []int{2, 6},
			"(2, 6)", "weight (6)"},
		{"instance norm", func(o ...Option) anyLayer { return NewInstanceNorm(InstanceNormConfig{Channels: 3}, o...) }, []int{2, 3, 4, 3}, "(2, 3, 4, 3)", ""},
		{"instance norm with weights", func(o ...Option) anyLayer {
			return NewInstanceNorm(InstanceNormConfig{Channels: 3, Affine: true}, o...)
		},
			[]int{2, 2, 2, 4, 3}, "(2, 2, 2, 4, 3)", "weight (3), bias (3)"},
		{"batch norm", func(o ...Option) anyLayer { return NewBatchNorm(BatchNormConfig{Channels: 3}, o...) }, []int{2, 3, 4, 3}, "(2, 3, 4, 3)",
			"weight (3), bias (3), running_mean (3), running_var (3)"},
		{"MLP", func(o ...Option) anyLayer { return NewMLP(MLPConfig{Channels: 3, Out: 2}, o...) }, []int{2, 3, 2, 3}, "(2, 3, 2, 2)",
			"fc1.weight (12, 3) decay, fc1.bias (12), fc2.weight (2, 12) decay, fc2.bias (2)"},
		{"patch merging", func(o ...Option) anyLayer { return NewPatchMerging(PatchMergingConfig{Channels: 3}, o...) }, []int{2, 3, 4, 3}, "(2, 2, 2, 6)",
			"norm.weight (12), norm.bias (12), reduction.weight (6, 12) decay"},
		{"patch merging in space", func(o ...Option) anyLayer {
			return NewPatchMerging(PatchMergingConfig{Channels: 2, Out: 3, Block: []int{1, 2, 2}, Cut: true}, o...)
		}, []int{1, 3, 3, 4, 2}, "(1, 3, 1, 2, 3)", "norm.weight (8), norm.bias (8), reduction.weight (3, 8) decay"},
		{"patch expanding", func(o ...Option) anyLayer { return NewPatchExpanding(PatchExpandingConfig{Channels: 6}, o...) }, []int{2, 2, 3, 6},
			"(2, 4, 6, 3)", "expand.weight (12, 6) decay, norm.weight (3), norm.bias (3)"},
		{"position embedding", func(o ...Option) anyLayer {
			return NewPositionEmbedding(PositionEmbeddingConfig{Grid: []int{3, 2}, Channels: 4}, o...)
		},
			[]int{2, 3, 2, 4}, "(2, 3, 2, 4)", "weight (1, 3, 2, 4)"},
		{"class token", func(o ...Option) anyLayer { return NewClassToken(ClassTokenConfig{Channels: 4}, o...) }, []int{2, 3, 4}, "(2, 4, 4)",
			"weight (1, 1, 4)"},
		{"class token in the middle", func(o ...Option) anyLayer { return NewClassToken(ClassTokenConfig{Channels: 4, Middle: true}, o...) }, []int{2, 5, 4},
			"(2, 6, 4)", "weight (1, 1, 4)"},
	}
}

// Names, shapes and gradients of the weights; the gradient of the input; the shape of the result.
func TestPlainLayers(t *testing.T) {
	for _, p := range plains() {
		t.Run(p.name, func(t *testing.T) {
			l := p.make(WithDtype(tensor.Float64), WithSeed(3))
			var params []string
			for _, w := range l.Params() {
				s := fmt.Sprintf("%s %v", w.Name, w.Value.Shape())
				if w.Decay {
					s += " decay"
				}
				params = append(params, s)
			}
			if got := strings.Join(params, ", "); got != p.params {
				t.Errorf("the weights are %q, want %q", got, p.params)
			}
			in := []grad.Input{{Name: "x", Value: random(rand.New(rand.NewPCG(4, 5)), tensor.Float64, p.shape...)}}
			for _, w := range l.Params() {
				in = append(in, grad.Input{Name: w.Name, Value: w.Value, Node: w.Node})
			}
			grad.MustCheck(t, func(n G.Nodes) (G.Nodes, error) {
				y, err := apply(l, n[0])
				if err == nil && fmt.Sprint(y.Shape()) != p.result {
					t.Errorf("the result has shape %v, want %s", y.Shape(), p.result)
				}
				return G.Nodes{y}, err
			}, in, grad.Sample(10, 3))
		})
	}
}

// A position embedding of one cell is no constant for cells of any number.
func TestPositionEmbeddingGrid(t *testing.T) {
	l := NewPositionEmbedding(PositionEmbeddingConfig{Grid: []int{1}, Channels: 4})
	_, err := l.Apply(G.NewTensor(G.NewGraph(), tensor.Float32, 3, G.WithShape(2, 5, 4), G.WithName("x")))
	if want := "x has shape (2, 5, 4), want (1, 4) after the batch"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %v, want one with %q", err, want)
	}
}

// On a device the layers have the results and gradients of the host.
func TestPlainLayersOnGrids(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	for _, p := range plains() {
		var results [2][][]float64
		for i, opts := range [][]Option{{WithSeed(2)}, {WithSeed(2), OnDevice(d)}} {
			l := p.make(opts...)
			g := G.NewGraph()
			x := G.NodeFromAny(g, random(rand.New(rand.NewPCG(5, 1)), tensor.Float32, p.shape...), G.WithName("x"))
			y, err := apply(l, x)
			if err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
			grads, err := G.Grad(G.Must(G.Sum(G.Must(G.HadamardProd(G.Must(G.Square(y)), y)))), append(l.Params().Nodes(g), x)...)
			if err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
			for _, v := range run(t, append(grads, y)...) {
				results[i] = append(results[i], asFloat64(v))
			}
		}
		for j, want := range results[0] {
			if d := apart(results[1][j], want); !(d <= 2e-5) {
				t.Errorf("%s: value %d is %v apart from the host's", p.name, j, d)
			}
		}
	}
}
