package dist

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/gomamba/mamba/cuda"
)

// BFloat16 is the upper half of a float32.
type BFloat16 = cuda.BFloat16

// Float is a type of elements that can be summed.
type Float interface{ float32 | float64 | BFloat16 }

// Element is a type of elements that can be moved.
type Element interface{ Float | byte }

// bytesOf returns the memory of a slice.
func bytesOf[T Element](x []T) []byte {
	var one T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), len(x)*int(unsafe.Sizeof(one)))
}

// breaks keeps an error after which the group is of no use.
func (g *Group) breaks(err error) error {
	if g.broken == nil {
		g.broken = err
	}
	return err
}

// enter locks the group for a collective call. If it returns nil, the caller must call leave.
func (g *Group) enter(c call) error {
	if g.closed.Load() {
		return fmt.Errorf("dist: %s: the group is closed", callNames[c])
	}
	if !g.mu.TryLock() {
		return fmt.Errorf("dist: %s: another goroutine is in a collective call of the group, want one at a time, in the same order on all ranks", callNames[c])
	}
	if g.broken != nil {
		g.mu.Unlock()
		return g.broken
	}
	g.collective.Add(1)
	if f := g.observer.Load(); f != nil {
		g.next = (*f)(callNames[c])
	}
	return nil
}

// leave ends a call after enter.
func (g *Group) leave() {
	if g.next != nil {
		g.next(true)
		g.next = nil
	}
	g.collective.Add(-1)
	g.mu.Unlock()
}

// each returns messages to and from all other ranks. Their order differs from rank to rank, so that not all send to the same one first.
func (g *Group) each(send, receive func(rank int) []byte) (messages []Message) {
	n := g.Size()
	for i := 1; i < n; i++ {
		from := (g.Rank() - i + n) % n
		if b := receive(from); len(b) > 0 {
			messages = append(messages, Message{from, true, b})
		}
	}
	for i := 1; i < n; i++ {
		to := (g.Rank() + i) % n
		if b := send(to); len(b) > 0 {
			messages = append(messages, Message{to, false, b})
		}
	}
	return messages
}

// Barrier waits until all ranks have called it.
func (g *Group) Barrier() error {
	if g.alone() {
		return g.usable(callBarrier)
	}
	if err := g.enter(callBarrier); err != nil {
		return err
	}
	defer g.leave()
	_, err := g.agree(header{call: callBarrier}, nil)
	return err
}

func (g *Group) alone() bool { return g == nil || g.engine == nil }

func (g *Group) usable(c call) error {
	if g != nil && g.closed.Load() {
		return fmt.Errorf("dist: %s: the group is closed", callNames[c])
	}
	return nil
}

// GatherBytes returns the bytes of all ranks, by rank. Their numbers may differ.
func (g *Group) GatherBytes(own []byte) ([][]byte, error) {
	if g.alone() {
		return [][]byte{append([]byte{}, own...)}, g.usable(callBytes)
	}
	if err := g.enter(callBytes); err != nil {
		return nil, err
	}
	defer g.leave()
	r, err := g.agree(header{call: callBytes, kind: 'b', size: 1, count: int64(len(own))}, own)
	if err != nil {
		return nil, err
	}
	all, most := make([][]byte, g.Size()), int64(0)
	for rank := range all {
		n := r.header(rank).count
		all[rank], most = make([]byte, n), max(most, n)
		copy(all[rank], r.of(rank)[headerBytes:])
	}
	if most <= fewBytes {
		return all, nil
	}
	copy(all[g.Rank()], own)
	return all, g.move(g.each(func(int) []byte { return all[g.Rank()] }, func(rank int) []byte { return all[rank] }))
}

// AllReduce replaces the elements of data by their sums over all ranks, which have the same number of elements.
func AllReduce[T Float](g *Group, data []T) error {
	if g.alone() {
		return g.usable(callReduce)
	}
	if err := g.enter(callReduce); err != nil {
		return err
	}
	defer g.leave()
	r, err := g.agree(headerOf[T](callReduce, len(data)), bytesOf(data))
	if err != nil {
		return err
	}
	if len(bytesOf(data)) <= fewBytes {
		parts := make([][]T, g.Size())
		for rank := range parts {
			parts[rank] = few[T](r, rank, len(data))
		}
		sum(data, parts)
		return nil
	}
	cut := even(len(data), g.Size())
	if err := reduceScatter(g, data[cut(g.Rank()):cut(g.Rank()+1)], data, cut); err != nil {
		return err
	}
	return allGather(g, data, cut)
}

// even cuts n elements into parts whose lengths differ by at most one block of 16, so that small parts are not smaller than a cache line. Part i is from cut(i) to cut(i+1).
func even(n, parts int) func(i int) int {
	const block = 16
	blocks := (n + block - 1) / block
	return func(i int) int { return min(n, int(int64(blocks)*int64(i)/int64(parts))*block) }
}

// equal cuts into parts of n elements.
func equal(n int) func(i int) int { return func(i int) int { return i * n } }

// ReduceScatter writes to own the sums over all ranks of one part of data: data has Size parts as long as own, and rank r gets part r. The
// two may share memory if own is that part. data keeps its other elements.
func ReduceScatter[T Float](g *Group, own, data []T) error {
	if err := fits("ReduceScatter", "data", len(data), len(own), g.Size()); err != nil {
		return g.Fail(err)
	}
	if g.alone() {
		copy(own, data)
		return g.usable(callScatter)
	}
	if err := g.enter(callScatter); err != nil {
		return err
	}
	defer g.leave()
	if _, err := g.agree(headerOf[T](callScatter, len(data)), nil); err != nil {
		return err
	}
	return reduceScatter(g, own, data, equal(len(own)))
}

// AllGather writes own of rank r to part r of all, which has Size parts as long as own. The two may share memory if own is the part of this rank.
func AllGather[T Element](g *Group, all, own []T) error {
	if err := fits("AllGather", "all", len(all), len(own), g.Size()); err != nil {
		return g.Fail(err)
	}
	copy(all[g.Rank()*len(own):], own)
	if g.alone() {
		return g.usable(callGather)
	}
	if err := g.enter(callGather); err != nil {
		return err
	}
	defer g.leave()
	r, err := g.agree(headerOf[T](callGather, len(all)), bytesOf(own))
	if err != nil {
		return err
	}
	if len(bytesOf(own)) <= fewBytes {
		for rank := range g.Size() {
			copy(all[rank*len(own):], few[T](r, rank, len(own)))
		}
		return nil
	}
	return allGather(g, all, equal(len(own)))
}

func fits(call, name string, all, own, size int) error {
	if own > math.MaxInt/size || all != own*size {
		return fmt.Errorf("dist: %s: %s has %d elements and own has %d, want %d times as many", call, name, all, own, size)
	}
	return nil
}

// Broadcast replaces the elements of data by those of rank root. All ranks have the same number of elements.
func Broadcast[T Element](g *Group, data []T, root int) error {
	if root < 0 || root >= g.Size() {
		return g.Fail(fmt.Errorf("dist: Broadcast: root is %d, want a rank: 0 to %d", root, g.Size()-1))
	}
	if g.alone() {
		return g.usable(callBroadcast)
	}
	if err := g.enter(callBroadcast); err != nil {
		return err
	}
	defer g.leave()
	h := headerOf[T](callBroadcast, len(data))
	h.root = int32(root)
	r, err := g.agree(h, bytesOf(data))
	if err != nil {
		return err
	}
	if len(bytesOf(data)) <= fewBytes {
		copy(data, few[T](r, root, len(data)))
		return nil
	}
	// Each rank gets one part from root and the others from the other ranks, so that root does not send everything to everyone.
	cut := even(len(data), g.Size())
	part := func(rank int) []byte { return bytesOf(data[cut(rank):cut(rank+1)]) }
	var messages []Message
	if g.Rank() == root {
		messages = g.each(part, func(int) []byte { return nil })
	} else if own := part(g.Rank()); len(own) > 0 {
		messages = []Message{{root, true, own}}
	}
	if err := g.move(messages); err != nil {
		return err
	}
	return allGather(g, data, cut)
}

// allGather sends this rank's part of all to all ranks, and receives theirs.
func allGather[T Element](g *Group, all []T, cut func(i int) int) error {
	part := func(rank int) []byte { return bytesOf(all[cut(rank):cut(rank+1)]) }
	return g.move(g.each(func(int) []byte { return part(g.Rank()) }, part))
}
