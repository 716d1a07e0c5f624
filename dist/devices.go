package dist

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomamba/mamba/cuda"
)

// Devices is the GPUs of the ranks of a group, one for each. AllReduceOn and the other functions whose names end in On move arrays between them, through NCCL. Each
// queues its work and returns at once. All ranks make the same calls in the same order.
//
// The work runs on a stream of its own, one call after the other. A call begins when all work that was queued before on the stream of its arrays is done. Work that
// is queued on that stream later runs at the same time, until Wait: before it, the arrays must not be freed or changed, nor read if the call writes them. Between
// two calls of Wait, calls can be captured into a CUDA graph (cuda.Stream.Capture); the Wait belongs into the same capture.
//
// A sum is made once and then copied, so all ranks have the same bits. With two ranks they are those of AllReduce and ReduceScatter in host memory. With more, the order depends on the
// machines, the number of elements, and the version and variables of NCCL, and BFloat16 may be rounded after each addition; with the same of all these, each run has the same bits.
//
// A rank that waits in a call for longer than the time of WithTimeout ends the run, even if the other ranks are only slow.
//
// If a rank fails (Group.Fail), calls that wait for it end on all ranks, on the host and on the GPU, with arbitrary results; they and all later calls return its error.
//
// One goroutine at a time may use a Devices.
type Devices struct {
	group        *Group
	device       *cuda.Device
	stream       *cuda.Stream // nil for a group of one
	queued, done *cuda.Event
	waiting      []*cuda.Stream             // those whose arrays are in calls after the last Wait
	captures     []*cuda.Capture            // those with calls
	messages     []cuda.Message             // those of Together while it runs, else nil
	watch        *callWatch                 // nil for a group of one
	connecting   atomic.Pointer[time.Timer] // ends the run while this rank waits in Connect; nil before and after
	ending       sync.WaitGroup             // disconnect
	closed       bool
}

// Devices connects the GPUs of all ranks, of which d is this rank's. All ranks call it, each with another GPU. A group of one needs no library. Close the result before the group
// and the device, or close the device.
//
// Errors: d is nil or closed; NCCL is missing on a rank; two ranks have the same GPU; a sum of NCCL is wrong.
func (g *Group) Devices(d *cuda.Device) (x *Devices, err error) {
	if d == nil {
		return nil, g.Fail(errors.New("dist: devices: the device is nil, want one that cuda.Open returned"))
	}
	x = &Devices{group: g, device: d}
	if g.Size() == 1 {
		if x.queued, err = d.NewEvent(); err != nil { // the device is closed
			return nil, fmt.Errorf("dist: devices: %w", err)
		}
		return x, nil
	}
	defer func() {
		if err != nil {
			err, x = errors.Join(err, x.Close()), nil
		}
	}()
	own, err := x.open()
	if err != nil {
		return x, g.Fail(fmt.Errorf("dist: devices: %w", err))
	}
	ids, err := g.GatherBytes(own[:])
	if err != nil {
		return x, err
	}
	if err := x.connect(cuda.ConnectionID(ids[0])); err != nil {
		return x, g.Fail(fmt.Errorf("dist: devices: %w", x.why(err)))
	}
	if err := g.Barrier(); err != nil { // of a rank that NCCL does not connect: the first call would wait for it
		return x, err
	}
	err = x.try()
	x.watch = watchCalls(x)
	d.OnClose(func() { _ = x.Close() })
	if err == nil {
		return x, g.Barrier()
	}
	return x, g.Fail(x.why(err))
}

// connect connects the streams of all ranks. Nothing can end the wait of NCCL for a rank that does not come, so it ends the processes: after the time of the group, or at least 30 s, and a
// second after a rank has failed. In that second NCCL may return an error here too.
func (x *Devices) connect(id cuda.ConnectionID) error {
	limit := time.Duration(math.MaxInt64)
	if x.group.limit > 0 {
		limit = max(x.group.limit, 30*time.Second)
	}
	x.connecting.Store(time.AfterFunc(limit, func() {
		if x.connecting.Load() != nil {
			x.group.abort(x.why(errors.New("NCCL does not connect the GPUs of the ranks")).Error())
		}
	}))
	defer func() { x.connecting.Swap(nil).Stop() }()
	x.group.listen().add(x)
	return x.stream.Connect(id, x.group.Rank(), x.group.Size())
}

// try makes first calls, in which NCCL prepares what a capture could not, and looks at the sums: there are machines whose GPUs cannot read each other's memory, and
// do not say so.
func (x *Devices) try() error {
	host := slices.Repeat([]float32{1}, 1<<12*x.group.Size()+1)
	a, err := cuda.Upload(x.stream, host)
	if err == nil {
		err = cuda.AllReduce(x.stream, a)
	}
	if err == nil {
		err = a.CopyTo(x.stream, host)
	}
	if err != nil {
		return fmt.Errorf("dist: devices: %w", err)
	}
	a.Free()
	for i, sum := range host {
		if sum != float32(x.group.Size()) {
			return fmt.Errorf("dist: devices: NCCL adds %d ones to %v (element %d): the GPUs do not see each other's memory; NCCL_P2P_DISABLE=1 makes NCCL copy through the host", x.group.Size(), sum, i)
		}
	}
	return nil
}

// open makes what x has on the device, and an id of a connection.
func (x *Devices) open() (id cuda.ConnectionID, err error) {
	if x.stream, err = x.device.NewStream(); err != nil {
		return id, err
	}
	if x.queued, err = x.device.NewEvent(); err != nil {
		return id, err
	}
	if x.done, err = x.device.NewEvent(); err != nil {
		return id, err
	}
	return x.device.NewConnectionID()
}

// abort ends the processes of all ranks.
func (g *Group) abort(why string) {
	if m, ok := g.engine.(*mesh); ok {
		m.abort(why)
	}
	say(g.engine, why) // the launcher of MPI ends the others
	os.Exit(1)
}

// Wait makes the streams of the arrays wait for all calls so far. It returns at once.
func (x *Devices) Wait() error {
	if err := x.usable("wait"); err != nil || len(x.waiting) == 0 {
		return err
	}
	if err := x.stream.Record(x.done); err != nil {
		return err
	}
	for _, s := range x.waiting {
		if err := s.Wait(x.done); err != nil {
			return err
		}
	}
	x.waiting = x.waiting[:0]
	return nil
}

// Close waits for the calls so far and ends the connection. After Fail of a rank it ends them. It also closes the captures with calls. A second Close does nothing.
func (x *Devices) Close() error {
	if x == nil || x.device == nil {
		return x.usable("close")
	}
	if x.closed {
		return nil
	}
	for _, c := range slices.Backward(x.captures) { // NCCL waits for the end of graphs before it ends a connection
		if err := c.Close(); err != nil {
			return err
		}
	}
	x.closed = true
	var errs []error
	if x.stream != nil {
		if x.group.failed() {
			x.watch.stop()
			errs = append(errs, x.stream.Disconnect())
		}
		errs = append(errs, x.stream.Synchronize())
		if n := x.group.news.Load(); n != nil {
			n.remove(x)
		}
		x.ending.Wait()
		errs = append(errs, x.watch.close(), x.stream.Close())
	}
	for _, e := range []*cuda.Event{x.queued, x.done} {
		if e != nil {
			errs = append(errs, e.Close())
		}
	}
	return errors.Join(errs...)
}

// disconnect ends the connection at once.
func (x *Devices) disconnect() {
	if timer := x.connecting.Load(); timer != nil {
		timer.Reset(time.Second)
	}
	x.ending.Go(func() { _ = x.stream.Disconnect() }) // it waits for Close of the captures
}

// why returns the error of another rank that has failed instead of one that follows from it.
func (x *Devices) why(err error) error {
	if lost := x.group.lost(); err != nil && lost != nil {
		return lost
	}
	return err
}

// failed reports whether the ranks do not know of each other what they do.
func (g *Group) failed() bool {
	if !g.mu.TryLock() { // a call of the group runs
		return false
	}
	defer g.mu.Unlock()
	return g.broken != nil
}

func (x *Devices) usable(call string) error {
	switch {
	case x == nil || x.device == nil:
		return fmt.Errorf("dist: %s: the devices are missing, want those that Group.Devices returned", call)
	case x.closed:
		return fmt.Errorf("dist: %s: the devices are closed", call)
	}
	return x.group.lost()
}

// operand is an array of a call.
type operand struct {
	name  string
	array cuda.Array[byte]
}

// begin checks the arrays of a call and returns their stream.
func (x *Devices) begin(call string, operands ...operand) (*cuda.Stream, error) {
	if err := x.usable(call); err != nil {
		return nil, err
	}
	for _, o := range operands {
		switch {
		case o.array.Absent():
			return nil, fmt.Errorf("dist: %s: %s is absent, want an array", call, o.name)
		case o.array.Stream().Device() != x.device:
			return nil, fmt.Errorf("dist: %s: %s is on another device, want that of this rank", call, o.name)
		case o.array.Stream() != operands[0].array.Stream():
			return nil, fmt.Errorf("dist: %s: %s is on another stream than %s, want the same", call, o.name, operands[0].name)
		}
	}
	if x.messages != nil && call != "SendOn" && call != "ReceiveOn" {
		return nil, fmt.Errorf("dist: %s: inside Together, want SendOn and ReceiveOn only", call)
	}
	return operands[0].array.Stream(), nil
}

// queue queues a call on the stream of x, after the work of another stream.
func (x *Devices) queue(s *cuda.Stream, call string, f func() error) error {
	if err := s.Record(x.queued); err != nil {
		return err
	}
	if err := x.stream.Wait(x.queued); err != nil {
		return err
	}
	if !slices.Contains(x.waiting, s) {
		x.waiting = append(x.waiting, s)
	}
	if c := s.Capturing(); c != nil {
		if !slices.Contains(x.captures, c) {
			x.captures = append(x.captures, c)
		}
		return x.why(f())
	}
	return x.why(x.watch.call(call, f))
}

// AllReduceOn replaces the elements of a by their sums over all ranks, which have the same number of elements.
func AllReduceOn[T Float](x *Devices, a cuda.Array[T]) error {
	s, err := x.begin("AllReduceOn", operand{"a", a.Bytes()})
	if err != nil || x.stream == nil {
		return err
	}
	return x.queue(s, "AllReduceOn", func() error { return cuda.AllReduce(x.stream, a) })
}

// ReduceScatterOn writes to own the sums over all ranks of one part of all: all has Size parts as long as own, and rank r gets part r. own may be that part of all; else
// the two must not overlap. all keeps its other elements.
func ReduceScatterOn[T Float](x *Devices, own, all cuda.Array[T]) error {
	return partOn(x, "ReduceScatterOn", own, all, func() error { return cuda.ReduceScatter(x.stream, own, all) }, own, all)
}

// AllGatherOn writes own of rank r to part r of all, which has Size parts as long as own. own may be the part of this rank; else the two must not overlap.
func AllGatherOn[T cuda.Element](x *Devices, all, own cuda.Array[T]) error {
	return partOn(x, "AllGatherOn", own, all, func() error { return cuda.AllGather(x.stream, all, own) }, all, own)
}

// partOn queues a call between an array and its parts. For a group of one it is a copy.
func partOn[T cuda.Element](x *Devices, call string, own, all cuda.Array[T], f func() error, to, from cuda.Array[T]) error {
	if x != nil {
		if err := fits(call, "all", all.Len(), own.Len(), x.group.Size()); err != nil {
			return err
		}
	}
	s, err := x.begin(call, operand{"own", own.Bytes()}, operand{"all", all.Bytes()})
	switch {
	case err != nil:
		return err
	case x.stream != nil:
		return x.queue(s, call, f)
	case own.Address() != all.Address():
		return to.CopyOf(s, from)
	}
	return nil
}

// BroadcastOn replaces the elements of a by those of rank root. All ranks have the same number of elements.
func BroadcastOn[T cuda.Element](x *Devices, a cuda.Array[T], root int) error {
	if x != nil && (root < 0 || root >= x.group.Size()) {
		return fmt.Errorf("dist: BroadcastOn: root is %d, want a rank: 0 to %d", root, x.group.Size()-1)
	}
	s, err := x.begin("BroadcastOn", operand{"a", a.Bytes()})
	if err != nil || x.stream == nil {
		return err
	}
	return x.queue(s, "BroadcastOn", func() error { return cuda.Broadcast(x.stream, a, root) })
}

// SendOn sends a to another rank, which calls ReceiveOn with as many elements of the same type. The calls after it may wait until that rank does so: two ranks that
// send to each other use Together.
func SendOn[T cuda.Element](x *Devices, a cuda.Array[T], to int) error {
	return x.message("SendOn", "to", cuda.Message{Peer: to, Bytes: a.Bytes()})
}

// ReceiveOn writes to a what another rank sends with SendOn.
func ReceiveOn[T cuda.Element](x *Devices, a cuda.Array[T], from int) error {
	return x.message("ReceiveOn", "from", cuda.Message{Peer: from, Receive: true, Bytes: a.Bytes()})
}

func (x *Devices) message(call, name string, m cuda.Message) error {
	if x != nil {
		if err := x.group.peer(call, name, m.Peer); err != nil {
			return err
		}
	}
	s, err := x.begin(call, operand{"a", m.Bytes})
	if err != nil {
		return err
	}
	if x.messages != nil {
		if len(x.messages) > 0 && x.messages[0].Bytes.Stream() != s {
			return fmt.Errorf("dist: %s: a is on another stream than the messages before it in Together, want the same", call)
		}
		x.messages = append(x.messages, m)
		return nil
	}
	return x.queue(s, call, func() error { return x.stream.Exchange(m) })
}

// Together queues the calls of SendOn and ReceiveOn that f makes as one, so that none waits for another one. Their arrays have the same stream. f must not make other calls of x.
func (x *Devices) Together(f func() error) error {
	if err := x.usable("together"); err != nil {
		return err
	}
	if f == nil {
		return errors.New("dist: together: f is nil, want a function that calls SendOn and ReceiveOn")
	}
	if x.messages != nil {
		return errors.New("dist: together: inside another Together")
	}
	x.messages = []cuda.Message{}
	defer func() { x.messages = nil }()
	if err := f(); err != nil || len(x.messages) == 0 {
		return err
	}
	return x.queue(x.messages[0].Bytes.Stream(), "Together", func() error { return x.stream.Exchange(x.messages...) })
}
