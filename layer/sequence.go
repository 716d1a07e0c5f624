package layer

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Sequence is a layer that mixes over time and has one state of fixed size: S4, S6, LSTM, or Attention with a window. Its input
// and its result are (batch, length, channels). H3 can have any Sequence inside.
type Sequence interface {
	Name() string
	Params() Params
	Err() error
	// ApplyStart applies the layer to whole sequences. Where start (batch, length) is not zero, a new sequence begins, and no
	// earlier step has an effect on it. start may be nil.
	ApplyStart(x, start *G.Node) (*G.Node, error)
	// ApplyWithState continues from a state; nil stands for zeros. It returns the result, and the state after x. Both are
	// differentiable. A sequence in pieces, or in single steps, gives the same as the whole sequence.
	ApplyWithState(x, state, start *G.Node) (y, next *G.Node, err error)
	// StateShape returns the shape of the state of a batch. Its first axis is the batch.
	StateShape(batch int) tensor.Shape
}
