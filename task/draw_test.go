package task

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestDrawFollowsSoftmax(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	logits := []float64{1, 0, -1, math.Inf(-1), 2}
	const draws, temperature = 40_000, 0.5
	var counts [5]float64
	for range draws {
		i, err := Draw(logits, temperature, random)
		if err != nil {
			t.Fatal(err)
		}
		counts[i]++
	}
	sum := 0.0
	for _, v := range logits {
		sum += math.Exp(v / temperature)
	}
	for i, v := range logits {
		if want := math.Exp(v/temperature) / sum; math.Abs(counts[i]/draws-want) > 0.01 {
			t.Errorf("index %d drawn %v of the time, want %v", i, counts[i]/draws, want)
		}
	}
}

func TestDrawEdges(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for _, test := range []struct {
		logits      []float64
		temperature float64
		want        int
	}{
		{[]float64{1, 3, 3, 2}, 0, 1},
		{[]float64{math.NaN(), 3, 5}, 0, 2},
		{[]float64{math.NaN(), 3, math.NaN()}, 1, 1},
		{[]float64{1e300, 0}, 1, 0},
		{[]float64{0, 1}, 1e-300, 1},
		{[]float64{7}, 1, 0},
	} {
		for range 20 {
			if got, err := Draw(test.logits, test.temperature, random); err != nil || got != test.want {
				t.Errorf("Draw(%v, %v) = %d, want %d", test.logits, test.temperature, got, test.want)
			}
		}
	}
}

func TestPrintable(t *testing.T) {
	got := Printable([]byte("a\tb\r\nc\x1b[2Jd\xffé\u202e\x00\n"))
	if want := "a\tb\nc\ufffd[2Jd\ufffdé\ufffd\ufffd\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
