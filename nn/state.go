package nn

import (
	"fmt"
	"sync/atomic"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// LayerState is what a layer carries from one piece of a sequence to the next. A nil field stands for zeros. The shapes are those of
// a Mamba block; H3 has its shift's state in Conv and its inner layer's in Scan, S4 and S6 have Scan alone, and a gated MLP
// has none.
type LayerState struct {
	Conv *G.Node // (batch, d_conv-1, d_inner): the last inputs of the convolution; always nil if d_conv is 1
	Scan *G.Node // (batch, d_inner, d_state): the state of the scan
}

// State is what a stack carries, a LayerState for each layer.
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

// layer returns the state of layer i, zeros in a nil State.
func (s State) layer(i int) LayerState {
	if s == nil {
		return LayerState{}
	}
	return s[i]
}

var states atomic.Uint64

// zeroStates returns new input nodes with zeros, none for a shape that is nil.
func zeroStates(g *G.ExprGraph, o layer.Options, conv, scan tensor.Shape) LayerState {
	id := states.Add(1) // Gorgonia merges leaves of one name
	leaf := func(name string, shape tensor.Shape) *G.Node {
		if shape == nil {
			return nil
		}
		return G.NodeFromAny(g, o.New(layer.Constant(0), shape...), G.WithName(fmt.Sprintf("state.%s#%d", name, id)))
	}
	return LayerState{Conv: leaf("conv", conv), Scan: leaf("scan", scan)}
}

// CallOption is an option of a single application of a block, stack or model.
type CallOption func(*call)

type call struct {
	start     *G.Node
	composed  bool
	recompute Recompute
}

// WithStart packs several sequences into one: where start (batch, length) is non-zero, a new sequence starts, which sees
// nothing of what came before. Its type is that of the model, or int.
func WithStart(start *G.Node) CallOption { return func(c *call) { c.start = start } }

// Recompute says what the backward pass of a block computes again instead of keeping it from the forward pass; results and
// gradients are the same bit for bit. docs/recompute.md has memory and time.
type Recompute = op.Recompute

const (
	RecomputeCheap = op.RecomputeCheap // keeps the results of in_proj and x_proj; the default
	RecomputeNone  = op.RecomputeNone  // keeps all values between the operations
	RecomputeAll   = op.RecomputeAll   // keeps nothing
)

// WithRecompute sets what the backward pass of the blocks computes again. It makes a difference only in a graph that has
// gradients; one that has none keeps nothing.
func WithRecompute(level Recompute) CallOption { return func(c *call) { c.recompute = level } }

// WithComposed builds the blocks of one operator for each operation, instead of one for each block: slower, with every
// value between the operations in the graph to look at. It is the definition that the one operator is tested against.
func WithComposed() CallOption { return func(c *call) { c.composed = true } }

func callOf(opts []CallOption) (c call) {
	for _, o := range opts {
		o(&c)
	}
	return c
}
