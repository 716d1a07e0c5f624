package layer

import (
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// PositionEmbedding adds a learned vector to each cell: x + weight, the same for each sequence of the batch. The weight starts at normal numbers of
// standard deviation 0.02.
type PositionEmbedding struct {
	Base
	Weight *Param // "weight" (1, grid…, channels)
}

// PositionEmbeddingConfig configures a PositionEmbedding.
type PositionEmbeddingConfig struct {
	Grid     []int // the sizes of the axes between batch and channels, such as a length; required
	Channels int   // required
}

// NewPositionEmbedding returns a position embedding.
func NewPositionEmbedding(cfg PositionEmbeddingConfig, opts ...Option) *PositionEmbedding {
	sizes, shape := []any{"channels", cfg.Channels}, tensor.Shape{1}
	for i, n := range cfg.Grid {
		sizes, shape = append(sizes, fmt.Sprintf("axis %d of the grid", i), n), append(shape, n)
	}
	return newLayer("position embedding", opts, sizes, func(l *PositionEmbedding, o build.Options) (Params, error) {
		if len(cfg.Grid) == 0 {
			return nil, fmt.Errorf("the grid is missing, want the sizes of its axes, such as a length")
		}
		l.Weight = embeddingWeight(o, append(shape, cfg.Channels)...)
		return Params{l.Weight}, nil
	})
}

// embeddingWeight draws the weight of a layer of that name alone: the references call it pos_embed or cls_token.
func embeddingWeight(o build.Options, shape ...int) *Param {
	name := build.Join(o.Name, "weight")
	return NewParam(name, o.New(build.TruncatedNormal(o.Rand(name), 0.02), shape...), false)
}

// Err returns what is wrong with the layer, or nil.
func (l *PositionEmbedding) Err() error { return build.Err(l) }

// Apply adds the embedding to x (batch, grid…, channels).
func (l *PositionEmbedding) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		if s, want := x.Shape(), l.Weight.Value.Shape(); len(s) != len(want) || !slices.Equal(s[1:], want[1:]) { // op.Add would repeat a grid of 1
			return nil, fmt.Errorf("x has shape %v, want %v after the batch", s, want[1:])
		}
		s := build.Steps{Graph: x.Graph()}
		return s.Result(op.Add(x, weights(&s, l.Weight)[0]))
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *PositionEmbedding) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }

// ClassToken inserts a learned token into each sequence, from (batch, length, channels) to (batch, length+1, channels). The weight starts as that of
// a PositionEmbedding.
type ClassToken struct {
	Base
	Weight *Param // "weight" (1, 1, channels)
	middle bool
}

// ClassTokenConfig configures a ClassToken.
type ClassTokenConfig struct {
	Channels int  // required
	Middle   bool // the token comes at position length/2, as in Vim, instead of first
}

// NewClassToken returns a class token.
func NewClassToken(cfg ClassTokenConfig, opts ...Option) *ClassToken {
	return newLayer("class token", opts, []any{"channels", cfg.Channels}, func(l *ClassToken, o build.Options) (Params, error) {
		l.Weight, l.middle = embeddingWeight(o, 1, 1, cfg.Channels), cfg.Middle
		return Params{l.Weight}, nil
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *ClassToken) Err() error { return build.Err(l) }

// Apply inserts the token into x (batch, length, channels).
func (l *ClassToken) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		s := build.Steps{Graph: x.Graph()}
		token := weights(&s, l.Weight)[0]
		if shape := x.Shape(); l.middle && len(shape) == 3 && shape[1] > 1 {
			parts, err := op.SplitAxis(x, 1, shape[1]/2, shape[1]-shape[1]/2)
			if err != nil {
				return nil, err
			}
			return s.Result(op.Concat(1, parts[0], token, parts[1]))
		}
		return s.Result(op.Concat(1, token, x))
	})
}

// Read returns the token (batch, channels) of y (batch, length, channels), a sequence of the length that Apply returns.
func (l *ClassToken) Read(y *G.Node) (*G.Node, error) {
	return build.At(l, y, func(y *G.Node) (*G.Node, error) {
		shape, at := y.Shape(), 0
		if len(shape) != 3 || shape[1] < 2 {
			return nil, fmt.Errorf("%s: y has shape %v, want (batch, length, channels) with a length of at least 2", l.Name(), shape)
		}
		sizes := []int{1, shape[1] - 1}
		if at = (shape[1] - 1) / 2; l.middle && at > 0 {
			sizes = []int{at, 1, shape[1] - 1 - at}
		} else {
			at = 0
		}
		parts, err := op.SplitAxis(y, 1, sizes...)
		if err != nil {
			return nil, err
		}
		return op.MeanPool(parts[min(at, 1)], nil) // of one step
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *ClassToken) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }
