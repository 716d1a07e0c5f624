package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// writeGemm writes the kernels of the matrix product, package blas.
func writeGemm(isa asm.ISA) {
	g := gemm{File: asm.NewFile("../../../blas", isa)}
	g.masks = g.maskTable("masks")
	rows, vectors := 8, 3 // 24 sums in 32 registers
	if isa == asm.AVX2 {
		rows, vectors = 6, 2 // 12 in 16
	}
	for r := 1; r <= rows; r++ {
		for v := 1; v <= vectors; v++ {
			g.tile(r, v)
		}
	}
	for v := 1; v <= vectors; v++ {
		g.copyRows(v)
	}
	g.transpose()
	g.packColumns()
	for v := 1; v <= vectors; v++ {
		g.dots(v, false)
	}
	if isa == asm.AVX512 {
		g.dots(1, true)
	}
	g.Write("gemm")
}

type gemm struct {
	*asm.File
	masks operand.Mem
}

// gemmMask limits loads and stores to the first lanes of a vector.
type gemmMask struct {
	k reg.Register // AVX-512
	v reg.Register // AVX2
}

// maskTable returns a table in read-only memory with the masks for every number of lanes.
func (g gemm) maskTable(name string) operand.Mem {
	m := g.StaticGlobal(name + g.ISA.String())
	g.DataAttributes(attr.RODATA | attr.NOPTR)
	if g.ISA == asm.AVX512 {
		for n := 0; n <= 16; n++ {
			g.AddDatum(2*n, operand.U16(1<<n-1))
		}
	} else {
		for i := range 16 {
			var bits uint32
			if i < 8 {
				bits = 1<<32 - 1
			}
			g.AddDatum(4*i, operand.U32(bits))
		}
	}
	return m
}

// mask loads the mask of the first n lanes. It overwrites n.
func (g gemm) mask(n reg.Register) (m gemmMask) {
	base := g.GP64()
	g.LEAQ(g.masks, base)
	if g.ISA == asm.AVX512 {
		m.k = g.K()
		g.KMOVW(asm.AtIndex(base, n, 2, 0), m.k)
		return m
	}
	m.v = g.YMM()
	g.NEGQ(n)
	g.VMOVUPS(asm.AtIndex(base, n, 4, 32), m.v)
	return m
}

func (g gemm) loadMasked(m gemmMask, from operand.Mem, to reg.Register) {
	if g.ISA == asm.AVX512 {
		g.VMOVUPS_Z(from, m.k, to)
	} else {
		g.VMASKMOVPS(from, m.v, to)
	}
}

func (g gemm) storeMasked(m gemmMask, v reg.Register, to operand.Mem) {
	if g.ISA == asm.AVX512 {
		g.VMOVUPS(v, m.k, to)
	} else {
		g.VMASKMOVPS(v, m.v, to)
	}
}

// gemmStrided holds eight equally spaced addresses in five registers.
type gemmStrided struct{ base, by1, by3, by5, by7 reg.Register }

// strided returns the addresses base + i·by, i < n, by in bytes. It uses only the registers that n addresses need.
func (g gemm) strided(base, by reg.Register, n int) gemmStrided {
	s := gemmStrided{base: base, by1: by}
	for _, m := range []struct {
		n    int
		from *reg.Register
		to   *reg.Register
	}{{3, &s.by1, &s.by3}, {5, &s.by3, &s.by5}, {7, &s.by5, &s.by7}} {
		if n > m.n {
			r := g.GP64()
			g.LEAQ(asm.AtIndex(*m.from, by, 2, 0), r)
			*m.to = r
		}
	}
	return s
}

func (s gemmStrided) at(i int) operand.Mem {
	switch i {
	case 0:
		return asm.At(s.base, 0)
	case 1, 2, 4:
		return asm.AtIndex(s.base, s.by1, uint8(i), 0)
	case 3, 6:
		return asm.AtIndex(s.base, s.by3, uint8(i/3), 0)
	case 5:
		return asm.AtIndex(s.base, s.by5, 1, 0)
	}
	return asm.AtIndex(s.base, s.by7, 1, 0)
}

// bytes loads an int argument that is a number of float32, and converts it to bytes.
func (g gemm) bytes(f *asm.Func, name string) reg.GPVirtual {
	r := f.Int(name)
	g.SHLQ(operand.U8(2), r)
	return r
}

// tile writes the kernel of the product, which has rows × vectors sums in registers.
func (g gemm) tile(rows, vectors int) {
	name := fmt.Sprintf("tile%dx%d", rows, vectors)
	f := g.Func(name, "func(k int, a *float32, aRow, aCol int, b *float32, ldb int, c *float32, ldc int, alpha, beta float32, width int)",
		fmt.Sprintf(`%s computes c = alpha·a·b + beta·c for %d row(s) of c and %d vector(s) of columns, the last of width lanes:

	for i := range %d {
		for j := range columns {
			var sum float32
			for l := range k {
				sum = fma(a[i*aRow+l*aCol], b[l*ldb+j], sum)
			}
			c[i*ldc+j] = alpha*sum + beta*c[i*ldc+j] // c is not read if beta is 0
		}
	}`, name, rows, vectors, rows))
	m := g.mask(f.Int("width"))
	k, a, b := f.Int("k"), f.Ptr("a"), f.Ptr("b")
	at := g.strided(a, g.bytes(f, "aRow"), rows)
	aCol, ldb := g.bytes(f, "aCol"), g.bytes(f, "ldb")

	// The tile of c is needed at the end, so it is prefetched here.
	c, ldc := f.Ptr("c"), g.bytes(f, "ldc")
	for i := range rows {
		for v := range vectors {
			g.PREFETCHT0(asm.At(c, v*g.Bytes()))
		}
		if i < rows-1 {
			g.ADDQ(ldc, c)
		}
	}

	acc := make([][]reg.VecVirtual, rows)
	for i := range acc {
		acc[i] = g.Vecs(vectors)
		for _, r := range acc[i] {
			g.Zero(r)
		}
	}
	// A tile of few rows is limited by the loads of B. The processor does not prefetch its rows, which are often pages apart.
	var ahead reg.GPVirtual
	if rows <= 2 {
		ahead = g.GP64()
		g.LEAQ(asm.AtIndex(b, ldb, 8, 0), ahead)
	}
	g.TESTQ(k, k)
	g.JE(asm.Label("done"))
	g.Label("loop")
	if rows <= 2 {
		for i := 0; i < vectors*g.Bytes(); i += 64 {
			g.PREFETCHT0(asm.At(ahead, i))
		}
		g.ADDQ(ldb, ahead)
	}
	bv := g.Vecs(vectors)
	for v := range vectors - 1 {
		g.Load(asm.At(b, v*g.Bytes()), bv[v])
	}
	g.loadMasked(m, asm.At(b, (vectors-1)*g.Bytes()), bv[vectors-1])
	for i := range rows {
		if vectors == 1 {
			g.MulAddScalar(at.at(i), bv[0], acc[i][0])
			continue
		}
		s := g.Vec()
		g.Broadcast(at.at(i), s)
		for v := range vectors {
			g.MulAdd(bv[v], s, acc[i][v])
		}
	}
	g.ADDQ(aCol, a)
	g.ADDQ(ldb, b)
	g.DECQ(k)
	g.JNE(asm.Label("loop"))

	g.Label("done")
	alpha := g.Vec()
	g.Broadcast(f.Addr("alpha"), alpha)
	for i := range acc {
		for _, r := range acc[i] {
			g.Mul(alpha, r, r)
		}
	}
	c, ldc = f.Ptr("c"), g.bytes(f, "ldc")
	beta := g.GP32()
	g.MOVL(f.Addr("beta"), beta)
	g.ADDL(beta, beta) // shifts the sign out, so that -0 counts as 0
	g.JE(asm.Label("store"))
	betaV := g.Vec()
	g.Broadcast(f.Addr("beta"), betaV)
	for i := range rows {
		for v := range vectors {
			old := g.Vec()
			if v < vectors-1 {
				g.MulAdd(asm.At(c, v*g.Bytes()), betaV, acc[i][v])
			} else {
				g.loadMasked(m, asm.At(c, v*g.Bytes()), old)
				g.MulAdd(old, betaV, acc[i][v])
			}
		}
		if i < rows-1 {
			g.ADDQ(ldc, c)
		}
	}
	f.Load64("c", c)
	g.Label("store")
	for i := range rows {
		for v := range vectors - 1 {
			g.Store(acc[i][v], asm.At(c, v*g.Bytes()))
		}
		g.storeMasked(m, acc[i][vectors-1], asm.At(c, (vectors-1)*g.Bytes()))
		if i < rows-1 {
			g.ADDQ(ldc, c)
		}
	}
	f.Return()
}
