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

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// Config describes a training run of a language model. A zero field stands for the default.
type Config struct {
	Batch, Length int // sequences in a batch, and tokens in a sequence; required
	Steps         int // number of training steps; required
	Accumulate    int // batches whose gradients are added up in a step; 1 by default. The loss is the mean over the tokens of all of them

	Data    []Document // the documents to train on; required
	HeldOut []Document // the documents to evaluate on; none by default
	Seed    uint64     // seed of the order of the data

	AdamW AdamWConfig // LearnRate is required

	EvalEvery int    // steps between evaluations; the trainer also evaluates before the first step and after the last one
	File      string // file in which the run is saved, for Resume; by default it is not saved
	SaveEvery int    // steps between saves; the trainer also saves after the last step

	// Settings holds values by name that are saved with the run. Resume returns an error if they differ. Use it for everything that the
	// run depends on but that is not in this configuration, such as the flags of a program.
	Settings map[string]string

	// Report is called after each step.
	Report func(*Curve)
	// Options are the options of the model's calls, such as nn.WithRecompute.
	Options []nn.CallOption
}

// Trainer trains the weights of a language model that are not frozen (layer.Params.Trainable). One goroutine may use a Trainer at a
// time; a second one gets an error.
type Trainer struct {
	running, mu sync.Mutex // held by Run, and by each call that uses the graphs, the solver or the packer

	cfg     Config
	lm      *nn.LM
	params  layer.Params
	packer  *Packer
	heldOut []Batch
	solver  *AdamW
	train   *lossGraph
	scorer  *lossGraph
	nodes   []G.ValueGrad
	curve   Curve

	lock     *tensorfile.Lock  // lock on File, held from its first use on
	recorded map[string]string // see record
	broken   error             // error of a Resume that failed after it had changed weights
}

// lossGraph computes the loss of a batch.
type lossGraph struct {
	ids, targets, start, share *G.Node
	dt                         tensor.Dtype
	loss                       *G.Value // a pointer, so that the machine does not reference lossGraph: Go never collects a cycle with a finalizer in it
	vm                         G.VM
}

// New returns a trainer before its first step. Call Close when you no longer use it.
func New(lm *nn.LM, cfg Config) (*Trainer, error) {
	if lm == nil {
		return nil, fmt.Errorf("train: the model is missing, want one that nn.NewLM returned")
	}
	if err := lm.Err(); err != nil {
		return nil, err
	}
	if cfg.Accumulate == 0 {
		cfg.Accumulate = 1
	}
	for _, c := range []struct {
		name         string
		value, least int
	}{{"Batch", cfg.Batch, 1}, {"Length", cfg.Length, 1}, {"Steps", cfg.Steps, 1}, {"Accumulate", cfg.Accumulate, 1},
		{"EvalEvery", cfg.EvalEvery, 0}, {"SaveEvery", cfg.SaveEvery, 0}} {
		if c.value < c.least {
			return nil, fmt.Errorf("train: %s is %d, want at least %d", c.name, c.value, c.least)
		}
	}
	if err := batchBytes(cfg.Batch, cfg.Length).Times(cfg.Accumulate).Fits("the batches of a step"); err != nil {
		return nil, fmt.Errorf("train: Batch is %d, Length is %d, Accumulate is %d: %w", cfg.Batch, cfg.Length, cfg.Accumulate, err)
	}
	for _, c := range []struct {
		name string
		docs []Document
	}{{"Data", cfg.Data}, {"HeldOut", cfg.HeldOut}} {
		for i, d := range c.docs {
			for j, token := range d.Tokens {
				if token < 0 || token >= lm.Config().Vocab {
					return nil, fmt.Errorf("train: token %d of document %d of %s is %d, want 0 to %d, the model's vocabulary",
						j, i, c.name, token, lm.Config().Vocab-1)
				}
			}
		}
	}
	t := &Trainer{cfg: cfg, lm: lm, params: lm.Params().Trainable()}
	if len(t.params) == 0 {
		return nil, fmt.Errorf("train: all of the model's weights are frozen")
	}
	var err error
	if t.packer, err = NewPacker(cfg.Data, cfg.Batch, cfg.Length, cfg.Seed); err != nil {
		return nil, fmt.Errorf("%w (Config.Data)", err)
	}
	if len(cfg.HeldOut) > 0 {
		if t.heldOut, err = Pack(cfg.HeldOut, cfg.Batch, cfg.Length); err != nil {
			return nil, fmt.Errorf("%w (Config.HeldOut)", err)
		}
	}
	if t.solver, err = NewAdamW(t.params, cfg.AdamW); err != nil {
		return nil, err
	}
	if err := t.build(lm); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Trainer) build(lm *nn.LM) error {
	g, loss, train, err := newLossGraph(lm, t.cfg)
	if err != nil {
		return err
	}
	nodes := t.params.Nodes(g)
	if _, err := G.Grad(loss, nodes...); err != nil {
		return err
	}
	if err := op.CheckGraph(g); err != nil {
		return err
	}
	train.vm = G.NewTapeMachine(g, G.BindDualValues(nodes...))
	t.train, t.nodes = train, G.NodesToValueGrads(nodes)

	if g, _, t.scorer, err = newLossGraph(lm, t.cfg); err != nil {
		return err
	}
	if err := op.CheckGraph(g); err != nil {
		return err
	}
	t.scorer.vm = G.NewTapeMachine(g)
	return nil
}

// newLossGraph returns a graph of the loss times share, the weight of a batch in the mean over several batches.
func newLossGraph(lm *nn.LM, cfg Config) (*G.ExprGraph, *G.Node, *lossGraph, error) {
	g := G.NewGraph()
	input := func(name string) *G.Node {
		return G.NewMatrix(g, tensor.Int, G.WithShape(cfg.Batch, cfg.Length), G.WithName(name))
	}
	l := &lossGraph{ids: input("ids"), targets: input("targets"), start: input("start"), dt: lm.Params()[0].Value.Dtype()}
	l.share = G.NewScalar(g, l.dt, G.WithName("share"))
	loss, err := lm.Loss(l.ids, l.targets, append(slices.Clone(cfg.Options), nn.WithStart(l.start))...)
	if err != nil {
		return nil, nil, nil, err
	}
	if loss, err = G.Mul(loss, l.share); err != nil {
		return nil, nil, nil, err
	}
	l.loss = new(G.Value)
	G.Read(loss, l.loss)
	return g, loss, l, nil
}

// run returns the loss of a batch times its share.
func (l *lossGraph) run(b Batch, share float64) (float64, error) {
	shape := l.ids.Shape()
	for _, in := range []struct {
		node *G.Node
		data []int
	}{{l.ids, b.IDs}, {l.targets, b.Targets}, {l.start, b.Start}} {
		if err := G.Let(in.node, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(in.data))); err != nil {
			return 0, err
		}
	}
	var v any = share
	if l.dt == tensor.Float32 {
		v = float32(share)
	}
	if err := G.Let(l.share, v); err != nil {
		return 0, err
	}
	l.vm.Reset()
	if err := l.vm.RunAll(); err != nil {
		return 0, err
	}
	if nats, ok := (*l.loss).Data().(float32); ok {
		return float64(nats), nil
	}
	return (*l.loss).Data().(float64), nil
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
	return fmt.Errorf("train: %s: the trainer is closed, or not made by New", call)
}

// Close frees the graphs and their values, and releases the lock on Config.File. After Close, Curve, Done and Tokens keep their values. All other
// calls, a second Close included, return an error.
func (t *Trainer) Close() error {
	if err := t.enter("close"); err != nil {
		return err
	}
	defer t.mu.Unlock()
	err := errors.Join(t.train.vm.Close(), t.scorer.vm.Close())
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

// Tokens returns the number of tokens in a step: Batch · Length · Accumulate.
func (t *Trainer) Tokens() int {
	if t == nil {
		return 0
	}
	return t.cfg.Accumulate * t.cfg.Batch * t.cfg.Length
}

// Evaluate returns the mean loss of batches, in nats per token. The batches must have the trainer's batch and length, as Pack makes them.
func (t *Trainer) Evaluate(batches []Batch) (float64, error) {
	if err := t.enter("evaluate"); err != nil {
		return 0, err
	}
	defer t.mu.Unlock()
	if t.broken != nil {
		return 0, fmt.Errorf("train: %w", t.broken)
	}
	sum, learned := 0.0, 0
	for i, b := range batches {
		if err := b.check(t.cfg.Batch * t.cfg.Length); err != nil {
			return 0, fmt.Errorf("train: evaluate: batch %d: %w", i, err)
		}
		loss, err := t.scorer.run(b, 1)
		if err != nil {
			return 0, err
		}
		sum += loss * float64(b.Learned)
		learned += b.Learned
	}
	if learned == 0 {
		return 0, fmt.Errorf("train: evaluate: none of %d batches has a token to learn", len(batches))
	}
	return sum / float64(learned), nil
}

// Run trains until the last step. If the context ends, Run finishes the current step, saves the run, and returns the context's error. A loss or
// gradient that is not finite is an error as well; the last saved file stays as it is.
func (t *Trainer) Run(ctx context.Context) error {
	if err := t.enter("run"); err != nil {
		return err
	}
	err := t.ready()
	t.mu.Unlock() // Report may use the trainer between steps
	if !t.running.TryLock() {
		return fmt.Errorf("train: run: the trainer runs already")
	}
	defer t.running.Unlock()
	if err != nil {
		return fmt.Errorf("train: %w", err)
	}
	if ctx == nil {
		return fmt.Errorf("train: run: the context is missing, want one such as context.Background()")
	}
	if len(t.curve.HeldOut) == 0 {
		if err := t.evaluate(); err != nil {
			return err
		}
	}
	for t.Done() < t.cfg.Steps {
		if err := ctx.Err(); err != nil {
			return errors.Join(t.Save(), err)
		}
		if err := t.step(); err != nil {
			return err
		}
		done, last := t.Done(), t.Done() == t.cfg.Steps
		if last || t.cfg.EvalEvery > 0 && done%t.cfg.EvalEvery == 0 {
			if err := t.evaluate(); err != nil {
				return err
			}
		}
		if last || t.cfg.SaveEvery > 0 && done%t.cfg.SaveEvery == 0 {
			if err := t.Save(); err != nil {
				return err
			}
		}
		if t.cfg.Report != nil {
			t.cfg.Report(&t.curve)
		}
	}
	return nil
}

func (t *Trainer) evaluate() error {
	if t.heldOut == nil {
		return nil
	}
	loss, err := t.Evaluate(t.heldOut)
	if err != nil {
		return err
	}
	t.curve.HeldOut = append(t.curve.HeldOut, Point{t.Done(), loss})
	return t.finite(loss)
}

// finite returns an error if a loss is NaN or infinite.
func (t *Trainer) finite(loss float64) error {
	if math.IsNaN(loss) || math.IsInf(loss, 0) {
		return fmt.Errorf("train: the loss is %v at step %d: the learn rate of %v is perhaps too high", loss, t.Done()+1, t.cfg.AdamW.LearnRate)
	}
	return nil
}

// step makes a training step. After an error the trainer is as it was before.
func (t *Trainer) step() (err error) {
	if err := t.enter("step"); err != nil {
		return err
	}
	defer t.mu.Unlock()
	at := t.packer.Position()
	defer func() {
		if err != nil {
			t.clearGradients() // of the batches that have run
			err = errors.Join(err, t.packer.Go(at))
		}
	}()
	batches, learned := make([]Batch, t.cfg.Accumulate), 0
	for i := range batches {
		batches[i] = t.packer.Next()
		learned += batches[i].Learned
	}
	loss := 0.0
	for _, b := range batches {
		part, err := t.train.run(b, float64(b.Learned)/float64(learned))
		if err != nil {
			return err
		}
		loss += part
	}
	if err := t.finite(loss); err != nil {
		return err
	}
	if err := t.solver.Step(t.nodes); err != nil {
		return err
	}
	t.curve.Training = append(t.curve.Training, Point{t.Done(), loss})
	return nil
}

func (t *Trainer) clearGradients() {
	for _, n := range t.nodes {
		if grad, err := n.Grad(); err == nil && grad != nil { // there is no gradient before the first step
			grad.(tensor.Tensor).Zero()
		}
	}
}

// tensors returns the trained weights and the solver's moments. It copies them from the device first.
func (t *Trainer) tensors() (all []Moment, err error) {
	if err := t.params.ToHost(); err != nil {
		return nil, err
	}
	for _, p := range t.params {
		all = append(all, Moment{p.Name, p.Value})
	}
	all = append(all, t.solver.Moments()...)
	return all, t.solver.copyError()
}
