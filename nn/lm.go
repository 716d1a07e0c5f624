package nn

import (
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// Ignore is the target that LM.Loss leaves out.
const Ignore = -100

// LMConfig configures a language model.
type LMConfig struct {
	Config
	Vocab      int  // tokens are 0 to Vocab-1; required
	UntiedHead bool // the head has a weight of its own instead of the embedding's
}

// LM is a language model: an embedding, a stack, and a head, from tokens (batch, length) of int to logits (batch, length,
// vocabulary). The head uses the embedding's weight unless UntiedHead is set.
//
// Its weights are named as in the Hugging Face layout: backbone.embeddings.weight, the weights of the stack after backbone, and
// lm_head.weight if the head is untied.
type LM struct {
	layer.Base
	cfg   LMConfig
	opts  build.Options
	embed *layer.Embedding
	stack *MambaStack
	head  *layer.Param // the embedding's weight unless UntiedHead is set
}

// NewLM returns a language model with the paper's initial weights. If the configuration is invalid, or if its weights do not fit
// into memory, Err and every use of the model return the error.
func NewLM(cfg LMConfig, opts ...Option) *LM {
	full, o, err := collect(cfg.Config, append(slices.Clip(opts), func(o *build.Options) { o.Seeded = true })) // 0 is a seed too
	cfg.Config = full
	if err == nil {
		if wrong := size.Axis(cfg.Vocab); wrong != nil {
			err = fmt.Errorf("nn: Vocab %w", wrong)
		}
	}
	m := build.New("nn: LM", append(cfg.sizes(), "Vocab", cfg.Vocab), o, err, func(m *LM, o build.Options) (layer.Params, error) {
		m.stack = NewMambaStack(cfg.Config, o.Part("backbone")...)
		if err := m.stack.Err(); err != nil {
			return nil, err
		}
		m.embed = layer.NewEmbedding(layer.EmbeddingConfig{Vocabulary: cfg.Vocab, Channels: cfg.DModel}, o.Part("backbone.embeddings")...)
		m.head = m.embed.Weight
		params := append(m.embed.Params(), m.stack.Params()...)
		if cfg.UntiedHead {
			m.head = layer.NewLinear(layer.LinearConfig{In: cfg.DModel, Out: cfg.Vocab}, o.Part("lm_head")...).Weight
			params = append(params, m.head)
		}
		return params, nil
	})
	m.cfg, m.opts = cfg, o
	if m.stack == nil {
		m.stack = build.New[MambaStack, layer.Params]("nn: MambaStack", nil, o, m.Err(), nil)
		m.stack.cfg, m.stack.opts = cfg.Config, o
	}
	return m
}

// Err returns the error of an invalid configuration, or nil.
func (m *LM) Err() error { return build.Err(m) }

// Config returns the configuration with its defaults filled in.
func (m *LM) Config() LMConfig { return m.cfg }

// Stack returns the model's stack. The stack of an invalid model has the model's error. That of a nil model is nil.
func (m *LM) Stack() *MambaStack {
	if m == nil {
		return nil
	}
	return m.stack
}

// Apply returns the logits of tokens ids (batch, length) of int.
func (m *LM) Apply(ids *G.Node, opts ...CallOption) (*G.Node, error) {
	logits, _, err := m.apply(ids, nil, false, opts)
	return logits, err
}

// ApplyWithState continues from a state, nil for the beginning. It returns the logits and the state after ids.
func (m *LM) ApplyWithState(ids *G.Node, state State, opts ...CallOption) (logits *G.Node, next State, err error) {
	return m.apply(ids, state, true, opts)
}

// Loss returns the mean cross-entropy, in nats, of the logits of ids and targets (batch, length) of int. A target is the token to
// predict at its position, usually the next one, or Ignore.
func (m *LM) Loss(ids, targets *G.Node, opts ...CallOption) (*G.Node, error) {
	x, head, _, err := m.hidden(ids, nil, false, opts)
	if err != nil {
		return nil, err
	}
	return op.LinearCrossEntropy(x, head, targets, Ignore)
}

// hidden returns the result of the stack, the weight of the head, and the next state, in the place of the weights.
func (m *LM) hidden(ids *G.Node, state State, withState bool, opts []CallOption) (x, head *G.Node, next State, err error) {
	if err = build.Use(m, ids); err == nil {
		x, head, err = m.embed.ApplyTied(ids)
	}
	if err == nil {
		x, next, err = m.stack.apply(x, state, withState, opts)
	}
	if err == nil && m.cfg.UntiedHead {
		head, err = m.head.Effective(ids.Graph())
	}
	return x, head, next, err
}

// logits returns the logits and the next state, in the place of the weights.
func (m *LM) logits(ids *G.Node, state State, withState bool, opts []CallOption) (logits *G.Node, next State, err error) {
	x, head, next, err := m.hidden(ids, state, withState, opts)
	if err != nil {
		return nil, nil, err
	}
	logits, err = op.Linear(x, head, nil)
	return logits, next, err
}

// read returns the logits, or nil if they are not wanted, and the next state, in the place of the weights.
func (m *LM) read(ids *G.Node, state State, logits bool, opts []CallOption) (out *G.Node, next State, err error) {
	if logits {
		return m.logits(ids, state, true, opts)
	}
	x, _, err := m.embed.ApplyTied(ids)
	if err == nil {
		_, next, err = m.stack.apply(x, state, true, opts)
	}
	return nil, next, err
}

func (m *LM) apply(ids *G.Node, state State, withState bool, opts []CallOption) (logits *G.Node, next State, err error) {
	if logits, next, err = m.logits(ids, state, withState, opts); err != nil {
		return nil, nil, err
	}
	e := build.EdgeOf(m.Params().Place(), ids)
	if next, err = next.moved(e.Out); err != nil {
		return nil, nil, err
	}
	logits, err = e.Out(logits)
	return logits, next, err
}

// holds returns an error if the tokens, the states and the logits of a batch exceed the machine's memory.
func (m *LM) holds(batch, length int, logits bool) error {
	need := size.Of(8, batch, length)
	need = need.Plus(build.StateBytes(m.opts.Dtype, m.stack.slots()).Times(batch))
	if logits {
		need = need.Plus(size.Of(m.opts.Dtype.Size(), batch, length, m.cfg.Vocab))
	}
	if err := need.Fits("its tokens, states and logits"); err != nil {
		return fmt.Errorf("nn: batch is %d, length is %d: %w", batch, length, err)
	}
	return nil
}

// Fwd is Apply in the form of golgi's layers.
func (m *LM) Fwd(ids G.Input) G.Result {
	return build.Lift(ids, func(ids *G.Node) (*G.Node, error) { return m.Apply(ids) })
}
