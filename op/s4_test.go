package op

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// The convolution, the scan step by step, and the scan in two pieces agree with the sum that defines them.
func TestS4Ways(t *testing.T) {
	const batch, length, channels, modes, cut = 2, 9, 3, 2, 4
	r := rand.New(rand.NewPCG(31, 1))
	u, logDelta, logDecay, frequency := normal(r, batch*length*channels), normal(r, channels), normal(r, channels*modes), normal(r, channels*modes)
	c, d := normal(r, channels*2*modes), normal(r, channels)
	want := make([]float64, len(u))
	for i := range want {
		b, at, ch := i/(length*channels), i/channels%length, i%channels
		want[i] = d[ch] * u[i]
		for n := range modes {
			a := complex(-math.Exp(logDecay[ch*modes+n]), frequency[ch*modes+n])
			h := complex(0, 0)
			for j := 0; j <= at; j++ {
				w := expOf(a * complex(math.Exp(logDelta[ch]), 0))
				h = w*h + (w-1)/a*complex(u[(b*length+j)*channels+ch], 0)
			}
			want[i] += 2 * real(complex(c[2*ch*modes+n], c[2*ch*modes+modes+n])*h)
		}
	}
	for _, way := range []string{"convolution", "steps", "pieces"} {
		g := G.NewGraph()
		node := func(name string, v []float64, shape ...int) *G.Node { return leaf(g, name, tensor.Float64, shape, v) }
		in := S4Inputs{U: node("U", u, batch, length, channels), LogDelta: node("LogDelta", logDelta, channels),
			LogDecay: node("LogDecay", logDecay, channels, modes), Frequency: node("Frequency", frequency, channels, modes),
			C: node("C", c, channels, 2*modes), D: node("D", d, channels)}
		var parts G.Nodes
		switch way {
		case "convolution":
			parts = G.Nodes{G.Must(S4(in, S4Config{}))}
		case "steps":
			y, _, err := S4WithState(in, S4Config{})
			if err != nil {
				t.Fatal(err)
			}
			parts = G.Nodes{y}
		case "pieces":
			in.U = node("U0", steps(u, batch, length, 0, cut), batch, cut, channels)
			y, state, err := S4WithState(in, S4Config{})
			if err != nil {
				t.Fatal(err)
			}
			in.U, in.InitialState = node("U1", steps(u, batch, length, cut, length), batch, length-cut, channels), state
			parts = G.Nodes{y, G.Must(S4(in, S4Config{}))}
		}
		values := make([]G.Value, len(parts))
		for i, n := range parts {
			G.Read(n, &values[i])
		}
		vm := G.NewTapeMachine(g)
		if err := vm.RunAll(); err != nil {
			t.Fatal(err)
		}
		vm.Close()
		wants := [][]float64{want}
		if way == "pieces" {
			wants = [][]float64{steps(want, batch, length, 0, cut), steps(want, batch, length, cut, length)}
		}
		for i, want := range wants {
			for j, got := range elements(values[i]) {
				if math.Abs(got-want[j]) > 1e-12*(1+math.Abs(want[j])) {
					t.Fatalf("%s: y[%d] of piece %d is %v, want %v", way, j, i, got, want[j])
				}
			}
		}
	}
}

func expOf(z complex128) complex128 {
	return complex(math.Exp(real(z))*math.Cos(imag(z)), math.Exp(real(z))*math.Sin(imag(z)))
}

func TestS4Errors(t *testing.T) {
	g := G.NewGraph()
	node := func(dt tensor.Dtype, shape ...int) *G.Node {
		return G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprint(dt, shape)))
	}
	f64 := tensor.Float64
	for _, test := range []struct {
		change func(in *S4Inputs)
		want   string
	}{
		{func(in *S4Inputs) { in.U = nil }, "U is missing"},
		{func(in *S4Inputs) { in.U = node(f64, 2, 5) }, "U has shape (2, 5), want (batch, length, channels)"},
		{func(in *S4Inputs) { in.LogDelta = node(f64, 2) }, "LogDelta has shape (2), want (channels) = (3)"},
		{func(in *S4Inputs) { in.LogDecay = nil }, "LogDecay is missing, want a node of shape (channels, modes)"},
		{func(in *S4Inputs) { in.Frequency = node(f64, 3, 5) }, "Frequency has shape (3, 5), want (channels, modes) = (3, 4)"},
		{func(in *S4Inputs) { in.C = node(f64, 3, 4) }, "C has shape (3, 4), want (channels, state) = (3, 8)"},
		{func(in *S4Inputs) { in.Frequency = nil }, "C has shape (3, 8), want (channels, state) = (3, 4)"},
		{func(in *S4Inputs) { in.D = node(tensor.Float32, 3) }, "D is of float32, want float64 like the other operands"},
		{func(in *S4Inputs) { in.InitialState = node(f64, 2, 3, 4) }, "InitialState has shape (2, 3, 4), want (batch, channels, state) = (2, 3, 8)"},
		{func(in *S4Inputs) { in.Start = node(f64, 2, 4) }, "Start has shape (2, 4), want (batch, length) = (2, 5)"},
	} {
		in := S4Inputs{U: node(f64, 2, 5, 3), LogDelta: node(f64, 3), LogDecay: node(f64, 3, 4), Frequency: node(f64, 3, 4), C: node(f64, 3, 8)}
		test.change(&in)
		_, err := S4(in, S4Config{})
		if want := "op: S4: " + test.want; err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
		if _, _, again := S4WithState(in, S4Config{}); again == nil || again.Error() != err.Error() {
			t.Errorf("with state: error %v, want %v", again, err)
		}
	}
}

// A convolution by FFT carries a NaN or an infinity forward in time, in its own channel and sequence, and nowhere else.
func TestS4NaN(t *testing.T) {
	for _, u := range uses(1) {
		if u.name != "S4" && u.name != "S4 of real modes" {
			continue
		}
		base, err := u.run(tensor.Float64, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		shape := u.in[0].Value.Shape()
		length, channels := shape[1], shape[2]
		const b, at, ch = 1, 2, 1
		for _, bad := range []float64{math.NaN(), math.Inf(1)} {
			got, err := u.with(0, (b*length+at)*channels+ch, func(float64) float64 { return bad }).run(tensor.Float64, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, x := range got["result 0"] {
				reached := i/(length*channels) == b && i%channels == ch && i/channels%length >= at
				finite := !math.IsNaN(x) && !math.IsInf(x, 0)
				if finite == reached || finite && math.Abs(x-base["result 0"][i]) > 1e-12 {
					t.Errorf("%s: U has %v at step %d of channel %d: y[%d] is %v, was %v", u.name, bad, at, ch, i, x, base["result 0"][i])
				}
			}
		}
	}
}
