package op

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
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
			if _, ok := n.Op().(*view); (ok || slotsOf(n.Op()) != nil) && n.Op().OverwritesInput() != -1 {
				t.Errorf("%s: %v: OverwritesInput says that it overwrites an operand", u.name, n.Op())
			}
			o, ok := n.Op().(G.UsePreallocDoer)
			slots := slotsOf(n.Op())
			if !ok || slots == nil || n.IsScalar() {
				continue
			}
			var in []G.Value
			for _, s := range slots {
				if s.present {
					in = append(in, valueFor(r, s))
				}
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
			if k, ok := got.(*keeping); ok {
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

// slotsOf returns the operands of an operator of this package, nil for one of Gorgonia's.
func slotsOf(o G.Op) []slot {
	switch o := o.(type) {
	case *operator:
		return o.in
	case *addition:
		return o.in
	case *gradients:
		slots := slices.Clone(o.of.in)
		for range o.results() {
			slots = append(slots, slot{shape: resultShape(o.of.out), dt: o.of.dt, present: true})
		}
		return slots
	case *scatter:
		return []slot{{shape: o.shape, dt: o.dt, present: true}}
	}
	return nil
}

func valueFor(r *rand.Rand, s slot) G.Value {
	if s.shape.IsScalar() {
		return G.NewF64(r.NormFloat64())
	}
	v := normal(r, s.shape.TotalSize())
	if s.dt == tensor.Int { // indices, which have to be in range
		clear(v)
	}
	return dense(s.dt, s.shape, v)
}
