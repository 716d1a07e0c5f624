package nn

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// MambaBlock is norm, mixer and residual: y = x + mixer(norm(x)), from (batch, length, d_model) to the same.
//
// Its weights are named as in the Hugging Face layout: norm.weight, mixer.A_log, mixer.D, mixer.in_proj.weight,
// mixer.conv1d.weight, mixer.conv1d.bias, mixer.x_proj.weight, mixer.dt_proj.weight, mixer.dt_proj.bias and
// mixer.out_proj.weight, with the name given by WithName in front.
type MambaBlock struct {
	layer.Base
	cfg   Config
	opts  layer.Options
	norm  *layer.RMSNorm
	mixer *mixer
}

// NewMambaBlock returns a block with the paper's initial weights. An invalid configuration is reported by Err and by every
// use.
func NewMambaBlock(cfg Config, opts ...Option) *MambaBlock {
	b := new(MambaBlock)
	cfg, o, err := collect(cfg, opts)
	b.cfg, b.opts = cfg, o
	var params layer.Params
	if err == nil {
		b.norm = layer.NewRMSNorm(cfg.DModel, part(o, "norm", layer.WithEps(cfg.NormEps))...)
		mixerOpts := o
		mixerOpts.Name = layer.Join(o.Name, "mixer")
		b.mixer = newMixer(cfg, mixerOpts)
		params = append(b.norm.Params(), b.mixer.params()...)
		err = place(o, params)
	}
	b.Init(nameOr(o.Name, "MambaBlock"), err, params...)
	return b
}

func nameOr(name, what string) string {
	if name == "" {
		return what
	}
	return name
}

// Config returns the configuration, defaults filled in.
func (b *MambaBlock) Config() Config { return b.cfg }

// Apply applies the block to x (batch, length, d_model).
func (b *MambaBlock) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	y, _, err := b.apply(x, LayerState{}, false, opts)
	return y, err
}

// ApplyWithState continues from a state and returns the one after x beside the result. Both are differentiable: a sequence
// fed in pieces is one sequence, gradients included.
func (b *MambaBlock) ApplyWithState(x *G.Node, state LayerState, opts ...CallOption) (y *G.Node, next LayerState, err error) {
	return b.apply(x, state, true, opts)
}

// ZeroState returns input nodes with zeros, the state before a sequence. That of an invalid block is empty.
func (b *MambaBlock) ZeroState(g *G.ExprGraph, batch int) LayerState {
	if b.Err() != nil {
		return LayerState{}
	}
	conv, scan := b.shapes(max(batch, 0)) // 0 fits no input: a wrong batch is an error where the state is used
	return zeroStates(g, b.opts, conv, scan)
}

// shapes are those of the two parts of a batch's state, nil for one that there is not.
func (b *MambaBlock) shapes(batch int) (conv, scan tensor.Shape) {
	if b.cfg.DConv > 1 {
		conv = tensor.Shape{batch, b.cfg.DConv - 1, b.cfg.inner()}
	}
	return conv, tensor.Shape{batch, b.cfg.inner(), b.cfg.DState}
}

func (b *MambaBlock) apply(x *G.Node, state LayerState, withState bool, opts []CallOption) (y *G.Node, next LayerState, err error) {
	if err = b.Use(x); err != nil {
		return nil, next, err
	}
	if err = b.cfg.fits(x, b.opts.Dtype); err != nil {
		return nil, next, err
	}
	c := callOf(opts)
	if b.opts.Device != nil {
		return b.applyOnDevice(x, state, withState, c)
	}
	if c.composed {
		return b.compose(x, state, withState, c)
	}
	in, err := b.mixer.inputs(x, state, c.start)
	if err != nil {
		return nil, next, err
	}
	in.NormWeight = b.norm.Weight.Node(x.Graph())
	cfg := op.BlockConfig{Eps: b.cfg.NormEps, Recompute: c.recompute}
	if withState {
		y, next.Conv, next.Scan, err = op.MambaBlockWithState(in, cfg)
	} else {
		y, err = op.MambaBlock(in, cfg)
	}
	return y, next, err
}

// compose applies the block operation by operation.
func (b *MambaBlock) compose(x *G.Node, state LayerState, withState bool, c call) (y *G.Node, next LayerState, err error) {
	h, err := b.norm.Apply(x)
	if err != nil {
		return nil, next, err
	}
	if h, next, err = b.mixer.apply(h, state, withState, c.start); err != nil {
		return nil, next, err
	}
	y, err = op.Add(x, h)
	return y, next, err
}

// Fwd is Apply as golgi has it.
func (b *MambaBlock) Fwd(x G.Input) G.Result {
	return layer.Lift(x, func(x *G.Node) (*G.Node, error) { return b.Apply(x) })
}
