package train

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// exchange adds up gradients over the ranks of a group, and gives each rank its share of the weights.
//
// The elements of all weights of one type stand one after another, in the order of the weights, and are cut into buckets. Each bucket has an equal part for each
// rank. The sum of a part is made on its rank. Then the parts are gathered: those of the gradients, or with shards those of the new weights.
type exchange struct {
	group *dist.Group
	lists []list
	mine  [][]span // by weight: what this rank sums, and with shards has the moments of
	shard bool     // each rank has the moments of its own parts alone
}

// list is the weights of one type.
type list struct {
	dt     tensor.Dtype
	slots  []slot
	length int // a multiple of bucket
	bucket int // elements of a bucket, a multiple of unit · ranks
}

// slot is where a weight stands in a list.
type slot struct {
	param    int // index
	from, to int
}

// unit is the number of elements of which weights and parts begin at a multiple, so that the arithmetic of a part begins at a whole cache line.
const unit = 16

// bucketBytes is the size of a bucket: large enough that the time of its messages is that of its bytes.
var bucketBytes = 8 << 20 // a variable for tests

func newExchange(group *dist.Group, params layer.Params, shard bool) *exchange {
	e := &exchange{group: group, shard: shard, mine: make([][]span, len(params))}
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		l := list{dt: dt}
		for i, p := range params {
			if p.Value.Dtype() == dt {
				n := p.Value.Size()
				l.slots = append(l.slots, slot{i, l.length, l.length + n})
				l.length += (n + unit - 1) / unit * unit
			}
		}
		if l.slots == nil {
			continue
		}
		ranks := unit * group.Size()
		l.bucket = min(bucketBytes/int(dt.Size()), l.length+ranks-1) / ranks * ranks
		l.bucket = max(l.bucket, ranks)
		l.length = (l.length + l.bucket - 1) / l.bucket * l.bucket
		for _, p := range l.slots {
			e.mine[p.param] = l.parts(p, group.Rank(), group.Size())
		}
		e.lists = append(e.lists, l)
	}
	return e
}

// span is elements of a weight: from from to to.
type span struct{ from, to int }

// parts returns the spans of a weight that belong to a rank.
func (l list) parts(p slot, rank, size int) (spans []span) {
	part := l.bucket / size
	for b := p.from / l.bucket * l.bucket; b < p.to; b += l.bucket {
		from, to := max(b+rank*part, p.from), min(b+(rank+1)*part, p.to)
		if from < to {
			spans = append(spans, span{from - p.from, to - p.from})
		}
	}
	return spans
}

// spansOf returns the spans of weight i that belong to a rank.
func (e *exchange) spansOf(i, rank int) []span {
	for _, l := range e.lists {
		for _, p := range l.slots {
			if p.param == i {
				return l.parts(p, rank, e.group.Size())
			}
		}
	}
	return nil
}

// elements are the numbers of the weights of a model, or of their gradients: element i belongs to weight i.
type elements []any // []float32 or []float64

// reduce reslots the gradients by their sums over all ranks, with shards only this rank's parts of them. It returns the sum of the squares, the same on all ranks.
func (e *exchange) reduce(grads elements) (squares float64, err error) {
	for _, l := range e.lists {
		if l.dt == tensor.Float32 {
			err = reduce[float32](e, l, grads)
		} else {
			err = reduce[float64](e, l, grads)
		}
		if err != nil {
			return 0, err
		}
	}
	own := 0.0
	for i, g := range grads {
		for _, s := range e.mine[i] {
			switch g := g.(type) {
			case []float32:
				own += kernel.SquareSum(g[s.from:s.to])
			case []float64:
				own += kernel.SquareSum(g[s.from:s.to])
			}
		}
	}
	return sumOver(e.group, own)
}

func reduce[T dist.Float](e *exchange, l list, grads elements) error {
	data := make([]T, l.bucket)
	part := l.bucket / e.group.Size()
	own := data[e.group.Rank()*part:][:part]
	for from := 0; from < l.length; from += l.bucket {
		clear(data)
		each(l, from, grads, func(bucket, of []T) { copy(bucket, of) }, data)
		if err := dist.ReduceScatter(e.group, own, data); err != nil {
			return err
		}
		if !e.shard {
			if err := dist.AllGather(e.group, data, own); err != nil {
				return err
			}
		}
		each(l, from, grads, func(bucket, of []T) { copy(of, bucket) }, data)
	}
	return nil
}

// gather gives all ranks the parts of the weights that the others have.
func (e *exchange) gather(weights elements) (err error) {
	for _, l := range e.lists {
		if l.dt == tensor.Float32 {
			err = gather[float32](e, l, weights)
		} else {
			err = gather[float64](e, l, weights)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func gather[T dist.Float](e *exchange, l list, weights elements) error {
	data := make([]T, l.bucket)
	part := l.bucket / e.group.Size()
	own := data[e.group.Rank()*part:][:part]
	for from := 0; from < l.length; from += l.bucket {
		clear(data)
		each(l, from, weights, func(bucket, of []T) { copy(bucket, of) }, data)
		if err := dist.AllGather(e.group, data, own); err != nil {
			return err
		}
		each(l, from, weights, func(bucket, of []T) { copy(of, bucket) }, data)
	}
	return nil
}

// each calls f with every part of a weight in the bucket that begins at from, and its elements in the bucket.
func each[T dist.Float](l list, from int, of elements, f func(bucket, of []T), data []T) {
	for _, p := range l.slots {
		lo, hi := max(p.from, from), min(p.to, from+l.bucket)
		if lo < hi {
			f(data[lo-from:hi-from], of[p.param].([]T)[lo-p.from:hi-p.from])
		}
	}
}

// sumOver returns the sum of a number over all ranks.
func sumOver(g *dist.Group, x float64) (float64, error) {
	one := []float64{x}
	err := dist.AllReduce(g, one)
	return one[0], err
}

// gradients returns the memory of the gradients of nodes, on the host. Those on a device are copied; back copies them there again.
func gradients(nodes []G.ValueGrad) (all elements, back func() error, err error) {
	all = make(elements, len(nodes))
	device := map[int]*op.DeviceTensor{}
	for i, n := range nodes {
		grad, err := n.Grad()
		if err != nil {
			return nil, nil, fmt.Errorf("train: weight %d has no gradient: %w", i, err)
		}
		d, ok := grad.(*tensor.Dense)
		if !ok {
			device[i] = grad.(*op.DeviceTensor)
			if d, err = device[i].ToHost(); err != nil {
				return nil, nil, err
			}
		}
		all[i] = d.Data()
	}
	return all, func() error {
		for i := range nodes {
			if device[i] != nil {
				if err := device[i].FromHost(all[i].([]float32)); err != nil {
					return err
				}
			}
		}
		return nil
	}, nil
}
