package train

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
)

// RunConfig describes how a Trainer trains. A zero field stands for the default.
type RunConfig struct {
	Steps      int // number of training steps; required
	Accumulate int // batches whose gradients are added up in a step; 1 by default. The loss is their mean, by their weights

	AdamW AdamWConfig // LearnRate is required

	EvalEvery int    // steps between evaluations; the trainer also evaluates before the first step and after the last one
	File      string // file in which the run is saved, for Resume; by default it is not saved
	SaveEvery int    // steps between saves; the trainer also saves after the last step

	// Settings holds values by name that are saved with the run. Resume returns an error if they differ. Use it for everything that the
	// run depends on and that is neither here nor a weight: the loss, the seed and the source of the data, the flags of a program.
	Settings map[string]string

	// Group is the processes that train together, as dist.Join returned it; nil for this one alone. Each has the same problem and configuration, and makes the
	// same calls of the trainer. In a step each rank takes the gradients of Accumulate batches of its own: rank 0 the first ones, rank 1 the next ones. The step
	// is that of one process that accumulates them all, within rounding. Running statistics become the mean of those of the ranks. HeldOut is shared among the ranks. Rank 0 alone reads and writes File.
	Group *dist.Group
	// Shard makes each rank keep the moments of its share of the weights only (ZeRO, stage 1). The steps have the same bits.
	Shard bool
	// Segments says that the batches of the ranks are parts of the same ones, which Data makes and between which Loss connects the layers (nn.WithSegments). Each rank
	// then reads every batch, and HeldOut has parts too.
	Segments bool

	// Report is called after each step; with a Group on rank 0 only.
	Report func(*Curve)
	// Trace records what the time of Run goes to; by default nothing does. With a Group all ranks have one, or none.
	Trace *Trace
}

// field is a number of a configuration with its smallest value.
type field struct {
	name         string
	value, least int
}

func atLeast(fields ...field) error {
	for _, f := range fields {
		if f.value < f.least {
			return fmt.Errorf("train: %s is %d, want at least %d", f.name, f.value, f.least)
		}
	}
	return nil
}

// complete fills in defaults, and returns an error if a number is out of its range.
func (c *RunConfig) complete() error {
	if c.Accumulate == 0 {
		c.Accumulate = 1
	}
	if c.Group.Size() == 1 {
		c.Shard, c.Segments = false, false
	}
	return atLeast(field{"Steps", c.Steps, 1}, field{"Accumulate", c.Accumulate, 1}, field{"EvalEvery", c.EvalEvery, 0}, field{"SaveEvery", c.SaveEvery, 0})
}

// Trainer trains the weights of a model that are not frozen (layer.Params.Trainable). New makes one for a language model, NewTrainer for
// any loss. One goroutine may use a Trainer at a time; a second one gets an error.
type Trainer struct {
	running, mu sync.Mutex // held by Run, and by each call that uses the graphs, the solver or the source

	cfg      RunConfig
	all      layer.Params // with the frozen weights
	params   layer.Params // without them
	source   Source
	inputs   []input // of every batch to train on
	scored   []input // of every batch to evaluate
	heldOut  []Batch
	solver   *AdamW
	exchange *exchange                  // nil for one process
	cut      func(Batch) (Batch, error) // returns this rank's part of a batch; nil if it is the whole one
	activity activity
	met      bool     // the ranks have compared what they train
	whole    []Moment // the moments of all ranks, on rank 0 while it saves or resumes
	train    *lossGraph
	scorer   *lossGraph
	nodes    []G.ValueGrad
	tokens   int
	batches  int // that the run has trained on, on all ranks; see Call.Step
	curve    Curve
	describe func() map[string]string // describes the model and the data, for record

	lock     *tensorfile.Lock  // lock on File, held from its first use on
	recorded map[string]string // see record
	broken   error             // error of a Resume that failed after it had changed weights
}

// NewTrainer returns a trainer before its first step. Call Close when you no longer use it.
//
// It reads the first batch of the data, and builds the loss for inputs of its shapes and types. Every later batch must have the same.
//
// Errors: a field of the problem or the configuration that is missing or out of its range; the errors of the loss and the source; a
// weight that the loss does not depend on; a batch of HeldOut unlike the first batch.
func NewTrainer(p Problem, cfg RunConfig) (*Trainer, error) { return makeTrainer(p, cfg, nil) }

// makeTrainer is NewTrainer for evaluations on batches like those of another source, or like the first one of the problem's if evaluated is nil.
func makeTrainer(p Problem, cfg RunConfig, evaluated Source) (*Trainer, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := p.check(cfg.File != ""); err != nil {
		return nil, err
	}
	first, err := firstBatch(p.Data)
	if err != nil {
		return nil, err
	}
	t := &Trainer{cfg: cfg, all: p.Params, params: p.Params.Trainable(), source: p.Data, heldOut: p.HeldOut}
	if t.inputs, err = first.inputs(); err == nil {
		err = first.check(t.inputs)
	}
	if err != nil {
		return nil, fmt.Errorf("train: the first batch: %w", err)
	}
	t.scored = t.inputs
	if evaluated != nil {
		b, err := firstBatch(evaluated)
		if err != nil {
			return nil, err
		}
		if t.scored, err = b.inputs(); err != nil {
			return nil, fmt.Errorf("train: the first batch: %w", err)
		}
	}
	if err := bytesOf(t.inputs).Times(cfg.Accumulate).Fits("the batches of a step"); err != nil {
		return nil, fmt.Errorf("train: Accumulate is %d: %w", cfg.Accumulate, err)
	}
	for i, b := range p.HeldOut {
		if err := b.check(t.scored); err != nil {
			return nil, fmt.Errorf("train: batch %d of HeldOut: %w", i, err)
		}
	}
	runs := 0
	if cfg.Group.Size() == 1 {
		runs = cfg.Accumulate
	}
	if t.train, _, err = newLossGraph(p, t.inputs, true, runs); err != nil {
		return nil, err
	}
	if t.scorer, _, err = newLossGraph(p, t.scored, false, 0); err != nil {
		return nil, errors.Join(err, t.train.vm.Close())
	}
	var own [][]span
	if cfg.Group.Size() > 1 {
		early := slices.Clone(t.train.grads)
		var few *rows
		if cfg.Accumulate == 1 && !cfg.Segments {
			few = fewRows(early, cfg.Group.Size())
		}
		if t.train.arrivals, err = watch(early); err != nil {
			return nil, errors.Join(err, t.train.vm.Close(), t.scorer.vm.Close())
		}
		if cfg.Segments { // the ranks have other graphs: the first one receives no states, and the last one sends none
			t.train.arrivals.align()
		}
		t.exchange = newExchange(cfg.Group, t.params, t.train.arrivals, cfg.Shard)
		t.exchange.rows = few
		if cfg.Shard {
			own = t.exchange.mine
		}
	}
	if t.solver, err = newAdamW(t.params, cfg.AdamW, own); err != nil {
		return nil, errors.Join(err, t.train.vm.Close(), t.scorer.vm.Close())
	}
	t.nodes = t.train.values
	if cfg.File != "" || t.exchange != nil {
		t.describe = describeBatches(first, p.HeldOut)
	}
	return t, nil
}

// firstBatch returns the next batch of a source, and leaves the source where it is.
func firstBatch(s Source) (Batch, error) {
	at := s.Position()
	b, err := s.Next()
	if err := errors.Join(err, s.Go(at)); err != nil {
		return b, fmt.Errorf("train: the first batch: %w", err)
	}
	return b, nil
}

// enter locks the trainer for a call. If it returns nil, the caller must call t.mu.Unlock.
func (t *Trainer) enter(call string) error {
	switch {
	case t == nil:
	case !t.mu.TryLock():
		return fmt.Errorf("train: %s: the trainer is in use by another goroutine", call)
	case t.train != nil:
		return nil
	default:
		t.mu.Unlock()
	}
	return fmt.Errorf("train: %s: the trainer is closed, or not made by New or NewTrainer", call)
}

// Close frees the graphs and their values, and releases the lock on Config.File. After Close, Curve, Done and Tokens keep their values. All other
// calls, a second Close included, return an error.
func (t *Trainer) Close() error {
	if err := t.enter("close"); err != nil {
		return err
	}
	defer t.mu.Unlock()
	err := errors.Join(t.exchange.close(), t.train.vm.Close(), t.scorer.vm.Close())
	t.train, t.scorer, t.nodes = nil, nil, nil
	if t.lock != nil {
		err = errors.Join(err, t.lock.Release())
		t.lock = nil
	}
	return err
}

// Curve returns the losses so far.
func (t *Trainer) Curve() *Curve {
	if t == nil {
		return new(Curve)
	}
	return &t.curve
}

// Done returns the number of steps made.
func (t *Trainer) Done() int {
	if t == nil || t.solver == nil {
		return 0
	}
	return t.solver.Steps()
}

// Tokens returns the number of tokens in a step of a language model: Batch · Length · Accumulate. It is 0 for a trainer of NewTrainer.
func (t *Trainer) Tokens() int {
	if t == nil {
		return 0
	}
	return t.tokens
}

// Evaluate returns the mean loss over batches, by their weights; for a language model in nats per token. The batches must have the shapes
// and types of the training batches, as those of Pack do. With a Group all ranks call it with the same batches, and share the work.
func (t *Trainer) Evaluate(batches []Batch) (float64, error) {
	means, err := t.measureWhole(batches)
	return means[theLoss], err
}

// Measure returns the means of the metrics of the loss (Call.Metric) over batches, by name. It has the errors of Evaluate.
func (t *Trainer) Measure(batches []Batch) (map[string]float64, error) {
	means, err := t.measureWhole(batches)
	delete(means, theLoss)
	return means, err
}

func (t *Trainer) measureWhole(batches []Batch) (map[string]float64, error) {
	if t == nil || t.cut == nil {
		return t.measure(batches)
	}
	parts := make([]Batch, len(batches))
	for i, b := range batches {
		var err error
		if parts[i], err = t.cut(b); err != nil {
			return nil, err
		}
	}
	return t.measure(parts)
}

// shares returns the number of ranks that read different batches.
func (t *Trainer) shares() int {
	if t.cfg.Segments {
		return 1
	}
	return t.cfg.Group.Size()
}

func (t *Trainer) measure(batches []Batch) (map[string]float64, error) {
	if err := t.enter("evaluate"); err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	if t.broken != nil {
		return nil, fmt.Errorf("train: %w", t.broken)
	}
	if err := t.meet(); err != nil {
		return nil, t.cfg.Group.Fail(fmt.Errorf("train: %w", err))
	}
	means, err := t.scorer.measure(batches, t.scored, t.cfg.Group, t.cfg.Segments)
	return means, t.cfg.Group.Fail(err)
}

// Run trains until the last step. If the context ends, Run finishes the current step, saves the run, and returns the context's error. If it cannot be saved, the error is both
// that of the save and the context's. A loss or gradient that is not finite is an error as well; the last saved file stays as it is.
//
// With a Group all ranks call Run. If the context of one ends, or one has an error, Run returns on all of them, and the error names the rank. After another error than
// a context's, the group is of no further use.
func (t *Trainer) Run(ctx context.Context) error {
	if err := t.enter("run"); err != nil {
		return err
	}
	err := t.ready()
	if ctx == nil {
		err = fmt.Errorf("run: the context is missing, want one such as context.Background()")
	}
	if err == nil {
		err = t.meet()
	}
	t.mu.Unlock() // Report may use the trainer between steps
	if !t.running.TryLock() {
		return fmt.Errorf("train: run: the trainer runs already")
	}
	defer t.running.Unlock()
	if err != nil {
		return t.cfg.Group.Fail(fmt.Errorf("train: %w", err))
	}
	var stopped error
	if err = t.cfg.Trace.start(t.cfg.Group); err == nil {
		stopped, err = t.run(ctx)
		err = errors.Join(err, t.cfg.Trace.stop(t.cfg.Group, err == nil))
	}
	if err != nil {
		return errors.Join(t.cfg.Group.Fail(err), t.exchange.close())
	}
	return stopped
}

// run returns why it has stopped before the last step if a context has ended, which all ranks know, or an error, which others may not know.
func (t *Trainer) run(ctx context.Context) (stopped, err error) {
	defer t.watch()()
	trace := t.cfg.Trace
	trace.begin(evaluating)
	if len(t.curve.HeldOut) == 0 {
		if err := t.evaluate(); err != nil {
			return nil, err
		}
	}
	for t.Done() < t.cfg.Steps {
		trace.begin(waiting)
		if stopped, err = t.ended(ctx); err != nil {
			return nil, err
		}
		if stopped != nil {
			trace.begin(saving)
			if err := t.Save(); err != nil {
				return nil, errors.Join(err, stopped)
			}
			return stopped, nil
		}
		if err := t.step(); err != nil {
			return nil, err
		}
		done, last := t.Done(), t.Done() == t.cfg.Steps
		if last || t.cfg.EvalEvery > 0 && done%t.cfg.EvalEvery == 0 {
			trace.begin(evaluating)
			if err := t.evaluate(); err != nil {
				return nil, err
			}
		}
		if last || t.cfg.SaveEvery > 0 && done%t.cfg.SaveEvery == 0 {
			trace.begin(saving)
			if err := t.Save(); err != nil {
				return nil, err
			}
		}
		if t.cfg.Report != nil && t.cfg.Group.Rank() == 0 {
			trace.begin(reporting)
			t.doing("in Report after step %d", done)
			t.cfg.Report(&t.curve)
		}
	}
	return nil, nil
}

func (t *Trainer) evaluate() error {
	if len(t.heldOut) == 0 {
		return nil
	}
	means, err := t.measure(t.heldOut)
	if err != nil {
		return err
	}
	loss := means[theLoss]
	t.curve.HeldOut = append(t.curve.HeldOut, Point{t.Done(), loss})
	for name := range means {
		if name != theLoss {
			if t.curve.Metrics == nil {
				t.curve.Metrics = map[string][]float64{}
			}
			t.curve.Metrics[name] = append(t.curve.Metrics[name], means[name])
		}
	}
	return t.finite(loss)
}

// ErrDiverged is in the errors of a loss or a gradient that is not finite. The learn rate is perhaps too high.
var ErrDiverged = errors.New("the training has diverged")

// diverged is an error that is ErrDiverged without its words.
type diverged struct{ error }

func (d diverged) Is(target error) bool { return target == ErrDiverged }

// finite returns an error if a loss is NaN or infinite.
func (t *Trainer) finite(loss float64) error {
	if math.IsNaN(loss) || math.IsInf(loss, 0) {
		return diverged{fmt.Errorf("train: the loss is %v at step %d: the learn rate of %v is perhaps too high", loss, t.Done()+1, t.cfg.AdamW.LearnRate)}
	}
	return nil
}

// step makes a training step. After an error, or a panic of the source, the trainer is as it was before, but for an error that says that the step is made.
func (t *Trainer) step() (err error) {
	if err := t.enter("step"); err != nil {
		return err
	}
	defer t.mu.Unlock()
	restore := func() error { return nil }
	if t.cfg.Accumulate > 1 { // with one batch they change only when the step is made
		if restore, err = keepStatistics(t.all); err != nil {
			return fmt.Errorf("train: step %d: %w", t.Done()+1, err)
		}
	}
	at, made := t.source.Position(), false
	defer func() {
		if !made {
			t.clearGradients() // of the batches that have run
			t.all.ForgetStatistics()
			err = errors.Join(err, restore(), t.source.Go(at))
		}
	}()
	t.doing("reading the batches of step %d", t.Done()+1)
	t.cfg.Trace.begin(loading)
	group := t.cfg.Group
	batches, before := make([]Batch, t.cfg.Accumulate), group.Rank()%t.shares()*t.cfg.Accumulate
	if err := skip(t.source, before); err != nil {
		return fmt.Errorf("train: step %d: the batches of other ranks: %w", t.Done()+1, err)
	}
	for i := range batches {
		if batches[i], err = t.source.Next(); err == nil {
			err = batches[i].check(t.inputs)
		}
		if err != nil {
			return fmt.Errorf("train: batch %d of step %d: %w", i, t.Done()+1, err)
		}
	}
	if err := skip(t.source, (t.shares()-1)*t.cfg.Accumulate-before); err != nil {
		return fmt.Errorf("train: step %d: the batches of other ranks: %w", t.Done()+1, err)
	}
	t.lookAhead()
	t.cfg.Trace.begin(waiting)
	sum, err := total(batches, group)
	if err != nil {
		return fmt.Errorf("train: step %d: %w", t.Done()+1, err)
	}
	loss := 0.0
	t.cfg.Trace.begin(computing)
	for i, b := range batches {
		t.doing("forward and backward pass of batch %d of step %d", i, t.Done()+1)
		run := func() error {
			return t.train.run(b, b.Weight/sum, t.batches+before+i)
		}
		if t.exchange != nil {
			err = t.addUp(i, run)
		} else {
			err = run()
		}
		if err != nil {
			return err
		}
		if i < len(batches)-1 {
			err = t.all.UpdateStatistics()
		}
		if err != nil {
			return fmt.Errorf("train: step %d: %w", t.Done()+1, err)
		}
		loss += t.train.result(theLoss)
	}
	t.cfg.Trace.begin(waiting)
	if loss, err = sumOver(group, loss); err != nil {
		return err
	}
	if err := t.finite(loss); err != nil {
		return err
	}
	if err := t.solve(); err != nil {
		return err
	}
	t.curve.Training = append(t.curve.Training, Point{t.Done(), loss})
	t.batches += t.shares() * t.cfg.Accumulate
	made = true // the weights have moved
	if err := t.all.UpdateStatistics(); err != nil {
		return fmt.Errorf("train: step %d is made, but for its running statistics: %w", t.Done(), err)
	}
	return t.meanStatistics()
}

// lookAhead makes the next batch while this step runs, and its inputs are copied to a device when the step is queued there, before its end. Then the device has the work of the
// next step when it has done this one (cuda/ahead.go).
func (t *Trainer) lookAhead() {
	t.solver.queued = nil
	source, ok := t.source.(*early)
	if !ok || t.train.onDevice.None() || t.exchange != nil || t.cfg.Accumulate > 1 || len(t.all.Statistics()) > 0 {
		return
	}
	source.prepare()
	done := t.Done() + 1
	if done == t.cfg.Steps || t.cfg.EvalEvery > 0 && done%t.cfg.EvalEvery == 0 || t.cfg.SaveEvery > 0 && done%t.cfg.SaveEvery == 0 {
		return // something else uses the device before the next step
	}
	t.solver.queued = func(s *cuda.Stream) {
		b := source.wait()
		if b.err != nil || b.Weight == 0 || b.check(t.inputs) != nil { // an error of the next step
			return
		}
		if t.train.set(b.Batch, 1, t.batches+1) == nil {
			_ = t.train.onDevice.Upload(s) // the next step tries it again
		}
	}
}

// keepStatistics returns a function that writes the values that the running statistics have now.
func keepStatistics(all layer.Params) (restore func() error, err error) {
	statistics := all.Statistics()
	if err := statistics.ToHost(); err != nil {
		return nil, err
	}
	values := make([]*tensor.Dense, len(statistics))
	for i, p := range statistics {
		values[i] = p.Value.Clone().(*tensor.Dense)
	}
	return func() error {
		for i, p := range statistics {
			if err := tensor.Copy(p.Value, values[i]); err != nil {
				return err
			}
		}
		statistics.ValuesChanged()
		return nil
	}, nil
}

func (t *Trainer) clearGradients() {
	for _, n := range t.nodes {
		if stays(n) {
			continue
		}
		if grad, err := n.Grad(); err == nil && grad != nil { // there is no gradient before the first step
			grad.(tensor.Tensor).Zero()
		}
	}
}

// tensors returns the trained weights, the running statistics and the solver's moments. It copies them from the device first. With shards, the moments are
// of all ranks on rank 0, and none on the others: with their values if gather is true, which is a call of the group, else zeros to read into.
func (t *Trainer) tensors(gather bool) (all []Moment, err error) {
	saved := slices.Concat(t.params, t.all.Statistics())
	if err := saved.ToHost(); err != nil {
		return nil, err
	}
	for _, p := range saved {
		all = append(all, Moment{p.Name, p.Value})
	}
	switch {
	case !t.cfg.Shard:
		all = append(all, t.solver.Moments()...)
		return all, t.solver.copyError()
	case gather:
		t.whole, err = t.gatherMoments()
	default:
		t.whole = t.wholeMoments()
	}
	return append(all, t.whole...), err
}
