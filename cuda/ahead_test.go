package cuda

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// Random programs that repeat the same steps after an upload: sums of lasting arrays and of each other in memory that is used again, copies to the host, and sums that
// stay. In some runs a step is missing, comes twice or has other operands; an array is allocated, uploaded, kept or read in between; lasting arrays change. The
// results are those of a device that queues all work one by one.
func TestAhead(t *testing.T) {
	const lasting, n = 4, 64
	run := func(s *Stream, seed uint64) (results []float32) {
		shape := rand.New(rand.NewPCG(seed, 1))
		var fixed [lasting]Array[float32]
		end := s.Lasting()
		for i := range fixed {
			fixed[i] = filled(t, s, n, float32(i+1))
		}
		end()
		sum := filled(t, s, n, 0)
		type step struct{ kind, x, y, until int }
		program := make([]step, 4+shape.IntN(20))
		for i := range program {
			program[i] = step{shape.IntN(8), shape.IntN(100), shape.IntN(100), i + 1 + shape.IntN(4)}
		}
		memory := make([]Allocations, len(program))
		change := rand.New(rand.NewPCG(seed, 2))
		read := func(a Array[float32]) {
			host := make([]float32, a.n)
			do(t, a.CopyTo(s, host))
			results = append(results, host...)
		}
		ones := slices.Repeat([]float32{1}, n)
		var kept []Array[float32]
		often := 3 + shape.IntN(6)
		for turn := range 40 {
			do(t, fixed[0].CopyFrom(s, slices.Repeat([]float32{float32(turn)}, n)))
			at, how := -1, 0
			if change.IntN(often) == 0 {
				at, how = change.IntN(len(program)), change.IntN(12)
			}
			var made []Array[float32]
			alive := func() []Array[float32] {
				all := slices.Clone(fixed[:])
				for _, a := range made {
					if !a.Absent() {
						all = append(all, a)
					}
				}
				return all
			}
			perform := func(i int, p step) {
				s.Repeat(&memory[i])
				defer s.Repeat(nil)
				all := alive()
				x, y := all[p.x%len(all)], all[p.y%len(all)]
				switch p.kind {
				case 0:
					if i > len(program)/2 {
						read(x.Slice(0, 4))
					}
				case 1:
					if i > len(program)*3/4 {
						s.Repeat(nil)
						do(t, Add(s, sum, x, sum))
					}
				case 2: // what stays changes outside of repeated work
					if i > len(program)*3/4 {
						s.Repeat(nil)
						do(t, Add(s, fixed[2], fixed[3], fixed[2]))
					}
				default:
					a, err := NewArray[float32](s, n<<(p.x%3*7))
					do(t, err)
					do(t, Add(s, x.Slice(0, n), y.Slice(0, n), a.Slice(0, n)))
					made = append(made, a)
				}
			}
			for i, p := range program {
				if i == at {
					switch how {
					case 0:
						continue
					case 1:
						perform(i, p)
					case 2:
						p.x++
					case 3:
						a, err := Upload(s, ones)
						do(t, err)
						kept = append(kept, a)
					case 4:
						a, err := NewArray[float32](s, n<<(change.IntN(3)*7))
						do(t, err, Add(s, fixed[1], fixed[2], a.Slice(0, n)))
						kept = append(kept, a.Slice(0, n))
					case 5:
						read(sum)
					case 6:
						do(t, fixed[1].CopyFrom(s, ones))
					case 7:
						do(t, Add(s, fixed[2], fixed[3], fixed[2]))
					case 8:
						do(t, s.Trim())
					case 9:
						do(t, s.Settle())
					case 10:
						all := alive()
						read(all[len(all)-1].Slice(0, 4))
					case 11:
						do(t, fixed[0].CopyFrom(s, ones))
					}
				}
				perform(i, p)
				for j := range made {
					if program[min(j, len(program)-1)].until == i && !made[j].Absent() {
						made[j].Free()
						made[j] = Array[float32]{}
					}
				}
			}
			for _, a := range made {
				a.Free()
			}
			do(t, s.Settle())
			for _, p := range s.ahead.plans {
				p.sure = 1 // no patience
			}
			for _, a := range kept {
				read(a)
			}
			if len(kept) > 2 {
				for _, a := range kept {
					a.Free()
				}
				kept = nil
			}
			read(sum)
			if turn%3 == 0 { // numbers stay finite
				do(t, sum.Fill(s, 0), fixed[2].CopyFrom(s, ones))
			}
		}
		for _, a := range append(kept, append(fixed[:], sum)...) {
			a.Free()
		}
		return results
	}
	one, graphs := withGraphs(t, "off"), withGraphs(t, "on")
	for seed := range uint64(times(300, 60)) {
		if want, got := run(one, seed), run(graphs, seed); !slices.Equal(want, got) {
			t.Fatalf("program %d: the results differ", seed)
		}
	}
	single, l := one.device.Launches(), graphs.device.Launches()
	if single.Ahead != 0 || l.Ahead < single.Single/10 || l.Single+l.Replayed != single.Single || l.Behind == "" {
		t.Errorf("%+v with graphs and %+v without, want all work counted, and a tenth of it ahead", l, single)
	}
	t.Logf("%+v", l)
	if used, _ := graphs.device.Memory(); used != 0 {
		t.Errorf("%d bytes are in use at the end", used)
	}
}

// A stream says why it does not run ahead.
func TestAheadBehind(t *testing.T) {
	s := withGraphs(t, "on")
	end := s.Lasting()
	x := filled(t, s, 100, 1)
	end()
	stays := filled(t, s, 100, 0)
	host := make([]float32, 100)
	var memory Allocations
	run := func(to Array[float32], ahead int64, why string) {
		t.Helper()
		before := s.device.Launches()
		do(t, x.CopyFrom(s, host))
		s.Repeat(&memory)
		a, err := NewArray[float32](s, 100)
		do(t, err)
		for range 5 {
			do(t, Add(s, x, x, a))
		}
		if !to.Absent() {
			do(t, Add(s, x, a, to))
		}
		a.Free()
		s.Repeat(nil)
		do(t, s.Synchronize())
		if l := s.device.Launches(); l.Ahead-before.Ahead != ahead || !strings.Contains(l.Behind, why) {
			t.Errorf("%+v after %+v, want %d pieces ahead, and the reason %q", l, before, ahead, why)
		}
	}
	none := Array[float32]{}
	for range sureAfter + 1 { // at the first time, there is nothing to compare with
		run(none, 0, "")
	}
	run(none, 5, "")
	run(stays, 5, "")
	run(none, 5, "")
	taken, err := NewArray[float32](s, 100)
	do(t, err)
	run(none, 0, "an array has memory that the work after an upload wrote the last time")
	taken.Free()
}

// Large products of float32 run ahead, although their sizes look like addresses.
func TestAheadWide(t *testing.T) {
	t.Setenv("MAMBA_GRAPHS", "on")
	s := openHopper(t)
	const m, n, k = 128, 96, 64
	onlyWide(t, wideTiles[1].columns, k)
	end := s.Lasting()
	x, y := filled(t, s, m*k, 1), filled(t, s, n*k, 2)
	end()
	host, got := make([]float32, m*k), make([]float32, 4)
	var memory Allocations
	for i := range 3 * sureAfter {
		host[0] = float32(i)
		do(t, x.CopyFrom(s, host))
		s.Repeat(&memory)
		to, err := NewArray[float32](s, m*n)
		do(t, err)
		for range leastTasks {
			done, err := wide(s, m, n, k, 1, matrix(x, k), transposed(y, k), 0, matrix(to, n))
			do(t, err)
			if !done {
				t.Fatal("the product is not one of wide.cuh")
			}
		}
		do(t, to.Slice(0, 4).CopyTo(s, got))
		to.Free()
		s.Repeat(nil)
		if got[0] != 2*float32(i) {
			t.Fatalf("turn %d: %v", i, got)
		}
	}
	if l := s.device.Launches(); l.Ahead == 0 || l.Behind != "" {
		t.Errorf("%+v, want work ahead", l)
	}
}
