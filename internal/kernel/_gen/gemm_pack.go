package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// copyRows writes the kernel that packs a matrix whose elements are already in the order of the product kernel.
func (g gemm) copyRows(vectors int) {
	name := fmt.Sprintf("copyRows%d", vectors)
	f := g.Func(name, "func(rows int, from *float32, ldFrom int, to *float32, ldTo int, width int)",
		fmt.Sprintf(`%s copies rows ≥ 1 rows of %d vector(s). It reads width lanes of the last vector and writes zeros to its other lanes:

	for i := range rows {
		copy(to[i*ldTo:], from[i*ldFrom:][:columns])
		clear(to[i*ldTo:][columns:vectors])
	}`, name, vectors))
	m := g.mask(f.Int("width"))
	rows, from, to := f.Int("rows"), f.Ptr("from"), f.Ptr("to")
	ldFrom, ldTo := g.bytes(f, "ldFrom"), g.bytes(f, "ldTo")
	// The processor does not prefetch the rows, which are often pages apart.
	ahead := g.GP64()
	g.LEAQ(asm.AtIndex(from, ldFrom, 8, 0), ahead)
	g.Label("loop")
	for i := 0; i < vectors*g.Bytes(); i += 64 {
		g.PREFETCHT0(asm.At(ahead, i))
	}
	v := g.Vecs(vectors)
	for i := range vectors - 1 {
		g.Load(asm.At(from, i*g.Bytes()), v[i])
	}
	g.loadMasked(m, asm.At(from, (vectors-1)*g.Bytes()), v[vectors-1])
	for i := range vectors {
		g.Store(v[i], asm.At(to, i*g.Bytes()))
	}
	g.ADDQ(ldFrom, from)
	g.ADDQ(ldFrom, ahead)
	g.ADDQ(ldTo, to)
	g.DECQ(rows)
	g.JNE(asm.Label("loop"))
	f.Return()
}

// transpose writes the kernel that packs the transpose of a matrix.
func (g gemm) transpose() {
	n := g.Lanes()
	f := g.Func("transpose", "func(k int, from *float32, ldFrom int, rows int, to *float32, ldTo int)",
		`transpose copies rows of k ≥ 1 elements, at least one and at most as many as a vector has lanes, into columns. Missing rows
become zeros:

	for l := range k {
		for i := range lanes {
			to[l*ldTo+i] = from[i*ldFrom+l] // 0 for i ≥ rows
		}
	}`)
	k, from, rows, to := f.Int("k"), f.Ptr("from"), f.Int("rows"), f.Ptr("to")
	ldFrom, ldTo := g.bytes(f, "ldFrom"), g.bytes(f, "ldTo")
	at := g.strided(from, ldFrom, 8)
	upper := at
	if n > 8 {
		upper.base = g.GP64()
		g.LEAQ(asm.AtIndex(from, ldFrom, 8, 0), upper.base)
	}
	g.Label("loop")
	m := g.maskUpTo(k)
	columns := g.shuffled(g.loadRows(m, rows, n, func(i int) operand.Mem {
		if i < 8 {
			return at.at(i)
		}
		return upper.at(i - 8)
	}))
	for i, c := range columns {
		if i > 0 {
			g.CMPQ(k, operand.U8(i))
			g.JE(asm.Label("done"))
		}
		g.Store(c, asm.At(to, 0))
		g.ADDQ(ldTo, to)
	}
	g.ADDQ(operand.U8(g.Bytes()), from)
	if n > 8 {
		g.ADDQ(operand.U8(g.Bytes()), upper.base)
	}
	g.SUBQ(operand.U8(n), k)
	g.JNE(asm.Label("loop"))
	g.Label("done")
	f.Return()
}

// maskUpTo returns the mask of the first k lanes, or of all lanes if k is larger.
func (g gemm) maskUpTo(k reg.Register) gemmMask {
	count := g.GP64()
	g.MOVQ(operand.U32(g.Lanes()), count)
	g.CMPQ(k, count)
	g.CMOVQLT(k, count)
	return g.mask(count)
}

// loadRows writes the code that loads a vector from each of rows rows, 1 ≤ rows ≤ n, and sets the other n-rows vectors to zero.
func (g gemm) loadRows(m gemmMask, rows reg.Register, n int, at func(i int) operand.Mem) []reg.VecVirtual {
	v := g.Vecs(n)
	for i := range n {
		if i > 0 {
			g.CMPQ(rows, operand.U8(i))
			g.JE(asm.Label(fmt.Sprintf("zero%d", i)))
		}
		g.loadMasked(m, at(i), v[i])
	}
	g.JMP(asm.Label("shuffle"))
	for i := 1; i < n; i++ {
		g.Label(fmt.Sprintf("zero%d", i))
		g.Zero(v[i])
	}
	g.Label("shuffle")
	return v
}

// packColumns writes the kernel that packs rows of a transposed A, eight elements for each k.
func (g gemm) packColumns() {
	f := g.Func("packColumns", "func(k int, from *float32, ldFrom int, to *float32, width int)",
		`packColumns copies k ≥ 1 rows of 1 to 8 elements into rows of eight. Missing elements become zeros:

	for l := range k {
		for i := range 8 {
			to[8*l+i] = from[l*ldFrom+i] // 0 for i ≥ width
		}
	}`)
	m := g.mask(f.Int("width"))
	k, from, ldFrom, to := f.Int("k"), f.Ptr("from"), g.bytes(f, "ldFrom"), f.Ptr("to")
	v := g.YMM()
	g.Label("loop")
	g.PREFETCHT1(asm.At(from, 64)) // for the next calls
	g.loadMasked(m, asm.At(from, 0), v)
	g.VMOVUPS(v, asm.At(to, 0))
	g.ADDQ(ldFrom, from)
	g.ADDQ(operand.U8(32), to)
	g.DECQ(k)
	g.JNE(asm.Label("loop"))
	f.Return()
}

// shuffled returns the transpose of a square matrix of registers. It first transposes 4×4 blocks within 128 bits, then moves the blocks.
func (g gemm) shuffled(v []reg.VecVirtual) []reg.VecVirtual {
	n := len(v)
	g.quarters(v)
	columns := make([]reg.VecVirtual, n)
	if g.ISA == asm.AVX2 {
		for j := range 4 {
			columns[j], columns[4+j] = g.Vec(), v[4+j]
			g.VPERM2F128(operand.U8(0x20), v[4+j], v[j], columns[j])
			g.VPERM2F128(operand.U8(0x31), v[4+j], v[j], columns[4+j])
		}
		return columns
	}
	for j := range 4 {
		a, b, c, d := v[j], v[4+j], v[8+j], v[12+j]
		even0, odd0, even1, odd1 := g.Vec(), g.Vec(), g.Vec(), g.Vec()
		g.VSHUFF32X4(operand.U8(0x88), b, a, even0)
		g.VSHUFF32X4(operand.U8(0xdd), b, a, odd0)
		g.VSHUFF32X4(operand.U8(0x88), d, c, even1)
		g.VSHUFF32X4(operand.U8(0xdd), d, c, odd1)
		g.VSHUFF32X4(operand.U8(0x88), even1, even0, a)
		g.VSHUFF32X4(operand.U8(0x88), odd1, odd0, b)
		g.VSHUFF32X4(operand.U8(0xdd), even1, even0, c)
		g.VSHUFF32X4(operand.U8(0xdd), odd1, odd0, d)
		columns[j], columns[4+j], columns[8+j], columns[12+j] = a, b, c, d
	}
	return columns
}

// quarters transposes the 4×4 block in each 128 bits of four rows. Then the p-th 128 bits of v[4q+j] hold column 4p+j of rows 4q…4q+3.
func (g gemm) quarters(v []reg.VecVirtual) {
	for q := 0; q < len(v); q += 4 {
		ab0, ab1, cd0, cd1 := g.Vec(), g.Vec(), g.Vec(), g.Vec()
		g.VUNPCKLPS(v[q+1], v[q], ab0)
		g.VUNPCKHPS(v[q+1], v[q], ab1)
		g.VUNPCKLPS(v[q+3], v[q+2], cd0)
		g.VUNPCKHPS(v[q+3], v[q+2], cd1)
		g.VUNPCKLPD(cd0, ab0, v[q])
		g.VUNPCKHPD(cd0, ab0, v[q+1])
		g.VUNPCKLPD(cd1, ab1, v[q+2])
		g.VUNPCKHPD(cd1, ab1, v[q+3])
	}
}
