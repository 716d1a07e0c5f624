package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// dots writes the kernel for products with one to three vectors. It reads four rows of a large matrix once for all vectors. Rows that are far apart, as
// dotColumns has them, are four long streams, which the processor prefetches too. Prefetches into the first-level cache keep fewer lines on the way. A sparse
// kernel prefetches every second line, for processors that fetch two together: on an AMD processor 3 to 8% faster than a prefetch for each, on an Intel 5% slower.
// With several vectors, which compute longer, it was a tenth slower.
func (g gemm) dots(vectors int, sparse bool) {
	const rows = 4
	name, which := fmt.Sprintf("dots%d", vectors), "The k elements after each row are"
	if sparse {
		name, which = name+"Sparse", "Every second line of the k elements after each row is"
	}
	f := g.Func(name, "func(k int, x *float32, ldx int, w *float32, ldw int, y *float32, ldy, step int, alpha, beta float32, rows int)",
		fmt.Sprintf(`%s multiplies 1 to %d rows of w by %d row(s) of x, all of k ≥ 1 elements:

	for i := range %d {
		for j := range rows {
			y[i*ldy+j*step] = alpha*dot(x[i*ldx:][:k], w[j*ldw:][:k]) + beta*y[i*ldy+j*step] // y is not read if beta is 0
		}
	}

A dot product is summed in as many parts as a vector has lanes. %s prefetched into the second-level cache.`, name, rows, vectors, vectors, which))
	// The pointers to missing rows, and to their results, point to the last row.
	pointers := func(first, distance string, n int, at, left reg.Register) []reg.GPVirtual {
		p, ld := make([]reg.GPVirtual, n), g.bytes(f, distance)
		p[0] = f.Ptr(first)
		if at != nil {
			g.ADDQ(at, p[0])
		}
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
	// The pointers to w and x point past the last whole vector, and at counts from a negative offset up to 0.
	rest, at := f.Int("k"), g.GP64()
	g.MOVQ(rest, at)
	g.ANDQ(operand.U8(g.Lanes()-1), rest)
	g.SUBQ(rest, at)
	tail := g.mask(rest)
	g.SHLQ(operand.U8(2), at)
	w := pointers("w", "ldw", rows, at, f.Int("rows"))
	x := pointers("x", "ldx", vectors, at, nil)
	next := g.GP64() // offset of the same place in the next row of a stream
	f.Load64("k", next)
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
	xv := g.Vecs(vectors)
	multiply := func(offset int, prefetch bool) { // a vector of each row
		for i := range xv {
			g.Load(asm.AtIndex(x[i], at, 1, offset), xv[i])
		}
		for j := range rows {
			from := asm.AtIndex(w[j], at, 1, offset)
			if prefetch {
				g.PREFETCHT1(asm.AtIndex(w[j], next, 1, offset))
			}
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
	}
	g.JE(asm.Label("tail")) // tests the flags of NEGQ, which clearing vector registers does not change
	g.TESTQ(operand.U32(g.Bytes()), at)
	g.JE(asm.Label("loop")) // an even number of vectors
	multiply(0, true)
	g.ADDQ(operand.U8(g.Bytes()), next)
	g.ADDQ(operand.U8(g.Bytes()), at)
	g.JE(asm.Label("tail"))
	g.Label("loop")
	multiply(0, true)
	multiply(g.Bytes(), !sparse && g.ISA == asm.AVX512) // with AVX2 it is the same line
	g.ADDQ(g.Imm(2*g.Bytes()), next)
	g.ADDQ(g.Imm(2*g.Bytes()), at)
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
	alpha, beta, bits := g.XMM(), g.XMM(), g.GP32()
	g.VBROADCASTSS(f.Addr("alpha"), alpha)
	g.VBROADCASTSS(f.Addr("beta"), beta)
	g.MOVL(f.Addr("beta"), bits)
	g.ADDL(bits, bits) // shifts the sign out, so that -0 counts as 0
	y, ldy := pointers("y", "step", rows, nil, f.Int("rows")), g.bytes(f, "ldy")
	for i, s := range sums {
		g.Mul(alpha, s, s)
		store := fmt.Sprint("store", i)
		g.TESTL(bits, bits)
		g.JE(asm.Label(store))
		old := g.XMM()
		g.VMOVSS(asm.At(y[0], 0), old)
		for j := 1; j < rows; j++ {
			g.VINSERTPS(operand.U8(j<<4), asm.At(y[j], 0), old, old)
		}
		g.MulAdd(old, beta, s)
		g.Label(store)
		g.VMOVSS(s, asm.At(y[0], 0))
		for j := 1; j < rows; j++ {
			g.VEXTRACTPS(operand.U8(j), s, asm.At(y[j], 0))
		}
		if i < vectors-1 {
			for _, p := range y {
				g.ADDQ(ldy, p)
			}
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

// sums returns the sums over the lanes of four registers, in one XMM register.
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
	four, high := g.sums4(half), g.XMM()
	g.VEXTRACTF128(operand.U8(1), four, high)
	g.VADDPS(high, four.AsX(), high)
	return high
}
