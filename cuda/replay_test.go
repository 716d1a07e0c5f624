package cuda

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomamba/mamba/internal/gputest"
)

// withGraphs returns a stream of a device that replays work, or does not.
func withGraphs(t *testing.T, value string) *Stream {
	t.Setenv("MAMBA_GRAPHS", value)
	return open(t)
}

// Random programs of kernels, products, fills, copies and allocations, with copies from and to the host, events and a second stream in between, run
// several times. In some runs one piece is missing, another comes twice, or arguments differ. The results are those of a device that queues all
// work one by one.
func TestReplay(t *testing.T) {
	const arrays, n = 6, 64
	run := func(s *Stream, seed uint64) (results []float32) {
		shape := rand.New(rand.NewPCG(seed, 1))
		other, err := s.device.NewStream()
		do(t, err)
		event, err := s.device.NewEvent()
		do(t, err)
		var a [arrays]Array[float32]
		for i := range a {
			a[i] = filled(t, s, n, float32(i))
		}
		program := make([]int, 3+shape.IntN(40))
		for i := range program {
			program[i] = shape.IntN(1 << 20)
		}
		change := rand.New(rand.NewPCG(seed, 2))
		piece := func(p int) {
			x, y, z := a[p%arrays], a[p/10%arrays], a[p/100%arrays]
			switch p / 1000 % 9 {
			case 0:
				do(t, x.Fill(s, byte(p/10000%2)))
			case 1:
				do(t, x.CopyOf(s, y))
			case 2, 3, 4:
				do(t, Add(s, x, y, z))
			case 5:
				m := func(a Array[float32]) Matrix[float32] { return Matrix[float32]{Data: a, Stride: 8} }
				if x != y && x != z {
					do(t, MatMulScaled(s, Strict, 8, 8, 8, 0.5, m(y), m(z), float32(p/10000%2), m(x)))
				}
			case 6:
				b, err := sum(s, x, y)
				do(t, err)
				do(t, z.CopyOf(s, b))
				b.Free()
			case 7:
				host := make([]float32, n)
				do(t, x.CopyTo(s, host))
				results = append(results, host...)
			case 8:
				do(t, s.Record(event), other.Wait(event))
				host := make([]float32, n)
				do(t, x.CopyTo(other, host))
				results = append(results, host...)
			}
		}
		for range 12 {
			at, how := -1, 0
			if change.IntN(4) == 0 {
				at, how = change.IntN(len(program)), change.IntN(3)
			}
			for i, p := range program {
				switch {
				case i != at || how == 0:
					piece(p)
				case how == 1:
					piece(p)
					piece(p)
				}
				if i == at && how == 0 {
					piece(change.IntN(1 << 20))
				}
			}
			for _, x := range a { // values stay finite
				host := make([]float32, n)
				do(t, x.CopyTo(s, host))
				results = append(results, host...)
				do(t, x.Fill(s, 0))
			}
			do(t, a[seed%arrays].CopyFrom(s, slices.Repeat([]float32{1}, n)))
		}
		for _, x := range a {
			x.Free()
		}
		do(t, event.Close(), other.Close())
		return results
	}
	var want, got [][]float32
	one := withGraphs(t, "off")
	for seed := range uint64(25) {
		want = append(want, run(one, seed))
	}
	graphs := withGraphs(t, "on")
	for seed := range uint64(25) {
		got = append(got, run(graphs, seed))
	}
	for i := range want {
		if !slices.EqualFunc(want[i], got[i], func(a, b float32) bool { return a == b || a != a && b != b }) {
			t.Errorf("program %d: the results differ", i)
		}
	}
	if l := one.device.Launches(); l.Replayed != 0 || l.Graphs != 0 || l.Single == 0 {
		t.Errorf("without graphs: %+v", l)
	}
	if l, all := graphs.device.Launches(), one.device.Launches().Single; l.Replayed < all/3 || l.Single+l.Replayed != all || l.Why == "" {
		t.Errorf("with graphs: %+v, want a third of the %d pieces replayed, and all of them counted", l, all)
	}
}

// Work is replayed from the third time on. Other work in its place is queued one by one, and Launches says why.
func TestReplayWhy(t *testing.T) {
	s := withGraphs(t, "")
	x, y := filled(t, s, 100, 1), filled(t, s, 100, 2)
	host := make([]float32, 100)
	run := func(last Array[float32], single, replayed, graphs int64, why string) {
		t.Helper()
		before := s.device.Launches()
		do(t, x.Fill(s, 0))
		for range 9 {
			do(t, Add(s, x, y, x))
		}
		do(t, Add(s, x, last, x))
		do(t, x.CopyTo(s, host))
		l := s.device.Launches()
		if l.Single-before.Single != single || l.Replayed-before.Replayed != replayed || l.Graphs-before.Graphs != graphs || !strings.Contains(l.Why, why) {
			t.Errorf("from %+v to %+v, want %d more queued singly, %d replayed, %d graphs, and the reason %q", before, l, single, replayed, graphs, why)
		}
	}
	run(y, 11, 0, 0, "")
	run(y, 11, 0, 1, "")
	run(y, 0, 11, 0, "")
	run(x, 11, 0, 0, "11 pieces of work from a fill to add came for the first time")
	run(y, 0, 11, 0, "11 pieces of work")
	do(t, x.Fill(s, 0), x.CopyTo(s, host))
	if why := s.device.Launches().Why; !strings.HasPrefix(why, "cuMemcpyDtoHAsync") {
		t.Errorf("a copy to the host in the middle of a graph: the reason is %q", why)
	}
	do(t, s.forget())
	run(y, 11, 0, 0, "")
	run(y, 11, 0, 1, "")
	run(y, 0, 11, 0, "")
	if used, _ := s.device.Memory(); used != 2*512 {
		t.Errorf("%d bytes are in use, want those of two arrays", used)
	}
}

// A segment that cannot be recorded is queued one by one, and Launches says why.
func TestReplayNotRecorded(t *testing.T) {
	s := withGraphs(t, "on")
	x := filled(t, s, 100, 1)
	do(t, x.Fill(s, 0))
	for range 4 {
		s.replay.segment = slices.Repeat([]task{{fill, []uint64{0, 0, 4}}}, 5) // address 0
		do(t, s.learn())
	}
	l := s.device.Launches()
	if l.Graphs != 0 || !strings.HasPrefix(l.Why, "it could not be recorded: ") {
		t.Errorf("%+v, want a reason and no graph", l)
	}
	holds(t, s, "an array afterwards", x, 0)
}

// Work beyond the limit makes a stream forget its graphs.
func TestReplayForgets(t *testing.T) {
	s := withGraphs(t, "on")
	x := filled(t, s, 100, 1)
	s.replay.recorded = mostRecorded - 5
	host := make([]float32, 100)
	for range 3 {
		for i := range 6 {
			do(t, x.Fill(s, byte(i)))
		}
		do(t, x.CopyTo(s, host))
	}
	if r := s.replay; r.recorded != 6 || len(r.graphs) != 1 {
		t.Errorf("%d tasks are recorded in %d graphs, want 6 in 1", r.recorded, len(r.graphs))
	}
}

func TestGraphsVariable(t *testing.T) {
	d := gputest.Open(t, Open) // skips the test without a GPU
	if d.single {
		t.Errorf("MAMBA_GRAPHS is not set, and work is not replayed")
	}
	t.Setenv("MAMBA_GRAPHS", "of")
	if _, err := Open(0); err == nil || !strings.Contains(err.Error(), `MAMBA_GRAPHS is "of", want on or off`) {
		t.Error(err)
	}
	if l := (*Device)(nil).Launches(); l != (Launches{}) {
		t.Error(l)
	}
}

// The sizes of a kernel's arguments come from its PTX.
func TestArgumentSizes(t *testing.T) {
	got := argumentSizes(`
.visible .entry one(
	.param .u64 one_param_0,
	.param .align 8 .b8 one_param_1[336],
	.param .f32 one_param_2,
	.param .align 4 .b8 one_param_3[36],
	.param .b64 one_param_4,
	.param .u8 one_param_5
)
.maxntid 256, 1, 1
{
	ld.param.u64 	%rd1, [one_param_0];
}
.visible .entry none()
{
}`)
	if want := "map[none:[] one:[8 336 4 36 8 1]]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// An array of repeated work gets the memory that it had the last time, or the time before, if that is free: not what is free at a lower address.
func TestRepeat(t *testing.T) {
	s := open(t)
	var a [6]Array[float32]
	for i := range a {
		var err error
		a[i], err = NewArray[float32](s, 100)
		do(t, err)
	}
	slices.SortFunc(a[:], func(a, b Array[float32]) int { return cmp.Compare(a.address, b.address) })
	var work Allocations
	run := func(want int) {
		t.Helper()
		s.Repeat(&work)
		b, err := NewArray[float32](s, 100)
		do(t, err)
		s.Repeat(nil)
		if b.address != a[want].address {
			t.Errorf("the array is at %x, want %x, the place of array %d", b.address, a[want].address, want)
		}
		b.Free()
	}
	take := func(i int) {
		t.Helper()
		b, err := NewArray[float32](s, 100) // the free one with the lowest address
		if do(t, err); b.address != a[i].address {
			t.Fatalf("array %d is not the free one with the lowest address", i)
		}
	}
	a[3].Free()
	run(3)
	a[2].Free()
	a[4].Free()
	run(3)
	take(2)
	take(3)
	run(4)
	a[3].Free()
	a[2].Free()
	run(4)
	take(2)
	take(3)
	take(4)
	a[3].Free()
	a[2].Free()
	run(3)
	a[4].Free()
	run(3)
	var none *Stream
	none.Repeat(&work)
}

// An allocation that fails while work is held back queues that work, and leaves the stream and its graphs usable.
func TestReplayOutOfMemory(t *testing.T) {
	s := withGraphs(t, "on")
	limit := gputest.Allocations(t)
	x, y := filled(t, s, 100, 0), filled(t, s, 100, 1)
	for run := range 6 {
		do(t, x.Fill(s, 0))
		for i := range 9 {
			do(t, Add(s, x, y, x))
			if run == 4 && i == 5 {
				limit(0)
				if _, err := NewArray[float32](s, 1<<20); !errors.As(err, new(*OutOfMemory)) {
					t.Errorf("the error is %v, want one of memory", err)
				}
				limit(-1)
			}
		}
		before := s.device.Launches()
		holds(t, s, "the sum", x, 9)
		if after := s.device.Launches(); run == 5 && (after != before || before.Replayed != 30) {
			t.Errorf("%+v and %+v, want three runs of ten pieces replayed", before, after)
		}
	}
}

// A segment that cannot be recorded after all graphs were forgotten is queued one by one.
func TestReplayForgetsAndFails(t *testing.T) {
	s := withGraphs(t, "")
	a := zeros[float32](t, s, 16)
	s.replay.recorded = mostRecorded
	for range 3 {
		do(t, a.Fill(s, 0), a.Fill(s, 1), a.Fill(s, 2))
		if err := s.run("elementwise", "transpose", grid{x: 1, threads: 4096}, a.address, a.address, 1, 1, 1); err == nil {
			t.Fatal("a launch of 4096 threads in a block returned no error")
		}
		do(t, s.Synchronize())
	}
}

// A device that is closed while a goroutine queues work gives that goroutine an error.
func TestReplayClose(t *testing.T) {
	for i := range times(50, 10) {
		d := gputest.Open(t, Open)
		s, err := d.NewStream()
		do(t, err)
		a, err := NewArray[float32](s, 16)
		do(t, err)
		ended := make(chan error)
		go func() {
			for {
				for k := range 20 {
					if err := a.Fill(s, byte(k)); err != nil {
						ended <- err
						return
					}
				}
				if err := s.Synchronize(); err != nil {
					ended <- err
					return
				}
			}
		}()
		time.Sleep(time.Duration(100+i*20) * time.Microsecond)
		do(t, d.Close())
		if err := <-ended; err != errClosed {
			t.Fatal(err)
		}
		do(t, s.Close())
	}
}

// Streams that launch one kernel with different amounts of shared memory do not disturb each other.
func TestSharedMemory(t *testing.T) {
	d := withGraphs(t, "off").device
	ended := make(chan error)
	models := []int{96, 160}
	for _, model := range models {
		s, err := d.NewStream()
		do(t, err)
		step := stepOfZeros(t, s, model)
		go func() {
			var err error
			for i := 0; i < times(2000, 20) && err == nil; i++ {
				err = step.Forward(s, step.X, step.Context, step.Scan)
			}
			ended <- errors.Join(err, s.Synchronize())
		}()
	}
	for range models {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// stepOfZeros returns a step of a Mamba block whose weights and states are zeros.
func stepOfZeros(t *testing.T, s *Stream, model int) *Step[float32] {
	const state, width, rank = 16, 4, 6
	channels := 2 * model
	of := func(n int) Array[float32] { return zeros[float32](t, s, n) }
	return &Step[float32]{
		Batch: 1, Model: model, Channels: channels, State: state, Width: width, Rank: rank, Eps: 1e-5,
		X: of(model), Norm: of(model), Conv: of(channels * width), DtBias: of(channels), ALog: of(channels * state), D: of(channels),
		InProj: of(2 * channels * model), XProj: of((rank + 2*state) * channels), DtProj: of(channels * rank), OutProj: of(model * channels),
		Context: of((width - 1) * channels), Scan: of(channels * state),
	}
}
