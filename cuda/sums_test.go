package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// TestSumParts compares sums of few and many parts, of few and many elements, with sums in double on the host. A sum has the same bits alone and in a launch with others.
func TestSumParts(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { testSumParts[float32](t, s) }, func(t *testing.T) { testSumParts[BFloat16](t, s) })
}

func testSumParts[T Activation](t *testing.T, s *Stream) {
	r := rand.New(rand.NewPCG(23, 52))
	special := []float64{math.Inf(1), math.Inf(-1), math.NaN(), 1e30, -1e30, 2e37, 1e-40}
	counts := []int{1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 261, 511, 512, 513, 1031}
	var sums []partSum
	var results, wants, bounds [][]float64
	var arrays []Array[T]
	for i, count := range counts {
		width := []int{1, 3, 4, 16, 33, 64}[r.IntN(6)]
		rows := 1 + r.IntN(1+200/width)
		size := rows * width
		pitch, apart := size, 1
		switch i % 3 {
		case 1:
			pitch += []int{1, 4, 7}[r.IntN(3)]
		case 2:
			apart = 3
		}
		step := (width-1)*apart + 1 + r.IntN(4)
		parts, length := numbers[float32](r, count*pitch, 1), (rows-1)*step+(width-1)*apart+1
		for range size / 8 {
			parts[r.IntN(count)*pitch+r.IntN(size)] = special[r.IntN(len(special))]
		}
		want, bound := make([]float64, length), make([]float64, length)
		for i := range want {
			want[i] = math.NaN() // nothing is written there
		}
		for j := range size {
			sum, size := 0., 0.
			for k := range count {
				sum += parts[k*pitch+j]
				size += math.Abs(parts[k*pitch+j])
			}
			at := j/width*step + j%width*apart
			want[at], bound[at] = sum, 1e-36+1e-7*math.Abs(sum)+1e-13*size // denormal numbers may be 0
			if count < 16 {                                                // added in float32
				bound[at] = 1e-36 + 1e-6*size
			}
			if typeName[T]() == "bf16" {
				bound[at] += math.Abs(sum) / 256
			}
		}
		to := blank[T](t, s, length)
		p := partSum{to.address, put[float32](t, s, parts).address, int64(count), int64(pitch), int64(size), int64(width), int64(apart), int64(step), 0}
		if typeName[T]() == "bf16" {
			p.half = 1
		}
		do(t, s.sumParts([]partSum{p}))
		got := get(t, s, to)
		sums, arrays, results, wants = append(sums, p), append(arrays, to), append(results, got), append(wants, want)
		bounds = append(bounds, bound)
	}
	check := func(what string, i int, got []float64) {
		t.Helper()
		for j, want := range wants[i] {
			if !same(got[j], want) && !(math.Abs(got[j]-want) <= bounds[i][j]) {
				t.Fatalf("%s of %d parts: element %d is %v, want %v", what, counts[i], j, got[j], want)
			}
		}
	}
	for i := range sums {
		check("sum", i, results[i])
		do(t, arrays[i].Fill(s, 0xff))
	}
	do(t, s.sumParts(sums))
	for i, a := range arrays {
		got := get(t, s, a)
		for j := range got {
			if !same(got[j], results[i][j]) {
				t.Fatalf("sum of %d parts: element %d is %v in a launch with others, %v alone", counts[i], j, got[j], results[i][j])
			}
		}
	}
}

// BenchmarkSumParts times sums as training steps have them, warm.
func BenchmarkSumParts(b *testing.B) {
	s := open(b)
	for _, sizes := range [][][2]int{
		{{512, 64}}, {{261, 1024}},
		{{132, 64}, {128, 16384}, {256, 8192}, {128, 4608}, {261, 512}, {64, 2048}, {64, 128}, {64, 128}, {64, 640}},
		{{8, 1 << 15}}, {{16, 1 << 19}}, {{32, 1 << 19}}, {{64, 24576}}, {{512, 24576}},
	} {
		var sums []partSum
		for _, z := range sizes {
			sums = append(sums, sumOf(blank[float32](b, s, z[1]), blank[float32](b, s, z[0]*z[1]), z[0]))
		}
		b.Run(fmt.Sprint(sizes), func(b *testing.B) {
			measureQueued(b, s, func() error { return s.sumParts(sums) })
		})
	}
}
