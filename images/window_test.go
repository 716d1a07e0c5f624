package images

import (
	"fmt"
	"math"
	"runtime"
	"testing"

	"github.com/gomamba/mamba/internal/benchtest"
)

// The memory beside image and result does not depend on the size of the image for Scores; for Labels it is that of the rows that a row of windows covers
// in addition, whatever the height.
func TestWindowsMemory(t *testing.T) {
	const window, batch = 32, 4
	inputs := 4 * batch * window * window
	for _, size := range [][]int{{64, 128}, {1024, 128}, {128, 512}} {
		im, err := New(size, 1)
		if err != nil {
			t.Fatal(err)
		}
		w := Windows{Size: []int{window, window}, Overlap: 0.5, Batch: batch}
		scores, labels := working(t, im, w, halves(window, batch))
		const places = 40 << 10 // and weights of windows
		if scores > inputs+places {
			t.Errorf("%v: %d bytes beside all scores, want about %d", size, scores, inputs)
		}
		if band := 4 * window * size[1] * 2; labels > band+inputs+places {
			t.Errorf("%v: %d bytes beside the labels, want about %d", size, labels, band+inputs)
		}
	}
}

// halves is a model of two classes that allocates nothing.
func halves(window, batch int) Model {
	scores := make([]float32, batch*window*window*2)
	return func(_ []float32, n int) ([]float32, error) { return scores[:n*window*window*2], nil }
}

// working returns the bytes that Scores and Labels allocate beside their results, all of which live to their end.
func working(t testing.TB, im *Image, w Windows, model Model) (scores, labels int) {
	allocated := func(f func() error) int {
		least := math.MaxInt
		for range 3 { // a goroutine of another test may still run
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := f(); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			least = min(least, int(after.TotalAlloc-before.TotalAlloc))
		}
		return least
	}
	scores = allocated(func() error { _, err := w.Scores(im, 2, model); return err })
	labels = allocated(func() error { _, err := w.Labels(im, 2, model); return err })
	return scores - 2*4*len(im.Pix), labels - 4*len(im.Pix)
}

// Time and memory of windows beside those of the model. Both are of Labels; scores-MiB is the memory of Scores.
func BenchmarkWindows(b *testing.B) {
	sides := []int{1024, 2048, 4096, 8192}
	if testing.Short() {
		sides = sides[:1]
	}
	for _, side := range sides {
		b.Run(fmt.Sprint(side), func(b *testing.B) {
			im, err := New([]int{side, side}, 1)
			if err != nil {
				b.Fatal(err)
			}
			model, w := halves(256, 4), Windows{Size: []int{256, 256}, Overlap: 0.5, Batch: 4}
			scores, labels := working(b, im, w, model)
			b.ResetTimer()
			benchtest.Processors(b)
			for range b.N {
				if _, err := w.Labels(im, 2, model); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(labels)/(1<<20), "labels-MiB")
			b.ReportMetric(float64(scores)/(1<<20), "scores-MiB")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(side*side), "ns/cell")
		})
	}
}
