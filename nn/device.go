package nn

import (
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/layer"
)

// OnDevice makes a block, stack or model compute on a GPU. Weights, gradients and all values between the layers stay in the GPU's memory.
// Inputs, results, states and the loss are on the host, as without a GPU. Graphs are built, differentiated by gorgonia.Grad and run by a
// tape machine as on the host, but run only one machine of a graph at a time. The lisp machine returns an error. The solver must be
// train.AdamW, or another one that knows op.DeviceWeight.
//
// The type must be float32. Training changes weights on the GPU:
// layer.Params.ToHost copies them to each layer.Param.Value. Checkpoints and the trainer call it themselves.
func OnDevice(device *cuda.Device) Option { return layer.OnDevice(device) }

// WithPrecision sets the precision of a model on a device. cuda.Strict, the default, computes everything in float32. cuda.FP16x3 computes large
// matrix products on tensor cores with operands of 22 significant bits, where float32 has 24. cuda.TF32 rounds the operands of matrix
// products to 11 significant bits. cuda.BF16 has in bfloat16 matrix products and, inside a Mamba block, activations; weights, the residual
// stream, states and all sums stay in float32. docs/cuda.md has the details.
func WithPrecision(p cuda.Precision) Option { return layer.WithPrecision(p) }

// moved returns the states of layers with their nodes moved by the In or Out of an edge.
func (s State) moved(move func(*G.Node) (*G.Node, error)) (to State, err error) {
	for i, l := range s {
		l = slices.Clone(l)
		for j, n := range l {
			if l[j], err = move(n); err != nil {
				return nil, fmt.Errorf("nn: layer %d: %w", i, err)
			}
		}
		to = append(to, l)
	}
	return to, nil
}
