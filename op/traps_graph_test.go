package op

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// G.Read returns the right value of a result that an elementwise operator overwrites afterwards. Overwriting one of two packed results does
// not change the other.
func TestTrapOverwrittenResult(t *testing.T) {
	for _, u := range uses(1) {
		want, err := u.run(tensor.Float64, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		g := G.NewGraph()
		_, out, _, err := u.build(g, tensor.Float64, nil)
		if err != nil {
			t.Fatal(err)
		}
		values, negative := make([]G.Value, len(out)), make([]G.Value, len(out))
		for i, n := range out {
			G.Read(n, &values[i])
			for range 3 {
				n = G.Must(G.Neg(n))
			}
			G.Read(n, &negative[i])
		}
		if err := runForward(g, false); err != nil {
			t.Fatal(err)
		}
		for i := range out {
			v := want[fmt.Sprint("result ", i)]
			if got := elements(values[i]); !slices.Equal(got, v) {
				t.Errorf("%s: result %d is %v, want %v", u.name, i, got, v)
			}
			for k, x := range elements(negative[i]) {
				if x != -v[k] {
					t.Errorf("%s: element %d of result %d, times minus one three times, is %v, want %v", u.name, k, i, x, -v[k])
					break
				}
			}
		}
	}
}

// Gorgonia merges nodes with equal hashes. Nodes that differ only in an option are not merged.
func TestTrapOptionsNotMerged(t *testing.T) {
	r := rand.New(rand.NewPCG(33, 14))
	g := G.NewGraph()
	node := func(name string, shape ...int) *G.Node {
		return leaf(g, name, tensor.Float64, shape, normal(r, tensor.Shape(shape).TotalSize()))
	}
	x, delta, z := node("x", 2, 4, 6), node("delta", 2, 4, 6), node("z", 2, 4, 6)
	matrix, matrix2, vector := node("matrix", 6, 4), node("matrix 2", 6, 4), node("vector", 6)
	taps, context := node("taps", 6, 1, 5), node("context", 2, 4, 6)
	ids := leaf(g, "ids", tensor.Int, []int{2, 4}, []float64{0, 1, 2, 3, 4, 5, 0, 1})
	start := leaf(g, "start", tensor.Int, []int{2, 4}, []float64{0, 0, 1, 0, 0, 1, 0, 0})

	in := ScanInputs{U: x, Delta: delta, A: matrix, B: matrix2, C: matrix2}
	scan := func(change func(in *ScanInputs), cfg ScanConfig) *G.Node {
		in := in
		if change != nil {
			change(&in)
		}
		return G.Must(SelectiveScan(in, cfg))
	}
	conv := func(cfg CausalConvConfig) *G.Node {
		return G.Must(CausalConv(CausalConvInputs{X: x, Weight: taps}, cfg))
	}
	split := func(part int, sizes ...int) *G.Node {
		parts, err := Split(x, sizes...)
		if err != nil {
			t.Fatal(err)
		}
		return parts[part]
	}
	block := func(cfg BlockConfig) *G.Node {
		return G.Must(MambaBlock(BlockInputs{
			X: x, BlockWeights: BlockWeights[*G.Node]{
				Norm: vector, InProj: node("in", 12, 6), Conv: taps, XProj: node("x_proj", 10, 6),
				DtProj: node("dt", 6, 2), DtBias: vector, ALog: matrix, D: vector, OutProj: node("out", 6, 6),
			},
		}, cfg))
	}
	withD := scan(func(in *ScanInputs) { in.D = vector }, ScanConfig{})
	_, lastContext, err := CausalConvWithContext(CausalConvInputs{X: x, Weight: taps, Context: context}, CausalConvConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range []struct {
		name string
		a, b *G.Node
	}{
		{"softplus", scan(nil, ScanConfig{}), scan(nil, ScanConfig{DeltaSoftplus: true})},
		{"reverse", scan(nil, ScanConfig{}), scan(nil, ScanConfig{Reverse: true})},
		{"D or DeltaBias", withD, scan(func(in *ScanInputs) { in.DeltaBias = vector }, ScanConfig{})},
		{"D or no D", withD, scan(nil, ScanConfig{})},
		{"Z or no Z", scan(func(in *ScanInputs) { in.Z = z }, ScanConfig{}), scan(nil, ScanConfig{})},
		{"B and C or C and B", scan(func(in *ScanInputs) { in.B = matrix }, ScanConfig{}),
			scan(func(in *ScanInputs) { in.A, in.B = matrix2, matrix }, ScanConfig{})},
		{"Start or no Start", scan(func(in *ScanInputs) { in.Start = start }, ScanConfig{}), scan(nil, ScanConfig{})},
		{"SiLU", conv(CausalConvConfig{}), conv(CausalConvConfig{SiLU: true})},
		{"context or convolution", lastContext, conv(CausalConvConfig{})},
		{"eps", G.Must(RMSNorm(x, vector, 1e-5)), G.Must(RMSNorm(x, vector, 1e-6))},
		{"eps, further digits", G.Must(RMSNorm(x, vector, 0.1)), G.Must(RMSNorm(x, vector, 0.1+1e-9))},
		{"split bounds", split(0, 2, 4), split(1, 2, 2, 2)},
		{"split widths", split(0, 2, 4), split(0, 3, 3)},
		{"ignore", G.Must(CrossEntropy(x, ids, 0)), G.Must(CrossEntropy(x, ids, 1))},
		{"operators", G.Must(Add(x, x)), G.Must(Add(x, z))},
		{"eps of a block", block(BlockConfig{Eps: 1e-5}), block(BlockConfig{Eps: 1e-2})},
	} {
		if pair.a == pair.b {
			t.Errorf("%s: the two nodes are merged", pair.name)
			continue
		}
		var a, b G.Value
		G.Read(pair.a, &a)
		G.Read(pair.b, &b)
		if err := runForward(g, false); err != nil {
			t.Fatal(err)
		}
		if slices.Equal(elements(a), elements(b)) {
			t.Errorf("%s: the two nodes have the same result", pair.name)
		}
	}
	if block(BlockConfig{}) == block(BlockConfig{Recompute: RecomputeNone}) {
		t.Error("blocks that keep different values are merged")
	}
	if first, second := scan(nil, ScanConfig{}), scan(nil, ScanConfig{}); first != second {
		t.Error("the same scan twice is two nodes, want one")
	}
}

// Gorgonia merges leaves of the same name, type and shape into one, with the value of the first. Therefore the operators of this package add
// no leaves to a graph: no name of theirs can be equal to a user's.
func TestTrapLeavesOfEqualNames(t *testing.T) {
	g := G.NewGraph()
	a := leaf(g, "x", tensor.Float64, []int{2}, []float64{1, 2})
	if b := leaf(g, "x", tensor.Float64, []int{2}, []float64{3, 4}); a != b {
		t.Error("Gorgonia no longer merges leaves of the same name, type and shape: remove the warnings about names")
	}
	if b := leaf(g, "x", tensor.Float64, []int{1, 2}, []float64{3, 4}); a == b {
		t.Error("Gorgonia merges leaves of the same name and different shapes")
	}
	for _, u := range uses(1) {
		g := G.NewGraph()
		nodes, out, _, err := u.build(g, tensor.Float64, nil)
		if err != nil {
			t.Fatal(err)
		}
		before := countLeaves(g)
		for _, n := range out {
			if n.IsScalar() {
				continue
			}
			// The gradient of Sum adds constants but no leaves.
			if _, err := G.Grad(G.Must(G.Sum(n)), nodes[u.in[0].Name]); err != nil {
				t.Fatalf("%s: %v", u.name, err)
			}
		}
		if after := countLeaves(g); after != before {
			t.Errorf("%s: the graph has %d leaves without gradients and %d with gradients, want the same number", u.name, before, after)
		}
		if own := before - len(out); own != len(u.in) && len(out) > 0 && !out[0].IsScalar() { // build adds one leaf for each result, the weights in the loss
			t.Errorf("%s: %d leaves, want %d, the operands", u.name, own, len(u.in))
		}
	}
}

func countLeaves(g *G.ExprGraph) (n int) {
	for _, node := range g.AllNodes() {
		if node.Op() == nil {
			n++
		}
	}
	return n
}

// Two calls of G.Grad give the right gradients of two losses in one graph if the losses share no leaf. If they share a leaf, the second call
// returns its gradient of the first loss. This is so for Gorgonia's own operators as well. Add the losses instead.
func TestTrapTwoLosses(t *testing.T) {
	for _, u := range uses(1) {
		want, err := u.run(tensor.Float64, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		g := G.NewGraph()
		var values [2]map[string]*G.Value
		for i, factor := range []float64{1, -3} {
			nodes, _, loss, err := u.labelled(fmt.Sprint(" of loss ", i)).build(g, tensor.Float64, nil)
			if err != nil {
				t.Fatal(err)
			}
			names := slices.Collect(maps.Keys(nodes))
			var with G.Nodes
			for _, name := range names {
				with = append(with, nodes[name])
			}
			grads, err := G.Grad(G.Must(G.Mul(loss, G.NewConstant(factor))), with...)
			if err != nil {
				t.Fatalf("%s, loss %d: %v", u.name, i, err)
			}
			values[i] = map[string]*G.Value{}
			for k, n := range grads {
				values[i][strings.TrimSuffix(names[k], fmt.Sprint(" of loss ", i))] = new(G.Value)
				G.Read(n, values[i][strings.TrimSuffix(names[k], fmt.Sprint(" of loss ", i))])
			}
		}
		if err := runForward(g, false); err != nil {
			t.Fatalf("%s: %v", u.name, err)
		}
		for i, factor := range []float64{1, -3} {
			for name, got := range values[i] {
				v := slices.Clone(want["gradient of "+name])
				for k := range v {
					v[k] *= factor
				}
				if err := near(*got, v, tensor.Float64); err != nil {
					t.Errorf("%s, loss %d, gradient of %s: %v", u.name, i, name, err)
				}
			}
		}
	}
}

func TestTrapTwoLossesOfOneLeaf(t *testing.T) {
	for name, f := range map[string]func(*G.Node) (*G.Node, error){"Gorgonia's": G.Exp, "ours": NegExp} {
		g := G.NewGraph()
		y := G.Must(f(leaf(g, "x", tensor.Float64, []int{2}, []float64{1, 2})))
		var values [2]G.Value
		for i, l := range []*G.Node{dot(y, []float64{1, 1}), G.Must(G.Sum(G.Must(G.Square(y))))} {
			grads, err := G.Grad(l, y.Graph().ByName("x")...)
			if err != nil {
				t.Fatal(err)
			}
			G.Read(grads[0], &values[i])
		}
		if err := runForward(g, false); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(elements(values[0]), elements(values[1])) {
			t.Errorf("%s operator: the gradients of two losses that share a leaf differ: remove the warnings about it", name)
		}
	}
}
