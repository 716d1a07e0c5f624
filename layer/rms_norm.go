package layer

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// RMSNorm scales each row of its input to a mean square of one, and multiplies it by a weight that starts at one.
type RMSNorm struct {
	Base
	Weight *Param // "weight" (channels)
	eps    float64
}

// RMSNormConfig configures an RMSNorm. A zero field stands for its default.
type RMSNormConfig struct {
	Channels int     // size of a row; required
	Eps      float64 // added to the mean of squares; 1e-5
}

// NewRMSNorm returns a norm.
func NewRMSNorm(cfg RMSNormConfig, opts ...Option) *RMSNorm {
	return newLayer("RMS norm", opts, []any{"channels", cfg.Channels}, func(l *RMSNorm, o build.Options) (params Params, err error) {
		if l.eps, err = epsOf(cfg.Eps); err != nil {
			return nil, err
		}
		l.Weight, _, params = scaleAndShift(o, cfg.Channels, false)
		return params, nil
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *RMSNorm) Err() error { return build.Err(l) }

// Apply applies the norm to x (batch, …, channels).
func (l *RMSNorm) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) { return op.RMSNorm(x, l.Weight.Node(x.Graph()), l.eps) })
}

// Fwd is Apply in the form of golgi's layers.
func (l *RMSNorm) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }
