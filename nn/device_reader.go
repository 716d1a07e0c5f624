package nn

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda/graph"
	"github.com/gomamba/mamba/layer"
)

// newDeviceReader is newReader for a model on a device. The states are on the device; bringState copies them to r.state.
func newDeviceReader(lm *LM, batch, length int, opts []CallOption) (*reader, error) {
	c, err := callOf(opts)
	if err != nil {
		return nil, err
	}
	if c.start != nil || c.composed {
		return nil, fmt.Errorf("nn: WithStart and WithComposed do not work in generation on a device")
	}
	for _, p := range lm.Params() {
		if p.LoRA() != nil {
			return nil, fmt.Errorf("nn: %s has a LoRA, which generation on a device does not support: merge it first, with MergeLoRA", p.Name)
		}
	}
	cfg := lm.cfg
	m := graph.DecoderModel{
		Vocab: cfg.Vocab, Model: cfg.DModel, Channels: cfg.inner(), State: cfg.DState, Width: cfg.DConv, Rank: cfg.DtRank,
		Eps: cfg.NormEps, Precision: lm.opts.Precision,
		Embedding: lm.embed.Weight.OnDevice(), NormF: lm.stack.norm.Weight.OnDevice(), Head: lm.head.OnDevice(),
	}
	for _, b := range lm.stack.Blocks() {
		x := b.mixer
		optional := func(p *layer.Param) *graph.Weight {
			if p == nil {
				return nil
			}
			return p.OnDevice()
		}
		m.Layers = append(m.Layers, graph.DecoderLayer{
			NormWeight: b.norm.Weight.OnDevice(), InProj: x.inProj.Weight.OnDevice(), ConvWeight: x.conv.Weight.OnDevice(),
			XProj: x.xProj.Weight.OnDevice(), DtProj: x.dtProj.Weight.OnDevice(), DtBias: x.dtProj.Bias.OnDevice(),
			ALog: x.aLog.OnDevice(), D: x.d.OnDevice(), OutProj: x.outProj.Weight.OnDevice(),
			InBias: optional(x.inProj.Bias), ConvBias: optional(x.conv.Bias), OutBias: optional(x.outProj.Bias),
		})
	}
	d, err := lm.opts.Device.NewDecoder(m, batch, length)
	if err != nil {
		return nil, fmt.Errorf("nn: %w", err)
	}
	r := &reader{lm: lm, ids: tensor.New(tensor.WithShape(batch, length), tensor.Of(tensor.Int)), out: new(outputs), device: &deviceReader{decoder: d}}
	for _, s := range lm.stack.stateShapes() {
		r.state = append(r.state, tensor.New(tensor.WithShape(append(tensor.Shape{batch}, s.shape...)...), tensor.Of(tensor.Float32)))
	}
	if length == 1 {
		logits := tensor.New(tensor.WithShape(batch, 1, cfg.Vocab), tensor.Of(tensor.Float32))
		r.out.logits = G.Value(logits)
		r.device.logits = numbers(logits)
	}
	return r, nil
}

// deviceReader is the part of a reader that is on a device.
type deviceReader struct {
	decoder  *graph.Decoder
	logits   []float32
	greedy   bool    // read only the tokens of the largest logits, not the logits
	best     []int32 // these tokens; -1 if the logits are wrong
	hostNew  bool    // the states on the host were written, and the states on the device are out of date
	hostOld  bool    // the states on the device were written, and the states on the host are out of date
	tokens32 []int32
}

// numbers returns the elements of a row-major tensor of float32.
func numbers(d *tensor.Dense) []float32 { return d.Data().([]float32) }

func hostStates(state []*tensor.Dense) [][]float32 {
	all := make([][]float32, len(state))
	for i, v := range state {
		all[i] = numbers(v)
	}
	return all
}

func (d *deviceReader) read(r *reader, tokens []int) error {
	if d.hostNew {
		if err := d.decoder.SetStates(hostStates(r.state)); err != nil {
			return err
		}
		d.hostNew = false
	}
	d.tokens32 = d.tokens32[:0]
	for _, token := range tokens {
		d.tokens32 = append(d.tokens32, int32(token))
	}
	if err := d.decoder.Read(d.tokens32); err != nil || d.logits == nil {
		return err
	}
	if d.greedy {
		return d.decoder.Best(d.best)
	}
	return d.decoder.Logits(d.logits)
}

func (d *deviceReader) commit() {
	d.decoder.Commit()
	d.hostOld = true
}

// chooseGreedily sets what later reads on a device copy to the host: only the tokens of the largest logits, or all logits.
func (r *reader) chooseGreedily(greedy bool) {
	if d := r.device; d != nil {
		d.greedy, d.best = greedy, make([]int32, r.batch())
	}
}

// best returns the token of a row's largest logit if reads choose greedily on a device. If the row's logits are wrong, best copies them to the
// host, so that the caller's check of them gives the error.
func (r *reader) best(row int) (token int, ok bool, err error) {
	d := r.device
	if d == nil || !d.greedy {
		return 0, false, nil
	}
	if d.best[row] >= 0 {
		return int(d.best[row]), true, nil
	}
	return 0, false, d.decoder.Logits(d.logits)
}

// stateWritten records that r.state was written.
func (r *reader) stateWritten() {
	if r.device != nil {
		r.device.hostNew, r.device.hostOld = true, false
	}
}

// bringState brings r.state up to date.
func (r *reader) bringState() error {
	if r.device == nil || !r.device.hostOld {
		return nil
	}
	if err := r.device.decoder.States(hostStates(r.state)); err != nil {
		return err
	}
	r.device.hostOld = false
	return nil
}
