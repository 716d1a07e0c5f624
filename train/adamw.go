package train

import (
	"errors"
	"fmt"
	"math"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// AdamWConfig configures AdamW.
type AdamWConfig struct {
	LearnRate    float64  // required
	Beta1, Beta2 float64  // decay of the means of gradients and of squared gradients; 0.9 and 0.999 if zero
	Eps          float64  // added to the root of the mean of squares; 1e-8 if zero
	Decay        float64  // weight decay of the weights whose Param.Decay is true
	Clip         float64  // length to which a longer gradient, of all weights together, is scaled down; no limit if zero
	Schedule     Schedule // factor for the learn rate; 1 if nil
}

// AdamW is Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2) and bias
// correction (Kingma and Ba, "Adam", algorithm 1). It implements gorgonia.Solver for weights of float32 or float64, and computes in
// their type.
//
// Decay applies only to weights whose Param.Decay is true. A frozen weight does not change.
//
// To accumulate gradients, run the machine several times before a step: with gorgonia.BindDualValues each run adds to the gradients,
// and Step sets them to zero.
//
// The weights of a model on a device change on the device, in one launch, and their moments stay there.
//
// A step gives the same bits for any number of processors.
type AdamW struct {
	cfg    AdamWConfig
	all    []*moments
	of     map[uintptr]*moments // by the address of the weight
	steps  int
	norm   float64
	queued func(*cuda.Stream) // called with the device's stream, whose context is locked, when a step is queued there; then the gradients are gone even if the step fails. It may be nil
	among  *deviceExchange    // adds up the gradients of several GPUs; nil for one
	err    error              // of copying moments from the device, of SetSteps and of a step of Queue, for the next Step

	pending *pending // the step that Queue has queued, until its norm is known; then steps does not count it yet
}

var _ G.Solver = (*AdamW)(nil)

// moments holds the means of a weight's gradients and of their squares. They are nil until the weight is first trained.
type moments struct {
	param  *layer.Param
	own    []span // the elements that m and v belong to: all, but for a solver of a rank with shards
	m, v   *tensor.Dense
	device *deviceMoments // nil for a weight of the host
}

// NewAdamW returns a solver for weights. It needs memory for two numbers for each element of a weight that is not frozen.
//
// Errors: a field of the configuration out of its range; a weight that is not of float32 or float64, is a scalar, or is there twice.
func NewAdamW(params layer.Params, cfg AdamWConfig) (*AdamW, error) {
	return newAdamW(params, cfg, nil)
}

// newAdamW is NewAdamW for the spans of each weight that this rank has, or for all of them if own is nil.
func newAdamW(params layer.Params, cfg AdamWConfig, own [][]span) (*AdamW, error) {
	fill := func(field *float64, value float64) {
		if *field == 0 {
			*field = value
		}
	}
	fill(&cfg.Beta1, 0.9)
	fill(&cfg.Beta2, 0.999)
	fill(&cfg.Eps, 1e-8)
	for _, c := range []struct {
		name  string
		value float64
		ok    bool
		want  string
	}{
		{"LearnRate", cfg.LearnRate, cfg.LearnRate > 0, "a positive number"},
		{"Beta1", cfg.Beta1, cfg.Beta1 > 0 && cfg.Beta1 < 1, "a number between 0 and 1"},
		{"Beta2", cfg.Beta2, cfg.Beta2 > 0 && cfg.Beta2 < 1, "a number between 0 and 1"},
		{"Eps", cfg.Eps, cfg.Eps > 0, "a positive number"},
		{"Decay", cfg.Decay, cfg.Decay >= 0, "a number that is not negative"},
		{"Clip", cfg.Clip, cfg.Clip >= 0, "a number that is not negative"},
	} {
		if !c.ok || !finite(c.value) {
			return nil, fmt.Errorf("train: AdamW: %s is %v, want %s", c.name, c.value, c.want)
		}
	}
	s := &AdamW{cfg: cfg, of: map[uintptr]*moments{}}
	for i, p := range params {
		if p != nil && p.Narrow() != nil {
			return nil, fmt.Errorf("train: AdamW: %w", layer.Params(params).CheckWide())
		}
		if p == nil || p.Value == nil {
			return nil, fmt.Errorf("train: AdamW: weight %d is missing or has no value, want one that layer.NewParam or a layer made", i)
		}
		if dt := p.Value.Dtype(); dt != tensor.Float32 && dt != tensor.Float64 {
			return nil, fmt.Errorf("train: AdamW: %s is of %v, want float32 or float64", p.Name, dt)
		}
		if p.Value.IsScalar() {
			return nil, fmt.Errorf("train: AdamW: %s has no axes, want at least one", p.Name)
		}
		if s.of[p.Value.Uintptr()] != nil {
			return nil, fmt.Errorf("train: AdamW: %s is there twice", p.Name)
		}
		w := &moments{param: p, own: []span{{0, p.Value.Size()}}}
		if own != nil {
			w.own = own[i]
		}
		if p.Trained() {
			w.allocate()
		}
		s.all = append(s.all, w)
		s.of[p.Value.Uintptr()] = w
	}
	return s, nil
}

func (w *moments) allocate() {
	n, v := 0, w.param.Value
	for _, s := range w.own {
		n += s.to - s.from
	}
	if w.m != nil || n == 0 {
		return
	}
	shape := v.Shape()
	if n < v.Size() {
		shape = tensor.Shape{n}
	}
	w.m = tensor.New(tensor.WithShape(shape.Clone()...), tensor.Of(v.Dtype()))
	w.v = tensor.New(tensor.WithShape(shape.Clone()...), tensor.Of(v.Dtype()))
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// Steps returns the number of steps made. It waits for the step that Queue has queued.
func (s *AdamW) Steps() int {
	s.noteSettled()
	return s.steps
}

// noteSettled is settle. It keeps the error for the next Step, Queue or Wait.
func (s *AdamW) noteSettled() {
	if err := s.settle(); err != nil {
		s.err = errors.Join(s.err, err)
	}
}

// SetSteps sets the number of steps made. Use it after you have read saved moments into the tensors of Moments.
//
// If n is negative, the number stays, and the next Step returns an error.
func (s *AdamW) SetSteps(n int) {
	if n < 0 || n == math.MaxInt { // no step follows the largest
		s.err = errors.Join(s.err, fmt.Errorf("SetSteps was called with %d, want 0 to %d", n, math.MaxInt-1))
		return
	}
	s.noteSettled()
	s.steps = n
}

// Norm returns the length of the gradient of the last step, of all weights together, before clipping. It waits for the step that Queue has queued.
func (s *AdamW) Norm() float64 {
	s.noteSettled()
	return s.norm
}

// LearnRate returns the learn rate of a step, counted from 1.
func (s *AdamW) LearnRate(step int) float64 { return s.cfg.LearnRate * s.cfg.factor(step) }

func (c AdamWConfig) factor(step int) float64 {
	if c.Schedule == nil {
		return 1
	}
	return c.Schedule(step)
}

// Moment is a tensor of the solver's state. Its name is the weight's name with ".exp_avg" or ".exp_avg_sq".
type Moment struct {
	Name  string
	Value *tensor.Dense
}

// Moments returns the solver's own tensors, not copies, in the order of the weights. To save a solver, save them and Steps. To restore
// it, read them into the tensors of a new solver, and call SetSteps: it then continues as the old one would have.
//
// Moments on a device are copied to the host, and the next step copies them back. If the copy to the host fails, the next Step returns
// the error and changes nothing. What was written into the tensors is then lost, and later steps continue as if Moments had not been
// called.
func (s *AdamW) Moments() (all []Moment) {
	s.noteSettled()
	for _, w := range s.all {
		if w.device != nil {
			s.err = errors.Join(s.err, w.device.toHost())
		}
		if w.m != nil {
			all = append(all, Moment{w.param.Name + ".exp_avg", w.m}, Moment{w.param.Name + ".exp_avg_sq", w.v})
		}
	}
	return all
}

// copyError returns the errors of copies and of SetSteps since it was last called.
func (s *AdamW) copyError() error {
	err := s.err
	s.err = nil
	return err
}

// Step changes the weights by their gradients and sets the gradients to zero. It takes the nodes of some or all of the solver's
// weights:
//
//	solver.Step(gorgonia.NodesToValueGrads(params.Trainable().Nodes(g)))
//
// Errors: a value that is not a weight of the solver; a weight that is there twice or has no gradient; gradients that are not finite; a
// factor of the schedule that is negative or not finite. An error leaves the weights as they were.
//
// If Queue was called before, Step first does what Wait does. If that returns an error, so does Step, and it makes no step: the gradients stay for the next call.
func (s *AdamW) Step(model []G.ValueGrad) error { return s.step(model, nil, false) }

// Queue is Step for a program that does not want to wait for the device: if all weights are on one, Queue returns when the step is queued there, before the length of the gradient is known. So
// the device has work while the program begins the next step:
//
//	for ... {
//		vm.Reset()
//		if err := vm.RunAll(); err != nil { ... }
//		if err := solver.Queue(model); err != nil { ... }
//	}
//	if err := solver.Wait(); err != nil { ... }
//
// The weights and moments get the same bits as by Step. If the gradient is not finite, the weights, the moments and the number of steps stay as they were, and the next call of Queue, Step or Wait
// returns the error; Queue and Step then make no step. The gradients are set to zero in any case. Steps, Norm, SetSteps and Moments wait for the step; the weights can be read, saved and used at any time. At most one step
// is queued: Queue waits for the one before. If a weight is on the host, Queue is Step.
func (s *AdamW) Queue(model []G.ValueGrad) error { return s.step(model, nil, true) }

// Wait waits for the step that Queue has queued, if there is one. It returns the error of that step, or one that is kept for the next Step.
func (s *AdamW) Wait() error {
	if s == nil || s.of == nil {
		return errNoSolver
	}
	s.noteSettled()
	if err := s.copyError(); err != nil {
		return fmt.Errorf("train: AdamW: %w", err)
	}
	return nil
}

var errNoSolver = fmt.Errorf("train: AdamW: the solver is missing, want one that NewAdamW returned")

// made counts a step whose gradient has the length norm, or returns an error because it is not finite and so the step was not made.
func (s *AdamW) made(norm float64) error {
	if !finite(norm) {
		return diverged{fmt.Errorf("the gradient has length %v at step %d", norm, s.steps+1)}
	}
	s.norm = norm
	s.steps++
	return nil
}

// step is Step, or Queue with later. If squares is not nil, it is the sum of the squares of all gradients on the host.
func (s *AdamW) step(model []G.ValueGrad, squares *float64, later bool) error {
	if err := s.Wait(); err != nil {
		return err
	}
	pairs := make([]trained, 0, len(model))
	if f := s.cfg.factor(s.steps + 1); !(f >= 0) || math.IsInf(f, 1) {
		return fmt.Errorf("train: AdamW: the schedule's factor for step %d is %v, want a finite number of at least 0", s.steps+1, f)
	}
	for i, n := range model {
		if node, ok := n.(*G.Node); n == nil || ok && node == nil {
			return fmt.Errorf("train: AdamW: value %d is missing, want the node of a weight", i)
		}
		p := trained{value: n.Value(), stays: stays(n)}
		switch v := p.value.(type) {
		case *tensor.Dense:
			p.moments = s.of[v.Uintptr()]
		case *op.DeviceWeight:
			p.moments = s.of[v.Dense().Uintptr()]
		}
		if p.moments == nil {
			return fmt.Errorf("train: AdamW: value %d is not a weight of the solver", i)
		}
		if slices.ContainsFunc(pairs, func(q trained) bool { return q.moments == p.moments }) {
			return fmt.Errorf("train: AdamW: %s is there twice", p.param.Name)
		}
		var err error
		if p.grad, err = n.Grad(); err != nil {
			return fmt.Errorf("train: AdamW: %s has no gradient: %w", p.param.Name, err)
		}
		if !p.fits() {
			return fmt.Errorf("train: AdamW: %s of %v %v has a gradient of %v %v, want one like it, row by row in memory or on the device",
				p.param.Name, p.value.Dtype(), p.value.Shape(), p.grad.Dtype(), p.grad.Shape())
		}
		pairs = append(pairs, p)
	}
	var device []trained
	var single [][]float32
	var double [][]float64
	for _, p := range pairs {
		switch d, ok := p.grad.(*tensor.Dense); {
		case !ok:
			device = append(device, p)
		case !p.param.Trained() || squares != nil:
		case d.Dtype() == tensor.Float32:
			single = append(single, slice[float32](d))
		default:
			double = append(double, slice[float64](d))
		}
	}
	sum := kernel.SquareSum(single...) + kernel.SquareSum(double...)
	if squares != nil {
		sum = *squares
	}
	norm, err := s.deviceStep(device, sum, later && len(device) == len(pairs)) // before the host's weights, so that an error leaves all of them
	if err == nil && s.pending == nil {
		err = s.made(norm)
	}
	if err != nil {
		return fmt.Errorf("train: AdamW: %w", err)
	}
	if s.pending != nil {
		return nil
	}
	scale := 1.0
	if s.cfg.Clip > 0 && norm > s.cfg.Clip {
		scale = s.cfg.Clip / norm
	}
	step[float32](s, pairs, scale)
	step[float64](s, pairs, scale)
	return nil
}

// trained is a weight with its gradient: two tensors on the host, or a op.DeviceWeight and a op.DeviceTensor on a device.
type trained struct {
	*moments
	value, grad G.Value
	stays       bool // the gradient is not cleared
}

func (p trained) fits() bool {
	if p.grad == nil || p.grad.Dtype() != p.value.Dtype() || !p.grad.Shape().Eq(p.value.Shape()) {
		return false
	}
	switch v := p.value.(type) {
	case *tensor.Dense:
		d, ok := p.grad.(*tensor.Dense)
		return ok && plain(d) && plain(v)
	default:
		_, ok := p.grad.(*op.DeviceTensor)
		return ok
	}
}

func plain(d *tensor.Dense) bool {
	return !d.RequiresIterator() && d.DataOrder().IsRowMajor() && !d.DataOrder().IsTransposed()
}

func slice[T kernel.Float](d *tensor.Dense) []T {
	s, ok := operator.Elements[T](d)
	if !ok {
		panic(fmt.Sprintf("train: a tensor of %v", d.Dtype())) // fits has checked it
	}
	return s
}

// step changes the weights of the host that are of type T, and sets their gradients to zero. All of them are one job: a small model has many small weights.
func step[T kernel.Float](s *AdamW, pairs []trained, scale float64) {
	a := factors[T](s, s.steps, scale)
	var parts []kernel.AdamWPart[T]
	for _, p := range pairs {
		d, ok := p.grad.(*tensor.Dense)
		if !ok {
			continue
		}
		g, ok := operator.Elements[T](d)
		switch {
		case !ok:
		case !p.param.Trained():
			if !p.stays {
				clear(g)
			}
		default:
			p.allocate()
			keep, value, at := a.Keep, slice[T](p.param.Value), 0
			if !p.param.Decay {
				keep = 1
			}
			for _, own := range p.own {
				to := at + own.to - own.from
				parts = append(parts, kernel.AdamWPart[T]{
					Keep: keep, Stays: p.stays, W: value[own.from:own.to], G: g[own.from:own.to], M: slice[T](p.m)[at:to], V: slice[T](p.v)[at:to],
				})
				at = to
			}
			if at < len(g) && !p.stays {
				defer clear(g) // the parts of other ranks
			}
		}
	}
	a.Steps(parts)
}

// factors returns the factors of a step, counted from 1, for weights with decay.
func factors[T kernel.Float](s *AdamW, step int, scale float64) kernel.AdamW[T] {
	rate := s.LearnRate(step)
	return kernel.AdamW[T]{
		Scale: T(scale), Eps: T(s.cfg.Eps), Keep: T(1 - rate*s.cfg.Decay),
		Beta1: T(s.cfg.Beta1), Rest1: T(1 - s.cfg.Beta1), Beta2: T(s.cfg.Beta2), Rest2: T(1 - s.cfg.Beta2),
		Rate: T(rate / (1 - math.Pow(s.cfg.Beta1, float64(step)))),
		Root: T(1 / math.Sqrt(1-math.Pow(s.cfg.Beta2, float64(step)))),
	}
}
