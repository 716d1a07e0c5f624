package graph

import (
	"errors"
	"fmt"
	"slices"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/size"
)

// DecoderLayer holds the weights of a Mamba block, with the names and shapes of op.BlockInputs.
type DecoderLayer struct {
	NormWeight, InProj, ConvWeight, XProj, DtProj, DtBias, ALog, D, OutProj *Weight
	InBias, ConvBias, OutBias                                               *Weight // optional
}

// DecoderModel is a language model of Mamba blocks.
type DecoderModel struct {
	Vocab, Model, Channels, State, Width, Rank int
	Eps                                        float64
	Precision                                  cuda.Precision
	Embedding, NormF, Head                     *Weight // Head is (vocab, model); it may be Embedding itself
	Layers                                     []DecoderLayer
}

// Decoder reads tokens without a Gorgonia graph. A read takes a fixed number of tokens of each sequence of a batch. The states stay on the
// device between reads. A decoder of one token per sequence runs a captured step; a decoder of several runs the blocks, in parallel over
// time.
//
// The decoder has two sets of states, before and after a read, so that a failed read changes nothing.
type Decoder struct {
	context       *Context
	model         DecoderModel
	batch, length int
	memory        [2]*buffer                  // the states of all layers, before and after a read
	states        [2][][2]cuda.Array[float32] // parts of memory: context and state of each layer
	at            int                         // index of the states before the next read

	ids      cuda.Array[int32] // the tokens to read; after a step, the tokens of the largest logits
	there    []int32           // the tokens in ids, nil if unknown
	x, last  *buffer           // the residual stream; last is a second one, if length is above 1
	logits   *buffer           // (batch, vocab), if length is 1
	began    bool              // the first step has run
	closed   bool
	captured [2]captured // for each value of at
	now      places      // where the weights are on the device now

	weights, products []*Weight // all weights; the weights of matrix products
}

// captured is a captured step, and where the weights were on the device at that time.
type captured struct {
	step *cuda.Capture
	of   places
}

// places holds the device arrays of weights.
type places struct {
	whole []cuda.Array[float32]
	half  []cuda.Array[cuda.BFloat16]
}

// NewDecoder returns a decoder of batch sequences that reads length tokens of each at a time. All states are zero. Only a decoder of length
// 1 computes logits.
//
// Errors: a batch or length below 1; a size of the model above what the kernels support; an error of the device.
func (c *Context) NewDecoder(m DecoderModel, batch, length int) (*Decoder, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if batch < 1 || length < 1 {
		return nil, fmt.Errorf("graph: decoder: batch is %d and length %d, want at least 1", batch, length)
	}
	step := cuda.Step[float32]{Batch: batch, Model: m.Model, Channels: m.Channels, State: m.State, Width: m.Width, Rank: m.Rank, Eps: float32(m.Eps)}
	if err := step.Fits(); err != nil {
		return nil, fmt.Errorf("graph: decoder: %w", err)
	}
	if err := m.check(c); err != nil {
		return nil, fmt.Errorf("graph: decoder: %w", err)
	}
	// With this check, no product below overflows.
	if err := countable(tensor.Shape{batch, length, max(len(m.Layers), 1), m.Vocab + m.Model + m.Channels*(m.Width+m.State+2) + 64}); err != nil {
		return nil, fmt.Errorf("graph: decoder: batch is %d and length %d: the decoder's memory %w", batch, length, err)
	}
	d := &Decoder{context: c, model: m, batch: batch, length: length}
	d.weights, d.products = m.weights()
	err := c.Do(func(s *cuda.Stream) (err error) {
		take := func(n int) *buffer {
			if err != nil {
				return nil
			}
			var b *buffer
			if b, err = c.newBuffer(n); err == nil {
				err = b.array.Fill(s, 0)
			}
			return b
		}
		padded := func(n int) int { return (n + 63) / 64 * 64 } // aligns each part, since kernels read several numbers at once
		context, scan := batch*(m.Width-1)*m.Channels, batch*m.Channels*m.State
		for i := range d.memory {
			d.memory[i] = take(len(m.Layers) * (padded(context) + padded(scan)))
			if err != nil {
				return err
			}
			from := 0
			part := func(n int) cuda.Array[float32] {
				a := d.memory[i].array.Slice(from, n)
				from += padded(n)
				return a
			}
			for range m.Layers {
				d.states[i] = append(d.states[i], [2]cuda.Array[float32]{part(context), part(scan)})
			}
		}
		d.x = take(batch * length * m.Model)
		if length == 1 {
			d.logits = take(batch * m.Vocab)
		} else {
			d.last = take(batch * length * m.Model)
		}
		if err == nil {
			d.ids, err = cuda.NewArray[int32](s, batch*length)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Close frees the decoder's memory and captured steps.
func (d *Decoder) Close() error {
	if d == nil {
		return errDecoder
	}
	return d.context.Do(func(*cuda.Stream) error {
		for _, b := range []*buffer{d.memory[0], d.memory[1], d.x, d.last, d.logits} {
			b.release()
		}
		d.memory, d.states, d.x, d.last, d.logits = [2]*buffer{}, [2][][2]cuda.Array[float32]{}, nil, nil, nil
		d.closed = true
		d.ids.Free()
		d.ids = cuda.Array[int32]{}
		return d.forget()
	})
}

// forget frees the captured steps.
func (d *Decoder) forget() (err error) {
	for i := range d.captured {
		if c := d.captured[i].step; c != nil {
			err = errors.Join(err, c.Close())
		}
		d.captured[i].step = nil
	}
	return err
}

// SetStates copies states from the host to the device: for each layer the context (batch, width-1, channels), if the width is above 1, then
// the state (batch, channels, state).
func (d *Decoder) SetStates(host [][]float32) error {
	return d.moveStates(host, func(s *cuda.Stream, a cuda.Array[float32], v []float32) error { return a.CopyFrom(s, v) })
}

// States copies the states to the host, in the order of SetStates.
func (d *Decoder) States(host [][]float32) error {
	return d.moveStates(host, func(s *cuda.Stream, a cuda.Array[float32], v []float32) error { return a.CopyTo(s, v) })
}

func (d *Decoder) moveStates(host [][]float32, move func(*cuda.Stream, cuda.Array[float32], []float32) error) error {
	return d.do(func(s *cuda.Stream) error {
		var all []cuda.Array[float32]
		for _, layer := range d.states[d.at] {
			all = append(all, layer[0], layer[1])
		}
		all = slices.DeleteFunc(all, func(a cuda.Array[float32]) bool { return a.Len() == 0 })
		if len(host) != len(all) {
			return fmt.Errorf("graph: decoder: host has %d states, want %d: the contexts and states of %d layers", len(host), len(all), len(d.states[d.at]))
		}
		for i, a := range all { // before any is copied
			if len(host[i]) != a.Len() {
				return fmt.Errorf("graph: decoder: host[%d] has %d elements, want %d", i, len(host[i]), a.Len())
			}
		}
		for i, a := range all {
			if err := move(s, a, host[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

var errDecoder = errors.New("graph: the decoder is missing, want one that NewDecoder returned")

// do calls f with the context locked. It returns an error if the decoder is closed.
func (d *Decoder) do(f func(*cuda.Stream) error) error {
	if d == nil {
		return errDecoder
	}
	return d.context.Do(func(s *cuda.Stream) error {
		if d.closed {
			return errors.New("graph: the decoder is closed")
		}
		return f(s)
	})
}

// Commit makes the states after the last Read the current ones. It does nothing on the device and cannot fail.
func (d *Decoder) Commit() {
	if d.context == nil {
		return
	}
	d.context.mu.Lock()
	defer d.context.mu.Unlock()
	d.at = 1 - d.at
}

// Read reads tokens (batch, length). It computes the states after them and, if length is 1, the logits. The current states do not change
// until Commit, also after an error. It is an error if a token is not in the vocabulary.
func (d *Decoder) Read(tokens []int32) error {
	return d.do(func(s *cuda.Stream) error {
		if n := d.batch * d.length; len(tokens) != n {
			return fmt.Errorf("graph: decoder: there are %d tokens, want %d: batch times length", len(tokens), n)
		}
		for i, token := range tokens {
			if token < 0 || int(token) >= d.model.Vocab {
				return fmt.Errorf("graph: decoder: tokens[%d] is %d, want 0 to %d", i, token, d.model.Vocab-1)
			}
		}
		// Greedy generation reads the tokens that the previous step has chosen. They are already on the device.
		if !slices.Equal(tokens, d.there) {
			if err := d.ids.CopyFrom(s, tokens); err != nil {
				return err
			}
		}
		d.there = nil
		if d.length > 1 {
			if d.model.Precision == cuda.BF16 {
				return piece(d, s, (*Weight).Half)
			}
			return piece(d, s, (*Weight).Array)
		}
		return d.step(s)
	})
}

// Logits waits for the logits (batch, vocab) after the last Read, and copies them to the host.
func (d *Decoder) Logits(logits []float32) error {
	return d.do(func(s *cuda.Stream) error {
		if d.logits == nil {
			return fmt.Errorf("graph: decoder: there are no logits: length is %d, want 1", d.length)
		}
		return d.logits.array.CopyTo(s, logits)
	})
}

// Best waits for the tokens (batch) of the largest logits after the last Read, and copies them to the host. Of several largest it takes the
// lowest token. A token is -1 if the largest logit is infinite or a logit is NaN.
func (d *Decoder) Best(tokens []int32) error {
	err := d.do(func(s *cuda.Stream) error { return d.ids.CopyTo(s, tokens) })
	if err == nil {
		d.there = append([]int32(nil), tokens...)
	}
	return err
}

// check returns an error that names the first option or weight that does not fit.
func (m *DecoderModel) check(c *Context) error {
	if err := m.Precision.Err(); err != nil {
		return err
	}
	if len(m.Layers) == 0 {
		return errors.New("the model's Layers are empty, want at least one")
	}
	if m.Vocab < 1 {
		return fmt.Errorf("the model's Vocab is %d, want at least 1", m.Vocab)
	}
	var wrong error
	want := func(name string, w *Weight, sizes ...int) {
		n := size.Product(sizes...)
		switch {
		case wrong != nil:
		case w == nil || w.host == nil:
			wrong = fmt.Errorf("%s is missing, want a weight of %d elements", name, n)
		case w.Size() != n:
			wrong = fmt.Errorf("%s has shape %v, want %d elements", name, w.Shape(), n)
		case w.context != c:
			wrong = fmt.Errorf("%s belongs to another device", name)
		}
	}
	optional := func(name string, w *Weight, n int) {
		if w != nil {
			want(name, w, n)
		}
	}
	want("Embedding", m.Embedding, m.Vocab, m.Model)
	want("NormF", m.NormF, m.Model)
	want("Head", m.Head, m.Vocab, m.Model)
	for i, l := range m.Layers {
		of := fmt.Sprintf("Layers[%d].", i)
		want(of+"NormWeight", l.NormWeight, m.Model)
		want(of+"InProj", l.InProj, 2, m.Channels, m.Model)
		want(of+"ConvWeight", l.ConvWeight, m.Channels, m.Width)
		want(of+"XProj", l.XProj, m.Rank+2*m.State, m.Channels)
		want(of+"DtProj", l.DtProj, m.Channels, m.Rank)
		want(of+"DtBias", l.DtBias, m.Channels)
		want(of+"ALog", l.ALog, m.Channels, m.State)
		want(of+"D", l.D, m.Channels)
		want(of+"OutProj", l.OutProj, m.Model, m.Channels)
		optional(of+"InBias", l.InBias, 2*m.Channels)
		optional(of+"ConvBias", l.ConvBias, m.Channels)
		optional(of+"OutBias", l.OutBias, m.Model)
	}
	return wrong
}

// weights returns all weights of the model that are not nil, and the weights of matrix products.
func (m *DecoderModel) weights() (all, products []*Weight) {
	products = []*Weight{m.Head}
	for _, l := range m.Layers {
		products = append(products, l.InProj, l.XProj, l.DtProj, l.OutProj)
	}
	all = append(slices.Clone(products), m.Embedding, m.NormF)
	for _, l := range m.Layers {
		all = append(all, l.NormWeight, l.ConvWeight, l.DtBias, l.ALog, l.D, l.InBias, l.ConvBias, l.OutBias)
	}
	return slices.DeleteFunc(all, func(w *Weight) bool { return w == nil }), products
}

// step queues a step of one token per sequence. It launches the captured step if the weights are where they were at its capture.
func (d *Decoder) step(s *cuda.Stream) error {
	d.now.whole, d.now.half = d.now.whole[:0], d.now.half[:0]
	for _, w := range d.weights {
		a, err := w.Array() // brings the device's copy up to date
		if err != nil {
			return err
		}
		d.now.whole = append(d.now.whole, a)
	}
	if d.model.Precision == cuda.BF16 {
		for _, w := range d.products {
			h, err := w.Half()
			if err != nil {
				return err
			}
			d.now.half = append(d.now.half, h)
		}
	}
	c := &d.captured[d.at]
	if c.step != nil && slices.Equal(d.now.whole, c.of.whole) && slices.Equal(d.now.half, c.of.half) {
		return c.step.Launch(s)
	}
	run := func() error {
		if d.model.Precision == cuda.BF16 {
			return stepOf(d, s, (*Weight).Half)
		}
		return stepOf(d, s, (*Weight).Array)
	}
	if c.step != nil {
		old := c.step
		c.step = nil
		if err := old.Close(); err != nil {
			return err
		}
	}
	if !d.began { // the first step loads the kernels, so it runs without a capture
		err := run()
		d.began = err == nil
		return err
	}
	step, err := s.Capture(run)
	if err != nil {
		return err
	}
	c.step, c.of, d.now = step, d.now, c.of
	return step.Launch(s)
}

// arrays holds the first error of several calls of fetch.
type arrays struct{ err error }

func fetch[T cuda.Element](a *arrays, w *Weight, get func(*Weight) (cuda.Array[T], error)) (v cuda.Array[T]) {
	if w == nil || a.err != nil {
		return v
	}
	v, a.err = get(w)
	return v
}

func stepOf[T cuda.Activation](d *Decoder, s *cuda.Stream, get func(*Weight) (cuda.Array[T], error)) error {
	m := &d.model
	var a arrays
	plain := func(w *Weight) cuda.Array[float32] { return fetch(&a, w, (*Weight).Array) }
	product := func(w *Weight) cuda.Array[T] { return fetch(&a, w, get) }
	embedding := plain(m.Embedding)
	if a.err != nil {
		return a.err
	}
	x := d.x.array
	if err := cuda.EmbeddingForward(s, d.batch, m.Model, embedding, d.ids, x); err != nil {
		return err
	}
	for i, l := range m.Layers {
		step := cuda.Step[T]{
			Batch: d.batch, Model: m.Model, Channels: m.Channels, State: m.State, Width: m.Width, Rank: m.Rank, Eps: float32(m.Eps),
			Norm: plain(l.NormWeight), Conv: plain(l.ConvWeight), DtBias: plain(l.DtBias), ALog: plain(l.ALog), D: plain(l.D),
			InProj: product(l.InProj), XProj: product(l.XProj), DtProj: product(l.DtProj), OutProj: product(l.OutProj),
			InBias: plain(l.InBias), ConvBias: plain(l.ConvBias), OutBias: plain(l.OutBias),
			X: x, Context: d.states[d.at][i][0], Scan: d.states[d.at][i][1],
		}
		if a.err != nil {
			return a.err
		}
		if err := step.Forward(s, x, d.states[1-d.at][i][0], d.states[1-d.at][i][1]); err != nil {
			return err
		}
	}
	norm, head := plain(m.NormF), product(m.Head)
	if a.err != nil {
		return a.err
	}
	err := cuda.StepProduct(s, d.batch, m.Model, m.Vocab, x, norm, float32(m.Eps), head, cuda.Array[float32]{}, cuda.Array[float32]{}, d.logits.array)
	if err != nil {
		return err
	}
	return cuda.Largest(s, d.batch, m.Vocab, d.logits.array, d.ids)
}

// piece queues the blocks over several tokens of each sequence, for the states only.
func piece[T cuda.Activation](d *Decoder, s *cuda.Stream, get func(*Weight) (cuda.Array[T], error)) error {
	m := &d.model
	var a arrays
	plain := func(w *Weight) cuda.Array[float32] { return fetch(&a, w, (*Weight).Array) }
	product := func(w *Weight) cuda.Array[T] { return fetch(&a, w, get) }
	embedding := plain(m.Embedding)
	if a.err != nil {
		return a.err
	}
	if err := cuda.EmbeddingForward(s, d.batch*d.length, m.Model, embedding, d.ids, d.x.array); err != nil {
		return err
	}
	for i, l := range m.Layers {
		b := cuda.Block[T]{
			Batch: d.batch, Length: d.length, Model: m.Model, Channels: m.Channels, State: m.State, Width: m.Width, Rank: m.Rank,
			Eps: float32(m.Eps), Precision: m.Precision, X: d.x.array,
			Norm: plain(l.NormWeight), Conv: plain(l.ConvWeight), DtBias: plain(l.DtBias), ALog: plain(l.ALog), D: plain(l.D),
			InProj: product(l.InProj), XProj: product(l.XProj), DtProj: product(l.DtProj), OutProj: product(l.OutProj),
			InBias: plain(l.InBias), ConvBias: plain(l.ConvBias), OutBias: plain(l.OutBias), Initial: d.states[d.at][i][1],
		}
		if m.Width > 1 {
			b.Context = d.states[d.at][i][0]
		}
		if a.err != nil {
			return a.err
		}
		next := d.states[1-d.at][i]
		var context cuda.Array[float32]
		if m.Width > 1 {
			context = next[0]
		}
		if _, err := b.Forward(s, d.last.array, context, next[1], false); err != nil {
			return err
		}
		d.x, d.last = d.last, d.x
	}
	return nil
}
