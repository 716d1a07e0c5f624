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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/dist/disttest"
	"github.com/gomamba/mamba/internal/gputest"
)

// devices opens the GPU of a rank, and calls f with the group's devices.
func devices(g *dist.Group, f func(x *dist.Devices, s *cuda.Stream) error) error {
	d, err := cuda.Open(g.GPU())
	if err != nil {
		return err
	}
	defer d.Close()
	s, err := d.NewStream()
	if err != nil {
		return err
	}
	x, err := g.Devices(d)
	if err != nil {
		return err
	}
	return errors.Join(f(x, s), x.Close(), d.Close())
}

// deviceCollectives compares every call on arrays of the GPU with a loop, and adds the results to a hash.
func deviceCollectives(g *dist.Group, h hash.Hash) error {
	return devices(g, func(x *dist.Devices, s *cuda.Stream) error {
		seed := 0
		for _, n := range []int{0, 1, 3, 64, 1025, 70000} {
			for _, f := range []func(*dist.Group, *dist.Devices, *cuda.Stream, hash.Hash, int, int) error{sumsOn[float32], sumsOn[float64], sumsOn[dist.BFloat16],
				movesOn[float32], movesOn[float64], movesOn[dist.BFloat16], movesOn[byte]} {
				seed++
				if err := f(g, x, s, h, n, seed); err != nil {
					return fmt.Errorf("rank %d of %d, %d elements: %w", g.Rank(), g.Size(), n, err)
				}
			}
		}
		return captured(g, x, s)
	})
}

// captured queues calls in a CUDA graph: they run at each launch, after the work before them and before that after them.
func captured(g *dist.Group, x *dist.Devices, s *cuda.Stream) error {
	size, n := g.Size(), 100
	a, err := upload(s, n, func(int) float32 { return 1 })
	if err != nil {
		return err
	}
	defer a.Free()
	all, err := upload(s, n*size, func(int) float32 { return 0 })
	if err != nil {
		return err
	}
	defer all.Free()
	f := func() error {
		return errors.Join(cuda.Add(s, a, a, a), dist.AllReduceOn(x, a), dist.AllGatherOn(x, all, a), x.Wait(), cuda.Add(s, a, a, a))
	}
	if err := f(); err != nil { // not captured
		return err
	}
	graph, err := s.Capture(f)
	if err != nil {
		return err
	}
	defer graph.Close()
	if err := errors.Join(graph.Launch(s), graph.Launch(s)); err != nil {
		return err
	}
	once := float32(4 * size)
	sums, err1 := download(s, a)
	parts, err2 := download(s, all)
	err = errors.Join(err1, err2, same("a graph", sums, func(int) float32 { return once * once * once }),
		same("a graph", parts, func(int) float32 { return once * once * once / 2 }))
	if err != nil || size == 1 || os.Getenv("MAMBA_TEST_DEVICE") != "standin" {
		return err
	}
	if c, err := s.Capture(func() error { return dist.AllReduceOn(x, a) }); err == nil {
		return errors.Join(errors.New("a capture without Wait: no error"), c.Close())
	}
	// After that error all goes on. A capture that stays open ends with x, and not before it is made.
	_, err = s.Capture(func() error {
		err := errors.Join(dist.AllReduceOn(x, a), x.Wait())
		if err := x.Close(); err == nil || !strings.Contains(err.Error(), "cuda: close: the stream is being captured") {
			return fmt.Errorf("Close in a capture: the error is %v", err)
		}
		return err
	})
	return errors.Join(err, x.Wait(), dist.AllReduceOn(x, a), x.Wait(), s.Synchronize())
}

// near compares sums that are added in another order: with two ranks the same bits, else within a rounding for each addition.
func near[T dist.Float](what string, size int, got []T, seed int, index func(i int) int) error {
	for i := range got {
		want, largest := wide(add[T](size, index(i), seed)), 0.0
		for r := range size {
			largest += math.Abs(wide(value[T](r, index(i), seed)))
		}
		bound := largest * map[bool]float64{true: float64(size), false: 0}[size > 2]
		switch any(T(0)).(type) {
		case float32:
			bound *= 0x1p-23
		case float64:
			bound *= 0x1p-52
		default:
			bound *= 0x1p-7
		}
		if d := math.Abs(wide(got[i]) - want); !(d <= bound) {
			return fmt.Errorf("%s: element %d of %d is %v, want %v", what, i, len(got), wide(got[i]), want)
		}
	}
	return nil
}

func wide[T dist.Float](x T) float64 {
	if b, ok := any(x).(dist.BFloat16); ok {
		return float64(b.Float32())
	}
	return float64(x)
}

// upload returns an array of n elements on a device.
func upload[T dist.Element](s *cuda.Stream, n int, f func(i int) T) (cuda.Array[T], error) {
	return cuda.Upload(s, make1(n, f))
}

func download[T dist.Element](s *cuda.Stream, a cuda.Array[T]) ([]T, error) {
	host := make([]T, a.Len())
	return host, a.CopyTo(s, host)
}

func sumsOn[T dist.Float](g *dist.Group, x *dist.Devices, s *cuda.Stream, h hash.Hash, n, seed int) error {
	rank, size := g.Rank(), g.Size()
	own := func(i int) T { return value[T](rank, i, seed) }
	a, err := upload(s, n, own)
	if err != nil {
		return err
	}
	defer a.Free()
	all, err := upload(s, n*size, own)
	if err != nil {
		return err
	}
	defer all.Free()
	part, err := cuda.NewArray[T](s, n)
	if err != nil {
		return err
	}
	defer part.Free()
	mine := all.Slice(rank*n, n)
	if err := errors.Join(dist.AllReduceOn(x, a), dist.ReduceScatterOn(x, part, all), x.Wait()); err != nil {
		return err
	}
	sum, err1 := download(s, a)
	parts, err2 := download(s, part)
	same1 := func(i int) int { return i }
	err = errors.Join(err1, err2, near("AllReduceOn", size, sum, seed, same1), near("ReduceScatterOn", size, parts, seed, func(i int) int { return rank*n + i }))
	if err != nil {
		return err
	}
	// In place, the sums of all parts are those of an AllReduce.
	if err := errors.Join(dist.ReduceScatterOn(x, mine, all), dist.AllGatherOn(x, all, mine), x.Wait()); err != nil {
		return err
	}
	sums, err := download(s, all)
	fmt.Fprint(h, sum, sums)
	return errors.Join(err, near("ReduceScatterOn and AllGatherOn", size, sums, seed, same1),
		same("ReduceScatterOn in place", sums[rank*n:][:n], func(i int) T { return parts[i] }))
}

func movesOn[T dist.Element](g *dist.Group, x *dist.Devices, s *cuda.Stream, h hash.Hash, n, seed int) error {
	rank, size := g.Rank(), g.Size()
	of := func(rank int) func(int) T { return func(i int) T { return value[T](rank, i, seed) } }
	own, err := upload(s, n, of(rank))
	if err != nil {
		return err
	}
	defer own.Free()
	all, err := cuda.NewArray[T](s, n*size)
	if err != nil {
		return err
	}
	defer all.Free()
	if err := errors.Join(dist.AllGatherOn(x, all, own), x.Wait()); err != nil {
		return err
	}
	got, err := download(s, all)
	if err = errors.Join(err, same("AllGatherOn", got, func(i int) T { return value[T](i/max(n, 1), i%max(n, 1), seed) })); err != nil {
		return err
	}
	for root := range size {
		a, err := upload(s, n, of(rank))
		if err != nil {
			return err
		}
		err = errors.Join(dist.BroadcastOn(x, a, root), x.Wait())
		got, wrong := download(s, a)
		a.Free()
		if err = errors.Join(err, wrong, same("BroadcastOn", got, of(root))); err != nil {
			return err
		}
	}
	if size == 1 {
		return nil
	}
	if err := x.Together(func() error { return dist.BroadcastOn(x, own, 0) }); err == nil || !strings.Contains(err.Error(), "inside Together, want SendOn and ReceiveOn only") {
		return fmt.Errorf("BroadcastOn inside Together: the error is %v", err)
	}
	other, err := s.Device().NewStream()
	if err != nil {
		return err
	}
	b, err := upload(other, 1, of(rank))
	if err != nil {
		return err
	}
	err = x.Together(func() error {
		return errors.Join(dist.SendOn(x, own, (rank+1)%size), dist.ReceiveOn(x, b, (rank+1)%size))
	})
	if err == nil || !strings.Contains(err.Error(), "dist: ReceiveOn: a is on another stream than the messages before it in Together, want the same") {
		return fmt.Errorf("two streams in Together: the error is %v", err)
	}
	if err := other.Close(); err != nil {
		return err
	}
	// Around the ring, all at once and then from rank to rank.
	next, before := (rank+1)%size, (rank+size-1)%size
	a := all.Slice(0, n)
	err = x.Together(func() error { return errors.Join(dist.SendOn(x, own, next), dist.ReceiveOn(x, a, before)) })
	if err = errors.Join(err, x.Wait()); err != nil {
		return err
	}
	got, err = download(s, a)
	if err = errors.Join(err, same("Together", got, of(before))); err != nil {
		return err
	}
	if rank > 0 {
		err = dist.ReceiveOn(x, a, before)
	}
	if rank < size-1 && err == nil {
		err = dist.SendOn(x, own, next)
	}
	if err = errors.Join(err, x.Wait()); err != nil || rank == 0 {
		return err
	}
	got, err = download(s, a)
	return errors.Join(err, same("ReceiveOn", got, of(before)))
}

// mpiNever makes a call that rank 1 does not make.
func mpiNever() error {
	return never(func(x *dist.Devices, a cuda.Array[float32]) error { return dist.AllReduceOn(x, a) })
}

// mpiFirst makes a call that rank 1 does not make, and that NCCL prepares together with rank 1.
func mpiFirst() error {
	return never(func(x *dist.Devices, a cuda.Array[float32]) error { return dist.SendOn(x, a, 1) })
}

func never(f func(x *dist.Devices, a cuda.Array[float32]) error) error {
	g, err := dist.Join(context.Background(), dist.WithTimeout(time.Second))
	if err != nil {
		return err
	}
	return devices(g, func(x *dist.Devices, s *cuda.Stream) error {
		a, err := upload(s, 100, func(int) float32 { return 1 })
		if err == nil && g.Rank() == 0 {
			err = f(x, a)
		}
		time.Sleep(5 * time.Second)
		return err
	})
}

// waits are calls of rank 0 that wait for rank 1, which fails. Each returns the error of rank 1.
var waits = map[string]func(g *dist.Group, x *dist.Devices, s *cuda.Stream, a cuda.Array[float32]) error{
	"on the host": func(_ *dist.Group, x *dist.Devices, _ *cuda.Stream, a cuda.Array[float32]) error {
		return dist.SendOn(x, a, 1)
	},
	"on the host in a capture": func(_ *dist.Group, x *dist.Devices, s *cuda.Stream, a cuda.Array[float32]) error {
		_, err := s.Capture(func() error { return errors.Join(dist.SendOn(x, a, 1), x.Wait()) })
		return err
	},
	"on the GPU": func(_ *dist.Group, x *dist.Devices, s *cuda.Stream, a cuda.Array[float32]) error {
		return errors.Join(dist.AllReduceOn(x, a), x.Wait(), s.Synchronize(), x.Wait())
	},
	"on the GPU in a capture": func(_ *dist.Group, x *dist.Devices, s *cuda.Stream, a cuda.Array[float32]) error {
		graph, err := s.Capture(func() error { return errors.Join(dist.AllReduceOn(x, a), x.Wait()) })
		if err != nil {
			return err
		}
		return errors.Join(graph.Launch(s), s.Synchronize(), x.Wait())
	},
	"in Close": func(g *dist.Group, x *dist.Devices, _ *cuda.Stream, a cuda.Array[float32]) error {
		return errors.Join(dist.AllReduceOn(x, a), x.Close(), g.Barrier())
	},
	"in a call of the group": func(g *dist.Group, x *dist.Devices, _ *cuda.Stream, a cuda.Array[float32]) error {
		return errors.Join(dist.AllReduceOn(x, a), g.Barrier())
	},
}

// mpiFailed fails while rank 0 waits for a call that is never made. Both leave.
func mpiFailed() error {
	g, err := dist.Join(context.Background())
	if err != nil {
		return err
	}
	err = devices(g, func(x *dist.Devices, s *cuda.Stream) error {
		a, err := upload(s, 100, func(int) float32 { return 1 })
		if err != nil {
			return err
		}
		if g.Rank() == 1 {
			time.Sleep(200 * time.Millisecond) // so that rank 0 waits
			return g.Fail(errors.New("the disk is full"))
		}
		return g.Fail(waits[flag.Arg(0)](g, x, s, a))
	})
	first, _, _ := strings.Cut(fmt.Sprint(err), "\n")
	fmt.Println(g.Rank(), first)
	return g.Close()
}

func mpiDevices() error {
	g, err := dist.Join(context.Background())
	if err != nil {
		return err
	}
	h := sha256.New()
	if err := g.Fail(deviceCollectives(g, h)); err != nil {
		return err
	}
	fmt.Println(g.Rank(), g.Size(), hex.EncodeToString(h.Sum(nil)[:8]))
	return g.Close()
}

// The sums have the same bits on all ranks and in every run.
func TestDevices(t *testing.T) {
	gputest.Open(t, cuda.Open)
	h := sha256.New()
	if err := deviceCollectives(nil, h); err != nil {
		t.Errorf("a group of one: %v", err)
	}
	type run struct {
		disttest.Library
		size int
	}
	runs := []run{{disttest.NCCL, 2}, {disttest.Libraries[0], 2}}
	if *long {
		other := disttest.NCCL
		other.Name = "non-blocking NCCL"
		runs = append(runs, run{disttest.NCCL, 3}, run{disttest.NCCL, 4}, run{disttest.Libraries[1], 2}, run{other, 2})
	}
	for _, r := range runs {
		library, size := r.Library, r.size
		t.Run(fmt.Sprint(library.Name, size), func(t *testing.T) {
			disttest.NeedGPUs(t, size)
			if library.Name == "non-blocking NCCL" {
				t.Setenv("NCCL_COMM_BLOCKING", "0")
			}
			lines := disttest.Output(t, library.Start(t, size, role, "devices"))
			slices.Sort(lines)
			if len(lines) != size {
				t.Fatalf("the ranks print %q, want a line each", lines)
			}
			for rank, line := range lines {
				_, hash, _ := strings.Cut(lines[0], " ")
				if want := fmt.Sprint(rank, " ", hash); line != want {
					t.Errorf("rank %d prints %q, want %q", rank, line, want)
				}
			}
		})
	}
}

// A rank that fails ends the calls that others wait for.
func TestDevicesFail(t *testing.T) {
	gputest.Open(t, cuda.Open)
	want := []string{"0 rank 1: the disk is full", "1 the disk is full", "2 rank 1: the disk is full", "3 rank 1: the disk is full"}
	sizes := []int{2}
	if *long {
		sizes = append(sizes, len(want))
	}
	for _, library := range []disttest.Library{disttest.NCCL, disttest.Libraries[0]} {
		for what := range waits {
			for _, size := range sizes {
				if library.File != "" && testing.Short() && what != "on the host" {
					continue
				}
				t.Run(fmt.Sprint(library.Name, size, " ", what), func(t *testing.T) {
					disttest.NeedGPUs(t, size)
					t.Parallel()
					got := disttest.Output(t, library.Start(t, size, role, "failed", what))
					slices.Sort(got)
					if !slices.Equal(got, want[:size]) {
						t.Errorf("the ranks print %q, want %q", got, want[:size])
					}
				})
			}
		}
	}
}

// Without NCCL the error says what to do, on all ranks.
func TestDevicesWithout(t *testing.T) {
	gputest.Open(t, cuda.Open)
	cmd := disttest.NCCL.Start(t, 2, role, "join")
	cmd.Env = append(cmd.Env, "MAMBA_NCCL=/nowhere/libnccl.so.2")
	for _, line := range disttest.Output(t, cmd) {
		if want := "cuda: NCCL: MAMBA_NCCL is /nowhere/libnccl.so.2"; !strings.Contains(line, want) {
			t.Errorf("the error is %s, want %q", line, want)
		}
	}
}

// What is wrong on one rank alone when NCCL connects the GPUs is an error on all. If the others wait in NCCL, it ends them.
func TestDevicesWithoutOne(t *testing.T) {
	gputest.Alive(t) // it takes the stand-in
	const wrong = "cuda: ncclCommInitRankConfig: ncclSystemError (2): NCCL: this rank is "
	cmd := disttest.NCCL.Start(t, 2, role, "join")
	cmd.Env = append(cmd.Env, "GPUSTANDIN_LOST=1")
	for _, line := range disttest.Output(t, cmd) {
		if want := wrong + "not connected"; !strings.Contains(line, want) {
			t.Errorf("the error is %s, want %q", line, want)
		}
	}
	cmd = disttest.NCCL.Start(t, 2, role, "patient")
	cmd.Env = append(cmd.Env, "GPUSTANDIN_ALONE=1")
	out, err := cmd.CombinedOutput()
	if want := "rank 0 of 2 ends the run: rank 1: dist: devices: " + wrong + "alone"; err == nil || strings.Count(string(out), want) != 1 || strings.Count(string(out), "rank 0 of 2 ends the run") != 1 {
		t.Errorf("%v; the ranks print\n%s\nwant one line of rank 0, with %q", err, out, want)
	}
}

var times = flag.Bool("times", false, "measure the calls of two GPUs")

// mpiTimes prints the times of calls on arrays of several sizes, of float32: those of the GPU, and in which the host queues a call.
func mpiTimes() error {
	began := time.Now()
	g, err := dist.Join(context.Background())
	if err != nil {
		return err
	}
	print := func(format string, args ...any) {
		if g.Rank() == 0 {
			fmt.Printf(format, args...)
		}
	}
	since := func(what string) {
		print("%s: %.2f s\n", what, time.Since(began).Seconds())
		began = time.Now()
	}
	since("Join")
	err = devices(g, func(x *dist.Devices, s *cuda.Stream) error {
		since("cuda.Open and Group.Devices")
		second, err := g.Devices(s.Device())
		if err != nil {
			return err
		}
		since("Group.Devices")
		if err := second.Close(); err != nil {
			return err
		}
		since("Close")
		print("%-9s %22s %22s %22s %22s %22s\n", "MiB", "AllReduceOn", "ReduceScatterOn", "AllGatherOn", "BroadcastOn", "both ways")
		for _, mib := range []int{1, 16, 128, 512} {
			n := mib << 18
			a, err := cuda.NewArray[float32](s, n)
			if err == nil {
				err = a.Fill(s, 0)
			}
			if err != nil {
				return err
			}
			b, err := cuda.NewArray[float32](s, n)
			if err != nil {
				return err
			}
			part := a.Slice(g.Rank()*(n/g.Size()), n/g.Size())
			next, before := (g.Rank()+1)%g.Size(), (g.Rank()+g.Size()-1)%g.Size()
			print("%-9d", mib)
			for _, f := range []func() error{
				func() error { return dist.AllReduceOn(x, a) },
				func() error { return dist.ReduceScatterOn(x, part, a) },
				func() error { return dist.AllGatherOn(x, a, part) },
				func() error { return dist.BroadcastOn(x, a, 0) },
				func() error {
					return x.Together(func() error { return errors.Join(dist.SendOn(x, a, next), dist.ReceiveOn(x, b, before)) })
				},
			} {
				gpu, host, err := timeOf(g, x, s, f, max(4, 64/mib))
				if err != nil {
					return err
				}
				print(" %8.1f us (%6.1f us)", gpu, host)
			}
			print("\n")
			a.Free()
			b.Free()
		}
		for _, n := range []int{1, 1 << 12, 1 << 22, 1 << 26} {
			host, best := make([]float32, n), time.Hour
			for range 4 {
				began := time.Now()
				if err := dist.AllReduce(g, host); err != nil {
					return err
				}
				best = min(best, time.Since(began))
			}
			print("AllReduce of %d float32 in host memory: %v\n", n, best)
		}
		return nil
	})
	return errors.Join(g.Fail(err), g.Close())
}

// timeOf returns the times of a call in microseconds, of the GPU and of the host, the best of three times several calls.
func timeOf(g *dist.Group, x *dist.Devices, s *cuda.Stream, f func() error, calls int) (gpu, host float64, err error) {
	begin, err := s.Device().NewEvent()
	if err != nil {
		return 0, 0, err
	}
	defer begin.Close()
	end, err := s.Device().NewEvent()
	if err != nil {
		return 0, 0, err
	}
	defer end.Close()
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(calls) }
	gpu, host = math.Inf(1), math.Inf(1)
	for range 4 { // the first one prepares
		if err := errors.Join(g.Barrier(), s.Record(begin)); err != nil {
			return 0, 0, err
		}
		began := time.Now()
		for range calls {
			if err := f(); err != nil {
				return 0, 0, err
			}
		}
		host = min(host, each(time.Since(began)))
		if err := errors.Join(x.Wait(), s.Record(end), end.Synchronize()); err != nil {
			return 0, 0, err
		}
		d, err := end.Since(begin)
		if err != nil {
			return 0, 0, err
		}
		gpu = min(gpu, each(d))
	}
	return gpu, host, nil
}

// Not a benchmark: the processes need a launcher.
func TestDevicesTimes(t *testing.T) {
	if !*times {
		t.Skip("-times is not set")
	}
	t.Logf("\n%s", strings.Join(disttest.Output(t, disttest.NCCL.Start(t, 2, role, "times")), "\n"))
}

// A process that sees one GPU alone takes it, whatever its local rank is.
func TestGPU(t *testing.T) {
	gputest.Open(t, cuda.Open)
	g, err := dist.New(&rendezvous{arrived: make(chan struct{})}, dist.WithLocalRank(2))
	if err != nil {
		t.Fatal(err)
	}
	n, err := cuda.Count()
	if got := g.GPU(); err != nil || n < 1 || (n == 1 && got != 0) || (n > 1 && got != 2) {
		t.Errorf("with %d GPUs (%v) local rank 2 takes GPU %d, want 0 for one and 2 for more", n, err, got)
	}
}

// What does not fit is an error before anything is queued.
func TestDevicesWrong(t *testing.T) {
	d, other := gputest.Open(t, cuda.Open), gputest.Open(t, cuda.Open)
	array := func(d *cuda.Device, n int) cuda.Array[float32] {
		s, err := d.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		a, err := cuda.NewArray[float32](s, n)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	x, err := (*dist.Group)(nil).Devices(d)
	if err != nil {
		t.Fatal(err)
	}
	closed, err := (*dist.Group)(nil).Devices(d)
	if err := errors.Join(err, closed.Close(), closed.Close()); err != nil {
		t.Fatal(err)
	}
	a, none := array(d, 4), cuda.Array[float32]{}
	for what, test := range map[string]struct {
		err  error
		want string
	}{
		"no device":        {func() error { _, err := (*dist.Group)(nil).Devices(nil); return err }(), "dist: devices: the device is nil, want one that cuda.Open returned"},
		"no devices":       {dist.AllReduceOn(nil, a), "dist: AllReduceOn: the devices are missing, want those that Group.Devices returned"},
		"closed":           {dist.AllReduceOn(closed, a), "dist: AllReduceOn: the devices are closed"},
		"absent":           {dist.AllReduceOn(x, none), "dist: AllReduceOn: a is absent, want an array"},
		"own is absent":    {dist.ReduceScatterOn(x, none, a.Slice(0, 0)), "dist: ReduceScatterOn: own is absent, want an array"},
		"another device":   {dist.BroadcastOn(x, array(other, 4), 0), "dist: BroadcastOn: a is on another device, want that of this rank"},
		"another stream":   {dist.AllGatherOn(x, array(d, 4), a), "dist: AllGatherOn: all is on another stream than own, want the same"},
		"lengths":          {dist.ReduceScatterOn(x, a.Slice(0, 1), a), "dist: ReduceScatterOn: all has 4 elements and own has 1, want 1 times as many"},
		"no such root":     {dist.BroadcastOn(x, a, 1), "dist: BroadcastOn: root is 1, want a rank: 0 to 0"},
		"to itself":        {dist.SendOn(x, a, 0), "dist: SendOn: to is 0, want another rank of the 1, not 0, which is this one"},
		"no function":      {x.Together(nil), "dist: together: f is nil, want a function that calls SendOn and ReceiveOn"},
		"wait when closed": {closed.Wait(), "dist: wait: the devices are closed"},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("%s: the error is %v, want %q", what, test.err, test.want)
		}
	}
}
