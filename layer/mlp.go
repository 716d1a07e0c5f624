package layer

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// MLP mixes the channels of each cell: fc2(f(fc1(x))), from (batch, …, channels) to (batch, …, out). It is the MLP of Transformers and of VMamba.
type MLP struct {
	Base
	FC1, FC2   *Linear // "fc1" (hidden, channels), "fc2" (out, hidden)
	activation op.Activation
}

// MLPConfig configures an MLP. A zero field stands for its default.
type MLPConfig struct {
	Channels   int           // required
	Hidden     int           // channels inside; 4·Channels
	Out        int           // channels of the result; Channels
	Activation op.Activation // f; GELU if it is op.SiLU, the zero value
	NoBias     bool
}

// NewMLP returns an MLP.
func NewMLP(cfg MLPConfig, opts ...Option) *MLP {
	hidden, out := cfg.Hidden, build.OrDefault(cfg.Out, cfg.Channels)
	if hidden == 0 && build.Axes("channels", cfg.Channels) == nil {
		hidden = 4 * cfg.Channels
	}
	sizes := []any{"channels", cfg.Channels, "hidden", hidden, "out", out}
	return newLayer("MLP", opts, sizes, func(l *MLP, o build.Options) (Params, error) {
		if l.activation = build.OrDefault(cfg.Activation, op.GELU); !l.activation.Known() {
			return nil, fmt.Errorf("the activation is %d, want op.GELU, op.ReLU, op.Sigmoid or op.LeakyReLU", int(cfg.Activation))
		}
		l.FC1 = projection(o, "fc1", cfg.Channels, hidden, !cfg.NoBias)
		l.FC2 = projection(o, "fc2", hidden, out, !cfg.NoBias)
		return together(l.FC1, l.FC2)
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *MLP) Err() error { return build.Err(l) }

// Apply applies the MLP to x (batch, …, channels).
func (l *MLP) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		s := build.Steps{Graph: x.Graph()}
		w := weights(&s, l.FC1.Weight, l.FC1.Bias, l.FC2.Weight, l.FC2.Bias)
		return s.Result(op.MLP(op.MLPInputs{X: x, W1: w[0], B1: w[1], W2: w[2], B2: w[3]}, l.activation)) // (batch, …, out)
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *MLP) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }
