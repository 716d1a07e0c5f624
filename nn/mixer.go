package nn

import (
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// mixer is the part of a block that mixes over time (figure 3 of the paper, and section 3.4):
//
//	x → in_proj → split x, z → causal convolution, SiLU → x_proj → split dt, B, C;  dt → dt_proj → Δ
//	  → scan(u = x, Δ, A = -exp(A_log), B, C, D, z) → out_proj
//
// By default a block computes all this in one operator, op.MambaBlock. The method apply builds it from separate operators; it is the readable
// definition.
type mixer struct {
	cfg                            Config
	inProj, xProj, dtProj, outProj *layer.Linear
	conv                           *layer.Conv1D
	aLog, d                        *layer.Param
}

func newMixer(cfg Config, o layer.Options) *mixer {
	inner := cfg.inner()
	m := &mixer{
		cfg:     cfg,
		inProj:  layer.NewLinear(cfg.DModel, 2*inner, o.Part("in_proj", layer.WithBias(cfg.Bias))...),
		conv:    layer.NewConv1D(inner, cfg.DConv, o.Part("conv1d", layer.WithBias(!cfg.NoConvBias))...),
		xProj:   layer.NewLinear(inner, cfg.DtRank+2*cfg.DState, o.Part("x_proj")...),
		dtProj:  layer.NewLinear(cfg.DtRank, inner, o.Part("dt_proj", layer.WithBias(true))...),
		outProj: layer.NewLinear(inner, cfg.DModel, o.Part("out_proj", layer.WithBias(cfg.Bias))...),
	}
	n := 0
	m.aLog = layer.NewParam(layer.Join(o.Name, "A_log"), o.New(func() float64 {
		n = n%cfg.DState + 1
		return math.Log(float64(n)) // S4D-Real: A_n = -n
	}, inner, cfg.DState), false)
	m.d = layer.NewParam(layer.Join(o.Name, "D"), o.New(layer.Constant(1), inner), false)
	if !o.Zeros {
		m.start(o)
	}
	return m
}

// start draws the weights whose initial values differ from those of an ordinary linear layer: dt_proj and out_proj.
func (m *mixer) start(o layer.Options) {
	// The bias of dt_proj is the inverse softplus of step sizes whose logarithm is uniform. So softplus of the bias, the initial Δ
	// without its part from the input, is in [DtMin, DtMax].
	weight, bias, out := m.dtProj.Weight, m.dtProj.Bias, m.outProj.Weight
	weight.Value = o.New(layer.Uniform(o.Rand(weight.Name), m.cfg.DtScale/math.Sqrt(float64(m.cfg.DtRank))), weight.Value.Shape()...)
	step := layer.LogUniform(o.Rand(bias.Name), m.cfg.DtMin, m.cfg.DtMax)
	bias.Value = o.New(func() float64 {
		return layer.InverseSoftplus(max(step(), m.cfg.DtInitFloor))
	}, bias.Value.Shape()...)

	// Every layer adds to the residual stream. Dividing by √NLayer keeps the initial size of the sum independent of the depth.
	r := o.Rand(out.Name)
	bound := 1 / math.Sqrt(float64(m.cfg.inner())) / math.Sqrt(float64(m.cfg.NLayer))
	out.Value = o.New(layer.Uniform(r, bound), out.Value.Shape()...)
}

// params returns the weights in the order of the Hugging Face layout.
func (m *mixer) params() (layer.Params, error) {
	params, err := layer.Together(m.inProj, m.conv, m.xProj, m.dtProj, m.outProj)
	return append(layer.Params{m.aLog, m.d}, params...), err
}

// inputs returns the operands of op.MambaBlock, except the norm's weight.
func (m *mixer) inputs(x *G.Node, state LayerState, start *G.Node) (in op.BlockInputs, err error) {
	w, err := layer.Effective(x.Graph(), m.inProj.Weight, m.inProj.Bias, m.conv.Weight, m.conv.Bias,
		m.xProj.Weight, m.dtProj.Weight, m.dtProj.Bias, m.aLog, m.d, m.outProj.Weight, m.outProj.Bias)
	if err != nil {
		return in, err
	}
	return op.BlockInputs{
		X: x, InProj: w[0], InBias: w[1], ConvWeight: w[2], ConvBias: w[3],
		XProj: w[4], DtProj: w[5], DtBias: w[6], ALog: w[7], D: w[8], OutProj: w[9], OutBias: w[10],
		Context: state.Conv, InitialState: state.Scan, Start: start,
	}, nil
}

// apply builds the mixer from separate operators. It returns the output and, if withState is true, the state after it.
func (m *mixer) apply(x *G.Node, state LayerState, withState bool, start *G.Node) (y *G.Node, next LayerState, err error) {
	g := x.Graph()
	xz, err := m.inProj.Apply(x)
	if err != nil {
		return nil, next, err
	}
	parts, err := op.Split(xz, m.cfg.inner(), m.cfg.inner())
	if err != nil {
		return nil, next, err
	}
	u, z := parts[0], parts[1]
	if withState {
		u, next.Conv, err = m.conv.ApplyWithContext(u, state.Conv, start)
	} else {
		u, err = m.conv.ApplyStart(u, start)
	}
	if err != nil {
		return nil, next, err
	}
	dtBC, err := m.xProj.Apply(u)
	if err != nil {
		return nil, next, err
	}
	if parts, err = op.Split(dtBC, m.cfg.DtRank, m.cfg.DState, m.cfg.DState); err != nil {
		return nil, next, err
	}
	// The bias of dt_proj is added in the scan, as its delta_bias.
	w, err := m.dtProj.Weight.Effective(g)
	if err != nil {
		return nil, next, err
	}
	delta, err := op.Linear(parts[0], w, nil)
	if err != nil {
		return nil, next, err
	}
	a, err := op.NegExp(m.aLog.Node(g))
	if err != nil {
		return nil, next, err
	}
	in := op.ScanInputs{
		U: u, Delta: delta, A: a, B: parts[1], C: parts[2], D: m.d.Node(g), Z: z,
		DeltaBias: m.dtProj.Bias.Node(g), InitialState: state.Scan, Start: start,
	}
	if withState {
		y, next.Scan, err = op.SelectiveScanWithState(in, op.ScanConfig{DeltaSoftplus: true})
	} else {
		y, err = op.SelectiveScan(in, op.ScanConfig{DeltaSoftplus: true})
	}
	if err != nil {
		return nil, next, err
	}
	y, err = m.outProj.Apply(y)
	return y, next, err
}
