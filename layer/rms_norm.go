package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/op"
)

// RMSNorm scales each row of its input to a mean square of one, and multiplies it by a weight that starts at one.
type RMSNorm struct {
	Base
	Weight *Param // "weight" (width)
	eps    float64
}

// NewRMSNorm returns a norm of rows of the given width.
func NewRMSNorm(width int, opts ...Option) *RMSNorm {
	return build("RMS norm", opts, false, []any{"width", width}, func(l *RMSNorm, o Options) (Params, error) {
		if !(o.Eps >= 0) || math.IsInf(o.Eps, 1) {
			return nil, fmt.Errorf("eps is %v, want a number that is not negative", o.Eps)
		}
		l.eps = o.Eps
		l.Weight = NewParam(Join(o.Name, "weight"), o.New(Constant(1), width), false)
		return Params{l.Weight}, nil
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *RMSNorm) Err() error { return Err(l) }

// Apply applies the norm to x (batch, length, width).
func (l *RMSNorm) Apply(x *G.Node) (*G.Node, error) {
	if err := Use(l, x); err != nil {
		return nil, err
	}
	return op.RMSNorm(x, l.Weight.Node(x.Graph()), l.eps)
}

// Fwd is Apply in the form of golgi's layers.
func (l *RMSNorm) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }
