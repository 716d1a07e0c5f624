package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"
)

// The functions of NCCL that we call.
const (
	ncclGetUniqueID = iota
	ncclCommInitRank
	ncclCommDestroy
	ncclCommAbort
	ncclCommGetAsyncError
	ncclGetLastError
	ncclReduceScatter
	ncclAllGather
	ncclReduce
	ncclBroadcast
	ncclSend
	ncclReceive
	ncclGroupStart
	ncclGroupEnd
)

var nccl = &library{
	name: "NCCL", file: "libnccl.so", variable: "MAMBA_NCCL", majors: []string{"2"},
	install: "NVIDIA's package libnccl2, or Python's nvidia-nccl-cu13 (nvidia-nccl-cu12 for a driver of CUDA 12)",
	symbols: []string{"ncclGetUniqueId", "ncclCommInitRank", "ncclCommDestroy", "ncclCommAbort", "ncclCommGetAsyncError", "ncclGetLastError",
		"ncclReduceScatter", "ncclAllGather", "ncclReduce", "ncclBroadcast", "ncclSend", "ncclRecv", "ncclGroupStart", "ncclGroupEnd"},
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
// size-1; it waits for all of them. ReduceScatter, AllGather, Reduce, Broadcast and Exchange then queue work on the stream. All ranks must queue the same calls in the same
// order. Close of the stream ends the connection.
//
// Errors: NCCL is missing; two ranks on the same GPU; a rank that is not below size; a stream that is connected.
func (s *Stream) Connect(id ConnectionID, rank, size int) error {
	if err := s.open(); err != nil {
		return err
	}
	if s.connection.handle != 0 {
		return errors.New("cuda: connect: the stream is connected already")
	}
	if size < 1 || size > 1<<20 || rank < 0 || rank >= size {
		return fmt.Errorf("cuda: connect: rank is %d of %d, want 0 to one less than the size", rank, size)
	}
	if err := nccl.load(); err != nil {
		return err
	}
	c := connection{rank: rank, size: size}
	err := s.device.whileOpen(func() error {
		return s.device.withContext(func() error {
			return nccl.result(ncclCommInitRank, initRank(nccl.address[ncclCommInitRank], &c.handle, size, id, rank))
		})
	})
	if err != nil {
		return explained(err)
	}
	s.connection = c
	return nil
}

// connection is a stream's end of a connection of NCCL.
type connection struct {
	handle     uintptr
	rank, size int
}

func (c *connection) release(d *Device) error {
	if c.handle == 0 {
		return nil
	}
	h := c.handle
	*c = connection{}
	return explained(nccl.call(d, ncclCommDestroy, h))
}

// Disconnect ends the connection of a stream at once, if it has one. Calls that wait for other processes end too, and their results are arbitrary.
func (s *Stream) Disconnect() error {
	if err := s.open(); err != nil || s.connection.handle == 0 {
		return err
	}
	h := s.connection.handle
	s.connection = connection{}
	return explained(nccl.do(s.device, ncclCommAbort, h))
}

// Disconnected returns an error that NCCL found while queued work ran, such as a lost process.
func (s *Stream) Disconnected() error {
	if err := s.connected(); err != nil {
		return err
	}
	var code int32
	err := nccl.do(s.device, ncclCommGetAsyncError, s.connection.handle, uintptr(unsafe.Pointer(&code)))
	const inProgress = 7
	if err == nil && code != 0 && code != inProgress {
		err = nccl.result(ncclCommGetAsyncError, int(code))
	}
	return explained(err)
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

// connected returns an error for a stream that is not connected.
func (s *Stream) connected() error {
	if err := s.open(); err != nil {
		return err
	}
	if s.connection.handle == 0 {
		return errors.New("cuda: the stream is not connected, want a call of Connect before")
	}
	return nil
}

// collective queues calls of NCCL as one piece of work.
func (s *Stream) collective(f func(call func(f int, args ...uintptr) error) error) error {
	if err := firstError(s.connected(), s.cut("a call of NCCL")); err != nil {
		return err
	}
	d := s.device
	return explained(d.whileOpen(func() error {
		runtime.LockOSThread() // a group belongs to a thread
		defer runtime.UnlockOSThread()
		err := nccl.call(d, ncclGroupStart)
		if err == nil {
			err = f(func(f int, args ...uintptr) error {
				return nccl.call(d, f, append(args, s.connection.handle, s.handle)...)
			})
			err = errors.Join(err, nccl.call(d, ncclGroupEnd))
		}
		return err
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
	if err := s.connected(); err != nil {
		return err
	}
	c := s.connection
	if total != count(n, c.size) {
		return fmt.Errorf("cuda: %s: all has %d elements and own has %d, want %d times as many", what, total, n, c.size)
	}
	if part := uintptr(n * size); n > 0 && own != all+uintptr(c.rank)*part && own < all+uintptr(c.size)*part && all < own+part {
		return fmt.Errorf("cuda: %s: own overlaps all, want part %d of all, or other memory", what, c.rank)
	}
	return nil
}

// AllReduce queues the sums over all ranks of the elements of a, which is as long on all of them. They are added as ReduceScatter adds, once, so all ranks get the
// same bits.
func AllReduce[T Summand](s *Stream, a Array[T]) error {
	if err := s.connected(); err != nil || a.n == 0 {
		return err
	}
	// Equal parts of whole cache lines, and a rest that goes through rank 0.
	const block = 64
	c := s.connection
	each := a.n / c.size / block * block
	rest, own := a.Slice(each*c.size, a.n-each*c.size), a.Slice(each*c.rank, each)
	err := s.collective(func(call func(int, ...uintptr) error) (err error) {
		if each > 0 {
			err = call(ncclReduceScatter, a.address, own.address, uintptr(each), ncclType[T](), ncclSum)
		}
		if err == nil && rest.n > 0 {
			err = call(ncclReduce, rest.address, rest.address, uintptr(rest.n), ncclType[T](), ncclSum, 0)
		}
		return err
	})
	if err != nil {
		return err
	}
	return s.collective(func(call func(int, ...uintptr) error) (err error) {
		if each > 0 {
			err = call(ncclAllGather, own.address, a.address, uintptr(each), ncclType[T]())
		}
		if err == nil && rest.n > 0 {
			err = call(ncclBroadcast, rest.address, rest.address, uintptr(rest.n), ncclType[T](), 0)
		}
		return err
	})
}

// Broadcast queues a copy of a of rank root to a of all ranks, which has the same length.
func Broadcast[T Element](s *Stream, a Array[T], root int) error {
	if err := s.connected(); err != nil {
		return err
	}
	if root < 0 || root >= s.connection.size {
		return fmt.Errorf("cuda: broadcast: root is %d, want a rank: 0 to %d", root, s.connection.size-1)
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
	if err := s.connected(); err != nil {
		return err
	}
	for _, m := range messages {
		if c := s.connection; m.Peer < 0 || m.Peer >= c.size || m.Peer == c.rank {
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
