package layer

import (
	"math"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
)

func TestAddLoRA(t *testing.T) {
	l := NewLinear(LinearConfig{In: 4, Out: 6, Bias: true}, WithName("mixer.in_proj"), WithSeed(3))
	norm := NewRMSNorm(RMSNormConfig{Channels: 4}, WithName("norm"))
	all := append(append(Params{}, l.Params()...), norm.Params()...)
	added, err := all.AddLoRA(LoRAConfig{Rank: 2, Alpha: 6, Seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range added {
		names = append(names, p.Name)
	}
	if want := []string{"mixer.in_proj.lora_A.weight", "mixer.in_proj.lora_B.weight"}; !slices.Equal(names, want) {
		t.Fatalf("the update's weights are %v, want %v", names, want)
	}
	if got := all.Trainable(); !slices.Equal(got, added) {
		t.Errorf("Trainable is %v, want the update alone", got)
	}
	u := l.Weight.LoRA()
	if u.Scale != 3 || !u.A.Value.Shape().Eq(tensor.Shape{2, 4}) || !u.B.Value.Shape().Eq(tensor.Shape{6, 2}) {
		t.Errorf("scale %v, A %v, B %v, want 3, (2, 4), (6, 2)", u.Scale, u.A.Value.Shape(), u.B.Value.Shape())
	}
	for _, v := range doubles(u.A.Value) {
		if v == 0 || math.Abs(v) > 0.5 {
			t.Errorf("an element of A starts at %v, want within 1/√4 and not 0", v)
		}
	}
	for _, v := range doubles(u.B.Value) {
		if v != 0 {
			t.Errorf("an element of B starts at %v, want 0", v)
		}
	}
	if got := stdout(t, l.Describe); !strings.Contains(got, "LoRA of rank 2") {
		t.Errorf("Describe prints %q, want the rank", got)
	}
	all.RemoveLoRA()
	if got := all.Trainable(); !slices.Equal(got, all) || l.Weight.LoRA() != nil {
		t.Errorf("after RemoveLoRA Trainable is %v, want all weights", got)
	}
}

// Without an alpha, or with the rank as alpha, the update is added as it is.
func TestLoRAScale(t *testing.T) {
	for alpha, want := range map[float64]float64{0: 1, 4: 1, 1: 0.25} {
		l := NewLinear(LinearConfig{In: 2, Out: 2}, WithName("in_proj"))
		if _, err := l.Params().AddLoRA(LoRAConfig{Rank: 4, Alpha: alpha}); err != nil {
			t.Fatal(err)
		}
		if got := l.Weight.LoRA().Scale; got != want {
			t.Errorf("Rank 4, Alpha %v: the scale is %v, want %v", alpha, got, want)
		}
	}
}

// An error changes nothing.
func TestAddLoRAErrors(t *testing.T) {
	twice := NewLinear(LinearConfig{In: 2, Out: 2}, WithName("x_proj"))
	if _, err := twice.Params().AddLoRA(LoRAConfig{Rank: 1}); err != nil {
		t.Fatal(err)
	}
	conv := NewConv1D(Conv1DConfig{Channels: 2, Width: 2}, WithName("conv1d"))
	plain := NewLinear(LinearConfig{In: 2, Out: 2}, WithName("x_proj"))
	for _, test := range []struct {
		p    Params
		cfg  LoRAConfig
		want string
	}{
		{plain.Params(), LoRAConfig{}, "layer: LoRA: Rank is 0, want at least 1"},
		{plain.Params(), LoRAConfig{Rank: 1, Alpha: -1}, "layer: LoRA: Alpha is -1, want a positive number"},
		{plain.Params(), LoRAConfig{Rank: 1, Alpha: math.NaN()}, "layer: LoRA: Alpha is NaN, want a positive number"},
		{plain.Params(), LoRAConfig{Rank: 1, Targets: []string{"q", "v"}}, `Targets is ["q" "v"], which names no layer of the 1 weights`},
		{append(plain.Params(), conv.Params()...), LoRAConfig{Rank: 1, Targets: []string{"x_proj", "conv1d"}}, "conv1d.weight has shape (2, 1, 2), want (out, in)"},
		{append(plain.Params(), twice.Params()...), LoRAConfig{Rank: 1}, "x_proj.weight has an update already"},
	} {
		if _, err := test.p.AddLoRA(test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
		if plain.Weight.LoRA() != nil || plain.Weight.Frozen {
			t.Fatal("the error left an update or a frozen weight behind")
		}
	}
}

// Merging is exact, and a graph of before the merge computes the same after it.
func TestMergeLoRA(t *testing.T) {
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		l := NewLinear(LinearConfig{In: 5, Out: 7}, WithName("in_proj"), WithDtype(dt))
		if _, err := l.Params().AddLoRA(LoRAConfig{Rank: 3, Alpha: 2}); err != nil {
			t.Fatal(err)
		}
		o := build.Options{Dtype: dt}
		l.Weight.LoRA().B.Value = o.New(build.Uniform(o.Rand("B"), 1), 7, 3)
		x := o.New(build.Uniform(o.Rand("x"), 1), 2, 4, 5)
		graph := func() func() []float64 {
			g := G.NewGraph()
			y, err := l.Apply(G.NodeFromAny(g, x, G.WithName("x")))
			if err != nil {
				t.Fatal(err)
			}
			var v G.Value
			G.Read(y, &v)
			return func() []float64 {
				m := G.NewTapeMachine(g)
				defer m.Close()
				if err := m.RunAll(); err != nil {
					t.Fatal(err)
				}
				return slices.Clone(doubles(v.(*tensor.Dense)))
			}
		}
		before := graph()
		want := before()
		if n, err := l.Params().MergeLoRA(); err != nil || n != 1 {
			t.Fatalf("%d merged, %v, want 1", n, err)
		}
		if got := graph()(); !slices.Equal(got, want) {
			t.Errorf("%v: merged %v, want %v", dt, got, want)
		}
		if got := before(); !slices.Equal(got, want) {
			t.Errorf("%v: the graph of before the merge gives %v, want %v", dt, got, want)
		}
		if l.Weight.LoRA() != nil || len(l.Params().Trainable()) != 0 {
			t.Error("the update is still there")
		}
	}
}

// A merge that fails leaves its weight and its update as they were; updates before it are merged, and counted.
func TestMergeLoRAErrors(t *testing.T) {
	a, b := NewLinear(LinearConfig{In: 2, Out: 3}, WithName("x.in_proj")), NewLinear(LinearConfig{In: 2, Out: 3}, WithName("y.in_proj"))
	both := append(append(Params{}, a.Params()...), b.Params()...)
	if _, err := both.AddLoRA(LoRAConfig{Rank: 1}); err != nil {
		t.Fatal(err)
	}
	before, update := slices.Clone(doubles(b.Weight.Value)), b.Weight.LoRA()
	good := update.B.Value
	update.B.Value = tensor.New(tensor.WithShape(4, 1), tensor.Of(tensor.Float32)) // of another weight
	merged, err := both.MergeLoRA()
	if merged != 1 || err == nil || !strings.Contains(err.Error(), "y.in_proj.weight") {
		t.Errorf("%d merged, error %v, want 1 and one that names y.in_proj.weight", merged, err)
	}
	if a.Weight.LoRA() != nil || b.Weight.LoRA() != update || !slices.Equal(doubles(b.Weight.Value), before) {
		t.Error("the error has changed more than the weight before")
	}
	update.B.Value = good
	if merged, err := both.MergeLoRA(); merged != 1 || err != nil || b.Weight.LoRA() != nil {
		t.Errorf("again: %d merged, %v", merged, err)
	}
}
