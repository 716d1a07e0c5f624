package dist

import (
	"bytes"
	"encoding/binary"
	"errors"
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
	g.mu.Unlock()
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
		return r, g.breaks(fmt.Errorf("rank %d: %s", first, bytes.TrimSpace(texts[first])))
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

const longestError = 16 << 10

// Fail tells all ranks that this one cannot go on because of an error: their current or next collective call returns it, with the number of this
// rank. Fail waits for that call, and the group is of no further use on any rank. It returns err, and does nothing if err is nil, if the group has failed already, or if it is a group of one.
func (g *Group) Fail(err error) error {
	if err == nil || g == nil || g.engine == nil || g.closed.Load() {
		return err
	}
	text := []byte(err.Error() + " ")[:min(len(err.Error())+1, longestError)]
	own := header{call: callFail, count: int64(len(text))}
	if g.paired.Load() && !g.told.Swap(true) { // others may wait in Receive, and a collective call of another goroutine of this rank for them
		message := make([]byte, headerBytes)
		own.write(message)
		for rank := range g.Size() {
			if rank != g.Rank() {
				_ = g.send(rank, message, text) // that the engine has failed, agree says
			}
		}
	}
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

// Number of bytes that reduceScatter receives from all ranks together in a round: enough that the time of a message does not count, and little enough to stay in
// a cache of the second or third level.
const roundBytes = 4 << 20

// reduceScatter writes to own the sum over all ranks of part Rank of data.
func reduceScatter[T Float](g *Group, own, data []T, cut func(i int) int) error {
	var one T
	size, n, me := int(unsafe.Sizeof(one)), g.Size(), g.Rank()
	longest := 0
	for r := range n {
		longest = max(longest, cut(r+1)-cut(r))
	}
	piece := max(roundBytes/size/n, 1024)
	if g.pieceForTests > 0 {
		piece = g.pieceForTests
	}
	piece = min(piece, longest)
	if len(g.scratch) < piece*size*n {
		g.scratch = make([]byte, piece*size*n)
	}
	for from := 0; from < longest; from += piece {
		within := func(rank int) (lo, hi int) { // of this round, in part rank
			return min(cut(rank)+from, cut(rank+1)), min(cut(rank)+from+piece, cut(rank+1))
		}
		lo, hi := within(me)
		parts := make([][]T, n)
		for r := range n {
			parts[r] = unsafe.Slice((*T)(unsafe.Pointer(&g.scratch[r*piece*size])), piece)[:hi-lo]
		}
		parts[me] = data[lo:hi]
		if err := g.move(g.each(
			func(to int) []byte { lo, hi := within(to); return bytesOf(data[lo:hi]) },
			func(rank int) []byte { return bytesOf(parts[rank]) },
		)); err != nil {
			return err
		}
		sum(own[lo-cut(me):][:hi-lo], parts)
	}
	return nil
}

// sum writes parts[0] + parts[1] + … to dst, which may be one of them.
func sum[T Float](dst []T, parts [][]T) {
	switch d := any(dst).(type) {
	case []BFloat16:
		sumBFloat16(d, any(parts).([][]BFloat16))
	case []float32:
		sumBlocks(d, any(parts).([][]float32))
	case []float64:
		sumBlocks(d, any(parts).([][]float64))
	}
}

const sumBlock = 512

func sumBlocks[T float32 | float64](dst []T, parts [][]T) {
	var total [sumBlock]T
	for from := 0; from < len(dst); from += sumBlock {
		d := dst[from:min(from+sumBlock, len(dst))]
		t := total[:len(d)]
		copy(t, parts[0][from:])
		for _, p := range parts[1:] {
			p := p[from:][:len(t)]
			for i := range t {
				t[i] += p[i]
			}
		}
		copy(d, t)
	}
}

func sumBFloat16(dst []BFloat16, parts [][]BFloat16) {
	for i := range dst {
		total := parts[0][i].Float32()
		for _, p := range parts[1:] {
			total += p[i].Float32()
		}
		dst[i] = cuda.ToBFloat16(total)
	}
}

// Send sends data to another rank, which calls Receive with as many elements of the same type. It copies data and returns at once; an error of the engine is that of a
// later call.
func Send[T Element](g *Group, data []T, to int) error {
	if err := g.peer("Send", "to", to); err != nil {
		return err
	}
	g.paired.Store(true)
	message := make([]byte, headerBytes)
	headerOf[T](callSend, len(data)).write(message)
	return g.send(to, message, append([]byte{}, bytesOf(data)...))
}

// send starts a message, after those before it to the same rank. It waits for none to another rank, which perhaps receives that one only after this one has arrived.
func (g *Group) send(to int, header, data []byte) error {
	g.sends.Lock()
	defer g.sends.Unlock()
	before, done := g.sent[to], make(chan struct{})
	if g.sent == nil {
		g.sent = map[int]chan struct{}{}
	}
	g.sent[to] = done
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		messages := []Message{{to, false, header}, {to, false, data}}
		if err := g.pair(messages[:1+min(len(data), 1)]); err != nil {
			g.sends.Lock()
			g.unsent = err
			g.sends.Unlock()
		}
	}()
	return g.unsent
}

// Receive receives what another rank sends with Send. It is an error if that has another type or number of elements; the two ranks cannot use Send and Receive after
// it. If the other rank calls Fail, Receive returns its error.
func Receive[T Element](g *Group, data []T, from int) error {
	if err := g.peer("Receive", "from", from); err != nil {
		return err
	}
	g.takes.Lock()
	defer g.takes.Unlock()
	g.paired.Store(true)
	next := func(bool) {}
	if f := g.observer.Load(); f != nil {
		next = (*f)("Receive")
		defer next(true)
	}
	h := make([]byte, headerBytes)
	if err := g.pair([]Message{{from, true, h}}); err != nil {
		return err
	}
	next(false)
	sent, want := readHeader(h), headerOf[T](callSend, len(data))
	if sent.call == callFail {
		text := make([]byte, min(max(sent.count, 1), longestError))
		if err := g.pair([]Message{{from, true, text}}); err != nil {
			return err
		}
		return fmt.Errorf("rank %d: %s", from, bytes.TrimSpace(text))
	}
	if sent != want {
		return fmt.Errorf("dist: rank %d sends %d %s, and rank %d receives %d %s, want the same", from, sent.count, kinds[sent.kind], g.Rank(), want.count, kinds[want.kind])
	}
	if len(data) == 0 {
		return nil
	}
	return g.pair([]Message{{from, true, bytesOf(data)}})
}

func (g *Group) peer(call, name string, rank int) error {
	switch {
	case rank < 0 || rank >= g.Size() || rank == g.Rank():
		return fmt.Errorf("dist: %s: %s is %d, want another rank of the %d, not %d, which is this one", call, name, rank, g.Size(), g.Rank())
	case g.closed.Load():
		return fmt.Errorf("dist: %s: the group is closed", call)
	}
	return nil
}

func (g *Group) pair(messages []Message) error {
	if err := g.engine.Move(tagPair, messages); err != nil {
		return fmt.Errorf("dist: rank %d: %w", g.Rank(), err)
	}
	return nil
}
