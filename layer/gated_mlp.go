package layer

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/op"
)

// GatedMLP mixes channels, step by step: down_proj(f(gate_proj(x)) ⊙ up_proj(x)), from (batch, length, width) to the same. With
// SiLU, the default, it is SwiGLU, with op.GELU GeGLU (Shazeer, "GLU Variants Improve Transformer", equation 6).
type GatedMLP struct {
	Base
	GateProj, UpProj, DownProj *Linear // "gate_proj" and "up_proj" (hidden, width), "down_proj" (width, hidden)
	activation                 op.Activation
}

// NewGatedMLP returns a gated MLP. hidden is its width inside; 0 is 8/3 of the width, rounded up to a multiple of 8, which has as
// many weights as a plain one of four times the width. WithActivation chooses f, WithBias(true) gives all three a bias.
func NewGatedMLP(width, hidden int, opts ...Option) *GatedMLP {
	l := new(GatedMLP)
	if hidden == 0 {
		hidden = (8*width/3 + 7) / 8 * 8
	}
	o, err := collect("gated MLP", opts, false, positive("gated MLP", "width", width, "hidden", hidden))
	l.activation = o.Activation
	if err == nil && o.Activation != op.SiLU && o.Activation != op.GELU {
		err = fmt.Errorf("layer: gated MLP: the activation is %d, want op.SiLU or op.GELU", int(o.Activation))
	}
	if err == nil {
		l.GateProj = NewLinear(width, hidden, o.Part("gate_proj", WithBias(o.Bias))...)
		l.UpProj = NewLinear(width, hidden, o.Part("up_proj", WithBias(o.Bias))...)
		l.DownProj = NewLinear(hidden, width, o.Part("down_proj", WithBias(o.Bias))...)
		l.params = append(append(append(Params{}, l.GateProj.Params()...), l.UpProj.Params()...), l.DownProj.Params()...)
	}
	l.Init(nameOr(o.Name, "gated MLP"), err, l.params...)
	return l
}

// Apply applies the layer to x (batch, length, width).
func (l *GatedMLP) Apply(x *G.Node) (*G.Node, error) {
	if err := l.Use(x); err != nil {
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

// Fwd is Apply as golgi has it.
func (l *GatedMLP) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }
