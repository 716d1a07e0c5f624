package op

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"
)

// scanProblem is a scan with a loss: the sum of y weighted by dy and of the final state weighted by dfinal.
type scanProblem struct {
	batch, length, channels, state int

	bGroups, cGroups int // 0 if constant over time
	cfg              ScanConfig
	in               map[string][]float64 // the values of the present operands, by the operands' names in errors
	dy, dfinal       []float64

	same   map[string]string                     // for each operand that shares the node of another, the other's name
	layout func(*tensor.Dense) *tensor.Dense     // memory layout of the operands, nil for row-major
	starts func(float tensor.Dtype) tensor.Dtype // the type of Start, nil for that of the floats
}

var scanOptional = []string{"D", "Z", "DeltaBias", "InitialState", "Start"}

// drawScan draws a small scan with any combination of options.
func drawScan(t *rapid.T, maxLength int) *scanProblem {
	p := &scanProblem{
		batch:   rapid.IntRange(1, 2).Draw(t, "batch"),
		length:  rapid.IntRange(1, maxLength).Draw(t, "length"),
		state:   rapid.SampledFrom([]int{1, 2, 3, 5}).Draw(t, "state"),
		bGroups: rapid.IntRange(0, 3).Draw(t, "groups of B"),
		cGroups: rapid.IntRange(0, 3).Draw(t, "groups of C"),
		cfg: ScanConfig{
			DeltaSoftplus: rapid.Bool().Draw(t, "softplus"),
			Reverse:       rapid.Bool().Draw(t, "reverse"),
		},
	}
	p.channels = max(p.bGroups, 1) * max(p.cGroups, 1) // some multiple of both
	if p.bGroups == p.cGroups {
		p.channels = max(p.bGroups, 1)
	}
	p.channels *= rapid.IntRange(1, 2).Draw(t, "channels in a group")
	var with []string
	for _, name := range scanOptional {
		if rapid.Bool().Draw(t, name) {
			with = append(with, name)
		}
	}
	return p.fill(rapid.Uint64().Draw(t, "seed"), with...)
}

// fill draws the required operands and the optional ones that are named.
func (p *scanProblem) fill(seed uint64, optional ...string) *scanProblem {
	r := rand.New(rand.NewPCG(seed, 10))
	p.in = map[string][]float64{}
	for _, name := range append([]string{"U", "Delta", "A", "B", "C"}, optional...) {
		p.in[name] = normal(r, tensor.Shape(p.shape(name)).TotalSize())
	}
	for i, v := range p.in["A"] {
		p.in["A"][i] = -0.1 - math.Abs(v)
	}
	if !p.cfg.DeltaSoftplus { // a Δ below zero would make the state grow at every step
		for _, name := range []string{"Delta", "DeltaBias"} {
			for i, v := range p.in[name] {
				p.in[name][i] = 0.05 + math.Abs(v)/2
			}
		}
	}
	for i := range p.in["Start"] {
		p.in["Start"][i] = float64(r.IntN(4) / 3)
	}
	p.dy = normal(r, p.batch*p.length*p.channels)
	p.dfinal = normal(r, p.batch*p.channels*p.state)
	return p
}

// shape returns the shape of an operand. A single group of B has no axis of groups; a single group of C has one.
func (p *scanProblem) shape(name string) []int {
	switch name {
	case "U", "Delta", "Z":
		return []int{p.batch, p.length, p.channels}
	case "D", "DeltaBias":
		return []int{p.channels}
	case "InitialState":
		return []int{p.batch, p.channels, p.state}
	case "Start":
		return []int{p.batch, p.length}
	case "B":
		if p.bGroups > 1 {
			return []int{p.batch, p.length, p.bGroups, p.state}
		} else if p.bGroups == 1 {
			return []int{p.batch, p.length, p.state}
		}
	case "C":
		if p.cGroups > 0 {
			return []int{p.batch, p.length, p.cGroups, p.state}
		}
	}
	return []int{p.channels, p.state}
}

// overTime reports whether an operand has an axis of time. This is then its second axis.
func (p *scanProblem) overTime(name string) bool {
	switch name {
	case "U", "Delta", "Z", "Start", "y":
		return true
	case "B":
		return p.bGroups > 0
	case "C":
		return p.cGroups > 0
	}
	return false
}

// steps returns the problem of the steps [from, to).
func (p *scanProblem) steps(from, to int) *scanProblem {
	q := *p
	q.length = to - from
	q.in = maps.Clone(p.in)
	for name, v := range p.in {
		if p.overTime(name) {
			q.in[name] = steps(v, p.batch, p.length, from, to)
		}
	}
	q.dy = steps(p.dy, p.batch, p.length, from, to)
	return &q
}

// without returns the problem without some of its optional operands.
func (p *scanProblem) without(names ...string) *scanProblem {
	q := *p
	q.in = maps.Clone(p.in)
	for _, name := range names {
		delete(q.in, name)
	}
	return &q
}

func (p *scanProblem) node(g *G.ExprGraph, name, label string, dt tensor.Dtype) *G.Node {
	if name == "Start" && p.starts != nil {
		dt = p.starts(dt)
	}
	shape := p.shape(name)
	value := dense(dt, shape, p.in[name])
	if p.layout != nil {
		value = p.layout(value)
	}
	return G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(label), G.WithValue(value))
}

func scanInputs(n map[string]*G.Node) ScanInputs {
	return ScanInputs{
		U: n["U"], Delta: n["Delta"], A: n["A"], B: n["B"], C: n["C"], D: n["D"], Z: n["Z"],
		DeltaBias: n["DeltaBias"], InitialState: n["InitialState"], Start: n["Start"],
	}
}

// run computes the problem in pieces that end at the given steps, or as a whole if there are none, and returns the joined outputs and
// gradients.
func (p *scanProblem) run(dt tensor.Dtype, lisp bool, ends ...int) (map[string][]float64, error) {
	if len(ends) == 0 {
		ends = []int{p.length}
	}
	g := G.NewGraph()
	nodes := map[string]*G.Node{}
	values := make([]G.Value, len(ends)+1) // of y, and of the final state
	var loss, state *G.Node
	for k := range ends {
		i := k
		if p.cfg.Reverse {
			i = len(ends) - 1 - k
		}
		from := 0
		if i > 0 {
			from = ends[i-1]
		}
		piece, in := p.steps(from, ends[i]), map[string]*G.Node{}
		for _, name := range slices.Sorted(maps.Keys(piece.in)) {
			label := name
			if other := p.same[name]; other != "" {
				name = other
			}
			key := name
			if p.overTime(name) {
				key = fmt.Sprint(name, i)
			}
			if nodes[key] == nil {
				nodes[key] = piece.node(g, name, key, dt)
			}
			in[label] = nodes[key]
		}
		if state != nil {
			in["InitialState"] = state
		}
		y, final, err := SelectiveScanWithState(scanInputs(in), p.cfg)
		if err != nil {
			return nil, err
		}
		G.Read(y, &values[i])
		loss, state = plus(loss, dot(y, piece.dy)), final
		if k == len(ends)-1 {
			G.Read(final, &values[len(ends)])
			loss = plus(loss, dot(final, p.dfinal))
		} else if p.cfg.Reverse && p.in["Start"] != nil {
			state = G.Must(G.HadamardProd(final, p.handedOn(g, dt, from)))
		}
	}
	for i := range ends {
		delete(nodes, fmt.Sprint("Start", i))
	}
	grads := map[string]G.Value{}
	if err := runGradients(g, loss, nodes, lisp, grads); err != nil {
		return nil, err
	}

	got := map[string][]float64{"y": join(values[:len(ends)], p.batch), "final": elements(values[len(ends)])}
	for name := range p.in {
		if name == "Start" || p.same[name] != "" {
			continue
		} else if !p.overTime(name) {
			got["gradient of "+name] = elements(grads[name])
			continue
		}
		var pieces []G.Value
		for i := range ends {
			pieces = append(pieces, grads[fmt.Sprint(name, i)])
		}
		got["gradient of "+name] = join(pieces, p.batch)
	}
	return got, nil
}

// handedOn returns a mask for the final state of a piece that is scanned in reverse and begins at a step: 0 in rows where a sequence starts
// at that step, 1 in rows where the state goes on to the piece before.
func (p *scanProblem) handedOn(g *G.ExprGraph, dt tensor.Dtype, step int) *G.Node {
	var mask []float64
	for b := range p.batch {
		for range p.channels * p.state {
			mask = append(mask, 1-p.in["Start"][b*p.length+step])
		}
	}
	return leaf(g, fmt.Sprint("handed on", step), dt, []int{p.batch, p.channels, p.state}, mask)
}

func plus(a, b *G.Node) *G.Node {
	if a == nil {
		return b
	}
	return G.Must(G.Add(a, b))
}

// steps returns the steps [from, to) of v (batch, length, ...).
func steps(v []float64, batch, length, from, to int) (s []float64) {
	size := len(v) / (batch * length)
	for b := range batch {
		s = append(s, v[(b*length+from)*size:(b*length+to)*size]...)
	}
	return s
}

// join concatenates pieces (batch, any length, ...) along the length.
func join(pieces []G.Value, batch int) []float64 {
	var s [][]float64
	for _, p := range pieces {
		s = append(s, elements(p))
	}
	return joinSlices(s, batch)
}

func joinSlices(pieces [][]float64, batch int) (v []float64) {
	for b := range batch {
		for _, p := range pieces {
			n := len(p) / batch
			v = append(v, p[b*n:(b+1)*n]...)
		}
	}
	return v
}

// flip reverses v (batch, length, ...) along the length.
func flip(v []float64, batch, length int) (f []float64) {
	size := len(v) / (batch * length)
	for b := range batch {
		for t := length - 1; t >= 0; t-- {
			f = append(f, v[(b*length+t)*size:(b*length+t+1)*size]...)
		}
	}
	return f
}
