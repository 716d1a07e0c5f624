//go:build amd64 && !noasm

package kernel

import "github.com/gomamba/mamba/internal/cpu"

// gridFilter32 computes gridRows.run for a number of steps.
func gridFilter32(a *gridArgs, steps int) {
	for {
		now := convSteps
		switch {
		case steps < convSteps && level == cpu.AVX512:
			now = 1
			gridRowAVX512(a)
		case steps < convSteps:
			now = 1
			gridRowAVX2(a)
		case level == cpu.AVX512:
			gridRowsAVX512(a)
		default:
			gridRowsAVX2(a)
		}
		if steps -= now; steps == 0 {
			return
		}
		a.skip(now)
	}
}

// gridSum32 computes gridRows.sum for a number of steps that is a multiple of convSteps.
func gridSum32(a *gridArgs, steps int) {
	for {
		if level == cpu.AVX512 {
			gridSumAVX512(a)
		} else {
			gridSumAVX2(a)
		}
		if steps -= convSteps; steps == 0 {
			return
		}
		a.skip(convSteps)
	}
}

// skip moves all addresses forward by a number of steps. So many must be left: an address past the last row might point to other memory.
func (a *gridArgs) skip(steps int) {
	move(&a.y, steps*a.yStep)
	move(&a.x, steps*a.xStep)
	move(&a.dy, steps*a.dyStep)
}
