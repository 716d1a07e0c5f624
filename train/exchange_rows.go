package train

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/layer"
)

// rows is the gradient of an embedding whose weight is the head's too. That of the head is there when the backward pass begins, and travels while it runs. The rest is there at its
// end: a row for each token, far fewer than the vocabulary has. So the ranks send each other the rows, and each adds those of all ranks, in the order of the ranks, to the
// sum of the head's gradients.
type rows struct {
	*operator.Rows
	param int
}

// fewRows returns the rows of the first of the gradients for which they have fewer bytes than the gradient, nil if there is none. It replaces the gradient by the head's.
func fewRows(grads G.Nodes, ranks int) *rows {
	for i, n := range grads {
		if r := operator.Split(n); r != nil && ranks*r.Number <= r.Table {
			grads[i] = r.Base
			return &rows{r, i}
		}
	}
	return nil
}

// name returns the name of the weight.
func (r *rows) name(params layer.Params) string {
	if r == nil {
		return "none"
	}
	return params[r.param].Name
}

// isRows reports whether the gradient at a place is that of the rows.
func (d *deviceExchange) isRows(p slot) bool { return d.rows != nil && d.rows.param == p.param }

// connectRows makes the operators of the backward pass write the head's gradient to its place, and send the rows.
func (d *deviceExchange) connectRows() (err error) {
	r := d.rows
	each := cuda.EmbeddingPacked(r.Number, r.Width)
	err = d.place.Do(func(s *cuda.Stream) error {
		d.packed, err = cuda.NewArray[float32](s, d.group.Size()*each)
		return err
	})
	r.Apart(func() cuda.Array[float32] { return d.grad(d.params[r.param]) }, func(s *cuda.Stream, ids []int, dout cuda.Array[float32]) error {
		own := d.packed.Slice(d.group.Rank()*each, each)
		if err := cuda.EmbeddingPack(s, r.Number, r.Width, r.Table, ids, dout, d.grad(d.params[r.param]), own); err != nil {
			return err
		}
		if d.err == nil {
			d.err = dist.AllGatherOn(d.x, d.packed, own) // end returns it, as those of the other calls
		}
		return nil
	})
	return err
}

// addRows adds the rows of all ranks to the sum of the head's gradients.
func (d *deviceExchange) addRows() error {
	if d.rows == nil {
		return nil
	}
	r, to := d.rows, d.grad(d.params[d.rows.param])
	each := d.packed.Len() / d.group.Size()
	for rank := range d.group.Size() {
		if err := cuda.EmbeddingAdd(to.Stream(), r.Number, r.Width, r.Table, d.packed.Slice(rank*each, each), to); err != nil {
			return err
		}
	}
	return nil
}
