package cuda

import (
	"fmt"
	"slices"
)

// EmbeddingForward queues x (rows, width): for each id, its row of w (vocabulary, width). For an id outside the vocabulary it writes zeros.
func EmbeddingForward(s *Stream, rows, width, vocabulary int, w Array[float32], ids Array[int32], x Array[float32]) error {
	if err := firstError(
		atLeast(0, "embedding", "rows", rows, "width", width, "vocabulary", vocabulary),
		expect("embedding", "ids", ids.n, rows, "x", x.n, count(rows, width), "w", w.n, count(vocabulary, width)),
	); err != nil {
		return err
	}
	together, suffix := embeddingVector(width, w, x)
	return s.run("embedding", "embedding_forward"+suffix, blocksOf(rows*width/together, 256).wait(s), w.address, ids.address, x.address, rows, width, vocabulary)
}

// embeddingVector returns how many numbers of a row a thread reads together, and the suffix of the kernels that do so.
func embeddingVector(width int, a, b Array[float32]) (int, string) {
	if uintptr(width)%4|(a.address|b.address)%16 == 0 {
		return 4, "_4"
	}
	return 1, "_1"
}

// EmbeddingBackward queues the addition of w's gradient to dw (vocabulary, width), from dx (rows, width) and the ids, on the device and on the host.
// The rows of a token are added in their order, in chunks. For a small vocabulary only the ids on the device are read, and those outside the
// vocabulary are ignored. Otherwise the host sorts the ids, and one outside the vocabulary is an error.
func EmbeddingBackward(s *Stream, rows, width, vocabulary int, ids Array[int32], host []int, dx, dw Array[float32]) error {
	if err := firstError(
		atLeast(0, "embedding", "rows", rows, "width", width, "vocabulary", vocabulary),
		expect("embedding", "ids", ids.n, rows, "host", len(host), rows, "dx", dx.n, count(rows, width), "dw", dw.n, count(vocabulary, width)),
		s.usable(),
	); err != nil {
		return err
	}
	if rows == 0 {
		return nil
	}
	// A table of 32 columns for each warp must fit into shared memory, and the partial sums be fewer than the numbers.
	const room = 96 << 10
	if warps := min(8, min(room, s.device.shared)/(128*max(vocabulary, 1))); vocabulary > 0 && warps > 0 && 4*vocabulary <= rows {
		return embeddingFew(s, rows, width, vocabulary, warps, ids, dx, dw)
	}
	plan, chunks, sums, slots, err := embeddingPlan(s.plan, host, vocabulary)
	if err != nil {
		return err
	}
	s.plan = plan
	there, err := Upload(s, plan)
	if err != nil {
		return err
	}
	defer there.Free()
	return embeddingSums(s, rows, width, dx, there.address, chunks, there.address+uintptr(4*(rows+4*chunks)), sums, slots, dw)
}

// embeddingSums queues the addition of the rows of a plan at an address, whose sums stand at another one.
func embeddingSums(s *Stream, rows, width int, dx Array[float32], plan uintptr, chunks int, last uintptr, sums, slots int, dw Array[float32]) error {
	parts, err := NewArray[float32](s, slots*width)
	if err != nil {
		return err
	}
	defer parts.Free()
	together, suffix := embeddingVector(width, dx, dw)
	threads := func(n int) int { return min(256, (n+31)/32*32) }
	return firstError(
		s.run("embedding", "embedding_backward"+suffix, grid{x: int64(chunks), threads: threads(width / together)}.wait(s), dx.address, plan, plan+uintptr(4*rows), parts.address, dw.address, width),
		s.run("embedding", "embedding_sums", grid{x: int64(sums), threads: threads(width)}.wait(s), last, parts.address, dw.address, width),
	)
}

// EmbeddingPacked returns the number of elements that EmbeddingPack writes.
func EmbeddingPacked(rows, width int) int {
	return count((count(rows, width+5)+rows/embeddingChunk*4+63)/64, 64)
}

// EmbeddingPack queues the writing of dx (rows, width) and of the order of the ids on the host to an array of EmbeddingPacked elements. EmbeddingAdd adds these to dw (vocabulary,
// width), or to an array of that length on another device. An id outside the vocabulary is an error.
func EmbeddingPack(s *Stream, rows, width, vocabulary int, host []int, dx, dw, to Array[float32]) error {
	if err := firstError(
		atLeast(0, "embedding pack", "rows", rows),
		atLeast(1, "embedding pack", "width", width, "vocabulary", vocabulary),
		expect("embedding pack", "host", len(host), rows, "dx", dx.n, count(rows, width), "dw", dw.n, count(vocabulary, width), "to", to.n, EmbeddingPacked(rows, width)),
		s.usable(),
	); err != nil || rows == 0 {
		return err
	}
	plan, chunks, _, _, err := embeddingPlan(s.plan, host, vocabulary)
	if err != nil {
		return err
	}
	s.plan = plan
	all := make([]int32, to.n-dx.n)
	copy(all, plan[:rows+4*chunks])
	copy(all[5*rows:], plan[rows+4*chunks:])
	return firstError(to.Slice(0, dx.n).CopyOf(s, dx), Array[int32]{s, to.address + uintptr(4*dx.n), len(all)}.CopyFrom(s, all))
}

// EmbeddingAdd queues the addition of the rows that EmbeddingPack wrote to dw (vocabulary, width), as EmbeddingBackward
// adds those of a large vocabulary. The calls for several arrays of rows are added in their order.
func EmbeddingAdd(s *Stream, rows, width, vocabulary int, from, dw Array[float32]) error {
	if err := firstError(
		atLeast(0, "embedding add", "rows", rows),
		atLeast(1, "embedding add", "width", width, "vocabulary", vocabulary),
		expect("embedding add", "from", from.n, EmbeddingPacked(rows, width), "dw", dw.n, count(vocabulary, width)),
		s.usable(),
	); err != nil || rows == 0 {
		return err
	}
	sums := rows / embeddingChunk // and at most twice as many partial sums
	dx := from.Slice(0, rows*width)
	plan := dx.address + uintptr(4*dx.n)
	return embeddingSums(s, rows, width, dx, plan, rows, plan+uintptr(20*rows), sums, 2*sums, dw)
}

// embeddingFew is EmbeddingBackward for a small vocabulary, with blocks of some warps.
func embeddingFew(s *Stream, rows, width, vocabulary, warps int, ids Array[int32], dx, dw Array[float32]) error {
	g := grid{x: (int64(width) + 31) / 32, threads: 32 * warps, shared: 128 * vocabulary * warps}
	most := min(rows/(4*vocabulary), max(64*s.device.multiprocessors/(warps*int(g.x)), 1)) // blocks along the rows: 64 warps a multiprocessor
	each := max((rows+most-1)/most, 8*warps)
	g.y = int64((rows + each - 1) / each)
	parts, err := NewArray[float32](s, int(g.y)*vocabulary*width)
	if err != nil {
		return err
	}
	defer parts.Free()
	return firstError(
		s.run("embedding", "embedding_few", g.early(s), dx.address, ids.address, parts.address, rows, width, vocabulary, each),
		s.run("embedding", "embedding_few_sums", columnBlocks(vocabulary*width).wait(s), parts.address, dw.address, int(g.y), vocabulary*width),
	)
}

// embeddingChunk is the number of rows that one block of threads adds.
const embeddingChunk = 32

// embeddingPlan returns the positions sorted by token, then the chunks, then the sums of the tokens with several chunks: four numbers for
// each chunk and sum (kernels/embedding.cu). slots is the number of partial sums. The plan reuses memory if it is long enough.
func embeddingPlan(memory []int32, ids []int, vocabulary int) (plan []int32, chunks, sums, slots int, err error) {
	begin := make([]int32, vocabulary+1)
	for i, id := range ids {
		if id < 0 || id >= vocabulary {
			return nil, 0, 0, 0, fmt.Errorf("cuda: embedding: ids[%d] is %d, want 0 to %d", i, id, vocabulary-1)
		}
		begin[id+1]++
	}
	for id := range vocabulary {
		begin[id+1] += begin[id]
	}
	plan = slices.Grow(memory[:0], 6*len(ids))[:len(ids)]
	next := append([]int32(nil), begin...)
	for i, id := range ids {
		plan[next[id]] = int32(i)
		next[id]++
	}
	var several []int32
	for id := range vocabulary {
		from, to := begin[id], begin[id+1]
		first := slots
		for at := from; at < to; at += embeddingChunk {
			slot := int32(-1)
			if to-from > embeddingChunk {
				slot = int32(slots)
				slots++
			}
			plan = append(plan, int32(id), at, min(at+embeddingChunk, to), slot)
			chunks++
		}
		if slots > first {
			several = append(several, int32(id), int32(first), int32(slots), 0)
			sums++
		}
	}
	return append(plan, several...), chunks, sums, slots, nil
}
