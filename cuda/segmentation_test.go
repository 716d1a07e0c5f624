package cuda

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gomamba/mamba/internal/kernel"
)

// The losses of segmentation are those of internal/kernel, over several blocks of every kernel, for logits of any size.
func TestSegmentation(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(14, 1))
	for _, size := range [][3]int{{1, 1, 1}, {3, 1025, 1}, {1, 4097, 1}, {2, 700, 2}, {3, 1, 150}, {2, 2049, 9}} {
		for _, scale := range []float64{1, 60} {
			images, cells, classes := size[0], size[1], size[2]
			rows := images * cells
			logits, targets, targets32 := numbers[float32](r, rows*classes, scale), make([]int, rows), make([]int32, rows)
			for i := range targets {
				if targets[i] = r.IntN(max(classes, 2)); r.IntN(4) == 0 && rows > 1 {
					targets[i] = -1
				}
				targets32[i] = int32(targets[i])
			}
			what := fmt.Sprintf("%v, scale %v: ", size, scale)
			x, on, one := put[float32](t, s, logits), putInts(t, s, targets32), put[float32](t, s, []float64{0.75})
			loss, dx := blank[float32](t, s, 1), blank[float32](t, s, len(logits))
			want := make([]float64, len(logits))

			host := kernel.Dice[float64]{Images: images, Cells: cells, Classes: classes, Logits: logits, Targets: targets, Ignore: -1}
			d := &Dice{Images: images, Cells: cells, Classes: classes, Ignore: -1, Logits: x, Targets: on}
			state, err := NewArray[float64](s, d.State())
			t.Cleanup(state.Free)
			do(t, err, d.Forward(s, state, loss), d.Backward(s, state, one, dx))
			host.Backward(0.75, want)
			near(t, what+"Dice", get(t, s, loss), []float64{host.Forward()}, 1e-6)
			relative(t, what+"gradient of Dice", get(t, s, dx), want, 2e-5)
			if classes > 1 {
				continue
			}
			binary := kernel.BinaryCrossEntropy[float64]{Logits: logits, Targets: targets, Ignore: -1}
			do(t, BinaryCrossEntropyForward(s, rows, -1, x, on, state, loss), BinaryCrossEntropyBackward(s, rows, -1, x, on, state, one, dx))
			binary.Backward(0.75, want)
			near(t, what+"binary cross-entropy", get(t, s, loss), []float64{binary.Forward()}, 1e-6)
			relative(t, what+"gradient of binary cross-entropy", get(t, s, dx), want, 2e-6)
		}
	}
	to, err := Upload(s, make([]int32, 2*2*3))
	do(t, err, NearestTargets(s, 2, [3]int{1, 3, 4}, [3]int{1, 2, 3}, putInts(t, s, []int32{
		0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
		20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
	}), to))
	got := make([]int32, 12)
	do(t, to.CopyTo(s, got), s.Synchronize())
	if want := []int32{0, 1, 2, 4, 5, 6, 20, 21, 22, 24, 25, 26}; !slices.Equal(got, want) {
		t.Errorf("nearest targets %v, want %v", got, want)
	}
}

// relative is near with a tolerance that is a share of the largest number.
func relative(t *testing.T, what string, got, want []float64, tol float64) {
	t.Helper()
	most := max(slices.Max(want), -slices.Min(want), 1e-30)
	for i := range want {
		got[i], want[i] = got[i]/most, want[i]/most
	}
	near(t, what, got, want, tol)
}
