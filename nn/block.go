package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// MambaBlock is a norm, a mixer and a residual connection: y = x + mixer(norm(x)), from (batch, length, d_model) to the same. The mixer
// is layer.Mamba.
//
// Its weights are named as in the Hugging Face layout: norm.weight, mixer.A_log, mixer.D, mixer.in_proj.weight,
// mixer.conv1d.weight, mixer.conv1d.bias, mixer.x_proj.weight, mixer.dt_proj.weight, mixer.dt_proj.bias and
// mixer.out_proj.weight. The name that WithName sets comes before them.
type MambaBlock struct {
	layer.Base
	cfg   Config
	opts  build.Options
	norm  *layer.RMSNorm
	mixer *layer.Mamba
	drop  drop
}

// drop is what a layer leaves out in training.
type drop struct {
	dropout, path float64
	seed          uint64
	layer         int
}

// on reports whether something is dropped.
func (d drop) on(s *build.Steps) bool { return s.Step != nil && (d.dropout > 0 || d.path > 0) }

// add returns x + branch without what is dropped of the branch.
func (d drop) add(s *build.Steps, x, branch *G.Node) *G.Node {
	if d.on(s) && d.dropout > 0 {
		branch = s.Do(op.Dropout(branch, s.Step, op.DropoutConfig{Rate: d.dropout, Seed: d.seed, Layer: 2 * d.layer}))
	}
	if d.on(s) && d.path > 0 {
		branch = s.Do(op.DropPath(branch, s.Step, op.DropoutConfig{Rate: d.path, Seed: d.seed, Layer: 2*d.layer + 1}))
	}
	return s.Do(op.Add(x, branch))
}

// NewMambaBlock returns a block with the paper's initial weights. If the configuration is invalid, or if its weights do not fit into
// memory, Err and every use of the block return the error. A configuration with a Pattern is invalid: that is for a MambaStack.
func NewMambaBlock(cfg Config, opts ...Option) *MambaBlock {
	cfg, o, err := collect(cfg, opts)
	if err == nil && len(cfg.Pattern) > 0 {
		err = fmt.Errorf("nn: MambaBlock: Pattern has %d layers, want none: a pattern is for NewMambaStack", len(cfg.Pattern))
	}
	b := build.New("nn: MambaBlock", cfg.sizes(), o, err, func(b *MambaBlock, o build.Options) (layer.Params, error) {
		b.norm = newNorm(cfg, o, "norm")
		b.mixer = layer.NewMamba(cfg.mamba(), o.Part("mixer")...)
		build.MixWith(b, cfg.DModel, b.mixer.Slots(), b.mix)
		return build.Together[layer.Params](b.norm, b.mixer)
	})
	b.cfg, b.opts, b.drop = cfg, o, drop{cfg.Dropout, cfg.DropPath, o.Seed, 0}
	return b
}

func newNorm(cfg Config, o build.Options, name string) *layer.RMSNorm {
	return layer.NewRMSNorm(layer.RMSNormConfig{Channels: cfg.DModel, Eps: cfg.NormEps}, o.Part(name)...)
}

// Err returns the error of an invalid configuration, or nil.
func (b *MambaBlock) Err() error { return build.Err(b) }

// Config returns the configuration with its defaults filled in.
func (b *MambaBlock) Config() Config { return b.cfg }

// Slots returns the parts of the block's state.
func (b *MambaBlock) Slots() []layer.Slot { return build.Slots(b) }

// Apply applies the block to x (batch, length, d_model).
func (b *MambaBlock) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	if group := groupOf(opts); group != nil {
		return segmented(b, x, group, opts)
	}
	return build.Apply(b, x, opts)
}

// ApplyWithState continues from a state, nil for the beginning. It returns the result and the state after x. Both are differentiable:
// feeding a sequence in pieces gives the same results and gradients as feeding it whole. layer.ZeroState makes input nodes for the state.
func (b *MambaBlock) ApplyWithState(x *G.Node, state layer.State, opts ...CallOption) (y *G.Node, next layer.State, err error) {
	return build.ApplyWithState(b, x, state, opts)
}

// Fwd is Apply in the form of golgi's layers.
func (b *MambaBlock) Fwd(x G.Input) G.Result { return build.Fwd(b, x) }

func (b *MambaBlock) mix(s *build.Steps, x *G.Node) *G.Node {
	if s.Composed || b.drop.on(s) {
		return b.drop.add(s, x, s.Mix(b.mixer, s.Do(b.norm.Apply(x))))
	}
	in, cfg := b.inputs(s, x), op.BlockConfig{Eps: b.cfg.NormEps, Recompute: op.Recompute(s.Recompute)}
	if !s.WithState {
		return s.Do(op.MambaBlock(in, cfg))
	}
	y, context, final, err := op.MambaBlockWithState(in, cfg)
	s.Put(context, final)
	return s.Do(y, err)
}

// inputs returns the operands of op.MambaBlock, with the state of s.
func (b *MambaBlock) inputs(s *build.Steps, x *G.Node) op.BlockInputs {
	weights := b.mixer.Parts.Weights()
	weights.Norm = b.norm.Weight
	in := op.BlockInputs{X: x, Start: s.Start, BlockWeights: op.MapBlock(weights, func(_ op.BlockWeight, p *layer.Param) *G.Node {
		if p == nil {
			return nil
		}
		return s.Do(p.Effective(s.Graph))
	})}
	if b.cfg.DConv > 1 {
		in.Context = s.Take()
	}
	in.InitialState = s.Take()
	return in
}
