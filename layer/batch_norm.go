package layer

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// BatchNorm gives each channel a mean of zero and a variance of one over the cells of all sequences of a batch, multiplies it by a weight that starts
// at one, and adds a bias that starts at zero. In training (WithTraining) mean and variance are those of the batch; otherwise they are the running
// ones, which are weights that are saved with the others but not trained.
//
// After a step, Params.UpdateStatistics moves the running mean and variance towards those of the batch: to (1 - Momentum) of themselves and Momentum
// of the batch's. As in PyTorch, the batch's variance divides by the number of cells n for the norm, and by n - 1 for the running one. If the
// running mean is frozen, training uses the running statistics too, and leaves them as they are.
type BatchNorm struct {
	Base
	Weight          *Param // "weight" (channels)
	Bias            *Param // "bias" (channels)
	RunningMean     *Param // "running_mean" (channels), a Statistic
	RunningVariance *Param // "running_var" (channels), a Statistic
	eps, momentum   float64
}

// BatchNormConfig configures a BatchNorm. A zero field stands for its default.
type BatchNormConfig struct {
	Channels int     // required
	Eps      float64 // added to the variance; 1e-5
	Momentum float64 // the share of a batch in the running statistics, at most 1; 0.1
}

// NewBatchNorm returns a norm.
func NewBatchNorm(cfg BatchNormConfig, opts ...Option) *BatchNorm {
	return newLayer("batch norm", opts, []any{"channels", cfg.Channels}, func(l *BatchNorm, o build.Options) (params Params, err error) {
		if l.eps, err = epsOf(cfg.Eps); err != nil {
			return nil, err
		}
		if l.momentum = build.OrDefault(cfg.Momentum, 0.1); !(l.momentum > 0 && l.momentum <= 1) {
			return nil, fmt.Errorf("momentum is %v, want more than 0 and at most 1, or 0 for the default", cfg.Momentum)
		}
		statistic := func(name string, start float64) *Param {
			p := NewParam(build.Join(o.Name, name), o.New(build.Constant(start), cfg.Channels), false)
			p.Statistic = true
			return p
		}
		l.Weight, l.Bias, params = scaleAndShift(o, cfg.Channels, true)
		l.RunningMean, l.RunningVariance = statistic("running_mean", 0), statistic("running_var", 1)
		return append(params, l.RunningMean, l.RunningVariance), nil
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *BatchNorm) Err() error { return build.Err(l) }

// Apply applies the norm to x (batch, …, channels). In training, the batch needs at least two cells.
func (l *BatchNorm) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	call, err := build.CallOf(opts)
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.Name(), err)
		}
		s := build.Steps{Graph: x.Graph()}
		w := weights(&s, l.Weight, l.Bias)
		if call.Step == nil || l.RunningMean.Frozen {
			return s.Result(op.BatchNormWith(x, w[0], w[1], l.RunningMean.Node(x.Graph()), l.RunningVariance.Node(x.Graph()), l.eps))
		}
		y, mean, variance, err := op.BatchNorm(x, w[0], w[1], l.eps)
		if err != nil {
			return s.Result(nil, err)
		}
		cells := float64(x.Shape().TotalSize() / mean.Shape().TotalSize())
		if cells < 2 {
			return nil, fmt.Errorf("%s: x has shape %v, one cell, want at least two in training", l.Name(), x.Shape())
		}
		l.RunningMean.observe(mean, l.momentum, 1)
		l.RunningVariance.observe(variance, l.momentum, cells/(cells-1))
		return s.Result(y, nil)
	})
}

// Fwd is Apply in the form of golgi's layers, without training.
func (l *BatchNorm) Fwd(x G.Input) G.Result {
	return build.Lift(x, func(x *G.Node) (*G.Node, error) { return l.Apply(x) })
}
