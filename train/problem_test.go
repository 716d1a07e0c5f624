package train

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// shake is an operator for tests: it adds to x a number that depends on the step, as the mask of a dropout does. It records the steps.
type shake struct{ steps *[]int }

func (s shake) Arity() int { return 2 }
func (s shake) Type() hm.Type {
	x := G.TensorType{Dims: 2, Of: hm.TypeVariable('a')}
	return hm.NewFnType(x, G.TensorType{Dims: 1, Of: tensor.Int}, x)
}
func (s shake) InferShape(in ...G.DimSizer) (tensor.Shape, error) {
	return in[0].(tensor.Shape).Clone(), nil
}
func (s shake) Do(in ...G.Value) (G.Value, error) {
	step := in[1].Data().([]int)[0]
	if step < 0 { // evaluation
		return in[0].(*tensor.Dense).Clone().(*tensor.Dense), nil
	}
	*s.steps = append(*s.steps, step)
	return in[0].(*tensor.Dense).Clone().(*tensor.Dense).AddScalar(0.1*math.Sin(float64(step)), true)
}
func (s shake) ReturnsPtr() bool      { return false }
func (s shake) CallsExtern() bool     { return false }
func (s shake) OverwritesInput() int  { return -1 }
func (s shake) WriteHash(h hash.Hash) { io.WriteString(h, "shake") }
func (s shake) Hashcode() uint32      { return 1 }
func (s shake) String() string        { return "shake" }

func (s shake) DiffWRT(n int) []bool                                   { return make([]bool, n) }
func (s shake) SymDiff(in G.Nodes, out, grad *G.Node) (G.Nodes, error) { return make(G.Nodes, 2), nil }

// rigid is an operator without a derivative.
type rigid struct{ G.Op }

func (rigid) WriteHash(h hash.Hash) { io.WriteString(h, "rigid") }

func tensorOf(of any, shape ...int) *tensor.Dense {
	return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(of))
}

// regression returns a network with one hidden layer that learns the sine, in float64. Each step of training sees x shaken by the number of the batch;
// steps records these numbers.
func regression(steps *[]int) Problem {
	r := rand.New(rand.NewPCG(4, 1))
	random := func(n int) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = 2 * r.NormFloat64()
		}
		return x
	}
	const hidden = 8
	weight := func(name string, shape ...int) *layer.Param {
		return layer.NewParam(name, tensorOf(random(tensor.Shape(shape).TotalSize()), shape...), true)
	}
	w, b, v := weight("w", 1, hidden), weight("b", 1, hidden), weight("v", hidden, 1)
	frozen := weight("unused", 3)
	frozen.Frozen = true
	batch := func(seed uint64) Batch {
		r := rand.New(rand.NewPCG(seed, 2))
		x, y := make([]float64, 16), make([]float64, 16)
		for i := range x {
			x[i] = 4*r.Float64() - 2
			y[i] = math.Sin(2 * x[i])
		}
		return Batch{map[string]*tensor.Dense{"x": tensorOf(x, 16, 1), "y": tensorOf(y, 16, 1)}, 16}
	}
	return Problem{
		Params: layer.Params{w, b, v, frozen},
		Loss: func(c *Call) (*G.Node, error) {
			x := c.Input("x")
			if steps != nil {
				var err error
				if x, err = G.ApplyOp(shake{steps}, x, c.Step()); err != nil {
					return nil, err
				}
			}
			h, err := G.Mul(x, w.Node(c.Graph()))
			if err != nil {
				return nil, err
			}
			if h, err = G.BroadcastAdd(h, b.Node(c.Graph()), nil, []byte{0}); err != nil {
				return nil, err
			}
			y := G.Must(G.Mul(G.Must(G.Tanh(h)), v.Node(c.Graph())))
			off := G.Must(G.Sub(y, c.Input("y")))
			if !c.Training {
				c.Metric("absolute", G.Must(G.Mean(G.Must(G.Abs(off)))))
				c.Metric("largest", G.Must(G.Max(G.Must(G.Abs(off)))))
			}
			return G.Mean(G.Must(G.Square(off)))
		},
		Data:    NewSource(func(i int) (Batch, error) { return batch(uint64(i)), nil }),
		HeldOut: []Batch{batch(1 << 40), batch(1<<40 + 1)},
	}
}

// classification returns a Mamba block with dropout that tells rising from falling sequences, in float32, with the data in a shuffled set.
func classification() Problem {
	block := nn.NewMambaBlock(nn.Config{DModel: 4, DState: 2}, nn.WithSeed(2))
	head := layer.NewLinear(layer.LinearConfig{In: 4, Out: 2}, layer.WithSeed(3), layer.WithName("head"))
	batch := func(of []int) (Batch, error) {
		const length = 6
		x, y := make([]float32, len(of)*length*4), make([]int, len(of)*length)
		for i, example := range of {
			r := rand.New(rand.NewPCG(uint64(example), 3))
			for t := range length {
				y[i*length+t] = nn.Ignore
				for c := range 4 {
					x[(i*length+t)*4+c] = float32(r.NormFloat64()/3) + float32(t*(2*(example%2)-1))/4
				}
			}
			y[i*length+length-1] = example % 2
		}
		return Batch{map[string]*tensor.Dense{"x": tensorOf(x, len(of), length, 4), "class": tensorOf(y, len(of), length)}, float64(len(of))}, nil
	}
	return Problem{
		Params: slices.Concat(block.Params(), head.Params()),
		Loss: func(c *Call) (*G.Node, error) {
			h, err := block.Apply(c.Input("x"))
			if err != nil {
				return nil, err
			}
			if h, err = op.Dropout(h, c.Step(), op.DropoutConfig{Rate: 0.1, Seed: 1}); err != nil {
				return nil, err
			}
			logits, err := head.Apply(h)
			if err != nil {
				return nil, err
			}
			return op.CrossEntropy(logits, c.Input("class"), nn.Ignore)
		},
		Data:    must(NewShuffled(30, 8, 5, batch)),
		HeldOut: []Batch{must(batch([]int{100, 101, 102, 103, 104, 105, 106, 107}))},
	}
}

func runConfig(steps int) RunConfig {
	return RunConfig{Steps: steps, Accumulate: 2, EvalEvery: 4, SaveEvery: 3, AdamW: AdamWConfig{LearnRate: 0.03, Decay: 0.01, Clip: 1}}
}

func trainerOf(t *testing.T, p Problem, cfg RunConfig) *Trainer {
	t.Helper()
	tr, err := NewTrainer(p, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

// A regressor and a classifier learn. Runs that are stopped and killed several times end with the same weights and curve, metrics included, as a
// run without stops, bit for bit, and the loss sees the same steps.
func TestProblems(t *testing.T) {
	var steps []int
	for name, problem := range map[string]func() Problem{
		"regression":     func() Problem { return regression(&steps) },
		"classification": classification,
	} {
		t.Run(name, func(t *testing.T) {
			cfg := runConfig(80)
			whole, p := problem(), problem()
			steps = nil
			one := trainerOf(t, whole, cfg)
			if err := one.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			c := one.Curve()
			if first, last := c.HeldOut[0].Loss, c.HeldOut[len(c.HeldOut)-1].Loss; !(last < first/3) || len(c.Training) != 80 || len(c.HeldOut) != 21 {
				t.Errorf("the held-out loss goes from %v to %v in %d and %d points, want less than a third, 80 and 21", first, last, len(c.Training), len(c.HeldOut))
			}
			if name == "regression" {
				for i, step := range steps {
					if step != i {
						t.Fatalf("batch %d has step %d", i, step)
					}
				}
				if len(steps) != 160 {
					t.Errorf("the loss sees %d steps, want 160", len(steps))
				}
			}

			cfg.File = filepath.Join(t.TempDir(), "state")
			for _, stop := range []struct {
				after int
				kill  bool
			}{{0, false}, {4, true}, {5, false}, {41, true}, {99, false}} {
				p = problem()
				ctx, cancel := context.WithCancel(t.Context())
				cfg.Report = func(curve *Curve) {
					if len(curve.Training) == stop.after {
						cancel()
						if stop.kill {
							panic("killed") // like a kill: nothing more is saved
						}
					}
				}
				tr := trainerOf(t, p, cfg)
				if _, err := tr.Resume(); err != nil {
					t.Fatal(err)
				}
				if stop.after == 0 {
					cancel()
				}
				func() {
					defer func() {
						if r := recover(); (r != nil) != stop.kill {
							t.Errorf("stop after %d: panic %v", stop.after, r)
						}
					}()
					if err := tr.Run(ctx); (err == nil) != (stop.after == 99) {
						t.Errorf("stop after %d: error %v", stop.after, err)
					}
				}()
				cancel()
				if stop.after == 99 && !reflect.DeepEqual(tr.Curve(), one.Curve()) {
					t.Errorf("the curve is %v, want %v", tr.Curve(), one.Curve())
				}
			}
			if !reflect.DeepEqual(values(p.Params), values(whole.Params)) {
				t.Error("the weights differ")
			}
		})
	}
}

// The metrics are means over the held-out batches by their weights, in the curve and from Measure.
func TestMetrics(t *testing.T) {
	p := regression(nil)
	p.HeldOut[1].Weight = 48
	tr := trainerOf(t, p, runConfig(1))
	if err := tr.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := tr.Measure(p.HeldOut)
	if err != nil || len(got) != 2 {
		t.Fatalf("%v, %v, want two metrics", got, err)
	}
	loss, err := tr.Evaluate(p.HeldOut)
	if err != nil || loss != tr.Curve().HeldOut[1].Loss {
		t.Errorf("the loss is %v, %v, want %v", loss, err, tr.Curve().HeldOut[1].Loss)
	}
	for name, v := range got {
		one, two := must(tr.Measure(p.HeldOut[:1])), must(tr.Measure(p.HeldOut[1:]))
		if want := (one[name] + 3*two[name]) / 4; math.Abs(v-want) > 1e-12 || tr.Curve().Metrics[name][1] != v || len(tr.Curve().Metrics[name]) != 2 {
			t.Errorf("%s is %v and %v in the curve, want %v", name, v, tr.Curve().Metrics[name], want)
		}
	}
	if got["largest"] <= got["absolute"] {
		t.Errorf("the largest error is %v, the mean %v", got["largest"], got["absolute"])
	}
}

// failing is a source that fails, panics, or returns a wrong batch, once.
type failing struct {
	Source
	at   int // of the batches that are asked for
	fail func(*Batch) error
}

func (f *failing) Next() (Batch, error) {
	b, err := f.Source.Next()
	if f.at--; f.at == 0 {
		err = f.fail(&b)
	}
	return b, err
}

// If the source returns an error, panics, or has a batch of another shape or type, the error says so and the trainer is as before: it goes on to the
// same weights as without.
func TestSourceFails(t *testing.T) {
	var steps []int
	calm := regression(&steps)
	if err := trainerOf(t, calm, runConfig(4)).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	value := func(name string, v *tensor.Dense) func(*Batch) error {
		return func(b *Batch) error { b.Values[name] = v; return nil }
	}
	errSource := errors.New("the disk is gone")
	view := must(tensorOf(make([]float64, 32), 16, 2).Slice(nil, G.S(0, 1))).(*tensor.Dense)
	for _, c := range []struct {
		name string
		fail func(*Batch) error
		want string
	}{
		{"error", func(*Batch) error { return errSource }, "train: batch 1 of step 2: the disk is gone"},
		{"panic", func(*Batch) error { panic(errSource) }, "the disk is gone"},
		{"shape", value("x", tensorOf(make([]float64, 15), 15, 1)), "train: batch 1 of step 2: its x is (15, 1) of float64, want (16, 1) of float64 as in the first batch"},
		{"type", value("y", tensorOf(make([]float32, 16), 16, 1)), "its y is (16, 1) of float32, want (16, 1) of float64"},
		{"unknown type", value("y", tensorOf(make([]string, 16), 16, 1)), "its y is of string, want one of"},
		{"nil", value("y", nil), "its y is missing, want (16, 1) of float64"},
		{"no elements", value("y", new(tensor.Dense)), "its y is missing, want a tensor with elements"},
		{"missing", func(b *Batch) error { delete(b.Values, "x"); return nil }, "its x is missing, want (16, 1) of float64"},
		{"one more", value("z", tensorOf(make([]float64, 16), 16, 1)), `it has a value for "z", want only [x y]`},
		{"view", value("x", view), "its x is a view"},
		{"weight", func(b *Batch) error { b.Weight = math.NaN(); return nil }, "its Weight is NaN, want a finite number of at least 0"},
		{"negative weight", func(b *Batch) error { b.Weight = -1; return nil }, "its Weight is -1"},
	} {
		steps = nil
		p := regression(&steps)
		p.Data = &failing{p.Data, 5, c.fail} // one is read by NewTrainer, two are of step 1
		tr := trainerOf(t, p, runConfig(4))
		err := func() (err error) {
			defer func() {
				if r := recover(); r != nil {
					err = r.(error)
				}
			}()
			return tr.Run(t.Context())
		}()
		if err == nil || !strings.Contains(err.Error(), c.want) || (c.name == "error" && !errors.Is(err, errSource)) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
		if tr.Done() != 1 || p.Data.Position() != (Position{Row: 2}) || len(tr.Curve().Training) != 1 {
			t.Errorf("%s: the trainer has made %d steps and the source is at %v, want 1 and batch 2", c.name, tr.Done(), p.Data.Position())
		}
		if err := tr.Run(t.Context()); err != nil {
			t.Errorf("%s: the second Run: %v", c.name, err)
		}
		if !reflect.DeepEqual(values(p.Params), values(calm.Params)) {
			t.Errorf("%s: the weights differ from those of a run without a failure", c.name)
		}
	}
	p := regression(nil)
	p.Data = NewSource(func(int) (Batch, error) { b := p.HeldOut[0]; b.Weight = 0; return b, nil })
	if err := trainerOf(t, p, runConfig(1)).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "train: step 1: the weights of 2 batches add up to 0") {
		t.Errorf("batches without weight: error %v", err)
	}
}

func TestNewTrainerErrors(t *testing.T) {
	errLoss := errors.New("no loss today")
	loss := func(build func(*Call, *G.Node) (*G.Node, error)) func(*Problem, *RunConfig) {
		return func(p *Problem, _ *RunConfig) {
			whole := p.Loss
			p.Loss = func(c *Call) (*G.Node, error) {
				n, err := whole(c)
				if err != nil {
					return nil, err
				}
				return build(c, n)
			}
		}
	}
	for _, c := range []struct {
		change func(*Problem, *RunConfig)
		want   string
	}{
		{func(p *Problem, _ *RunConfig) { p.Params = nil }, "train: Params is empty"},
		{func(p *Problem, _ *RunConfig) { p.Params[1] = nil }, "train: weight 1 of 4 is missing"},
		{func(p *Problem, _ *RunConfig) { p.Params.Freeze() }, "train: all of the model's weights are frozen"},
		{func(p *Problem, c *RunConfig) { p.Params[1].Name, c.File = "w", "run" }, `train: two weights have the name "w"`},
		{func(p *Problem, _ *RunConfig) { p.Params[3].Frozen = false }, `train: the loss does not depend on the weight "unused"`},
		{func(p *Problem, _ *RunConfig) { p.Loss = nil }, "train: Loss is nil"},
		{func(p *Problem, _ *RunConfig) { p.Data = nil }, "train: Data is nil"},
		{func(p *Problem, _ *RunConfig) { p.Data = (*Packer)(nil) }, "train: Data is nil"},
		{func(p *Problem, _ *RunConfig) { p.Data = NewSource(nil) }, "train: the first batch: train: source: batch is nil"},
		{func(p *Problem, _ *RunConfig) { p.Data = NewSource(func(int) (Batch, error) { return Batch{}, nil }) }, "train: the first batch: it has no values"},
		{func(p *Problem, _ *RunConfig) {
			p.Data = NewSource(func(int) (Batch, error) { return Batch{}, errLoss })
		}, "train: the first batch: no loss today"},
		{func(p *Problem, _ *RunConfig) { p.HeldOut[1].Values = nil }, "train: batch 1 of HeldOut: its x is missing"},
		{func(_ *Problem, c *RunConfig) { c.Steps = 0 }, "train: Steps is 0, want at least 1"},
		{func(_ *Problem, c *RunConfig) { c.Accumulate = -1 }, "train: Accumulate is -1"},
		{func(_ *Problem, c *RunConfig) { c.Accumulate = math.MaxInt }, "the batches of a step need"},
		{func(_ *Problem, c *RunConfig) { c.AdamW.LearnRate = 0 }, "LearnRate is 0"},
		{loss(func(*Call, *G.Node) (*G.Node, error) { return nil, errLoss }), "no loss today"},
		{loss(func(_ *Call, n *G.Node) (*G.Node, error) { return G.ApplyOp(rigid{n.Op()}, node.Operands(n)...) }), "train: the operator "},
		{loss(func(*Call, *G.Node) (*G.Node, error) { return nil, nil }), "train: the loss is missing, want a scalar of float32 or float64"},
		{loss(func(c *Call, _ *G.Node) (*G.Node, error) { return c.Input("x"), nil }), "train: the loss is Matrix float64 (16, 1), want a scalar"},
		{loss(func(c *Call, _ *G.Node) (*G.Node, error) { return c.Step(), nil }), "train: the loss is Vector int (1), want a scalar"},
		{loss(func(*Call, *G.Node) (*G.Node, error) { return G.NewScalar(G.NewGraph(), tensor.Float64), nil }), "in Call.Graph"},
		{loss(func(c *Call, n *G.Node) (*G.Node, error) { return n, second(c.Input("lable"), nil) }), `train: the loss asks for the input "lable", want one of ["x" "y"]`},
		{loss(func(c *Call, n *G.Node) (*G.Node, error) { return G.Mul(n, c.Input("lable")) }), `the loss asks for the input "lable"`},
		{loss(func(c *Call, n *G.Node) (*G.Node, error) { c.Metric("m", n); return n, nil }), `train: the loss adds the metric "m" to the graph that trains`},
		{loss(func(c *Call, n *G.Node) (*G.Node, error) {
			if !c.Training {
				c.Metric("absolute", n)
			}
			return n, nil
		}), `the metric "absolute" has no name or one that is there already`},
		{loss(func(c *Call, n *G.Node) (*G.Node, error) {
			if !c.Training {
				c.Metric("x", c.Input("x"))
			}
			return n, nil
		}), `the metric "x" is Matrix float64 (16, 1), want a scalar`},
		{loss(func(c *Call, n *G.Node) (*G.Node, error) {
			if !c.Training {
				c.Metric("other", G.NewScalar(G.NewGraph(), tensor.Float64))
			}
			return n, nil
		}), `the metric "other" is float64 (), want a scalar of float32 or float64 in Call.Graph`},
	} {
		p, cfg := regression(nil), runConfig(1)
		c.change(&p, &cfg)
		if tr, err := NewTrainer(p, cfg); tr != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	if err := trainerOf(t, regression(nil), RunConfig{Steps: 9, AdamW: AdamWConfig{LearnRate: 1e300}}).Run(t.Context()); !errors.Is(err, ErrDiverged) {
		t.Errorf("error %v, want ErrDiverged", err)
	}
}

// A run of a problem is resumed only with the same data, metrics and weights.
func TestResumeProblemDiffers(t *testing.T) {
	cfg := runConfig(2)
	cfg.File = filepath.Join(t.TempDir(), "state")
	if err := trainerOf(t, regression(nil), cfg).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want   string
		change func(*Problem, *RunConfig)
	}{
		{"", func(p *Problem, _ *RunConfig) {}},
		{"Data was", func(p *Problem, _ *RunConfig) {
			p.Data = NewSource(func(int) (Batch, error) { return p.HeldOut[0], nil })
		}},
		{"HeldOut was", func(p *Problem, _ *RunConfig) { p.HeldOut = p.HeldOut[:1] }},
		{"HeldOut was", func(p *Problem, _ *RunConfig) { p.HeldOut[1].Weight++ }},
		{"frozen weights was", func(p *Problem, _ *RunConfig) { p.Params[3].Value.Data().([]float64)[0]++ }},
		{"Accumulate was", func(_ *Problem, c *RunConfig) { c.Accumulate = 1 }},
		{`metrics was "absolute, largest" and is "absolute, largest, other"`, func(p *Problem, _ *RunConfig) {
			loss := p.Loss
			p.Loss = func(c *Call) (*G.Node, error) {
				n, err := loss(c)
				if !c.Training {
					c.Metric("other", n)
				}
				return n, err
			}
		}},
	} {
		p, cfg := regression(nil), cfg
		c.change(&p, &cfg)
		before := values(p.Params)
		resumed, err := trainerOf(t, p, cfg).Resume()
		if (c.want == "") != resumed || resumed != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("resumed %t, error %v, want %q", resumed, err, c.want)
		}
		if c.want != "" && !reflect.DeepEqual(values(p.Params), before) {
			t.Errorf("%s: the error has changed the weights", c.want)
		}
	}
}

// A state whose metrics have another number of values than the held-out curve, or other names, is refused.
func TestStateMetrics(t *testing.T) {
	cfg := runConfig(2)
	cfg.File = filepath.Join(t.TempDir(), "state")
	tr := trainerOf(t, regression(nil), cfg)
	if err := tr.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(map[string][]float64)
		want   string
	}{
		{func(map[string][]float64) {}, ""},
		{func(m map[string][]float64) { delete(m, "largest") }, `its curve has the metrics ["absolute"], want ["absolute" "largest"]`},
		{func(m map[string][]float64) { m["other"] = m["largest"] }, `its curve has the metrics ["absolute" "largest" "other"], want`},
		{func(m map[string][]float64) { m["largest"] = m["largest"][1:] }, "curve:metric:largest is not a vector of 2 elements"},
	} {
		curve := *tr.Curve()
		curve.Metrics = maps.Clone(curve.Metrics)
		c.change(curve.Metrics)
		if err := writeState(cfg.File, state{tr.Done(), tr.source.Position(), cfg.Settings, must(tr.record()), tr.batches}, curve, must(tr.tensors(true))); err != nil {
			t.Fatal(err)
		}
		if resumed, err := tr.Resume(); resumed != (c.want == "") || resumed != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("resumed %t, error %v, want %q", resumed, err, c.want)
		}
	}
}

// Each epoch of NewShuffled has every example once, in an order of its own, and a source continues from each position as it would have.
func TestShuffled(t *testing.T) {
	source := func(seed uint64) Source {
		return must(NewShuffled(7, 3, seed, func(of []int) (Batch, error) {
			return Batch{Values: map[string]*tensor.Dense{"of": tensorOf(slices.Clone(of), 3)}, Weight: 3}, nil
		}))
	}
	s := source(1)
	var drawn []int
	var places []Position
	for range 14 {
		places = append(places, s.Position())
		drawn = append(drawn, ints(must(s.Next()), "of")...)
	}
	orders := map[string]bool{}
	for epoch := range slices.Chunk(drawn, 7) {
		orders[fmt.Sprint(epoch)] = true
		if slices.Sort(epoch); !slices.Equal(epoch, []int{0, 1, 2, 3, 4, 5, 6}) {
			t.Errorf("an epoch has the examples %v", epoch)
		}
	}
	if len(orders) < 5 {
		t.Errorf("six epochs have %d orders", len(orders))
	}
	for i, at := range places {
		other := source(1)
		if err := other.Go(at); err != nil {
			t.Fatal(err)
		}
		fresh := source(1)
		for range i {
			must(fresh.Next())
		}
		if got, want := ints(must(other.Next()), "of"), ints(must(fresh.Next()), "of"); !slices.Equal(got, want) {
			t.Errorf("batch %d after Go is %v, want %v", i, got, want)
		}
	}
	for _, at := range []Position{{-1, 0}, {0, -1}, {2, 8}} {
		before := s.Position()
		if err := s.Go(at); err == nil || s.Position() != before {
			t.Errorf("Go(%v): error %v, position %v, want an error and %v", at, err, s.Position(), before)
		}
	}
	failing := must(NewShuffled(7, 3, 1, func([]int) (Batch, error) { return Batch{}, errDisk }))
	if _, err := failing.Next(); !errors.Is(err, errDisk) || failing.Position() != (Position{}) {
		t.Errorf("error %v at %v, want the error of the function and the beginning", err, failing.Position())
	}
	for _, c := range []struct{ examples, size int }{{0, 1}, {1, 0}, {math.MaxInt, 1}, {1, math.MaxInt}} {
		if _, err := NewShuffled(c.examples, c.size, 1, func([]int) (Batch, error) { return Batch{}, nil }); err == nil {
			t.Errorf("%d examples in batches of %d: no error", c.examples, c.size)
		}
	}
}

// A token batch is checked, and a model with the loss LMLoss sees the same loss as with New.
func TestTokenBatch(t *testing.T) {
	for _, c := range []struct {
		length              int
		ids, targets, start []int
		want                string
	}{
		{0, []int{1}, []int{1}, nil, "length is 0 and ids has 1 elements"},
		{2, []int{1}, []int{1}, nil, "length is 2 and ids has 1 elements, want at least 1 and a multiple of it"},
		{1, nil, nil, nil, "ids has 0 elements"},
		{1, []int{1}, nil, nil, "targets has 0 elements, want 1 as ids has"},
		{1, []int{1}, []int{1}, []int{1, 0}, "start has 2 elements, want 1"},
	} {
		if _, err := NewTokenBatch(c.length, c.ids, c.targets, c.start); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	lm := newLM(tensor.Float32, false)
	var losses []float64
	for _, start := range [][]int{nil, {1, 0, 0, 0}} {
		b := must(NewTokenBatch(4, []int{1, 2, 3, 4}, []int{2, 3, nn.Ignore, 5}, start))
		if b.Weight != 3 {
			t.Errorf("the weight is %v, want 3", b.Weight)
		}
		tr := trainerOf(t, Problem{Params: lm.Params(), Loss: LMLoss(lm), Data: NewSource(func(int) (Batch, error) { return b, nil })}, runConfig(1))
		losses = append(losses, must(tr.Evaluate([]Batch{b})))
	}
	if losses[0] != losses[1] {
		t.Errorf("the loss is %v without a start and %v with one at the beginning", losses[0], losses[1])
	}
	_, err := NewTrainer(Problem{Params: lm.Params(), Loss: LMLoss(nil), Data: NewSource(func(int) (Batch, error) {
		return NewTokenBatch(1, []int{1}, []int{1}, nil)
	})}, runConfig(1))
	if err == nil || !strings.Contains(err.Error(), "the model is missing") {
		t.Errorf("error %v, want one about the model", err)
	}
}
