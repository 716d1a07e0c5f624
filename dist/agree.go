package dist

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"
)

// call is what a rank is about to do.
type call uint8

const (
	callFail call = iota
	callClose
	callBarrier
	callBytes
	callReduce
	callScatter
	callGather
	callBroadcast
	callSend
)

var callNames = [...]string{"Fail", "Close", "Barrier", "GatherBytes", "AllReduce", "ReduceScatter", "AllGather", "Broadcast", "Send"}

// header is what each rank tells the others before a call.
type header struct {
	call  call
	root  int32
	size  uint8 // bytes of an element
	kind  byte  // of the elements
	count int64 // number of elements; of bytes for callBytes and callFail
}

const headerBytes = 16

func (h header) write(b []byte) {
	b[0], b[1], b[2] = byte(h.call), h.size, h.kind
	binary.LittleEndian.PutUint32(b[4:], uint32(h.root))
	binary.LittleEndian.PutUint64(b[8:], uint64(h.count))
}

func readHeader(b []byte) header {
	return header{call(b[0]), int32(binary.LittleEndian.Uint32(b[4:])), b[1], b[2], int64(binary.LittleEndian.Uint64(b[8:]))}
}

var kinds = map[byte]string{'f': "float32", 'd': "float64", 'h': "bfloat16", 'b': "bytes"}

func (h header) String() string {
	text := "something unknown"
	if int(h.call) < len(callNames) {
		text = callNames[h.call]
	}
	if h.kind != 0 {
		text += fmt.Sprintf(" of %d %s", h.count, kinds[h.kind])
	}
	if h.call == callBroadcast {
		text += fmt.Sprintf(" from rank %d", h.root)
	}
	return text
}

func headerOf[T Element](c call, count int) header {
	var x T
	h := header{call: c, size: uint8(unsafe.Sizeof(x)), count: int64(count)}
	switch any(x).(type) {
	case float32:
		h.kind = 'f'
	case float64:
		h.kind = 'd'
	case BFloat16:
		h.kind = 'h'
	default:
		h.kind = 'b'
	}
	return h
}

// move sends and receives the messages of a collective call.
func (g *Group) move(messages []Message) error {
	if err := g.engine.Move(tagGroup, messages); err != nil {
		return g.breaks(fmt.Errorf("dist: rank %d: %w", g.Rank(), err))
	}
	return nil
}

// records are what the ranks tell each other at the beginning of a call: a header each and, if the data of the call fit, the data too. Record i is that of the rank i before
// this one.
type records struct {
	rank, size int
	all        []byte
}

const recordBytes, fewBytes = 64, 64 - headerBytes

func (r records) of(rank int) []byte {
	return r.all[(r.rank-rank+r.size)%r.size*recordBytes:][:recordBytes]
}

func (r records) header(rank int) header { return readHeader(r.of(rank)) }

// few returns the data in the record of a rank.
func few[T Element](r records, rank, count int) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(&r.of(rank)[headerBytes])), count)
}

// agree tells all ranks what this one is about to do, and returns what all do. It is an error unless that is the same. data travel along if they are at most fewBytes.
//
// It takes ⌈log₂ N⌉ rounds of one message: after round k a rank has the records of itself and of the 2ᵏ - 1 ranks before it.
func (g *Group) agree(own header, data []byte) (records, error) {
	n := g.Size()
	r := records{g.Rank(), n, make([]byte, recordBytes*n)}
	own.write(r.all)
	if len(data) <= fewBytes {
		copy(r.all[headerBytes:], data)
	}
	for have := 1; have < n; have *= 2 {
		count := min(have, n-have) * recordBytes
		if err := g.move([]Message{
			{(r.rank - have + n) % n, true, r.all[have*recordBytes:][:count]},
			{(r.rank + have) % n, false, r.all[:count]},
		}); err != nil {
			return r, err
		}
	}
	if g.next != nil {
		g.next(false)
	}
	if own.call == callFail {
		return r, nil
	}
	texts, messages, first := make([][]byte, n), []Message{}, -1
	for rank := range n {
		if h := r.header(rank); h.call == callFail {
			texts[rank] = make([]byte, min(max(h.count, 0), longestError))
			messages = append(messages, Message{rank, true, texts[rank]})
			if first < 0 {
				first = rank
			}
		}
	}
	if first >= 0 {
		if err := g.move(messages); err != nil {
			return r, err
		}
		return r, g.breaks(&rankError{int(r.header(first).root), string(bytes.TrimSpace(texts[first]))})
	}
	zero := r.header(0)
	for rank := range n {
		h := r.header(rank)
		if h.call == callBytes { // their numbers may differ
			h.count = zero.count
		}
		if h != zero {
			return r, g.breaks(fmt.Errorf("dist: rank 0 calls %v and rank %d calls %v, want the same calls in the same order on all ranks", zero, rank, r.header(rank)))
		}
	}
	return r, nil
}

const longestError = 16 << 10

// Fail tells all ranks that this one cannot go on because of an error: their current or next collective call returns it, with the number of this
// rank. Calls of their Devices end, on the host and on the GPU, and return it too; Fail does not wait for those. Fail waits for the collective call, and the group is of no further use
// on any rank. It returns err, and does nothing if err is nil, if the group has failed already, or if it is a group of one.
func (g *Group) Fail(err error) error {
	if err == nil || g == nil || g.engine == nil || g.closed.Load() {
		return err
	}
	first := &rankError{g.Rank(), err.Error()}
	errors.As(err, &first) // another rank has failed before
	text := whole([]byte(first.text+" "), longestError)
	own := header{call: callFail, root: int32(first.rank), count: int64(len(text))}
	g.announce(own, text)
	if g.paired.Load() && !g.told.Swap(true) { // others may wait in Receive, and a collective call of another goroutine of this rank for them
		message := make([]byte, headerBytes)
		own.write(message)
		for rank := range g.Size() {
			if rank != g.Rank() {
				_ = g.send(rank, message, text) // that the engine has failed, agree says
			}
		}
	}
	g.collective.Add(1)
	defer g.collective.Add(-1)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken != nil {
		return err
	}
	r, other := g.agree(own, nil)
	if other != nil {
		return errors.Join(err, other)
	}
	var messages []Message
	for rank := range g.Size() {
		if r.header(rank).call != callFail {
			messages = append(messages, Message{rank, false, text})
		}
	}
	other = g.move(messages)
	g.breaks(fmt.Errorf("dist: this rank has failed: %w", err))
	return errors.Join(err, other)
}
