package train

import (
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/kernel"
	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/layer"
)

// exchange adds up gradients over the ranks of a group, and gives each rank its share of the weights.
//
// The elements of all weights of one type stand one after another, in the order in which the backward pass finishes their gradients, and are cut into buckets of about the same size. Each
// bucket has an equal part for each rank. The sum of a part is made on its rank. Then the parts are gathered: those of the gradients, or with shards those of the new weights.
type exchange struct {
	group   *dist.Group
	lists   []list
	buckets []bucket        // of all lists, in the order in which their last gradients are there
	mine    [][]span        // by weight: what this rank sums, and with shards has the moments of
	shard   bool            // each rank has the moments of its own parts alone
	space   any             // memory for a bucket
	squares float64         // the sum of the squares of this rank's parts, of the last step
	device  *deviceExchange // of weights on a GPU, from meet on; nil for weights on the host
	rows    *rows           // on a GPU, of the embedding
}

// list is the weights of one type.
type list struct {
	dt    tensor.Dtype
	slots []slot
	ends  []int // of the buckets, multiples of unit · ranks
}

// length returns the number of elements.
func (l list) length() int { return l.ends[len(l.ends)-1] }

// slot is where a weight stands in a list.
type slot struct {
	param    int // index
	from, to int
}

// bucket is some elements of a list. It is complete when the first after gradients are there.
type bucket struct {
	list
	span
	after int
}

// span is elements: from from to to.
type span struct{ from, to int }

// unit is the number of elements of which weights and parts begin at a multiple, so that the arithmetic of a part begins at a whole cache line.
const unit = 16

// bucketBytes is the most that a bucket on the host has: enough that the time of its messages is that of its bytes. Smaller models have about eight buckets, but of no less than a
// sixteenth of it, so that most of their bytes travel during the backward pass. A bucket ends where the next weight does not fit. A larger weight is cut into several buckets.
var bucketBytes = 8 << 20 // a variable for tests

// newExchange returns an exchange of the gradients of params, which the backward pass finishes in the order of a.
func newExchange(group *dist.Group, params layer.Params, a *arrivals, shard bool) *exchange {
	e := &exchange{group: group, shard: shard, mine: make([][]span, len(params))}
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		total := 0
		for _, i := range a.order {
			if v := params[i].Value; v.Dtype() == dt {
				total += v.Size()
			}
		}
		if total == 0 {
			continue
		}
		ranks, size, onHost := unit*group.Size(), int(dt.Size()), params.Place().OnHost()
		up := func(n, of int) int { return (n + of - 1) / of * of }
		l := list{dt: dt}
		var after []int // by bucket
		from, at, last := 0, 0, 0
		cut := func(to int) {
			from, at = to, max(at, to)
			l.ends, after = append(l.ends, to), append(after, last)
		}
		for there, next := 0, 0; there < len(a.order); there = next {
			next = there + 1
			most := min(bucketBytes, max(bucketBytes/16, total*size/8))
			if !onHost { // the weights whose gradients are there at the same time
				next = a.next(there)
				most = min(deviceBucketBytes, max(deviceBucketBytes/16, (total-from)*size/4*3))
			}
			most = up(max(most/size, 1), ranks)
			n := 0
			for _, i := range a.order[there:next] {
				if v := params[i].Value; v.Dtype() == dt {
					n += up(v.Size(), unit)
				}
			}
			if at > from && at+n > from+most {
				cut(up(at, ranks))
			}
			for _, i := range a.order[there:next] {
				if v := params[i].Value; v.Dtype() == dt {
					l.slots, last = append(l.slots, slot{i, at, at + v.Size()}), next
					at += up(v.Size(), unit)
				}
			}
			for onHost && at > from+most {
				cut(from + most)
			}
		}
		cut(up(at, ranks))
		for _, p := range l.slots {
			e.mine[p.param] = l.parts(p, group.Rank(), group.Size())
		}
		for i, s := range l.spans() {
			e.buckets = append(e.buckets, bucket{l, s, after[i]})
		}
		e.lists = append(e.lists, l)
	}
	slices.SortStableFunc(e.buckets, func(a, b bucket) int { return a.after - b.after })
	return e
}

// ends returns where each bucket ends, in the order in which they travel.
func (e *exchange) ends() (ends []int) {
	for _, b := range e.buckets {
		ends = append(ends, b.to)
	}
	return ends
}

// spans returns the elements of each bucket.
func (l list) spans() (spans []span) {
	from := 0
	for _, to := range l.ends {
		spans = append(spans, span{from, to})
		from = to
	}
	return spans
}

// parts returns the spans of a weight that belong to a rank.
func (l list) parts(p slot, rank, size int) (spans []span) {
	for _, b := range l.spans() {
		part := (b.to - b.from) / size
		from, to := max(b.from+rank*part, p.from), min(b.from+(rank+1)*part, p.to)
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

// elements returns the numbers of weight i, or of its gradient: a []float32 or []float64.
type elements func(i int) (any, error)

// sum replaces the gradients in a bucket by their sums over all ranks, with shards only this rank's part of them. It returns the sum of the squares of that part.
func (e *exchange) sum(b bucket, grads elements) (squares float64, err error) {
	if b.dt == tensor.Float32 {
		return travel[float32](e, b, grads, true)
	}
	return travel[float64](e, b, grads, true)
}

// gather gives all ranks the parts of the weights that the others have.
func (e *exchange) gather(weights elements) (err error) {
	for _, b := range e.buckets {
		if b.dt == tensor.Float32 {
			_, err = travel[float32](e, b, weights, false)
		} else {
			_, err = travel[float64](e, b, weights, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// travel adds up the elements of a bucket over all ranks if reduce is true. Then it gathers the parts, but for those of gradients with shards.
func travel[T kernel.Float](e *exchange, b bucket, of elements, reduce bool) (squares float64, err error) {
	data, _ := e.space.([]T)
	data = slices.Grow(data[:0], b.to-b.from)[:b.to-b.from]
	e.space = data
	clear(data)
	each := func(f func(bucket, of []T)) error {
		for _, p := range b.slots {
			if lo, hi := max(p.from, b.from), min(p.to, b.to); lo < hi {
				x, err := of(p.param)
				if err != nil {
					return err
				}
				f(data[lo-b.from:hi-b.from], x.([]T)[lo-p.from:hi-p.from])
			}
		}
		return nil
	}
	if err := each(func(bucket, of []T) { copy(bucket, of) }); err != nil {
		return 0, err
	}
	part := len(data) / e.group.Size()
	own := data[e.group.Rank()*part:][:part]
	if reduce {
		if err := dist.ReduceScatter(e.group, own, data); err != nil {
			return 0, err
		}
		squares = kernel.SquareSum(own)
	}
	if !reduce || !e.shard {
		if err := dist.AllGather(e.group, data, own); err != nil {
			return 0, err
		}
	}
	return squares, each(func(bucket, of []T) { copy(of, bucket) })
}

// sumOver returns the sum of a number over all ranks.
func sumOver(g *dist.Group, x float64) (float64, error) {
	one := []float64{x}
	err := dist.AllReduce(g, one)
	return one[0], err
}

// sums adds up the gradients of a step over all ranks, bucket by bucket, each as soon as it is complete. So their messages travel while the backward pass runs.
type sums interface {
	// arrived says that the first n gradients are there, in the order of the exchange. It does not wait.
	arrived(n int)
	// end ends what arrived began. failed is the error of the backward pass, which end returns with its own: buckets that were not complete then stay as they are.
	end(failed error) error
}

// hostSums is the sums of gradients on the host, which a goroutine makes. Until end returns, no other collective call of the group may be made.
type hostSums struct {
	group *dist.Group
	there chan int
	done  chan struct{}
	err   error
}

// begin begins to add up gradients on the host. grads is called for those that are there.
func (e *exchange) begin(grads elements) *hostSums {
	s := &hostSums{group: e.group, there: make(chan int, len(e.mine)+1), done: make(chan struct{})}
	e.squares = 0
	e.group.Beside(true)
	go func() {
		defer close(s.done)
		there, more := 0, true
		for _, b := range e.buckets {
			for there < b.after {
				if there, more = <-s.there; !more {
					return
				}
			}
			squares, err := e.sum(b, grads)
			if e.squares += squares; err != nil {
				s.err = err
				return
			}
		}
	}()
	return s
}

func (s *hostSums) arrived(n int) { s.there <- n }

// end tells the other ranks of a failure before it waits: with segments their operators may wait for a message of this rank, and this rank's sum for them.
func (s *hostSums) end(failed error) error {
	close(s.there)
	s.group.Beside(false)
	failed = s.group.Fail(failed)
	<-s.done
	if failed != nil {
		return failed // which the sum's error follows from
	}
	return s.err
}

// arrivals tells when gradients are there.
type arrivals struct {
	order []int       // of the weights, as the backward pass finishes their gradients
	told  []int       // the numbers of gradients that are there when tell is called, in ascending order
	first []int       // by number of gradients that are there: how many of the first ones of order are; nil if it is that number
	tell  func(n int) // is called with the number of gradients that are there, in this order; nil if nobody asks
}

// align makes the order that from the last weight to the first, which is the same for ranks with other graphs.
func (a *arrivals) align() {
	at := make([]int, len(a.order)) // by weight
	for i, w := range a.order {
		at[w] = i
	}
	a.first = make([]int, len(at)+1)
	a.told = nil
	for there := range a.first {
		a.told = append(a.told, there) // any number, since those of the ranks differ
		k := 0
		for k < len(at) && at[len(at)-1-k] < there {
			k++
		}
		a.first[there] = k
	}
	for i := range a.order {
		a.order[i] = len(at) - 1 - i
	}
}

// next returns the number of gradients that are there when it is told the next time that more than n are there.
func (a *arrivals) next(n int) int {
	for _, there := range a.told {
		if there > n {
			return there
		}
	}
	return len(a.order)
}

// watch returns the arrivals of the gradients of a graph. The tape machine runs the nodes in the order of gorgonia.Sort, backwards, and adds each gradient to that of its weight at
// once. So when one of our operators begins to run, the gradients of all nodes before it are there.
func watch(grads G.Nodes) (*arrivals, error) {
	sorted, err := G.Sort(grads[0].Graph())
	if err != nil {
		return nil, err
	}
	slices.Reverse(sorted)
	weights := map[*G.Node][]int{}
	for i, n := range grads {
		weights[n] = append(weights[n], i)
	}
	a, told := &arrivals{}, 0
	var late []int
	for _, n := range sorted {
		if o, ok := n.Op().(*operator.Gradients); ok && len(a.order) > told {
			there := len(a.order)
			told, a.told = there, append(a.told, there)
			o.Before(func() {
				if n := there; a.tell != nil {
					if a.first != nil {
						n = a.first[there]
					}
					a.tell(n)
				}
			})
		}
		if len(node.Operands(n)) > 0 && n.Op() != (G.Iop{}) {
			a.order = append(a.order, weights[n]...)
		} else { // the machine adds these when the run ends
			late = append(late, weights[n]...)
		}
	}
	a.order = append(a.order, late...)
	return a, nil
}
