package layer

import (
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// S6 is the selective state space of Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", algorithm 2.
// Its input and its result are (batch, length, channels). It computes the steps Δ and the matrices B and C from its input:
//
//	dt, B, C = split(x_proj(x));  Δ = softplus(dt_proj(dt));  y = scan(u = x, Δ, A = -exp(A_log), B, C, D)
//
// The scan is op.SelectiveScan. S6 is the inner part of a Mamba block, without the block's convolution, gate and projections. Its
// weights start like those of the block: A_n = -n (S4D-Real), D = 1, and Δ within the range of WithDtRange.
type S6 struct {
	Base
	ALog, D       *Param  // "A_log" (channels, state) and "D" (channels)
	XProj, DtProj *Linear // "x_proj" (rank+2·state, channels), "dt_proj" (channels, rank) with a bias
	channels      int
	state, rank   int
}

// NewS6 returns a selective state space. WithStateSize sets the size of the state of each channel, 16 by default. WithDtRank sets
// the rank of Δ, channels/16 by default, rounded up.
func NewS6(channels int, opts ...Option) *S6 {
	return build("S6", opts, false, []any{"channels", channels}, func(l *S6, o Options) (Params, error) {
		l.channels, l.state, l.rank = channels, orDefault(o.StateSize, 16), orDefault(o.DtRank, (channels+15)/16)
		if err := axes("state size", l.state, "rank of Δ", l.rank); err != nil {
			return nil, err
		}
		low, high, err := o.dtRange()
		if err != nil {
			return nil, err
		}
		return l.start(o, low, high)
	})
}

// start draws the weights.
func (l *S6) start(o Options, low, high float64) (Params, error) {
	n := 0
	l.ALog = NewParam(Join(o.Name, "A_log"), o.New(func() float64 {
		n = n%l.state + 1
		return math.Log(float64(n))
	}, l.channels, l.state), false)
	l.D = NewParam(Join(o.Name, "D"), o.New(Constant(1), l.channels), false)
	l.XProj = NewLinear(l.channels, l.rank+2*l.state, o.Part("x_proj")...)
	l.DtProj = NewLinear(l.rank, l.channels, o.Part("dt_proj", WithBias(true))...)
	params, err := Together(l.XProj, l.DtProj)
	if err == nil && !o.Zeros {
		// The inverse of softplus, so that Δ starts in the range for any input.
		bias, step := l.DtProj.Bias, LogUniform(o.Rand(l.DtProj.Bias.Name), low, high)
		bias.Value = o.New(func() float64 { return InverseSoftplus(step()) }, l.channels)
	}
	return append(Params{l.ALog, l.D}, params...), err
}

// Err returns what is wrong with the layer, or nil.
func (l *S6) Err() error { return Err(l) }

// StateShape returns (batch, channels, state), or nil if the layer is invalid.
func (l *S6) StateShape(batch int) tensor.Shape {
	if l.Err() != nil {
		return nil
	}
	return tensor.Shape{batch, l.channels, l.state}
}

// Apply applies the layer to x (batch, length, channels).
func (l *S6) Apply(x *G.Node) (*G.Node, error) { return l.ApplyStart(x, nil) }

// ApplyStart is Apply for packed sequences: a new sequence starts where start (batch, length) is non-zero. start may be nil.
func (l *S6) ApplyStart(x, start *G.Node) (*G.Node, error) {
	in, err := l.inputs(x, nil, start)
	if err != nil {
		return nil, err
	}
	return op.SelectiveScan(in, op.ScanConfig{DeltaSoftplus: true})
}

// ApplyWithState continues from a state (batch, channels, state), nil for zeros. It returns the result and the state after x.
func (l *S6) ApplyWithState(x, state, start *G.Node) (y, next *G.Node, err error) {
	in, err := l.inputs(x, state, start)
	if err != nil {
		return nil, nil, err
	}
	return op.SelectiveScanWithState(in, op.ScanConfig{DeltaSoftplus: true})
}

// inputs returns the operands of the scan.
func (l *S6) inputs(x, state, start *G.Node) (in op.ScanInputs, err error) {
	if err := useSequence(l, x, "channels", func() int { return l.channels }); err != nil {
		return in, err
	}
	w, err := Effective(x.Graph(), l.XProj.Weight, l.DtProj.Weight, l.DtProj.Bias, l.ALog, l.D)
	if err != nil {
		return in, err
	}
	dtBC, err := op.Linear(x, w[0], nil)
	if err != nil {
		return in, err
	}
	parts, err := op.Split(dtBC, l.rank, l.state, l.state)
	if err != nil {
		return in, err
	}
	delta, err := op.Linear(parts[0], w[1], nil)
	if err != nil {
		return in, err
	}
	a, err := op.NegExp(w[3])
	if err != nil {
		return in, err
	}
	return op.ScanInputs{
		U: x, Delta: delta, A: a, B: parts[1], C: parts[2], D: w[4], DeltaBias: w[2], InitialState: state, Start: start,
	}, nil
}

// Fwd is Apply in the form of golgi's layers.
func (l *S6) Fwd(x G.Input) G.Result { return Lift(x, l.Apply) }

var _ Sequence = (*S6)(nil)
