package blas

import "github.com/gomamba/mamba/internal/cpu"

// level is the set of instructions that the kernels use. Only tests change it.
var level = cpu.Best

// kernels has the assembly functions of one set of instructions. Each function's declaration says what it computes.
type kernels struct {
	lanes   int // float32 in a vector
	rows    int // of a full tile
	vectors int // of columns in a full tile

	tile                  [9][4]func(k int, a *float32, aRow, aCol int, b *float32, ldb int, c *float32, ldc int, alpha, beta float32, width int)
	copyRows              [4]func(rows int, from *float32, ldFrom int, to *float32, ldTo int, width int)
	transpose             func(k int, from *float32, ldFrom int, rows int, to *float32, ldTo int)
	packRows, packColumns func(k int, from *float32, ldFrom int, to *float32, rows int)
	dots                  []func(k int, x *float32, ldx int, w *float32, ldw int, y *float32, ldy int, alpha, beta float32, rows int)
}
