package layer

import (
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/op"
)

// Linear is x·Wᵀ + bias: (batch, length, in) to (batch, length, out). Weights start uniform within ±1/√in.
type Linear struct {
	Base
	Weight *Param // "weight" (out, in)
	Bias   *Param // "bias" (out), or nil
}

// NewLinear returns a linear layer, without a bias unless WithBias asks for one.
func NewLinear(in, out int, opts ...Option) *Linear {
	l := new(Linear)
	o, err := collect("linear", opts, false, positive("linear", "in", in, "out", out))
	if err == nil {
		name, bound := Join(o.Name, "weight"), 1/math.Sqrt(float64(in))
		l.Weight = NewParam(name, o.New(Uniform(o.Rand(name), bound), out, in), true)
		l.params = Params{l.Weight}
		if o.Bias {
			name := Join(o.Name, "bias")
			l.Bias = NewParam(name, o.New(Uniform(o.Rand(name), bound), out), false)
			l.params = append(l.params, l.Bias)
		}
	}
	l.Init(nameOr(o.Name, "linear"), err, l.params...)
	return l
}

// Apply applies the layer to x (batch, length, in).
func (l *Linear) Apply(x *G.Node) (*G.Node, error) {
	if err := l.Use(x); err != nil {
		return nil, err
	}
	w, err := Effective(x.Graph(), l.Weight, l.Bias)
	if err != nil {
		return nil, err
	}
	return op.Linear(x, w[0], w[1])
}

// Fwd is Apply as golgi has it.
func (l *Linear) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }
