package dist

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomamba/mamba/cuda"
)

// mesh is the Engine of processes that were started without MPI. Each two have a TCP connection, for signs of life, Send and small messages. Large messages of collective calls
// go through NCCL, from and to memory of the GPU. NCCL could not carry those of Send: it may wait for the receiver, and everything after it as well.
type mesh struct {
	rank, size int
	peers      []*peer // by rank; nil for this one

	gpu     *cuda.Device
	devices *Devices // nil until openGPU
	buffer  cuda.Array[byte]
	stream  *cuda.Stream // of buffer

	watch    atomic.Pointer[watch]
	ended    chan struct{}  // closed by Close
	leaving  sync.WaitGroup // ranks that have not left
	aborting sync.Mutex     // locked for good by the first that says why the process ends
}

// peer is the connection to another rank.
type peer struct {
	conn  net.Conn
	write sync.Mutex
	heard atomic.Int64 // when the last bytes came, in nanoseconds

	mu      sync.Mutex
	arrived map[Tag][][]byte   // messages that nobody has asked for yet
	wanted  map[Tag][]*wanting // in the order of their calls
}

// wanting is a message that a Move waits for.
type wanting struct {
	bytes []byte
	done  chan error
}

// Tags of messages of the mesh itself. tagLife is a sign of life.
const (
	tagLeave Tag = 100 + iota // the last message
	tagEnd                    // all processes end; the text says why
)

const frameBytes = 12 // tag and length, before each message

func newMesh(rank, size int) *mesh {
	return &mesh{rank: rank, size: size, peers: make([]*peer, size), ended: make(chan struct{})}
}

func newPeer(c net.Conn) *peer {
	return &peer{conn: c, arrived: map[Tag][][]byte{}, wanted: map[Tag][]*wanting{}}
}

func (m *mesh) Rank() int { return m.rank }
func (m *mesh) Size() int { return m.size }

// others returns the ranks that are connected.
func (m *mesh) others() (all []*peer) {
	for _, p := range m.peers {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

func (m *mesh) hangUp() {
	for _, p := range m.others() {
		p.conn.Close()
	}
}

// start begins to read from all connections, and to watch them.
func (m *mesh) start() {
	m.leaving.Add(m.size - 1)
	for rank, p := range m.peers {
		if p != nil {
			p.heard.Store(time.Now().UnixNano())
			go m.read(rank, p)
		}
	}
	go m.live()
	go m.check()
}

// Read reads from the connection, and notes that the other process lives.
func (p *peer) Read(b []byte) (n int, err error) {
	n, err = p.conn.Read(b)
	p.heard.Store(time.Now().UnixNano())
	return n, err
}

// send writes a message.
func (p *peer) send(tag Tag, b []byte) error {
	p.write.Lock()
	defer p.write.Unlock()
	return p.sendLocked(tag, b)
}

func (p *peer) sendLocked(tag Tag, b []byte) error {
	frame := make([]byte, frameBytes, frameBytes+min(len(b), 1<<12))
	binary.LittleEndian.PutUint32(frame, uint32(tag))
	binary.LittleEndian.PutUint64(frame[4:], uint64(len(b)))
	if len(b) <= 1<<12 { // one packet
		_, err := p.conn.Write(append(frame, b...))
		return err
	}
	buffers := net.Buffers{frame, b}
	_, err := buffers.WriteTo(p.conn)
	return err
}

// read receives all messages of a rank, until the end of the connection.
func (m *mesh) read(rank int, p *peer) {
	in, left := bufio.NewReaderSize(p, 1<<16), false
	for {
		tag, err := p.take(in)
		switch {
		case err != nil && left:
			return
		case err != nil:
			m.abort(fmt.Sprintf("rank %d has ended or is cut off: %v", rank, err))
		case tag == tagLeave:
			left = true // its signs of life go on until all leave
			m.leaving.Done()
		case tag == tagEnd:
			why := p.next(tagEnd)
			m.aborting.Lock()
			say(m, fmt.Sprintf("rank %d has ended it: %s", rank, why))
			os.Exit(1)
		}
	}
}

// take receives a message, into the memory of the call that waits for it if there is one.
func (p *peer) take(in io.Reader) (tag Tag, err error) {
	var frame [frameBytes]byte
	if _, err := io.ReadFull(in, frame[:]); err != nil {
		return 0, err
	}
	tag, n := Tag(binary.LittleEndian.Uint32(frame[:])), binary.LittleEndian.Uint64(frame[4:])
	if tag == tagLife || tag == tagLeave {
		return tag, nil
	}
	p.mu.Lock()
	w := p.want(tag)
	p.mu.Unlock()
	if w != nil && uint64(len(w.bytes)) == n {
		_, err := io.ReadFull(in, w.bytes)
		if err == nil {
			w.done <- nil
		}
		return tag, err // a call that waits for the rest waits for the end of the process
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(in, b); err != nil {
		return tag, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w == nil {
		w = p.want(tag)
	}
	if w == nil {
		p.arrived[tag] = append(p.arrived[tag], b)
	} else {
		w.fill(b)
	}
	return tag, nil
}

// want returns the first call that waits for a message, which no longer waits for another one. p.mu must be locked.
func (p *peer) want(tag Tag) (w *wanting) {
	if list := p.wanted[tag]; len(list) > 0 {
		w, p.wanted[tag] = list[0], list[1:]
	}
	return w
}

// next returns a message that has arrived, nil if there is none.
func (p *peer) next(tag Tag) (b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if list := p.arrived[tag]; len(list) > 0 {
		b, p.arrived[tag] = list[0], list[1:]
	}
	return b
}

func (w *wanting) fill(b []byte) {
	if len(b) != len(w.bytes) {
		w.done <- fmt.Errorf("a message has %d bytes, and %d are expected", len(b), len(w.bytes))
		return
	}
	copy(w.bytes, b)
	w.done <- nil
}

// ask begins to wait for a message.
func (p *peer) ask(tag Tag, b []byte) *wanting {
	w := &wanting{b, make(chan error, 1)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if list := p.arrived[tag]; len(list) > 0 {
		p.arrived[tag] = list[1:]
		w.fill(list[0])
	} else {
		p.wanted[tag] = append(p.wanted[tag], w)
	}
	return w
}

func (m *mesh) Move(tag Tag, messages []Message) error {
	var wanted []*wanting
	var large []Message
	for _, message := range messages {
		switch p := m.peers[message.Peer]; {
		case tag == tagGroup && len(message.Bytes) >= leastLarge && m.devices != nil:
			large = append(large, message)
		case message.Receive:
			wanted = append(wanted, p.ask(tag, message.Bytes))
		}
	}
	for _, message := range messages {
		if !message.Receive && !(tag == tagGroup && len(message.Bytes) >= leastLarge && m.devices != nil) {
			if err := m.peers[message.Peer].send(tag, message.Bytes); err != nil {
				return fmt.Errorf("to rank %d: %w", message.Peer, err)
			}
		}
	}
	if err := m.moveLarge(large); err != nil {
		return err
	}
	for _, w := range wanted {
		if err := <-w.done; err != nil {
			return err
		}
	}
	return nil
}

func (m *mesh) Watch(limit time.Duration, progress func() (uint64, string)) {
	m.watch.Store(&watch{limit, progress})
}

// live sends signs of life to the next rank.
func (m *mesh) live() {
	next, tick := m.peers[(m.rank+1)%m.size], time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	for sent := time.Now(); ; {
		select {
		case <-m.ended:
			return
		case now := <-tick.C:
			w := m.watch.Load()
			if w == nil || now.Sub(sent) < w.limit/10 || !next.write.TryLock() { // a message on its way is one too
				continue
			}
			_ = next.sendLocked(tagLife, nil) // the reader notices what is wrong
			next.write.Unlock()
			sent = now
		}
	}
}

// check ends all processes if the rank before is silent or this one makes no progress.
func (m *mesh) check() {
	before, tick := (m.rank+m.size-1)%m.size, time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	var s stall
	for {
		select {
		case <-m.ended:
			return
		case now := <-tick.C:
			w := m.watch.Load()
			if w == nil || w.limit == 0 {
				continue
			}
			if now.Sub(time.Unix(0, m.peers[before].heard.Load())) > w.limit {
				m.abort(silent(before, w.limit))
			}
			if why := s.check(now, w); why != "" {
				m.abort(why)
			}
		}
	}
}

// Close waits until all ranks leave.
func (m *mesh) Close() error {
	var err error
	for _, p := range m.others() {
		if e := p.send(tagLeave, nil); e != nil && err == nil {
			err = e
		}
	}
	m.leaving.Wait()
	close(m.ended)
	m.hangUp()
	return m.closeGPU(err)
}

// abort writes why, and ends the processes of all ranks.
func (m *mesh) abort(why string) {
	m.aborting.Lock()
	say(m, why)
	for _, p := range m.others() {
		_ = p.conn.SetWriteDeadline(time.Now().Add(time.Second))
		if p.write.TryLock() { // else a message is on its way, and the end of the connection says the rest
			_ = p.sendLocked(tagEnd, []byte(why))
		}
	}
	os.Exit(1)
}
