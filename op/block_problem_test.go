package op

import (
	"maps"
	"math/rand/v2"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

// blockProblem is a Mamba block with values for its operands.
type blockProblem struct {
	batch, length, model, channels, state, width, rank int

	cfg       BlockConfig
	withState bool // use MambaBlockWithState
	in        map[string][]float64
}

var blockOptional = []string{"InBias", "ConvBias", "OutBias", "Context", "InitialState", "Start"}

// drawBlock draws a small block with any combination of options.
func drawBlock(t *rapid.T, maxLength int) *blockProblem {
	p := &blockProblem{
		batch:     rapid.IntRange(1, 2).Draw(t, "batch"),
		length:    rapid.IntRange(1, maxLength).Draw(t, "length"),
		model:     rapid.IntRange(1, 5).Draw(t, "model"),
		channels:  rapid.IntRange(1, 6).Draw(t, "channels"),
		state:     rapid.SampledFrom([]int{1, 2, 3, 5}).Draw(t, "state"),
		width:     rapid.IntRange(1, 4).Draw(t, "width"),
		rank:      rapid.IntRange(1, 3).Draw(t, "rank"),
		withState: rapid.Bool().Draw(t, "with state"),
		cfg: BlockConfig{
			// With a smaller eps the gradient of a row of one or two numbers is a small difference of large numbers.
			Eps:       rapid.SampledFrom([]float64{0.1, 0.5}).Draw(t, "eps"),
			Recompute: rapid.SampledFrom([]Recompute{RecomputeCheap, RecomputeNone, RecomputeAll}).Draw(t, "recompute"),
		},
	}
	var with []string
	for _, name := range blockOptional {
		if rapid.Bool().Draw(t, name) {
			with = append(with, name)
		}
	}
	return p.fill(rapid.Uint64().Draw(t, "seed"), with...)
}

func (p *blockProblem) shape(name string) []int {
	switch name {
	case "X":
		return []int{p.batch, p.length, p.model}
	case "Norm", "OutBias":
		return []int{p.model}
	case "InProj":
		return []int{2 * p.channels, p.model}
	case "InBias":
		return []int{2 * p.channels}
	case "Conv":
		return []int{p.channels, 1, p.width}
	case "XProj":
		return []int{p.rank + 2*p.state, p.channels}
	case "DtProj":
		return []int{p.channels, p.rank}
	case "DtBias", "D", "ConvBias":
		return []int{p.channels}
	case "ALog":
		return []int{p.channels, p.state}
	case "OutProj":
		return []int{p.model, p.channels}
	case "Context":
		return []int{p.batch, p.width - 1, p.channels}
	case "InitialState":
		return []int{p.batch, p.channels, p.state}
	case "Start":
		return []int{p.batch, p.length}
	}
	panic(name)
}

// fill draws the required operands and the optional ones that are named, except a Context of no steps.
func (p *blockProblem) fill(seed uint64, optional ...string) *blockProblem {
	r := rand.New(rand.NewPCG(seed, 40))
	p.in = map[string][]float64{}
	required := []string{"X", "Norm", "InProj", "Conv", "XProj", "DtProj", "DtBias", "ALog", "D", "OutProj"}
	for _, name := range append(required, optional...) {
		if name != "Context" || p.width > 1 {
			v := normal(r, tensor.Shape(p.shape(name)).TotalSize())
			for i := range v {
				v[i] *= 0.6 // otherwise the products give large results, whose rounding hides small gradients
			}
			p.in[name] = v
		}
	}
	for i := range p.in["Start"] {
		p.in["Start"][i] = float64(r.IntN(4) / 3)
	}
	return p
}

func blockInputs(n map[string]*G.Node) BlockInputs {
	return BlockInputs{
		X: n["X"], BlockWeights: MapBlock(BlockWeights[*G.Node]{}, func(about BlockWeight, _ *G.Node) *G.Node { return n[about.Field] }),
		Context: n["Context"], InitialState: n["InitialState"], Start: n["Start"],
	}
}

// function returns the problem in the form that grad.Check takes: the block as one operator, or composed of others.
func (p *blockProblem) function(composed bool) (grad.Func, []grad.Input) {
	names := slices.Sorted(maps.Keys(p.in))
	var in []grad.Input
	for _, name := range names {
		dt := tensor.Float64
		if name == "Start" {
			dt = tensor.Int
		}
		in = append(in, grad.Input{Name: name, Value: dense(dt, p.shape(name), p.in[name]), Constant: name == "Start"})
	}
	return func(nodes G.Nodes) (G.Nodes, error) {
		named := map[string]*G.Node{}
		for i, n := range nodes {
			named[names[i]] = n
		}
		apply := p.apply
		if composed {
			apply = p.compose
		}
		return apply(blockInputs(named))
	}, in
}

func (p *blockProblem) use(composed bool) use {
	f, in := p.function(composed)
	return use{"Mamba block", f, in}
}

func (p *blockProblem) apply(in BlockInputs) (G.Nodes, error) {
	if !p.withState {
		return one(MambaBlock(in, p.cfg))
	}
	y, context, final, err := MambaBlockWithState(in, p.cfg)
	if context == nil {
		return G.Nodes{y, final}, err
	}
	return G.Nodes{y, context, final}, err
}

// compose computes what apply computes, by the separate operators of which the block is the composition.
func (p *blockProblem) compose(in BlockInputs) (G.Nodes, error) {
	must := func(n *G.Node, err error) *G.Node { return G.Must(n, err) }
	xz := must(Linear(must(RMSNorm(in.X, in.Norm, p.cfg.Eps)), in.InProj, in.InBias))
	halves, err := Split(xz, p.channels, p.channels)
	if err != nil {
		return nil, err
	}
	u, context, err := CausalConvWithContext(CausalConvInputs{
		X: halves[0], Weight: in.Conv, Bias: in.ConvBias, Context: in.Context, Start: in.Start}, CausalConvConfig{SiLU: true})
	if err != nil {
		return nil, err
	}
	parts, err := Split(must(Linear(u, in.XProj, nil)), p.rank, p.state, p.state)
	if err != nil {
		return nil, err
	}
	s, final, err := SelectiveScanWithState(ScanInputs{
		U: u, Delta: must(Linear(parts[0], in.DtProj, nil)), A: must(NegExp(in.ALog)), B: parts[1], C: parts[2],
		D: in.D, Z: halves[1], DeltaBias: in.DtBias, InitialState: in.InitialState, Start: in.Start}, ScanConfig{DeltaSoftplus: true})
	if err != nil {
		return nil, err
	}
	out := G.Nodes{must(Add(in.X, must(Linear(s, in.OutProj, in.OutBias))))}
	if p.withState && context != nil {
		out = append(out, context)
	}
	if p.withState {
		out = append(out, final)
	}
	return out, nil
}
