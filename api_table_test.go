package mamba_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/task"
)

// calls returns the table.
func calls(t *testing.T) []call {
	return slices.Concat(layerCalls(), nnCalls(), opCalls(), taskCalls())
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
			panic(name + "." + m.Name + " needs arguments")
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

// wrongAxes are patterns of nodes whose size of an axis is no error: batch, length, and what else may have any size.
func wrongAxes(argument string, axes ...int) (patterns []string) {
	for _, a := range axes {
		patterns = append(patterns, fmt.Sprintf("%s=axis %d of *", argument, a))
	}
	return patterns
}

func layerCalls() []call {
	x := shape{2, 3, 4}
	any2 := slices.Concat(wrongAxes("1", 0, 1))
	start := call{args: nodesOf(x, shape{2, 3}), fine: []string{"2=nil"}}
	state := func(of ...int) call { return call{args: nodesOf(x, of, shape{2, 3}), fine: []string{"2=nil", "3=nil"}} }
	apply := call{args: nodesOf(x), fine: any2}
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
	ids := call{args: func() []any { _, ints := inputs(); return []any{ints(2, 3)} }, fine: any2}
	option := func(name string, f any, arg any, fine ...string) call {
		return call{name: "layer." + name, f: f, args: with(arg), fine: fine}
	}
	params := func() any { return layer.NewLinear(3, 4, layer.WithName("in_proj")).Params() }
	opts := func() layer.Options { o, _ := layer.Collect(nil, false); return o }
	type mine struct {
		layer.Base
		part *layer.Linear
	}
	return slices.Concat(
		methods("layer.Linear", func() any { return layer.NewLinear(4, 5) }, rows(nil)),
		methods("layer.RMSNorm", func() any { return layer.NewRMSNorm(4) }, rows(nil)),
		methods("layer.GatedMLP", func() any { return layer.NewGatedMLP(4, 8) }, rows(nil)),
		methods("layer.Embedding", func() any { return layer.NewEmbedding(5, 4) }, rows(map[string]call{"Apply": ids, "Fwd": ids})),
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
			"ByName": {args: with("a")}, "ToDevice": {args: with(nil), broken: true}, "Nodes": {args: func() []any { return []any{G.NewGraph()} }, panics: []string{"1=nil: a node has a graph", "0[0]=*: a weight is not nil, and has a value"}},
			"AddLoRA": {args: with(layer.LoRAConfig{Rank: 2, Alpha: 1, Targets: []string{"in_proj"}, Seed: 1}), fine: []string{"1.Alpha=0", "1.Targets=nil"}},
		}),
		methods("layer.Param", func() any { return params().(layer.Params)[0] }, map[string]call{
			"Node":      {args: func() []any { return []any{G.NewGraph()} }, panics: []string{"1=*: a node has a graph", "0=*: a weight is not nil, and has a value"}},
			"Effective": {args: func() []any { return []any{G.NewGraph()} }},
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
			}, fine: []string{"1*", "2*", "0*", "3*"}},
			{name: "layer.Collect", f: layer.Collect, args: with([]layer.Option{layer.WithBias(true)}, false), fine: []string{"0=nil"}},
			{name: "layer.Err", f: layer.Err[layer.Linear, *layer.Linear], args: func() []any { return []any{layer.NewLinear(3, 4)} }},
			{name: "layer.Use", f: layer.Use[layer.Linear, *layer.Linear], args: func() []any { return append([]any{layer.NewLinear(3, 4)}, nodesOf(x)()...) },
				fine: []string{"1=axis*", "1=of*"}},
			{name: "layer.Together", f: func(l *layer.Linear) (layer.Params, error) { return layer.Together(l) }, args: func() []any { return []any{layer.NewLinear(3, 4)} }},
			{name: "layer.Effective", f: layer.Effective, args: func() []any { return []any{G.NewGraph(), params().(layer.Params)[0]} }, fine: []string{"1=nil"}},
			{name: "layer.Lift", f: layer.Lift, args: func() []any { l := layer.NewLinear(4, 5); return append(nodesOf(x)(), l.Apply) }, fine: []string{"0=axis 0*", "0=axis 1*"}},
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

func nnCalls() []call   { return nil }
func opCalls() []call   { return nil }
func taskCalls() []call { return nil }

var _ = nn.Mamba
var _ = task.Ignore
