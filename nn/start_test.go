package nn

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
)

// table returns the names, shapes and weight decay of weights, one weight per line.
func table(params layer.Params) string {
	var s strings.Builder
	for _, p := range params {
		fmt.Fprintf(&s, "%s %v", p.Name, p.Value.Shape())
		if p.Decay {
			s.WriteString(" decay")
		}
		s.WriteString("\n")
	}
	return s.String()
}

// The weights of the 130M model have the names and shapes of its checkpoint in the Hugging Face layout. Their number is computed from models
// with one layer and one token less.
func TestWeightsOf130M(t *testing.T) {
	make := func(layers, vocab int) layer.Params {
		return NewLM(LMConfig{Config: Config{DModel: 768, NLayer: layers}, Vocab: vocab}).Params()
	}
	const want = `backbone.embeddings.weight (1, 768) decay
backbone.layers.0.norm.weight (768)
backbone.layers.0.mixer.A_log (1536, 16)
backbone.layers.0.mixer.D (1536)
backbone.layers.0.mixer.in_proj.weight (3072, 768) decay
backbone.layers.0.mixer.conv1d.weight (1536, 1, 4) decay
backbone.layers.0.mixer.conv1d.bias (1536)
backbone.layers.0.mixer.x_proj.weight (80, 1536) decay
backbone.layers.0.mixer.dt_proj.weight (1536, 48) decay
backbone.layers.0.mixer.dt_proj.bias (1536)
backbone.layers.0.mixer.out_proj.weight (768, 1536) decay
backbone.norm_f.weight (768)
`
	small := make(1, 1)
	if got := table(small); got != want {
		t.Errorf("the weights are\n%swant\n%s", got, want)
	}
	perLayer, perToken := make(2, 1).Count()-small.Count(), make(1, 2).Count()-small.Count()
	if got := small.Count() + 23*perLayer + 50279*perToken; got != 129135360 {
		t.Errorf("24 layers and 50280 tokens have %d parameters, want 129135360", got)
	}
}

// The options that add or remove weights.
func TestOptionalWeights(t *testing.T) {
	cfg := Config{DModel: 2, NLayer: 2, DState: 3, DConv: 2, Expand: 3, DtRank: 4, Bias: true, NoConvBias: true}
	const block = `norm.weight (2)
mixer.A_log (6, 3)
mixer.D (6)
mixer.in_proj.weight (12, 2) decay
mixer.in_proj.bias (12)
mixer.conv1d.weight (6, 1, 2) decay
mixer.x_proj.weight (10, 6) decay
mixer.dt_proj.weight (6, 4) decay
mixer.dt_proj.bias (6)
mixer.out_proj.weight (2, 6) decay
mixer.out_proj.bias (2)
`
	prefixed := func(prefix, lines string) string {
		return prefix + strings.TrimSuffix(strings.ReplaceAll(lines, "\n", "\n"+prefix), prefix)
	}
	if got := table(NewMambaBlock(cfg).Params()); got != block {
		t.Errorf("the block's weights are\n%swant\n%s", got, block)
	}
	stack := prefixed("layers.0.", block) + prefixed("layers.1.", block) + "norm_f.weight (2)\n"
	if got := table(NewMambaStack(cfg).Params()); got != stack {
		t.Errorf("the stack's weights are\n%swant\n%s", got, stack)
	}
	if got, want := table(NewMambaStack(cfg, WithName("encoder")).Params()), prefixed("encoder.", stack); got != want {
		t.Errorf("the named stack's weights are\n%swant\n%s", got, want)
	}
	lm := NewLM(LMConfig{Config: cfg, Vocab: 7, UntiedHead: true})
	want := "backbone.embeddings.weight (7, 2) decay\n" + prefixed("backbone.", stack) + "lm_head.weight (7, 2) decay\n"
	if got := table(lm.Params()); got != want {
		t.Errorf("the language model's weights are\n%swant\n%s", got, want)
	}
	if n := len(lm.Stack().Blocks()); n != 2 {
		t.Errorf("the stack has %d blocks, want 2", n)
	}
}

// The initial weights of a block are distributed as in the paper's reference implementation.
func TestStart(t *testing.T) {
	const inner, state, rank, layers = 512, 5, 9, 4
	cfg := Config{DModel: 256, NLayer: layers, DState: state, DtRank: rank, DtScale: 2}
	p := NewMambaBlock(cfg, WithDtype(tensor.Float64)).Params()
	get := func(name string) []float64 { return elements(p.ByName(name).Value) }

	for i, v := range get("mixer.A_log") {
		if want := math.Log(float64(i%state + 1)); math.Abs(v-want) > 1e-15 {
			t.Fatalf("A_log: element %d is %v, want %v", i, v, want)
		}
	}
	for _, name := range []string{"mixer.D", "norm.weight"} {
		if v := get(name); slices.Min(v) != 1 || slices.Max(v) != 1 {
			t.Errorf("%s is within %v and %v, want all ones", name, slices.Min(v), slices.Max(v))
		}
	}
	for name, bound := range map[string]float64{
		"mixer.in_proj.weight": 1 / math.Sqrt(256),
		"mixer.conv1d.weight":  1 / math.Sqrt(4),
		"mixer.conv1d.bias":    1 / math.Sqrt(4),
		"mixer.x_proj.weight":  1 / math.Sqrt(inner),
		"mixer.dt_proj.weight": 2 / math.Sqrt(rank),
		// scaled by the number of layers
		"mixer.out_proj.weight": 1 / math.Sqrt(inner) / math.Sqrt(layers),
	} {
		v := get(name)
		if low, high := slices.Min(v), slices.Max(v); low < -bound || high > bound || low > -0.98*bound || high < 0.98*bound {
			t.Errorf("%s is within %v and %v, want within ±%v, and nearly all of that", name, low, high, bound)
		}
		var square float64
		for _, x := range v {
			square += x * x / float64(len(v))
		}
		if got, want := math.Sqrt(square), bound/math.Sqrt(3); math.Abs(got/want-1) > 0.06 {
			t.Errorf("%s has a deviation of %v, want %v", name, got, want)
		}
	}
}

// The logarithm of softplus of dt_proj's initial bias is uniform between the logarithms of DtMin and DtMax.
func TestStepsAtStart(t *testing.T) {
	for _, c := range []struct {
		cfg       Config
		low, high float64
	}{
		{Config{DModel: 1000}, 0.001, 0.1},
		{Config{DModel: 1000, DtMin: 0.01, DtMax: 3}, 0.01, 3},
	} {
		var logs []float64
		for _, b := range elements(NewMambaBlock(c.cfg, WithDtype(tensor.Float64)).Params().ByName("mixer.dt_proj.bias").Value) {
			logs = append(logs, math.Log(math.Log1p(math.Exp(b))))
		}
		low, high := math.Log(c.low), math.Log(c.high)
		var mean float64
		for _, v := range logs {
			mean += v / float64(len(logs))
		}
		width := high - low
		if a, b := slices.Min(logs), slices.Max(logs); a < low-1e-9 || b > high+1e-9 || a > low+0.02*width || b < high-0.02*width {
			t.Errorf("steps are within %v and %v, want within %v and %v", math.Exp(a), math.Exp(b), c.low, c.high)
		}
		if math.Abs(mean-(low+high)/2) > 0.04*width {
			t.Errorf("the mean logarithm of the steps is %v, want %v", mean, (low+high)/2)
		}
	}
	// No initial step is below DtInitFloor.
	bias := NewMambaBlock(Config{DModel: 100, DtInitFloor: 0.05}, WithDtype(tensor.Float64)).Params().ByName("mixer.dt_proj.bias")
	atFloor := 0
	for _, b := range elements(bias.Value) {
		dt := math.Log1p(math.Exp(b))
		if dt < 0.05-1e-12 {
			t.Errorf("a step starts at %v, below the floor", dt)
		}
		if dt < 0.05+1e-12 {
			atFloor++
		}
	}
	if atFloor < 100 || atFloor == 200 {
		t.Errorf("%d of 200 steps start at the floor, want most and not all", atFloor)
	}
}

// The initial weights of each layer of a stack are scaled by NLayer, like those of a block with this NLayer.
func TestStackScalesItsOutput(t *testing.T) {
	largest := func(layers int) float64 {
		stack := NewMambaStack(Config{DModel: 64, NLayer: layers, DState: 1}, WithSeed(0))
		return maxAbs(elements(stack.Params().ByName("layers.0.mixer.out_proj.weight").Value))
	}
	if ratio := largest(1) / largest(9); math.Abs(ratio-3) > 1e-4 {
		t.Errorf("nine layers scale the output by 1/%v, want 1/3", ratio)
	}
}
