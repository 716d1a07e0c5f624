package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// The functions of NCCL that we call.
const (
	ncclGetUniqueID = iota
	ncclCommInitRankConfig
	ncclCommDestroy
	ncclCommAbort
	ncclCommGetAsyncError
	ncclGetLastError
	ncclReduceScatter
	ncclAllGather
	ncclAllReduce
	ncclBroadcast
	ncclSend
	ncclReceive
	ncclGroupStart
	ncclGroupEnd
)

var nccl = &library{
	name: "NCCL", file: "libnccl.so", variable: "MAMBA_NCCL", majors: []string{"2"},
	install: "NVIDIA's package libnccl2, or Python's nvidia-nccl-cu13 (nvidia-nccl-cu12 for a driver of CUDA 12)",
	symbols: []string{"ncclGetUniqueId", "ncclCommInitRankConfig", "ncclCommDestroy", "ncclCommAbort", "ncclCommGetAsyncError", "ncclGetLastError",
		"ncclReduceScatter", "ncclAllGather", "ncclAllReduce", "ncclBroadcast", "ncclSend", "ncclRecv", "ncclGroupStart", "ncclGroupEnd"},
	codes: map[int]string{
		1: "ncclUnhandledCudaError", 2: "ncclSystemError", 3: "ncclInternalError", 4: "ncclInvalidArgument", 5: "ncclInvalidUsage",
		6: "ncclRemoteError", 7: "ncclInProgress",
	},
}

// ConnectionID identifies a connection of streams of several processes.
type ConnectionID [128]byte

// NewConnectionID returns an id, which one process makes and sends to the others. The error says that NCCL is missing, and what to install.
func (d *Device) NewConnectionID() (id ConnectionID, err error) {
	if err := firstError(d.whileOpen(nothing), nccl.load()); err != nil {
		return id, err
	}
	return id, nccl.do(d, ncclGetUniqueID, uintptr(unsafe.Pointer(&id)))
}

// Connect connects the stream with streams of other processes on other GPUs through NCCL. All size processes call it with the same id, each with another rank from 0 to
// size-1; it waits for all of them. ReduceScatter, AllGather, AllReduce, Broadcast and Exchange then queue work on the stream. All ranks must queue the same calls in the same
// order. Such a call returns when NCCL has queued it: at the first calls of a kind, and at the first messages between two ranks, NCCL may wait for the other ranks before.
// Disconnect, also of another goroutine, ends that wait. Close of the stream ends the connection.
//
// Errors: NCCL is missing; two ranks on the same GPU; a rank that is not below size; a stream that is connected.
func (s *Stream) Connect(id ConnectionID, rank, size int) error {
	if err := s.open(); err != nil {
		return err
	}
	if _, err := s.connected(); err == nil {
		return errors.New("cuda: connect: the stream is connected already")
	}
	if size < 1 || size > 1<<20 || rank < 0 || rank >= size {
		return fmt.Errorf("cuda: connect: rank is %d of %d, want 0 to one less than the size", rank, size)
	}
	if err := nccl.load(); err != nil {
		return err
	}
	c := &connection{rank: rank, size: size, freed: make(chan struct{})}
	s.connection.Store(c)
	err := c.do(s.device, ncclCommInitRankConfig, func() (int, error) {
		return initRank(nccl.address[ncclCommInitRankConfig], &c.handle, size, id, rank), nil
	})
	if err == nil {
		err = c.hold(s)
	}
	if err != nil {
		err = explained(err)
		_ = c.abort(s.device) // frees what there is of it
	}
	return err
}

// connection is a stream's end of a connection of NCCL.
//
// A call can wait on the host for other ranks, and ncclCommAbort of another thread ends that wait. But then it frees the connection, which the call still uses. So there is a graph with
// a call of the connection, which is never launched: NCCL frees no connection before its graphs are destroyed, and we destroy that graph when the call has returned. (A non-blocking
// connection, whose calls are made by threads of NCCL, would not need it. On an H200 its calls took 100 µs, instead of 20 to 30. The variable NCCL_COMM_BLOCKING=0 of a user makes it one.)
type connection struct {
	rank, size int
	mu         sync.Mutex     // held by calls of NCCL. Lock it inside whileOpen
	handle     uintptr        // 0 if it could not be made
	held       atomic.Uintptr // the graph, 0 until Connect has made it
	ended      atomic.Bool    // calls must not use the handle any more
	freed      chan struct{}  // closed after ended, when NCCL has freed it
}

// ncclConfig is ncclConfig_t of NCCL 2.14. Later versions take it too.
type ncclConfig struct {
	size           uintptr // in bytes
	magic, version uint32
	blocking       int32
}

var blocking = ncclConfig{size: unsafe.Sizeof(ncclConfig{}), magic: 0xcafebeef, version: 21400, blocking: 1}

var errDisconnected = errors.New("cuda: the stream is not connected, want a call of Connect before")

// hold makes the graph that keeps the connection. It has a message of this rank to itself, since that waits for no other rank.
func (c *connection) hold(s *Stream) error {
	a, err := NewArray[uint8](s, 2) // as long as the stream
	if err != nil {
		return err
	}
	if err := s.Synchronize(); err != nil {
		return err
	}
	var graph uintptr
	err = s.instantiate(&graph, func() error {
		return s.collective(func(call func(int, ...uintptr) error) error {
			return errors.Join(call(ncclSend, a.address, 1, ncclBytes, uintptr(c.rank)), call(ncclReceive, a.address+1, 1, ncclBytes, uintptr(c.rank)))
		})
	}, s.device.whileOpen)
	c.held.Store(graph)
	if c.ended.Load() { // meanwhile: end has not seen the graph, or destroys it
		err = errors.Join(errDisconnected, c.letGo(s.device.do))
	}
	return err
}

// letGo destroys the graph, once.
func (c *connection) letGo(do func(f call, args ...uintptr) error) error {
	if graph := c.held.Swap(0); graph != 0 {
		return do(cuGraphExecDestroy, graph)
	}
	return nil
}

// do makes calls of NCCL and waits until NCCL has done what they have begun. It does not wait for the GPU. The code is that of the last call, of function f.
func (c *connection) do(d *Device, f int, calls func() (code int, err error)) error {
	code, err := c.call(d, calls)
	for began := time.Now(); err == nil && code == ncclInProgress; {
		if time.Since(began) < time.Millisecond {
			runtime.Gosched()
		} else {
			time.Sleep(50 * time.Microsecond)
		}
		code, err = c.call(d, c.state)
	}
	if err != nil {
		return err
	}
	return nccl.result(f, code)
}

// call makes calls of NCCL on one thread, to which a group of them belongs.
func (c *connection) call(d *Device, calls func() (code int, err error)) (code int, err error) {
	err = d.whileOpen(func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.ended.Load() {
			return errDisconnected
		}
		return d.withContext(func() (err error) {
			code, err = calls()
			return err
		})
	})
	return code, err
}

const ncclInProgress = 7

// state returns the code of what NCCL does or has done last. c.mu must be locked.
func (c *connection) state() (int, error) {
	var code int32
	if wrong := invoke(nccl.address[ncclCommGetAsyncError], c.handle, uintptr(unsafe.Pointer(&code))); wrong != 0 {
		return wrong, nil
	}
	return int(code), nil
}

// release ends the connection, after its work. A call must not be running.
func (c *connection) release(d *Device) error {
	if c == nil {
		return nil
	}
	return c.end(d, ncclCommDestroy)
}

// abort ends the connection at once, also while a call waits.
func (c *connection) abort(d *Device) error {
	if c == nil {
		return nil
	}
	return c.end(d, ncclCommAbort)
}

// end ends the connection by function f of NCCL, and waits for that.
func (c *connection) end(d *Device, f int) error {
	if c.ended.Swap(true) {
		<-c.freed
		return nil
	}
	defer close(c.freed)
	free := func() error {
		if c.handle == 0 {
			return nil
		}
		return explained(nccl.call(d, f, c.handle))
	}
	if c.held.Load() == 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return free()
	}
	done := make(chan error, 1)
	go func() { done <- free() }()
	c.mu.Lock() // when no call waits any more
	defer c.mu.Unlock()
	return errors.Join(c.letGo(d.call), <-done)
}

// Disconnect ends the connection of a stream, if it has one. Calls that wait for other processes, on the host and on the GPU, end at once, and their results are
// arbitrary. Disconnect returns when no Capture with such calls exists any more. Another goroutine than the one that uses the stream may call it.
func (s *Stream) Disconnect() error {
	if err := s.open(); err != nil {
		return err
	}
	return s.connection.Load().abort(s.device)
}

// Disconnected returns an error that NCCL found while queued work ran, such as a lost process. Another goroutine than the one that uses the stream may call it.
func (s *Stream) Disconnected() error {
	if err := s.open(); err != nil {
		return err
	}
	c := s.connection.Load()
	if c == nil {
		return errDisconnected
	}
	return explained(s.device.whileOpen(func() error {
		if !c.mu.TryLock() { // for a call, which returns such an error itself
			return nil
		}
		defer c.mu.Unlock()
		if c.ended.Load() {
			return errDisconnected
		}
		code, err := c.state()
		if err == nil && code != ncclInProgress {
			err = nccl.result(ncclCommGetAsyncError, code)
		}
		return err
	}))
}

// explained adds NCCL's own words to an error.
func explained(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	if text := lastError(nccl.address[ncclGetLastError]); text != "" {
		e.Text += ": " + text
	}
	return err
}

func nothing() error { return nil }

// open returns an error if the stream is missing or closed, or its device is.
func (s *Stream) open() error {
	if err := s.usable(); err != nil {
		return err
	}
	return s.device.whileOpen(nothing)
}

// connected returns the connection of the stream, and an error if there is none.
func (s *Stream) connected() (*connection, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	c := s.connection.Load()
	if c == nil || c.ended.Load() {
		return nil, errDisconnected
	}
	return c, nil
}

// collective queues calls of NCCL as one piece of work.
func (s *Stream) collective(f func(call func(f int, args ...uintptr) error) error) error {
	c, err := s.connected()
	if err == nil {
		err = s.stop("a call of NCCL")
	}
	if err != nil {
		return err
	}
	return explained(c.do(s.device, ncclGroupEnd, func() (int, error) {
		if code := invoke(nccl.address[ncclGroupStart]); code != 0 {
			return 0, nccl.result(ncclGroupStart, code)
		}
		err := f(func(f int, args ...uintptr) error {
			return nccl.result(f, invoke(nccl.address[f], append(args, c.handle, s.handle)...))
		})
		return invoke(nccl.address[ncclGroupEnd]), err
	}))
}

// Summand is a type of elements that the GPUs of several processes can sum.
type Summand interface{ float32 | float64 | BFloat16 }

// Codes of NCCL.
const (
	ncclBytes = 1
	ncclSum   = 0
)

func ncclType[T Summand]() uintptr {
	var x T
	switch any(x).(type) {
	case float32:
		return 7
	case float64:
		return 8
	}
	return 9
}

// ReduceScatter queues the sums over all ranks of one part of all to own: all has a part as long as own for each rank, and rank r gets part r. own may be
// that part of all; else the two must not overlap. The order of more than two ranks is NCCL's: it
// depends on the GPUs, the number of elements, and the version and variables of NCCL. BFloat16 may be rounded after each addition.
func ReduceScatter[T Summand](s *Stream, own, all Array[T]) error {
	if err := s.parts("reduce scatter", own.address, all.address, own.n, all.n, int(size[T]())); err != nil || own.n == 0 {
		return err
	}
	return s.collective(func(call func(int, ...uintptr) error) error {
		return call(ncclReduceScatter, all.address, own.address, uintptr(own.n), ncclType[T](), ncclSum)
	})
}

// AllGather queues copies of own of rank r to part r of all on all ranks. own may be that part of all; else the two must not overlap.
func AllGather[T Element](s *Stream, all, own Array[T]) error {
	if err := s.parts("all gather", own.address, all.address, own.n, all.n, int(size[T]())); err != nil || own.n == 0 {
		return err
	}
	return s.collective(func(call func(int, ...uintptr) error) error {
		return call(ncclAllGather, own.address, all.address, uintptr(int64(own.n)*size[T]()), ncclBytes)
	})
}

// parts checks that all has a part as long as own for each rank, and that own is this rank's part or apart from all.
func (s *Stream) parts(what string, own, all uintptr, n, total, size int) error {
	c, err := s.connected()
	if err != nil {
		return err
	}
	if total != count(n, c.size) {
		return fmt.Errorf("cuda: %s: all has %d elements and own has %d, want %d times as many", what, total, n, c.size)
	}
	if part := uintptr(n * size); n > 0 && own != all+uintptr(c.rank)*part && own < all+uintptr(c.size)*part && all < own+part {
		return fmt.Errorf("cuda: %s: own overlaps all, want part %d of all, or other memory", what, c.rank)
	}
	return nil
}

// AllReduce queues the sums over all ranks of the elements of a, which is as long on all of them. Each sum is made once and then copied, so all ranks get the same bits.
// ReduceScatter says in what order it is made.
func AllReduce[T Summand](s *Stream, a Array[T]) error {
	if _, err := s.connected(); err != nil || a.n == 0 {
		return err
	}
	return s.collective(func(call func(int, ...uintptr) error) error {
		return call(ncclAllReduce, a.address, a.address, uintptr(a.n), ncclType[T](), ncclSum)
	})
}

// Broadcast queues a copy of a of rank root to a of all ranks, which has the same length.
func Broadcast[T Element](s *Stream, a Array[T], root int) error {
	c, err := s.connected()
	if err != nil {
		return err
	}
	if root < 0 || root >= c.size {
		return fmt.Errorf("cuda: broadcast: root is %d, want a rank: 0 to %d", root, c.size-1)
	}
	if a.n == 0 {
		return nil
	}
	return s.collective(func(call func(int, ...uintptr) error) error {
		return call(ncclBroadcast, a.address, a.address, uintptr(int64(a.n)*size[T]()), ncclBytes, uintptr(root))
	})
}

// Message is an array on its way to or from another rank of a connection.
type Message struct {
	Peer    int // the other rank
	Receive bool
	Bytes   Array[uint8]
}

// Bytes returns the memory of the array, which must not be freed through it.
func (a Array[T]) Bytes() Array[uint8] {
	return Array[uint8]{a.stream, a.address, int(int64(a.n) * size[T]())}
}

// Exchange queues messages, none of which waits for another one. Each needs a message of the same length the other way round at its peer. Messages between the same two
// ranks in the same direction arrive in the order in which they were queued.
func (s *Stream) Exchange(messages ...Message) error {
	c, err := s.connected()
	if err != nil {
		return err
	}
	for _, m := range messages {
		if m.Peer < 0 || m.Peer >= c.size || m.Peer == c.rank {
			return fmt.Errorf("cuda: exchange: Peer is %d, want another rank of the %d, not %d, which is this one", m.Peer, c.size, c.rank)
		}
	}
	return s.collective(func(call func(int, ...uintptr) error) error {
		for _, m := range messages {
			f := ncclSend
			if m.Receive {
				f = ncclReceive
			}
			if m.Bytes.n == 0 {
				continue
			}
			if err := call(f, m.Bytes.address, uintptr(m.Bytes.n), ncclBytes, uintptr(m.Peer)); err != nil {
				return err
			}
		}
		return nil
	})
}
