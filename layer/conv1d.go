package layer

import (
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/op"
)

// Conv1D is a causal depthwise convolution over time. Its input and its result are (batch, length, channels). Each output of a
// channel is a weighted sum of the last width inputs of the channel. A SiLU follows unless WithoutSiLU is given. Weights and bias
// start uniform within ±1/√width.
type Conv1D struct {
	Base
	Weight *Param // "weight" (channels, 1, width)
	Bias   *Param // "bias" (channels), or nil
	width  int
	cfg    op.ConvConfig
}

// NewConv1D returns a convolution. It has a bias unless WithBias(false) is given.
func NewConv1D(channels, width int, opts ...Option) *Conv1D {
	return build("convolution", opts, true, []any{"channels", channels, "width", width}, func(l *Conv1D, o Options) (params Params, err error) {
		l.width, l.cfg.SiLU = width, !o.NoSiLU
		l.Weight, l.Bias, params = o.affine(1/math.Sqrt(float64(width)), channels, 1, width)
		return params, nil
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *Conv1D) Err() error { return Err(l) }

func (l *Conv1D) inputs(x, context, start *G.Node) op.ConvInputs {
	in := op.ConvInputs{X: x, Weight: l.Weight.Node(x.Graph()), Context: context, Start: start}
	if l.Bias != nil {
		in.Bias = l.Bias.Node(x.Graph())
	}
	return in
}

// Apply applies the convolution to x (batch, length, channels).
func (l *Conv1D) Apply(x *G.Node) (*G.Node, error) { return l.ApplyStart(x, nil) }

// ApplyStart is Apply for packed sequences: a new sequence starts where start (batch, length) is non-zero. start may be nil.
func (l *Conv1D) ApplyStart(x, start *G.Node) (*G.Node, error) {
	if err := Use(l, x); err != nil {
		return nil, err
	}
	return op.CausalConv(l.inputs(x, nil, start), l.cfg)
}

// ApplyWithContext continues a sequence. context (batch, width-1, channels) holds the last inputs before x; nil stands for zeros.
// It returns the result and the context after x. A convolution of width 1 has no context: it ignores context and returns nil.
func (l *Conv1D) ApplyWithContext(x, context, start *G.Node) (y, next *G.Node, err error) {
	if err := Use(l, x); err != nil {
		return nil, nil, err
	}
	if l.width == 1 {
		y, err = l.ApplyStart(x, start)
		return y, nil, err
	}
	return op.CausalConvWithContext(l.inputs(x, context, start), l.cfg)
}

// Fwd is Apply in the form of golgi's layers.
func (l *Conv1D) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }
