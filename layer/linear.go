package layer

import (
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/op"
)

// Linear computes x·Wᵀ + bias, from (batch, length, in) to (batch, length, out). The weights start uniform within ±1/√in.
type Linear struct {
	Base
	Weight *Param // "weight" (out, in)
	Bias   *Param // "bias" (out), or nil
}

// NewLinear returns a linear layer. It has a bias only with WithBias(true).
func NewLinear(in, out int, opts ...Option) *Linear {
	return build("linear", opts, false, []any{"in", in, "out", out}, func(l *Linear, o Options) (params Params, err error) {
		l.Weight, l.Bias, params = o.affine(1/math.Sqrt(float64(in)), out, in)
		return params, nil
	})
}

// affine draws a weight of a shape and, with WithBias, a bias for its first axis, both uniform within ±bound.
func (o Options) affine(bound float64, shape ...int) (weight, bias *Param, params Params) {
	draw := func(name string, decay bool, shape ...int) *Param {
		name = Join(o.Name, name)
		return NewParam(name, o.New(Uniform(o.Rand(name), bound), shape...), decay)
	}
	weight = draw("weight", true, shape...)
	if !o.Bias {
		return weight, nil, Params{weight}
	}
	bias = draw("bias", false, shape[0])
	return weight, bias, Params{weight, bias}
}

// Err returns what is wrong with the layer, or nil.
func (l *Linear) Err() error { return Err(l) }

// Apply applies the layer to x (batch, length, in).
func (l *Linear) Apply(x *G.Node) (*G.Node, error) {
	if err := Use(l, x); err != nil {
		return nil, err
	}
	w, err := Effective(x.Graph(), l.Weight, l.Bias)
	if err != nil {
		return nil, err
	}
	return op.Linear(x, w[0], w[1])
}

// Fwd is Apply in the form of golgi's layers.
func (l *Linear) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }
