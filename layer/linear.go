package layer

import (
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// Linear computes x·Wᵀ + bias, from (batch, …, in) to (batch, …, out). The weights start uniform within ±1/√in.
type Linear struct {
	Base
	Weight *Param // "weight" (out, in)
	Bias   *Param // "bias" (out), or nil
}

// LinearConfig configures a Linear.
type LinearConfig struct {
	In, Out int // required
	Bias    bool
}

// NewLinear returns a linear layer.
func NewLinear(cfg LinearConfig, opts ...Option) *Linear {
	return newLayer("linear", opts, []any{"in", cfg.In, "out", cfg.Out}, func(l *Linear, o build.Options) (params Params, err error) {
		l.Weight, l.Bias, params = affine(o, cfg.Bias, 1/math.Sqrt(float64(cfg.In)), cfg.Out, cfg.In)
		return params, nil
	})
}

// affine draws a weight of a shape and, if it is wanted, a bias for its first axis, both uniform within ±bound.
func affine(o build.Options, withBias bool, bound float64, shape ...int) (weight, bias *Param, params Params) {
	weight = draw(o, "weight", true, bound, shape...)
	if !withBias {
		return weight, nil, Params{weight}
	}
	bias = draw(o, "bias", false, bound, shape[0])
	return weight, bias, Params{weight, bias}
}

// draw draws a weight of a name, uniform within ±bound.
func draw(o build.Options, name string, decay bool, bound float64, shape ...int) *Param {
	name = build.Join(o.Name, name)
	return NewParam(name, o.New(build.Uniform(o.Rand(name), bound), shape...), decay)
}

// projection returns a linear layer that is a part of another layer.
func projection(o build.Options, name string, in, out int, bias bool) *Linear {
	return NewLinear(LinearConfig{In: in, Out: out, Bias: bias}, o.Part(name)...)
}

// Err returns what is wrong with the layer, or nil.
func (l *Linear) Err() error { return build.Err(l) }

// Apply applies the layer to x (batch, …, in).
func (l *Linear) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		s := build.Steps{Graph: x.Graph()}
		w := weights(&s, l.Weight, l.Bias)
		return s.Result(op.Linear(x, w[0], w[1]))
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *Linear) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }
