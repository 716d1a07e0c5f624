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

// crossEntropyProblem is the loss factor · cross-entropy.
type crossEntropyProblem struct {
	batch, length, vocabulary int
	logits, targets           []float64
	ignore                    int
	factor                    float64
}

func (p *crossEntropyProblem) run(dt tensor.Dtype, lisp bool) (loss float64, dlogits []float64, err error) {
	g := G.NewGraph()
	logits := leaf(g, "logits", dt, []int{p.batch, p.length, p.vocabulary}, p.logits)
	targets := leaf(g, "targets", tensor.Int, []int{p.batch, p.length}, p.targets)
	n, err := CrossEntropy(logits, targets, p.ignore)
	if err != nil {
		return 0, nil, err
	}
	if !n.IsScalar() {
		return 0, nil, fmt.Errorf("the loss has shape %v", n.Shape())
	}
	var value G.Value
	G.Read(n, &value)
	if p.factor != 1 {
		factor := G.NewConstant(p.factor)
		if dt == tensor.Float32 {
			factor = G.NewConstant(float32(p.factor))
		}
		n = G.Must(G.Mul(n, factor))
	}
	got := map[string]G.Value{}
	if err := runGradients(g, n, map[string]*G.Node{"logits": logits}, lisp, got); err != nil {
		return 0, nil, err
	}
	return elements(value)[0], elements(got["logits"]), nil
}

func TestCrossEntropyByHand(t *testing.T) {
	ln := math.Log
	for _, test := range []struct {
		name            string
		logits, targets []float64 // (1, 2, 3), (1, 2)
		loss            float64
		dlogits         []float64
	}{
		{"uniform", []float64{7, 7, 7, 0, 0, 0}, []float64{0, 2}, ln(3),
			[]float64{-1. / 3, 1. / 6, 1. / 6, 1. / 6, 1. / 6, -1. / 3}},
		// softmax(ln 1, ln 2, ln 5) = (1, 2, 5)/8
		{"eighths", []float64{0, ln(2), ln(5), 0, ln(2), ln(5)}, []float64{1, 2}, (ln(4) + ln(1.6)) / 2,
			[]float64{1. / 16, -6. / 16, 5. / 16, 1. / 16, 2. / 16, -3. / 16}},
		{"one ignored", []float64{0, ln(2), ln(5), 9, 9, 9}, []float64{0, -100}, ln(8),
			[]float64{-7. / 8, 2. / 8, 5. / 8, 0, 0, 0}},
		{"all ignored", []float64{0, ln(2), ln(5), 9, 9, 9}, []float64{-100, -100}, 0, make([]float64, 6)},
	} {
		for _, factor := range []float64{1, -2.5} {
			for _, lisp := range []bool{false, true} {
				for dt, tol := range map[tensor.Dtype]float64{tensor.Float64: 1e-15, tensor.Float32: 2e-7} {
					p := crossEntropyProblem{1, 2, 3, test.logits, test.targets, -100, factor}
					loss, dlogits, err := p.run(dt, lisp)
					if err != nil {
						t.Fatal(err)
					}
					if math.Abs(loss-test.loss) > 3*tol {
						t.Errorf("%s, %v, lisp machine %t: loss %v, want %v", test.name, dt, lisp, loss, test.loss)
					}
					for i, want := range test.dlogits {
						if math.Abs(dlogits[i]-want*factor) > 3*tol {
							t.Errorf("%s, %v, lisp machine %t: gradient %v, want %v times %v",
								test.name, dt, lisp, dlogits, test.dlogits, factor)
							break
						}
					}
				}
			}
		}
	}
}

func drawCrossEntropy(t *rapid.T) *crossEntropyProblem {
	p := &crossEntropyProblem{
		batch:      rapid.IntRange(1, 3).Draw(t, "batch"),
		length:     rapid.IntRange(1, 5).Draw(t, "length"),
		vocabulary: rapid.SampledFrom([]int{1, 2, 3, 30, 300}).Draw(t, "vocabulary"),
		ignore:     rapid.SampledFrom([]int{-100, 0, 1000}).Draw(t, "ignore"),
		factor:     1,
	}
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 8))
	p.logits = normal(r, p.batch*p.length*p.vocabulary)
	for range p.batch * p.length {
		target := r.IntN(p.vocabulary)
		if r.IntN(3) == 0 {
			target = p.ignore
		}
		p.targets = append(p.targets, float64(target))
	}
	return p
}

func TestCrossEntropyGradient(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawCrossEntropy(t)
		grad.MustCheck(t, grad.Single(func(in G.Nodes) (*G.Node, error) { return CrossEntropy(in[0], in[1], p.ignore) }),
			[]grad.Input{
				{Name: "logits", Value: dense(tensor.Float64, []int{p.batch, p.length, p.vocabulary}, p.logits)},
				{Name: "targets", Value: dense(tensor.Int, []int{p.batch, p.length}, p.targets), Constant: true},
			}, grad.Sample(10, 1))
	})
}

// Both machines and both types agree, and the gradient of each position sums to zero.
func TestCrossEntropyMachines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawCrossEntropy(t)
		wantLoss, want, err := p.run(tensor.Float64, false)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(want); i += p.vocabulary {
			var sum float64
			for _, v := range want[i : i+p.vocabulary] {
				sum += v
			}
			if math.Abs(sum) > 1e-14 {
				t.Fatalf("the gradient of position %d sums to %v", i/p.vocabulary, sum)
			}
		}
		for _, lisp := range []bool{false, true} {
			for dt, tol := range map[tensor.Dtype]float64{tensor.Float64: 0, tensor.Float32: 1e-6} {
				loss, dlogits, err := p.run(dt, lisp)
				if err == nil {
					err = sameResults(map[string][]float64{"loss": {loss}, "gradient": dlogits},
						map[string][]float64{"loss": {wantLoss}, "gradient": want}, tol)
				}
				if err != nil {
					t.Fatalf("%v, lisp machine %t: %v", dt, lisp, err)
				}
			}
		}
	})
}

func TestCrossEntropyBitIdentical(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	r := rand.New(rand.NewPCG(4, 9))
	p := crossEntropyProblem{batch: 3, length: 100, vocabulary: 256, logits: normal(r, 3*100*256), ignore: 7, factor: 1}
	for range 300 {
		p.targets = append(p.targets, float64(r.IntN(256)))
	}
	wantLoss, want, err := p.run(tensor.Float32, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, procs := range []int{1, 2, 3, 8} {
		runtime.GOMAXPROCS(procs)
		for _, lisp := range []bool{false, true} {
			loss, got, err := p.run(tensor.Float32, lisp)
			if err != nil || loss != wantLoss || !slices.Equal(got, want) {
				t.Errorf("GOMAXPROCS %d, lisp machine %t: the results differ (%v)", procs, lisp, err)
			}
		}
	}
}

// A NaN reaches the loss and the gradient of its own position, or nothing if the position is ignored.
func TestCrossEntropyNaN(t *testing.T) {
	for _, bad := range []float64{math.NaN(), math.Inf(1)} {
		for _, lisp := range []bool{false, true} {
			p := crossEntropyProblem{1, 2, 2, []float64{bad, 0, 0, 0}, []float64{1, 1}, -1, 1}
			loss, dlogits, err := p.run(tensor.Float64, lisp)
			if err != nil || !math.IsNaN(loss) || !math.IsNaN(dlogits[0]) || math.IsNaN(dlogits[2]) {
				t.Errorf("%v, lisp machine %t: loss %v, gradient %v, error %v", bad, lisp, loss, dlogits, err)
			}
			p.targets[0] = -1
			loss, dlogits, err = p.run(tensor.Float64, lisp)
			if want := []float64{0, 0, 0.5, -0.5}; err != nil || loss != math.Ln2 || !slices.Equal(dlogits, want) {
				t.Errorf("%v, ignored, lisp machine %t: loss %v, gradient %v, error %v", bad, lisp, loss, dlogits, err)
			}
		}
	}
}

func TestCrossEntropyTargets(t *testing.T) {
	for _, test := range []struct {
		targets []float64
		ignore  int
		want    string
	}{
		{[]float64{0, 4, 2, 1, 9, 3}, 9, ""},
		{[]float64{0, 1, 2, 5, 4, 3}, -100, "op: cross-entropy: targets[1, 0] is 5, want 0 to 4, the vocabulary, or -100, which is ignored"},
		{[]float64{0, 1, -1, 3, 4, 3}, -100, "op: cross-entropy: targets[0, 2] is -1, want 0 to 4, the vocabulary, or -100, which is ignored"},
		{[]float64{0, 1, 2, 3, 4, -100}, -1, "op: cross-entropy: targets[1, 2] is -100, want 0 to 4, the vocabulary, or -1, which is ignored"},
	} {
		g := G.NewGraph()
		logits := leaf(g, "logits", tensor.Float64, []int{2, 3, 5}, make([]float64, 30))
		targets := leaf(g, "targets", tensor.Int, []int{2, 3}, test.targets)
		if _, err := CrossEntropy(logits, targets, test.ignore); err != nil {
			t.Fatal(err)
		}
		// The lisp machine runs forward only. With gradients it would start the backward pass in another goroutine although an operator
		// has failed, and clear the values that the backward pass reads.
		for _, m := range []G.VM{G.NewTapeMachine(g), G.NewLispMachine(g, G.ExecuteFwdOnly())} {
			err := m.RunAll()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("targets %v, ignore %d, %T: error %v, want %q", test.targets, test.ignore, m, err, test.want)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestCrossEntropyErrors(t *testing.T) {
	g := G.NewGraph()
	node := func(dt tensor.Dtype, shape ...int) *G.Node {
		return G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprint(dt, shape)))
	}
	logits, targets := node(tensor.Float32, 2, 3, 5), node(tensor.Int, 2, 3)
	for _, test := range []struct {
		logits, targets *G.Node
		want            string
	}{
		{nil, targets, "logits is missing"},
		{node(tensor.Int, 2, 3, 5), targets, "logits is of int, want float32 or float64"},
		{node(tensor.Float32, 6), targets, "logits has shape (6), want (batch, …, vocabulary)"},
		{node(tensor.Float32, 6, 5), targets, "targets has shape (2, 3), want (batch) = (6)"},
		{logits, nil, "targets is missing, want a node of int of shape (batch, length)"},
		{logits, node(tensor.Float32, 2, 3), "targets is of float32, want int"},
		{logits, node(tensor.Int, 2, 4), "targets has shape (2, 4), want (batch, length) = (2, 3)"},
		{logits, node(tensor.Int, 2, 3, 5), "targets has shape (2, 3, 5), want (batch, length) = (2, 3)"},
		{logits, G.NewTensor(G.NewGraph(), tensor.Int, 2, G.WithShape(2, 3), G.WithName("elsewhere")),
			"targets belongs to another graph than the other operands"},
	} {
		_, err := CrossEntropy(test.logits, test.targets, -100)
		if want := "op: cross-entropy: " + test.want; err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

// Losses with different ignored targets are different nodes: Gorgonia does not merge them.
func TestCrossEntropyIgnoreInGraph(t *testing.T) {
	g := G.NewGraph()
	logits := leaf(g, "logits", tensor.Float64, []int{1, 2, 2}, []float64{0, 0, 0, math.Log(3)})
	targets := leaf(g, "targets", tensor.Int, []int{1, 2}, []float64{0, 1})
	var without0, without1 G.Value
	G.Read(G.Must(CrossEntropy(logits, targets, 0)), &without0)
	G.Read(G.Must(CrossEntropy(logits, targets, 1)), &without1)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	if a, b := elements(without0)[0], elements(without1)[0]; math.Abs(a-math.Log(4./3)) > 1e-15 || b != math.Ln2 {
		t.Errorf("losses %v and %v, want ln 4/3 and ln 2", a, b)
	}
}
