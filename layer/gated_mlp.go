package layer

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// GatedMLP mixes the channels of each step: down_proj(f(gate_proj(x)) ⊙ up_proj(x)). x and the result are (batch, length, width).
// With SiLU, the default f, it is SwiGLU; with op.GELU it is GeGLU (Shazeer, "GLU Variants Improve Transformer", equation 6).
type GatedMLP struct {
	Base
	GateProj, UpProj, DownProj *Linear // "gate_proj" and "up_proj" (hidden, width), "down_proj" (width, hidden)
	activation                 op.Activation
}

// NewGatedMLP returns a gated MLP. hidden is the number of channels inside. The default, 0, is 8/3 of the width, rounded up to a
// multiple of 8; the MLP then has as many weights as a plain MLP with four times the width inside. WithActivation sets f, and
// WithBias(true) gives a bias to all three projections.
func NewGatedMLP(width, hidden int, opts ...Option) *GatedMLP {
	if hidden == 0 && size.Axis(width) == nil {
		hidden = (8*width/3 + 7) / 8 * 8
	}
	return build("gated MLP", opts, false, []any{"width", width, "hidden", hidden}, func(l *GatedMLP, o Options) (Params, error) {
		if o.Activation != op.SiLU && o.Activation != op.GELU {
			return nil, fmt.Errorf("the activation is %d, want op.SiLU or op.GELU", int(o.Activation))
		}
		l.activation = o.Activation
		l.GateProj = NewLinear(width, hidden, o.Part("gate_proj", WithBias(o.Bias))...)
		l.UpProj = NewLinear(width, hidden, o.Part("up_proj", WithBias(o.Bias))...)
		l.DownProj = NewLinear(hidden, width, o.Part("down_proj", WithBias(o.Bias))...)
		return Together(l.GateProj, l.UpProj, l.DownProj)
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *GatedMLP) Err() error { return Err(l) }

// Apply applies the layer to x (batch, length, width).
func (l *GatedMLP) Apply(x *G.Node) (*G.Node, error) {
	if err := Use(l, x); err != nil {
		return nil, err
	}
	gate, err := l.GateProj.Apply(x)
	if err != nil {
		return nil, err
	}
	up, err := l.UpProj.Apply(x)
	if err != nil {
		return nil, err
	}
	h, err := op.Gate(gate, up, l.activation)
	if err != nil {
		return nil, err
	}
	return l.DownProj.Apply(h)
}

// Fwd is Apply in the form of golgi's layers.
func (l *GatedMLP) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }
