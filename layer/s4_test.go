package layer

import (
	"math"
	"math/cmplx"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// LegS is that of the paper for small N, and its normal part has the eigenvalues that make N(λ)v = λv solvable: the residual's
// smallest singular value is zero, their real part -1/2, their sum the trace.
func TestHiPPO(t *testing.T) {
	want := mat.NewDense(3, 3, []float64{-1, 0, 0, -math.Sqrt(3), -2, 0, -math.Sqrt(5), -math.Sqrt(15), -3})
	if !mat.EqualApprox(hippo(3), want, 1e-14) {
		t.Errorf("LegS is\n%v", mat.Formatted(hippo(3)))
	}
	// N = 2: [[-1/2, √3/2], [-√3/2, -1/2]], whose eigenvalues are -1/2 ± i√3/2.
	if a, err := S4DLegS.Values(2); err != nil || len(a) != 1 || cmplx.Abs(a[0]-complex(-0.5, math.Sqrt(3)/2)) > 1e-14 {
		t.Errorf("N = 2: %v, %v", a, err)
	}
	for _, n := range []int{4, 16, 64} {
		a, err := S4DLegS.Values(n)
		if err != nil || len(a) != n/2 {
			t.Fatalf("N = %d: %d values, %v", n, len(a), err)
		}
		// -S² of the antisymmetric part S is symmetric, with eigenvalues ω², each twice: another way to them.
		square := mat.NewSymDense(n, nil)
		s := func(i, k int) float64 {
			v := math.Sqrt(float64(2*i+1)*float64(2*k+1)) / 2
			switch {
			case i > k:
				return -v
			case i < k:
				return v
			}
			return 0
		}
		for i := range n {
			for k := i; k < n; k++ {
				sum := 0.0
				for j := range n {
					sum += s(i, j) * s(k, j) // S Sᵀ = -S²
				}
				square.SetSym(i, k, sum)
			}
		}
		var eigen mat.EigenSym
		if !eigen.Factorize(square, false) {
			t.Fatal("no eigenvalues")
		}
		squares := eigen.Values(nil) // ascending
		for i, z := range a {
			if math.Abs(real(z)+0.5) > 1e-9 {
				t.Errorf("N = %d: the real part of %v is not -1/2", n, z)
			}
			if want := squares[2*i]; math.Abs(imag(z)*imag(z)-want) > 1e-9*squares[n-1] {
				t.Errorf("N = %d: the square of frequency %d is %v, want %v", n, i, imag(z)*imag(z), want)
			}
		}
	}
}

func TestStartA(t *testing.T) {
	for name, want := range map[StartA][]complex128{
		"":      {-0.5, -0.5 + math.Pi*1i},
		S4DLin:  {-0.5, -0.5 + math.Pi*1i},
		S4DInv:  {complex(-0.5, 4/math.Pi*3), complex(-0.5, 4/math.Pi*(4.0/3-1))},
		S4DReal: {-1, -2, -3, -4},
	} {
		a, err := name.Values(4)
		if err != nil || len(a) != len(want) {
			t.Fatalf("%s: %v, %v", name, a, err)
		}
		for i := range a {
			if cmplx.Abs(a[i]-want[i]) > 1e-14 {
				t.Errorf("%s: %v, want %v", name, a, want)
			}
		}
	}
	for want, of := range map[string]func() error{
		"state size is 3, want an even number": func() error { return NewS4(S4Config{Channels: 2, State: 3}).Err() },
		`start as "LegT", want "S4D-Lin"`:      func() error { return NewS4(S4Config{Channels: 2, A: "LegT"}).Err() },
		"channels is 0":                        func() error { return NewS4(S4Config{Channels: 0}).Err() },
		"state size is -2":                     func() error { return NewS4(S4Config{Channels: 2, State: -2}).Err() },
		"state size is 0, want at least 1":     func() error { _, err := S4DReal.Values(0); return err },
		"state size is -1, want an even":       func() error { _, err := S4DLegS.Values(-1); return err },
		"the range of Δ is 1 to 0.1":           func() error { return NewS4(S4Config{Channels: 2, DtMin: 1, DtMax: 0.1}).Err() },
	} {
		if err := of(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	if err := NewS4(S4Config{Channels: 2, State: 3, A: S4DReal}).Err(); err != nil {
		t.Error(err)
	}
}

// Weights start as A says, with steps within the range; and every start converges to the same system when it is run both ways.
func TestS4Layer(t *testing.T) {
	for _, a := range []StartA{S4DLin, S4DInv, S4DLegS, S4DReal} {
		for _, bilinear := range []bool{false, true} {
			l := NewS4(S4Config{Channels: 3, State: 4, A: a, Bilinear: bilinear}, WithDtype(tensor.Float64), WithSeed(3), WithName("s4"))
			if err := l.Err(); err != nil {
				t.Fatal(err)
			}
			for _, v := range l.Parts.LogDelta.Value.Data().([]float64) {
				if dt := math.Exp(v); dt < 0.001 || dt > 0.1 {
					t.Errorf("Δ starts at %v", dt)
				}
			}
			inputs := []grad.Input{{Name: "x", Value: o64.New(build.Uniform(o64.Rand("x"), 1), 2, 7, 3)},
				{Name: "state", Value: o64.New(build.Uniform(o64.Rand("state"), 1), 2, 3, 4)}}
			for _, p := range l.Params() {
				inputs = append(inputs, grad.Input{Name: p.Name, Value: p.Value, Node: p.Node})
			}
			grad.MustCheck(t, grad.Single(func(in G.Nodes) (*G.Node, error) { return l.Apply(in[0]) }), append(inputs[:1:1], inputs[2:]...))
			grad.MustCheck(t, func(in G.Nodes) (G.Nodes, error) {
				y, next, err := l.ApplyWithState(in[0], State{in[1]})
				return append(G.Nodes{y}, next...), err
			}, inputs)
		}
	}
}

var o64 = build.Options{Dtype: tensor.Float64, Seed: 7}

// Options reach the operator: with and without the bilinear rule, and with a start, a layer computes what op.S4 of its weights does.
// C starts with variance 1, which its real and imaginary parts share.
func TestS4Options(t *testing.T) {
	x := o64.New(build.Uniform(o64.Rand("x"), 1), 1, 5, 3)
	var seen []float64
	for _, bilinear := range []bool{false, true} {
		for _, start := range []bool{false, true} {
			cfg := S4Config{Channels: 3, State: 4, Bilinear: bilinear, DtMin: 0.5, DtMax: 0.5}
			l := NewS4(cfg, WithDtype(tensor.Float64), WithName("s4"))
			g := G.NewGraph()
			in := op.S4Inputs{U: G.NodeFromAny(g, x, G.WithName("x")), LogDelta: l.Parts.LogDelta.Node(g), LogDecay: l.Parts.LogDecay.Node(g),
				Frequency: l.Parts.Frequency.Node(g), C: l.Parts.C.Node(g), D: l.Parts.D.Node(g)}
			if start {
				in.Start = startNode(g, []int{0, 0, 1, 0, 0}, 1, 0, 5)
			}
			y, err := l.Apply(in.U, WithStart(in.Start))
			if err != nil {
				t.Fatal(err)
			}
			z, next, err := l.ApplyWithState(in.U, nil, WithStart(in.Start))
			if err != nil {
				t.Fatal(err)
			}
			want, err := op.S4(in, op.S4Config{Bilinear: bilinear})
			if err != nil {
				t.Fatal(err)
			}
			v := run(t, y, z, next[0], want)
			for i := range 2 {
				if d := apart(asFloat64(v[i]), asFloat64(v[3])); d > 1e-12 {
					t.Errorf("bilinear %t, start %t: the layer and the operator are %v apart", bilinear, start, d)
				}
			}
			last := asFloat64(v[0])[14]
			if slices.Contains(seen, last) {
				t.Errorf("bilinear %t, start %t: the result is that of other options", bilinear, start)
			}
			seen = append(seen, last)
		}
	}
	for a, want := range map[StartA]float64{S4DLin: 0.5, S4DReal: 1} {
		_, _, _, deviation := moments(doubles(NewS4(S4Config{Channels: 64, A: a}, WithSeed(1)).Parts.C.Value))
		if math.Abs(deviation*deviation-want) > 0.05*want {
			t.Errorf("%s: the parts of C start with variance %v, want %v", a, deviation*deviation, want)
		}
	}
}
