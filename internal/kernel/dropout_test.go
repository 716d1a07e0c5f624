package kernel

import (
	"math"
	"runtime"
	"slices"
	"testing"
)

// The known answers of the authors' library, Random123 (kat_vectors).
func TestPhilox(t *testing.T) {
	const all = math.MaxUint32
	for _, test := range []struct {
		counter [4]uint32
		key     [2]uint32
		want    [4]uint32
	}{
		{want: [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{[4]uint32{all, all, all, all}, [2]uint32{all, all}, [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{[4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, [2]uint32{0xa4093822, 0x299f31d0}, [4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	} {
		if got := Philox(test.counter, test.key); got != test.want {
			t.Errorf("%x, %x: %x, want %x", test.counter, test.key, got, test.want)
		}
	}
}

// mask returns the mask of n elements.
func mask(p Dropout, n int) []float64 {
	y := make([]float64, n)
	Drop(p, y, slices.Repeat([]float64{1}, n))
	return y
}

// The mask has the two values that it should have, in the right proportion, and changes with each of its parameters. Masks of different
// parameters agree as often as independent draws do.
func TestDropout(t *testing.T) {
	const n = 200_000
	p := Dropout{Rate: 0.3, Seed: 1<<40 + 5, Layer: 2, Step: 7, Each: 1}
	first := mask(p, n)
	for name, v := range map[string][]float64{"the same": first, "Seed": mask(Dropout{0.3, 1<<41 + 5, 2, 7, 1}, n), "low Seed": mask(Dropout{0.3, 1<<40 + 6, 2, 7, 1}, n),
		"Layer": mask(Dropout{0.3, 1<<40 + 5, 3, 7, 1}, n), "Step": mask(Dropout{0.3, 1<<40 + 5, 2, 8, 1}, n), "position": append(slices.Clone(first[1:]), first[0])} {
		dropped, equal := 0, 0
		for i, m := range v {
			if m != 0 && m != 1/0.7 {
				t.Fatalf("the mask has %v", m)
			}
			if m == 0 {
				dropped++
			}
			if m == first[i] {
				equal++
			}
		}
		want := 0.3*0.3 + 0.7*0.7
		if name == "the same" {
			want = 1
		}
		if f := float64(dropped) / n; math.Abs(f-0.3) > 0.005 {
			t.Errorf("%s: %v of the elements are dropped, want 0.3", name, f)
		}
		if f := float64(equal) / n; math.Abs(f-want) > 0.005 {
			t.Errorf("another %s: %v of the elements are equal, want %v", name, f, want)
		}
	}
	for _, off := range []Dropout{{0, 1, 2, 3, 1}, {0.5, 1, 2, -1, 1}} {
		if !slices.Equal(mask(off, 100), slices.Repeat([]float64{1}, 100)) {
			t.Errorf("%+v changes x", off)
		}
	}
}

// Elements that share a draw have the draw of their group. Results are the same for any number of processors
// and in place. A dropped NaN is 0.
func TestDropoutForms(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	const n, each = 40_000, 37
	one, shared := mask(Dropout{0.5, 9, 1, 1, 1}, (n+each-1)/each), mask(Dropout{0.5, 9, 1, 1, each}, n)
	for i, v := range shared {
		if v != one[i/each] {
			t.Fatalf("element %d has %v, its group has %v", i, v, one[i/each])
		}
	}
	p := Dropout{0.9, 1, 2, 3, 1}
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(i)
	}
	dropped := slices.Index(mask(p, n), 0)
	x[dropped] = float32(math.NaN())
	var first []float32
	for _, procs := range []int{1, 2, 5} {
		runtime.GOMAXPROCS(procs)
		y := slices.Clone(x)
		Drop(p, y, y)
		if y[dropped] != 0 {
			t.Errorf("a dropped NaN is %v", y[dropped])
		}
		if first == nil {
			first = y
		}
		if !slices.Equal(first, y) {
			t.Errorf("GOMAXPROCS %d: the mask differs", procs)
		}
	}
	if got := (Dropout{Rate: 1 - 1e-15}).Threshold(); got != math.MaxUint32 {
		t.Errorf("the threshold of a rate near 1 is %d", got)
	}
}
