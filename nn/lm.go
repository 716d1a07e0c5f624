package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// Ignore is the target that LM.Loss leaves out.
const Ignore = -100

// LMConfig is the shape of a language model.
type LMConfig struct {
	Config
	Vocab      int  // tokens are 0 to Vocab-1; required
	UntiedHead bool // the head has a weight of its own instead of the embedding's
}

// LM is a language model: embedding, stack, and a head that is the embedding's weight unless UntiedHead. From tokens
// (batch, length) of int to logits (batch, length, vocabulary).
//
// Its weights are named as in the Hugging Face layout: backbone.embeddings.weight, those of the stack behind backbone, and
// lm_head.weight where the head is untied.
type LM struct {
	layer.Base
	cfg   LMConfig
	opts  layer.Options
	embed *layer.Embedding
	stack *MambaStack
	head  *layer.Param // the embedding's weight where tied
}

// NewLM returns a language model with the paper's initial weights. An invalid configuration is reported by Err and by every
// use.
func NewLM(cfg LMConfig, opts ...Option) *LM {
	m := new(LM)
	full, o, err := collect(cfg.Config, opts)
	cfg.Config = full
	if err == nil && cfg.Vocab < 1 {
		err = fmt.Errorf("nn: Vocab is %d, want at least 1", cfg.Vocab)
	}
	m.cfg, m.opts = cfg, o
	m.stack = NewMambaStack(cfg.Config, part(o, "backbone", o.Placed())...) // an invalid one too, so that Stack is never nil
	var params layer.Params
	if err == nil {
		m.embed = layer.NewEmbedding(cfg.Vocab, cfg.DModel, part(o, "backbone.embeddings")...)
		m.head = m.embed.Weight
		params = append(m.embed.Params(), m.stack.Params()...)
		if cfg.UntiedHead {
			head := layer.NewLinear(cfg.DModel, cfg.Vocab, part(o, "lm_head")...)
			m.head = head.Weight
			params = append(params, m.head)
		}
		if err = place(o, params); err == nil {
			err = m.stack.Err()
		}
	}
	m.Init(nameOr(o.Name, "LM"), err, params...)
	return m
}

// Config returns the configuration, defaults filled in.
func (m *LM) Config() LMConfig { return m.cfg }

// Stack returns the model's stack.
func (m *LM) Stack() *MambaStack { return m.stack }

// Apply returns the logits of tokens ids (batch, length) of int.
func (m *LM) Apply(ids *G.Node, opts ...CallOption) (*G.Node, error) {
	logits, _, err := m.apply(ids, nil, false, opts)
	return logits, err
}

// ApplyWithState continues from a state, nil for the beginning, and returns the one after ids beside the logits.
func (m *LM) ApplyWithState(ids *G.Node, state State, opts ...CallOption) (logits *G.Node, next State, err error) {
	return m.apply(ids, state, true, opts)
}

// Loss returns the mean cross-entropy, in nats, of the logits of ids against targets (batch, length) of int: for each
// position the token to predict there, usually the next one, or Ignore.
func (m *LM) Loss(ids, targets *G.Node, opts ...CallOption) (*G.Node, error) {
	if m.opts.Device != nil {
		if err := m.Use(ids); err != nil {
			return nil, err
		}
		return m.lossOnDevice(ids, targets, opts)
	}
	logits, err := m.Apply(ids, opts...)
	if err != nil {
		return nil, err
	}
	return op.CrossEntropy(logits, targets, Ignore)
}

func (m *LM) apply(ids *G.Node, state State, withState bool, opts []CallOption) (logits *G.Node, next State, err error) {
	if err := m.Use(ids); err != nil {
		return nil, nil, err
	}
	if m.opts.Device != nil {
		return m.applyOnDevice(ids, state, withState, opts)
	}
	x, err := m.embed.Apply(ids)
	if err != nil {
		return nil, nil, err
	}
	if x, next, err = m.stack.apply(x, state, withState, opts); err != nil {
		return nil, nil, err
	}
	head, err := m.head.Effective(ids.Graph())
	if err != nil {
		return nil, nil, err
	}
	logits, err = op.Linear(x, head, nil)
	return logits, next, err
}

// Fwd is Apply as golgi has it.
func (m *LM) Fwd(ids G.Input) G.Result {
	return layer.Lift(ids, func(ids *G.Node) (*G.Node, error) { return m.Apply(ids) })
}
