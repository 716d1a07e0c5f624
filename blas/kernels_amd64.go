//go:build amd64 && !noasm

package blas

import "github.com/gomamba/mamba/internal/cpu"

// current returns the kernels of the level, nil if it has none.
func current() *kernels {
	switch level {
	case cpu.AVX512:
		return &avx512
	case cpu.AVX2:
		return &avx2
	}
	return nil
}

var avx512 = kernels{
	lanes: 16, rows: 8, vectors: 3,
	tile: [9][4]tileFunc{
		1: {1: tile1x1AVX512, 2: tile1x2AVX512, 3: tile1x3AVX512},
		2: {1: tile2x1AVX512, 2: tile2x2AVX512, 3: tile2x3AVX512},
		3: {1: tile3x1AVX512, 2: tile3x2AVX512, 3: tile3x3AVX512},
		4: {1: tile4x1AVX512, 2: tile4x2AVX512, 3: tile4x3AVX512},
		5: {1: tile5x1AVX512, 2: tile5x2AVX512, 3: tile5x3AVX512},
		6: {1: tile6x1AVX512, 2: tile6x2AVX512, 3: tile6x3AVX512},
		7: {1: tile7x1AVX512, 2: tile7x2AVX512, 3: tile7x3AVX512},
		8: {1: tile8x1AVX512, 2: tile8x2AVX512, 3: tile8x3AVX512},
	},
	copyRows:  [4]copyRowsFunc{1: copyRows1AVX512, 2: copyRows2AVX512, 3: copyRows3AVX512},
	transpose: transposeAVX512, packColumns: packColumnsAVX512,
	dots: []dotsFunc{1: dots1(), 2: dots2AVX512, 3: dots3AVX512},
}

func dots1() dotsFunc {
	if cpu.FetchesPairs {
		return dots1SparseAVX512
	}
	return dots1AVX512
}

var avx2 = kernels{
	lanes: 8, rows: 6, vectors: 2,
	tile: [9][4]tileFunc{
		1: {1: tile1x1AVX2, 2: tile1x2AVX2},
		2: {1: tile2x1AVX2, 2: tile2x2AVX2},
		3: {1: tile3x1AVX2, 2: tile3x2AVX2},
		4: {1: tile4x1AVX2, 2: tile4x2AVX2},
		5: {1: tile5x1AVX2, 2: tile5x2AVX2},
		6: {1: tile6x1AVX2, 2: tile6x2AVX2},
	},
	copyRows:  [4]copyRowsFunc{1: copyRows1AVX2, 2: copyRows2AVX2},
	transpose: transposeAVX2, packColumns: packColumnsAVX2,
	dots: []dotsFunc{1: dots1AVX2, 2: dots2AVX2},
}

// narrowKernel returns the kernels of a type at the level, nil if there are none.
func narrowKernel(t Type) *narrowSet {
	switch {
	case level < cpu.AVX2:
		return nil
	case level == cpu.AVX2 || t.quantized() && !cpu.IntegerProducts || t == BFloat16 && !wordProducts():
		return &narrow2[t]
	}
	return &narrow512[t]
}

// wordProducts reports whether there are products of bfloat16. Without them, activations that are rounded to bfloat16 are float32.
func wordProducts() bool { return level == cpu.AVX512 && cpu.BFloat16 }

var narrow512 = [types]narrowSet{
	Float16:  {dotsFloat161AVX512, dotsFloat162AVX512, dotsFloat164AVX512, 16, 1},
	BFloat16: {dotsBFloat161AVX512, dotsBFloat162AVX512, dotsBFloat164AVX512, 32, 1},
	Q8_0:     {dotsQ8_01AVX512, dotsQ8_02AVX512, dotsQ8_04AVX512, 64, 64},
	Q4_0:     {dotsQ4_01AVX512, dotsQ4_02AVX512, dotsQ4_04AVX512, 64, 64},
	Q5_0:     {dotsQ5_01AVX512, dotsQ5_02AVX512, dotsQ5_04AVX512, 64, 64},
	Q5_1:     {dotsQ5_11AVX512, dotsQ5_12AVX512, dotsQ5_14AVX512, 64, 64},
	Q4_K:     {dotsQ4_K1AVX512, dotsQ4_K2AVX512, dotsQ4_K4AVX512, 256, 256},
	Q6_K:     {dotsQ6_K1AVX512, dotsQ6_K2AVX512, dotsQ6_K4AVX512, 256, 256},
}

var narrow2 = [types]narrowSet{
	Float16:  {dotsFloat161AVX2, dotsFloat162AVX2, dotsFloat164AVX2, 32, 8},
	BFloat16: {dotsBFloat161AVX2, dotsBFloat162AVX2, dotsBFloat164AVX2, 32, 8},
	Q8_0:     {dotsQ8_01AVX2, dotsQ8_02AVX2, dotsQ8_04AVX2, 64, 64},
	Q4_0:     {dotsQ4_01AVX2, dotsQ4_02AVX2, dotsQ4_04AVX2, 64, 64},
	Q5_0:     {dotsQ5_01AVX2, dotsQ5_02AVX2, dotsQ5_04AVX2, 64, 64},
	Q5_1:     {dotsQ5_11AVX2, dotsQ5_12AVX2, dotsQ5_14AVX2, 64, 64},
	Q4_K:     {dotsQ4_K1AVX2, dotsQ4_K2AVX2, dotsQ4_K4AVX2, 256, 256},
	Q6_K:     {dotsQ6_K1AVX2, dotsQ6_K2AVX2, dotsQ6_K4AVX2, 256, 256},
}

// quantizeUnits quantizes units of 64 activations and returns how many.
func quantizeUnits(x, to []float32) (units int) {
	if units = len(x) / 64; units == 0 || level < cpu.AVX2 {
		return 0
	}
	quantizeUnitsAVX2(units, &x[0], &to[0])
	return units
}

// roundVectors rounds some activations to bfloat16, as prepareRow does, and returns how many.
func roundVectors(x, to []float32) int {
	lanes, f := 8, func(n int) { roundAVX2(n, &x[0], &to[0]) }
	if wordProducts() {
		lanes, f = 16, func(n int) { roundAVX512(n, &x[0], &words(to)[0]) }
	}
	n := len(x) / lanes
	if n == 0 || level < cpu.AVX2 {
		return 0
	}
	f(n)
	return n * lanes
}

// panelKernel returns the kernels of a type for many rows of activations, nil if there are none.
func panelKernel(t Type) *panelSet {
	switch {
	case narrowKernel(t) != &narrow512[t] || t == Float16 || t == Q6_K: // Q6_K has scales of 16 numbers; it is a type of heads, which read few rows
		return nil
	case t == BFloat16:
		return &words512
	}
	return &quantized512
}

var (
	quantized512 = panelSet{most: 6, numbers: 64, x: quantizedUnit, panel: 2 * blockPanel, unitsAtOnce: 8, rows: [9]panelFunc{
		1: tileQuantized1AVX512, 2: tileQuantized2AVX512, 3: tileQuantized3AVX512, 4: tileQuantized4AVX512, 5: tileQuantized5AVX512, 6: tileQuantized6AVX512,
	}}
	words512 = panelSet{most: 8, numbers: 2, x: 1, panel: panelWidth, unitsAtOnce: 192, rows: [9]panelFunc{
		1: tileBFloat161AVX512, 2: tileBFloat162AVX512, 3: tileBFloat163AVX512, 4: tileBFloat164AVX512,
		5: tileBFloat165AVX512, 6: tileBFloat166AVX512, 7: tileBFloat167AVX512, 8: tileBFloat168AVX512,
	}}
)
