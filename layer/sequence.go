package layer

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Sequence is a layer that mixes over time, from (batch, length, channels) to the same, and carries a state of fixed size: S4,
// S6, LSTM. What is built of such layers (H3, nn.MambaStack) can have any of them inside.
type Sequence interface {
	Name() string
	Params() Params
	Err() error
	// ApplyStart applies the layer to whole sequences. Where start (batch, length) is non-zero a new sequence starts, which
	// sees nothing of what came before; nil for none.
	ApplyStart(x, start *G.Node) (*G.Node, error)
	// ApplyWithState continues from a state, nil for zeros, and returns the one after x beside the result. Both are
	// differentiable: whole == pieces == one step at a time.
	ApplyWithState(x, state, start *G.Node) (y, next *G.Node, err error)
	// StateShape is the shape of the state of a batch, batch first.
	StateShape(batch int) tensor.Shape
}
