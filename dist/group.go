package dist

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomamba/mamba/cuda"
)

// Group is the processes of a run, seen from one of them. Join and New make one. A nil Group is a group of one.
//
// One goroutine at a time may make collective calls. Send and Receive may be called from others at the same time.
type Group struct {
	engine        Engine // nil for a group of one
	local         int
	limit         time.Duration
	mu            sync.Mutex // held by a collective call
	sends, takes  sync.Mutex
	broken        error // of a call after which the ranks do not know of each other what they do; guarded by mu
	closed        atomic.Bool
	collective    atomic.Int32          // collective calls that have begun, at most one and those that wait for it
	receives      atomic.Int32          // calls of Receive that have begun
	beside        atomic.Bool           // this rank works during its collective calls
	paired        atomic.Bool           // the ranks use Send and Receive
	told          atomic.Bool           // those that wait in Receive know that this rank has failed
	sent          map[int]chan struct{} // by destination, closed when the last message of Send to it is on its way; guarded by sends
	unsent        error                 // why one is not
	news          atomic.Pointer[news]  // from the first Devices on
	observer      atomic.Pointer[func(string) func(bool)]
	next          func(done bool) // of the observer, for the call that holds mu; nil if nobody observes it
	scratch       []byte
	pieceForTests int
}

// Option is an option of Join and New.
type Option func(*Group) error

// WithTimeout sets after which time without a sign of life a rank counts as lost: 30 s by default, at least 1 s, or 0 for never.
func WithTimeout(limit time.Duration) Option {
	return func(g *Group) error {
		if limit != 0 && limit < time.Second {
			return fmt.Errorf("the timeout is %v, want at least 1s, or 0 for none", limit)
		}
		g.limit = limit
		return nil
	}
}

// WithLocalRank sets the rank among the processes of the same machine, for New. Join knows it.
func WithLocalRank(rank int) Option {
	return func(g *Group) error {
		if rank < 0 || rank >= g.Size() {
			return fmt.Errorf("the local rank is %d, want 0 to %d", rank, g.Size()-1)
		}
		g.local = rank
		return nil
	}
}

// New returns a group over an engine. The group closes the engine.
//
// Errors: an engine that is missing, or whose rank is not one of its size; a wrong option.
func New(e Engine, options ...Option) (*Group, error) {
	if e == nil {
		return nil, fmt.Errorf("dist: the engine is nil, want one that connects the ranks")
	}
	if e.Size() < 1 || e.Rank() < 0 || e.Rank() >= e.Size() {
		return nil, fmt.Errorf("dist: the engine has rank %d of %d, want 0 to one less than the size", e.Rank(), e.Size())
	}
	g := &Group{engine: e, limit: 30 * time.Second}
	if e.Size() == 1 {
		g.engine = nil
	}
	if err := g.set(options); err != nil {
		return nil, err
	}
	g.Watch(nil)
	return g, nil
}

func (g *Group) set(options []Option) error {
	for _, o := range options {
		if o == nil {
			return fmt.Errorf("dist: an option is nil")
		}
		if err := o(g); err != nil {
			return fmt.Errorf("dist: %w", err)
		}
	}
	return nil
}

// Join returns the group that this process was started in, and waits until all its ranks have joined, for at most ten times the time of WithTimeout. It asks the variables that launchers set: Open MPI's mpirun,
// MPICH's mpirun (PMI), srun, and RANK and WORLD_SIZE. Without them the process is a group of one. Call Close when you no longer use it.
//
// With MASTER_ADDR and MASTER_PORT the ranks meet there, without MPI, unless mpirun has started them. Each needs a GPU, that of its local rank, and NCCL.
//
// MPI can be started once in a process, so a second Join of a larger group is an error, also after Close.
//
// Errors: variables that are no numbers; no MPI library, or one that does not belong to the launcher; no NCCL or GPU; ranks that do not come, or come twice; a wrong option; the error of
// the context if it ends first.
func Join(ctx context.Context, options ...Option) (*Group, error) {
	if ctx == nil {
		return nil, fmt.Errorf("dist: join: the context is missing, want one such as context.Background()")
	}
	l, err := launched()
	if err != nil {
		return nil, err
	}
	g := &Group{limit: 30 * time.Second, local: l.local}
	if l.size == 1 {
		return g, g.set(options)
	}
	if err := g.set(options); err != nil {
		return nil, err
	}
	if g.limit > 0 {
		var cancel func()
		ctx, cancel = context.WithTimeoutCause(ctx, 10*g.limit, fmt.Errorf("not within %v", 10*g.limit))
		defer cancel()
	}
	switch {
	case l.mpi:
		g.engine, err = startMPI(ctx, l)
	case l.host == "":
		err = fmt.Errorf("dist: %s has started rank %d of %d without MPI and without MASTER_ADDR and MASTER_PORT, want these, or a launcher of MPI: mpirun -n %d, srun --mpi=pmix or --mpi=pmi2",
			l.by, l.rank, l.size, l.size)
	default:
		g.engine, err = meet(ctx, l)
	}
	if err != nil {
		return nil, err
	}
	g.Watch(nil)
	if g.local < 0 {
		if g.local, err = g.countLocal(); err != nil {
			return nil, err
		}
	}
	if m, ok := g.engine.(*mesh); ok {
		if err := m.openGPU(g); err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	return g, nil
}

// countLocal returns the number of lower ranks on this machine.
func (g *Group) countLocal() (n int, err error) {
	host, err := os.Hostname()
	if err != nil {
		return 0, fmt.Errorf("dist: the name of this machine: %w", err)
	}
	hosts, err := g.GatherBytes([]byte(host))
	if err != nil {
		return 0, err
	}
	for _, other := range hosts[:g.Rank()] {
		if string(other) == host {
			n++
		}
	}
	return n, nil
}

// Rank returns the number of this process in the group, 0 to Size-1.
func (g *Group) Rank() int {
	if g == nil || g.engine == nil {
		return 0
	}
	return g.engine.Rank()
}

// Size returns the number of processes of the group.
func (g *Group) Size() int {
	if g == nil || g.engine == nil {
		return 1
	}
	return g.engine.Size()
}

// LocalRank returns the number of this process among those of the group on the same machine.
func (g *Group) LocalRank() int {
	if g == nil {
		return 0
	}
	return g.local
}

// GPU returns the number of the GPU for this process, for cuda.Open: LocalRank, or 0 if the process sees one GPU alone, as under "srun --gpus-per-task 1".
func (g *Group) GPU() int {
	if n, err := cuda.Count(); err == nil && n == 1 {
		return 0
	}
	return g.LocalRank()
}

// Watch begins to watch this process: if progress returns the same count for the time of WithTimeout while no call of the group waits for other ranks,
// the processes of all ranks end. The line on standard error has what progress says it is doing. A nil progress ends the watch.
func (g *Group) Watch(progress func() (count uint64, doing string)) {
	if g == nil || g.engine == nil || g.closed.Load() {
		return
	}
	if own := progress; own != nil {
		waited := uint64(0) // to wait for others counts as progress
		progress = func() (uint64, string) {
			if g.receives.Load() > 0 || g.collective.Load() > 0 && !g.beside.Load() {
				waited++
			}
			count, doing := own()
			return count + waited, doing
		}
	}
	g.engine.Watch(g.limit, progress)
}

// Beside says whether this rank works during its collective calls, as it does while gradients travel during the backward pass. Then Watch ends the run if the work makes no
// progress, also while a collective call waits for other ranks, which perhaps wait for that work. MPI's messages then leave the processor to the work.
func (g *Group) Beside(works bool) {
	if g == nil {
		return
	}
	g.beside.Store(works)
	if m, ok := g.engine.(*mpi); ok {
		m.beside.Store(works)
	}
}

// Observe calls begin at the beginning of each collective call and each Receive of this rank, with its name, from the goroutine that makes the call. The function
// that begin returns is called with false when all ranks have begun the call, or when the sender's message has come, and with true at the end: until the first
// call this rank waits for others, and then bytes move. A call that fails may have the end only. A nil begin ends the observation. A group of one has no calls to observe.
func (g *Group) Observe(begin func(call string) (next func(done bool))) {
	switch {
	case g == nil:
	case begin == nil:
		g.observer.Store(nil)
	default:
		g.observer.Store(&begin)
	}
}

// Close leaves the group. It waits for the Close of all ranks. After a call that has failed on this rank alone, call Fail first.
func (g *Group) Close() error {
	if g == nil || g.engine == nil {
		return nil
	}
	if g.closed.Swap(true) {
		return fmt.Errorf("dist: close: the group is closed already")
	}
	g.collective.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	var err error
	if g.broken == nil {
		if _, err = g.agree(header{call: callClose}, nil); err == nil {
			g.sends.Lock()
			sent := slices.Collect(maps.Values(g.sent))
			g.sends.Unlock()
			for _, done := range sent {
				<-done
			}
		}
	}
	if n := g.news.Load(); n != nil {
		g.announce(header{call: callClose}, nil)
		n.hears.Wait()
	}
	return errors.Join(err, g.engine.Close())
}
