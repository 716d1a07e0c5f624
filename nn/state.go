package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// State is the state of a stack: the state of each layer. That of a Mamba block has the slots conv (d_conv-1, d_inner), unless d_conv is
// 1, and scan (d_inner, d_state).
type State []layer.State

// Nodes returns the nodes of the state, in order.
func (s State) Nodes() (nodes G.Nodes) {
	for _, l := range s {
		for _, n := range l {
			if n != nil {
				nodes = append(nodes, n)
			}
		}
	}
	return nodes
}

// CallOption is an option of a single application of a block, stack or model.
type CallOption = layer.CallOption

// WithStart packs several sequences into one. Where start (batch, length) is non-zero, a new sequence starts, which sees nothing of
// the steps before it. start is of the model's type, or of int.
func WithStart(start *G.Node) CallOption { return layer.WithStart(start) }

// WithTraining turns on Config.Dropout and Config.DropPath. step (1) of int is the number of the training step: what is dropped depends on
// it, on the model's seed, on the layer and on the position alone. A negative step drops nothing.
func WithTraining(step *G.Node) CallOption { return layer.WithTraining(step) }

// Recompute says which values the backward pass of a block computes again instead of keeping them from the forward pass. Results and
// gradients are the same bit for bit. docs/recompute.md has the memory and the time of each level.
type Recompute = op.Recompute

const (
	RecomputeCheap = op.RecomputeCheap // keeps the results of in_proj and x_proj; the default
	RecomputeNone  = op.RecomputeNone  // keeps all values between the operations
	RecomputeAll   = op.RecomputeAll   // keeps nothing
)

// WithRecompute sets which values the backward pass of the blocks computes again. It has an effect only in a graph with gradients:
// without them, nothing is kept. On a GPU RecomputeCheap keeps the same values as RecomputeNone.
func WithRecompute(level Recompute) CallOption {
	return func(c *build.Call) {
		if c.Recompute = int(level); level < RecomputeCheap || level > RecomputeAll { // layers that recompute nothing do not look at it
			c.Err = fmt.Errorf("Recompute is %d, want RecomputeCheap, RecomputeNone or RecomputeAll", int(level))
		}
	}
}

// WithComposed builds each block of one operator for each operation, instead of one operator for the block. It is slower, and every
// value between the operations is a node of the graph. It is the definition that tests compare the one operator with.
func WithComposed() CallOption { return func(c *build.Call) { c.Composed = true } }
