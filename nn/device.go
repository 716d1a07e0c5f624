package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// OnDevice makes a block, stack or model compute on a GPU. Weights, gradients and all values between the layers stay in the GPU's memory.
// Inputs, results, states and the loss are on the host, as without a GPU. Graphs are built, differentiated by gorgonia.Grad and run by a
// tape machine as on the host, but run only one machine of a graph at a time. The lisp machine returns an error. The solver must be
// train.AdamW, or another one that knows op.DeviceWeight.
//
// The type must be float32. Training changes weights on the GPU:
// layer.Params.ToHost copies them to each layer.Param.Value. Checkpoints and the trainer call it themselves.
func OnDevice(device *cuda.Device) Option { return layer.OnDevice(device) }

// WithPrecision sets the precision of a model on a device. cuda.Strict, the default, computes everything in float32. cuda.TF32 rounds the
// operands of matrix products to 10 bits after the binary point. cuda.BF16 has activations and matrix products in bfloat16; weights, the
// residual stream, states and all sums stay in float32.
func WithPrecision(p cuda.Precision) Option { return layer.WithPrecision(p) }

// place copies weights to the options' device, if there is one.
func place(o layer.Options, params layer.Params) error {
	if o.Place.OnHost() {
		return nil
	}
	return params.ToDevice(o.Place)
}

// edge is where values go from the host to a device and back: at the first layer that has its weights on a device.
type edge struct {
	at   op.Place // of the weights
	both bool     // x came from the host, and so the results go back there
}

func edgeOf(o layer.Options, x *G.Node) edge {
	return edge{o.Place, !o.Place.OnHost() && op.PlaceOf(x).OnHost()}
}

// in uploads a node that is on the host, if the weights are on a device. A nil node stays nil.
func (e edge) in(n *G.Node) (*G.Node, error) {
	if n == nil || e.at.OnHost() || !op.PlaceOf(n).OnHost() {
		return n, nil
	}
	return e.at.Upload(n)
}

// out downloads a result if x came from the host.
func (e edge) out(n *G.Node) (*G.Node, error) {
	if n == nil || !e.both || op.PlaceOf(n).OnHost() {
		return n, nil
	}
	return op.Download(n)
}

// moved returns a state whose nodes are moved by in or out of an edge.
func (s LayerState) moved(move func(*G.Node) (*G.Node, error)) (to LayerState, err error) {
	if to.Conv, err = move(s.Conv); err == nil {
		to.Scan, err = move(s.Scan)
	}
	return to, err
}

// moved is moved for all layers.
func (s State) moved(move func(*G.Node) (*G.Node, error)) (to State, err error) {
	for i, l := range s {
		if l, err = l.moved(move); err != nil {
			return nil, fmt.Errorf("nn: layer %d: %w", i, err)
		}
		to = append(to, l)
	}
	return to, nil
}
