package mamba_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/task"
)

// calls returns the table.
func calls(t *testing.T) []call {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("some text"), 0o644); err != nil {
		t.Fatal(err)
	}
	return slices.Concat(layerCalls(), nnCalls(dir), opCalls(), visionCalls(), dataCalls(dir), taskCalls(dir), trainCalls(dir), checkpointCalls(dir), reportCalls(dir),
		tokensCalls(t, dir), gradCalls(), blasCalls(), cudaCalls(noGPU()), placeCalls(noGPU()), otherCalls(noGPU()))
}

// others are tables that stand in files of their own, which append them here.
var others []func(g *gpu) []call

func otherCalls(g *gpu) (all []call) {
	for _, f := range others {
		all = append(all, f(g)...)
	}
	return all
}

// with returns a function that returns right arguments which nothing changes.
func with(args ...any) func() []any { return func() []any { return args } }

// methods returns a call of each method of a type, whose receiver the function makes. Methods with parameters have their arguments in
// rows, without the receiver; a method without parameters needs no row. The row "*" is for the exceptions of all methods.
func methods(name string, receiver func() any, rows map[string]call) (all []call) {
	t := reflect.TypeOf(receiver())
	names, err := exported()
	if err != nil {
		panic(err)
	}
	for i := range t.NumMethod() {
		m := t.Method(i)
		if !slices.Contains(names, name+"."+m.Name) {
			continue // of an embedded type of another module
		}
		c, ok := rows[m.Name]
		if !ok && m.Type.NumIn() > 1 && !(m.Type.NumIn() == 2 && m.Type.IsVariadic()) {
			continue // TestEveryNameIsCalled says that it is missing
		}
		args := c.args
		c.name, c.f = name+"."+m.Name, m.Func.Interface()
		c.args = func() []any {
			if args == nil {
				return []any{receiver()}
			}
			return append([]any{receiver()}, args()...)
		}
		if m.Type.NumOut() == 0 || m.Type.Out(m.Type.NumOut()-1) != reflect.TypeFor[error]() && !hasErr(m.Type) {
			// There is no error to return. As everywhere in Go, the receiver must not be nil.
			c.nilReceiver = t.Kind() == reflect.Pointer
		}
		all = append(all, c)
	}
	for row := range rows {
		if _, ok := t.MethodByName(row); !ok {
			panic(name + " has no method " + row)
		}
	}
	return all
}

func hasErr(f reflect.Type) bool {
	for i := range f.NumOut() {
		if o := f.Out(i); o.Implements(reflect.TypeFor[interface{ Err() error }]()) && o != reflect.TypeFor[G.Nodes]() && o != reflect.TypeFor[*G.Node]() {
			return true
		}
	}
	return false
}

// inputs returns functions that make input nodes of one new graph, without values.
func inputs() (floats, ints func(shape ...int) *G.Node) {
	g, n := G.NewGraph(), 0
	of := func(dt tensor.Dtype) func(shape ...int) *G.Node {
		return func(shape ...int) *G.Node {
			n++
			return G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprintf("n%d", n)))
		}
	}
	return of(tensor.Float32), of(tensor.Int)
}

// nodesOf returns new nodes of float32 as arguments, one for each shape.
func nodesOf(shapes ...[]int) func() []any {
	return func() (args []any) {
		f, _ := inputs()
		for _, s := range shapes {
			args = append(args, f(s...))
		}
		return args
	}
}

type shape = []int

// another is the exception of a function with one node, which may be of any graph.
var another = []string{"1=of another graph"}

// inputShape is the input of the layers in the table.
var inputShape = shape{2, 3, 4}

// mixer has the rows of a layer over time with states of the given shapes.
func mixer(states ...shape) map[string]call {
	fine := another
	if len(states) > 0 {
		fine = []string{"2=nil", "2[0]=nil"}
	}
	apply := call{args: nodesOf(inputShape), fine: another}
	return map[string]call{"Apply": apply, "Fwd": apply, "ApplyWithState": {args: func() []any {
		f, _ := inputs()
		args, state := []any{f(inputShape...)}, layer.State{}
		for _, s := range states {
			state = append(state, f(s...))
		}
		return append(args, state)
	}, fine: fine}}
}

// configured has the rows of a configuration: its constructor, and the method Mixer of one of a layer over time. fine are the fields
// that may be zero, and other wrong values of fields that are right.
func configured(name string, constructor any, cfg any, fine ...string) []call {
	var zero []string
	for _, f := range fine {
		if !strings.Contains(f, "=") {
			f += "=0"
		}
		zero = append(zero, "0."+f)
	}
	calls := []call{{name: "layer.New" + name, f: constructor, args: with(cfg), fine: zero}}
	if _, ok := cfg.(layer.Inner); ok {
		var rest []string
		for _, f := range zero {
			if !strings.HasPrefix(f, "0.Channels") {
				rest = append(rest, f)
			}
		}
		calls = append(calls, methods("layer."+name+"Config", func() any { return cfg }, map[string]call{
			"Mixer": {args: with(4), fine: append(rest, "0.Channels=*: the argument replaces it")}})...)
		if name != "H3" { // which needs an inner layer
			last := &calls[len(calls)-1]
			last.fine = append(last.fine, "0=zero")
		}
	}
	return calls
}

// listsOf returns the exceptions of lists that may be nil. Those of padding may have zeros.
func listsOf(prefix string, names ...string) (fine []string) {
	for _, n := range names {
		if fine = append(fine, prefix+n+"=nil"); strings.Contains(n, "Padding") {
			fine = append(fine, prefix+n+"[0]=0")
		}
	}
	return fine
}

func layerCalls() []call {
	apply := call{args: nodesOf(inputShape), fine: another}
	plain := map[string]call{"Apply": apply, "Fwd": apply}
	ids := call{args: func() []any { _, ints := inputs(); return []any{ints(2, 3)} }, fine: another}
	params := func() any {
		return layer.NewLinear(layer.LinearConfig{In: 3, Out: 4}, layer.WithName("in_proj")).Params()
	}
	missing := call{panics: []string{"0[0]=*: a weight is not nil, and has a value"}}
	const zeroGraph = "1=zero: gorgonia.NewGraph makes graphs"
	h3 := layer.H3Config{Channels: 4, Inner: layer.S6Config{State: 2}, Heads: 2, Shift: 2}
	gated := layer.GatedMLPConfig{Channels: 4, Hidden: 8, Activation: op.GELU}
	s4 := layer.S4Config{Channels: 4, State: 2, A: layer.S4DLin, DtMin: 0.1, DtMax: 0.2}
	s6 := layer.S6Config{Channels: 4, State: 2, Rank: 1, DtMin: 0.1, DtMax: 0.2, DtFloor: 0.1, DtScale: 1}
	mamba := layer.MambaConfig{Channels: 4, Inner: 6, State: 2, Width: 3, Rank: 1, DtMin: 0.1, DtMax: 0.2, DtFloor: 0.1, DtScale: 1, Depth: 2}
	ss2d := layer.SS2DConfig{Channels: 4, Inner: 4, State: 2, Width: 3, Rank: 1, DtMin: 0.1, DtMax: 0.2, Orders: op.VMambaOrders}
	mambaVision := layer.MambaVisionConfig{Channels: 4, Inner: 4, State: 2, Width: 3, Rank: 1}
	onImage := call{args: nodesOf(shape{2, 2, 3, 4}), fine: another}
	attention := layer.AttentionConfig{Channels: 4, Heads: 2, Window: 3, Rotary: 100}
	linear := layer.LinearConfig{In: 4, Out: 5}
	conv := layer.ConvConfig{In: 4, Out: 6, Kernel: []int{3}, Stride: []int{1}, Padding: []int{1}, PaddingEnd: []int{1}, Dilation: []int{1}, Groups: 2}
	transposed := layer.ConvTransposeConfig{In: 4, Out: 6, Kernel: []int{3}, Stride: []int{2}, Padding: []int{1}, OutputPadding: []int{1}, Dilation: []int{1}, Groups: 2}
	patch := layer.PatchEmbedConfig{In: 4, Out: 6, Patch: []int{3}, Stride: []int{2}}
	return slices.Concat(
		methods("layer.Linear", func() any { return layer.NewLinear(linear) }, plain),
		methods("layer.RMSNorm", func() any { return layer.NewRMSNorm(layer.RMSNormConfig{Channels: 4}) }, plain),
		methods("layer.Embedding", func() any { return layer.NewEmbedding(layer.EmbeddingConfig{Vocabulary: 5, Channels: 4}) },
			map[string]call{"Apply": ids, "ApplyTied": ids, "Fwd": ids}),
		methods("layer.GatedMLP", func() any { return layer.NewGatedMLP(gated) }, mixer()),
		methods("layer.Conv1D", func() any { return layer.NewConv1D(layer.Conv1DConfig{Channels: 4, Width: 3}) }, mixer(shape{2, 2, 4})),
		methods("layer.Conv", func() any { return layer.NewConv(conv) }, plain),
		methods("layer.ConvTranspose", func() any { return layer.NewConvTranspose(transposed) }, plain),
		methods("layer.PatchEmbed", func() any { return layer.NewPatchEmbed(patch) }, plain),
		methods("layer.S4", func() any { return layer.NewS4(s4) }, mixer(shape{2, 4, 2})),
		methods("layer.S6", func() any { return layer.NewS6(s6) }, mixer(shape{2, 4, 2})),
		methods("layer.Mamba", func() any { return layer.NewMamba(mamba) }, mixer(shape{2, 2, 6}, shape{2, 6, 2})),
		methods("layer.SS2D", func() any { return layer.NewSS2D(ss2d) }, map[string]call{"Apply": onImage, "Fwd": onImage}),
		methods("layer.MambaVision", func() any { return layer.NewMambaVision(mambaVision) }, func() map[string]call {
			rows := mixer()
			rows["ApplyWithState"] = call{args: rows["ApplyWithState"].args, broken: true} // it has no state
			return rows
		}()),
		methods("layer.LSTM", func() any { return layer.NewLSTM(layer.LSTMConfig{Channels: 4}) }, mixer(shape{2, 4}, shape{2, 4})),
		methods("layer.Attention", func() any { return layer.NewAttention(attention) }, mixer(shape{2, 2, 9})),
		methods("layer.H3", func() any { return layer.NewH3(h3) }, mixer(shape{2, 1, 4}, shape{2, 8, 2})),
		methods("layer.MambaParts", func() any { return &layer.NewMamba(mamba).Parts }, nil),
		methods("layer.Params", params, map[string]call{
			"Count": missing, "Freeze": missing, "Unfreeze": missing, "RemoveLoRA": missing, "Trainable": missing, "ValuesChanged": missing,
			"CheckWide":        {fine: []string{"0=nil"}},
			"UpdateStatistics": {fine: []string{"0=nil: nothing to move"}},
			"ForgetStatistics": {},
			"Describe":         {args: func() []any { return []any{io.Discard, "name"} }, panics: append(missing.panics, "1=nil: an io.Writer is not nil")},
			"MergeLoRA":        {fine: []string{"0=nil: nothing to merge"}}, "ToHost": {fine: []string{"0=nil: nothing to copy"}},
			"ByName": {args: with("a"), panics: missing.panics}, "ToDevice": {args: with(nil), broken: true, fine: []string{"1=zero: the error is that of the first use"}}, "Nodes": {args: func() []any { return []any{G.NewGraph()} }, panics: []string{"1=*: gorgonia.NewGraph makes graphs", "0[0]=*: a weight is not nil, and has a value"}},
			"AddLoRA":   {args: with(layer.LoRAConfig{Rank: 2, Alpha: 1, Targets: []string{"in_proj"}, Seed: 1}), fine: []string{"1.Alpha=0", "1.Targets=nil", "1.Start=nil"}},
			"TargetsOf": {args: with(layer.LoRAConfig{Rank: 2, Alpha: 1, Targets: []string{"in_proj"}, Seed: 1}), fine: []string{"1.Alpha=0", "1.Targets=nil", "1.Rank=1*", "1.Rank=4*", "1.Start=nil"}},
		}),
		methods("layer.Param", func() any { return params().(layer.Params)[0] }, map[string]call{
			"Node": {args: func() []any { return []any{G.NewGraph()} }, panics: []string{"1=*: gorgonia.NewGraph makes graphs", "0=*: a weight is not nil, and has a value"}},
			"SetNarrow": {args: func() []any {
				w, err := blas.Quantize(blas.Float16, 2, 3, make([]float32, 6))
				if err != nil {
					panic(err)
				}
				return []any{w}
			}, broken: true},
			"LoRAShapes": {args: with(2), panics: []string{"0=zero: a weight has a value"}},
			"Effective":  {args: func() []any { return []any{G.NewGraph()} }, panics: []string{zeroGraph}},
		}),
		methods("layer.StartA", func() any { return layer.S4DLin }, map[string]call{"Values": {args: with(4), fine: []string{`0=""`}}}),
		configured("Linear", layer.NewLinear, linear),
		configured("RMSNorm", layer.NewRMSNorm, layer.RMSNormConfig{Channels: 3, Eps: 1e-5}, "Eps"),
		configured("GatedMLP", layer.NewGatedMLP, gated, "Hidden", "Activation"),
		configured("Embedding", layer.NewEmbedding, layer.EmbeddingConfig{Vocabulary: 3, Channels: 4}),
		configured("Conv1D", layer.NewConv1D, layer.Conv1DConfig{Channels: 4, Width: 3}),
		configured("Conv", layer.NewConv, conv, append(listsOf("", "Stride", "Padding", "PaddingEnd", "Dilation"), "Groups")...),
		configured("ConvTranspose", layer.NewConvTranspose, transposed, append(listsOf("", "Padding", "OutputPadding", "Dilation"), "Groups")...),
		configured("PatchEmbed", layer.NewPatchEmbed, patch, "Stride=nil"),
		configured("S4", layer.NewS4, s4, "State", `A=""`),
		configured("S6", layer.NewS6, s6, "State", "Rank", "DtFloor", "DtScale"),
		configured("Mamba", layer.NewMamba, mamba, "Inner", "State", "Width", "Rank", "DtFloor", "DtScale", "Depth", "Depth=1*", "Depth=4*", "Slices=0", "LayerScale", "LayerScale=-1"),
		configured("SS2D", layer.NewSS2D, ss2d, "Inner", "State", "Width", "Rank", "Orders=nil"),
		configured("MambaVision", layer.NewMambaVision, mambaVision, "Inner", "State", "Width", "Rank"),
		configured("LSTM", layer.NewLSTM, layer.LSTMConfig{Channels: 4}),
		configured("Attention", layer.NewAttention, attention, "Heads", "Window", "Rotary"),
		configured("H3", layer.NewH3, h3, "Heads", "Shift"),
		[]call{
			{name: "layer.NewParam", f: layer.NewParam, args: func() []any { return []any{"name", tensor.New(tensor.WithShape(2), tensor.Of(tensor.Float32)), true} }},
			{name: "layer.ZeroState", f: layer.ZeroState, args: func() []any { return []any{layer.NewS6(s6), G.NewGraph(), 2} }, panics: []string{zeroGraph}},
			{name: "layer.WithDtype", f: func(dt tensor.Dtype) *layer.S6 { return layer.NewS6(s6, layer.WithDtype(dt)) }, args: with(tensor.Float64)},
			{name: "layer.WithName", f: func(s string) *layer.S6 { return layer.NewS6(s6, layer.WithName(s)) }, args: with("a"), fine: []string{"0=*"}},
			{name: "layer.WithSeed", f: func(n int) *layer.S6 { return layer.NewS6(s6, layer.WithSeed(uint64(n))) }, args: with(1), fine: []string{"0=*"}},
			{name: "layer.WithZeros", f: func() *layer.S6 { return layer.NewS6(s6, layer.WithZeros()) }},
			{name: "layer.WithSlices", f: func(n int) (*G.Node, error) {
				cfg := mamba
				cfg.Bidirectional, cfg.Slices = true, 1
				return layer.NewMamba(cfg).Apply(nodesOf(inputShape)()[0].(*G.Node), layer.WithSlices(n))
			}, args: with(3)},
			{name: "layer.WithStart", f: func(x, start *G.Node) (*G.Node, error) { return layer.NewS6(s6).Apply(x, layer.WithStart(start)) },
				args: nodesOf(inputShape, shape{2, 3}), fine: []string{"1=nil"}},
		},
	)
}

func nnCalls(dir string) []call {
	x := shape{2, 3, 4}
	cfg := nn.Config{DModel: 4, NLayer: 2, DState: 2}
	lmCfg := nn.LMConfig{Config: cfg, Vocab: 5}
	full := nn.NewLM(lmCfg).Config() // every field has a value
	full.Pattern, full.DHidden, full.NHead, full.Window, full.DInner = []nn.Kind{nn.Mamba, nn.Attention}, 4, 2, 3, 4
	full.Dropout, full.DropPath = 0.1, 0.2
	lm := func() *nn.LM { return nn.NewLM(lmCfg) }
	sampling := nn.Sampling{Temperature: 1, TopK: 2, TopP: 0.5, MinP: 0.1, RepetitionPenalty: 1, PresencePenalty: 1, FrequencyPenalty: 1}
	var inBatch *nn.Sequence // of the last batch that was made
	defaults := []string{"0.*=0", "0.Pattern=nil", "0.DtScale=*e*"}
	of := func(prefix string) (fine []string) {
		for _, d := range defaults[:2] {
			fine = append(fine, prefix+d[1:])
		}
		return fine
	}
	ids := func(withTargets bool) func() []any {
		return func() []any {
			_, ints := inputs()
			if withTargets {
				return []any{ints(2, 3), ints(2, 3)}
			}
			return []any{ints(2, 3)}
		}
	}
	layerState := func() []any {
		f, _ := inputs()
		return []any{f(x...), layer.State{f(2, 3, 8), f(2, 8, 2)}}
	}
	zero := call{args: func() []any { return []any{G.NewGraph(), 2} }, panics: []string{"1=zero: gorgonia.NewGraph makes graphs"}}
	apply := call{args: nodesOf(x), fine: another}
	return slices.Concat(
		methods("nn.MambaBlock", func() any { return nn.NewMambaBlock(cfg) }, map[string]call{
			"Apply": apply, "Fwd": apply,
			"ApplyWithState": {args: layerState, fine: []string{"2=nil", "2[0]=nil"}},
		}),
		methods("nn.MambaStack", func() any { return nn.NewMambaStack(cfg) }, map[string]call{
			"Apply": apply, "Fwd": apply, "ZeroState": zero,
			"ApplyWithState": {args: func() []any {
				a := layerState()
				s := a[1].(layer.State)
				return []any{a[0], nn.State{s, s}}
			}, fine: []string{"2=nil", "2[0]=nil", "2[0][0]=nil"}},
		}),
		methods("nn.LM", func() any { return lm() }, map[string]call{
			"Apply": {args: ids(false), fine: another}, "Fwd": {args: ids(false), fine: another}, "Loss": {args: ids(true)},
			"ApplyWithState": {args: func() []any { return append(ids(false)(), nn.State(nil)) }, fine: another},
		}),
		methods("nn.State", func() any { return nn.State{layer.State{layerState()[0].(*G.Node)}} }, nil),
		methods("nn.Stepper", func() any { s, _ := nn.NewStepper(lm(), 2); return s }, map[string]call{"Step": {args: with([]int{1, 2}), fine: []string{"1[0]=0"}}}),
		methods("nn.Sequence", func() any { return nn.NewSequence(1, 2, 3) }, map[string]call{
			"Append": {args: with(1)}, "Reseed": {args: with(uint64(1))}, "Skip": {args: func() []any { return []any{1, nn.NewSequence(1)} }, fine: []string{"1=0", "2=zero"}}, "Save": {args: with(filepath.Join(dir, "sequence")), fine: []string{"0=zero"}},
		}),
		methods("nn.Batch", func() any {
			b, _ := nn.NewBatch(lm(), nn.BatchConfig{})
			inBatch = nn.NewSequence(1, 2)
			b.Join(inBatch, nn.Sampling{})
			return b
		}, map[string]call{
			"Read":  {args: func() []any { return []any{nn.NewSequence(1, 2, 3)} }},
			"Join":  {args: func() []any { return []any{nn.NewSequence(1, 2), sampling} }, fine: []string{"2.*=0", "2=zero", "2.TopK=*", "2.PresencePenalty=-1", "2.FrequencyPenalty=-1"}},
			"Step":  {args: func() []any { return []any{func(*nn.Sequence, nn.Next) {}} }, fine: []string{"1=nil"}},
			"Leave": {args: func() []any { return []any{inBatch} }}, "Drop": {args: func() []any { return []any{inBatch} }},
		}),
		methods("nn.Next", func() any { return nn.Next{} }, map[string]call{"Logits": {broken: true}}),
		methods("nn.Generator", func() any { g, _ := nn.NewGenerator(lm(), nn.GenerateConfig{MaxTokens: 2}); return g }, map[string]call{
			"Generate": {args: func() []any { return []any{context.Background(), [][]int{{1, 2}}, func(_, _ int) error { return nil }} },
				fine: []string{"2=nil", "2[0][0]=0", "3=nil"}},
			"Continue": {args: func() []any {
				return []any{context.Background(), []*nn.Sequence{nn.NewSequence(1, 2)}, func(_, _ int) error { return nil }}
			},
				fine: []string{"2=nil", "3=nil"}},
		}),
		[]call{
			{name: "nn.NewMambaBlock", f: nn.NewMambaBlock, args: func() []any { c := full.Config; c.Pattern = nil; return []any{c} }, fine: append(of("0")[:1], "0.NHead=*", "0.DHidden=*", "0.Window=*", "0.NLayer=*")},
			{name: "nn.NewMambaStack", f: nn.NewMambaStack, args: with(full.Config), fine: append(of("0"), "0.DHidden=*")},
			{name: "nn.NewLM", f: nn.NewLM, args: with(full), fine: append(of("0.Config"), "0.Config.DHidden=*")},
			{name: "nn.NewStepper", f: nn.NewStepper, args: func() []any { return []any{lm(), 2} }},
			{name: "nn.NewBatch", f: nn.NewBatch, args: func() []any { return []any{lm(), nn.BatchConfig{Piece: 3}} }, fine: []string{"1.Piece=*", "1=zero"}},
			{name: "nn.NewGenerator", f: nn.NewGenerator, args: func() []any {
				return []any{lm(), nn.GenerateConfig{Sampling: sampling, MaxTokens: 2, StopTokens: []int{1}, Piece: 3}}
			}, fine: []string{"1.Sampling*=0", "1.Sampling=zero", "1.Sampling.TopK=*", "1.Sampling.PresencePenalty=-1", "1.Sampling.FrequencyPenalty=-1", "1.MaxTokens=1*", "1.MaxTokens=4*", "1.Piece=*", "1.StopTokens=nil", "1.StopTokens[0]=0"}},
			{name: "nn.NewSequence", f: nn.NewSequence, args: with(uint64(1), 2, 3)},
			{name: "nn.LoadSequence", f: nn.LoadSequence, args: func() []any {
				nn.NewSequence(1, 2).Save(filepath.Join(dir, "loaded"))
				return []any{filepath.Join(dir, "loaded")}
			}},
			{name: "nn.Kinds", f: nn.Kinds},
			{name: "nn.ParseKinds", f: nn.ParseKinds, args: with("mamba,s4")},
			{name: "nn.OnDevice", f: func(d *cuda.Device) *nn.LM { return nn.NewLM(lmCfg, nn.OnDevice(d)) }, args: with(nil), broken: true},
			{name: "layer.OnDevice", f: func(d *cuda.Device) *nn.LM { return nn.NewLM(lmCfg, layer.OnDevice(d)) }, args: with(nil), broken: true},
			{name: "nn.WithPrecision", f: func(p cuda.Precision) *nn.LM { return nn.NewLM(lmCfg, nn.WithPrecision(p)) }, args: with(cuda.Strict), fine: []string{"0=0"}},
			{name: "layer.WithPrecision", f: func(p cuda.Precision) *nn.LM { return nn.NewLM(lmCfg, layer.WithPrecision(p)) }, args: with(cuda.Strict), fine: []string{"0=0"}},
			{name: "nn.WithName", f: func(s string) *nn.LM { return nn.NewLM(lmCfg, nn.WithName(s)) }, args: with("a"), fine: []string{"0=*"}},
			{name: "nn.WithSeed", f: func(n int) *nn.LM { return nn.NewLM(lmCfg, nn.WithSeed(uint64(n))) }, args: with(1), fine: []string{"0=*"}},
			{name: "nn.WithDtype", f: func(dt tensor.Dtype) *nn.LM { return nn.NewLM(lmCfg, nn.WithDtype(dt)) }, args: with(tensor.Float64)},
			{name: "nn.WithStart", f: func(x, start *G.Node) (*G.Node, error) { return nn.NewMambaBlock(cfg).Apply(x, nn.WithStart(start)) },
				args: nodesOf(x, shape{2, 3}), fine: []string{"1=nil"}},
			{name: "nn.WithTraining", f: func(x, step *G.Node) (*G.Node, error) {
				return nn.NewMambaBlock(nn.Config{DModel: 4, Dropout: 0.1}).Apply(x, nn.WithTraining(step))
			}, args: func() []any { f, ints := inputs(); return []any{f(2, 3, 4), ints(1)} }, fine: []string{"1=nil"}},
			{name: "nn.WithRecompute", f: func(r nn.Recompute) (*G.Node, error) {
				return nn.NewMambaBlock(cfg).Apply(nodesOf(x)()[0].(*G.Node), nn.WithRecompute(r))
			}, args: with(nn.RecomputeAll), fine: []string{"0=0"}},
			{name: "nn.WithComposed", f: func() (*G.Node, error) {
				return nn.NewMambaBlock(cfg).Apply(nodesOf(x)()[0].(*G.Node), nn.WithComposed())
			}},
		},
	)
}

func opCalls() []call {
	x, width := shape{2, 3, 4}, []string{"0=of another graph"}
	struc := func(name string, f any, in func(n, ints func(...int) *G.Node) any, cfg any, fine ...string) call {
		return call{name: "op." + name, f: f, fine: fine, args: func() []any {
			n, ints := inputs()
			args := []any{in(n, ints)}
			if cfg != nil {
				args = append(args, cfg)
			}
			return args
		}}
	}
	optional := func(fields ...string) (fine []string) {
		for _, f := range fields {
			fine = append(fine, "0."+f+"=nil")
		}
		return fine
	}
	conv := func(n, _ func(...int) *G.Node) any {
		return op.CausalConvInputs{X: n(2, 3, 4), Weight: n(4, 1, 3), Bias: n(4), Context: n(2, 2, 4), Start: n(2, 3)}
	}
	attention := func(n, _ func(...int) *G.Node) any {
		return op.AttentionInputs{Q: n(2, 3, 4), K: n(2, 3, 4), V: n(2, 3, 4), Context: n(2, 2, 9), Start: n(2, 3)}
	}
	scan := func(n, _ func(...int) *G.Node) any {
		return op.ScanInputs{U: n(2, 3, 4), Delta: n(2, 3, 4), A: n(4, 2), B: n(2, 3, 2), C: n(2, 3, 2), D: n(4), Z: n(2, 3, 4), DeltaBias: n(4),
			InitialState: n(2, 4, 2), Start: n(2, 3)}
	}
	s4 := func(n, _ func(...int) *G.Node) any {
		return op.S4Inputs{U: n(2, 3, 4), LogDelta: n(4), LogDecay: n(4, 2), C: n(4, 4), Frequency: n(4, 2), D: n(4), InitialState: n(2, 4, 4), Start: n(2, 3)}
	}
	lstm := func(n, _ func(...int) *G.Node) any {
		return op.LSTMInputs{Z: n(2, 3, 16), Weight: n(16, 4), H: n(2, 4), C: n(2, 4), Start: n(2, 3)}
	}
	block := func(n, _ func(...int) *G.Node) any {
		return op.BlockInputs{X: n(2, 3, 4), BlockWeights: op.BlockWeights[*G.Node]{Norm: n(4), InProj: n(16, 4), Conv: n(8, 1, 3), XProj: n(5, 8), DtProj: n(8, 1), DtBias: n(8),
			ALog: n(8, 2), D: n(8), OutProj: n(4, 8), InBias: n(16), ConvBias: n(8), OutBias: n(4)}, Context: n(2, 2, 8), InitialState: n(2, 8, 2), Start: n(2, 3)}
	}
	bidirectional := func(n, _ func(...int) *G.Node) any {
		direction := func() op.DirectionWeights {
			return op.DirectionWeights{Conv: n(8, 1, 3), ConvBias: n(8), XProj: n(5, 8), DtProj: n(8, 1), DtBias: n(8), ALog: n(8, 2), D: n(8)}
		}
		return op.BidirectionalInputs{XZ: n(2, 3, 16), Forward: direction(), Backward: direction(), Start: n(2, 3)}
	}
	convFine, blockFine := optional("Bias", "Context", "Start"), append(optional("BlockWeights.InBias", "BlockWeights.ConvBias", "BlockWeights.OutBias", "Context", "InitialState", "Start"), "1.Eps=0", "1=zero", "1.Recompute=0")
	scanFine := append(optional("D", "Z", "DeltaBias", "InitialState", "Start"), "1=zero")
	conv2 := op.ConvConfig{Stride: []int{1, 2}, Padding: []int{1, 1}, PaddingEnd: []int{1, 1}, Dilation: []int{1, 1}, Groups: 2}
	transposed := op.ConvTransposeConfig{Stride: []int{1, 2}, Padding: []int{1, 1}, OutputPadding: []int{0, 1}, Dilation: []int{1, 1}, Groups: 2}
	window := op.AttentionConfig{Heads: 2, Window: 3, Rotary: 100}
	noContext := func(n, i func(...int) *G.Node) any {
		a := attention(n, i).(op.AttentionInputs)
		a.Context = nil
		return a
	}
	return slices.Concat(
		methods("op.SelectiveScanOp", func() any {
			n, ints := inputs()
			return must(op.NewSelectiveScanOp(scan(n, ints).(op.ScanInputs), op.ScanConfig{DeltaSoftplus: true}))
		}, map[string]call{
			"Do": {broken: true}, "InferShape": {}, "DiffWRT": {args: with(10)}, "WriteHash": {args: func() []any { return []any{fnv.New32a()} }, panics: []string{"1=nil: a hash is not nil"}},
			"UsePreallocDo": {args: with(nil), broken: true}, "SymDiff": {args: with(nil, nil, nil), broken: true}, "DoDiff": {args: with(nil, nil, nil), broken: true},
		}),
		methods("op.BlockInputs", func() any { f, i := inputs(); in := block(f, i).(op.BlockInputs); return &in }, map[string]call{
			"Each": {args: func() []any { return []any{func(op.BlockWeight, **G.Node) {}} }, panics: []string{"0=nil: as everywhere in Go", "1=nil: a function is not nil"}},
		}),
		methods("op.BlockWeights", func() any { return &op.BlockWeights[int]{} }, map[string]call{
			"Each": {args: func() []any { return []any{func(op.BlockWeight, *int) {}} }, panics: []string{"0=nil: as everywhere in Go", "1=nil: a function is not nil"}},
		}),
		methods("op.ConvConfig", func() any { return conv2 }, map[string]call{"Err": {args: with(2), fine: append(listsOf("0.", "Padding", "Stride", "Dilation", "PaddingEnd"), "0=zero", "0.Groups=0")}}),
		methods("op.ConvTransposeConfig", func() any { return transposed }, map[string]call{
			"Err": {args: with(2), fine: append(listsOf("0.", "Padding", "Dilation", "OutputPadding"), "0=zero", "0.Groups=0")}}),
		methods("op.Activation", func() any { return op.SiLU }, nil),
		methods("op.Recompute", func() any { return op.RecomputeAll }, nil),
		methods("op.Order", func() any { return op.Columns(3, 4) }, nil),
		[]call{
			{name: "op.BlockShapes", f: op.BlockShapes, args: with(1, 2, 3, 4, 5)},
			{name: "op.MapBlock", f: op.MapBlock[int, int], args: func() []any { return []any{op.BlockWeights[int]{}, func(op.BlockWeight, int) int { return 0 }} },
				panics: []string{"1=nil: a function is not nil"}},
			{name: "op.Add", f: op.Add, args: nodesOf(x, x)},
			{name: "op.Reverse", f: op.Reverse, args: nodesOf(x, shape{2, 3}), fine: []string{"1=nil"}},
			{name: "op.Reorder", f: op.Reorder, args: func() []any { return append(nodesOf(x)(), op.Rows(3)) }, fine: []string{"0=of another graph"}},
			{name: "op.NewOrder", f: op.NewOrder, args: with([]int{1, 0})},
			{name: "op.Rows", f: op.Rows, args: with(3, 4)},
			{name: "op.Columns", f: op.Columns, args: with(3, 4)},
			{name: "op.Windows", f: op.Windows, args: with(3, 4, 2), fine: []string{"2=1*", "2=4*"}},
			{name: "op.Slices", f: op.Slices, args: with(3, 3, 4)},
			{name: "op.VMambaOrders", f: op.VMambaOrders, args: with(3, 4)},
			{name: "op.VimOrders", f: op.VimOrders, args: with(3)},
			{name: "op.LocalMambaOrders", f: op.LocalMambaOrders, args: with(3, 4)},
			{name: "op.SegMambaOrders", f: op.SegMambaOrders, args: with(3, 3, 4)},
			{name: "op.MLP", f: op.MLP, args: func() []any {
				in := nodesOf([]int{2, 3, 4}, []int{5, 4}, []int{5}, []int{6, 5}, []int{6})()
				n := func(i int) *G.Node { return in[i].(*G.Node) }
				return []any{op.MLPInputs{X: n(0), W1: n(1), B1: n(2), W2: n(3), B2: n(4)}, op.GELU}
			}, fine: []string{"0.B1=nil", "0.B2=nil", "1=0"}},
			struc("SS2D", op.SS2D, func(n, _ func(...int) *G.Node) any {
				return op.SS2DInputs{X: n(2, 3, 4, 5), XProj: n(2, 5, 5), DtProj: n(2, 5, 1), DtBias: n(2, 5), ALog: n(10, 2), D: n(10)}
			}, op.SS2DConfig{Orders: []op.Order{op.Rows(3, 4), op.Columns(3, 4)}}),
			struc("GridScan", op.GridScan, func(n, _ func(...int) *G.Node) any {
				return op.GridScanInputs{U: n(2, 3, 4, 5), Delta: n(2, 3, 4, 10), A: n(10, 2), B: n(2, 3, 4, 4), C: n(2, 3, 4, 4), D: n(10), DeltaBias: n(10)}
			}, op.GridScanConfig{Orders: []op.Order{op.Rows(3, 4), op.Columns(3, 4)}, DeltaSoftplus: true, Apart: true}, optional("D", "DeltaBias")...),
			{name: "op.Linear", f: op.Linear, args: nodesOf(x, shape{5, 4}, shape{5}), fine: []string{"2=nil"}},
			{name: "op.Reshape", f: op.Reshape, args: func() []any { return append(nodesOf(x)(), 6, 4) }, fine: width},
			{name: "op.Pad", f: op.Pad, args: func() []any { return append(nodesOf(x)(), []int{1}, []int{-1}) }, fine: []string{"0=of another graph", "1[0]=0", "2[0]=0", "1[0]=-1", "2[0]=-1"}},
			{name: "op.Scale", f: op.Scale, args: func() []any { return append(nodesOf(x, shape{4})(), 0.5) }, fine: []string{"1=nil", "2=0", "2=-1"}},
			{name: "op.Conv", f: op.Conv, args: func() []any { return append(nodesOf(shape{2, 3, 3, 4}, shape{6, 2, 3, 3}, shape{6})(), conv2) },
				fine: append(listsOf("3.", "Padding", "PaddingEnd", "Stride", "Dilation"), "2=nil")},
			{name: "op.ConvTranspose", f: op.ConvTranspose, args: func() []any {
				return append(nodesOf(shape{2, 3, 3, 4}, shape{4, 3, 3, 3}, shape{6})(), transposed)
			}, fine: append(listsOf("3.", "Padding", "OutputPadding", "Dilation"), "2=nil")},
			{name: "op.LowRank", f: op.LowRank, args: func() []any { return append(nodesOf(shape{5, 4}, shape{2, 4}, shape{5, 2})(), 1.0) }, fine: []string{"3=0", "3=-1"}},
			{name: "op.RMSNorm", f: op.RMSNorm, args: func() []any { return append(nodesOf(x, shape{4})(), 1e-5) }, fine: []string{"2=0"}},
			{name: "op.NegExp", f: op.NegExp, args: nodesOf(shape{4, 2}), fine: append(width, "0=of more axes")},
			{name: "op.Activate", f: op.Activate, args: func() []any { return append(nodesOf(x)(), op.GELU) }, fine: append(width, "0=of more axes", "1=0")},
			{name: "op.Gate", f: op.Gate, args: func() []any { return append(nodesOf(x, x)(), op.GELU) }, fine: []string{"2=0"}},
			{name: "op.Split", f: op.Split, args: func() []any { return append(nodesOf(x)(), 1, 3) }, fine: width},
			{name: "op.OuterProduct", f: op.OuterProduct, args: func() []any { return append(nodesOf(x, x)(), 2) }},
			{name: "op.Contract", f: op.Contract, args: func() []any { return append(nodesOf(x, shape{2, 3, 8})(), 2) }},
			{name: "op.Embedding", f: op.Embedding, args: func() []any { f, ints := inputs(); return []any{f(5, 4), ints(2, 3)} }, fine: []string{"0=axis 0*"}},
			{name: "op.TiedEmbedding", f: op.TiedEmbedding, args: func() []any { f, ints := inputs(); return []any{f(5, 4), ints(2, 3)} }, fine: []string{"0=axis 0*"}},
			{name: "op.LinearCrossEntropy", f: op.LinearCrossEntropy, args: func() []any { f, ints := inputs(); return []any{f(2, 3, 4), f(5, 4), ints(2, 3), -100} }, fine: []string{"3=*"}},
			{name: "op.Dropout", f: op.Dropout, args: func() []any {
				f, ints := inputs()
				return []any{f(2, 3), ints(1), op.DropoutConfig{Rate: 0.5, Layer: 1}}
			}, fine: []string{"0=of more axes", "2=zero", "2.Rate=0", "2.Layer=*"}},
			{name: "op.DropPath", f: op.DropPath, args: func() []any {
				f, ints := inputs()
				return []any{f(2, 3), ints(1), op.DropoutConfig{Rate: 0.5, Layer: 1}}
			}, fine: []string{"0=of more axes", "2=zero", "2.Rate=0", "2.Layer=*"}},
			{name: "op.MeanPool", f: op.MeanPool, args: func() []any { f, ints := inputs(); return []any{f(2, 3, 4), ints(2, 3)} }, fine: []string{"1=nil"}},
			{name: "op.CrossEntropy", f: op.CrossEntropy, args: func() []any { f, ints := inputs(); return []any{f(2, 3, 5), ints(2, 3), -100} }, fine: []string{"0=axis 2*", "2=*"}},
			{name: "op.BinaryCrossEntropy", f: op.BinaryCrossEntropy, args: func() []any { f, ints := inputs(); return []any{f(2, 3, 1), ints(2, 3), -100} }, fine: []string{"2=*"}},
			{name: "op.Dice", f: op.Dice, args: func() []any { f, ints := inputs(); return []any{f(2, 3, 5), ints(2, 3), -100} }, fine: []string{"0=axis 2*", "2=*"}},
			{name: "op.SegmentationLoss", f: op.SegmentationLoss, args: func() []any {
				f, ints := inputs()
				return []any{f(2, 3, 5), ints(2, 3), -100, op.SegmentationWeights{CrossEntropy: 1, Dice: 1}}
			}, fine: []string{"0=axis 2*", "2=*", "3.CrossEntropy=0", "3.Dice=0"}},
			{name: "op.DeepSupervision", f: op.DeepSupervision, args: func() []any {
				f, ints := inputs()
				return []any{G.Nodes{f(2, 4, 5)}, ints(2, 4), -100, []float64{1}, op.SegmentationWeights{CrossEntropy: 1, Dice: 1}}
			}, fine: []string{"0[0]=axis*", "1=axis*", "2=*", "3=nil", "4.CrossEntropy=0", "4.Dice=0"}},
			{name: "op.CheckGraph", f: op.CheckGraph, args: func() []any { return []any{G.NewGraph()} }, fine: []string{"0=zero: it has no nodes"}},
			{name: "op.FreeAfterUse", f: op.FreeAfterUse, args: func() []any { g := G.NewGraph(); return []any{g, G.NewScalar(g, tensor.Float32)} }},
			{name: "op.ReuseResults", f: op.ReuseResults, args: func() []any { return []any{G.NewGraph()} }},
			struc("CausalConv", op.CausalConv, conv, op.CausalConvConfig{SiLU: true}, append(convFine, "1=zero")...),
			struc("CausalConvWithContext", op.CausalConvWithContext, conv, op.CausalConvConfig{SiLU: true}, append(convFine, "1=zero")...),
			struc("Attention", op.Attention, noContext, window, append(optional("Context", "Start"), "1.Window=*", "1.Rotary=0")...),
			struc("AttentionWithContext", op.AttentionWithContext, attention, window, append(optional("Context", "Start"), "1.Rotary=0")...),
			struc("NewSelectiveScanOp", op.NewSelectiveScanOp, scan, op.ScanConfig{DeltaSoftplus: true}, scanFine...),
			struc("SelectiveScan", op.SelectiveScan, scan, op.ScanConfig{DeltaSoftplus: true}, scanFine...),
			struc("SelectiveScanWithState", op.SelectiveScanWithState, scan, op.ScanConfig{DeltaSoftplus: true}, scanFine...),
			struc("S4", op.S4, s4, op.S4Config{Bilinear: true}, append(optional("D", "InitialState", "Start"), "1=zero")...),
			struc("S4WithState", op.S4WithState, s4, op.S4Config{Bilinear: true}, append(optional("D", "InitialState", "Start"), "1=zero")...),
			struc("LSTM", op.LSTM, lstm, nil, optional("H", "C", "Start")...),
			struc("BidirectionalMamba", op.BidirectionalMamba, bidirectional, op.BidirectionalConfig{}, append(optional("Forward.ConvBias", "Backward.ConvBias", "Start"), "1=zero")...),
			struc("MambaBlock", op.MambaBlock, block, op.BlockConfig{Eps: 1e-5, Recompute: op.RecomputeAll}, blockFine...),
			struc("MambaBlockWithState", op.MambaBlockWithState, block, op.BlockConfig{Eps: 1e-5, Recompute: op.RecomputeAll}, blockFine...),
		},
	)
}

func taskCalls(dir string) []call {
	text := task.Text{Path: "p", Files: []task.File{{Name: "a", Data: []byte("some text, twice: some text")}}}
	copying, _ := task.NewCopying(8, 2, 5)
	random := func() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }
	return slices.Concat(
		methods("task.Accuracy", func() any { return new(task.Accuracy) }, map[string]call{"Add": {args: with([]int{1, 2}, []int{1, 3}, 2), fine: []string{"0=zero", "0.*=*: counts so far", "1[0]=*", "2[0]=*"}}}),
		methods("task.Batch", func() any { return task.Batch{IDs: []int{1}, Targets: []int{2}} }, nil),
		methods("task.Bigram", func() any { b, _ := task.NewBigram(text.Join()); return b }, map[string]call{
			"Probability": {args: with(byte(1), byte(2))}, "BitsPerByte": {args: with([]task.Batch{{IDs: []int{1}, Targets: []int{2}}}), fine: []string{"0.Discount=0", "1[0].*[0]=0"}},
		}),
		methods("task.Sampler", func() any { s, _ := task.NewSampler(text.Join(), 2, 3, 1); return s }, nil),
		methods("task.Stream", func() any { return task.NewStream(copying, 1) }, map[string]call{"Next": {args: with(2)}}),
		methods("task.Text", func() any { return text }, nil),
		[]call{
			{name: "task.Best", f: task.Best[float32], args: with([]float32{1, 2}, 2), fine: []string{"0=nil", "0[0]=*"}},
			{name: "task.Draw", f: task.Draw, args: func() []any { return []any{[]float64{1, 2}, 1.0, random()} }, fine: []string{"0[0]=*", "1=0"}, panics: []string{"2=zero: rand.New makes sources"}},
			{name: "task.Printable", f: task.Printable, args: with([]byte("a"))},
			{name: "task.Comments", f: task.Comments, args: with(text, 2)},
			{name: "task.GoSource", f: task.GoSource, args: with(1000), fine: []string{"0=1*", "0=4*"}},
			{name: "task.ReadText", f: task.ReadText, args: with(filepath.Join(dir, "text"), 1000), fine: []string{"1=1*", "1=4*"}},
			{name: "task.Split", f: task.Split, args: with(text, 0.5), fine: []string{`0.*=""`, "0.Path=*", "0.Files[0].Name=*"}},
			{name: "task.NewBigram", f: task.NewBigram, args: with(text.Join())},
			{name: "task.NewSampler", f: task.NewSampler, args: with(text.Join(), 2, 3, int64(1)), fine: []string{"3=*"}},
			{name: "task.Windows", f: task.Windows, args: with(text.Join(), 2, 3, 1), fine: []string{"3=*"}},
			{name: "task.NewStream", f: task.NewStream, args: func() []any { return []any{copying, uint64(1)} }},
			{name: "task.NewCopying", f: task.NewCopying, args: with(8, 2, 5)},
			{name: "task.NewSelectiveCopying", f: task.NewSelectiveCopying, args: with(8, 2, 5)},
			{name: "task.NewInductionHeads", f: task.NewInductionHeads, args: with(8, 5)},
			{name: "task.NewAssociativeRecall", f: task.NewAssociativeRecall, args: with(2, 5)},
		},
	)
}
