package cuda

import (
	"fmt"
	"slices"
)

// EmbeddingForward queues x (rows, width): for each id, its row of w. The caller must have checked that the ids are rows of w.
func EmbeddingForward(s *Stream, rows, width int, w Array[float32], ids Array[int32], x Array[float32]) error {
	if err := firstError(
		atLeast(0, "embedding", "rows", rows, "width", width),
		expect("embedding", "ids", ids.n, rows, "x", x.n, count(rows, width), "w", w.n, min(rows, 1)*width),
	); err != nil {
		return err
	}
	return s.run("embedding", "embedding_forward", blocksOf(rows*width, 256), w.address, ids.address, x.address, rows, width)
}

// EmbeddingBackward queues the addition of w's gradient to dw (vocabulary, width), from dx (rows, width) and the ids on the host. The rows
// of a token are added in their order, in chunks. An id outside the vocabulary is an error.
func EmbeddingBackward(s *Stream, rows, width, vocabulary int, ids []int32, dx, dw Array[float32]) error {
	if err := firstError(
		atLeast(0, "embedding", "rows", rows, "width", width, "vocabulary", vocabulary),
		expect("embedding", "ids", len(ids), rows, "dx", dx.n, count(rows, width), "dw", dw.n, count(vocabulary, width)),
		s.usable(),
	); err != nil {
		return err
	}
	if rows == 0 {
		return nil
	}
	plan, chunks, sums, slots, err := embeddingPlan(s.plan, ids[:rows], vocabulary)
	if err != nil {
		return err
	}
	s.plan = plan
	there, err := Upload(s, plan)
	if err != nil {
		return err
	}
	defer there.Free()
	parts, err := NewArray[float32](s, slots*width)
	if err != nil {
		return err
	}
	defer parts.Free()
	threads := min(256, (width+31)/32*32)
	at := func(i int) uintptr { return there.address + uintptr(4*i) }
	if err := s.run("embedding", "embedding_backward", grid{x: int64(chunks), threads: threads}, dx.address, at(0), at(rows),
		parts.address, dw.address, width); err != nil {
		return err
	}
	return s.run("embedding", "embedding_sums", grid{x: int64(sums), threads: threads}, at(rows+4*chunks), parts.address, dw.address, width)
}

// embeddingChunk is the number of rows that one block of threads adds.
const embeddingChunk = 32

// embeddingPlan returns the positions sorted by token, then the chunks, then the sums of the tokens with several chunks: four numbers for
// each chunk and sum (kernels/embedding.cu). slots is the number of partial sums. The plan reuses memory if it is long enough.
func embeddingPlan(memory, ids []int32, vocabulary int) (plan []int32, chunks, sums, slots int, err error) {
	begin := make([]int32, vocabulary+1)
	for i, id := range ids {
		if id < 0 || int(id) >= vocabulary {
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
