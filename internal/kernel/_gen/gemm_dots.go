package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// dots writes the kernel for products with one to three vectors. It reads eight rows of a large matrix once, from memory in order, for all
// vectors.
func (g gemm) dots(vectors int) {
	const rows = 8
	name := fmt.Sprintf("dots%d", vectors)
	f := g.Func(name, "func(k int, x *float32, ldx int, w *float32, ldw int, y *float32, ldy int, alpha, beta float32, rows, ahead int)",
		fmt.Sprintf(`%s multiplies 1 to 8 rows of w by %d row(s) of x, all of k ≥ 1 elements:

	for i := range %d {
		for j := range rows {
			y[i*ldy+j] = alpha*dot(x[i*ldx:][:k], w[j*ldw:][:k]) + beta*y[i*ldy+j] // y is not read if beta is 0
		}
	}

A dot product is summed in as many parts as a vector has lanes. The rows that are ahead rows on are prefetched; at the end of w, ahead is 0.`, name, vectors, vectors))
	// The pointers to missing rows point to the last row. All pointers point past the last whole vector, and at counts from a negative offset
	// up to 0.
	rest, at := f.Int("k"), g.GP64()
	g.MOVQ(rest, at)
	g.ANDQ(operand.U8(g.Lanes()-1), rest)
	g.SUBQ(rest, at)
	tail := g.mask(rest)
	g.SHLQ(operand.U8(2), at)
	pointers := func(first, distance string, n int, left reg.Register) []reg.GPVirtual {
		p, ld := make([]reg.GPVirtual, n), g.bytes(f, distance)
		p[0] = f.Ptr(first)
		g.ADDQ(at, p[0])
		for j := 1; j < n; j++ {
			if left != nil {
				none := g.GP64()
				g.MOVQ(operand.U32(0), none)
				g.CMPQ(left, operand.U8(j+1))
				g.CMOVQLT(none, ld)
			}
			p[j] = g.GP64()
			g.LEAQ(asm.AtIndex(p[j-1], ld, 1, 0), p[j])
		}
		return p
	}
	w := pointers("w", "ldw", rows, f.Int("rows"))
	x := pointers("x", "ldx", vectors, nil)
	next := g.GP64() // offset of the same place in the rows to prefetch
	f.Load64("ldw", next)
	g.IMULQ(f.Addr("ahead"), next)
	g.SHLQ(operand.U8(2), next)
	g.SUBQ(at, next)
	g.NEGQ(at)

	acc := make([][]reg.VecVirtual, vectors)
	for i := range acc {
		acc[i] = g.Vecs(rows)
		for _, r := range acc[i] {
			g.Zero(r)
		}
	}
	g.JE(asm.Label("tail")) // tests the flags of NEGQ, which clearing vector registers does not change
	g.Label("loop")
	xv := g.Vecs(vectors)
	for i := range xv {
		g.Load(asm.AtIndex(x[i], at, 1, 0), xv[i])
	}
	for j := range rows {
		from := asm.AtIndex(w[j], at, 1, 0)
		g.PREFETCHT0(asm.AtIndex(w[j], next, 1, 0))
		if vectors == 1 {
			g.MulAdd(from, xv[0], acc[0][j])
			continue
		}
		wv := g.Vec()
		g.Load(from, wv)
		for i := range vectors {
			g.MulAdd(wv, xv[i], acc[i][j])
		}
	}
	g.ADDQ(operand.U8(g.Bytes()), next)
	g.ADDQ(operand.U8(g.Bytes()), at)
	g.JNE(asm.Label("loop"))

	g.Label("tail")
	for i := range xv {
		g.loadMasked(tail, asm.At(x[i], 0), xv[i])
	}
	for j := range rows {
		wv := g.Vec()
		g.loadMasked(tail, asm.At(w[j], 0), wv)
		for i := range vectors {
			g.MulAdd(wv, xv[i], acc[i][j])
		}
	}

	sums := make([]reg.VecVirtual, vectors)
	for i := range sums {
		sums[i] = g.sums(acc[i])
	}
	m := g.mask(f.Int("rows"))
	y, ldy := f.Ptr("y"), g.bytes(f, "ldy")
	alpha, beta, bits := g.YMM(), g.YMM(), g.GP32()
	g.VBROADCASTSS(f.Addr("alpha"), alpha)
	g.VBROADCASTSS(f.Addr("beta"), beta)
	for _, s := range sums {
		g.Mul(alpha, s, s)
	}
	g.MOVL(f.Addr("beta"), bits)
	g.ADDL(bits, bits) // shifts the sign out, so that -0 counts as 0
	g.JE(asm.Label("store"))
	for i, s := range sums {
		old := g.YMM()
		g.loadMasked(m, asm.At(y, 0), old)
		g.MulAdd(old, beta, s)
		if i < vectors-1 {
			g.ADDQ(ldy, y)
		}
	}
	f.Load64("y", y)
	g.Label("store")
	for i, s := range sums {
		g.storeMasked(m, s, asm.At(y, 0))
		if i < vectors-1 {
			g.ADDQ(ldy, y)
		}
	}
	f.Return()
}

// pairs combines two registers with one of the lower and one of the upper halves of each 128 bits, and adds the two.
func (g gemm) pairs(a, b reg.VecVirtual, low, high func(...operand.Op)) reg.VecVirtual {
	l, h := g.YMM(), g.YMM()
	low(b, a, l)
	high(b, a, h)
	g.Add(h, l, l)
	return l
}

// sums4 returns the sums over the lanes of each 128 bits of four YMM registers.
func (g gemm) sums4(v []reg.VecVirtual) reg.VecVirtual {
	ab := g.pairs(v[0], v[1], g.VUNPCKLPS, g.VUNPCKHPS)
	cd := g.pairs(v[2], v[3], g.VUNPCKLPS, g.VUNPCKHPS)
	return g.pairs(ab, cd, g.VUNPCKLPD, g.VUNPCKHPD)
}

// sums returns the sums over the lanes of eight registers, in one YMM register. It first adds the halves of each register, then combines
// pairs of registers.
func (g gemm) sums(v []reg.VecVirtual) reg.VecVirtual {
	half := make([]reg.VecVirtual, len(v))
	for i, z := range v {
		half[i] = z
		if g.ISA == asm.AVX512 {
			y := g.YMM()
			g.VEXTRACTF64X4(operand.U8(1), z, y)
			half[i] = g.YMM()
			g.Add(y, z.AsY(), half[i])
		}
	}
	var four [2]reg.VecVirtual
	for i := range four {
		four[i] = g.sums4(half[4*i:])
	}
	low, high := g.YMM(), g.YMM()
	g.VPERM2F128(operand.U8(0x20), four[1], four[0], low)
	g.VPERM2F128(operand.U8(0x31), four[1], four[0], high)
	g.Add(high, low, low)
	return low
}
