package nn

import (
	"gonum.org/v1/gonum/blas/gonum"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/step"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// hostDecoder is a decoder on the host, without a graph: package step reads a token of each sequence as one job.
type hostDecoder struct {
	step    *step.Step
	batch   int
	vocab   int
	context bool // the states have contexts: the width is above 1
}

// newHostDecoder returns a decoder of a model, or nil if package step does not compute the model's step, or the batch is large. A graph then reads
// the tokens.
func newHostDecoder(lm *LM, batch int) *hostDecoder {
	if batch > step.MostRows {
		return nil
	}
	c := hostConfig(lm)
	if c == nil {
		return nil
	}
	c.Batch = batch
	return &hostDecoder{step: step.New(*c), batch: batch, vocab: lm.cfg.Vocab, context: lm.stack.cfg.DConv > 1}
}

// hostConfig returns the sizes and the weights of a model for package step, or nil if that does not compute the model: a layer that is no Mamba
// block, a weight with a LoRA, a type other than float32, or another BLAS.
func hostConfig(lm *LM) *step.Config {
	switch G.WhichBLAS().(type) {
	case gonum.Implementation, blas.Implementation:
	default:
		return nil
	}
	cfg := lm.stack.cfg
	if lm.stack.opts.Dtype != tensor.Float32 || !lm.Params().Place().OnHost() {
		return nil
	}
	ok := true
	floats := func(p *layer.Param, shape ...int) []float32 {
		if p == nil {
			return nil
		}
		if p.Value == nil || p.LoRA() != nil || !p.Value.Shape().Eq(tensor.Shape(shape)) || p.Value.RequiresIterator() {
			ok = false
			return nil
		}
		v, is := p.Value.Data().([]float32)
		ok = ok && is
		return v
	}
	matrix := func(p *layer.Param, outputs, inputs int) *blas.Weights {
		if w := p.Narrow(); w != nil {
			ok = ok && w.Outputs() == outputs && w.Inputs() == inputs
			return w
		}
		w, err := blas.WeightsOf(outputs, inputs, floats(p, outputs, inputs))
		ok = ok && err == nil
		return w
	}
	c := step.Config{
		Model: cfg.DModel, Channels: cfg.inner(), State: cfg.DState, Width: cfg.DConv, Rank: cfg.DtRank, Eps: cfg.NormEps,
		Embedding: matrix(lm.embed.Weight, lm.cfg.Vocab, cfg.DModel), Norm: floats(lm.stack.norm.Weight, cfg.DModel), Head: matrix(lm.head, lm.cfg.Vocab, cfg.DModel),
	}
	shapes := op.BlockShapes(c.Model, c.Channels, c.State, c.Width, c.Rank)
	for _, l := range lm.stack.layers {
		b, is := l.(*MambaBlock)
		if !is {
			return nil
		}
		w := b.mixer.Parts.Weights()
		w.Norm = b.norm.Weight
		of := func(p *layer.Param, shape []int) *blas.Weights { return matrix(p, shape[0], shape[1]) }
		block := step.Block{
			InProj: of(w.InProj, shapes.InProj), XProj: of(w.XProj, shapes.XProj), DtProj: of(w.DtProj, shapes.DtProj), OutProj: of(w.OutProj, shapes.OutProj),
			Norm: floats(w.Norm, shapes.Norm...), ALog: floats(w.ALog, shapes.ALog...), D: floats(w.D, shapes.D...), DtBias: floats(w.DtBias, shapes.DtBias...),
			Conv: floats(w.Conv, shapes.Conv...), ConvBias: floats(w.ConvBias, shapes.ConvBias...),
			InBias: floats(w.InBias, shapes.InBias...), OutBias: floats(w.OutBias, shapes.OutBias...),
		}
		c.Blocks = append(c.Blocks, block)
	}
	if !ok {
		return nil
	}
	return &c
}

// readOnHost reads a piece of each sequence, of at most most tokens and without the last pending one, all together. It returns false if a graph
// has to read them.
func readOnHost(lm *LM, sequences []*Sequence, most int) bool {
	c := hostConfig(lm)
	if c == nil {
		return false
	}
	var pieces []step.Piece
	for _, s := range sequences {
		n := min(len(s.pending)-1, most)
		if n == 0 {
			continue
		}
		p := step.Piece{Tokens: s.pending[:n]}
		if s.state == nil {
			s.state = map[string]*tensor.Dense{}
			for _, w := range lm.stack.slots() {
				s.state[w.Name] = tensor.New(tensor.WithShape(w.Shape...), tensor.Of(tensor.Float32))
			}
		}
		state := s.tensors(lm)
		for i := range c.Blocks {
			context, scan := blockState(state, i, c.Width > 1)
			p.Context, p.Scan = append(p.Context, context), append(p.Scan, scan)
		}
		pieces = append(pieces, p)
	}
	if len(pieces) > 0 {
		c.ReadPieces(pieces)
	}
	for _, s := range sequences {
		s.read(min(len(s.pending)-1, most))
	}
	return true
}

// onHost makes the reader read with a decoder on the host. It returns false if the model needs a graph.
func (r *reader) onHost() bool {
	d := newHostDecoder(r.lm, r.batch())
	if d == nil {
		return false
	}
	r.decoding = &decoding{decoder: d, logits: d.step.Logits()}
	r.out.logits = tensor.New(tensor.WithShape(d.batch, 1, d.vocab), tensor.WithBacking(d.step.Logits()))
	return true
}

// refresh makes the next read look at the weights that a decoder on the host keeps in another form.
func (r *reader) refresh() {
	if r.decoding != nil {
		if d, ok := r.decoding.decoder.(*hostDecoder); ok {
			d.step.Refresh()
		}
	}
}

func (d *hostDecoder) Read(tokens []int) error {
	d.step.Read(tokens)
	return nil
}

func (d *hostDecoder) Commit() { d.step.Commit() }

// blockState returns the state of block i in a list of states, which have contexts if the convolution's width is above 1.
func blockState(states []*tensor.Dense, i int, contexts bool) (context, scan []float32) {
	if states == nil {
		return nil, nil
	}
	data := func(i int) []float32 { return states[i].Data().([]float32) }
	if !contexts {
		return nil, data(i)
	}
	return data(2 * i), data(2*i + 1)
}

func (d *hostDecoder) blocks() int { return len(d.step.Blocks) }

func (d *hostDecoder) Zero() error {
	for row := range d.batch {
		d.SetRow(row, nil)
	}
	return nil
}

func (d *hostDecoder) SetRow(row int, host []*tensor.Dense) error {
	for i := range d.blocks() {
		context, scan := blockState(host, i, d.context)
		d.step.LoadState(row, i, context, scan)
	}
	return nil
}

func (d *hostDecoder) States(host []*tensor.Dense) error {
	for row := range d.batch {
		d.RowStates(row, host)
	}
	return nil
}

func (d *hostDecoder) RowStates(row int, host []*tensor.Dense) error {
	for i := range d.blocks() {
		context, scan := blockState(host, i, d.context)
		part := func(v []float32) []float32 { return v[row*len(v)/d.batch : (row+1)*len(v)/d.batch] }
		d.step.StoreState(row, i, part(context), part(scan))
	}
	return nil
}

func (d *hostDecoder) Logits([]float32) error { return nil } // they are the step's

func (d *hostDecoder) Best(tokens []int, _ bool) error {
	for row := range tokens {
		tokens[row] = d.step.Best(row)
	}
	return nil
}

func (d *hostDecoder) Close() error { return nil }
