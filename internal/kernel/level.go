package kernel

import "github.com/gomamba/mamba/internal/cpu"

//go:generate go run -C _gen .

// level is the instruction set that the kernels use. Only tests change it, to run the same cases at every level that the processor has.
var level = cpu.Best

// asm32 returns v and true if v is a []float32 and the level has assembly.
func asm32[T Float](v []T) ([]float32, bool) {
	if level == cpu.Generic {
		return nil, false
	}
	f, ok := any(v).([]float32)
	return f, ok
}
