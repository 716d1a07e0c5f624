//go:build amd64 && !noasm

package kernel

import (
	"unsafe"

	"github.com/gomamba/mamba/internal/cpu"
)

// convFilter32 is convRows.run.
func convFilter32(a *convArgs, steps int) {
	for ; steps >= convSteps; steps -= convSteps {
		if level == cpu.AVX512 {
			convRowsAVX512((*byte)(unsafe.Pointer(a)))
		} else {
			convRowsAVX2((*byte)(unsafe.Pointer(a)))
		}
		if steps > convSteps { // an address past the last row might be of other memory
			a.skip(convSteps)
		} else {
			return
		}
	}
	for ; steps > 0; steps-- {
		if level == cpu.AVX512 {
			convRowAVX512((*byte)(unsafe.Pointer(a)))
		} else {
			convRowAVX2((*byte)(unsafe.Pointer(a)))
		}
		if steps > 1 {
			a.skip(1)
		}
	}
}

// convSum32 is convRows.sum, for a multiple of convSteps.
func convSum32(a *convArgs, steps int) {
	for ; steps > 0; steps -= convSteps {
		if level == cpu.AVX512 {
			convSumAVX512((*byte)(unsafe.Pointer(a)))
		} else {
			convSumAVX2((*byte)(unsafe.Pointer(a)))
		}
		if steps > convSteps {
			a.skip(convSteps)
		}
	}
}

// skip goes some steps on.
func (a *convArgs) skip(steps int) {
	move := func(p **float32, step int) {
		if *p != nil {
			*p = (*float32)(unsafe.Add(unsafe.Pointer(*p), steps*step))
		}
	}
	move(&a.y, a.yStep)
	move(&a.x, a.xStep)
	move(&a.dy, a.dyStep)
}
