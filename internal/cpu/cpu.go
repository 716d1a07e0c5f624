// Package cpu tells which of the assembly kernels this processor can run.
//
// The choice is made once, when the program starts. GODEBUG=cpu.avx512f=off and cpu.avx2=off in the environment take a
// set of instructions away, as they do for Go's own libraries; the build tag noasm takes away all assembly. (The runtime
// of Go prints a warning for cpu.avx512=off, which works too.)
package cpu

// Level is a set of instructions that kernels are written for.
type Level int

// The levels, each including the one before it.
const (
	Generic Level = iota // Go alone
	AVX2                 // AVX2 and FMA
	AVX512               // AVX-512 F, CD, BW, DQ and VL: every processor with AVX-512 since Skylake-SP
)

func (l Level) String() string { return [...]string{"generic", "avx2", "avx512"}[l] }

// Best is the highest level that this processor runs.
var Best = detect()
