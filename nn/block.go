package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// MambaBlock is a norm, a mixer and a residual connection: y = x + mixer(norm(x)), from (batch, length, d_model) to the same.
//
// Its weights are named as in the Hugging Face layout: norm.weight, mixer.A_log, mixer.D, mixer.in_proj.weight,
// mixer.conv1d.weight, mixer.conv1d.bias, mixer.x_proj.weight, mixer.dt_proj.weight, mixer.dt_proj.bias and
// mixer.out_proj.weight. The name that WithName sets comes before them.
type MambaBlock struct {
	layer.Base
	cfg   Config
	opts  layer.Options
	norm  *layer.RMSNorm
	mixer *mixer
}

// NewMambaBlock returns a block with the paper's initial weights. If the configuration is invalid, or if its weights do not fit into
// memory, Err and every use of the block return the error. A configuration with a Pattern is invalid: that is for a MambaStack.
func NewMambaBlock(cfg Config, opts ...Option) *MambaBlock {
	cfg, o, err := collect(cfg, opts)
	if err == nil && len(cfg.Pattern) > 0 {
		err = fmt.Errorf("nn: MambaBlock: Pattern has %d layers, want none: a pattern is for NewMambaStack", len(cfg.Pattern))
	}
	b := layer.Build("nn: MambaBlock", cfg.sizes(), o, err, func(b *MambaBlock, o layer.Options) (layer.Params, error) {
		b.norm = layer.NewRMSNorm(cfg.DModel, o.Part("norm", layer.WithEps(cfg.NormEps))...)
		mixerOpts := o
		mixerOpts.Name = layer.Join(o.Name, "mixer")
		b.mixer = newMixer(cfg, mixerOpts)
		params, err := b.mixer.params()
		if err == nil {
			params = append(b.norm.Params(), params...)
			err = place(o, params)
		}
		return params, err
	})
	b.cfg, b.opts = cfg, o
	return b
}

// Err returns the error of an invalid configuration, or nil.
func (b *MambaBlock) Err() error { return layer.Err(b) }

// Config returns the configuration with its defaults filled in.
func (b *MambaBlock) Config() Config { return b.cfg }

// Apply applies the block to x (batch, length, d_model).
func (b *MambaBlock) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	y, _, err := b.apply(x, LayerState{}, false, opts)
	return y, err
}

// ApplyWithState continues from a state. It returns the result and the state after x. Both are differentiable: feeding a sequence
// in pieces gives the same results and gradients as feeding it whole.
func (b *MambaBlock) ApplyWithState(x *G.Node, state LayerState, opts ...CallOption) (y *G.Node, next LayerState, err error) {
	return b.apply(x, state, true, opts)
}

// ZeroState returns input nodes with zeros, the state before a sequence. The state of an invalid block is empty. If the batch is
// below 1 or does not fit into memory, or if g is nil, the state is an error wherever it is used.
func (b *MambaBlock) ZeroState(g *G.ExprGraph, batch int) LayerState {
	if b.Err() != nil {
		return LayerState{}
	}
	return zeroState(g, b.opts, batch, b.shapes)
}

// shapes returns the shapes of the two parts of the state of a batch, nil for a part that the block does not have.
func (b *MambaBlock) shapes(batch int) (conv, scan tensor.Shape) {
	if b.cfg.DConv > 1 {
		conv = tensor.Shape{batch, b.cfg.DConv - 1, b.cfg.inner()}
	}
	return conv, tensor.Shape{batch, b.cfg.inner(), b.cfg.DState}
}

func (b *MambaBlock) apply(x *G.Node, state LayerState, withState bool, opts []CallOption) (y *G.Node, next LayerState, err error) {
	if err = layer.Use(b, x); err != nil {
		return nil, next, err
	}
	if err = b.cfg.fits(x, b.opts.Dtype); err != nil {
		return nil, next, err
	}
	if state.err != nil {
		return nil, next, state.err
	}
	c, err := callOf(opts)
	if err != nil {
		return nil, next, err
	}
	e := edgeOf(b.opts, x)
	if x, err = e.in(x); err != nil {
		return nil, next, err
	}
	if state, err = state.moved(e.in); err != nil {
		return nil, next, err
	}
	if c.composed {
		y, next, err = b.compose(x, state, withState, c)
	} else {
		y, next, err = b.fused(x, state, withState, c)
	}
	if err != nil {
		return nil, next, err
	}
	if next, err = next.moved(e.out); err != nil {
		return nil, next, err
	}
	y, err = e.out(y)
	return y, next, err
}

// fused applies the block as one operator.
func (b *MambaBlock) fused(x *G.Node, state LayerState, withState bool, c call) (y *G.Node, next LayerState, err error) {
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

// Fwd is Apply in the form of golgi's layers.
func (b *MambaBlock) Fwd(x G.Input) G.Result {
	return layer.Lift(x, func(x *G.Node) (*G.Node, error) { return b.Apply(x) })
}
