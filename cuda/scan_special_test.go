package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"gonum.org/v1/gonum/blas/gonum"

	"github.com/gomamba/mamba/internal/kernel"
)

// TestScanSpecialValues puts a NaN and both infinities into each operand, one element at a time. Every result must be finite exactly where
// that of the host is, and close to it there. The test of the same name in internal/kernel compares the host with the equation.
func TestScanSpecialValues(t *testing.T) {
	s := open(t)
	both(t, func(t *testing.T) { specialValues[float32](t, s) }, func(t *testing.T) { specialValues[BFloat16](t, s) })
}

func specialValues[T Activation](t *testing.T, s *Stream) {
	sizes := []struct{ batch, length, perGroup, groups, state int }{
		{2, 32, 5, 1, 3}, // few channels
		{1, 37, 3, 2, 16},
		{2, 256, 2, 1, 4},  // cut into chunks
		{1, 192, 4, 1, 16}, // the kernels for compute capability 8.0
		{1, 64, 2, 1, 20},
		{1, 34, 2, 1, 130},
	}
	if typeName[T]() == "bf16" {
		sizes = sizes[:4]
	}
	for i, size := range sizes {
		for n := range times(6, 1) {
			r := rand.New(rand.NewPCG(21, uint64(10*i+n)))
			p := draw[T](r, size.batch, size.length, size.perGroup, size.groups, size.state)
			p.Start = nil
			if size.perGroup%4 == 0 {
				p = drawAsync[T](r, size.batch, size.length, size.perGroup, size.groups)
			} else if (i+n)%2 == 1 {
				p.Start = make([]bool, size.batch*size.length)
				p.Start[size.length/3] = true
			}
			a := p.A
			if p.alog != nil {
				a = p.alog
			}
			for _, operand := range []struct {
				name string
				v    []float64
			}{
				{"U", p.U}, {"Delta", p.Delta}, {"A", a}, {"B", p.B.Data}, {"C", p.C.Data}, {"D", p.D}, {"Z", p.Z},
				{"DeltaBias", p.DeltaBias}, {"Initial", p.Initial}, {"dy", p.dy}, {"dfinal", p.dfinal},
			} {
				if operand.v == nil {
					continue
				}
				at := r.IntN(len(operand.v))
				set := func(v float64) {
					if operand.v[at] = v; operand.name == "A" && p.alog != nil {
						p.A[at] = -math.Exp(v)
					}
				}
				was := operand.v[at]
				for _, special := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
					set(special)
					results := ""
					if operand.name == "A" && size.length%32 != 0 { // the limits that the comment on Scan.A names
						if results = "y, final"; math.IsInf(p.A[at], -1) {
							results = "y"
						}
					}
					sameSpecial[T](t, s, p, fmt.Sprintf("%s[%d] is %v", operand.name, at, special), results)
				}
				set(was)
			}
		}
	}
}

// sameSpecial compares the results on the device with those on the host. only lists the names of the results to compare; empty means all.
func sameSpecial[T Activation](t *testing.T, s *Stream, p *problem, what, only string) {
	t.Helper()
	r := onDevice[T](t, s, p)
	defer r.free()
	do(t, r.run())
	wants := map[string][]float64{}
	p.onHost().each(func(name string, v []float64) { wants[name] = v })
	r.results(t).each(func(name string, got []float64) {
		if only != "" && !strings.Contains(only, name) {
			return
		}
		tol, scale := 2e-5, 1.0
		if typeName[T]() == "bf16" {
			tol += 1.0 / 256
		}
		for _, w := range wants[name] {
			if !math.IsInf(w, 0) && w == w {
				scale = max(scale, math.Abs(w))
			}
		}
		for i, w := range wants[name] {
			g := got[i]
			if (g-g == 0) != (w-w == 0) || math.Abs(g-w) > tol*scale {
				t.Fatalf("%v: %s: %s[%d] is %v, want %v", p, what, name, i, g, w)
			}
		}
	})
}

// TestStepSpecialValues checks that a step of generation from a zero state equals the block with length 1, also if ALog is NaN or infinite.
func TestStepSpecialValues(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(22, 22))
	k := kernel.Block[float64]{Batch: 2, Length: 1, Model: 8, Channels: 12, State: 5, Width: 4, Rank: 3, Eps: 1e-5, Gemm: gonum.Implementation{}.Dgemm}
	columns := k.Rank + 2*k.State
	normal := func(n int) []float64 { return numbers[float32](r, n, 0.5) }
	k.X, k.Norm, k.InProj, k.Conv = normal(k.Batch*k.Model), normal(k.Model), normal(2*k.Channels*k.Model), normal(k.Channels*k.Width)
	k.XProj, k.DtProj, k.DtBias = normal(columns*k.Channels), normal(k.Channels*k.Rank), normal(k.Channels)
	k.D, k.OutProj = normal(k.Channels), normal(k.Model*k.Channels)
	alog := normal(k.Channels * k.State)
	for _, special := range []float64{0, math.NaN(), math.Inf(1), math.Inf(-1)} {
		alog[7] = special
		k.ALog = alog
		y, context, final := make([]float64, k.Batch*k.Model), make([]float64, k.Batch*(k.Width-1)*k.Channels), make([]float64, k.Batch*k.Channels*k.State)
		k.Forward(y, context, final, kernel.BlockValues[float64]{})

		up := func(v []float64) Array[float32] { return put[float32](t, s, v) }
		step := &Step[float32]{
			Batch: k.Batch, Model: k.Model, Channels: k.Channels, State: k.State, Width: k.Width, Rank: k.Rank, Eps: 1e-5, X: up(k.X), Norm: up(k.Norm),
			Conv: up(k.Conv), DtBias: up(k.DtBias), ALog: up(alog), D: up(k.D), InProj: up(k.InProj), XProj: up(k.XProj), DtProj: up(k.DtProj),
			OutProj: up(k.OutProj), Context: up(make([]float64, len(context))), Scan: up(make([]float64, len(final))),
		}
		do(t, step.Forward(s, step.X, step.Context, step.Scan))
		for name, v := range map[string]struct{ got, want []float64 }{
			"y": {get(t, s, step.X), y}, "the context": {get(t, s, step.Context), context}, "the state": {get(t, s, step.Scan), final},
		} {
			for i, w := range v.want {
				if g := v.got[i]; (g-g == 0) != (w-w == 0) || math.Abs(g-w) > 1e-4 {
					t.Fatalf("ALog[7] is %v: %s[%d] is %v, want %v", special, name, i, g, w)
				}
			}
		}
	}
}
