package mamba_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

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
	return slices.Concat(layerCalls(), nnCalls(dir), opCalls(), taskCalls(dir), trainCalls(dir), checkpointCalls(dir), reportCalls(dir),
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

func layerCalls() []call {
	x := shape{2, 3, 4}
	start := call{args: nodesOf(x, shape{2, 3}), fine: []string{"2=nil"}}
	state := func(of ...int) call { return call{args: nodesOf(x, of, shape{2, 3}), fine: []string{"2=nil", "3=nil"}} }
	apply := call{args: nodesOf(x), fine: another}
	rows := func(more map[string]call) map[string]call {
		all := map[string]call{
			"Apply": apply, "Fwd": apply,
			"Init": {args: func() []any { return []any{"name", nil} }},
		}
		for name, c := range more {
			all[name] = c
		}
		return all
	}
	shapes := call{args: with(2)}
	sequence := func(of ...int) map[string]call {
		return rows(map[string]call{"ApplyStart": start, "ApplyWithState": state(of...), "StateShape": shapes})
	}
	ids := call{args: func() []any { _, ints := inputs(); return []any{ints(2, 3)} }, fine: another}
	option := func(name string, f any, arg any, fine ...string) call {
		return call{name: "layer." + name, f: f, args: with(arg), fine: fine}
	}
	params := func() any { return layer.NewLinear(3, 4, layer.WithName("in_proj")).Params() }
	opts := func() layer.Options { o, _ := layer.Collect(nil, false); return o }
	missing := call{panics: []string{"0[0]=*: a weight is not nil, and has a value"}}
	const zeroGraph = "1=zero: gorgonia.NewGraph makes graphs"
	type mine struct {
		layer.Base
		part *layer.Linear
	}
	return slices.Concat(
		methods("layer.Linear", func() any { return layer.NewLinear(4, 5) }, rows(nil)),
		methods("layer.RMSNorm", func() any { return layer.NewRMSNorm(4) }, rows(nil)),
		methods("layer.GatedMLP", func() any { return layer.NewGatedMLP(4, 8) }, rows(nil)),
		methods("layer.Embedding", func() any { return layer.NewEmbedding(5, 4) }, rows(map[string]call{"Apply": ids, "ApplyTied": ids, "Fwd": ids})),
		methods("layer.Conv1D", func() any { return layer.NewConv1D(4, 3) }, rows(map[string]call{"ApplyStart": start, "ApplyWithContext": state(2, 2, 4)})),
		methods("layer.S4", func() any { return layer.NewS4(4, layer.WithStateSize(2)) }, sequence(2, 4, 2)),
		methods("layer.S6", func() any { return layer.NewS6(4, layer.WithStateSize(2)) }, sequence(2, 4, 2)),
		methods("layer.LSTM", func() any { return layer.NewLSTM(4) }, sequence(2, 8)),
		methods("layer.Attention", func() any { return layer.NewAttention(4, layer.WithWindow(3)) }, sequence(2, 2, 9)),
		methods("layer.H3", func() any { return layer.NewH3(4, layer.NewS6, layer.WithStateSize(2)) }, rows(map[string]call{
			"ApplyStart": start, "StateShapes": shapes,
			"ApplyWithState": {args: func() []any {
				f, _ := inputs()
				return []any{f(x...), layer.H3State{Shift: f(2, 3, 4), Inner: f(2, 4, 2)}, f(2, 3)}
			}, fine: []string{"2=zero", "2.Shift=nil", "2.Inner=nil", "3=nil"}},
		})),
		methods("layer.Base", func() any { b := new(layer.Base); b.Init("name", nil); return b }, map[string]call{"Init": {args: with("name", nil)}}),
		methods("layer.Options", func() any { return opts() }, map[string]call{
			"New": {args: func() []any { return []any{func() float64 { return 1 }, 2, 3} }}, "Part": {args: with("name")}, "Rand": {args: with("name")},
			"Repeated": {args: with(3)},
		}),
		methods("layer.Params", params, map[string]call{
			"Count": missing, "Decayed": missing, "Freeze": missing, "Unfreeze": missing, "RemoveLoRA": missing, "Trainable": missing, "ValuesChanged": missing,
			"MergeLoRA": {fine: []string{"0=nil: nothing to merge"}}, "ToHost": {fine: []string{"0=nil: nothing to copy"}},
			"ByName": {args: with("a"), panics: missing.panics}, "ToDevice": {args: with(nil), broken: true, fine: []string{"1=zero: the error is that of the first use"}}, "Nodes": {args: func() []any { return []any{G.NewGraph()} }, panics: []string{"1=*: gorgonia.NewGraph makes graphs", "0[0]=*: a weight is not nil, and has a value"}},
			"AddLoRA":   {args: with(layer.LoRAConfig{Rank: 2, Alpha: 1, Targets: []string{"in_proj"}, Seed: 1}), fine: []string{"1.Alpha=0", "1.Targets=nil", "1.Start=nil"}},
			"TargetsOf": {args: with(layer.LoRAConfig{Rank: 2, Alpha: 1, Targets: []string{"in_proj"}, Seed: 1}), fine: []string{"1.Alpha=0", "1.Targets=nil", "1.Rank=1*", "1.Rank=4*", "1.Start=nil"}},
		}),
		methods("layer.Param", func() any { return params().(layer.Params)[0] }, map[string]call{
			"Node":       {args: func() []any { return []any{G.NewGraph()} }, panics: []string{"1=*: gorgonia.NewGraph makes graphs", "0=*: a weight is not nil, and has a value"}},
			"LoRAShapes": {args: with(2), panics: []string{"0=zero: a weight has a value"}},
			"Effective":  {args: func() []any { return []any{G.NewGraph()} }, panics: []string{zeroGraph}},
		}),
		methods("layer.StartA", func() any { return layer.S4DLin }, map[string]call{"Values": {args: with(4), fine: []string{`0=""`}}}),
		[]call{
			{name: "layer.NewLinear", f: layer.NewLinear, args: with(3, 4)},
			{name: "layer.NewRMSNorm", f: layer.NewRMSNorm, args: with(3)},
			{name: "layer.NewGatedMLP", f: layer.NewGatedMLP, args: with(3, 4), fine: []string{"1=0"}},
			{name: "layer.NewEmbedding", f: layer.NewEmbedding, args: with(3, 4)},
			{name: "layer.NewConv1D", f: layer.NewConv1D, args: with(3, 4)},
			{name: "layer.NewS4", f: layer.NewS4, args: with(3)},
			{name: "layer.NewS6", f: layer.NewS6, args: with(3)},
			{name: "layer.NewLSTM", f: layer.NewLSTM, args: with(3)},
			{name: "layer.NewAttention", f: layer.NewAttention, args: with(4)},
			{name: "layer.NewH3", f: layer.NewH3[*layer.S6], args: with(4, layer.NewS6)},
			{name: "layer.NewParam", f: layer.NewParam, args: func() []any { return []any{"name", tensor.New(tensor.WithShape(2), tensor.Of(tensor.Float32)), true} }},
			{name: "layer.Build", f: layer.Build[mine, *mine], args: func() []any {
				return []any{"mine: layer", []any{"size", 3}, opts(), nil, func(l *mine, o layer.Options) (layer.Params, error) {
					l.part = layer.NewLinear(3, 3, o.Part("part")...)
					return layer.Together(l.part)
				}}
			}, fine: []string{"1*", "2*", "3*"}},
			{name: "layer.Collect", f: layer.Collect, args: with([]layer.Option{layer.WithBias(true)}, false), fine: []string{"0=nil"}},
			{name: "layer.Err", f: layer.Err[layer.Linear, *layer.Linear], args: func() []any { return []any{layer.NewLinear(3, 4)} }},
			{name: "layer.Use", f: layer.Use[layer.Linear, *layer.Linear], args: func() []any { return append([]any{layer.NewLinear(3, 4)}, nodesOf(x)()...) },
				fine: []string{"1=axis*", "1=of*"}},
			{name: "layer.Together", f: func(l *layer.Linear) (layer.Params, error) { return layer.Together(l) }, args: func() []any { return []any{layer.NewLinear(3, 4)} }},
			{name: "layer.Effective", f: layer.Effective, args: func() []any { return []any{G.NewGraph(), params().(layer.Params)[0]} }, fine: []string{"1=nil", "1[0]=nil"}, panics: []string{"0=zero: gorgonia.NewGraph makes graphs"}},
			{name: "layer.Lift", f: layer.Lift, args: func() []any { l := layer.NewLinear(4, 5); return append(nodesOf(x)(), l.Apply) }, fine: []string{"0=of another graph"}},
			{name: "layer.Join", f: layer.Join, args: with("a", "b")},
			{name: "layer.Constant", f: layer.Constant, args: with(1.0)},
			{name: "layer.Uniform", f: layer.Uniform, args: func() []any { return []any{rand.New(rand.NewPCG(1, 2)), 1.0} }},
			{name: "layer.LogUniform", f: layer.LogUniform, args: func() []any { return []any{rand.New(rand.NewPCG(1, 2)), 1.0, 2.0} }},
			{name: "layer.InverseSoftplus", f: layer.InverseSoftplus, args: with(1.0)},
			option("WithA", func(a layer.StartA) *layer.S4 { return layer.NewS4(2, layer.WithA(a)) }, layer.S4DLin, `0=""`),
			option("WithActivation", func(f op.Activation) *layer.GatedMLP { return layer.NewGatedMLP(2, 3, layer.WithActivation(f)) }, op.GELU, "0=0"),
			option("WithBias", func(b bool) *layer.Linear { return layer.NewLinear(2, 3, layer.WithBias(b)) }, true),
			option("WithDtRank", func(n int) *layer.S6 { return layer.NewS6(2, layer.WithDtRank(n)) }, 1, "0=0"),
			option("WithStateSize", func(n int) *layer.S6 { return layer.NewS6(2, layer.WithStateSize(n)) }, 1, "0=0"),
			option("WithDtype", func(dt tensor.Dtype) *layer.S6 { return layer.NewS6(2, layer.WithDtype(dt)) }, tensor.Float64),
			option("WithEps", func(e float64) *layer.RMSNorm { return layer.NewRMSNorm(2, layer.WithEps(e)) }, 1e-5, "0=0"),
			option("WithHeads", func(n int) *layer.Attention { return layer.NewAttention(4, layer.WithHeads(n)) }, 2, "0=0"),
			option("WithShift", func(n int) *layer.H3 { return layer.NewH3(4, layer.NewS6, layer.WithShift(n)) }, 2, "0=0"),
			option("WithWindow", func(n int) *layer.Attention { return layer.NewAttention(4, layer.WithWindow(n)) }, 2, "0=0"),
			option("WithRotary", func(b float64) *layer.Attention { return layer.NewAttention(4, layer.WithRotary(b)) }, 100.0, "0=0"),
			option("WithName", func(s string) *layer.Linear { return layer.NewLinear(2, 3, layer.WithName(s)) }, "a", "0=*"),
			option("WithSeed", func(n int) *layer.Linear { return layer.NewLinear(2, 3, layer.WithSeed(uint64(n))) }, 1, "0=*"),
			{name: "layer.WithDtRange", f: func(low, high float64) *layer.S6 { return layer.NewS6(2, layer.WithDtRange(low, high)) }, args: with(0.1, 0.2)},
			{name: "layer.WithBilinear", f: func() *layer.S4 { return layer.NewS4(2, layer.WithBilinear()) }},
			{name: "layer.WithZeros", f: func() *layer.S4 { return layer.NewS4(2, layer.WithZeros()) }},
			{name: "layer.WithoutSiLU", f: func() *layer.Conv1D { return layer.NewConv1D(2, 3, layer.WithoutSiLU()) }},
		},
	)
}

func nnCalls(dir string) []call {
	x := shape{2, 3, 4}
	cfg := nn.Config{DModel: 4, NLayer: 2, DState: 2}
	lmCfg := nn.LMConfig{Config: cfg, Vocab: 5}
	full := nn.NewLM(lmCfg).Config() // every field has a value
	full.Pattern, full.DHidden, full.NHead, full.Window, full.DInner = []nn.Kind{nn.Mamba, nn.Attention}, 4, 2, 3, 4
	lm := func() *nn.LM { return nn.NewLM(lmCfg) }
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
		return []any{f(x...), nn.LayerState{Conv: f(2, 3, 8), Scan: f(2, 8, 2)}}
	}
	state := func(g, batch any) call { return call{args: with(g, batch)} }
	_ = state
	base := func(more map[string]call) map[string]call {
		more["Init"] = call{args: with("name", nil)}
		return more
	}
	zero := call{args: func() []any { return []any{G.NewGraph(), 2} }, panics: []string{"1=zero: gorgonia.NewGraph makes graphs"}}
	apply := call{args: nodesOf(x), fine: another}
	return slices.Concat(
		methods("nn.MambaBlock", func() any { return nn.NewMambaBlock(cfg) }, base(map[string]call{
			"Apply": apply, "Fwd": apply, "ZeroState": zero,
			"ApplyWithState": {args: layerState, fine: []string{"2=zero", "2.Conv=nil", "2.Scan=nil"}},
		})),
		methods("nn.MambaStack", func() any { return nn.NewMambaStack(cfg) }, base(map[string]call{
			"Apply": apply, "Fwd": apply, "ZeroState": zero,
			"ApplyWithState": {args: func() []any {
				a := layerState()
				s := a[1].(nn.LayerState)
				return []any{a[0], nn.State{s, s}}
			}, fine: []string{"2=nil", "2[0]=zero", "2[0].Conv=nil", "2[0].Scan=nil"}},
		})),
		methods("nn.LM", func() any { return lm() }, base(map[string]call{
			"Apply": {args: ids(false), fine: another}, "Fwd": {args: ids(false), fine: another}, "Loss": {args: ids(true)},
			"ApplyWithState": {args: func() []any { return append(ids(false)(), nn.State(nil)) }, fine: another},
		})),
		methods("nn.State", func() any { return nn.State{nn.LayerState{Conv: layerState()[0].(*G.Node)}} }, nil),
		methods("nn.Stepper", func() any { s, _ := nn.NewStepper(lm(), 2); return s }, map[string]call{"Step": {args: with([]int{1, 2}), fine: []string{"1[0]=0"}}}),
		methods("nn.Sequence", func() any { return nn.NewSequence(1, 2, 3) }, map[string]call{
			"Append": {args: with(1)}, "Reseed": {args: with(uint64(1))}, "Save": {args: with(filepath.Join(dir, "sequence")), fine: []string{"0=zero"}},
		}),
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
			{name: "nn.NewGenerator", f: nn.NewGenerator, args: func() []any {
				return []any{lm(), nn.GenerateConfig{Sampling: nn.Sampling{Temperature: 1, TopK: 2, TopP: 0.5, MinP: 0.1, RepetitionPenalty: 1}, MaxTokens: 2, StopTokens: []int{1}, Piece: 3}}
			}, fine: []string{"1.Sampling*=0", "1.Sampling=zero", "1.Sampling.TopK=*", "1.MaxTokens=1*", "1.MaxTokens=4*", "1.Piece=*", "1.StopTokens=nil", "1.StopTokens[0]=0"}},
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
		return op.ConvInputs{X: n(2, 3, 4), Weight: n(4, 1, 3), Bias: n(4), Context: n(2, 2, 4), Start: n(2, 3)}
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
		return op.LSTMInputs{Z: n(2, 3, 16), Weight: n(16, 4), InitialState: n(2, 8), Start: n(2, 3)}
	}
	block := func(n, _ func(...int) *G.Node) any {
		return op.BlockInputs{X: n(2, 3, 4), NormWeight: n(4), InProj: n(16, 4), ConvWeight: n(8, 1, 3), XProj: n(5, 8), DtProj: n(8, 1), DtBias: n(8), ALog: n(8, 2),
			D: n(8), OutProj: n(4, 8), InBias: n(16), ConvBias: n(8), OutBias: n(4), Context: n(2, 2, 8), InitialState: n(2, 8, 2), Start: n(2, 3)}
	}
	convFine, blockFine := optional("Bias", "Context", "Start"), append(optional("InBias", "ConvBias", "OutBias", "Context", "InitialState", "Start"), "1.Eps=0", "1=zero", "1.Recompute=0")
	scanFine := append(optional("D", "Z", "DeltaBias", "InitialState", "Start"), "1=zero")
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
		methods("op.Recompute", func() any { return op.RecomputeAll }, nil),
		[]call{
			{name: "op.Add", f: op.Add, args: nodesOf(x, x)},
			{name: "op.Linear", f: op.Linear, args: nodesOf(x, shape{5, 4}, shape{5}), fine: []string{"2=nil"}},
			{name: "op.LowRank", f: op.LowRank, args: func() []any { return append(nodesOf(shape{5, 4}, shape{2, 4}, shape{5, 2})(), 1.0) }, fine: []string{"3=0", "3=-1"}},
			{name: "op.RMSNorm", f: op.RMSNorm, args: func() []any { return append(nodesOf(x, shape{4})(), 1e-5) }, fine: []string{"2=0"}},
			{name: "op.NegExp", f: op.NegExp, args: nodesOf(shape{4, 2}), fine: append(width, "0=of more axes")},
			{name: "op.Activate", f: op.Activate, args: func() []any { return append(nodesOf(x)(), op.GELU) }, fine: append(width, "1=0")},
			{name: "op.Gate", f: op.Gate, args: func() []any { return append(nodesOf(x, x)(), op.GELU) }, fine: []string{"2=0"}},
			{name: "op.Split", f: op.Split, args: func() []any { return append(nodesOf(x)(), 1, 3) }, fine: width},
			{name: "op.OuterProduct", f: op.OuterProduct, args: func() []any { return append(nodesOf(x, x)(), 2) }},
			{name: "op.Contract", f: op.Contract, args: func() []any { return append(nodesOf(x, shape{2, 3, 8})(), 2) }},
			{name: "op.Embedding", f: op.Embedding, args: func() []any { f, ints := inputs(); return []any{f(5, 4), ints(2, 3)} }, fine: []string{"0=axis 0*"}},
			{name: "op.TiedEmbedding", f: op.TiedEmbedding, args: func() []any { f, ints := inputs(); return []any{f(5, 4), ints(2, 3)} }, fine: []string{"0=axis 0*"}},
			{name: "op.LinearCrossEntropy", f: op.LinearCrossEntropy, args: func() []any { f, ints := inputs(); return []any{f(2, 3, 4), f(5, 4), ints(2, 3), -100} }, fine: []string{"3=*"}},
			{name: "op.CrossEntropy", f: op.CrossEntropy, args: func() []any { f, ints := inputs(); return []any{f(2, 3, 5), ints(2, 3), -100} }, fine: []string{"0=axis 2*", "2=*"}},
			{name: "op.CheckGraph", f: op.CheckGraph, args: func() []any { return []any{G.NewGraph()} }, fine: []string{"0=zero: it has no nodes"}},
			{name: "op.ReuseResults", f: op.ReuseResults, args: func() []any { return []any{G.NewGraph()} }},
			struc("CausalConv", op.CausalConv, conv, op.ConvConfig{SiLU: true}, append(convFine, "1=zero")...),
			struc("CausalConvWithContext", op.CausalConvWithContext, conv, op.ConvConfig{SiLU: true}, append(convFine, "1=zero")...),
			struc("Attention", op.Attention, noContext, window, append(optional("Context", "Start"), "1.Window=*", "1.Rotary=0")...),
			struc("AttentionWithContext", op.AttentionWithContext, attention, window, append(optional("Context", "Start"), "1.Rotary=0")...),
			struc("NewSelectiveScanOp", op.NewSelectiveScanOp, scan, op.ScanConfig{DeltaSoftplus: true}, scanFine...),
			struc("SelectiveScan", op.SelectiveScan, scan, op.ScanConfig{DeltaSoftplus: true}, scanFine...),
			struc("SelectiveScanWithState", op.SelectiveScanWithState, scan, op.ScanConfig{DeltaSoftplus: true}, scanFine...),
			struc("S4", op.S4, s4, op.S4Config{Bilinear: true}, append(optional("D", "InitialState", "Start"), "1=zero")...),
			struc("S4WithState", op.S4WithState, s4, op.S4Config{Bilinear: true}, append(optional("D", "InitialState", "Start"), "1=zero")...),
			struc("LSTM", op.LSTM, lstm, nil, optional("InitialState", "Start")...),
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
