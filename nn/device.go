package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/cuda/graph"
	"github.com/gomamba/mamba/layer"
)

// OnDevice makes a block, stack or model compute on a GPU. Weights, gradients and all values between the layers stay in the GPU's memory.
// Inputs, results, states and the loss are on the host, as without a GPU. Graphs are built, differentiated by gorgonia.Grad and run by a
// tape machine as on the host, but run only one machine of a graph at a time. The lisp machine returns an error. The solver must be
// train.AdamW, or another one that knows graph.Weight.
//
// All layers must be Mamba blocks of float32. For generation, merge LoRA first. Training changes weights on the GPU:
// layer.Params.ToHost copies them to each layer.Param.Value. Checkpoints and the trainer call it themselves.
func OnDevice(device *cuda.Device) Option { return layer.OnDevice(device) }

// WithPrecision sets the precision of a model on a device. cuda.Strict, the default, computes everything in float32. cuda.TF32 rounds the
// operands of matrix products to 10 bits after the binary point. cuda.BF16 has activations and matrix products in bfloat16; weights, the
// residual stream, states and all sums stay in float32.
func WithPrecision(p cuda.Precision) Option { return layer.WithPrecision(p) }

// place copies weights to the options' device, if there is one.
func place(o layer.Options, params layer.Params) error {
	if o.Device == nil {
		return nil
	}
	return params.ToDevice(o.Device)
}

// deviceKind returns an error if a kind of layer has no operators on a device and the options name one.
func deviceKind(o layer.Options, k Kind) error {
	if o.Device != nil && k != Mamba {
		return fmt.Errorf("nn: a layer of kind %s does not run on a device, want %s", k, Mamba)
	}
	return nil
}

// starts copies the call's start to the device, if it has one.
func (c call) starts(d *graph.Context) (*G.Node, error) {
	if c.start == nil {
		return nil, nil
	}
	return d.Starts(c.start)
}

// onDevice applies the block to x. x and the states are nodes on the device, and start is a node that graph.Context.Starts returned.
func (b *MambaBlock) onDevice(x *G.Node, state LayerState, withState bool, c call, start *G.Node) (y *G.Node, next LayerState, err error) {
	if c.composed {
		return nil, next, fmt.Errorf("nn: WithComposed does not work on a device, want a block of one operator")
	}
	in, err := b.mixer.inputs(x, state, start)
	if err != nil {
		return nil, next, err
	}
	in.NormWeight = b.norm.Weight.Node(x.Graph())
	cfg := graph.BlockConfig{Eps: b.cfg.NormEps, Precision: b.opts.Precision}
	y, next.Conv, next.Scan, err = b.opts.Device.MambaBlock(in, cfg, withState)
	return y, next, err
}

// moved returns a state whose nodes are copied by move, which is Upload or Download.
func (s LayerState) moved(move func(*G.Node) (*G.Node, error)) (to LayerState, err error) {
	if s.Conv != nil {
		if to.Conv, err = move(s.Conv); err != nil {
			return to, err
		}
	}
	if s.Scan != nil {
		to.Scan, err = move(s.Scan)
	}
	return to, err
}

// applyOnDevice applies the block to x, a node on the host.
func (b *MambaBlock) applyOnDevice(x *G.Node, state LayerState, withState bool, c call) (y *G.Node, next LayerState, err error) {
	d := b.opts.Device
	start, err := c.starts(d)
	if err != nil {
		return nil, next, err
	}
	if state, err = state.moved(d.Upload); err != nil {
		return nil, next, err
	}
	if x, err = d.Upload(x); err != nil {
		return nil, next, err
	}
	if y, next, err = b.onDevice(x, state, withState, c, start); err != nil {
		return nil, next, err
	}
	if next, err = next.moved(d.Download); err != nil {
		return nil, next, err
	}
	y, err = d.Download(y)
	return y, next, err
}

// onDevice applies the stack without its final norm to x, a node on the device. The states are on the host.
func (s *MambaStack) onDevice(x *G.Node, state State, withState bool, opts []CallOption) (y *G.Node, next State, err error) {
	d := s.opts.Device
	c, err := callOf(opts)
	if err != nil {
		return nil, nil, err
	}
	if state != nil && len(state) != len(s.layers) {
		return nil, nil, fmt.Errorf("nn: the state has %d layers, want %d", len(state), len(s.layers))
	}
	start, err := c.starts(d)
	if err != nil {
		return nil, nil, err
	}
	for i, l := range s.layers {
		before := state.layer(i)
		if before.err != nil {
			return nil, nil, before.err
		}
		before, err := before.moved(d.Upload)
		if err != nil {
			return nil, nil, fmt.Errorf("nn: layer %d: %w", i, err)
		}
		var after LayerState
		if x, after, err = l.(*MambaBlock).onDevice(x, before, withState, c, start); err != nil {
			return nil, nil, fmt.Errorf("nn: layer %d: %w", i, err)
		}
		if withState {
			if after, err = after.moved(d.Download); err != nil {
				return nil, nil, fmt.Errorf("nn: layer %d: %w", i, err)
			}
			next = append(next, after)
		}
	}
	return x, next, nil
}

// normOnDevice applies the stack's final norm to x, a node on the device.
func (s *MambaStack) normOnDevice(x *G.Node) (*G.Node, error) {
	return s.opts.Device.RMSNorm(x, s.norm.Weight.Node(x.Graph()), s.cfg.NormEps)
}

// applyOnDevice applies the stack to x, a node on the host.
func (s *MambaStack) applyOnDevice(x *G.Node, state State, withState bool, opts []CallOption) (y *G.Node, next State, err error) {
	if x, err = s.opts.Device.Upload(x); err != nil {
		return nil, nil, err
	}
	if x, next, err = s.onDevice(x, state, withState, opts); err != nil {
		return nil, nil, err
	}
	if x, err = s.normOnDevice(x); err != nil {
		return nil, nil, err
	}
	y, err = s.opts.Device.Download(x)
	return y, next, err
}

// hidden returns the result of the model's stack, and the head's weight, both on the device.
func (m *LM) hidden(ids *G.Node, state State, withState bool, opts []CallOption) (x, head *G.Node, next State, err error) {
	g, d := ids.Graph(), m.opts.Device
	embedding, err := m.embed.Weight.Effective(g)
	if err != nil {
		return nil, nil, nil, err
	}
	if x, head, err = d.Embedding(embedding, ids); err != nil {
		return nil, nil, nil, err
	}
	if m.cfg.UntiedHead {
		if head, err = m.head.Effective(g); err != nil {
			return nil, nil, nil, err
		}
	}
	if x, next, err = m.stack.onDevice(x, state, withState, opts); err != nil {
		return nil, nil, nil, err
	}
	x, err = m.stack.normOnDevice(x)
	return x, head, next, err
}

func (m *LM) applyOnDevice(ids *G.Node, state State, withState bool, opts []CallOption) (logits *G.Node, next State, err error) {
	x, head, next, err := m.hidden(ids, state, withState, opts)
	if err != nil {
		return nil, nil, err
	}
	if logits, err = m.opts.Device.Logits(x, head, m.opts.Precision); err != nil {
		return nil, nil, err
	}
	logits, err = m.opts.Device.Download(logits)
	return logits, next, err
}

func (m *LM) lossOnDevice(ids, targets *G.Node, opts []CallOption) (*G.Node, error) {
	if targets == nil {
		return nil, fmt.Errorf("nn: loss: the targets are missing, want (batch, length) of int")
	}
	x, head, _, err := m.hidden(ids, nil, false, opts)
	if err != nil {
		return nil, err
	}
	return m.opts.Device.Loss(x, head, targets, Ignore, m.opts.Precision)
}
