package layer

import (
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/op"
)

// Conv1D is a causal depthwise convolution over time, followed by SiLU unless WithoutSiLU is given: each channel of (batch,
// length, channels) is a weighted sum of its last width values. Weights and bias start uniform within ±1/√width.
type Conv1D struct {
	Base
	Weight *Param // "weight" (channels, 1, width)
	Bias   *Param // "bias" (channels), or nil
	width  int
	cfg    op.ConvConfig
}

// NewConv1D returns a convolution, with a bias unless WithBias(false) says otherwise.
func NewConv1D(channels, width int, opts ...Option) *Conv1D {
	l := &Conv1D{width: width}
	o, err := collect("convolution", opts, true, positive("convolution", "channels", channels, "width", width))
	l.cfg.SiLU = !o.NoSiLU
	if err == nil {
		name, bound := Join(o.Name, "weight"), 1/math.Sqrt(float64(width))
		l.Weight = NewParam(name, o.New(Uniform(o.Rand(name), bound), channels, 1, width), true)
		l.params = Params{l.Weight}
		if o.Bias {
			name := Join(o.Name, "bias")
			l.Bias = NewParam(name, o.New(Uniform(o.Rand(name), bound), channels), false)
			l.params = append(l.params, l.Bias)
		}
	}
	l.Init(nameOr(o.Name, "convolution"), err, l.params...)
	return l
}

func (l *Conv1D) inputs(x, context, start *G.Node) op.ConvInputs {
	in := op.ConvInputs{X: x, Weight: l.Weight.Node(x.Graph()), Context: context, Start: start}
	if l.Bias != nil {
		in.Bias = l.Bias.Node(x.Graph())
	}
	return in
}

// Apply applies the convolution to x (batch, length, channels).
func (l *Conv1D) Apply(x *G.Node) (*G.Node, error) { return l.ApplyStart(x, nil) }

// ApplyStart is Apply for packed sequences: a new one starts where start (batch, length) is non-zero. Start may be nil.
func (l *Conv1D) ApplyStart(x, start *G.Node) (*G.Node, error) {
	if err := l.Use(x); err != nil {
		return nil, err
	}
	return op.CausalConv(l.inputs(x, nil, start), l.cfg)
}

// ApplyWithContext continues from the last width-1 inputs of what came before, context (batch, width-1, channels), nil for
// zeros; and returns those of x beside the result. A convolution of width 1 has no context: both are nil.
func (l *Conv1D) ApplyWithContext(x, context, start *G.Node) (y, next *G.Node, err error) {
	if l.width == 1 {
		y, err = l.ApplyStart(x, start)
		return y, nil, err
	}
	if err := l.Use(x); err != nil {
		return nil, nil, err
	}
	return op.CausalConvWithContext(l.inputs(x, context, start), l.cfg)
}

// Fwd is Apply as golgi has it.
func (l *Conv1D) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }
