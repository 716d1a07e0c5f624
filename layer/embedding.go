package layer

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// Embedding maps tokens (batch, length) of int to rows of its weight, (batch, length, channels). The weight starts normally
// distributed with a standard deviation of 0.02.
type Embedding struct {
	Base
	Weight *Param // "weight" (vocabulary, channels)
}

// EmbeddingConfig configures an Embedding.
type EmbeddingConfig struct {
	Vocabulary, Channels int // required
}

// NewEmbedding returns an embedding.
func NewEmbedding(cfg EmbeddingConfig, opts ...Option) *Embedding {
	return newLayer("embedding", opts, []any{"vocabulary", cfg.Vocabulary, "channels", cfg.Channels}, func(l *Embedding, o build.Options) (Params, error) {
		name := build.Join(o.Name, "weight")
		r := o.Rand(name)
		l.Weight = NewParam(name, o.New(func() float64 { return 0.02 * r.NormFloat64() }, cfg.Vocabulary, cfg.Channels), true)
		return Params{l.Weight}, nil
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *Embedding) Err() error { return build.Err(l) }

// Apply looks up ids (batch, length) of int.
func (l *Embedding) Apply(ids *G.Node) (*G.Node, error) {
	x, _, err := l.ApplyTied(ids)
	if err != nil {
		return nil, err
	}
	return build.EdgeOf(l.Params().Place(), ids).Out(x)
}

// ApplyTied is Apply with the result where the weight is, and also returns the node of the weight, for a head that shares it (op.TiedEmbedding).
func (l *Embedding) ApplyTied(ids *G.Node) (x, weight *G.Node, err error) {
	if err := build.Use(l, ids); err != nil {
		return nil, nil, err
	}
	w, err := l.Weight.Effective(ids.Graph())
	if err != nil {
		return nil, nil, err
	}
	return op.TiedEmbedding(w, ids)
}

// Fwd is Apply in the form of golgi's layers.
func (l *Embedding) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }
