package layer

import (
	"math"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// s6 runs algorithm 2 step by step on rows x (length, channels), and leaves the last state in h (channels, state).
func s6(l *S6, x, h []float64) (y []float64) {
	value := func(p *Param) []float64 { return p.Value.Data().([]float64) }
	aLog, d := value(l.Parts.ALog), value(l.Parts.D)
	xProj, dtProj, dtBias := value(l.Parts.XProj.Weight), value(l.Parts.DtProj.Weight), value(l.Parts.DtProj.Bias)
	for ; len(x) > 0; x = x[l.Parts.channels:] {
		u := x[:l.Parts.channels]
		dtBC := times(xProj, u)
		dt, b, c := dtBC[:l.Parts.rank], dtBC[l.Parts.rank:l.Parts.rank+l.Parts.state], dtBC[l.Parts.rank+l.Parts.state:]
		for i, delta := range times(dtProj, dt) {
			delta = math.Log1p(math.Exp(delta + dtBias[i]))
			out := d[i] * u[i]
			for n := range l.Parts.state {
				at := i*l.Parts.state + n
				h[at] = math.Exp(-delta*math.Exp(aLog[at]))*h[at] + delta*b[n]*u[i]
				out += c[n] * h[at]
			}
			y = append(y, out)
		}
	}
	return y
}

// times returns W x, W by rows.
func times(w, x []float64) []float64 {
	y := make([]float64, len(w)/len(x))
	for i := range y {
		for j, v := range x {
			y[i] += w[i*len(x)+j] * v
		}
	}
	return y
}

// The layer is its definition, written out.
func TestS6(t *testing.T) {
	l := NewS6(S6Config{Channels: 3, State: 4, Rank: 2}, WithDtype(tensor.Float64), WithSeed(1))
	g := G.NewGraph()
	x := []float64{0.5, -1, 2, 1, 0, -0.5, -2, 1.5, 0.25, 3, -1, 1}
	state := []float64{1, 2, 3, 4, -1, -2, -3, -4, 0.5, 0, -0.5, 1}
	y, next, err := l.ApplyWithState(leaf(g, "x", x, 1, 4, 3), State{leaf(g, "state", state, 1, 3, 4)})
	if err != nil {
		t.Fatal(err)
	}
	v := run(t, y, next[0])
	h := append([]float64(nil), state...)
	want := s6(l, x, h)
	if d := apart(asFloat64(v[0]), want); !(d <= 1e-13) {
		t.Errorf("the result is %v, want %v", v[0], want)
	}
	if d := apart(asFloat64(v[1]), h); !(d <= 1e-13) {
		t.Errorf("the state is %v, want %v", v[1], h)
	}
}

// The weights start like those of a Mamba block: A_n = -n, D = 1, and steps within the range.
func TestS6Start(t *testing.T) {
	l := NewS6(S6Config{Channels: 200, State: 3, DtMin: 0.01, DtMax: 0.5}, WithDtype(tensor.Float64))
	for i, v := range l.Parts.ALog.Value.Data().([]float64) {
		if want := float64(i%3 + 1); math.Abs(math.Exp(v)-want) > 1e-12 {
			t.Fatalf("exp(A_log) has element %d %v, want %v", i, math.Exp(v), want)
		}
	}
	for i, v := range l.Parts.D.Value.Data().([]float64) {
		if v != 1 {
			t.Fatalf("D has element %d %v, want 1", i, v)
		}
	}
	least, most := math.Inf(1), 0.0
	for _, v := range l.Parts.DtProj.Bias.Value.Data().([]float64) {
		step := math.Log1p(math.Exp(v))
		least, most = min(least, step), max(most, step)
	}
	if least < 0.01-1e-12 || most > 0.5+1e-12 || least > 0.012 || most < 0.4 {
		t.Errorf("the steps start in %v to %v, want the whole of 0.01 to 0.5", least, most)
	}
	for _, p := range NewS6(S6Config{Channels: 3}, WithZeros()).Params() {
		for _, v := range p.Value.Data().([]float32) {
			if v != 0 {
				t.Fatalf("%s is %v with WithZeros", p.Name, p.Value)
			}
		}
	}
}
