package cuda

import (
	"math"
	"unsafe"
)

// partSum describes the sum of count parts of size elements each, which are pitch elements apart. The rows of the result, of width elements that are apart
// elements from each other, are written step elements apart. kernels/scan16sums.cu has the same struct.
type partSum struct {
	to, parts                                    uintptr
	count, pitch, size, width, apart, step, half int64 // half is 1 for a result of bfloat16
}

// sumOf returns the sum of count parts that follow each other, of as many elements as the result.
func sumOf(to, parts Array[float32], count int) partSum {
	n := int64(to.n)
	return partSum{to: to.address, parts: parts.address, count: int64(count), pitch: n, size: n, width: n, apart: 1, step: n}
}

// gathered are sums that wait for the end of Stream.together, and the memory of their parts.
type gathered struct {
	sums  []partSum
	parts temporaries
}

// sum queues sums of parts: those that are needed now at once, and the others at the end of together, if it runs. It frees parts, the memory of the
// others.
func (s *Stream) sum(now, later []partSum, parts ...Array[float32]) error {
	if g := s.gathered; g != nil {
		g.sums = append(g.sums, later...)
		for _, p := range parts {
			g.parts = append(g.parts, p)
		}
		return s.sumParts(now)
	}
	for _, p := range parts {
		defer p.Free()
	}
	return s.sumParts(append(now, later...))
}

// together calls f, and then queues the sums that f has left for later in one launch. Small sums take less time than their launches.
func (s *Stream) together(f func() error) error {
	g := new(gathered)
	s.gathered = g
	defer g.parts.free()
	err := func() error {
		defer func() { s.gathered = nil }() // also after a panic: sums that stay in g would never be queued
		return f()
	}()
	if err != nil {
		return err
	}
	return s.sumParts(g.sums)
}

// mostSums is the number of sums of a launch.
const mostSums = 12

// partGroups returns the number of groups of threads of a block that share the parts of a sum. kernels/scan16sums.cu has the same numbers.
func partGroups(count int64) int64 {
	const manyParts, each, fewest, most = 16, 8, 2, 64
	if count < manyParts {
		return 1
	}
	groups := int64(fewest)
	for groups < most && count > each*groups {
		groups *= 2
	}
	return groups
}

// sumParts queues sums, up to mostSums in each launch.
func (s *Stream) sumParts(sums []partSum) error {
	for len(sums) > 0 {
		var some [mostSums]struct {
			partSum
			first int64 // the number of its first block in the launch
		}
		for i := range some {
			some[i].first = math.MaxInt64
		}
		g := grid{threads: 256}
		n := min(len(sums), mostSums)
		for i, p := range sums[:n] {
			each := int64(4 * 256) // elements of a block
			each /= partGroups(p.count)
			some[i].partSum, some[i].first = p, g.x
			g.x += (p.size + each - 1) / each
		}
		if err := s.run("scan16sums", "sum_parts", g.wait(s), unsafe.Pointer(&some)); err != nil {
			return err
		}
		sums = sums[n:]
	}
	return nil
}
