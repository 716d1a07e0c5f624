package dist_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"hash"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/dist/disttest"
	"github.com/gomamba/mamba/internal/gputest"
)

var long = flag.Bool("long", false, "test all numbers of ranks with all libraries, which takes half a minute")

// role is the environment variable that makes this test's binary a rank of TestMPI.
const role = "MAMBA_DIST_TEST"

func TestMain(m *testing.M) {
	flag.Parse()
	f := map[string]func() error{
		"": nil, "collectives": mpiCollectives, "hang": mpiHang, "beside": mpiBeside, "stop": mpiStop, "join": mpiJoin, "fail": mpiFail, "kill": mpiKill, "never": mpiNever, "first": mpiFirst, "failed": mpiFailed, "times": mpiTimes,
		"devices": mpiDevices, "patient": mpiPatient, "away": mpiAway,
	}[os.Getenv(role)]
	if f == nil {
		os.Exit(m.Run())
	}
	if err := f(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// value returns element i of a rank. Sums of such values depend on their order.
func value[T dist.Element](rank, i, seed int) T {
	u := (uint64(seed)<<40 | uint64(rank)<<32 | uint64(i)) * 0x9e3779b97f4a7c15
	u = (u ^ u>>29) * 0xbf58476d1ce4e5b9
	u ^= u >> 32
	x := math.Ldexp(float64(int32(u)), int(u>>40%16)-40)
	switch any(T(0)).(type) {
	case dist.BFloat16:
		return T(bfloat16(float32(x)))
	case byte:
		return T(u >> 8)
	}
	return T(x)
}

func bfloat16(x float32) uint16 {
	u := math.Float32bits(x)
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

// add is the definition of a sum: in the order of the ranks, in float32 for BFloat16.
func add[T dist.Float](size, i, seed int) T {
	if _, ok := any(T(0)).(dist.BFloat16); ok {
		var sum float32
		for r := range size {
			sum += math.Float32frombits(uint32(value[T](r, i, seed)) << 16)
		}
		return T(bfloat16(sum))
	}
	sum := value[T](0, i, seed)
	for r := 1; r < size; r++ {
		sum += value[T](r, i, seed)
	}
	return sum
}

func same[T dist.Element](what string, got []T, want func(i int) T) error {
	for i := range got {
		if w := want(i); got[i] != w {
			return fmt.Errorf("%s: element %d of %d is %v, want %v", what, i, len(got), got[i], w)
		}
	}
	return nil
}

// collectives compares every call with a loop, and adds the results to a hash.
func collectives(g *dist.Group, h hash.Hash) error {
	seed := 0
	for _, n := range []int{0, 1, 3, 15, 17, 64, 1025} {
		for _, f := range []func(*dist.Group, hash.Hash, int, int) error{sums[float32], sums[float64], sums[dist.BFloat16],
			moves[float32], moves[float64], moves[dist.BFloat16], moves[byte]} {
			seed++
			if err := f(g, h, n, seed); err != nil {
				return fmt.Errorf("rank %d of %d, %d elements: %w", g.Rank(), g.Size(), n, err)
			}
		}
	}
	return nil
}

func make1[T dist.Element](n int, f func(i int) T) []T {
	x := make([]T, n)
	for i := range x {
		x[i] = f(i)
	}
	return x
}

func sums[T dist.Float](g *dist.Group, h hash.Hash, n, seed int) error {
	own := func(i int) T { return value[T](g.Rank(), i, seed) }
	want := func(i int) T { return add[T](g.Size(), i, seed) }
	x := make1(n, own)
	err := dist.AllReduce(g, x)
	if err = errors.Join(err, same("AllReduce", x, want)); err != nil {
		return err
	}
	fmt.Fprint(h, x)

	all, part := make1(n*g.Size(), own), make([]T, n)
	if err := dist.ReduceScatter(g, part, all); err != nil {
		return err
	}
	from := g.Rank() * n
	return errors.Join(same("ReduceScatter", part, func(i int) T { return want(from + i) }), same("data of ReduceScatter", all, own))
}

func moves[T dist.Element](g *dist.Group, h hash.Hash, n, seed int) error {
	all := make([]T, n*g.Size())
	err := dist.AllGather(g, all, make1(n, func(i int) T { return value[T](g.Rank(), i, seed) }))
	if err = errors.Join(err, same("AllGather", all, func(i int) T { return value[T](i/n, i%n, seed) })); err != nil {
		return err
	}
	fmt.Fprint(h, all)
	for root := range g.Size() {
		x := make1(n, func(i int) T { return value[T](g.Rank(), i, seed) })
		err := dist.Broadcast(g, x, root)
		if err = errors.Join(err, same("Broadcast", x, func(i int) T { return value[T](root, i, seed) })); err != nil {
			return err
		}
	}
	lengths, err := g.GatherBytes(make([]byte, n+g.Rank()))
	if err != nil {
		return err
	}
	for rank, b := range lengths {
		if len(b) != n+rank {
			return fmt.Errorf("GatherBytes: %d bytes of rank %d, want %d", len(b), rank, n+rank)
		}
	}
	if g.Size() == 1 {
		return g.Barrier()
	}
	next, before := (g.Rank()+1)%g.Size(), (g.Rank()+g.Size()-1)%g.Size()
	sent := make(chan error, 1)
	go func() { sent <- dist.Send(g, make1(n, func(i int) T { return value[T](g.Rank(), i, seed) }), next) }()
	x := make([]T, n)
	err = dist.Receive(g, x, before)
	err = errors.Join(err, <-sent, same("Receive", x, func(i int) T { return value[T](before, i, seed) }))
	return errors.Join(err, g.Barrier())
}

func TestCollectives(t *testing.T) {
	for _, size := range []int{1, 2, 3, 5} {
		for _, piece := range []int{0, 1, 7} {
			if piece > 0 && size != 3 && !*long {
				continue
			}
			errs := disttest.Run(size, func(g *dist.Group) error {
				g.SetPiece(piece)
				return collectives(g, sha256.New())
			})
			if err := errors.Join(errs...); err != nil {
				t.Errorf("pieces of %d: %v", piece, err)
			}
		}
	}
}

func mpiCollectives() error {
	dist.SetMostBytes(1000)
	g, err := dist.Join(context.Background())
	if err != nil {
		return err
	}
	h := sha256.New()
	if err := collectives(g, h); err != nil {
		return err
	}
	fmt.Println(g.Rank(), g.Size(), g.LocalRank(), hex.EncodeToString(h.Sum(nil)[:8]))
	if err := g.Close(); err != nil || g.Size() == 1 || os.Getenv("MAMBA_MPI") == "" {
		return err
	}
	if _, err := dist.Join(context.Background()); err == nil || !strings.Contains(err.Error(), "MPI can be started once in a process") {
		return fmt.Errorf("a second Join: the error is %v", err)
	}
	return nil
}

// All engines give the bits of the goroutines' engine.
func TestEngines(t *testing.T) {
	sizes := []int{2}
	if *long {
		sizes = []int{1, 2, 3, 4}
	}
	for _, size := range sizes {
		var want []string
		hashes := make([]string, size)
		errs := disttest.Run(size, func(g *dist.Group) error {
			h := sha256.New()
			defer func() { hashes[g.Rank()] = hex.EncodeToString(h.Sum(nil)[:8]) }()
			return collectives(g, h)
		})
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		for rank, h := range hashes {
			want = append(want, fmt.Sprintln(rank, size, rank, h))
		}
		for _, library := range append(slices.Clone(disttest.Libraries), disttest.NCCL) {
			t.Run(fmt.Sprint(library.Name, size), func(t *testing.T) {
				if library.Name == "NCCL" {
					gputest.Open(t, cuda.Open)
				}
				got := disttest.Output(t, library.Start(t, size, role, "collectives"))
				slices.Sort(got)
				if strings.Join(got, "\n")+"\n" != strings.Join(want, "") {
					t.Errorf("the ranks print\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, ""))
				}
			})
		}
	}
}

func mpiHang() error {
	g, err := dist.Join(context.Background(), dist.WithTimeout(time.Second))
	if err != nil {
		return err
	}
	if g.Rank() == 1 {
		g.Watch(func() (uint64, string) { return 0, "reading batch 3 of step 5" })
		select {}
	}
	return g.Barrier()
}

// mpiBeside hangs beside a collective call, for which rank 0 never comes: it waits for this rank.
func mpiBeside() error {
	g, err := dist.Join(context.Background(), dist.WithTimeout(time.Second))
	if err != nil {
		return err
	}
	if g.Rank() == 0 {
		return dist.Receive(g, make([]float32, 1), 1)
	}
	g.Watch(func() (uint64, string) { return 0, "reading batch 3 of step 5" })
	g.Beside(true)
	return dist.AllReduce(g, make([]float32, 100))
}

func mpiStop() error { return mpiSignal("-STOP") }
func mpiKill() error { return mpiSignal("-KILL") }

// mpiSignal sends a signal to rank 1, for which rank 0 waits.
func mpiSignal(signal string) error {
	g, err := dist.Join(context.Background(), dist.WithTimeout(time.Second))
	if err != nil {
		return err
	}
	if g.Rank() == 1 {
		time.Sleep(200 * time.Millisecond)
		if err := exec.Command("kill", signal, strconv.Itoa(os.Getpid())).Run(); err != nil {
			return err
		}
	}
	return g.Barrier()
}

func mpiFail() error {
	g, err := dist.Join(context.Background())
	if err != nil {
		return err
	}
	if g.Rank() == 1 {
		err = g.Fail(errors.New("the disk is full"))
	} else {
		err = dist.AllReduce(g, make([]float32, 100))
	}
	fmt.Println(g.Rank(), err)
	return g.Close()
}

func mpiJoin() error {
	_, err := dist.Join(context.Background())
	fmt.Println(err)
	return nil
}

// mpiPatient waits for as long as it takes.
func mpiPatient() error {
	_, err := dist.Join(context.Background(), dist.WithTimeout(0))
	return err
}

// mpiAway is a rank that ends before it joins, as with a wrong flag, or one that waits for it.
func mpiAway() error {
	if os.Getenv("PMI_RANK") == "1" {
		return errors.New("a flag is wrong")
	}
	_, err := dist.Join(context.Background(), dist.WithTimeout(time.Second))
	return err
}

// MPICH's mpirun goes on if a process ends before it has joined. Join does not wait for it for good.
func TestJoinAway(t *testing.T) {
	if !*long {
		t.Skip("-long is not set; it takes ten seconds")
	}
	t.Parallel()
	out, err := disttest.Libraries[1].Start(t, 2, role, "away").CombinedOutput()
	if want := "dist: join: 2 ranks of mpirun or srun have not met: not within 10s"; err == nil || !strings.Contains(string(out), want) {
		t.Errorf("%v; the ranks print\n%s\nwant a line with %q", err, out, want)
	} else if want := "dist: rank 0 of 2, started by mpirun or srun, waits in MPI until all have joined\n"; strings.Count(string(out), want) != 1 {
		t.Errorf("the ranks print\n%s\nwant one line %q", out, want)
	}
}

// A rank that hangs or is stopped ends all ranks in a bounded time, with a line that says which one and why.
func TestLostRank(t *testing.T) {
	for i, library := range append(slices.Clone(disttest.Libraries), disttest.NCCL) {
		for what, line := range map[string]string{
			"beside": "rank 1 of 2 ends the run: this rank has made no progress for 1s: reading batch 3 of step 5",
			"hang":   "rank 1 of 2 ends the run: this rank has made no progress for 1s: reading batch 3 of step 5",
			"stop":   "rank 0 of 2 ends the run: rank 1 has given no sign of life for 1s",
			"kill":   "rank 0 of 2 ends the run: rank 1 has ended or is cut off",
			"never":  "rank 0 of 2 ends the run: AllReduceOn has begun and not ended for 1s",
			"first":  "rank 0 of 2 ends the run: NCCL has not queued SendOn for 1s: not all ranks call it",
		} {
			if (what == "kill" || what == "never" || what == "first") && i < 2 || !*long && (what == "hang" || i < 2 && (what == "beside") != (i == 0)) { // the launcher of MPI ends the others; one of each
				continue
			}
			t.Run(library.Name+" "+what, func(t *testing.T) {
				if i == 2 {
					gputest.Open(t, cuda.Open)
				}
				t.Parallel() // they wait
				cmd := library.Start(t, 2, role, what)
				out, err := cmd.CombinedOutput()
				if what == "never" && os.Getenv("MAMBA_TEST_DEVICE") != "standin" && strings.Contains(string(out), "NCCL has not queued AllReduceOn for 1s: not all ranks call it") {
					return // a real NCCL may have something to prepare at any call
				}
				if err == nil || !strings.Contains(string(out), line) {
					t.Errorf("%v; the ranks print\n%s\nwant a line with %q", err, out, line)
				}
			})
		}
	}
}

// The error of one rank arrives at all, which can then leave the group.
func TestFailMPI(t *testing.T) {
	if !*long {
		t.Skip("-long is not set; TestWrongCalls fails without MPI")
	}
	got := disttest.Output(t, disttest.Libraries[0].Start(t, 3, role, "fail"))
	slices.Sort(got)
	want := []string{"0 rank 1: the disk is full", "1 the disk is full", "2 rank 1: the disk is full"}
	if !slices.Equal(got, want) {
		t.Errorf("the ranks print %q, want %q", got, want)
	}
}

func TestOtherLibrary(t *testing.T) {
	mpich, openMPI := disttest.Libraries[1], disttest.Libraries[0]
	mpich.File = openMPI.File
	if _, err := exec.LookPath("mpirun.openmpi"); err != nil {
		t.Skip("Open MPI is not installed")
	}
	for _, line := range disttest.Output(t, mpich.Start(t, 2, role, "join")) {
		if want := "has started 2 processes, and this library sees 1: it belongs to another launcher"; !strings.Contains(line, want) {
			t.Errorf("the error is %s, want %q", line, want)
		}
	}
}

// What does not fit is an error on all ranks, and none waits.
func TestWrongCalls(t *testing.T) {
	numbers := func(n int) []float32 { return make([]float32, n) }
	for what, test := range map[string]struct {
		call func(g *dist.Group) error
		want string // in the error of every rank
	}{
		"another length": {func(g *dist.Group) error { return dist.AllReduce(g, numbers(5+g.Rank()/2)) },
			"dist: rank 0 calls AllReduce of 5 float32 and rank 2 calls AllReduce of 6 float32, want the same calls in the same order on all ranks"},
		"another type": {func(g *dist.Group) error {
			if g.Rank() == 1 {
				return dist.AllReduce(g, make([]float64, 5))
			}
			return dist.AllReduce(g, numbers(5))
		}, "AllReduce of 5 float64"},
		"another call": {func(g *dist.Group) error {
			if g.Rank() == 0 {
				return g.Barrier()
			}
			return dist.AllReduce(g, numbers(5))
		}, "rank 0 calls Barrier and rank 1 calls AllReduce of 5 float32"},
		"another root":  {func(g *dist.Group) error { return dist.Broadcast(g, numbers(5), g.Rank()) }, "calls Broadcast of 5 float32 from rank 0 and rank 1 calls Broadcast of 5 float32 from rank 1"},
		"no such root":  {func(g *dist.Group) error { return dist.Broadcast(g, numbers(5), 3-g.Rank()/2) }, "dist: Broadcast: root is 3, want a rank: 0 to 2"},
		"uneven parts":  {func(g *dist.Group) error { return dist.ReduceScatter(g, numbers(2), numbers(7)) }, "dist: ReduceScatter: data has 7 elements and own has 2, want 3 times as many"},
		"uneven gather": {func(g *dist.Group) error { return dist.AllGather(g, numbers(7-g.Rank()/2), numbers(2)) }, "dist: AllGather: all has 7 elements and own has 2, want 3 times as many"},
		"a failed rank": {func(g *dist.Group) error {
			if g.Rank() == 1 {
				return g.Fail(errors.New("no data"))
			}
			_, err := g.GatherBytes(nil)
			return err
		}, "no data"},
		"closed": {func(g *dist.Group) error {
			if err := g.Close(); err != nil {
				return err
			}
			return dist.AllReduce(g, numbers(5))
		}, "dist: AllReduce: the group is closed"},
		"to itself":   {func(g *dist.Group) error { return dist.Send(g, numbers(5), g.Rank()) }, "which is this one"},
		"from nobody": {func(g *dist.Group) error { return dist.Receive(g, numbers(5), 3) }, "dist: Receive: from is 3, want another rank of the 3"},
		"other pairs": {func(g *dist.Group) error {
			switch g.Rank() {
			case 0:
				if err := dist.Send(g, []byte("abc"), 1); err != nil {
					return err
				}
			case 1:
				return dist.Receive(g, numbers(3), 0)
			}
			return g.Barrier()
		}, "dist: rank 0 sends 3 bytes, and rank 1 receives 3 float32, want the same"},
	} {
		t.Run(what, func(t *testing.T) {
			for rank, err := range disttest.Run(3, test.call) {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("the error of rank %d is %v, want %q", rank, err, test.want)
				}
			}
		})
	}
}

// A long error of another rank ends at a whole character, in the news and in the next call.
func TestFailLong(t *testing.T) {
	for begin, whole := range map[string]bool{"": true, "a": true, strings.Repeat("\x80", 1<<15): false} {
		var news error
		errs := disttest.Run(2, func(g *dist.Group) error {
			g.Listen()
			if g.Rank() == 1 {
				return errors.New(begin + strings.Repeat("é", 1<<14))
			}
			for news == nil {
				time.Sleep(time.Millisecond)
				news = g.Lost()
			}
			return g.Barrier()
		})
		for _, err := range append(errs, news) {
			if err == nil || whole && (!utf8.ValidString(err.Error()) || len(err.Error()) < 1000) {
				t.Errorf("an error that begins with %.10q and has 1<<14 é arrives as %v", begin, err)
			}
		}
	}
}

// rendezvous is an engine of rank 0 whose messages to a rank leave only when that rank receives, as large messages of MPI do. Rank 1 receives only what comes after a
// message to rank 2 has arrived.
type rendezvous struct {
	arrived chan struct{}
	all     bool // messages have arrived
}

func (*rendezvous) Rank() int                                    { return 0 }
func (*rendezvous) Size() int                                    { return 3 }
func (*rendezvous) Watch(time.Duration, func() (uint64, string)) {}
func (*rendezvous) Close() error                                 { return nil }

func (e *rendezvous) Move(tag dist.Tag, messages []dist.Message) error {
	switch m := messages[len(messages)-1]; {
	case messages[0].Receive: // of a collective call, whose headers are those of this rank
		copy(messages[0].Bytes, m.Bytes)
	case m.Peer == 2:
		close(e.arrived)
	case m.Peer == 1:
		select {
		case <-e.arrived:
		case <-time.After(10 * time.Second):
			return errors.New("the message to rank 2 has waited for that to rank 1")
		}
		e.all = true
	}
	return nil
}

// A message does not wait for one to another rank, and Close waits for all.
func TestSendOrder(t *testing.T) {
	e := &rendezvous{arrived: make(chan struct{})}
	g, err := dist.New(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []int{1, 2} {
		if err := dist.Send(g, []byte{1}, to); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Close(); err != nil || !e.all {
		t.Errorf("Close returns %v, and all messages have arrived is %v, want true", err, e.all)
	}
	select {
	case <-e.arrived:
	default:
		t.Error("Close has not waited for the message to rank 2")
	}
}

func TestLaunched(t *testing.T) {
	for _, l := range dist.LauncherVariables() {
		t.Setenv(l, "")
	}
	for _, test := range []struct{ set, want string }{
		{"", "nobody 0 1 0 <nil>"},
		{"OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_LOCAL_RANK=1", "Open MPI's mpirun 3 4 1 <nil>"},
		{"PMI_SIZE=4 PMI_RANK=2 MPI_LOCALRANKID=2", "mpirun or srun 2 4 2 <nil>"},
		{"PMI_SIZE=4 PMI_RANK=2", "mpirun or srun 2 4 -1 <nil>"},
		{"SLURM_NTASKS=8 SLURM_PROCID=0", "nobody 0 1 0 <nil>"}, // the script of a job
		{"SLURM_STEP_NUM_TASKS=8 SLURM_PROCID=5 SLURM_LOCALID=1", "srun 5 8 1 <nil>"},
		{"WORLD_SIZE=2 RANK=1 LOCAL_RANK=1", "torchrun or a launcher like it 1 2 1 <nil>"},
		{"PET_NNODES=2 PET_NODE_RANK=1 PET_NPROC_PER_NODE=1", "Kubeflow 1 2 0 <nil>"},
		{"WORLD_SIZE=2 RANK=1 MASTER_ADDR=::1 MASTER_PORT=29500", "torchrun or a launcher like it 1 2 -1 [::1]:29500 <nil>"},
		{"WORLD_SIZE=2 RANK=1 MASTER_ADDR=[::1] MASTER_PORT=29500", "torchrun or a launcher like it 1 2 -1 [::1]:29500 <nil>"},
		{"SLURM_STEP_NUM_TASKS=8 SLURM_PROCID=5 SLURM_LOCALID=1 MASTER_ADDR=a MASTER_PORT=1", "srun 5 8 1 a:1 <nil>"},
		// torchrun, started by srun or mpirun on each machine, and variables by hand in an interactive shell of Slurm
		{"SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 WORLD_SIZE=8 RANK=3 LOCAL_RANK=3 MASTER_ADDR=a MASTER_PORT=1", "torchrun or a launcher like it 3 8 3 a:1 <nil>"},
		{"OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 WORLD_SIZE=8 RANK=7 LOCAL_RANK=3 MASTER_ADDR=a MASTER_PORT=1 TORCHELASTIC_RUN_ID=none", "torchrun or a launcher like it 7 8 3 a:1 <nil>"},
		{"OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1 WORLD_SIZE=8 RANK=7 MASTER_ADDR=a MASTER_PORT=1", "Open MPI's mpirun 1 2 1 <nil>"}, // of a pod
		{"SLURM_STEP_NUM_TASKS=8 SLURM_PROCID=5 SLURM_LOCALID=1 WORLD_SIZE=8 MASTER_ADDR=a MASTER_PORT=1", "srun 5 8 1 a:1 <nil>"},                                      // RANK is not set
		{"PMI_SIZE=4 PMI_RANK=2 MPI_LOCALRANKID=2 MASTER_ADDR=a MASTER_PORT=1", "mpirun or srun 2 4 2 <nil>"},
		{"PET_NNODES=2 PET_NODE_RANK=1 PET_MASTER_ADDR=a PET_MASTER_PORT=1", "Kubeflow 1 2 0 a:1 <nil>"},
		{"WORLD_SIZE=2 RANK=1 MASTER_ADDR=a", ` 0 0 0 dist: the environment variable MASTER_ADDR is set and MASTER_PORT is not, want a free port of that machine`},
		{"WORLD_SIZE=2 RANK=1 MASTER_PORT=1", ` 0 0 0 dist: the environment variable MASTER_PORT is set and MASTER_ADDR is not, want the address of the machine of rank 0`},
		{"WORLD_SIZE=2 RANK=1 MASTER_ADDR=a MASTER_PORT=99999", ` 0 0 0 dist: the environment variable MASTER_PORT is "99999", want a whole number from 1 to 65535`},
		{"PET_NNODES=2 PET_NODE_RANK=1 PET_NPROC_PER_NODE=8", ` 0 0 0 dist: PET_NPROC_PER_NODE is "8", want 1: PET_NNODES and PET_NODE_RANK describe pods, and each has one process`},
		{"PET_NNODES=2 PET_NODE_RANK=1 PET_NPROC_PER_NODE=auto", ` 0 0 0 dist: PET_NPROC_PER_NODE is "auto", which is as many processes in each pod as it has GPUs or processors, want 1: each pod has one process here`},
		{"PET_NNODES=1:4", ` 0 0 0 dist: the environment variable PET_NNODES is "1:4", the least and the largest number of pods of an elastic job, want one number: a run keeps its number of ranks`},
		{"WORLD_SIZE=4", ` 0 0 0 dist: the environment variable WORLD_SIZE is "4" and RANK is not set, want both, as torchrun or a launcher like it sets them, or neither for one process`},
		{"PMI_RANK=1", ` 0 0 0 dist: the environment variable PMI_RANK is "1" and PMI_SIZE is not set, want both, as mpirun or srun sets them, or neither for one process`},
		{"WORLD_SIZE=2 RANK=2", ` 0 0 0 dist: the environment variable RANK is "2", want a whole number from 0 to 1`},
		{"WORLD_SIZE=many RANK=0", ` 0 0 0 dist: the environment variable WORLD_SIZE is "many", want a whole number from 1 to 1048576`},
	} {
		t.Run(test.set, func(t *testing.T) {
			for _, pair := range strings.Fields(test.set) {
				name, value, _ := strings.Cut(pair, "=")
				t.Setenv(name, value)
			}
			by, rank, size, local, address, err := dist.Launched()
			if got := fmt.Sprint(by, " ", rank, " ", size, " ", local, " ", address, err); got != test.want {
				t.Errorf("it is %s, want %s", got, test.want)
			}
		})
	}
}

func TestJoinWithoutMPI(t *testing.T) {
	for _, l := range dist.LauncherVariables() {
		t.Setenv(l, "")
	}
	join := func(options ...dist.Option) error {
		g, err := dist.Join(t.Context(), options...)
		if err == nil {
			err = g.Close()
		}
		return err
	}
	if err := errors.Join(join(), join(dist.WithTimeout(0))); err != nil {
		t.Errorf("a program that was started alone: %v", err)
	}
	for _, test := range []struct {
		err  error
		want string
	}{
		{join(dist.WithTimeout(time.Millisecond)), "dist: the timeout is 1ms, want at least 1s, or 0 for none"},
		{join(dist.WithLocalRank(1)), "dist: the local rank is 1, want 0 to 0"},
		{join(nil), "dist: an option is nil"},
	} {
		if test.err == nil || test.err.Error() != test.want {
			t.Errorf("the error is %v, want %s", test.err, test.want)
		}
	}
	t.Setenv("WORLD_SIZE", "2")
	t.Setenv("RANK", "0")
	if err := join(); err == nil || !strings.Contains(err.Error(), "without MPI and without MASTER_ADDR and MASTER_PORT, want these, or a launcher of MPI: mpirun -n 2") {
		t.Errorf("without MPI the error is %v", err)
	}
	t.Setenv("PMI_SIZE", "2")
	t.Setenv("PMI_RANK", "0")
	file := t.TempDir() + "/libmpi.so"
	t.Setenv("MAMBA_MPI", file)
	if err := join(); err == nil || !strings.HasPrefix(err.Error(), "dist: join: MAMBA_MPI is "+file+": ") {
		t.Errorf("without the library the error is %v", err)
	}
}
