package op

import (
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/operator"
)

// A preallocated result can hold any numbers. Forward operators and the operators of gradients write every element of it, and nothing else.
func TestPreparedResults(t *testing.T) {
	r := rand.New(rand.NewPCG(35, 15))
	for _, u := range uses(1) {
		g := G.NewGraph()
		nodes, _, loss, err := u.build(g, f64, nil)
		if err == nil {
			_, err = G.Grad(loss, slices.Collect(maps.Values(nodes))...)
		}
		if err != nil {
			t.Fatal(err)
		}
		checked := 0
		for _, n := range g.AllNodes() {
			if isOurs(n.Op()) && n.Op().OverwritesInput() != -1 {
				t.Errorf("%s: %v: OverwritesInput says that it overwrites an operand", u.name, n.Op())
			}
			o, ok := n.Op().(G.UsePreallocDoer)
			if !ok || !isOurs(n.Op()) || n.IsScalar() {
				continue
			}
			var in []G.Value
			for _, operand := range node.Operands(n) {
				in = append(in, valueFor(r, operand))
			}
			want, err := n.Op().Do(in...)
			if err != nil {
				t.Fatal(err)
			}
			prepared := tensor.New(tensor.Of(f64), tensor.WithShape(n.Shape()...))
			if err := prepared.Memset(math.NaN()); err != nil {
				t.Fatal(err)
			}
			got, err := o.UsePreallocDo(prepared, in...)
			if err != nil {
				t.Fatal(err)
			}
			if k, ok := got.(*operator.Keeping[float64]); ok {
				got = k.Dense
			}
			if got != G.Value(prepared) {
				t.Errorf("%s: %v does not write into the preallocated result", u.name, n.Op())
			}
			if !slices.Equal(elements(got), elements(want)) {
				t.Errorf("%s: %v does not write every element of the preallocated result", u.name, n.Op())
			}
			checked++
		}
		if checked == 0 {
			t.Errorf("%s: no operator was checked", u.name)
		}
	}
}

// isOurs reports whether an operator is one of this library.
func isOurs(o G.Op) bool {
	return o != nil && strings.HasPrefix(reflect.TypeOf(o).String(), "*operator.")
}

// valueFor returns a random value for a node.
func valueFor(r *rand.Rand, n *G.Node) G.Value {
	if n.IsScalar() {
		return G.NewF64(r.NormFloat64())
	}
	v := normal(r, n.Shape().TotalSize())
	if n.Dtype() == tensor.Int { // indices, which have to be in range
		clear(v)
	}
	return dense(n.Dtype(), n.Shape(), v)
}
