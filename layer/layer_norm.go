package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// LayerNorm gives each row of its input a mean of zero and a variance of one, multiplies it by a weight that starts at one, and adds a bias that
// starts at zero.
type LayerNorm struct {
	Base
	Weight *Param // "weight" (channels)
	Bias   *Param // "bias" (channels), or nil
	eps    float64
}

// LayerNormConfig configures a LayerNorm. A zero field stands for its default.
type LayerNormConfig struct {
	Channels int     // size of a row; required
	Eps      float64 // added to the variance; 1e-5
	NoBias   bool
}

// NewLayerNorm returns a norm.
func NewLayerNorm(cfg LayerNormConfig, opts ...Option) *LayerNorm {
	return newLayer("layer norm", opts, []any{"channels", cfg.Channels}, func(l *LayerNorm, o build.Options) (params Params, err error) {
		if l.eps, err = epsOf(cfg.Eps); err != nil {
			return nil, err
		}
		l.Weight, l.Bias, params = scaleAndShift(o, cfg.Channels, !cfg.NoBias)
		return params, nil
	})
}

// epsOf returns the eps of a norm, 1e-5 for 0.
func epsOf(eps float64) (float64, error) {
	e := build.OrDefault(eps, 1e-5)
	if !(e > 0) || math.IsInf(e, 1) {
		return 0, fmt.Errorf("eps is %v, want a positive number, or 0 for the default", eps)
	}
	return e, nil
}

// scaleAndShift returns the weight of a norm, ones, and its bias, zeros, or nil without a bias.
func scaleAndShift(o build.Options, channels int, withBias bool) (weight, bias *Param, params Params) {
	weight = NewParam(build.Join(o.Name, "weight"), o.New(build.Constant(1), channels), false)
	if !withBias {
		return weight, nil, Params{weight}
	}
	bias = NewParam(build.Join(o.Name, "bias"), o.New(nil, channels), false)
	return weight, bias, Params{weight, bias}
}

// Err returns what is wrong with the layer, or nil.
func (l *LayerNorm) Err() error { return build.Err(l) }

// Apply applies the norm to x (batch, …, channels).
func (l *LayerNorm) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		s := build.Steps{Graph: x.Graph()}
		w := weights(&s, l.Weight, l.Bias)
		return s.Result(op.LayerNorm(x, w[0], w[1], l.eps))
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *LayerNorm) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }
