package op

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/operator"
)

// leaf makes an input node with a value.
func leaf(g *G.ExprGraph, name string, dt tensor.Dtype, shape []int, data []float64) *G.Node {
	return G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(name), G.WithValue(dense(dt, shape, data)))
}

func dense(dt tensor.Dtype, shape []int, data []float64) *tensor.Dense {
	var backing any
	switch dt {
	case tensor.Float32:
		d := make([]float32, len(data))
		for i, v := range data {
			d[i] = float32(v)
		}
		backing = d
	case tensor.Float64:
		backing = append([]float64(nil), data...)
	case tensor.Int:
		d := make([]int, len(data))
		for i, v := range data {
			d[i] = int(v)
		}
		backing = d
	}
	return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(backing))
}

// dot returns the sum of x's elements times weights, a scalar. As a loss its gradient is the weights.
func dot(x *G.Node, weights []float64) *G.Node {
	w := leaf(x.Graph(), "weights of "+x.Name(), x.Dtype(), x.Shape(), weights)
	return G.Must(G.Sum(G.Must(G.HadamardProd(x, w))))
}

func normal(r *rand.Rand, n int) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = r.NormFloat64()
	}
	return v
}

// elements returns a value's elements as float64, in row-major order.
func elements(v G.Value) []float64 {
	if d, ok := v.(*tensor.Dense); ok && (d.RequiresIterator() || !d.DataOrder().IsRowMajor()) {
		var s []float64
		operator.EachIndex(d.Shape(), func(at []int) {
			e, err := d.At(at...)
			if err != nil {
				panic(err)
			}
			s = append(s, reflect.ValueOf(e).Float())
		})
		return s
	}
	switch d := v.Data().(type) {
	case []float64:
		return append([]float64(nil), d...)
	case []float32:
		s := make([]float64, len(d))
		for i, x := range d {
			s[i] = float64(x)
		}
		return s
	case float64:
		return []float64{d}
	case float32:
		return []float64{float64(d)}
	}
	panic(fmt.Sprintf("elements of %T", v.Data()))
}

// runGradients runs a graph on the tape or the lisp machine and reads the gradient of each of the nodes.
func runGradients(g *G.ExprGraph, loss *G.Node, nodes map[string]*G.Node, lisp bool, got map[string]G.Value) error {
	if lisp {
		m := G.NewLispMachine(g)
		defer m.Close()
		if err := m.RunAll(); err != nil {
			return err
		}
		for name, n := range nodes {
			v, err := n.Grad()
			if err != nil {
				return err
			}
			got[name] = v
		}
		return nil
	}
	var names []string
	var with G.Nodes
	for name, n := range nodes {
		names, with = append(names, name), append(with, n)
	}
	grads, err := G.Grad(loss, with...)
	if err != nil {
		return err
	}
	values := make([]G.Value, len(grads))
	for i, n := range grads {
		G.Read(n, &values[i])
	}
	if err := CheckGraph(g); err != nil {
		return err
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		return err
	}
	for i, name := range names {
		got[name] = values[i]
	}
	return nil
}

// runForward runs a graph without gradients. Use it on the lisp machine to test an operator that fails: with gradients, that machine would
// start its backward pass in another goroutine all the same, and clear the values that the backward pass reads.
func runForward(g *G.ExprGraph, lisp bool) error {
	var m G.VM
	if lisp {
		m = G.NewLispMachine(g, G.ExecuteFwdOnly())
	} else {
		m = G.NewTapeMachine(g)
	}
	defer m.Close()
	return m.RunAll()
}

// everywhere calls check for both machines and both types, with the tolerance of the type. It returns the first error.
func everywhere(check func(dt tensor.Dtype, lisp bool, tol float64) error) error {
	for _, lisp := range []bool{false, true} {
		for dt, tol := range map[tensor.Dtype]float64{tensor.Float64: 1e-12, tensor.Float32: 2e-5} {
			if err := check(dt, lisp, tol); err != nil {
				return fmt.Errorf("%v, lisp machine %t: %w", dt, lisp, err)
			}
		}
	}
	return nil
}

// layouts are functions that return a copy of a tensor with the same elements in another memory layout.
var layouts = map[string]func(*tensor.Dense) *tensor.Dense{
	"column-major": func(d *tensor.Dense) *tensor.Dense {
		return copyTo(tensor.New(tensor.Of(d.Dtype()), tensor.WithShape(d.Shape()...), tensor.AsFortran(nil)), d)
	},
	"transposed": func(d *tensor.Dense) *tensor.Dense {
		shape := d.Shape().Clone()
		slices.Reverse(shape)
		t := tensor.New(tensor.Of(d.Dtype()), tensor.WithShape(shape...))
		if err := t.T(); err != nil {
			panic(err)
		}
		return copyTo(t, d)
	},
	"sliced": func(d *tensor.Dense) *tensor.Dense {
		if d.Size() == 1 {
			return d // Slice makes a scalar of it
		}
		shape := d.Shape().Clone()
		cut := make([]tensor.Slice, len(shape))
		for i, n := range shape {
			if n > 1 { // Slice drops an axis if it takes one element of it
				shape[i], cut[i] = n+3, G.S(2, n+2)
			}
		}
		v, err := tensor.New(tensor.Of(d.Dtype()), tensor.WithShape(shape...)).Slice(cut...)
		if err != nil {
			panic(err)
		}
		return copyTo(v.(*tensor.Dense), d)
	},
}

// copyTo copies the elements of a tensor into one of the same shape, one by one.
func copyTo(to, from *tensor.Dense) *tensor.Dense {
	operator.EachIndex(from.Shape(), func(at []int) {
		v, err := from.At(at...)
		if err == nil {
			err = to.SetAt(v, at...)
		}
		if err != nil {
			panic(err)
		}
	})
	return to
}
