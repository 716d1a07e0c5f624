package train

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// subject is a model, on the host or a device, with everything that uses its weights while they change.
type subject struct {
	t       *testing.T
	lm      *nn.LM
	opts    []nn.Option
	device  *cuda.Device // nil for the host
	solver  *AdamW
	trainer *Trainer      // for the entries that resume
	stepper *nn.Stepper   // made before the first change
	gen     *nn.Generator // made before the first change
	vm      G.VM          // of a graph of the loss, made before the first change
	loss    *G.Node
	results []float64
}

func newSubject(t *testing.T, d *cuda.Device) *subject {
	s := &subject{t: t, device: d, opts: []nn.Option{nn.WithSeed(3)}}
	if d != nil {
		s.opts = append(s.opts, nn.OnDevice(d))
	}
	s.lm = nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2, DState: 4}, Vocab: vocab, UntiedHead: true}, s.opts...)
	s.newSolver()
	s.keep()
	return s
}

func (s *subject) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *subject) params() layer.Params { return s.lm.Params() }

// newSolver returns a solver for the trained weights. Its large Eps keeps steps continuous for gradients near zero.
func (s *subject) newSolver() {
	var err error
	s.solver, err = NewAdamW(s.params().Trainable(), AdamWConfig{LearnRate: 0.02, Eps: 1e-3, Decay: 0.1})
	s.check(err)
}

// keep makes the objects that are used again after each change.
func (s *subject) keep() {
	var err error
	s.stepper, err = nn.NewStepper(s.lm, 1)
	s.check(err)
	s.gen, err = nn.NewGenerator(s.lm, nn.GenerateConfig{MaxTokens: 3})
	s.check(err)
	g := G.NewGraph()
	ids := tensor.New(tensor.WithShape(1, 5), tensor.WithBacking([]int{1, 2, 3, 4, 5}))
	x := G.NodeFromAny(g, ids, G.WithName("ids"))
	s.loss, err = s.lm.Loss(x, x)
	s.check(err)
	s.vm = G.NewTapeMachine(g)
	stepper, gen, vm := s.stepper, s.gen, s.vm
	s.t.Cleanup(func() {
		stepper.Close()
		gen.Close()
		vm.Close()
	})
}

func (s *subject) add(v ...float64) { s.results = append(s.results, v...) }

// steps appends the logits of some steps.
func (s *subject) steps(stepper *nn.Stepper) {
	s.t.Helper()
	stepper.Reset()
	for token := range 3 {
		rows, err := stepper.Step([]int{token})
		s.check(err)
		s.add(rows[0]...)
	}
}

func (s *subject) generate(gen *nn.Generator) {
	s.t.Helper()
	tokens, err := gen.Generate(context.Background(), [][]int{{1, 2, 3, 4}}, nil)
	s.check(err)
	for _, token := range tokens[0] {
		s.add(float64(token))
	}
}

// use uses the model in every way, and returns all resulting numbers.
func (s *subject) use() []float64 {
	s.t.Helper()
	s.results = nil
	if s.trainer != nil {
		s.check(s.trainer.step())
		c := s.trainer.Curve().Training
		s.add(c[len(c)-1].Loss)
	}
	before, err := deviceStep(s.lm, s.solver) // computes the loss and makes a step
	s.check(err)
	after, err := deviceStep(s.lm, nil)
	s.check(err)
	s.add(float64(before), float64(after))
	s.vm.Reset()
	s.check(s.vm.RunAll())
	s.add(float64(s.loss.Value().Data().(float32)))
	s.steps(s.stepper)
	s.generate(s.gen)
	if !slices.ContainsFunc(s.params(), func(p *layer.Param) bool { return p.LoRA() != nil }) { // generation on a device does not support LoRA
		stepper, err := nn.NewStepper(s.lm, 1)
		s.check(err)
		defer stepper.Close()
		s.steps(stepper)
		gen, err := nn.NewGenerator(s.lm, nn.GenerateConfig{MaxTokens: 3})
		s.check(err)
		defer gen.Close()
		s.generate(gen)
	}
	s.check(s.params().ToHost())
	for _, w := range weights(s.lm) {
		s.add(w...)
	}
	return slices.Clone(s.results)
}

// step makes a training step, and does not copy the new weights from the device.
func (s *subject) step() {
	s.t.Helper()
	_, err := deviceStep(s.lm, s.solver)
	s.check(err)
}

// write changes the Value of each weight.
func write(params layer.Params) {
	for i, p := range params {
		for j := range p.Value.Data().([]float32) {
			p.Value.Data().([]float32)[j] += 0.1 * float32(math.Sin(float64(17*i+j)))
		}
	}
}

// TestDeviceChange checks that a model that was used on a device, changed in any way, and used again has the same results as on the host. The
// weights on the device are a copy, made at the first use, which every change of the weights must update.
func TestDeviceChange(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	c, err := op.On(d, cuda.Strict)
	if err != nil {
		t.Fatal(err)
	}

	// Files of another model, which the changes load.
	folder := t.TempDir()
	other := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2, DState: 4}, Vocab: vocab, UntiedHead: true}, nn.WithSeed(4))
	cfg := config()
	cfg.File = filepath.Join(folder, "run")
	cfg.AdamW = AdamWConfig{LearnRate: 0.02, Eps: 1e-3}
	run := newTrainer(t, other, cfg)
	for range 3 {
		if err := run.step(); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{run.Save(), checkpoint.Save(filepath.Join(folder, "model"), other)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	added, err := other.Params().AddLoRA(layer.LoRAConfig{Rank: 2, Alpha: 3})
	if err != nil {
		t.Fatal(err)
	}
	write(added)
	if err := SaveLoRA(filepath.Join(folder, "adapter"), "other", other.Params()); err != nil {
		t.Fatal(err)
	}

	addLoRA := func(s *subject) {
		added, err := s.params().AddLoRA(layer.LoRAConfig{Rank: 2, Seed: 7})
		s.check(err)
		write(added)
		added.ValuesChanged()
		s.newSolver()
	}
	loadLoRA := func(s *subject) {
		s.check(LoadLoRA(filepath.Join(folder, "adapter"), s.params()))
		s.newSolver()
	}
	mergeLoRA := func(s *subject) {
		_, err := s.params().MergeLoRA()
		s.check(err)
		s.params().Unfreeze()
		s.newSolver()
	}
	removeLoRA := func(s *subject) {
		s.params().RemoveLoRA()
		s.newSolver()
	}
	unfreeze := func(s *subject) {
		s.params().Unfreeze()
		s.newSolver()
	}
	resume := func(s *subject) {
		if s.trainer == nil {
			s.trainer = newTrainer(t, s.lm, cfg)
		}
		resumed, err := s.trainer.Resume()
		s.check(err)
		if !resumed {
			s.t.Error("Resume found no file")
		}
	}
	for _, change := range []struct {
		name  string
		steps []func(*subject) // the model is used after each
	}{
		{"ToDevice", []func(*subject){func(s *subject) {
			if s.device != nil {
				s.check(s.params().ToDevice(c))
			}
		}}},
		{"ToHost", []func(*subject){func(s *subject) { s.check(s.params().ToHost()) }}},
		{"ValuesChanged", []func(*subject){func(s *subject) {
			s.check(s.params().ToHost())
			write(s.params())
			s.params().ValuesChanged()
		}}},
		{"HostChanged", []func(*subject){func(s *subject) {
			for _, p := range s.params() {
				if w := p.OnDevice(); w != nil {
					_, err := w.ToHost()
					s.check(err)
				}
			}
			write(s.params())
			for _, p := range s.params() {
				if w := p.OnDevice(); w != nil {
					w.HostChanged()
				}
			}
		}}},
		{"Free", []func(*subject){func(s *subject) {
			for _, p := range s.params() {
				if w := p.OnDevice(); w != nil {
					s.check(w.Free())
				}
			}
		}}},
		{"LoadInto", []func(*subject){func(s *subject) {
			r, err := checkpoint.Open(filepath.Join(folder, "model"))
			s.check(err)
			s.check(r.LoadInto(s.lm, ""))
			s.check(r.Close())
		}}},
		{"Save and Load", []func(*subject){func(s *subject) {
			dir := s.t.TempDir()
			s.step()
			s.check(checkpoint.Save(dir, s.lm))
			lm, err := checkpoint.Load(dir, s.opts...)
			s.check(err)
			s.lm = lm
			s.newSolver()
		}}},
		{"Resume", []func(*subject){resume, resume}},
		{"Resume, Save, Resume", []func(*subject){resume, func(s *subject) {
			s.trainer.cfg.File = filepath.Join(s.t.TempDir(), "run")
			s.check(s.trainer.step())
			s.check(s.trainer.Save())
			s.check(s.trainer.step())
			resume(s)
		}}},
		{"Moments", []func(*subject){func(s *subject) {
			for i, m := range s.solver.Moments() {
				for j := range m.Value.Data().([]float32) {
					m.Value.Data().([]float32)[j] = 0.1 * float32(math.Abs(math.Sin(float64(i+j))))
				}
			}
			s.solver.SetSteps(40)
		}}},
		{"Freeze, Unfreeze", []func(*subject){
			func(s *subject) { s.params()[2:].Freeze() },
			func(s *subject) { s.params().Unfreeze() },
		}},
		{"AddLoRA, MergeLoRA", []func(*subject){addLoRA, mergeLoRA}},
		{"AddLoRA, Unfreeze, MergeLoRA", []func(*subject){addLoRA, unfreeze, mergeLoRA}},
		{"AddLoRA, RemoveLoRA, AddLoRA", []func(*subject){addLoRA, removeLoRA, addLoRA}},
		{"AddLoRA, SaveLoRA, LoadLoRA", []func(*subject){addLoRA, func(s *subject) {
			dir := s.t.TempDir()
			s.step()
			s.check(SaveLoRA(dir, "base", s.params()))
			s.params().RemoveLoRA()
			s.check(LoadLoRA(dir, s.params()))
			s.newSolver()
		}}},
		{"LoadLoRA, RemoveLoRA, LoadLoRA, MergeLoRA", []func(*subject){loadLoRA, removeLoRA, loadLoRA, mergeLoRA}},
	} {
		t.Run(change.name, func(t *testing.T) {
			var runs [2][][]float64
			for i, device := range []*cuda.Device{nil, d} {
				s := newSubject(t, device)
				runs[i] = append(runs[i], s.use())
				for _, f := range change.steps {
					f(s)
					runs[i] = append(runs[i], s.use())
				}
			}
			for i, want := range runs[0] {
				got := runs[1][i]
				if len(got) != len(want) {
					t.Fatalf("use %d: %d numbers, want %d", i, len(got), len(want))
				}
				for j, w := range want {
					if !(math.Abs(got[j]-w) <= 1e-4*max(1, math.Abs(w))) {
						t.Fatalf("use %d of %d: number %d is %v on the device, %v on the host", i, len(runs[0]), j, got[j], w)
					}
				}
			}
		})
	}
}

// TestDeviceMove checks that weights and the solver's moments keep their values when they move to another device.
func TestDeviceMove(t *testing.T) {
	var contexts [2]op.Place
	for i := range contexts {
		c, err := op.On(gputest.Open(t, cuda.Open), cuda.Strict)
		if err != nil {
			t.Fatal(err)
		}
		contexts[i] = c
	}
	var runs [2][]float32
	for i, to := range contexts {
		w := layer.NewParam("w", tensor.New(tensor.WithShape(2, 3), tensor.WithBacking([]float32{1, 2, 3, 4, 5, 6})), true)
		params := layer.Params{w}
		solver, err := NewAdamW(params, AdamWConfig{LearnRate: 0.1})
		if err != nil {
			t.Fatal(err)
		}
		for step, c := range []op.Place{contexts[0], to, to} {
			if err := params.ToDevice(c); err != nil {
				t.Fatal(err)
			}
			g := G.NewGraph()
			x, err := c.Upload(G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 2, 3), tensor.WithBacking([]float32{1, 2, 3, 4, 5, float32(step)})), G.WithName("x")))
			if err != nil {
				t.Fatal(err)
			}
			y, err := op.Linear(x, w.Node(g), nil)
			if err != nil {
				t.Fatal(err)
			}
			if y, err = op.Download(y); err != nil {
				t.Fatal(err)
			}
			if _, err := G.Grad(G.Must(G.Sum(y)), w.Node(g)); err != nil {
				t.Fatal(err)
			}
			m := G.NewTapeMachine(g, G.BindDualValues(w.Node(g)))
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
			if err := solver.Step(G.NodesToValueGrads(params.Nodes(g))); err != nil {
				t.Fatal(fmt.Errorf("step %d: %w", step, err))
			}
			m.Close()
		}
		if err := params.ToHost(); err != nil {
			t.Fatal(err)
		}
		runs[i] = w.Value.Data().([]float32)
	}
	if !slices.Equal(runs[0], runs[1]) {
		t.Errorf("a weight that moved to another device is %v after three steps, want %v", runs[1], runs[0])
	}
	if err := (layer.Params{}).ToDevice(op.Place{}); err == nil {
		t.Error("ToDevice without a device: no error")
	}
}
