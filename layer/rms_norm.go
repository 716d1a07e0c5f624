package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/op"
)

// RMSNorm scales each row of its input to a mean square of one, times a weight that starts at one.
type RMSNorm struct {
	Base
	Weight *Param // "weight" (width)
	eps    float64
}

// NewRMSNorm returns a norm over rows of the given width.
func NewRMSNorm(width int, opts ...Option) *RMSNorm {
	l := new(RMSNorm)
	o, err := collect("RMS norm", opts, false, positive("RMS norm", "width", width))
	if err == nil && (!(o.Eps >= 0) || math.IsInf(o.Eps, 1)) {
		err = fmt.Errorf("layer: RMS norm: eps is %v, want a number that is not negative", o.Eps)
	}
	if err == nil {
		l.Weight = NewParam(Join(o.Name, "weight"), o.New(Constant(1), width), false)
		l.params = Params{l.Weight}
	}
	l.eps = o.Eps
	l.Init(nameOr(o.Name, "RMS norm"), err, l.params...)
	return l
}

// Apply applies the norm to x (batch, length, width).
func (l *RMSNorm) Apply(x *G.Node) (*G.Node, error) {
	if err := l.Use(x); err != nil {
		return nil, err
	}
	return op.RMSNorm(x, l.Weight.Node(x.Graph()), l.eps)
}

// Fwd is Apply as golgi has it.
func (l *RMSNorm) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }
