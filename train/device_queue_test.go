package train

import (
	"errors"
	"fmt"
	"math"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// loop is a program's own training loop on a device.
type loop struct {
	t       *testing.T
	d       *cuda.Device
	lm      *nn.LM
	inputs  G.Nodes
	loss    *G.Node
	nodes   G.Nodes
	vm      G.VM
	solvers []*AdamW
	models  [][]G.ValueGrad // of each solver
}

func newLoop(t *testing.T, p cuda.Precision, solvers int, cfg AdamWConfig) *loop {
	t.Helper()
	l := &loop{t: t, d: gputest.Open(t, cuda.Open)}
	l.lm = nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, DState: 4, NLayer: 2}, Vocab: vocab}, nn.WithSeed(3), nn.OnDevice(l.d), nn.WithPrecision(p))
	g := G.NewGraph()
	for _, name := range []string{"ids", "targets"} {
		l.inputs = append(l.inputs, G.NewMatrix(g, tensor.Int, G.WithShape(2, 16), G.WithName(name)))
	}
	var err error
	if l.loss, err = l.lm.Loss(l.inputs[0], l.inputs[1]); err != nil {
		t.Fatal(err)
	}
	params := l.lm.Params().Trainable()
	l.nodes = params.Nodes(g)
	if _, err := G.Grad(l.loss, l.nodes...); err != nil {
		t.Fatal(err)
	}
	op.FreeAfterUse(g)
	l.vm = G.NewTapeMachine(g, G.BindDualValues(l.nodes...))
	t.Cleanup(func() { l.vm.Close() })
	for i := range solvers {
		from, to := i*len(params)/solvers, (i+1)*len(params)/solvers
		s, err := NewAdamW(params[from:to], cfg)
		if err != nil {
			t.Fatal(err)
		}
		l.solvers, l.models = append(l.solvers, s), append(l.models, G.NodesToValueGrads(l.nodes[from:to]))
	}
	return l
}

// run computes the loss of a step and the gradients.
func (l *loop) run(step int) float64 {
	l.t.Helper()
	for i, n := range l.inputs {
		v := make([]int, 32)
		for j := range v {
			v[j] = (j*7 + step*(3+i)) % vocab
		}
		if err := G.Let(n, tensor.New(tensor.WithShape(2, 16), tensor.WithBacking(v))); err != nil {
			l.t.Fatal(err)
		}
	}
	l.vm.Reset()
	if err := l.vm.RunAll(); err != nil {
		l.t.Fatal(err)
	}
	return float64(l.loss.Value().Data().(float32))
}

// gradient returns the gradient of a weight.
func (l *loop) gradient(i int) *op.DeviceTensor {
	l.t.Helper()
	grad, err := l.nodes[i].Grad()
	if err != nil {
		l.t.Fatal(err)
	}
	return grad.(*op.DeviceTensor)
}

// spoil makes the gradient of a weight infinite.
func (l *loop) spoil(i int) {
	l.t.Helper()
	g := l.gradient(i)
	v := make([]float32, g.Shape().TotalSize())
	v[len(v)-1] = float32(math.Inf(1))
	if err := g.FromHost(v); err != nil {
		l.t.Fatal(err)
	}
}

// state returns the weights, the moments, the steps and the norms.
func (l *loop) state() (all [][]float64) {
	l.t.Helper()
	if err := l.lm.Params().ToHost(); err != nil {
		l.t.Fatal(err)
	}
	for _, p := range l.lm.Params() {
		all = append(all, numbers(p.Value))
	}
	for _, s := range l.solvers {
		all = append(all, []float64{s.Norm(), float64(s.Steps())})
		for _, m := range s.Moments() {
			all = append(all, numbers(m.Value))
		}
	}
	return all
}

// Queue has the losses, weights, moments, steps and norms of Step, bit for bit, also with gradients that are not finite, whose errors the next call returns, when weights change in
// between, and when the state is read right after it.
func TestDeviceQueue(t *testing.T) {
	type program struct {
		name    string
		solvers int
		spoiled func(step int) bool
		change  func(l *loop, step int) // between the gradients and the step
		read    func(step int) bool     // the state after the step
		ahead   bool                    // the stream runs ahead
		long    bool
	}
	never := func(int) bool { return false }
	halve := func(l *loop, step int) {
		if step%10 != 9 {
			return
		}
		if err := l.lm.Params().ToHost(); err != nil {
			t.Fatal(err)
		}
		for i := range l.lm.Params() {
			for j, v := 0, l.lm.Params()[i].Value.Data().([]float32); j < len(v); j += 2 {
				v[j] *= 0.5
			}
		}
		l.lm.Params().ValuesChanged()
	}
	steps := 200
	if testing.Short() {
		steps = 40
	}
	for _, c := range []program{
		{"nothing", 1, never, nil, never, true, true},
		{"spoiled gradients", 1, func(step int) bool { return step == steps/2 || step == steps/2+1 || step == steps-1 }, nil, never, true, false},
		{"states are read", 1, func(step int) bool { return step == steps/3 }, nil, func(step int) bool { return step%7 == 6 || step == steps/3 }, false, true},
		{"weights change", 1, func(step int) bool { return step%20 == 9 }, halve, never, false, false},
		{"two solvers", 2, func(step int) bool { return step == steps/2 }, nil, never, true, true},
		{"three solvers", 3, func(step int) bool { return step == steps/2 }, nil, func(step int) bool { return step == steps/2+3 }, true, false},
	} {
		for _, p := range []cuda.Precision{cuda.Strict, cuda.BF16} {
			for _, graphs := range []string{"on", "off"} {
				if testing.Short() && (c.long || graphs == "off" || (p == cuda.Strict) != (c.solvers > 1)) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%v/%s", c.name, p, graphs), func(t *testing.T) {
					t.Setenv("MAMBA_GRAPHS", graphs)
					run := func(queue bool) (all [][]float64) {
						l := newLoop(t, p, c.solvers, AdamWConfig{LearnRate: 0.02, Decay: 0.1, Clip: 1, Schedule: WarmupCosine(5, steps, 0.1)})
						wants := make([]error, c.solvers) // the error that the next call must return
						failed := func(i int, err error) bool {
							if !errors.Is(err, ErrDiverged) && err != nil {
								t.Fatal(err)
							}
							return err != nil
						}
						for step := range steps {
							all = append(all, []float64{l.run(step)})
							if c.change != nil {
								c.change(l, step)
							}
							if c.spoiled(step) {
								for i := range c.solvers {
									l.spoil(i * len(l.nodes) / c.solvers)
								}
							}
							for i, s := range l.solvers {
								if !queue {
									if failed(i, s.Step(l.models[i])) != c.spoiled(step) {
										t.Fatalf("step %d of solver %d: an error is wrong", step, i)
									}
									if c.spoiled(step) {
										for _, n := range l.models[i] {
											grad, err := n.Grad()
											if err != nil {
												t.Fatal(err)
											}
											grad.(*op.DeviceTensor).Zero()
										}
									}
									continue
								}
								err := s.Queue(l.models[i])
								if fmt.Sprint(err) != fmt.Sprint(wants[i]) {
									t.Fatalf("step %d of solver %d: the error is %v, want %v", step, i, err, wants[i])
								}
								if failed(i, err) { // the gradients are there still
									if err := s.Queue(l.models[i]); err != nil {
										t.Fatal(err)
									}
								}
								if wants[i] = nil; c.spoiled(step) {
									wants[i] = fmt.Errorf("train: AdamW: the gradient has length +Inf at step %d", stepsOf(step, c.spoiled))
								}
							}
							if c.read(step) {
								all = append(all, l.state()...)
							}
						}
						for i, s := range l.solvers {
							if queue {
								if err := s.Wait(); fmt.Sprint(err) != fmt.Sprint(wants[i]) {
									t.Errorf("Wait of solver %d returns %v, want %v", i, err, wants[i])
								}
								if err := s.Wait(); err != nil {
									t.Errorf("a second Wait returns %v", err)
								}
							}
						}
						all = append(all, l.state()...)
						if n := l.d.Launches().Ahead; c.ahead && (n > 0) != (graphs == "on") {
							t.Errorf("%+v: want work ahead", l.d.Launches())
						}
						return all
					}
					if want, got := run(false), run(true); fmt.Sprint(want) != fmt.Sprint(got) {
						t.Error("Queue and Step differ")
					}
				})
			}
		}
	}
}

// stepsOf returns the number of the step that is made after so many turns.
func stepsOf(turn int, spoiled func(int) bool) int {
	n := 1
	for i := range turn {
		if !spoiled(i) {
			n++
		}
	}
	return n
}

// The step that Queue has queued ends with the device: then Wait returns an error. SetSteps counts after it. A step that was not made is not counted, and its error comes once.
func TestDeviceQueueEnds(t *testing.T) {
	l := newLoop(t, cuda.Strict, 1, AdamWConfig{LearnRate: 0.02})
	s, model := l.solvers[0], l.models[0]
	queue := func() {
		t.Helper()
		if err := s.Queue(model); err != nil {
			t.Fatal(err)
		}
	}
	l.run(0)
	queue()
	if n := s.Steps(); n != 1 {
		t.Errorf("%d steps, want 1", n)
	}
	norm := s.Norm()
	l.run(1)
	l.spoil(0)
	queue()
	if n := s.Steps(); n != 1 || s.Norm() != norm {
		t.Errorf("%d steps with norm %v, want 1 with %v", n, s.Norm(), norm)
	}
	l.run(2)
	if err := s.Step(model); !errors.Is(err, ErrDiverged) {
		t.Errorf("Step after a step that was not made: %v", err)
	}
	if err := s.Step(model); err != nil || s.Steps() != 2 {
		t.Errorf("the next Step: %v, %d steps, want 2", err, s.Steps())
	}
	l.run(3)
	queue()
	s.SetSteps(7)
	l.run(4)
	queue()
	if n := s.Steps(); n != 8 {
		t.Errorf("%d steps, want 8", n)
	}
	l.run(5)
	queue()
	if err := l.d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err == nil {
		t.Error("Wait after Close of the device returns no error")
	}
	if err := s.Wait(); err != nil {
		t.Errorf("a second Wait returns %v", err)
	}
}

// On the host Queue is Step.
func TestQueueOnHost(t *testing.T) {
	for _, queue := range []bool{false, true} {
		s := newSet(tensor.Float32)
		solver, err := NewAdamW(layer.Params(s.params), AdamWConfig{LearnRate: 0.1})
		if err != nil {
			t.Fatal(err)
		}
		step := solver.Step
		if queue {
			step = solver.Queue
		}
		grad, _ := s.model[0].Grad()
		grad.(*tensor.Dense).Data().([]float32)[0] = 1
		if err := step(s.model); err != nil || solver.pending != nil || solver.Norm() != 1 || solver.Steps() != 1 {
			t.Errorf("%v, norm %v, %d steps", err, solver.Norm(), solver.Steps())
		}
		grad.(*tensor.Dense).Data().([]float32)[0] = float32(math.NaN())
		if err := step(s.model); !errors.Is(err, ErrDiverged) || solver.Steps() != 1 {
			t.Errorf("%v after %d steps, want an error at once", err, solver.Steps())
		}
		if err := solver.Wait(); err != nil {
			t.Error(err)
		}
	}
	if err := (*AdamW)(nil).Wait(); err == nil {
		t.Error("Wait of no solver returns no error")
	}
}
