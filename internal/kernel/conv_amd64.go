//go:build amd64 && !noasm

package kernel

import (
	"unsafe"

	"github.com/gomamba/mamba/internal/cpu"
)

// convFilter32 computes convRows.run for a number of steps.
func convFilter32(a *convArgs, steps int) {
	for {
		now := convSteps
		if steps < convSteps {
			now = 1
			if level == cpu.AVX512 {
				convRowAVX512(a)
			} else {
				convRowAVX2(a)
			}
		} else if b, ok := a.usual(); ok {
			if level == cpu.AVX512 {
				convRows4AVX512(&b)
			} else {
				convRows4AVX2(&b)
			}
		} else if level == cpu.AVX512 {
			convRowsAVX512(a)
		} else {
			convRowsAVX2(a)
		}
		if steps -= now; steps == 0 {
			return
		}
		a.skip(now)
	}
}

// convSum32 computes convRows.sum for a number of steps that is a multiple of convSteps.
func convSum32(a *convArgs, steps int) {
	for {
		if b, ok := a.usual(); ok {
			if level == cpu.AVX512 {
				convSum4AVX512(&b)
			} else {
				convSum4AVX2(&b)
			}
		} else if level == cpu.AVX512 {
			convSumAVX512(a)
		} else {
			convSumAVX2(a)
		}
		if steps -= convSteps; steps == 0 {
			return
		}
		a.skip(convSteps)
	}
}

// usual returns the arguments for the kernels of 4 steps and 4 taps, if those kernels apply. They need x.step and next to be equal. If one
// is the negative of the other, usual returns the same convSteps steps in reverse order. There must be at least convSteps steps.
func (a *convArgs) usual() (b convArgs, ok bool) {
	switch {
	case a.width != convSteps || a.xNext != a.xStep && a.xNext != -a.xStep:
		return b, false
	case a.xNext == a.xStep:
		return *a, true
	}
	b = *a
	b.skip(convSteps - 1)
	b.yStep, b.xStep, b.dyStep, b.slopeStep = -a.yStep, -a.xStep, -a.dyStep, -a.slopeStep
	return b, true
}

// skip moves all addresses forward by a number of steps. So many must be left: an address past the last row might point to other memory.
func (a *convArgs) skip(steps int) {
	move(&a.y, steps*a.yStep)
	move(&a.x, steps*a.xStep)
	move(&a.dy, steps*a.dyStep)
	move(&a.slope, steps*a.slopeStep)
}

func move(p **float32, bytes int) {
	if *p != nil {
		*p = (*float32)(unsafe.Add(unsafe.Pointer(*p), bytes))
	}
}
