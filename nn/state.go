package nn

import (
	"fmt"
	"sync/atomic"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// LayerState is the state that a layer carries from one piece of a sequence to the next. A nil field stands for zeros. The shapes
// below are those of a Mamba block. H3 has the state of its shift in Conv and that of its inner layer in Scan; S4, S6, LSTM and
// attention use Scan alone; a gated MLP has no state.
type LayerState struct {
	Conv *G.Node // (batch, d_conv-1, d_inner): the last inputs of the convolution; always nil if d_conv is 1
	Scan *G.Node // (batch, d_inner, d_state): the state of the scan

	err error // the error of ZeroState, if any
}

// State is the state of a stack: a LayerState for each layer.
type State []LayerState

// Nodes returns the nodes of the state, in order.
func (s State) Nodes() (nodes G.Nodes) {
	for _, l := range s {
		for _, n := range []*G.Node{l.Conv, l.Scan} {
			if n != nil {
				nodes = append(nodes, n)
			}
		}
	}
	return nodes
}

// layer returns the state of layer i. A nil State has only zero states.
func (s State) layer(i int) LayerState {
	if s == nil {
		return LayerState{}
	}
	return s[i]
}

var states atomic.Uint64

// zeroState returns new input nodes with zeros, of the shapes of a layer's state, nil for a shape that is nil.
func zeroState(g *G.ExprGraph, o layer.Options, batch int, shapes func(batch int) (conv, scan tensor.Shape)) LayerState {
	if g == nil {
		return LayerState{err: fmt.Errorf("nn: ZeroState: the graph is missing")}
	}
	if batch < 1 {
		return LayerState{err: fmt.Errorf("nn: ZeroState: batch is %d, want at least 1", batch)}
	}
	conv, scan := shapes(1)
	if err := stateBytes(o.Dtype, conv, scan).Times(batch).Fits("its states"); err != nil {
		return LayerState{err: fmt.Errorf("nn: ZeroState: batch is %d: %w", batch, err)}
	}
	conv, scan = shapes(batch)
	id := states.Add(1) // makes the names differ, since Gorgonia merges leaves of one name
	leaf := func(name string, shape tensor.Shape) *G.Node {
		if shape == nil {
			return nil
		}
		return G.NodeFromAny(g, o.New(nil, shape...), G.WithName(fmt.Sprintf("state.%s#%d", name, id)))
	}
	return LayerState{Conv: leaf("conv", conv), Scan: leaf("scan", scan)}
}

// stateBytes returns the bytes of states of these shapes.
func stateBytes(dt tensor.Dtype, shapes ...tensor.Shape) (bytes size.Bytes) {
	for _, s := range shapes {
		if s != nil {
			bytes = bytes.Plus(size.Of(dt.Size(), s...))
		}
	}
	return bytes
}

// CallOption is an option of a single application of a block, stack or model.
type CallOption func(*call)

type call struct {
	start     *G.Node
	composed  bool
	recompute Recompute
}

// WithStart packs several sequences into one. Where start (batch, length) is non-zero, a new sequence starts, which sees nothing of
// the steps before it. start is of the model's type, or of int.
func WithStart(start *G.Node) CallOption { return func(c *call) { c.start = start } }

// Recompute says which values the backward pass of a block computes again instead of keeping them from the forward pass. Results and
// gradients are the same bit for bit. docs/recompute.md has the memory and the time of each level.
type Recompute = op.Recompute

const (
	RecomputeCheap = op.RecomputeCheap // keeps the results of in_proj and x_proj; the default
	RecomputeNone  = op.RecomputeNone  // keeps all values between the operations
	RecomputeAll   = op.RecomputeAll   // keeps nothing
)

// WithRecompute sets which values the backward pass of the blocks computes again. It has an effect only in a graph with gradients:
// without them, nothing is kept.
func WithRecompute(level Recompute) CallOption { return func(c *call) { c.recompute = level } }

// WithComposed builds each block of one operator for each operation, instead of one operator for the block. It is slower, and every
// value between the operations is a node of the graph. It is the definition that tests compare the one operator with.
func WithComposed() CallOption { return func(c *call) { c.composed = true } }

// callOf returns the options' values, or an error if an option is nil or has an invalid value.
func callOf(opts []CallOption) (c call, err error) {
	for i, o := range opts {
		if o == nil {
			return c, fmt.Errorf("nn: call option %d is nil", i)
		}
		o(&c)
	}
	if c.recompute < RecomputeCheap || c.recompute > RecomputeAll { // layers that recompute nothing do not look at it
		return c, fmt.Errorf("nn: Recompute is %d, want RecomputeCheap, RecomputeNone or RecomputeAll", int(c.recompute))
	}
	return c, nil
}
