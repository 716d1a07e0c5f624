package kernel

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"
)

// The decay alone is as exact as documented: with an initial state of 1, zero input and C = 1, the output is e^(Δ·A).
func TestScanDecay(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		inf := float32(math.Inf(1))
		x := []float32{-inf, -1e38, -1e10, -4000, -104, -103.9, -88, -87.4, -87.3, -1e-30, -1e-45, 0, 1e-45, 1e-30, 88, 88.7, 88.8, 200, 1e10, inf}
		for v := float32(-90); v < 89; v += 0.0137 {
			x = append(x, v)
		}
		worst, at := 0.0, float32(0)
		for _, n := range []int{1, 16} {
			y := decays(x, n)
			for i, got := range y {
				want := math.Exp(float64(x[i]))
				if want > math.MaxFloat32 {
					want = math.Inf(1)
				}
				if want > 0x1p127 && math.IsInf(float64(got), 1) { // AVX2 overflows above 2^127.5
					continue
				}
				// With AVX2 a denormal result is zero.
				ulp := max(math.Abs(want)*0x1p-23, 0x1p-126)
				if math.IsInf(want, 0) {
					ulp = 1
				}
				if float64(got) == want {
					continue
				}
				err := math.Abs(float64(got)-want) / ulp
				if bound := 2 + math.Abs(float64(x[i])); !(err <= bound) {
					t.Errorf("%d states: decay of %v is %v, want %v: %.3g units in the last place", n, x[i], got, want, err)
				}
				if rel := err / (2 + math.Abs(float64(x[i]))); rel > worst {
					worst, at = rel, x[i]
				}
			}
		}
		t.Logf("worst: %.2f of the bound, at %v", worst, at)
		if y := decays([]float32{float32(math.NaN())}, 16); y[0] == y[0] {
			t.Errorf("decay of NaN is %v", y[0])
		}
		if y := decays([]float32{0}, 1); y[0] != 1 {
			t.Errorf("decay of 0 is %v", y[0])
		}
	})
}

// decays returns e^x, computed by scans of one step with Δ = 1 and A = x. C is zero for all states but one.
func decays(x []float32, state int) []float32 {
	s := &Scan[float32]{
		Batch: 1, Length: 1, Channels: len(x), State: state,
		U: make([]float32, len(x)), Delta: make([]float32, len(x)), A: make([]float32, len(x)*state),
		B: Projection[float32]{Data: make([]float32, state), Groups: 1}, C: Projection[float32]{Data: make([]float32, state), Groups: 1},
		Initial: make([]float32, len(x)*state),
	}
	for i, v := range x {
		s.Delta[i] = 1
		s.A[i*state+state-1] = v
		s.Initial[i*state+state-1] = 1
	}
	s.C.Data[state-1] = 1
	y := like(s.U)
	s.Forward(y, nil)
	return y
}

// At every level, a result is infinite or NaN where that of the reference is. All other results are close to it.
func TestScanExtremes(t *testing.T) {
	values := []float64{0, math.Copysign(0, -1), 1, -1, 1e-45, 1e-38, -1e-20, 1e10, -1e15, math.Inf(1), math.Inf(-1), math.NaN()}
	eachLevel(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			c := scanCase{batch: 1, length: rapid.IntRange(1, 40).Draw(t, "length"), channels: rapid.IntRange(1, 40).Draw(t, "channels"),
				state: rapid.IntRange(1, 20).Draw(t, "state"), bGroups: 1, cGroups: 1,
				d: rapid.Bool().Draw(t, "D"), z: rapid.Bool().Draw(t, "Z"), softplus: rapid.Bool().Draw(t, "softplus")}
			s64 := c.make64(1)
			for _, v := range [][]float64{s64.U, s64.Delta, s64.B.Data, s64.C.Data, s64.Z, s64.D} {
				if len(v) > 0 && rapid.Bool().Draw(t, "here") {
					v[rapid.IntRange(0, len(v)-1).Draw(t, "place")] = rapid.SampledFrom(values).Draw(t, "value")
				}
			}
			if !c.softplus { // a growing decay overflows at another step in float32 than in float64
				for i, v := range s64.Delta {
					s64.Delta[i] = math.Abs(v)
				}
			}
			s := convert[float32](s64)
			want, got := make([]float64, len(s.U)), like(s.U)
			s64.Reference(want, make([]float64, len(s64.A)))
			s.Forward(got, nil)
			scales, reach := magnitudes(s64), reach(s64)
			for i, w := range want {
				g, scale := float64(got[i]), scales[i]
				finite := !math.IsNaN(g) && !math.IsInf(g, 0)
				switch {
				case math.IsNaN(w) || math.IsInf(w, 0):
					if finite {
						t.Fatalf("y[%d] is %v, want %v", i, g, w)
					}
				case !finite:
					if reach < math.MaxFloat32 {
						t.Fatalf("y[%d] is %v, want %v (no product above %v)", i, g, w, reach)
					}
				case math.Abs(g-w) > 3e-5*scale+math.SmallestNonzeroFloat32*reach:
					t.Fatalf("y[%d] is %v, want %v (scale %v, reach %v)", i, g, w, scale, reach)
				}
			}
		})
	})
}

// reach returns a bound on the products of operands that an output depends on, if all terms are finite. Above the largest float32 a product
// may overflow. The error of a product that underflows is at most reach times the smallest float32.
func reach(s *Scan[float64]) float64 {
	r := float64(s.Length * s.State)
	for _, v := range [][]float64{s.U, s.Delta, s.B.Data, s.C.Data, s.Z, s.D} {
		most := 1.0
		for _, x := range v {
			if x := math.Abs(x); x > most && !math.IsInf(x, 0) {
				most = x
			}
		}
		r *= most
	}
	return r
}

// magnitudes returns, for every output, the sum of the absolute values of its terms. Rounding errors are compared with it, since the errors
// of terms that cancel remain.
func magnitudes(s *Scan[float64]) []float64 {
	positive := convert[float64](s)
	for _, v := range [][]float64{positive.U, positive.B.Data, positive.C.Data, positive.D, positive.Initial} {
		for i := range v {
			v[i] = math.Abs(v[i])
		}
	}
	y := like(s.U)
	positive.Reference(y, nil)
	for i := range y {
		y[i] = math.Abs(y[i]) // the gate can be negative
	}
	return y
}

// Nothing outside the operands is read or written, at any alignment. All operands lie between canaries.
func TestScanCanaries(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, c := range []scanCase{
			{batch: 1, length: 3, channels: 1, state: 1, bGroups: 1, cGroups: 1, d: true, z: true, bias: true, initial: true, softplus: true},
			{batch: 2, length: 17, channels: 37, state: 11, bGroups: 1, cGroups: 1, d: true, z: true, bias: true, initial: true, start: true, softplus: true},
			{batch: 1, length: 70, channels: 18, state: 3, bGroups: 0, cGroups: 1, d: true, z: true, reverse: true},
			{batch: 1, length: 5, channels: 50, state: 16, bGroups: 2, cGroups: 0, bias: true},
			{batch: 1, length: 35, channels: 18, state: 24, bGroups: 1, cGroups: 2, d: true, z: true, initial: true, start: true, softplus: true}, // of scanTile
		} {
			for offset := range 3 {
				s := convert[float32](c.make64(2))
				y, final, dy, dfinal := like(s.U), make([]float32, c.batch*c.channels*c.state), convertAll[float32](c.make64(3).U), make([]float32, c.batch*c.channels*c.state)
				g := s.newGrad()
				var fences []fence
				for _, v := range []*[]float32{&s.U, &s.Delta, &s.A, &s.B.Data, &s.C.Data, &s.D, &s.Z, &s.DeltaBias, &s.Initial, &y, &final, &dy, &dfinal,
					&g.U, &g.Delta, &g.A, &g.B, &g.C, &g.D, &g.Z, &g.DeltaBias, &g.Initial} {
					fences = append(fences, fenced(v, 1+offset))
				}
				s.Forward(y, final)
				s.Backward(dy, dfinal, g)
				for i, f := range fences {
					if err := f.check(); err != nil {
						t.Errorf("%+v: operand %d: %v", c, i, err)
					}
				}
				for name, v := range g.named() {
					for i, x := range v {
						if x != x {
							t.Fatalf("%+v: gradient of %s: element %d is NaN", c, name, i)
						}
					}
				}
			}
		}
	})
}

// fence is an array with memory around it that must not be touched. This memory holds NaN, so that a result that reads it is NaN.
type fence struct {
	all           []float32
	before, after int
}

const canary = 0x7fc0cafe

// fenced moves an array between canaries, to an offset of before elements.
func fenced(v *[]float32, before int) fence {
	if *v == nil {
		return fence{}
	}
	f := fence{make([]float32, before+len(*v)+20), before, before + len(*v)}
	for i := range f.all {
		f.all[i] = math.Float32frombits(canary)
	}
	copy(f.all[before:], *v)
	*v = f.all[before:f.after:f.after]
	return f
}

func (f fence) check() error {
	for i, v := range f.all {
		if (i < f.before || i >= f.after) && math.Float32bits(v) != canary {
			return fmt.Errorf("element %d is overwritten", i-f.before)
		}
	}
	return nil
}
