package op

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
)

// In some situations Gorgonia gives wrong numbers without an error. Each test here covers one of them: either it checks that the operators
// of this package are right, or it records how Gorgonia behaves. (TestOperatorsAgree checks that no gradient is zero on the lisp machine.)

// Gorgonia merges the slices [0:256) and [256:512). It merges neither the parts of a Split nor the views of packed results or gradients.
func TestTrapMultiplesOf256(t *testing.T) {
	r := rand.New(rand.NewPCG(30, 13))
	data, weights := normal(r, 2*1024), normal(r, 2*1024)
	for _, lisp := range []bool{false, true} {
		g := G.NewGraph()
		x := leaf(g, "x", tensor.Float64, []int{1, 2, 1024}, data)
		parts, err := Split(x, 256, 256, 512)
		if err != nil {
			t.Fatal(err)
		}
		var loss *G.Node
		values := make([]G.Value, len(parts))
		for i, p := range parts {
			G.Read(p, &values[i])
			loss = plus(loss, dot(p, steps(weights, 1, 1024, []int{0, 256, 512}[i], []int{256, 512, 1024}[i])))
		}
		got := map[string]G.Value{}
		if err := runGradients(g, loss, map[string]*G.Node{"x": x}, lisp, got); err != nil {
			t.Fatal(err)
		}
		dx, from := elements(got["x"]), 0
		for i, width := range []int{256, 256, 512} {
			for row := range 2 {
				at := row*1024 + from
				if !slices.Equal(elements(values[i])[row*width:(row+1)*width], data[at:at+width]) {
					t.Errorf("part %d, row %d: not the columns from %d on", i, row, from)
				}
				want := steps(weights, 1, 1024, from, from+width)[row*width : (row+1)*width]
				if !slices.Equal(dx[at:at+width], want) {
					t.Errorf("gradient of part %d, row %d: not that of the columns from %d on", i, row, from)
				}
			}
			from += width
		}

		// In the packed vector the gradients of U, Delta and Z begin at 0, 256 and another multiple of 256.
		p := &scanProblem{batch: 1, length: 16, channels: 16, state: 16, bGroups: 1, cGroups: 1}
		p.fill(31, "Z")
		all, err := p.run(tensor.Float64, lisp)
		if err != nil {
			t.Fatal(err)
		}
		for a, b := range map[string]string{"U": "Delta", "Delta": "Z", "Z": "U", "A": "B", "B": "C", "C": "A"} {
			if slices.Equal(all["gradient of "+a], all["gradient of "+b]) {
				t.Errorf("lisp machine %t: %s and %s have the same gradient", lisp, a, b)
			}
		}
	}
}

// One gradient that flows into two results of the same shape is written to two places of the packed gradient.
func TestTrapOneGradientForTwoResults(t *testing.T) {
	p := &scanProblem{batch: 2, length: 3, channels: 3, state: 3, bGroups: 1, cGroups: 1}
	p.fill(34, scanOptional...)
	p.dfinal = p.dy
	want, err := p.run(f64, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, lisp := range []bool{false, true} {
		g := G.NewGraph()
		nodes := map[string]*G.Node{}
		for name := range p.in {
			nodes[name] = p.node(g, name, name, f64)
		}
		y, final, err := SelectiveScanWithState(scanInputs(nodes), p.cfg)
		if err != nil {
			t.Fatal(err)
		}
		delete(nodes, "Start")
		got := map[string]G.Value{}
		if err := runGradients(g, dot(G.Must(Add(y, final)), p.dy), nodes, lisp, got); err != nil {
			t.Fatal(err)
		}
		for name, v := range got {
			if err := near(v, want["gradient of "+name], f64); err != nil {
				t.Errorf("lisp machine %t, gradient of %s: %v", lisp, name, err)
			}
		}
	}
}

// Elementwise operators of Gorgonia overwrite their first operand if no later operator needs it. No run, forward or with gradients, changes
// an operand of this package's operators.
func TestTrapOperandsUnchanged(t *testing.T) {
	for _, u := range uses(1) {
		for _, machine := range []string{"tape, forward", "tape", "lisp"} {
			g := G.NewGraph()
			nodes, _, loss, err := u.build(g, tensor.Float32, nil)
			if err != nil {
				t.Fatal(err)
			}
			before := map[string]any{}
			for name, n := range nodes {
				before[name] = n.Value().(*tensor.Dense).Clone().(*tensor.Dense).Data()
			}
			if machine == "tape, forward" {
				err = runForward(g, false)
			} else {
				err = runGradients(g, loss, nodes, machine == "lisp", map[string]G.Value{})
			}
			if err != nil {
				t.Errorf("%s, %s: %v", u.name, machine, err)
			}
			for name, n := range nodes {
				if !slices.Equal(n.Value().Data().([]float32), before[name].([]float32)) {
					t.Errorf("%s, %s: %s has changed", u.name, machine, name)
				}
			}
		}
	}
}

// The result of Reshape shares memory with its operand, which the machine does not know. The operators of this package do not write to it,
// and its gradient is right.
func TestTrapReshapedParameter(t *testing.T) {
	data := []float64{1, 2, 3, 4, 5, 6}
	for name, f := range map[string]func(reshaped, x *G.Node) (*G.Node, error){
		"add":           Add,
		"add, swapped":  func(reshaped, x *G.Node) (*G.Node, error) { return Add(x, reshaped) },
		"add to itself": func(reshaped, _ *G.Node) (*G.Node, error) { return Add(reshaped, reshaped) },
		"NegExp":        func(reshaped, _ *G.Node) (*G.Node, error) { return NegExp(reshaped) },
		"linear": func(reshaped, _ *G.Node) (*G.Node, error) {
			return Linear(reshaped, leaf(reshaped.Graph(), "w", tensor.Float64, []int{2, 3}, data), nil)
		},
		"RMSNorm": func(reshaped, _ *G.Node) (*G.Node, error) {
			return RMSNorm(reshaped, leaf(reshaped.Graph(), "w", tensor.Float64, []int{3}, data[:3]), 1)
		},
		"scan": func(reshaped, x *G.Node) (*G.Node, error) {
			matrix := leaf(reshaped.Graph(), "w", tensor.Float64, []int{3, 2}, data)
			return SelectiveScan(ScanInputs{U: reshaped, Delta: x, A: matrix, B: matrix, C: matrix, Z: reshaped}, ScanConfig{})
		},
	} {
		var want []float64
		for _, reshape := range []bool{false, true} {
			g := G.NewGraph()
			x := leaf(g, "x", tensor.Float64, []int{1, 2, 3}, []float64{.1, .2, .3, .4, .5, .6})
			parameter := leaf(g, "parameter", tensor.Float64, []int{1, 2, 3}, data)
			in := parameter
			if reshape {
				parameter = leaf(g, "flat", tensor.Float64, []int{6}, data)
				in = G.Must(G.Reshape(parameter, tensor.Shape{1, 2, 3}))
			}
			y, err := f(in, x)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]G.Value{}
			loss := dot(y, []float64{3, 1, 4, 1, 5, 9}[:y.Shape().TotalSize()])
			if err := runGradients(g, loss, map[string]*G.Node{"parameter": parameter}, false, got); err != nil {
				t.Fatal(err)
			}
			if v := elements(parameter.Value()); !slices.Equal(v, data) {
				t.Errorf("%s, reshaped %t: the parameter has changed to %v", name, reshape, v)
			}
			if d := elements(got["parameter"]); want == nil {
				want = d
			} else if !slices.Equal(d, want) {
				t.Errorf("%s: the reshaped parameter's gradient is %v, want %v", name, d, want)
			}
		}
	}
}

// A machine that runs again after Reset gives the same gradients for the same operands, and the right gradients for other operands.
func TestTrapSecondRun(t *testing.T) {
	for _, u := range uses(1) {
		want, err := u.run(tensor.Float64, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		g := G.NewGraph()
		nodes, out, loss, err := u.build(g, tensor.Float64, nil)
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]*G.Value{}
		for i, n := range out {
			v := new(G.Value)
			G.Read(n, v)
			values[fmt.Sprint("result ", i)] = v
		}
		names := slices.Collect(maps.Keys(nodes))
		var with G.Nodes
		for _, name := range names {
			with = append(with, nodes[name])
		}
		grads, err := G.Grad(loss, with...)
		if err != nil {
			t.Fatalf("%s: %v", u.name, err)
		}
		for i, n := range grads {
			v := new(G.Value)
			G.Read(n, v)
			values["gradient of "+names[i]] = v
		}
		m := G.NewTapeMachine(g)
		defer m.Close()
		for run, factor := range []float64{1, 1, 2, 1} {
			for name, n := range nodes {
				i := slices.IndexFunc(u.in, func(in grad.Input) bool { return in.Name == name })
				v := elements(u.in[i].Value)
				for k := range v {
					v[k] *= factor
				}
				if err := G.Let(n, dense(tensor.Float64, n.Shape(), v)); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.RunAll(); err != nil {
				t.Fatalf("%s, run %d: %v", u.name, run, err)
			}
			got := map[string][]float64{}
			for name, v := range values {
				got[name] = elements(*v)
			}
			err := sameResults(got, want, 0)
			if factor == 1 && err != nil {
				t.Errorf("%s, run %d: %v", u.name, run, err)
			} else if factor != 1 && err == nil {
				t.Errorf("%s, run %d: other operands, same results", u.name, run)
			}
			m.Reset()
		}
	}
}

// With BindDualValues gradients accumulate over runs until a solver has used them.
func TestTrapDualValuesAddUp(t *testing.T) {
	p := &scanProblem{batch: 1, length: 3, channels: 2, state: 2, bGroups: 1, cGroups: 1}
	p.fill(32, "D")
	u := use{}
	u.f, u.in = p.function(true)
	once, err := u.run(tensor.Float64, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	g := G.NewGraph()
	nodes, _, loss, err := u.build(g, tensor.Float64, nil)
	if err != nil {
		t.Fatal(err)
	}
	with := G.Nodes(slices.Collect(maps.Values(nodes)))
	if _, err := G.Grad(loss, with...); err != nil {
		t.Fatal(err)
	}
	m := G.NewTapeMachine(g, G.BindDualValues(with...))
	defer m.Close()
	// A learn rate of zero does not change the parameters, so every run has the same gradients.
	solver := G.NewVanillaSolver(G.WithLearnRate(0))
	for run, factor := range []float64{1, 2, 3, 1, 2} {
		if run == 3 {
			if err := solver.Step(G.NodesToValueGrads(with)); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		m.Reset()
		for name, n := range nodes {
			v, err := n.Grad()
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Clone(once["gradient of "+name])
			for i := range want {
				want[i] *= factor
			}
			if err := near(v, want, tensor.Float64); err != nil {
				t.Errorf("run %d, gradient of %s: %v", run, name, err)
			}
		}
	}
}

// Gorgonia merges convolutions of one input that differ in their dilation alone, if their results have one shape. It does not merge those of Conv.
func TestTrapDilation(t *testing.T) {
	g := G.NewGraph()
	node := func(name string, shape ...int) *G.Node {
		return leaf(g, name, tensor.Float64, shape, normal(rand.New(rand.NewPCG(30, 14)), tensor.Shape(shape).TotalSize()))
	}
	image, filter := node("image", 1, 1, 6, 6), node("filter", 1, 1, 2, 2)
	x := node("x", 1, 6, 6, 1)
	var theirs, ours [2]G.Value
	for i, dilation := range []int{1, 2} {
		G.Read(G.Must(G.Conv2d(image, filter, tensor.Shape{2, 2}, []int{0, 0}, []int{3, 3}, []int{dilation, dilation})), &theirs[i])
		G.Read(G.Must(Conv(x, filter, nil, ConvConfig{Stride: []int{3}, Dilation: []int{dilation}})), &ours[i])
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(elements(ours[0]), elements(theirs[0])) {
		t.Errorf("%v with dilation 1, want %v as Gorgonia has it", elements(ours[0]), elements(theirs[0]))
	}
	if slices.Equal(elements(ours[0]), elements(ours[1])) {
		t.Error("two dilations give the same result")
	}
	if !slices.Equal(elements(theirs[0]), elements(theirs[1])) {
		t.Error("Gorgonia no longer merges convolutions with two dilations")
	}
}
