package cuda

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/gomamba/mamba/internal/kernel"
)

func TestMinGRU(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(28, 28))
	for i := range 16 {
		batch, length, channels := 1+r.IntN(4), 1+r.IntN(60), 1+r.IntN(200)
		g := kernel.MinGRU[float64]{Batch: batch, Length: length, Channels: channels, Z: numbers[float32](r, batch*length*channels, 2),
			Candidate: numbers[float32](r, batch*length*channels, 1)}
		on := &MinGRU{Batch: batch, Length: length, Channels: channels, Z: put[float32](t, s, g.Z), Candidate: put[float32](t, s, g.Candidate)}
		var dfinal []float64
		var adinitial Array[float32]
		if i&1 > 0 {
			g.Initial = numbers[float32](r, batch*channels, 1)
			on.Initial, adinitial = put[float32](t, s, g.Initial), blank[float32](t, s, batch*channels)
		}
		if i&2 > 0 {
			g.Start = make([]bool, batch*length)
			marks := make([]uint8, batch*length)
			for i := range marks {
				if r.IntN(5) == 0 {
					g.Start[i], marks[i] = true, 1
				}
			}
			on.Start = putInts(t, s, marks)
		}
		if i&4 > 0 {
			dfinal = numbers[float32](r, batch*channels, 1)
		}
		dy, y, final := numbers[float32](r, len(g.Z), 1), like[float64](g.Z), make([]float64, batch*channels)
		dz, dcandidate, dinitial := like[float64](g.Z), like[float64](g.Z), like[float64](g.Initial)
		g.Forward(y, final)
		g.Backward(dy, dfinal, dz, dcandidate, dinitial)
		ay, afinal, adz, adcandidate := blank[float32](t, s, len(y)), blank[float32](t, s, len(final)), blank[float32](t, s, len(y)), blank[float32](t, s, len(y))
		do(t, on.Forward(s, ay, afinal), on.Backward(s, put[float32](t, s, dy), put[float32](t, s, dfinal), adz, adcandidate, adinitial))
		what := fmt.Sprintf("batch %d, length %d, channels %d, initial %v, start %v: ", batch, length, channels, g.Initial != nil, g.Start != nil)
		near(t, what+"y", get(t, s, ay), y, 2e-6)
		near(t, what+"final", get(t, s, afinal), final, 2e-6)
		near(t, what+"dz", get(t, s, adz), dz, 2e-6)
		near(t, what+"dcandidate", get(t, s, adcandidate), dcandidate, 2e-6)
		near(t, what+"dinitial", get(t, s, adinitial), dinitial, 2e-6)
	}
}

func BenchmarkMinGRU(b *testing.B) {
	s := open(b)
	const n = benchRows * benchInner
	g := &MinGRU{Batch: 8, Length: benchRows / 8, Channels: benchInner, Z: zeros[float32](b, s, n), Candidate: zeros[float32](b, s, n)}
	y, dz, dcandidate, none := zeros[float32](b, s, n), zeros[float32](b, s, n), zeros[float32](b, s, n), Array[float32]{}
	b.Run("forward", func(b *testing.B) { measure(b, s, 12*n, func() error { return g.Forward(s, y, none) }) })
	b.Run("backward", func(b *testing.B) {
		measure(b, s, 20*n, func() error { return g.Backward(s, y, none, dz, dcandidate, none) })
	})
}
