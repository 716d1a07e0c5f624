package layer

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// InstanceNorm gives each channel of each sequence a mean of zero and a variance of one over the cells of the grid. With Affine, it then multiplies
// by a weight that starts at one and adds a bias that starts at zero.
type InstanceNorm struct {
	Base
	Weight *Param // "weight" (channels), or nil
	Bias   *Param // "bias" (channels), or nil
	eps    float64
}

// InstanceNormConfig configures an InstanceNorm. A zero field stands for its default.
type InstanceNormConfig struct {
	Channels int     // required
	Eps      float64 // added to the variance; 1e-5
	Affine   bool    // with weight and bias
}

// NewInstanceNorm returns a norm.
func NewInstanceNorm(cfg InstanceNormConfig, opts ...Option) *InstanceNorm {
	return newLayer("instance norm", opts, []any{"channels", cfg.Channels}, func(l *InstanceNorm, o build.Options) (params Params, err error) {
		if l.eps, err = epsOf(cfg.Eps); err == nil && cfg.Affine {
			l.Weight, l.Bias, params = scaleAndShift(o, cfg.Channels, true)
		}
		return params, err
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *InstanceNorm) Err() error { return build.Err(l) }

// Apply applies the norm to x (batch, grid…, channels).
func (l *InstanceNorm) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		s := build.Steps{Graph: x.Graph()}
		w := weights(&s, l.Weight, l.Bias)
		return s.Result(op.InstanceNorm(x, w[0], w[1], l.eps))
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *InstanceNorm) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }
