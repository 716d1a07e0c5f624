package blas

import "github.com/gomamba/mamba/internal/cpu"

// level is the set of instructions that the kernels use. Only tests change it.
var level = cpu.Best

// The types of the assembly functions. Their declarations say what they compute. They take BLAS's usual arguments, not a pointer to a struct
// as the assembly of internal/kernel does: they are called through variables, so each task would have to allocate or borrow the struct, also
// for a product that takes less time than that.
type (
	tileFunc      func(k int, a *float32, aRow, aCol int, b *float32, ldb int, c *float32, ldc int, alpha, beta float32, width int)
	dotsFunc      func(k int, x *float32, ldx int, w *float32, ldw int, y *float32, ldy, step int, alpha, beta float32, rows int)
	copyRowsFunc  func(rows int, from *float32, ldFrom int, to *float32, ldTo int, width int)
	transposeFunc func(k int, from *float32, ldFrom int, rows int, to *float32, ldTo int)
	packFunc      func(k int, from *float32, ldFrom int, to *float32, rows int)
)

// kernels has the assembly functions of one set of instructions.
type kernels struct {
	lanes   int // float32 in a vector
	rows    int // of a full tile
	vectors int // of columns in a full tile

	tile        [9][4]tileFunc // by rows and vectors
	copyRows    [4]copyRowsFunc
	transpose   transposeFunc
	packColumns packFunc
	dots        []dotsFunc
}
