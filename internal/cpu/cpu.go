// Package cpu reports which assembly kernels this processor can run.
//
// The choice is made once, when the program starts. GODEBUG=cpu.avx512f=off or GODEBUG=cpu.avx2=off in the environment disables an
// instruction set, as it does for Go's own libraries. GODEBUG=cpu.avx512=off works too, but Go's runtime prints a warning. The build tag
// noasm disables all assembly.
package cpu

// Level is an instruction set for which there are kernels.
type Level int

// The levels. Each includes the levels before it.
const (
	Generic Level = iota // only Go, no assembly
	AVX2                 // AVX2, FMA and F16C
	AVX512               // AVX-512 F, CD, BW, DQ and VL: every processor with AVX-512 since Skylake-SP
)

func (l Level) String() string { return [...]string{"generic", "avx2", "avx512"}[l] }

// Best is the highest level that this processor runs.
var Best = detect()

// IntegerProducts and BFloat16 report whether a processor at level AVX512 also has AVX512-VNNI, the products of 8 bits, and AVX512-BF16.
var IntegerProducts, BFloat16 = detectMore()

// FetchesPairs reports whether a prefetch of one line of the cache is enough for two, and faster than one for each: so on AMD's Zen 4, while on Intel's
// Sapphire Rapids it is slower.
var FetchesPairs = detectPairs()
