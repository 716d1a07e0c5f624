package nn

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
)

// anyModel is a block, stack or language model: golgi's interface, and apply.
type anyModel interface {
	Model() G.Nodes
	Fwd(x G.Input) G.Result
	Name() string
	Describe()
	Params() layer.Params
	Err() error
	Apply(x *G.Node, opts ...CallOption) (*G.Node, error)
}

var (
	_ anyModel = (*MambaBlock)(nil)
	_ anyModel = (*MambaStack)(nil)
	_ anyModel = (*LM)(nil)
)

func TestDefaults(t *testing.T) {
	want := Config{
		DModel: 768, NLayer: 1, DState: 16, DConv: 4, Expand: 2, DtRank: 48,
		DtMin: 0.001, DtMax: 0.1, DtScale: 1, DtInitFloor: 1e-4, NormEps: 1e-5,
	}
	if got, err := (Config{DModel: 768}).withDefaults(); !reflect.DeepEqual(got, want) || err != nil {
		t.Errorf("defaults are %+v, %v, want %+v", got, err, want)
	}
	for model, rank := range map[int]int{1: 1, 15: 1, 16: 1, 17: 2, 32: 2, 33: 3, 1024: 64} {
		if got := NewMambaBlock(Config{DModel: model, DState: 1, Expand: 1}).Config().DtRank; got != rank {
			t.Errorf("dt_rank of d_model %d is %d, want %d", model, got, rank)
		}
	}
	// Fields that are set are not replaced by defaults.
	given := Config{
		DModel: 6, NLayer: 2, DState: 3, DConv: 2, Expand: 1, DtRank: 5,
		DtMin: 0.01, DtMax: 0.2, DtScale: 2, DtInitFloor: 1e-3, NormEps: 1e-6, Bias: true, NoConvBias: true,
	}
	if got := NewMambaStack(given).Config(); !reflect.DeepEqual(got, given) {
		t.Errorf("the configuration %+v became %+v", given, got)
	}
	lm := LMConfig{Config: given, Vocab: 7, UntiedHead: true}
	if got := NewLM(lm).Config(); !reflect.DeepEqual(got, lm) {
		t.Errorf("the configuration %+v became %+v", lm, got)
	}
}

// Err and every use of a model with a wrong configuration return the same error.
func TestInvalidConfigs(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "nn: DModel is 0, want at least 1"},
		{Config{DModel: -4}, "nn: DModel is -4, want at least 1"},
		{Config{DModel: 4, NLayer: -1}, "nn: NLayer is -1, want at least 1"},
		{Config{DModel: 4, DState: -1}, "nn: DState is -1, want at least 1"},
		{Config{DModel: 4, DConv: -1}, "nn: DConv is -1, want at least 1"},
		{Config{DModel: 4, Expand: -1}, "nn: Expand is -1, want at least 1"},
		{Config{DModel: 4, DInner: -1}, "nn: DInner is -1, want at least 1, or 0 for Expand·DModel"},
		{Config{DModel: 4, DtRank: -1}, "nn: DtRank is -1, want at least 1"},
		{Config{DModel: 4, DtMin: -1}, "nn: DtMin is -1, want a positive number"},
		{Config{DModel: 4, DtMax: inf}, "nn: DtMax is +Inf, want a positive number"},
		{Config{DModel: 4, DtScale: -2}, "nn: DtScale is -2, want a positive number"},
		{Config{DModel: 4, DtInitFloor: nan}, "nn: DtInitFloor is NaN, want a positive number"},
		{Config{DModel: 4, NormEps: -1e-5}, "nn: NormEps is -1e-05, want a positive number"},
		{Config{DModel: 4, DtMin: 0.2}, "nn: DtMin is 0.2, want at most DtMax, 0.1"},
	} {
		for _, m := range []anyModel{NewMambaBlock(c.cfg), NewMambaStack(c.cfg), NewLM(LMConfig{Config: c.cfg, Vocab: 5})} {
			checkInvalid(t, m, c.want)
		}
	}
	checkInvalid(t, NewLM(LMConfig{Config: Config{DModel: 4}}), "nn: Vocab is 0, want at least 1")
	checkInvalid(t, NewLM(LMConfig{Config: Config{DModel: 4}, Vocab: -1}), "nn: Vocab is -1, want at least 1")
	const wrongType = "nn: dtype is int, want float32 or float64"
	checkInvalid(t, NewMambaBlock(Config{DModel: 4}, WithDtype(tensor.Int)), wrongType)
	checkInvalid(t, NewMambaStack(Config{DModel: 4}, WithDtype(tensor.Int)), wrongType)
	checkInvalid(t, NewLM(LMConfig{Config: Config{DModel: 4}, Vocab: 5}, WithDtype(tensor.Int)), wrongType)
}

func checkInvalid(t *testing.T, m anyModel, want string) {
	t.Helper()
	err := m.Err()
	if err == nil || err.Error() != want {
		t.Errorf("Err of %T is %v, want %s", m, err, want)
		return
	}
	g := G.NewGraph()
	x := leaf(g, "x", tensor.Float32, make([]float64, 8), 1, 2, 4)
	if n, got := m.Apply(x); n != nil || got != err {
		t.Errorf("Apply of %T returns %v, %v, want its Err", m, n, got)
	}
	if r := m.Fwd(x); !errors.Is(r.Err(), err) {
		t.Errorf("Fwd of %T returns %v, want its Err", m, r.Err())
	}
	if len(m.Params()) != 0 || len(m.Model()) != 0 {
		t.Errorf("%T has weights in spite of %v", m, err)
	}
	switch m := m.(type) {
	case *MambaBlock:
		_, _, got := m.ApplyWithState(x, nil)
		_, stateErr := layer.ZeroState(m, g, 1)
		if got != err || stateErr != err {
			t.Errorf("uses of %T return %v, %v, want its Err", m, got, stateErr)
		}
	case *MambaStack:
		_, _, got := m.ApplyWithState(x, nil)
		_, stateErr := m.ZeroState(g, 1)
		if got != err || stateErr != err {
			t.Errorf("uses of %T return %v, %v, want its Err", m, got, stateErr)
		}
	case *LM:
		_, _, got := m.ApplyWithState(x, nil)
		if _, stateErr := m.Stack().ZeroState(g, 1); stateErr != err {
			t.Errorf("ZeroState of the stack of %T returns %v, want its Err", m, stateErr)
		}
		_, lossErr := m.Loss(x, x)
		_, stepErr := NewStepper(m, 1)
		if got != err || lossErr != err || stepErr != err {
			t.Errorf("uses of %T return %v, %v, %v, want its Err", m, got, lossErr, stepErr)
		}
	}
}

// A model keeps its own copy of the pattern, and counts options as its caller does.
func TestConfigOfCaller(t *testing.T) {
	pattern := []Kind{Mamba, S6}
	s := NewMambaStack(Config{DModel: 4, Pattern: pattern})
	pattern[0] = LSTM
	if got := s.Config().Pattern[0]; got != Mamba {
		t.Errorf("the pattern begins with %v after the caller has changed his slice, want %v", got, Mamba)
	}
	cfg := Config{DModel: 4}
	for _, err := range []error{NewMambaBlock(cfg, nil).Err(), NewMambaStack(cfg, nil).Err(), NewLM(LMConfig{Config: cfg, Vocab: 3}, nil).Err()} {
		if err == nil || err.Error() != "nn: option 0 is nil" {
			t.Errorf("error %v, want that option 0 is nil", err)
		}
	}
}

// What a layer has no use for is an error too, if it could not be right for any layer.
func TestUselessInputs(t *testing.T) {
	g := G.NewGraph()
	n := func(shape ...int) *G.Node {
		return leaf(g, fmt.Sprint("n", shape), tensor.Float32, make([]float64, tensor.Shape(shape).TotalSize()), shape...)
	}
	x := n(1, 2, 4)
	stack := func(kind Kind) *MambaStack { return NewMambaStack(Config{DModel: 4, Pattern: []Kind{kind}}) }
	apply := func(kind Kind, o CallOption) error { _, err := stack(kind).Apply(x, o); return err }
	state := func(kind Kind, s ...*G.Node) error { _, _, err := stack(kind).ApplyWithState(x, State{s}); return err }
	composed := func() error { _, err := stack(Mamba).Apply(x, WithComposed(), WithRecompute(-1)); return err }
	for _, test := range []struct {
		err  error
		want string
	}{
		{apply(SwiGLU, WithStart(n(7, 7))), "nn: layer 0: layers.0: start has shape (7, 7), want (batch, length) = (1, 2)"},
		{apply(GeGLU, WithStart(leaf(G.NewGraph(), "start", tensor.Float32, make([]float64, 2), 1, 2))), "nn: layer 0: layers.0: start belongs to another graph"},
		{apply(S6, WithRecompute(9)), "nn: layer 0: layers.0: Recompute is 9, want RecomputeCheap"},
		{composed(), "nn: layer 0: layers.0: Recompute is -1, want RecomputeCheap"},
		{state(SwiGLU, n(1, 2)), "nn: layer 0: layers.0: the state has 1 nodes, want none: the layer has no state"},
		{state(S6, n(1, 2), nil), "nn: layer 0: layers.0: the state has 2 nodes, want 1, for scan"},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("error %v, want %q", test.err, test.want)
		}
	}
	if err := apply(SwiGLU, WithStart(n(1, 2))); err != nil {
		t.Error(err)
	}
	if err := NewMambaStack(Config{DModel: 4}, WithDtype(tensor.Dtype{})).Err(); err == nil || !strings.Contains(err.Error(), "dtype is missing, want float32 or float64") {
		t.Errorf("error %v, want that the dtype is missing", err)
	}
}

// An input of a wrong type or shape is an error that says so when the graph is built.
func TestInvalidInputs(t *testing.T) {
	g, other := G.NewGraph(), G.NewGraph()
	f32 := func(shape ...int) *G.Node {
		return G.NewTensor(g, tensor.Float32, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprint("x", shape)))
	}
	ints := func(shape ...int) *G.Node {
		return G.NewTensor(g, tensor.Int, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprint("ids", shape)))
	}
	cfg := Config{DModel: 4, DState: 3}
	block, stack, lm := NewMambaBlock(cfg), NewMambaStack(cfg), NewLM(LMConfig{Config: cfg, Vocab: 5})
	x, ids := f32(2, 6, 4), ints(2, 6)
	f64 := G.NewTensor(g, tensor.Float64, 3, G.WithShape(2, 6, 4), G.WithName("f64"))
	elsewhere := G.NewTensor(other, tensor.Float32, 2, G.WithShape(2, 6), G.WithName("start"))

	const wrongChannels = "MambaBlock: x has shape (2, 6, 5), want (batch, length, channels) = (any, any, 4)"
	const wrongWidth = "nn: x has shape (2, 6, 5), want (batch, length, d_model) = (any, any, 4)"
	for what, c := range map[string]struct {
		call func() error
		want []string // parts of the error
	}{
		"no input":        {func() error { _, err := block.Apply(nil); return err }, []string{"MambaBlock: the input is missing, want a node"}},
		"no input, stack": {func() error { _, err := stack.Apply(nil); return err }, []string{"MambaStack: the input is missing, want a node"}},
		"no input, LM":    {func() error { _, err := lm.Apply(nil); return err }, []string{"LM: the input is missing, want a node"}},
		"no input, Fwd":   {func() error { return lm.Fwd(nil).Err() }, []string{"LM: the input is missing, want a node"}},
		"rank":            {func() error { _, err := block.Apply(f32(6, 4)); return err }, []string{"x has shape (6, 4), want (batch, length, "}},
		"width":           {func() error { _, err := block.Apply(f32(2, 6, 5)); return err }, []string{wrongChannels}},
		"width, stack":    {func() error { _, err := stack.Apply(f32(2, 6, 5)); return err }, []string{wrongWidth}},
		"type":            {func() error { _, err := stack.Apply(f64); return err }, []string{"x is of float64, want float32"}},
		"floats as ids":   {func() error { _, err := lm.Apply(f32(2, 6)); return err }, []string{"ids is of float32, want int"}},
		"rank of ids":     {func() error { _, err := lm.Apply(ints(6)); return err }, []string{"ids has shape (6), want (batch, length)"}},
		"no targets":      {func() error { _, err := lm.Loss(ids, nil); return err }, []string{"targets is missing"}},
		"targets": {func() error { _, err := lm.Loss(ids, ints(2, 5)); return err },
			[]string{"targets has shape (2, 5), want (batch, length) = (2, 6)"}},
		"start": {func() error { _, err := block.Apply(x, WithStart(f32(2, 5))); return err },
			[]string{"start has shape (2, 5), want (batch, length) = (2, 6)"}},
		"start of another graph": {func() error { _, err := block.Apply(x, WithStart(elsewhere)); return err },
			[]string{"start belongs to another graph"}},
		"layers of the state": {func() error { _, _, err := stack.ApplyWithState(x, make(State, 2)); return err },
			[]string{"nn: the state has 2 layers, want 1"}},
		"batch of the state": {func() error { _, _, err := stack.ApplyWithState(x, must(stack.ZeroState(g, 3))); return err },
			[]string{"nn: layer 0: ", "the state conv has shape (3, 3, 8), want (2, 3, 8)"}},
		"negative batch of the state": {func() error { _, err := layer.ZeroState(block, g, -1); return err },
			[]string{"layer: ZeroState: batch is -1, want at least 1"}},
		"scan state": {func() error { _, _, err := block.ApplyWithState(x, layer.State{nil, f32(2, 8, 4)}); return err },
			[]string{"MambaBlock: the state scan has shape (2, 8, 4), want (2, 8, 3)"}},
	} {
		err := c.call()
		if err == nil {
			t.Errorf("%s: no error", what)
			continue
		}
		for _, part := range c.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error is %q, want %q in it", what, err, part)
			}
		}
	}
}

// A token outside the vocabulary is an error when the graph runs.
func TestTokenOutsideVocabulary(t *testing.T) {
	lm := NewLM(LMConfig{Config: Config{DModel: 4}, Vocab: 5})
	g := G.NewGraph()
	logits, err := lm.Apply(intLeaf(g, "ids", []int{0, 4, 5}, 1, 3))
	if err != nil {
		t.Fatal(err)
	}
	G.Read(logits, new(G.Value))
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err == nil || !strings.Contains(err.Error(), "ids[0, 2] is 5, want 0 to 4") {
		t.Errorf("the run returns %v", err)
	}
}

func TestNamesOfModels(t *testing.T) {
	cfg := Config{DModel: 4}
	for _, c := range []struct {
		m    anyModel
		want string
	}{
		{NewMambaBlock(cfg), "MambaBlock"}, {NewMambaBlock(cfg, WithName("encoder")), "encoder"},
		{NewMambaStack(cfg), "MambaStack"}, {NewMambaStack(cfg, WithName("encoder")), "encoder"},
		{NewLM(LMConfig{Config: cfg, Vocab: 5}), "LM"}, {NewLM(LMConfig{Config: cfg, Vocab: 5}, WithName("lm")), "lm"},
	} {
		if c.m.Name() != c.want {
			t.Errorf("the name of %T is %q, want %q", c.m, c.m.Name(), c.want)
		}
	}
}

func TestDescribe(t *testing.T) {
	got := stdout(t, NewMambaBlock(Config{DModel: 2, DState: 1}, WithName("layers.0")).Describe)
	want := `layers.0: 74 parameters
  layers.0.norm.weight                     (2)              float32  no weight decay
  layers.0.mixer.A_log                     (4, 1)           float32  no weight decay
  layers.0.mixer.D                         (4)              float32  no weight decay
  layers.0.mixer.in_proj.weight            (8, 2)           float32
  layers.0.mixer.conv1d.weight             (4, 1, 4)        float32
  layers.0.mixer.conv1d.bias               (4)              float32  no weight decay
  layers.0.mixer.x_proj.weight             (3, 4)           float32
  layers.0.mixer.dt_proj.weight            (4, 1)           float32
  layers.0.mixer.dt_proj.bias              (4)              float32  no weight decay
  layers.0.mixer.out_proj.weight           (2, 4)           float32
`
	if got != want {
		t.Errorf("Describe prints\n%s", got)
	}
}

// stdout returns what f prints.
func stdout(t *testing.T, f func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stdout
	os.Stdout = w
	f()
	os.Stdout = old
	w.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// DInner can set numbers of channels that Expand cannot. For numbers that both can set, the models are the same.
func TestInnerChannels(t *testing.T) {
	expand, inner := NewMambaBlock(Config{DModel: 4, Expand: 3}, WithSeed(0)), NewMambaBlock(Config{DModel: 4, DInner: 12}, WithSeed(0))
	for i, p := range expand.Params() {
		if got := inner.Params()[i].Value; !slices.Equal(elements(got), elements(p.Value)) {
			t.Errorf("%s differs", p.Name)
		}
	}
	odd := NewMambaBlock(Config{DModel: 4, DInner: 7})
	g := G.NewGraph()
	x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 3, 4), G.WithName("x"), G.WithInit(G.Gaussian(0, 1)))
	y, err := odd.Apply(x)
	if err != nil {
		t.Fatal(err)
	}
	if !y.Shape().Eq(x.Shape()) {
		t.Errorf("the result has shape %v, want %v", y.Shape(), x.Shape())
	}
	if got := odd.Params().ByName("mixer.in_proj.weight").Value.Shape(); !got.Eq(tensor.Shape{14, 4}) {
		t.Errorf("in_proj has shape %v, want (14, 4)", got)
	}
}

// With WithZeros every weight of a model is zero.
func TestZeros(t *testing.T) {
	lm := NewLM(LMConfig{Config: Config{DModel: 4, NLayer: 2, Bias: true}, Vocab: 5, UntiedHead: true}, layer.WithZeros())
	if len(lm.Params()) != 2+2*12+1 {
		t.Fatalf("%d weights", len(lm.Params()))
	}
	for _, p := range lm.Params() {
		for _, v := range elements(p.Value) {
			if v != 0 {
				t.Fatalf("%s has an element %v, want zeros", p.Name, v)
			}
		}
	}
}
