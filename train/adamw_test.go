package train

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
)

// pair is a weight with a gradient, in the form in which a solver gets a node.
type pair struct{ weight, grad *tensor.Dense }

func (p pair) Value() G.Value         { return p.weight }
func (p pair) Grad() (G.Value, error) { return p.grad, nil }

func dense(dt tensor.Dtype, v []float64, shape ...int) *tensor.Dense {
	d := tensor.New(tensor.WithShape(shape...), tensor.Of(dt))
	for i, x := range v {
		if dt == tensor.Float32 {
			d.Data().([]float32)[i] = float32(x)
		} else {
			d.Data().([]float64)[i] = x
		}
	}
	return d
}

func numbers(d *tensor.Dense) (v []float64) {
	if s, ok := d.Data().([]float32); ok {
		for _, x := range s {
			v = append(v, float64(x))
		}
		return v
	}
	return slices.Clone(d.Data().([]float64))
}

func normal(r *rand.Rand, n int) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = r.NormFloat64()
	}
	return v
}

// set holds weights with gradients: some with decay, some without, some frozen.
type set struct {
	params layer.Params
	model  []G.ValueGrad
}

func newSet(dt tensor.Dtype) *set {
	r := rand.New(rand.NewPCG(6, 1))
	s := new(set)
	for i, shape := range [][]int{{3, 5}, {7}, {2, 2}, {2, 3, 4}} {
		n := tensor.Shape(shape).TotalSize()
		p := layer.NewParam(fmt.Sprint("w", i), dense(dt, normal(r, n), shape...), i%2 == 0)
		p.Frozen = i == 2
		s.params = append(s.params, p)
		s.model = append(s.model, pair{p.Value, dense(dt, nil, shape...)})
	}
	return s
}

// draw adds random numbers of very different magnitudes to the gradients.
func (s *set) draw(r *rand.Rand) {
	for i, n := range s.model {
		g, _ := n.Grad()
		d := g.(*tensor.Dense)
		v := numbers(d)
		for j := range v {
			v[j] += r.NormFloat64() * math.Pow(10, float64(i+j%3-2))
		}
		copyInto(d, v)
	}
}

func copyInto(d *tensor.Dense, v []float64) {
	switch s := d.Data().(type) {
	case []float32:
		for i, x := range v {
			s[i] = float32(x)
		}
	case []float64:
		copy(s, v)
	}
}

// reference is AdamW by its definition, in float64.
type reference struct {
	w, m, v [][]float64
	t       int
}

func (r *reference) step(s *set, grads [][]float64, rate, decay, clip float64) {
	r.t++
	norm := 0.0
	for i, g := range grads {
		for _, x := range g {
			if !s.params[i].Frozen {
				norm += x * x
			}
		}
	}
	norm = math.Sqrt(norm)
	for i, g := range grads {
		if s.params[i].Frozen {
			continue
		}
		for j, x := range g {
			if clip > 0 && norm > clip {
				x *= clip / norm
			}
			r.m[i][j] = 0.9*r.m[i][j] + 0.1*x
			r.v[i][j] = 0.999*r.v[i][j] + 0.001*x*x
			mean := r.m[i][j] / (1 - math.Pow(0.9, float64(r.t)))
			square := r.v[i][j] / (1 - math.Pow(0.999, float64(r.t)))
			if s.params[i].Decay {
				r.w[i][j] -= rate * decay * r.w[i][j]
			}
			r.w[i][j] -= rate * mean / (math.Sqrt(square) + 1e-8)
		}
	}
}

// The solver agrees with the definition over many steps, with decay, clipping, a schedule and accumulated gradients.
func TestAdamW(t *testing.T) {
	for _, c := range []struct {
		dt  tensor.Dtype
		tol float64
	}{{tensor.Float64, 1e-13}, {tensor.Float32, 2e-6}} {
		for _, clip := range []float64{0, 3000} {
			s := newSet(c.dt)
			ref := new(reference)
			for _, p := range s.params {
				ref.w = append(ref.w, numbers(p.Value))
				ref.m = append(ref.m, make([]float64, p.Value.Shape().TotalSize()))
				ref.v = append(ref.v, make([]float64, p.Value.Shape().TotalSize()))
			}
			schedule := WarmupCosine(10, 300, 0.1)
			solver, err := NewAdamW(s.params, AdamWConfig{LearnRate: 0.01, Decay: 0.1, Clip: clip, Schedule: schedule})
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(6, 2))
			clipped := 0
			for step := range 300 {
				s.draw(r)
				if step%3 == 0 {
					s.draw(r) // a second batch of the same step
				}
				var grads [][]float64
				for _, n := range s.model {
					g, _ := n.Grad()
					grads = append(grads, numbers(g.(*tensor.Dense)))
				}
				ref.step(s, grads, 0.01*schedule(step+1), 0.1, clip)
				if err := solver.Step(s.model); err != nil {
					t.Fatal(err)
				}
				if solver.Norm() > clip {
					clipped++
				}
				for i, p := range s.params {
					g, _ := s.model[i].Grad()
					for j, x := range numbers(p.Value) {
						if want := ref.w[i][j]; math.Abs(x-want) > c.tol*float64(step+1)*max(1, math.Abs(want)) {
							t.Fatalf("%v, clip %v, step %d: %s[%d] is %v, want %v", c.dt, clip, step, p.Name, j, x, want)
						}
						if numbers(g.(*tensor.Dense))[j] != 0 {
							t.Fatalf("step %d has not cleared the gradient of %s", step, p.Name)
						}
					}
				}
			}
			if solver.Steps() != 300 || clip > 0 && (clipped == 0 || clipped == 300) {
				t.Errorf("%d steps, %d of them clipped: want some with and some without clipping", solver.Steps(), clipped)
			}
		}
	}
}

// Without decay AdamW agrees with Gorgonia's Adam.
func TestAdamWIsAdam(t *testing.T) {
	for _, c := range []struct {
		dt  tensor.Dtype
		tol float64
	}{{tensor.Float64, 1e-12}, {tensor.Float32, 1e-4}} {
		a, b := newSet(c.dt), newSet(c.dt)
		for _, s := range []*set{a, b} {
			s.params.Unfreeze()
		}
		solver, err := NewAdamW(a.params, AdamWConfig{LearnRate: 0.02})
		if err != nil {
			t.Fatal(err)
		}
		adam := G.NewAdamSolver(G.WithLearnRate(0.02))
		ra, rb := rand.New(rand.NewPCG(6, 3)), rand.New(rand.NewPCG(6, 3))
		for step := range 100 {
			a.draw(ra)
			b.draw(rb)
			if err := solver.Step(a.model); err != nil {
				t.Fatal(err)
			}
			if err := adam.Step(b.model); err != nil {
				t.Fatal(err)
			}
			for i, p := range a.params {
				want := numbers(b.params[i].Value)
				for j, x := range numbers(p.Value) {
					if math.Abs(x-want[j]) > c.tol {
						t.Fatalf("%v, step %d: %s[%d] is %v, Gorgonia's is %v", c.dt, step, p.Name, j, x, want[j])
					}
				}
			}
		}
	}
}

// The moments and the number of steps are the whole state: a new solver that gets them continues bit for bit.
func TestAdamWMoments(t *testing.T) {
	whole, parts := newSet(tensor.Float32), newSet(tensor.Float32)
	cfg := AdamWConfig{LearnRate: 0.02, Decay: 0.1, Clip: 1, Schedule: WarmupCosine(3, 20, 0)}
	run := func(s *set, solver *AdamW, from, to int) *AdamW {
		if solver == nil {
			var err error
			if solver, err = NewAdamW(s.params, cfg); err != nil {
				t.Fatal(err)
			}
		}
		for i := from; i < to; i++ {
			s.draw(rand.New(rand.NewPCG(7, uint64(i))))
			if err := solver.Step(s.model); err != nil {
				t.Fatal(err)
			}
		}
		return solver
	}
	run(whole, nil, 0, 20)
	old := run(parts, nil, 0, 9)
	fresh, err := NewAdamW(parts.params, cfg)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for i, m := range old.Moments() {
		names[m.Name] = true
		if got := fresh.Moments()[i]; got.Name != m.Name {
			t.Fatalf("moment %d is %s, want %s", i, got.Name, m.Name)
		}
		copyInto(fresh.Moments()[i].Value, numbers(m.Value))
	}
	if len(names) != 6 || !names["w3.exp_avg_sq"] || names["w2.exp_avg"] {
		t.Errorf("moments %v, want two of each weight that is not frozen", names)
	}
	fresh.SetSteps(old.Steps())
	run(parts, fresh, 9, 20)
	for i, p := range whole.params {
		if !slices.Equal(numbers(p.Value), numbers(parts.params[i].Value)) {
			t.Errorf("%s differs", p.Name)
		}
	}
}

func TestAdamWErrors(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	s := newSet(tensor.Float64)
	for _, test := range []struct {
		params layer.Params
		cfg    AdamWConfig
		want   string
	}{
		{s.params, AdamWConfig{}, "train: AdamW: LearnRate is 0, want a positive number"},
		{s.params, AdamWConfig{LearnRate: nan}, "LearnRate is NaN"},
		{s.params, AdamWConfig{LearnRate: inf}, "LearnRate is +Inf"},
		{s.params, AdamWConfig{LearnRate: 1, Beta1: 1}, "Beta1 is 1, want a number between 0 and 1"},
		{s.params, AdamWConfig{LearnRate: 1, Beta2: -0.5}, "Beta2 is -0.5, want a number between 0 and 1"},
		{s.params, AdamWConfig{LearnRate: 1, Eps: -1}, "Eps is -1, want a positive number"},
		{s.params, AdamWConfig{LearnRate: 1, Decay: -1}, "Decay is -1, want a number that is not negative"},
		{s.params, AdamWConfig{LearnRate: 1, Clip: nan}, "Clip is NaN, want a number that is not negative"},
		{append(s.params[:1:1], s.params[0]), AdamWConfig{LearnRate: 1}, "w0 is there twice"},
		{layer.Params{layer.NewParam("ids", tensor.New(tensor.WithShape(2), tensor.Of(tensor.Int)), false)}, AdamWConfig{LearnRate: 1}, "ids is of int, want float32 or float64"},
		{layer.Params{layer.NewParam("one", tensor.New(tensor.FromScalar(1.0)), false)}, AdamWConfig{LearnRate: 1}, "one has no axes, want at least one"},
	} {
		if _, err := NewAdamW(test.params, test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
	}

	solver, err := NewAdamW(s.params, AdamWConfig{LearnRate: 1})
	if err != nil {
		t.Fatal(err)
	}
	var before [][]float64
	for _, p := range s.params {
		before = append(before, numbers(p.Value))
	}
	stranger := dense(tensor.Float64, []float64{1}, 1)
	for _, test := range []struct {
		model []G.ValueGrad
		want  string
	}{
		{[]G.ValueGrad{s.model[0], pair{stranger, stranger}}, "value 1 is not a weight of the solver"},
		{[]G.ValueGrad{s.model[0], s.model[0]}, "w0 is there twice"},
		{[]G.ValueGrad{pair{s.params[0].Value, stranger}}, "w0 of float64 (3, 5) has a gradient of float64 (1)"},
		{[]G.ValueGrad{s.model[0], pair{s.params[1].Value, dense(tensor.Float64, []float64{1, nan, 1, 1, 1, 1, 1}, 7)}}, "the gradient has length NaN at step 1"},
		{[]G.ValueGrad{pair{s.params[1].Value, dense(tensor.Float64, []float64{1, inf, 1, 1, 1, 1, 1}, 7)}}, "the gradient has length +Inf at step 1"},
	} {
		if err := solver.Step(test.model); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
		for i, p := range s.params {
			if !slices.Equal(numbers(p.Value), before[i]) || solver.Steps() != 0 {
				t.Fatalf("%q: the error has changed %s", test.want, p.Name)
			}
		}
	}
}

func TestWarmupCosine(t *testing.T) {
	s := WarmupCosine(4, 12, 0.2)
	for step, want := range map[int]float64{1: 0.25, 2: 0.5, 4: 1, 8: 0.6, 12: 0.2, 100: 0.2} {
		if got := s(step); math.Abs(got-want) > 1e-15 {
			t.Errorf("step %d: %v, want %v", step, got, want)
		}
	}
	for step := 5; step < 13; step++ {
		if !(s(step) < s(step-1)) {
			t.Errorf("the schedule does not fall at step %d", step)
		}
	}
}
