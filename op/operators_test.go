package op

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

// use is a call of an operator with operands. The tests of all operators run over uses.
type use struct {
	name string
	f    grad.Func
	in   []grad.Input
}

// uses returns uses of every operator. The sizes of the operands grow with scale.
func uses(scale int) []use {
	r := rand.New(rand.NewPCG(20, 11))
	input := func(name string, shape ...int) grad.Input {
		return grad.Input{Name: name, Value: dense(tensor.Float64, shape, normal(r, tensor.Shape(shape).TotalSize()))}
	}
	integers := func(name string, below int, shape ...int) grad.Input {
		v := make([]float64, tensor.Shape(shape).TotalSize())
		for i := range v {
			v[i] = float64(r.IntN(below))
		}
		return grad.Input{Name: name, Value: dense(tensor.Int, shape, v), Constant: true}
	}
	batch, length, channels, state := 2, 5*scale, 4*scale, 3
	sequence := input("", batch, length, channels).Value
	x, grid := grad.Input{Name: "x", Value: sequence}, input("x", batch, 3, 2, channels)
	attentionContext := input("Context", batch, 3, 2*channels+1)
	logDelta := input("LogDelta", channels)
	for i := range channels { // steps around 1, since a state forgets everything in a long step
		logDelta.Value.Data().([]float64)[i] *= 0.1
	}
	start := integers("Start", 2, batch, length)
	start.Value.Data().([]int)[0] = 0 // so that an initial state has an effect
	all := []use{
		{"linear", func(in G.Nodes) (G.Nodes, error) { return one(Linear(in[0], in[1], in[2])) },
			[]grad.Input{x, input("weight", 3*scale, channels), input("bias", 3*scale)}},
		{"linear without bias", func(in G.Nodes) (G.Nodes, error) { return one(Linear(in[0], in[1], nil)) },
			[]grad.Input{x, input("weight", 3*scale, channels)}},
		{"low rank", func(in G.Nodes) (G.Nodes, error) { return one(LowRank(in[0], in[1], in[2], 0.5)) },
			[]grad.Input{input("weight", 3*scale, channels), input("a", 2, channels), input("b", 3*scale, 2)}},
		{"linear of one row a sequence", func(in G.Nodes) (G.Nodes, error) { return one(Linear(in[0], in[1], in[2])) },
			[]grad.Input{input("x", batch, channels), input("weight", 3, channels), input("bias", 3)}},
		{"linear over a grid", func(in G.Nodes) (G.Nodes, error) { return one(Linear(in[0], in[1], in[2])) },
			[]grad.Input{grid, input("weight", 3, channels), input("bias", 3)}},
		{"reshape", func(in G.Nodes) (G.Nodes, error) { return one(Reshape(in[0], 2, 6, channels)) }, []grad.Input{grid}},
		{"scale", func(in G.Nodes) (G.Nodes, error) { return one(Scale(in[0], nil, -0.5)) }, []grad.Input{grid}},
		{"scale of channels", func(in G.Nodes) (G.Nodes, error) { return one(Scale(in[0], in[1], 0.5)) },
			[]grad.Input{grid, input("weight", channels)}},
		{"cross-entropy over a grid", func(in G.Nodes) (G.Nodes, error) { return one(CrossEntropy(in[0], in[1], 0)) },
			[]grad.Input{{Name: "logits", Value: grid.Value}, integers("targets", channels, batch, 3, 2)}},
		{"pad of a grid", func(in G.Nodes) (G.Nodes, error) { return one(Pad(in[0], []int{1, -1}, []int{-2, 3})) }, []grad.Input{grid}},
		{"pad of a volume", func(in G.Nodes) (G.Nodes, error) { return one(Pad(in[0], []int{0, -1, 2}, []int{1, 1, -1})) },
			[]grad.Input{input("x", batch, 2, 3, 2, channels)}},
		{"cut of a sequence", func(in G.Nodes) (G.Nodes, error) { return one(Pad(in[0], []int{-2}, []int{-1})) }, []grad.Input{x}},
		{"split of a grid", func(in G.Nodes) (G.Nodes, error) { return Split(in[0], scale, 3*scale) }, []grad.Input{grid}},
		{"GELU over a grid", func(in G.Nodes) (G.Nodes, error) { return one(Activate(in[0], GELU)) }, []grad.Input{grid}},
		{"reverse", func(in G.Nodes) (G.Nodes, error) { return one(Reverse(in[0], nil)) }, []grad.Input{{Name: "x", Value: sequence}}},
		{"reverse of packed sequences", func(in G.Nodes) (G.Nodes, error) { return one(Reverse(in[0], in[1])) },
			[]grad.Input{{Name: "x", Value: sequence}, start}},
		{"RMS norm of one row a sequence", func(in G.Nodes) (G.Nodes, error) { return one(RMSNorm(in[0], in[1], 1e-5)) },
			[]grad.Input{input("x", batch, channels), input("weight", channels)}},
		{"cross-entropy of one target a sequence", func(in G.Nodes) (G.Nodes, error) { return one(CrossEntropy(in[0], in[1], 0)) },
			[]grad.Input{input("logits", batch, channels), integers("targets", channels, batch)}},
		{"RMS norm", func(in G.Nodes) (G.Nodes, error) { return one(RMSNorm(in[0], in[1], 1e-5)) },
			[]grad.Input{x, input("weight", channels)}},
		{"embedding", func(in G.Nodes) (G.Nodes, error) { return one(Embedding(in[0], in[1])) },
			[]grad.Input{input("weight", 7, channels), integers("ids", 7, batch, length)}},
		{"split", func(in G.Nodes) (G.Nodes, error) { return Split(in[0], scale, 2*scale, scale) }, []grad.Input{x}},
		{"add", func(in G.Nodes) (G.Nodes, error) { return one(Add(in[0], in[1])) },
			[]grad.Input{{Name: "a", Value: sequence}, input("b", batch, length, channels)}},
		{"negative exponential", func(in G.Nodes) (G.Nodes, error) { return one(NegExp(in[0])) }, []grad.Input{x}},
		{"outer product", func(in G.Nodes) (G.Nodes, error) { return one(OuterProduct(in[0], in[1], 2)) },
			[]grad.Input{{Name: "k", Value: sequence}, input("v", batch, length, channels)}},
		{"contraction", func(in G.Nodes) (G.Nodes, error) { return one(Contract(in[0], in[1], 2)) },
			[]grad.Input{{Name: "q", Value: sequence}, input("s", batch, length, 2*scale*channels)}},
		{"causal convolution", func(in G.Nodes) (G.Nodes, error) {
			y, context, err := CausalConvWithContext(
				CausalConvInputs{X: in[0], Weight: in[1], Bias: in[2], Context: in[3], Start: in[4]}, CausalConvConfig{SiLU: true})
			return G.Nodes{y, context}, err
		}, []grad.Input{{Name: "X", Value: sequence}, input("Weight", channels, 1, 3), input("Bias", channels),
			input("Context", batch, 2, channels), integers("Start", 2, batch, length)}},
		{"wide convolution without SiLU", func(in G.Nodes) (G.Nodes, error) {
			y, context, err := CausalConvWithContext(CausalConvInputs{X: in[0], Weight: in[1], Start: in[2]}, CausalConvConfig{})
			return G.Nodes{y, context}, err
		}, []grad.Input{{Name: "X", Value: sequence}, input("Weight", channels, 1, 18), start}},
		{"dense convolution", func(in G.Nodes) (G.Nodes, error) {
			return one(Conv(in[0], in[1], in[2], ConvConfig{Padding: []int{1}}))
		},
			[]grad.Input{input("x", batch, 5, 3, channels), input("weight", 3*scale, channels, 3, 3), input("bias", 3*scale)}},
		{"dense convolution of a volume in groups", func(in G.Nodes) (G.Nodes, error) {
			return one(Conv(in[0], in[1], nil, ConvConfig{Stride: []int{1, 2, 1}, Padding: []int{1, 0, 1}, PaddingEnd: []int{0, 1, 2},
				Dilation: []int{1, 1, 2}, Groups: 2, SiLU: true}))
		}, []grad.Input{input("x", batch, 2, 3, 5, channels), input("weight", 2*scale, channels/2, 2, 3, 2)}},
		{"convolution of one cell", func(in G.Nodes) (G.Nodes, error) { return one(Conv(in[0], in[1], in[2], ConvConfig{Groups: 2})) },
			[]grad.Input{input("x", batch, length, channels), input("weight", 2*scale, channels/2, 1), input("bias", 2*scale)}},
		{"depthwise convolution", func(in G.Nodes) (G.Nodes, error) {
			return one(Conv(in[0], in[1], in[2], ConvConfig{Padding: []int{1}, Groups: channels, SiLU: true}))
		}, []grad.Input{input("x", batch, 7, 5, channels), input("weight", channels, 1, 3, 3), input("bias", channels)}},
		{"depthwise convolution of sequences", func(in G.Nodes) (G.Nodes, error) {
			return one(Conv(in[0], in[1], nil, ConvConfig{Padding: []int{1}, PaddingEnd: []int{2}, Stride: []int{2}, Groups: channels}))
		}, []grad.Input{{Name: "x", Value: sequence}, input("weight", channels, 1, 4)}},
		{"dense transposed convolution", func(in G.Nodes) (G.Nodes, error) {
			return one(ConvTranspose(in[0], in[1], in[2], ConvTransposeConfig{Stride: []int{2}, Padding: []int{1}, OutputPadding: []int{1, 0}, Groups: 2}))
		}, []grad.Input{input("x", batch, 3, 2, channels), input("weight", channels, scale, 3, 2), input("bias", 2*scale)}},
		{"depthwise transposed convolution", func(in G.Nodes) (G.Nodes, error) {
			return one(ConvTranspose(in[0], in[1], in[2], ConvTransposeConfig{Stride: []int{2}, Groups: channels}))
		}, []grad.Input{input("x", batch, 2, 2, channels), input("weight", channels, 1, 3, 2), input("bias", channels)}},
		{"attention", func(in G.Nodes) (G.Nodes, error) {
			return one(Attention(AttentionInputs{Q: in[0], K: in[1], V: in[2]}, AttentionConfig{Heads: 2, Rotary: 100}))
		}, []grad.Input{{Name: "Q", Value: sequence}, input("K", batch, length, channels), input("V", batch, length, channels)}},
		{"attention with context", func(in G.Nodes) (G.Nodes, error) {
			y, context, err := AttentionWithContext(AttentionInputs{Q: in[0], K: in[1], V: in[2], Context: in[3], Start: in[4]},
				AttentionConfig{Heads: 2, Window: 4})
			return G.Nodes{y, context}, err
		}, []grad.Input{{Name: "Q", Value: sequence}, input("K", batch, length, channels), input("V", batch, length, channels),
			attentionContext, start}},
		{"attention with rotary positions and context", func(in G.Nodes) (G.Nodes, error) {
			y, context, err := AttentionWithContext(AttentionInputs{Q: in[0], K: in[1], V: in[2], Context: in[3]},
				AttentionConfig{Heads: 2, Window: 4, Rotary: 100})
			return G.Nodes{y, context}, err
		}, []grad.Input{{Name: "Q", Value: sequence}, input("K", batch, length, channels), input("V", batch, length, channels), attentionContext}},
		{"attention with a window and starts", func(in G.Nodes) (G.Nodes, error) {
			return one(Attention(AttentionInputs{Q: in[0], K: in[1], V: in[2], Start: in[3]}, AttentionConfig{Heads: 1, Window: 3, Rotary: 10}))
		}, []grad.Input{{Name: "Q", Value: sequence}, input("K", batch, length, channels), input("V", batch, length, channels), start}},
		{"SiLU", func(in G.Nodes) (G.Nodes, error) { return one(Activate(in[0], SiLU)) }, []grad.Input{x}},
		{"GELU", func(in G.Nodes) (G.Nodes, error) { return one(Activate(in[0], GELU)) }, []grad.Input{x}},
		{"MLP", func(in G.Nodes) (G.Nodes, error) {
			return one(MLP(MLPInputs{X: in[0], W1: in[1], B1: in[2], W2: in[3], B2: in[4]}, GELU))
		}, []grad.Input{{Name: "X", Value: sequence}, input("W1", 4*scale, channels), input("B1", 4*scale), input("W2", 2*scale+1, 4*scale), input("B2", 2*scale+1)}},
		{"MLP without biases", func(in G.Nodes) (G.Nodes, error) { return one(MLP(MLPInputs{X: in[0], W1: in[1], W2: in[2]}, SiLU)) },
			[]grad.Input{{Name: "X", Value: sequence}, input("W1", 3*scale, channels), input("W2", 2, 3*scale)}},
		{"gate of SiLU", func(in G.Nodes) (G.Nodes, error) { return one(Gate(in[0], in[1], SiLU)) },
			[]grad.Input{{Name: "gate", Value: sequence}, input("x", batch, length, channels)}},
		{"gate of GELU", func(in G.Nodes) (G.Nodes, error) { return one(Gate(in[0], in[1], GELU)) },
			[]grad.Input{{Name: "gate", Value: sequence}, input("x", batch, length, channels)}},
		{"S4", func(in G.Nodes) (G.Nodes, error) {
			return one(S4(S4Inputs{U: in[0], LogDelta: in[1], LogDecay: in[2], Frequency: in[3], C: in[4], D: in[5]}, S4Config{}))
		}, []grad.Input{{Name: "U", Value: sequence}, logDelta, input("LogDecay", channels, state),
			input("Frequency", channels, state), input("C", channels, 2*state), input("D", channels)}},
		{"S4 of real modes", func(in G.Nodes) (G.Nodes, error) {
			return one(S4(S4Inputs{U: in[0], LogDelta: in[1], LogDecay: in[2], C: in[3]}, S4Config{Bilinear: true}))
		}, []grad.Input{{Name: "U", Value: sequence}, logDelta, input("LogDecay", channels, state), input("C", channels, state)}},
		{"S4 from a state", func(in G.Nodes) (G.Nodes, error) {
			return one(S4(S4Inputs{U: in[0], LogDelta: in[1], LogDecay: in[2], C: in[3], InitialState: in[4]}, S4Config{}))
		}, []grad.Input{{Name: "U", Value: sequence}, logDelta, input("LogDecay", channels, state), input("C", channels, state),
			input("InitialState", batch, channels, state)}},
		{"S4 with starts", func(in G.Nodes) (G.Nodes, error) {
			return one(S4(S4Inputs{U: in[0], LogDelta: in[1], LogDecay: in[2], Frequency: in[3], C: in[4], Start: in[5]}, S4Config{}))
		}, []grad.Input{{Name: "U", Value: sequence}, logDelta, input("LogDecay", channels, state),
			input("Frequency", channels, state), input("C", channels, 2*state), start}},
		{"S4 with state", func(in G.Nodes) (G.Nodes, error) {
			y, final, err := S4WithState(S4Inputs{U: in[0], LogDelta: in[1], LogDecay: in[2], Frequency: in[3], C: in[4], D: in[5],
				InitialState: in[6], Start: in[7]}, S4Config{})
			return G.Nodes{y, final}, err
		}, []grad.Input{{Name: "U", Value: sequence}, logDelta, input("LogDecay", channels, state),
			input("Frequency", channels, state), input("C", channels, 2*state), input("D", channels),
			input("InitialState", batch, channels, 2*state), start}},
		{"LSTM", func(in G.Nodes) (G.Nodes, error) {
			y, h, c, err := LSTM(LSTMInputs{Z: in[0], Weight: in[1], H: in[2], C: in[3], Start: in[4]})
			return G.Nodes{y, h, c}, err
		}, []grad.Input{input("Z", batch, length, 4*state), input("Weight", 4*state, state), input("H", batch, state), input("C", batch, state), start}},
		{"minGRU", func(in G.Nodes) (G.Nodes, error) {
			y, h, err := MinGRU(MinGRUInputs{Z: in[0], Candidate: in[1], H: in[2], Start: in[3]})
			return G.Nodes{y, h}, err
		}, []grad.Input{{Name: "Z", Value: sequence}, input("Candidate", batch, length, channels), input("H", batch, channels), start}},
		{"dropout", func(in G.Nodes) (G.Nodes, error) {
			return one(Dropout(in[0], in[1], DropoutConfig{Rate: 0.3, Seed: 5, Layer: 2}))
		},
			[]grad.Input{x, integers("step", 9, 1)}},
		{"drop path", func(in G.Nodes) (G.Nodes, error) {
			return one(DropPath(in[0], in[1], DropoutConfig{Rate: 0.5, Seed: 1}))
		},
			[]grad.Input{input("x", 8, length, channels), integers("step", 9, 1)}},
		{"mean pool", func(in G.Nodes) (G.Nodes, error) { return one(MeanPool(in[0], in[1])) }, []grad.Input{x, integers("mask", 2, batch, length)}},
		{"mean pool of all", func(in G.Nodes) (G.Nodes, error) { return one(MeanPool(in[0], nil)) }, []grad.Input{x}},
		{"cross-entropy", func(in G.Nodes) (G.Nodes, error) { return one(CrossEntropy(in[0], in[1], 0)) },
			[]grad.Input{{Name: "logits", Value: sequence}, integers("targets", channels, batch, length)}},
	}
	all = append(all, lossUses(scale, input, integers)...)
	all = append(all, normUses(batch, length, channels, scale)...)
	for _, reverse := range []bool{false, true} {
		p := &scanProblem{batch: batch, length: length, channels: channels, state: state, bGroups: 2, cGroups: 1,
			cfg: ScanConfig{DeltaSoftplus: true, Reverse: reverse}}
		p.fill(21, scanOptional...)
		f, in := p.function(!reverse)
		all = append(all, use{fmt.Sprintf("selective scan %+v", p.cfg), f, in})
	}
	for _, p := range []*blockProblem{
		{batch: batch, length: length, model: 3, channels: channels, state: state, width: 3, rank: 2, withState: true},
		{batch: batch, length: length, model: 3, channels: channels, state: state, width: 2, rank: 1, cfg: BlockConfig{Recompute: RecomputeNone}},
		{batch: batch, length: length, model: 3, channels: channels, state: state, width: 1, rank: 1, cfg: BlockConfig{Recompute: RecomputeAll}},
	} {
		p.cfg.Eps = 0.1
		if p.withState {
			p.fill(23, blockOptional...)
		} else {
			p.fill(24)
		}
		f, in := p.function(false)
		all = append(all, use{fmt.Sprintf("Mamba block %+v", p.cfg), f, in})
	}
	all = append(all, use{"linear cross-entropy", func(in G.Nodes) (G.Nodes, error) { return one(LinearCrossEntropy(in[0], in[1], in[2], 1)) },
		[]grad.Input{x, input("weight", 3*scale, channels), integers("targets", 3*scale, batch, length)}})
	return append(all, gridUses(scale)...)
}

func one(n *G.Node, err error) (G.Nodes, error) { return G.Nodes{n}, err }

// build adds the operator to a graph, and a loss: the sum of all elements of its results, each with another weight.
func (u use) build(g *G.ExprGraph, dt tensor.Dtype, layout func(*tensor.Dense) *tensor.Dense) (nodes map[string]*G.Node, out G.Nodes, loss *G.Node, err error) {
	var in G.Nodes
	nodes = map[string]*G.Node{}
	for _, i := range u.in {
		value := i.Value.Clone().(*tensor.Dense)
		if !i.Constant {
			value = dense(dt, i.Value.Shape(), elements(i.Value))
		}
		if layout != nil {
			value = layout(value)
		}
		n := G.NewTensor(g, value.Dtype(), value.Dims(), G.WithShape(value.Shape()...), G.WithName(i.Name), G.WithValue(value))
		if in = append(in, n); !i.Constant {
			nodes[i.Name] = n
		}
	}
	if out, err = u.f(in); err != nil {
		return nil, nil, nil, err
	}
	r := rand.New(rand.NewPCG(22, 12))
	for i, n := range out {
		if n.IsScalar() {
			loss = plus(loss, n)
			continue
		}
		w := leaf(g, fmt.Sprint(u.in[0].Name, ": weights of result ", i), dt, n.Shape(), normal(r, n.Shape().TotalSize()))
		loss = plus(loss, G.Must(G.Sum(G.Must(G.HadamardProd(n, w)))))
	}
	return nodes, out, loss, nil
}

// run returns the operator's results and the gradients of its operands.
func (u use) run(dt tensor.Dtype, lisp bool, layout func(*tensor.Dense) *tensor.Dense) (map[string][]float64, error) {
	g := G.NewGraph()
	nodes, out, loss, err := u.build(g, dt, layout)
	if err != nil {
		return nil, err
	}
	values, grads := make([]G.Value, len(out)), map[string]G.Value{}
	for i, n := range out {
		G.Read(n, &values[i])
	}
	if err := runGradients(g, loss, nodes, lisp, grads); err != nil {
		return nil, err
	}
	var e [][]float64
	for _, v := range values {
		e = append(e, elements(v))
	}
	got := results(e)
	for name, v := range grads {
		got["gradient of "+name] = elements(v)
	}
	return got, nil
}

// results returns an operator's results by name.
func results(values [][]float64) map[string][]float64 {
	named := map[string][]float64{}
	for i, v := range values {
		named[fmt.Sprint("result ", i)] = v
	}
	return named
}

func drawInput(t *rapid.T, name string, shape ...int) grad.Input {
	n := tensor.Shape(shape).TotalSize()
	v := rapid.SliceOfN(rapid.Float64Range(-3, 3), n, n).Draw(t, name)
	return grad.Input{Name: name, Value: dense(tensor.Float64, shape, v)}
}

// size draws the size of an axis, often 1.
func size(t *rapid.T, name string, most int) int { return rapid.IntRange(1, most).Draw(t, name) }

// holds checks a use's results against want, on both machines and in both types, and its gradients against finite differences.
func (u use) holds(t *rapid.T, want ...[]float64) {
	t.Helper()
	err := everywhere(func(dt tensor.Dtype, lisp bool, tol float64) error {
		all, err := u.run(dt, lisp, nil)
		if err != nil {
			return err
		}
		got := map[string][]float64{}
		for name := range results(want) {
			got[name] = all[name]
		}
		return sameResults(got, results(want), tol)
	})
	if err != nil {
		t.Fatal(err)
	}
	grad.MustCheck(t, u.f, u.in, grad.Sample(3, 4))
}

// with returns the use with one element of an operand changed.
func (u use) with(input, element int, change func(float64) float64) use {
	u.in = slices.Clone(u.in)
	v := u.in[input].Value.Clone().(*tensor.Dense)
	data := v.Data().([]float64)
	data[element] = change(data[element])
	u.in[input].Value = v
	return u
}

// labelled returns the use with a label appended to the names of its operands.
func (u use) labelled(label string) use {
	u.in = slices.Clone(u.in)
	for i := range u.in {
		u.in[i].Name += label
	}
	return u
}

// Both machines and both types agree for any memory layout of the operands, and no gradient is zero.
func TestOperatorsAgree(t *testing.T) {
	for _, u := range uses(1) {
		want, err := u.run(tensor.Float64, false, nil)
		if err != nil {
			t.Errorf("%s: %v", u.name, err)
			continue
		}
		for name, v := range want {
			if !slices.ContainsFunc(v, func(x float64) bool { return x != 0 }) {
				t.Errorf("%s: %s is zero", u.name, name)
			}
		}
		everyLayout := map[string]func(*tensor.Dense) *tensor.Dense{"row-major": nil}
		for name, layout := range layouts {
			everyLayout[name] = layout
		}
		for name, layout := range everyLayout {
			err := everywhere(func(dt tensor.Dtype, lisp bool, tol float64) error {
				got, err := u.run(dt, lisp, layout)
				if err != nil {
					return err
				}
				return sameResults(got, want, tol)
			})
			if err != nil {
				t.Errorf("%s, %s, %v", u.name, name, err)
			}
		}
	}
}

func TestOperatorsGradients(t *testing.T) {
	for _, u := range uses(1) {
		t.Run(u.name, func(t *testing.T) { grad.MustCheck(t, u.f, u.in, grad.Sample(10, 3)) })
	}
}

func TestOperatorsBitIdentical(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	processors, machines := []int{1, 2, 3, 8}, []bool{false, true}
	if testing.Short() { // under the race detector each run takes seconds
		processors, machines = []int{8}, []bool{true}
	}
	for _, u := range uses(40) {
		want, err := u.run(tensor.Float32, false, nil)
		if err != nil {
			t.Errorf("%s: %v", u.name, err)
			continue
		}
		for _, procs := range processors {
			runtime.GOMAXPROCS(procs)
			for _, lisp := range machines {
				got, err := u.run(tensor.Float32, lisp, nil)
				if err == nil {
					err = sameResults(got, want, 0)
				}
				if err != nil {
					t.Errorf("%s, GOMAXPROCS %d, lisp machine %t: %v", u.name, procs, lisp, err)
				}
			}
		}
	}
}

// A NaN in an operand makes exactly those results and gradients NaN that depend on it: the elements that a small change of the number
// changes, and for A the elements that zeroState names. All other elements keep their bits. An infinity changes no more elements than a NaN.
func TestOperatorsNaN(t *testing.T) {
	for _, u := range uses(1) {
		switch {
		case u.name == "S4" || u.name == "S4 of real modes":
			continue // a Fourier transform rounds all steps together, so a small change reaches all of them: TestS4NaN checks S4
		case strings.HasSuffix(u.name, "ReLU") || u.name == "max pool":
			continue // a change of a negative or a smaller element has no effect, but a NaN has one: TestReLU and TestWindowNaN in internal/kernel
		case strings.HasPrefix(u.name, "attention"):
			continue // a score of the only visible step has no effect unless it is NaN: TestAttentionNaN in internal/kernel checks attention
		}
		base, err := u.run(tensor.Float64, false, nil)
		if err != nil {
			t.Errorf("%s: %v", u.name, err)
			continue
		}
		for i, in := range u.in {
			if in.Constant {
				continue
			}
			size := in.Value.Shape().TotalSize()
			for _, element := range []int{0, size / 2, size - 1} {
				moved, err := u.with(i, element, func(x float64) float64 { return x + 0.5 }).run(tensor.Float64, false, nil)
				if err != nil {
					t.Fatalf("%s: %v", u.name, err)
				}
				for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
					for _, lisp := range []bool{false, true} {
						got, err := u.with(i, element, func(float64) float64 { return bad }).run(tensor.Float64, lisp, nil)
						if err == nil {
							err = u.sameEffect(in.Name, element, got, moved, base, bad)
						}
						if err != nil {
							t.Errorf("%s: element %d of %s is %v, lisp machine %t: %v", u.name, element, in.Name, bad, lisp, err)
						}
					}
				}
			}
		}
	}
}

// sameEffect compares the effect of a bad number in an element of an operand with the effect of a small change of that element.
func (u use) sameEffect(operand string, element int, got, moved, base map[string][]float64, bad float64) error {
	for name, v := range base {
		for i, x := range v {
			is := got[name][i]
			fromZero := u.zeroState(operand, element, name, i, x)
			depends := moved[name][i] != x || fromZero
			if depends && math.IsNaN(bad) && !math.IsNaN(is) {
				return fmt.Errorf("element %d of %s is %v, want NaN", i, name, is)
			}
			// A bad number in an operand other than A can make the gradient of a state infinite or NaN. At the first step of a sequence
			// the gradients of A and Delta multiply it by a state of zero.
			timesZero := math.IsNaN(is) && operand != "A" && !strings.HasSuffix(operand, "ALog") &&
				(name == "gradient of A" || name == "gradient of Delta" || strings.HasSuffix(name, "ward.ALog"))
			// The matrix product of a convolution multiplies the zeros of the padding with weights, or with gradients.
			padding := math.IsNaN(is) && strings.HasPrefix(u.name, "dense") && (operand == "weight" || name == "gradient of weight")
			if !depends && is != x && !timesZero && !padding {
				return fmt.Errorf("element %d of %s is %v, want %v as without the bad number", i, name, is, x)
			}
		}
	}
	return nil
}

// zeroState reports whether element i of a result or gradient depends on an element of A (or ALog) at every step, the first step of a
// sequence included. The first step multiplies exp(Δ A) with a state of zero: a small change of A has no effect there, but a NaN has one.
// A scan passes it on to y, and to the gradients of Delta, Z and C, of the element's channel and state alone. A block mixes the channels
// of one step. The number x is what the element was.
func (u use) zeroState(operand string, element int, name string, i int, x float64) bool {
	if operand != "A" && !strings.HasSuffix(operand, "ALog") {
		return false
	}
	shape := func(name string) tensor.Shape {
		return u.in[slices.IndexFunc(u.in, func(in grad.Input) bool { return in.Name == name })].Value.Shape()
	}
	channels, state := shape(operand)[0], shape(operand)[1]
	channel, n := element/state, element%state
	if strings.HasSuffix(operand, "ward.ALog") { // of BidirectionalMamba, which mixes channels before the scan, not after
		column := i % (2 * channels)
		return name == "result 0" && i%channels == channel || name == "gradient of XZ" && (column < channels || column == channels+channel)
	}
	if operand == "ALog" {
		if name == "result 0" && strings.HasPrefix(u.name, "SS2D") { // which mixes no channels after the scan
			each := shape("X")[len(shape("X"))-1]
			return i%each == channel%each
		}
		switch name {
		case "result 0", "gradient of X":
			return true
		case "result 2": // final
			return i%(channels*state) == element
		case "gradient of Context":
			return x != 0 // it is zero where a sequence starts before the convolution reads Context
		}
		return false
	}
	if strings.HasPrefix(u.name, "grid scan") {
		c := shape("C")
		directions := c[len(c)-1] / state
		each := channels / directions
		switch name {
		case "gradient of C":
			return i%(directions*state) == channel/each*state+n
		case "result 0":
			if strings.HasSuffix(u.name, "summed") {
				channels, channel = each, channel%each
			}
		}
	}
	switch name {
	case "result 0", "gradient of Delta", "gradient of Z":
		return i%channels == channel
	case "result 1": // final
		return i%(channels*state) == element
	case "gradient of C":
		groups := shape("C")[2]
		return i%state == n && i/state%groups == channel/(channels/groups)
	}
	return false
}
