package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
)

func newLSTM(r *rand.Rand, batch, length, width int, h, c, start bool) *LSTM[float64] {
	draw := func(n int) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = r.NormFloat64()
		}
		return v
	}
	l := &LSTM[float64]{Batch: batch, Length: length, Channels: width, Z: draw(batch * length * 4 * width), R: draw(4 * width * width)}
	if h {
		l.H = draw(batch * width)
	}
	if c {
		l.C = draw(batch * width)
	}
	if start {
		l.Start = make([]bool, batch*length)
		for i := range l.Start {
			l.Start[i] = r.IntN(3) == 2
		}
	}
	return l
}

func eachLSTM(t *testing.T, test func(t *testing.T, l *LSTM[float64])) {
	for _, length := range []int{1, 2, 9} {
		for i := range 8 {
			t.Run(fmt.Sprintf("length %d, h %v, c %v, start %v", length, i&1 > 0, i&2 > 0, i&4 > 0), func(t *testing.T) {
				test(t, newLSTM(rand.New(rand.NewPCG(1, uint64(length))), 3, length, 5, i&1 > 0, i&2 > 0, i&4 > 0))
			})
		}
	}
}

// run returns y and the state after it, h of all sequences and then c.
func (l *LSTM[T]) run() (y, next []T) {
	n := l.Batch * l.Channels
	y, next = make([]T, n*l.Length), make([]T, 2*n)
	l.Forward(y, next[:n], next[n:])
	return y, next
}

// lstmPlain computes the definition, one number at a time.
func lstmPlain(l *LSTM[float64]) (y, next []float64) {
	var cells []float64
	w := l.Channels
	for b := range l.Batch {
		h, c := make([]float64, w), make([]float64, w)
		if l.H != nil {
			copy(h, l.H[b*w:])
		}
		if l.C != nil {
			copy(c, l.C[b*w:])
		}
		for t := range l.Length {
			if l.Start != nil && l.Start[b*l.Length+t] {
				h, c = make([]float64, w), make([]float64, w)
			}
			sum := func(gate, j int) float64 {
				s := l.Z[(b*l.Length+t)*4*w+gate*w+j]
				for k := range w {
					s += l.R[(gate*w+j)*w+k] * h[k]
				}
				return s
			}
			sigmoid := func(x float64) float64 { return (1 + math.Tanh(x/2)) / 2 }
			now := make([]float64, w)
			for j := range w {
				c[j] = sigmoid(sum(1, j))*c[j] + sigmoid(sum(0, j))*math.Tanh(sum(2, j))
				now[j] = sigmoid(sum(3, j)) * math.Tanh(c[j])
			}
			h = now
			y = append(y, h...)
		}
		next, cells = append(next, h...), append(cells, c...)
	}
	return y, append(next, cells...)
}

func TestLSTMAgainstDefinition(t *testing.T) {
	eachLSTM(t, func(t *testing.T, l *LSTM[float64]) {
		y, next := l.run()
		wantY, wantNext := lstmPlain(l)
		for i, want := range append(wantY, wantNext...) {
			if got := append(slices.Clone(y), next...)[i]; math.Abs(got-want) > 1e-13 {
				t.Fatalf("element %d is %v, want %v", i, got, want)
			}
		}
	})
}

// The gradients of a weighted sum of all results equal central differences.
func TestLSTMGradients(t *testing.T) {
	eachLSTM(t, func(t *testing.T, l *LSTM[float64]) {
		y, next := l.run()
		weights := newLSTM(rand.New(rand.NewPCG(2, 2)), 1, 1, len(y)+len(next), false, false, false).Z
		dy, dnext := weights[:len(y)], weights[len(y):][:len(next)]
		loss := func() (sum float64) {
			y, next := l.run()
			for i, v := range y {
				sum += v * dy[i]
			}
			for i, v := range next {
				sum += v * dnext[i]
			}
			return sum
		}
		dz, dr, dh, dc := make([]float64, len(l.Z)), make([]float64, len(l.R)), make([]float64, len(l.H)), make([]float64, len(l.C))
		for _, d := range [][]float64{dz, dr, dh, dc} {
			for i := range d {
				d[i] = math.NaN()
			}
		}
		if l.H == nil {
			dh = nil
		}
		if l.C == nil {
			dc = nil
		}
		half := len(dnext) / 2
		l.Backward(dy, dnext[:half], dnext[half:], dz, dr, dh, dc)
		check := func(name string, v, grad []float64) {
			for i, x := range v {
				const step = 1e-5
				v[i] = x + step
				up := loss()
				v[i] = x - step
				want := (up - loss()) / (2 * step)
				v[i] = x
				if !(math.Abs(grad[i]-want) <= 1e-7*max(1, math.Abs(want))) {
					t.Fatalf("gradient of %s, element %d, is %v, want %v", name, i, grad[i], want)
				}
			}
		}
		check("Z", l.Z, dz)
		check("R", l.R, dr)
		check("H", l.H, dh)
		check("C", l.C, dc)
	})
}

func TestLSTMProcessors(t *testing.T) {
	l := newLSTM(rand.New(rand.NewPCG(3, 3)), 5, 33, 8, true, true, true)
	all := func() (all []float64) {
		y, next := l.run()
		dz, dr, dh, dc := make([]float64, len(l.Z)), make([]float64, len(l.R)), make([]float64, len(l.H)), make([]float64, len(l.C))
		half := len(next) / 2
		l.Backward(y, next[:half], next[half:], dz, dr, dh, dc)
		return slices.Concat(y, next, dz, dr, dh, dc)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	want := all()
	for _, n := range []int{2, 3, 8} {
		runtime.GOMAXPROCS(n)
		if !slices.Equal(all(), want) {
			t.Errorf("GOMAXPROCS %d: the results differ from those of GOMAXPROCS 1", n)
		}
	}
}
