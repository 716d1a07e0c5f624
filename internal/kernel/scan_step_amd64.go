//go:build amd64 && !noasm

package kernel

import (
	"math"
	"math/bits"

	"github.com/gomamba/mamba/internal/cpu"
)

// scanStepAsm has the arguments of the assembly, which the compiler would allocate otherwise.
type scanStepAsm struct {
	scan scanArgs
	u    [stepStrips * lanes]float32
}

func scanStepScale(a []float32) {
	if level != cpu.Generic {
		scaleOf(a, a, math.Log2E)
	}
}

// stepCells are the strips of a part, as cells that are a strip apart.
var stepCells = func() (cells [stepStrips]int32) {
	for i := range cells {
		cells[i] = int32(i)
	}
	return cells
}()

// advanceAsm computes the strips [from, to), of n channels, with the kernels of Scan. The strips take the place of the steps in the kernels
// that compute Δ and the gate.
func (s *ScanStep) advanceAsm(w *ScanStepper, r *ScanStepRow, from, to, n int) bool {
	if level == cpu.Generic {
		return false
	}
	set := &scanAVX512
	if level == cpu.AVX2 {
		set = &scanAVX2
	}
	const strip = 4 * lanes // bytes
	first := from * lanes
	whole := n / lanes // strips of 16 channels; the last one may have fewer
	parts := [2]struct{ at, strips, width int }{{0, whole, lanes}, {whole, to - from - whole, n - whole*lanes}}
	for _, p := range parts {
		if p.strips == 0 {
			continue
		}
		at := p.at * lanes
		var a scanPrepareArgs
		a.cells, a.step, a.uStep, a.steps, a.softplus = &stepCells[0], strip, strip, p.strips, 1
		for l := 0; l < p.width; l += set.lanes {
			a.dt, a.du, a.u, a.width = &w.dt[at+l], &w.du[at+l], &w.asm.u[at+l], min(set.lanes, p.width-l)
			a.delta, a.from = &w.dt[at+l], &r.U[first+at+l]
			a.other, a.otherStep = a.from, strip
			if level == cpu.AVX512 {
				scanPrepareAVX512(&a)
			} else {
				scanPrepareAVX2(&a)
			}
		}
	}
	clear(w.y[:(to-from)*lanes])
	args := &w.asm.scan
	args.bStep, args.cStep, args.steps, args.ahead = 0, 0, 1, nil
	for i := from; i < to; i++ {
		at := (i - from) * lanes
		for l := 0; l < min(lanes, n-at); l += set.lanes {
			args.dt, args.du, args.y = &w.dt[at+l], &w.du[at+l], &w.y[at+l]
			for j := 0; j < s.State; {
				group := min(len(set.states[scanForward][0]), bits.Len(uint(s.State-j))) - 1
				args.h, args.a, args.b, args.c = &r.After[i*s.stride+j*lanes+l], &s.a[i*s.stride+j*lanes+l], &r.B[j], &r.C[j]
				set.states[scanForward][0][group](args)
				j += 1 << group
			}
		}
	}
	addProduct(w.y[:n], s.D[first:first+n], r.U[first:first+n])
	for _, p := range parts {
		if p.strips == 0 {
			continue
		}
		at := p.at * lanes
		var a scanFinishArgs
		a.cells, a.yStep, a.zStep, a.steps = &stepCells[0], strip, strip, p.strips
		for l := 0; l < p.width; l += set.lanes {
			a.acc, a.u, a.width = &w.y[at+l], &w.asm.u[at+l], min(set.lanes, p.width-l)
			a.y, a.z = &r.Y[first+at+l], &r.Z[first+at+l]
			if level == cpu.AVX512 {
				scanFinishAVX512(&a)
			} else {
				scanFinishAVX2(&a)
			}
		}
	}
	return true
}
