package nn

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/layer"
)

// model is a block, a stack or a language model, with one set of functions.
type model struct {
	cfg    Config
	params layer.Params
	vocab  int // of a language model; 0 for the others
	apply  func(x *G.Node, state State, opts ...CallOption) (*G.Node, State, error)
	plain  func(x *G.Node, opts ...CallOption) (*G.Node, error)
	zero   func(g *G.ExprGraph, batch int) State
}

var kinds = []string{"block", "stack", "LM"}

func newModel(kind string, cfg Config, vocab int, untied bool) model {
	switch kind {
	case "block":
		cfg.Pattern = nil
		b := NewMambaBlock(cfg, WithDtype(tensor.Float64), WithSeed(0))
		return model{cfg: b.Config(), params: b.Params(),
			apply: func(x *G.Node, state State, opts ...CallOption) (*G.Node, State, error) {
				y, next, err := b.ApplyWithState(x, append(state, nil)[0], opts...)
				return y, State{next}, err
			},
			plain: b.Apply,
			zero:  func(g *G.ExprGraph, batch int) State { return State{must(layer.ZeroState(b, g, batch))} },
		}
	case "stack":
		s := NewMambaStack(cfg, WithDtype(tensor.Float64), WithSeed(0))
		return model{cfg: s.Config(), params: s.Params(), apply: s.ApplyWithState, plain: s.Apply, zero: zeroState(s)}
	default:
		lm := NewLM(LMConfig{Config: cfg, Vocab: vocab, UntiedHead: untied}, WithDtype(tensor.Float64))
		return model{cfg: lm.Config().Config, params: lm.Params(), vocab: vocab,
			apply: lm.ApplyWithState, plain: lm.Apply, zero: zeroState(lm.Stack())}
	}
}

func zeroState(s *MambaStack) func(g *G.ExprGraph, batch int) State {
	return func(g *G.ExprGraph, batch int) State { return must(s.ZeroState(g, batch)) }
}

// outputs returns the width of the model's result.
func (m model) outputs() int {
	if m.vocab > 0 {
		return m.vocab
	}
	return m.cfg.DModel
}

// problem is a model with an input and a loss: the sum of the outputs and of the final state, with random weights.
type problem struct {
	model
	batch, length int

	x      []float64 // input of a block or stack
	ids    []int
	state  [][]float64 // initial state, nil for none
	start  []float64   // nil for none
	dy     []float64
	dstate [][]float64
}

func (p *problem) fill(r *rand.Rand, state bool) *problem {
	scramble(p.params, r)
	p.x = normal(r, p.batch*p.length*p.cfg.DModel)
	if p.vocab > 0 {
		for range p.batch * p.length {
			p.ids = append(p.ids, r.IntN(p.vocab))
		}
	}
	p.dy = normal(r, p.batch*p.length*p.outputs())
	for _, n := range p.zero(G.NewGraph(), p.batch).Nodes() {
		size := n.Shape().TotalSize()
		p.dstate = append(p.dstate, normal(r, size))
		if state {
			p.state = append(p.state, normal(r, size))
		}
	}
	return p
}

// run computes the problem in pieces that end at the given steps, and returns the joined outputs, the final state and the gradients.
func (p *problem) run(lisp bool, ends ...int) (results, error) {
	g := G.NewGraph()
	var state State
	var wrt G.Nodes
	if p.state != nil {
		state = p.zero(g, p.batch)
		for i, n := range state.Nodes() {
			assign(n.Value().(*tensor.Dense), p.state[i])
		}
		wrt = append(wrt, state.Nodes()...)
	}
	states := len(wrt)
	wrt = append(wrt, p.params.Nodes(g)...)

	var loss []*G.Node
	ys := make([]G.Value, len(ends))
	for i, from := 0, 0; i < len(ends); i++ {
		to := ends[i]
		var x *G.Node
		if p.vocab > 0 {
			x = intLeaf(g, fmt.Sprint("ids", i), steps(p.ids, p.batch, p.length, from, to, 1), p.batch, to-from)
		} else {
			x = leaf(g, fmt.Sprint("x", i), tensor.Float64, steps(p.x, p.batch, p.length, from, to, p.cfg.DModel), p.batch, to-from, p.cfg.DModel)
			wrt = append(wrt, x)
		}
		var opts []CallOption
		if p.start != nil {
			dt := []tensor.Dtype{tensor.Float64, tensor.Int}[i%2]
			start := tensor.New(tensor.WithShape(p.batch, to-from), tensor.Of(dt))
			for j, v := range steps(p.start, p.batch, p.length, from, to, 1) {
				if dt == tensor.Int {
					start.Data().([]int)[j] = int(v)
				} else {
					start.Data().([]float64)[j] = v
				}
			}
			opts = append(opts, WithStart(G.NodeFromAny(g, start, G.WithName(fmt.Sprint("start", i)))))
		}
		y, next, err := p.apply(x, state, opts...)
		if err != nil {
			return nil, err
		}
		G.Read(y, &ys[i])
		loss = append(loss, dot(y, steps(p.dy, p.batch, p.length, from, to, p.outputs())))
		state, from = next, to
	}
	finals := make([]G.Value, len(p.dstate))
	for i, n := range state.Nodes() {
		G.Read(n, &finals[i])
		loss = append(loss, dot(n, p.dstate[i]))
	}
	grads, err := gradients(g, sum(loss...), wrt, lisp)
	if err != nil {
		return nil, err
	}

	got := results{}
	for i, v := range finals {
		got[fmt.Sprint("final state ", i)] = elements(v)
	}
	for i, v := range grads[:states] {
		got[fmt.Sprint("gradient of state ", i)] = elements(v)
	}
	for i, w := range p.params {
		got["gradient of "+w.Name] = elements(grads[states+i])
	}
	pieces := func(values []G.Value, size int) []float64 {
		var s [][]float64
		for _, v := range values {
			s = append(s, elements(v))
		}
		return join(s, p.batch, size, ends)
	}
	got["y"] = pieces(ys, p.outputs())
	if p.vocab == 0 {
		got["gradient of x"] = pieces(grads[states+len(p.params):], p.cfg.DModel)
	}
	return got, nil
}

func drawConfig(t *rapid.T) Config {
	if rapid.Bool().Draw(t, "pattern") {
		return Config{
			DModel: rapid.SampledFrom([]int{2, 4}).Draw(t, "d_model"), NLayer: 2, DState: 2, DtRank: 1,
			DConv: rapid.SampledFrom([]int{1, 3}).Draw(t, "d_conv"),
			// The first layer mixes over time and reads Start: a lisp machine fails if no operator reads an input.
			Pattern: []Kind{rapid.SampledFrom(Kinds()[:8]).Draw(t, "first"), rapid.SampledFrom(Kinds()).Draw(t, "second")},
			Window:  rapid.IntRange(2, 5).Draw(t, "window"), NHead: rapid.IntRange(0, 1).Draw(t, "heads"),
			Bias: rapid.Bool().Draw(t, "bias"),
		}
	}
	return Config{
		DModel:     rapid.IntRange(1, 5).Draw(t, "d_model"),
		NLayer:     rapid.IntRange(1, 2).Draw(t, "layers"),
		DState:     rapid.IntRange(1, 4).Draw(t, "d_state"),
		DConv:      rapid.SampledFrom([]int{1, 2, 4}).Draw(t, "d_conv"),
		Expand:     rapid.IntRange(1, 2).Draw(t, "expand"),
		DtRank:     rapid.IntRange(1, 2).Draw(t, "dt_rank"),
		Bias:       rapid.Bool().Draw(t, "bias"),
		NoConvBias: rapid.Bool().Draw(t, "no conv bias"),
	}
}

func drawProblem(t *rapid.T) *problem {
	kind := rapid.SampledFrom(kinds).Draw(t, "kind")
	p := &problem{
		model:  newModel(kind, drawConfig(t), 3, rapid.Bool().Draw(t, "untied")),
		batch:  rapid.IntRange(1, 2).Draw(t, "batch"),
		length: rapid.IntRange(1, 9).Draw(t, "length"),
	}
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	if rapid.Bool().Draw(t, "start") {
		p.start = make([]float64, p.batch*p.length)
		for i := range p.start {
			p.start[i] = float64(r.IntN(4) / 3)
		}
	}
	return p.fill(r, rapid.Bool().Draw(t, "state"))
}

// drawEnds divides a length into random pieces.
func drawEnds(t *rapid.T, length int) (ends []int) {
	for i := 1; i < length; i++ {
		if rapid.Bool().Draw(t, "cut") {
			ends = append(ends, i)
		}
	}
	return append(ends, length)
}

func oneByOne(length int) (ends []int) {
	for i := range length {
		ends = append(ends, i+1)
	}
	return ends
}

// A model computed in pieces or step by step has the same outputs, final state and gradients as the whole: the gradients of every weight, of
// the input and of the initial state. They flow back through the states between pieces.
func TestPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawProblem(t)
		whole, err := p.run(false, p.length)
		if err != nil {
			t.Fatal(err)
		}
		lisp := rapid.Bool().Draw(t, "lisp machine")
		for _, ends := range [][]int{drawEnds(t, p.length), oneByOne(p.length)} {
			got, err := p.run(lisp, ends...)
			if err == nil {
				err = got.near(whole, 1e-10)
			}
			if err != nil {
				t.Fatalf("pieces that end at %v: %v", ends, err)
			}
		}
	})
}

// Sequences packed one after another, each with a Start, and divided into any pieces, give the same results as separate sequences.
func TestPacked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom(kinds).Draw(t, "kind")
		lengths := rapid.SliceOfN(rapid.IntRange(1, 6), 1, 4).Draw(t, "lengths")
		p := &problem{model: newModel(kind, drawConfig(t), 3, false), batch: 1}
		for _, n := range lengths {
			p.length += n
			p.start = append(append(p.start, 1), make([]float64, n-1)...)
		}
		// The Start at step 0 separates the initial state.
		p.fill(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2)), true)

		want, err := apart(p, lengths)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.run(rapid.Bool().Draw(t, "lisp machine"), drawEnds(t, p.length)...)
		if err == nil {
			err = got.near(want, 1e-10)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

// apart runs each of the sequences packed in p in its own graph.
func apart(p *problem, lengths []int) (results, error) {
	want := results{}
	from := 0
	for _, n := range lengths {
		to := from + n
		q := &problem{model: p.model, batch: 1, length: n, dstate: p.dstate}
		if to < p.length { // the loss includes only the state of the last sequence
			q.dstate = nil
			for _, v := range p.dstate {
				q.dstate = append(q.dstate, make([]float64, len(v)))
			}
		}
		q.x = steps(p.x, 1, p.length, from, to, p.cfg.DModel)
		q.dy = steps(p.dy, 1, p.length, from, to, p.outputs())
		if p.vocab > 0 {
			q.ids = p.ids[from:to]
		}
		got, err := q.run(false, n)
		if err != nil {
			return nil, err
		}
		for name, v := range got {
			weight, isGradient := strings.CutPrefix(name, "gradient of ")
			switch {
			case name == "y" || name == "gradient of x":
				want[name] = append(want[name], v...)
			case isGradient && p.params.ByName(weight) != nil && want[name] != nil:
				for i := range v {
					want[name][i] += v[i]
				}
			default:
				want[name] = v // the final state is that of the last sequence
			}
		}
		from = to
	}
	for i, v := range p.state {
		want[fmt.Sprint("gradient of state ", i)] = make([]float64, len(v))
	}
	return want, nil
}

// Divisions that are difficult because of a convolution's context: pieces shorter than the context, a Start among the last steps of a piece,
// a Start at the first step of a piece.
func TestDifficultCuts(t *testing.T) {
	for _, kind := range kinds {
		for _, c := range []struct {
			starts, ends []int
		}{
			{nil, []int{1, 2, 9}}, {nil, []int{2, 4, 9}}, {nil, []int{7, 8, 9}},
			{[]int{5}, []int{6, 9}}, {[]int{4}, []int{6, 9}}, {[]int{3}, []int{6, 9}}, {[]int{5}, []int{6, 7, 8, 9}},
			{[]int{6}, []int{6, 9}}, {[]int{0, 3, 4, 5, 8}, []int{5, 9}},
		} {
			r := rand.New(rand.NewPCG(3, 4))
			p := &problem{model: newModel(kind, Config{DModel: 3, NLayer: 2, DState: 2, DConv: 4}, 5, true), batch: 2, length: 9}
			p.start = make([]float64, 2*9)
			for _, s := range c.starts {
				p.start[9+s] = 1 // in the second row only
			}
			whole, err := p.fill(r, true).run(false, 9)
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.run(false, c.ends...)
			if err == nil {
				err = got.near(whole, 1e-11)
			}
			if err != nil {
				t.Errorf("%s, starts at %v, pieces that end at %v: %v", kind, c.starts, c.ends, err)
			}
			if len(c.starts) > 0 { // the starts change the result
				p.start = nil
				without, err := p.run(false, 9)
				if err != nil {
					t.Fatal(err)
				}
				if without.near(whole, 1e-3) == nil {
					t.Errorf("%s: starts at %v do not change the result", kind, c.starts)
				}
				if n := 9 * p.outputs(); slices.Compare(without["y"][:n], whole["y"][:n]) != 0 {
					t.Errorf("%s: starts in the second row change the first", kind)
				}
			}
		}
	}
}

// Apply has the outputs and gradients of ApplyWithState with a nil state, with and without starts, on both machines.
func TestApplyIsWithoutState(t *testing.T) {
	for _, kind := range kinds {
		for _, starts := range [][]float64{nil, {0, 0, 1, 0, 0, 1, 0, 1, 0, 0}} {
			with := &problem{model: newModel(kind, Config{DModel: 3, NLayer: 2, DState: 2}, 5, true), batch: 2, length: 5, start: starts}
			with.fill(rand.New(rand.NewPCG(5, 6)), false)
			for _, v := range with.dstate {
				clear(v)
			}
			want, err := with.run(false, 5)
			if err != nil {
				t.Fatal(err)
			}
			for i := range with.dstate {
				delete(want, fmt.Sprint("final state ", i))
			}
			without := *with
			without.dstate = nil
			without.apply = func(x *G.Node, _ State, opts ...CallOption) (*G.Node, State, error) {
				y, err := with.plain(x, opts...)
				return y, nil, err
			}
			for _, lisp := range []bool{false, true} {
				got, err := without.run(lisp, 5)
				if err == nil {
					err = got.near(want, 1e-12)
				}
				if err != nil {
					t.Errorf("%s, starts %v, lisp machine %t: %v", kind, starts, lisp, err)
				}
			}
		}
	}
}
