package vision

import (
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/benchtest"
)

// labels draws n labels below classes, so that some classes are often absent.
func labels(t *rapid.T, name string, n, classes int) []int {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, name), 2))
	share := r.Float64()
	l := make([]int, n)
	for i := range l {
		if r.Float64() < share {
			l[i] = r.IntN(classes)
		}
	}
	return l
}

func same(a, b float64) bool {
	return a == b || math.IsNaN(a) && math.IsNaN(b) || math.Abs(a-b) < 1e-12
}

func TestOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, classes := rapid.IntRange(0, 60).Draw(t, "cells"), rapid.IntRange(1, 5).Draw(t, "classes")
		predicted, truth := labels(t, "predicted", n, classes), labels(t, "truth", n, classes)
		c, err := NewConfusion(classes)
		if err != nil {
			t.Fatal(err)
		}
		half := n / 2 // counted in two parts, with cells that are ignored
		if err := c.Add(predicted[:half], truth[:half], -1); err != nil {
			t.Fatal(err)
		}
		if err := c.Add(append([]int{7}, predicted[half:]...), append([]int{255}, truth[half:]...), 255); err != nil {
			t.Fatal(err)
		}
		var dices, ious, right, used float64
		for class := range classes {
			var both, p, q float64
			for i := range truth {
				if predicted[i] == class {
					p++
				}
				if truth[i] == class {
					q++
				}
				if predicted[i] == class && truth[i] == class {
					both++
				}
			}
			dice, iou := 2*both/(p+q), both/(p+q-both)
			if !same(c.Dice(class), dice) || !same(c.IoU(class), iou) {
				t.Fatalf("class %d: Dice %v, IoU %v, want %v, %v", class, c.Dice(class), c.IoU(class), dice, iou)
			}
			right += both
			if p+q == 0 {
				dice, iou = 1, 1 // what two empty masks give, which is left out of the means
			} else {
				dices, ious, used = dices+dice, ious+iou, used+1
			}
			d, err := Dice(predicted, truth, class)
			i, err2 := IoU(predicted, truth, class)
			if err != nil || err2 != nil || !same(d, dice) || !same(i, iou) {
				t.Fatalf("class %d: Dice %v, IoU %v, want %v, %v (%v, %v)", class, d, i, dice, iou, err, err2)
			}
		}
		if !same(c.MeanDice(), dices/used) || !same(c.MeanIoU(), ious/used) || !same(c.Accuracy(), right/float64(n)) {
			t.Fatalf("means %v %v, accuracy %v, want %v %v %v", c.MeanDice(), c.MeanIoU(), c.Accuracy(), dices/used, ious/used, right/float64(n))
		}
		if a, err := PixelAccuracy(predicted, truth); n > 0 && (err != nil || !same(a, right/float64(n))) {
			t.Fatalf("pixel accuracy %v, want %v (%v)", a, right/float64(n), err)
		}
	})
}

// The target is right if it is among the first k of the sorted logits.
func TestTopK(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows, classes := rapid.IntRange(1, 9).Draw(t, "rows"), rapid.IntRange(1, 6).Draw(t, "classes")
		logits := rapid.SliceOfN(rapid.SampledFrom([]float32{-1, 0, 2, 3}), rows*classes, rows*classes).Draw(t, "logits")
		targets := rapid.SliceOfN(rapid.IntRange(0, classes-1), rows, rows).Draw(t, "targets")
		first, err := Labels(logits, classes)
		if err != nil {
			t.Fatal(err)
		}
		for k := 1; k <= classes; k++ {
			right := 0.
			for row, target := range targets {
				order := make([]int, classes)
				for i := range order {
					order[i] = i
				}
				x := logits[row*classes:][:classes]
				sort.SliceStable(order, func(i, j int) bool { return x[order[i]] > x[order[j]] })
				if slices.Contains(order[:k], target) {
					right++
				}
				if first[row] != order[0] {
					t.Fatalf("the label of %v is %d, want %d", x, first[row], order[0])
				}
			}
			if got, err := TopK(logits, classes, targets, k); err != nil || got != right/float64(rows) {
				t.Fatalf("top %d: %v, want %v (%v)", k, got, right/float64(rows), err)
			}
		}
	})
	nan := math.NaN()
	for _, c := range []struct {
		logits []float64
		want   float64
	}{{[]float64{nan, 1, 0}, 0}, {[]float64{5, 0, 0}, 1}, {[]float64{5, nan, 0}, 0}} {
		if got, err := TopK(c.logits, 3, []int{0}, 1); err != nil || got != c.want {
			t.Errorf("%v: top 1 of class 0 is %v, want %v (%v)", c.logits, got, c.want, err)
		}
	}
}

// bruteHausdorff95 computes the definition with loops over all pairs of cells.
func bruteHausdorff95(predicted, truth []int, class int, size [3]int, spacing [3]float64) float64 {
	surface := func(labels []int) (cells [][3]int) {
		at := func(z, y, x int) bool {
			return z >= 0 && y >= 0 && x >= 0 && z < size[0] && y < size[1] && x < size[2] && labels[(z*size[1]+y)*size[2]+x] == class
		}
		for z := range size[0] {
			for y := range size[1] {
				for x := range size[2] {
					inside := (size[0] == 1 || at(z-1, y, x) && at(z+1, y, x)) && (size[1] == 1 || at(z, y-1, x) && at(z, y+1, x)) &&
						(size[2] == 1 || at(z, y, x-1) && at(z, y, x+1)) && size != [3]int{1, 1, 1}
					if at(z, y, x) && !inside {
						cells = append(cells, [3]int{z, y, x})
					}
				}
			}
		}
		return cells
	}
	a, b := surface(predicted), surface(truth)
	if len(a)+len(b) == 0 {
		return 0
	}
	if len(a) == 0 || len(b) == 0 {
		return math.Inf(1)
	}
	var all []float64
	for range 2 {
		for _, p := range a {
			least := math.Inf(1)
			for _, q := range b {
				var sum float64
				for axis := range p {
					d := spacing[axis] * float64(p[axis]-q[axis])
					sum += d * d
				}
				least = min(least, math.Sqrt(sum))
			}
			all = append(all, least)
		}
		a, b = b, a
	}
	sort.Float64s(all)
	at := 0.95 * float64(len(all)-1)
	low := all[int(at)]
	return low + (at-math.Floor(at))*(all[min(int(at)+1, len(all)-1)]-low)
}

func TestHausdorff95(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		axes := rapid.IntRange(1, 3).Draw(t, "axes")
		size, spacing := [3]int{1, 1, 1}, [3]float64{1, 1, 1}
		for i := 3 - axes; i < 3; i++ {
			size[i] = rapid.IntRange(1, 7).Draw(t, "size")
			spacing[i] = rapid.SampledFrom([]float64{1, 0.3, 2.5, 1e-3}).Draw(t, "spacing")
		}
		n := size[0] * size[1] * size[2]
		predicted, truth := labels(t, "predicted", n, 2), labels(t, "truth", n, 2)
		want := bruteHausdorff95(predicted, truth, 1, size, spacing)
		got, err := Hausdorff95(predicted, truth, 1, size[3-axes:], spacing[3-axes:])
		if err != nil || math.Abs(got-want) > 1e-12*want {
			t.Fatalf("%v, want %v (%v)", got, want, err)
		}
	})
}

// Two balls of one radius, whose centres are apart, are as far from each other as their centres at the most; sets that are equal have the distance 0.
func TestHausdorff95ByHand(t *testing.T) {
	const n = 96
	disc := func(centre int) []int {
		l := make([]int, n*n)
		for i := range l {
			if y, x := i/n-n/2, i%n-centre; y*y+x*x <= 400 {
				l[i] = 1
			}
		}
		return l
	}
	empty := make([]int, n*n)
	for _, c := range []struct {
		name      string
		a, b      []int
		low, high float64
	}{
		{"equal", disc(40), disc(40), 0, 0},
		{"10 apart, twice", disc(40), disc(50), 18, 20},
		{"both empty", empty, empty, 0, 0},
		{"nothing predicted", empty, disc(40), math.Inf(1), math.Inf(1)},
		{"nothing there", disc(40), empty, math.Inf(1), math.Inf(1)},
	} {
		if got, err := Hausdorff95(c.a, c.b, 1, []int{n, n}, []float64{2, 2}); err != nil || got < c.low || got > c.high {
			t.Errorf("%s: %v, want %v to %v (%v)", c.name, got, c.low, c.high, err)
		}
	}
}

func TestMetricsErrors(t *testing.T) {
	c, err := NewConfusion(2)
	if err != nil {
		t.Fatal(err)
	}
	second := func(_ any, err error) error { return err }
	one, grid := []int{1, 0, 1, 0}, []int{2, 2}
	for i, test := range []struct {
		err  error
		want string
	}{
		{second(NewConfusion(0)), "vision: confusion: classes is 0, want at least 1"},
		{second(NewConfusion(math.MaxInt / 2)), "vision: confusion: "},
		{(*Confusion)(nil).Add(one, one, -1), "vision: confusion: it is missing"},
		{new(Confusion).Add(one, one, -1), "vision: confusion: it is missing"},
		{c.Add(one, one[1:], -1), "vision: confusion: predicted has 4 cells, want the 3 of truth"},
		{c.Add(one, []int{0, 0, 2, 0}, -1), "vision: confusion: predicted[2] is 1 and truth[2] is 2, want 0 to 1, or a truth of -1, which is ignored"},
		{c.Add([]int{0, 0, -1, 0}, one, -1), "vision: confusion: predicted[2] is -1 and truth[2] is 1"},
		{second(Labels([]float32{1, 2, 3}, 2)), "vision: labels: logits has 3 elements, want a multiple of 2 classes"},
		{second(Labels([]float64{1, 2, 3, math.NaN()}, 2)), "vision: labels: logits[3] is not a number"},
		{second(Labels([]float64{1}, 0)), "vision: labels: classes is 0"},
		{second(TopK([]float64{1, 2}, 2, nil, 1)), "vision: top k: targets is empty"},
		{second(TopK([]float64{1, 2}, 2, one, 1)), "vision: top k: logits has 1 rows of 2 classes, want one for each of 4 targets"},
		{second(TopK([]float64{1, 2}, 2, []int{2}, 1)), "vision: top k: targets[0] is 2, want 0 to 1"},
		{second(TopK([]float64{1, 2}, 2, []int{0}, 3)), "vision: top k: k is 3, want 1 to 2"},
		{second(PixelAccuracy(nil, nil)), "vision: pixel accuracy: truth is empty"},
		{second(Dice(one, nil, 1)), "vision: Dice: predicted has 4 cells, want the 0 of truth"},
		{second(IoU(one, nil, 1)), "vision: IoU: predicted has 4 cells"},
		{second(Hausdorff95(one, one, 1, nil, nil)), "vision: Hausdorff: grid has 0 axes, want 1 to 3"},
		{second(Hausdorff95(one, one, 1, []int{2, 3}, nil)), "vision: Hausdorff: truth has 4 cells, want those of the grid [2 3]"},
		{second(Hausdorff95(one, one, 1, []int{-2, -2}, nil)), "vision: Hausdorff: grid[0] is -2, want at least 1"},
		{second(Hausdorff95(one, one, 1, []int{math.MaxInt, 2}, nil)), "vision: Hausdorff: grid[1] is 2, want at least 1 and not more"},
		{second(Hausdorff95(one, one, 1, grid, []float64{1})), "vision: Hausdorff: spacing has 1 numbers, want one for each of 2 axes"},
		{second(Hausdorff95(one, one, 1, grid, []float64{1, 0})), "vision: Hausdorff: spacing[1] is 0, want a positive finite number"},
		{second(Hausdorff95(one, one, 1, grid, []float64{math.NaN(), 1})), "vision: Hausdorff: spacing[0] is NaN"},
	} {
		if test.err == nil || !strings.HasPrefix(test.err.Error(), test.want) {
			t.Errorf("%d: error %v, want %s", i, test.err, test.want)
		}
	}
	if got := c.Count(1, 1) + c.Count(0, 0) + c.Count(5, -1) + (*Confusion)(nil).Count(0, 0); got != 0 {
		t.Errorf("%d cells counted by calls that failed", got)
	}
	if v := []float64{c.Accuracy(), c.MeanDice(), c.MeanIoU(), c.Dice(9), (*Confusion)(nil).MeanDice(), (*Confusion)(nil).IoU(0)}; slices.ContainsFunc(v, func(v float64) bool { return v == v }) {
		t.Errorf("metrics of nothing: %v, want NaN", v)
	}
}

func BenchmarkHausdorff95(b *testing.B) {
	const n = 128
	ball := func(centre int) []int {
		l := make([]int, n*n*n)
		for i := range l {
			if z, y, x := i/(n*n)-64, i/n%n-64, i%n-centre; z*z+y*y+x*x <= 1600 {
				l[i] = 1
			}
		}
		return l
	}
	p, q := ball(60), ball(66)
	benchtest.Processors(b)
	for b.Loop() {
		if _, err := Hausdorff95(p, q, 1, []int{n, n, n}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
