package op

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

// convProblem is a convolution with a loss: the sum of y and the last context, weighted with dy and dcontext.
type convProblem struct {
	batch, length, channels, width int

	x, weight, bias, context, start []float64 // bias, context and start may be nil
	dy, dcontext                    []float64
	cfg                             CausalConvConfig
}

func drawConv(t *rapid.T) *convProblem {
	p := &convProblem{
		batch:    rapid.IntRange(1, 3).Draw(t, "batch"),
		length:   rapid.IntRange(1, 9).Draw(t, "length"),
		channels: rapid.IntRange(1, 5).Draw(t, "channels"),
		width:    rapid.IntRange(1, 5).Draw(t, "width"),
		cfg:      CausalConvConfig{SiLU: rapid.Bool().Draw(t, "SiLU")},
	}
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 4))
	if rapid.Bool().Draw(t, "bias") {
		p.bias = normal(r, p.channels)
	}
	if rapid.Bool().Draw(t, "context") && p.width > 1 {
		p.context = normal(r, p.contextSize())
	}
	if rapid.Bool().Draw(t, "start") {
		p.start = make([]float64, p.batch*p.length)
		for i := range p.start {
			p.start[i] = float64(r.IntN(4) / 3)
		}
	}
	return p.fill(r)
}

func (p *convProblem) fill(r *rand.Rand) *convProblem {
	size := p.batch * p.length * p.channels
	p.x, p.weight, p.dy = normal(r, size), normal(r, p.channels*p.width), normal(r, size)
	p.dcontext = normal(r, p.contextSize())
	return p
}

func (p *convProblem) contextSize() int { return p.batch * (p.width - 1) * p.channels }

// steps returns steps [from, to) of v, (batch, length, size).
func (p *convProblem) steps(v []float64, from, to, size int) (s []float64) {
	for b := range p.batch {
		s = append(s, v[(b*p.length+from)*size:(b*p.length+to)*size]...)
	}
	return s
}

// run computes the problem in pieces that end at the given steps, and returns the joined outputs and gradients.
func (p *convProblem) run(dt tensor.Dtype, lisp bool, ends ...int) (map[string][]float64, error) {
	g := G.NewGraph()
	nodes := map[string]*G.Node{"Weight": leaf(g, "Weight", dt, []int{p.channels, 1, p.width}, p.weight)}
	in := CausalConvInputs{Weight: nodes["Weight"]}
	if p.bias != nil {
		in.Bias = leaf(g, "Bias", dt, []int{p.channels}, p.bias)
		nodes["Bias"] = in.Bias
	}
	if p.context != nil {
		in.Context = leaf(g, "Context", dt, []int{p.batch, p.width - 1, p.channels}, p.context)
		nodes["Context"] = in.Context
	}
	var loss *G.Node
	values := make([]G.Value, len(ends)+1) // of y, and of the last context
	for i, from := 0, 0; i < len(ends); i++ {
		to := ends[i]
		in.X = leaf(g, fmt.Sprint("X", i), dt, []int{p.batch, to - from, p.channels}, p.steps(p.x, from, to, p.channels))
		nodes[fmt.Sprint("X", i)] = in.X
		if p.start != nil {
			starts := []tensor.Dtype{dt, tensor.Int, tensor.Float32}[i%3]
			in.Start = leaf(g, fmt.Sprint("Start", i), starts, []int{p.batch, to - from}, p.steps(p.start, from, to, 1))
		}
		y, context, err := CausalConvWithContext(in, p.cfg)
		if err != nil {
			return nil, err
		}
		G.Read(y, &values[i])
		part := dot(y, p.steps(p.dy, from, to, p.channels))
		if loss == nil {
			loss = part
		} else {
			loss = G.Must(G.Add(loss, part))
		}
		in.Context, from = context, to
	}
	if in.Context != nil {
		G.Read(in.Context, &values[len(ends)])
		loss = G.Must(G.Add(loss, dot(in.Context, p.dcontext)))
	} else if p.width > 1 {
		return nil, fmt.Errorf("no context of a convolution of width %d", p.width)
	}
	grads := map[string]G.Value{}
	if err := runGradients(g, loss, nodes, lisp, grads); err != nil {
		return nil, err
	}

	got := map[string][]float64{}
	var ys, xs [][]float64
	for i := range ends {
		ys, xs = append(ys, elements(values[i])), append(xs, elements(grads[fmt.Sprint("X", i)]))
	}
	got["y"], got["gradient of X"] = p.join(ys, ends), p.join(xs, ends)
	if in.Context != nil {
		got["context"] = elements(values[len(ends)])
	}
	for _, name := range []string{"Weight", "Bias", "Context"} {
		if v := grads[name]; v != nil {
			got["gradient of "+name] = elements(v)
		}
	}
	return got, nil
}

// join concatenates pieces along the length.
func (p *convProblem) join(pieces [][]float64, ends []int) (v []float64) {
	for b := range p.batch {
		for i, from := 0, 0; i < len(ends); i++ {
			n := (ends[i] - from) * p.channels
			v, from = append(v, pieces[i][b*n:(b+1)*n]...), ends[i]
		}
	}
	return v
}

// sameResults compares the results of two runs.
func sameResults(got, want map[string][]float64, tol float64) error {
	if len(got) != len(want) {
		return fmt.Errorf("results %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if len(got[name]) != len(want[name]) {
			return fmt.Errorf("%s has %d elements, want %d", name, len(got[name]), len(want[name]))
		}
		scale := 1.0
		for _, v := range want[name] {
			scale = max(scale, math.Abs(v))
		}
		for i, v := range want[name] {
			if !(math.Abs(got[name][i]-v) <= tol*scale) {
				return fmt.Errorf("%s: element %d is %v, want %v", name, i, got[name][i], v)
			}
		}
	}
	return nil
}

// Every gradient, through y and the returned context, agrees with finite differences, on both machines.
func TestCausalConvGradient(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawConv(t)
		inputs := []grad.Input{
			{Name: "X", Value: dense(tensor.Float64, []int{p.batch, p.length, p.channels}, p.x)},
			{Name: "Weight", Value: dense(tensor.Float64, []int{p.channels, 1, p.width}, p.weight)},
		}
		var optional []func(in *CausalConvInputs) **G.Node // the fields of the inputs after X and Weight
		if p.bias != nil {
			inputs = append(inputs, grad.Input{Name: "Bias", Value: dense(tensor.Float64, []int{p.channels}, p.bias)})
			optional = append(optional, func(in *CausalConvInputs) **G.Node { return &in.Bias })
		}
		if p.context != nil {
			shape := []int{p.batch, p.width - 1, p.channels}
			inputs = append(inputs, grad.Input{Name: "Context", Value: dense(tensor.Float64, shape, p.context)})
			optional = append(optional, func(in *CausalConvInputs) **G.Node { return &in.Context })
		}
		if p.start != nil {
			value := dense(tensor.Int, []int{p.batch, p.length}, p.start)
			inputs = append(inputs, grad.Input{Name: "Start", Value: value, Constant: true})
			optional = append(optional, func(in *CausalConvInputs) **G.Node { return &in.Start })
		}
		grad.MustCheck(t, func(nodes G.Nodes) (G.Nodes, error) {
			in := CausalConvInputs{X: nodes[0], Weight: nodes[1]}
			for i, n := range nodes[2:] {
				*optional[i](&in) = n
			}
			y, context, err := CausalConvWithContext(in, p.cfg)
			if context == nil {
				return G.Nodes{y}, err
			}
			return G.Nodes{y, context}, err
		}, inputs, grad.Sample(6, 1))
	})
}

// A convolution computed in pieces or step by step has the same outputs, last context and gradients as the whole, on both machines and in
// both types. The gradients flow back through the contexts between pieces.
func TestCausalConvPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawConv(t)
		whole, err := p.run(tensor.Float64, false, p.length)
		if err != nil {
			t.Fatal(err)
		}
		cut := []int{p.length}
		if p.length > 1 {
			cut = []int{rapid.IntRange(1, p.length-1).Draw(t, "cut"), p.length}
		}
		var steps []int
		for i := range p.length {
			steps = append(steps, i+1)
		}
		for _, ends := range [][]int{{p.length}, cut, steps} {
			for _, lisp := range []bool{false, true} {
				for dt, tol := range map[tensor.Dtype]float64{tensor.Float64: 1e-13, tensor.Float32: 1e-5} {
					got, err := p.run(dt, lisp, ends...)
					if err == nil {
						err = sameResults(got, whole, tol)
					}
					if err != nil {
						t.Fatalf("pieces that end at %v, %v, lisp machine %t: %v", ends, dt, lisp, err)
					}
				}
			}
		}
	})
}

// Sequences packed one after another, each with a Start, give the same results as separate sequences.
func TestCausalConvPacked(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 5))
	lengths := []int{1, 2, 5, 3, 1, 1, 7}
	packed := &convProblem{batch: 1, length: 20, channels: 3, width: 4, bias: normal(r, 3), cfg: CausalConvConfig{SiLU: true}}
	packed.context = normal(r, packed.contextSize()) // the Start at step 0 separates it
	packed.fill(r).start = make([]float64, packed.length)

	want := map[string][]float64{"gradient of Context": make([]float64, packed.contextSize())}
	for from := 0; len(lengths) > 0; from, lengths = from+lengths[0], lengths[1:] {
		packed.start[from] = 1
		to := from + lengths[0]
		apart := &convProblem{
			batch: 1, length: lengths[0], channels: 3, width: 4, weight: packed.weight, bias: packed.bias, cfg: packed.cfg,
			x: packed.steps(packed.x, from, to, 3), dy: packed.steps(packed.dy, from, to, 3),
			dcontext: make([]float64, packed.contextSize()),
		}
		if to == packed.length {
			apart.dcontext = packed.dcontext
		}
		got, err := apart.run(tensor.Float64, false, apart.length)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"y", "gradient of X"} {
			want[name] = append(want[name], got[name]...)
		}
		for _, name := range []string{"gradient of Weight", "gradient of Bias"} {
			if want[name] == nil {
				want[name] = make([]float64, len(got[name]))
			}
			for i, v := range got[name] {
				want[name][i] += v
			}
		}
		want["context"] = got["context"] // of the last one
	}
	for _, lisp := range []bool{false, true} {
		got, err := packed.run(tensor.Float64, lisp, packed.length)
		if err == nil {
			err = sameResults(got, want, 1e-13)
		}
		if err != nil {
			t.Errorf("lisp machine %t: %v", lisp, err)
		}
	}
}

// If a sequence starts in the last width-1 steps, the next piece must not see the steps before the start.
func TestCausalConvContextAfterStart(t *testing.T) {
	p := &convProblem{
		batch: 1, length: 4, channels: 1, width: 4, x: []float64{1, 2, 3, 4}, weight: []float64{1, 1, 1, 1},
		context: []float64{5, 6, 7}, start: []float64{0, 0, 1, 0}, dy: make([]float64, 4), dcontext: []float64{1, 1, 1},
	}
	got, err := p.run(tensor.Float64, false, 4)
	if err != nil {
		t.Fatal(err)
	}
	if want := []float64{0, 3, 4}; !slices.Equal(got["context"], want) {
		t.Errorf("context = %v, want %v", got["context"], want)
	}
	if want := []float64{0, 0, 1, 1}; !slices.Equal(got["gradient of X"], want) {
		t.Errorf("gradient of X = %v, want %v", got["gradient of X"], want)
	}
}

func TestCausalConvWidth1(t *testing.T) {
	g := G.NewGraph()
	x := leaf(g, "x", tensor.Float64, []int{1, 2, 2}, []float64{1, 2, 3, 4})
	w := leaf(g, "w", tensor.Float64, []int{2, 1, 1}, []float64{10, 100})
	y, context, err := CausalConvWithContext(CausalConvInputs{X: x, Weight: w}, CausalConvConfig{})
	if err != nil || context != nil {
		t.Fatalf("context %v, error %v, want neither", context, err)
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	if got, want := elements(y.Value()), []float64{10, 200, 30, 400}; !slices.Equal(got, want) {
		t.Errorf("y = %v, want %v", got, want)
	}
}

// Convolutions of the same operands with different options are different nodes: Gorgonia does not merge them. A convolution does not change
// its operands, and the second run of a machine gives the results of the first.
func TestCausalConvInGraph(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 6))
	g := G.NewGraph()
	data, weight := normal(r, 2*6*3), normal(r, 3*4)
	x := leaf(g, "x", tensor.Float64, []int{2, 6, 3}, data)
	w := leaf(g, "w", tensor.Float64, []int{3, 1, 4}, weight)
	y := G.Must(CausalConv(CausalConvInputs{X: x, Weight: w}, CausalConvConfig{}))
	z := G.Must(CausalConv(CausalConvInputs{X: x, Weight: w}, CausalConvConfig{SiLU: true}))
	grads, err := G.Grad(G.Must(G.Add(dot(y, normal(r, 36)), dot(z, normal(r, 36)))), x, w)
	if err != nil {
		t.Fatal(err)
	}
	var vy, vz, vx, vw G.Value
	G.Read(y, &vy)
	G.Read(z, &vz)
	G.Read(grads[0], &vx)
	G.Read(grads[1], &vw)
	m := G.NewTapeMachine(g)
	defer m.Close()
	var first [][]float64
	for run := range 2 {
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		for i, v := range elements(vy) {
			if got, want := elements(vz)[i], v/(1+math.Exp(-v)); math.Abs(got-want) > 1e-14 {
				t.Fatalf("silu(%v) = %v, want %v", v, got, want)
			}
		}
		if !slices.Equal(elements(x.Value()), data) || !slices.Equal(elements(w.Value()), weight) {
			t.Fatal("an operand has changed")
		}
		now := [][]float64{elements(vx), elements(vw)}
		if run == 0 {
			first = now
		} else if !slices.Equal(now[0], first[0]) || !slices.Equal(now[1], first[1]) {
			t.Error("the second run has other gradients than the first")
		}
		m.Reset()
	}
}

func TestCausalConvBitIdentical(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	r := rand.New(rand.NewPCG(3, 7))
	p := &convProblem{batch: 2, length: 200, channels: 300, width: 4, bias: normal(r, 300), cfg: CausalConvConfig{SiLU: true}}
	p.context = normal(r, p.contextSize())
	p.fill(r)
	want, err := p.run(tensor.Float32, false, p.length)
	if err != nil {
		t.Fatal(err)
	}
	for _, procs := range []int{1, 2, 3, 8} {
		runtime.GOMAXPROCS(procs)
		for _, lisp := range []bool{false, true} {
			got, err := p.run(tensor.Float32, lisp, p.length)
			if err == nil {
				err = sameResults(got, want, 0)
			}
			if err != nil {
				t.Errorf("GOMAXPROCS %d, lisp machine %t: %v", procs, lisp, err)
			}
		}
	}
}
