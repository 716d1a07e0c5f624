package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// writeWeights writes the products of package blas with narrow weights, for AVX-512 with VNNI and BF16, and for AVX2 with F16C.
func writeWeights(isa asm.ISA) {
	g := &weights{gemm: gemm{File: asm.NewFile("../../../blas", isa)}}
	if isa == asm.AVX2 {
		g.writeAVX2()
		return
	}
	g.masks = g.maskTable("wordMasks")
	g.round()
	for _, v := range []int{1, 2, 4} {
		g.halves("Float16", v)
		g.halves("BFloat16", v)
		for _, t := range quantizedTypes {
			g.dots(t, v)
		}
	}
	for rows := 1; rows <= 8; rows++ {
		if rows <= 6 {
			g.quantizedTile(rows) // 12 sums of integers and 12 of float32 in 32 registers
		}
		g.wordsTile(rows)
	}
	g.Write("weights")
}

type weights struct {
	gemm
	f    *asm.Func
	next gemmStrided

	units reg.GPVirtual // that are left, of a tile
}

// rowsFor returns how many rows of weights are read together with v rows of activations.
func rowsFor(v int) int {
	if v == 4 {
		return 2
	}
	return 4
}

const weightsSignature = "func(units int, x *float32, ldx int, w *byte, ldw int, y *float32, ldy int, groups, add, tail int)"

// begin begins a kernel: its function, and the loop over groups of rows of weights.
func (g *weights) begin(name string, v int, doc string) (acc [][]reg.VecVirtual) {
	rows := rowsFor(v)
	g.f = g.Func(fmt.Sprintf("dots%s%d", name, v), weightsSignature,
		fmt.Sprintf("dots%s%d multiplies groups·%d rows of w, ldw bytes apart, by %d row(s) of x, ldx float32 apart: y[i*ldy+j], added to what is there if add is 1. %s", name, v, rows, v, doc))
	g.Label("group")
	for range rows {
		acc = append(acc, g.Vecs(v))
	}
	for _, a := range acc {
		for _, r := range a {
			g.Zero(r)
		}
	}
	return acc
}

// chunk returns the addresses of n rows of weights of a group from row first on, and of the activations.
func (g *weights) chunk(first, n, v int) (w, x gemmStrided) {
	ldw := g.f.Int("ldw")
	w = g.strided(g.f.Ptr("w"), ldw, n)
	for range first {
		g.ADDQ(ldw, w.base)
	}
	if g.next = w; n > 1 {
		g.next.base = g.GP64()
		g.LEAQ(asm.AtIndex(w.base, w.by1, uint8(n), 0), g.next.base)
	}
	return w, g.strided(g.f.Ptr("x"), g.bytes(g.f, "ldx"), v)
}

// prefetch fetches what is read after this: of several rows the same place in the next rows, of one row what follows.
func (g *weights) prefetch(w gemmStrided, j, n, offsetBytes int) {
	if n > 1 {
		g.PREFETCHT0(offset(g.next.at(j), offsetBytes))
	} else {
		g.PREFETCHT0(offset(w.at(j), 2048+offsetBytes))
	}
}

// step moves the addresses of weights.
func (g *weights) step(w gemmStrided, n, bytes int) {
	g.ADDQ(operand.U32(bytes), w.base)
	if n > 1 {
		g.ADDQ(operand.U32(bytes), g.next.base)
	}
}

// end stores the sums of a group and goes on to the next group.
func (g *weights) end(v int, acc [][]reg.VecVirtual) {
	rows := rowsFor(v)
	y, ldy, add := g.f.Ptr("y"), g.bytes(g.f, "ldy"), g.f.Int("add")
	for i := range v {
		half := make([]reg.VecVirtual, rows)
		for j := range rows {
			if half[j] = acc[j][i]; g.ISA == asm.AVX512 {
				high := g.YMM()
				g.VEXTRACTF64X4(operand.U8(1), acc[j][i], high)
				half[j] = g.YMM()
				g.VADDPS(high, acc[j][i].AsY(), half[j])
			}
		}
		var sum reg.VecVirtual
		if rows == 4 {
			sum = g.sums4(half)
		} else {
			ab := g.pairs(half[0], half[1], g.VUNPCKLPS, g.VUNPCKHPS)
			sum = g.pairs(ab, ab, g.VUNPCKLPD, g.VUNPCKHPD) // the two sums twice
		}
		high := g.XMM()
		if g.ISA == asm.AVX512 {
			g.VEXTRACTF32X4(operand.U8(1), sum, high)
		} else {
			g.VEXTRACTF128(operand.U8(1), sum, high)
		}
		g.VADDPS(high, sum.AsX(), high)
		label := fmt.Sprintf("store%d", i)
		g.TESTQ(add, add)
		g.JE(asm.Label(label))
		if rows == 4 {
			g.VADDPS(asm.At(y, 0), high, high)
		} else {
			old := g.XMM()
			g.VMOVSD(asm.At(y, 0), old)
			g.VADDPS(old, high, high)
		}
		g.Label(label)
		if rows == 4 {
			g.VMOVUPS(high, asm.At(y, 0))
		} else {
			g.VMOVLPS(high, asm.At(y, 0))
		}
		if i < v-1 {
			g.ADDQ(ldy, y)
		}
	}
	// The next group: the arguments are moved, as there are too few registers to keep them.
	next := g.f.Int("ldw")
	g.IMUL3Q(operand.U32(rows), next, next)
	g.ADDQ(next, g.f.Addr("w"))
	g.ADDQ(operand.U32(4*rows), g.f.Addr("y"))
	g.DECQ(g.f.Addr("groups"))
	g.JNE(asm.Label("group"))
	g.f.Return()
}

// halves writes the kernel for numbers of 16 bits. Activations are float32 for float16, and bfloat16 for bfloat16.
func (g *weights) halves(name string, v int) {
	bf := name == "BFloat16"
	doc := "A unit is 16 numbers of float16 and as many float32 of x; tail more follow."
	step, xStep := 32, 64
	if bf {
		doc = "A unit is 32 numbers of bfloat16 of w and of x; tail more follow."
		step, xStep = 64, 64
	}
	acc := g.begin(name, v, doc)
	for c := range acc {
		g.halvesOf(bf, step, xStep, c, v, acc[c:c+1])
	}
	g.end(v, acc)
}

// halvesOf multiplies one row of a group after the other, which reads memory in order.
func (g *weights) halvesOf(bf bool, step, xStep, first, v int, acc [][]reg.VecVirtual) {
	label := func(name string) string { return fmt.Sprint(name, first) }
	w, x := g.chunk(first, 1, v)
	multiply := func(wv reg.VecVirtual, xv func(i int) reg.VecVirtual) {
		for i := range v {
			if xv := xv(i); bf {
				g.VPDPWSSD(wv, xv, acc[0][i]) // File.Write makes VDPBF16PS of it
			} else {
				g.VFMADD231PS(wv, xv, acc[0][i])
			}
		}
	}
	units := g.f.Int("units")
	g.TESTQ(units, units)
	g.JE(asm.Label(label("tail")))
	g.Label(label("loop"))
	wv := g.ZMM()
	g.prefetch(w, 0, 1, 0)
	if bf {
		g.VMOVDQU64(w.at(0), wv)
	} else {
		g.VCVTPH2PS(w.at(0), wv)
	}
	multiply(wv, func(i int) reg.VecVirtual {
		r := g.ZMM()
		g.VMOVUPS(x.at(i), r)
		return r
	})
	g.step(w, 1, step)
	g.ADDQ(operand.U32(xStep), x.base)
	g.DECQ(units)
	g.JNE(asm.Label(label("loop")))
	g.Label(label("tail"))
	tail := g.f.Int("tail")
	g.TESTQ(tail, tail)
	g.JE(asm.Label(label("done")))
	k := g.K()
	if bf { // the mask of 32 words from a count
		ones, bits := g.GP64(), g.GP64()
		g.MOVQ(operand.I32(-1), ones)
		g.BZHIQ(tail, ones, bits)
		g.KMOVD(bits.As32(), k)
		g.VMOVDQU16_Z(w.at(0), k, wv)
	} else {
		k = g.mask(tail).k.(reg.OpmaskVirtual)
		h := g.YMM()
		g.VMOVDQU16_Z(w.at(0), k, h)
		g.VCVTPH2PS(h, wv)
	}
	multiply(wv, func(i int) reg.VecVirtual {
		r := g.ZMM()
		if bf {
			g.VMOVDQU16_Z(x.at(i), k, r)
		} else {
			g.VMOVUPS_Z(x.at(i), k, r)
		}
		return r
	})
	g.Label(label("done"))
}

func offset(m operand.Mem, n int) operand.Mem {
	m.Disp += n
	return m
}

// quantizedType describes a quantized type.
type quantizedType struct {
	name         string
	block, bytes int // numbers and bytes of a block
	zero         int // what is subtracted from the numbers that unit returns, which are not negative
	scale        int // where a block of 32 has its float16
	together     int // rows that are read together for one activation: one, so that memory is read in order, or more, which shares the work on it
}

var quantizedTypes = []quantizedType{
	{"Q8_0", 32, 34, 128, 0, 1},
	{"Q4_0", 32, 18, 8, 0, 4},
	{"Q5_0", 32, 22, 16, 0, 4},
	{"Q5_1", 32, 24, 0, 0, 4},
	{"Q4_K", 256, 144, 0, 0, 4},
	{"Q6_K", 256, 210, 32, 208, 1},
}

// The bytes of 64 activations, as quantized has them in blas: 64 numbers, the two scales, the two sums.
const (
	unitBytes  = 80
	unitScales = 64
	unitSums   = 72
)

// dots writes the kernel for a quantized type. It multiplies 64 numbers at a time, four in each lane, and sums in float32 with the scales of weights and
// activations.
func (g *weights) dots(t quantizedType, v int) {
	all := g.begin(t.name, v, "A unit is 64 numbers, or 256 if a block has as many, and x is quantized.")
	c := g.constants(t)
	rows := rowsFor(v)
	if v == 1 { // several activations take longer than memory
		rows = min(rows, t.together)
	}
	for first := 0; first < len(all); first += rows {
		g.dotsOf(t, c, first, v, all[first:first+rows])
	}
	g.end(v, all)
}

// dotsOf multiplies some rows of a group.
func (g *weights) dotsOf(t quantizedType, c constants, first, v int, acc [][]reg.VecVirtual) {
	label := func(name string) string { return fmt.Sprint(name, first) }
	rows := len(acc)
	w, x := g.chunk(first, rows, v)
	units := g.f.Int("units")
	g.TESTQ(units, units)
	g.JE(asm.Label(label("done")))
	g.Label(label("loop"))
	if t.block == 32 {
		u, s := make([]reg.VecVirtual, rows), make([]reg.VecVirtual, rows)
		for j := range rows {
			g.prefetch(w, j, rows, 0)
			u[j], s[j] = g.two(t, c, w.at(j))
		}
		g.unit(t, c, x, 0, u, s, acc)
		if t.name == "Q5_1" {
			for j := range rows { // m·sum
				m := g.float16s(c, offset(w.at(j), 2), offset(w.at(j), 2+t.bytes))
				for i := range v {
					// a lane has an eighth of the sum, which is added as a whole in one lane: the others are zero
					sums := g.ZMM()
					g.VPERMPS_Z(g.sums(x.at(i)), c.spread, c.two, sums)
					g.VFMADD231PS(m, sums, acc[j][i])
				}
			}
		}
		g.step(w, rows, 2*t.bytes)
		g.ADDQ(operand.U32(unitBytes), x.base)
	} else {
		scales := make([]reg.VecVirtual, rows)
		for j := range rows {
			for line := 0; line < t.bytes; line += 64 {
				g.prefetch(w, j, rows, line)
			}
			scales[j] = g.scales(t, c, w.at(j))
		}
		if t.name == "Q4_K" {
			// The eight m of a block, times the sums of their activations, in eight lanes.
			for i := range v {
				sums := g.ZMM()
				g.VBROADCASTSD(offset(x.at(i), unitSums), sums)
				for n := 1; n < 4; n++ {
					g.VBROADCASTSD(offset(x.at(i), n*unitBytes+unitSums), c.pair[n], sums)
				}
				for j := range rows {
					m := g.ZMM()
					g.VSHUFF64X2(operand.U8(0x4e), scales[j], scales[j], m)
					g.VMULPS_Z(sums, m, c.lower, m)
					g.VSUBPS(m, acc[j][i], acc[j][i])
				}
			}
		}
		for n := range 4 {
			index := g.ZMM()
			g.VMOVDQU64(g.index(t, n), index)
			u, s := make([]reg.VecVirtual, rows), make([]reg.VecVirtual, rows)
			for j := range rows {
				u[j], s[j] = g.quarter(t, c, w.at(j), n), g.ZMM()
				g.VPERMPS(scales[j], index, s[j])
			}
			g.unit(t, c, x, n*unitBytes, u, s, acc)
		}
		g.step(w, rows, t.bytes)
		g.ADDQ(operand.U32(4*unitBytes), x.base)
	}
	g.DECQ(units)
	g.JNE(asm.Label(label("loop")))
	g.Label(label("done"))
}

// sums returns the sums of 64 activations, twice in each part of 128 bits.
func (g *weights) sums(at operand.Mem) reg.VecVirtual {
	r := g.ZMM()
	g.VBROADCASTSD(offset(at, unitSums), r)
	return r
}

// unit multiplies 64 numbers of each row with activations.
func (g *weights) unit(t quantizedType, c constants, x gemmStrided, at int, u, s []reg.VecVirtual, acc [][]reg.VecVirtual) {
	for i := range acc[0] {
		from := offset(x.at(i), at)
		scale := g.ZMM()
		g.VBROADCASTSD(offset(from, unitScales), scale)
		g.VPERMILPS(c.halves, scale, scale)
		var less reg.VecVirtual
		if t.zero > 0 {
			sum := g.ZMM()
			less = g.ZMM()
			g.VMOVDQA64(c.none, sum)
			g.VPDPBUSD(from, c.zero, sum)
			g.VPSUBD(sum, c.none, less)
		}
		for j := range u {
			d, p := g.ZMM(), g.ZMM()
			if t.zero > 0 {
				g.VMOVDQA64(less, d)
			} else {
				g.VMOVDQA64(c.none, d)
			}
			g.VPDPBUSD(from, u[j], d)
			g.VCVTDQ2PS(d, d)
			g.VMULPS(scale, s[j], p)
			g.VFMADD231PS(d, p, acc[j][i])
		}
	}
}

// constants are registers that a kernel keeps.
type constants struct {
	halves, zero, low, shift, bit reg.VecVirtual
	spread, two                   reg.Register
	upper, lower                  reg.Register // masks of the halves of 16 lanes
	pair                          [4]reg.Register
	high, none                    reg.VecVirtual
}

func repeat(n int, v ...uint32) (all []uint32) {
	for _, x := range v {
		for range n {
			all = append(all, x)
		}
	}
	return all
}

func (g *weights) table(name string, v []uint32) reg.VecVirtual {
	r := g.ZMM()
	g.VMOVDQU64(g.TableBits(name, v), r)
	return r
}

func (g *weights) kmask(bits int) reg.Register {
	r, k := g.GP32(), g.K()
	g.MOVL(operand.U32(bits), r)
	g.KMOVW(r, k)
	return k
}

func (g *weights) constants(t quantizedType) (c constants) {
	bytes := func(b uint32) []uint32 { return repeat(16, b*0x01010101) }
	c.halves = g.table("halves", repeat(8, 0, 1))
	if t.zero > 0 {
		c.zero = g.table(fmt.Sprintf("zero%d", t.zero), bytes(uint32(t.zero)))
	}
	c.upper = g.kmask(0xff00)
	c.none = g.ZMM()
	g.Zero(c.none)
	switch t.name {
	case "Q5_0", "Q5_1":
		c.bit = g.table("bit16", bytes(16))
		fallthrough
	case "Q4_0":
		c.low = g.table("low4", bytes(15))
		c.shift = g.table("nibbles", repeat(4, 0, 0x00040004, 0, 0x00040004))
	case "Q4_K":
		c.low = g.table("low4", bytes(15))
		c.shift = g.table("nibbleHalves", repeat(8, 0, 0x00040004))
		c.lower = g.kmask(0xff)
		for n := 1; n < 4; n++ {
			c.pair[n] = g.kmask(1 << n)
		}
	case "Q6_K":
		c.low = g.table("low4", bytes(15))
		c.high = g.table("high2", bytes(0x30))
	}
	if t.name == "Q5_1" {
		c.two = g.kmask(0x0101)
		c.spread = g.table("spread", []uint32{0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})
	}
	return c
}

// float16s returns the number at a in eight lanes, and that at b in the others.
func (g *weights) float16s(c constants, a, b operand.Mem) reg.VecVirtual {
	h, r := g.YMM(), g.ZMM()
	g.VPBROADCASTW(a, h)
	g.VPBROADCASTW(b, c.upper, h)
	g.VCVTPH2PS(h, r)
	return r
}

// two returns the numbers of two blocks of 32, and their scales.
func (g *weights) two(t quantizedType, c constants, at operand.Mem) (u, s reg.VecVirtual) {
	s = g.float16s(c, offset(at, t.scale), offset(at, t.bytes+t.scale))
	u = g.ZMM()
	if t.name == "Q8_0" {
		g.VBROADCASTI32X8(offset(at, 2), u)
		g.VBROADCASTI32X8(offset(at, 2+t.bytes), c.upper, u)
		g.VPXORD(c.zero, u, u) // adds 128
		return u, s
	}
	first := t.bytes - 16
	g.VBROADCASTI32X4(offset(at, first), u)
	g.VBROADCASTI32X4(offset(at, first+t.bytes), c.upper, u)
	g.VPSRLVW(c.shift, u, u)
	g.VPANDD(c.low, u, u)
	if t.name == "Q4_0" {
		return u, s
	}
	k, high := g.K(), g.K()
	g.KMOVD(offset(at, first-4), k)
	g.KMOVD(offset(at, first-4+t.bytes), high)
	g.KUNPCKDQ(k, high, k)
	g.VPADDB(c.bit, u, k, u)
	return u, s
}

// scales returns the 16 factors of a block of 256.
func (g *weights) scales(t quantizedType, c constants, at operand.Mem) reg.VecVirtual {
	s := g.ZMM()
	if t.name == "Q6_K" {
		d, h := g.ZMM(), g.YMM()
		g.VPMOVSXBD(offset(at, 192), s)
		g.VCVTDQ2PS(s, s)
		g.VPBROADCASTW(offset(at, t.scale), h)
		g.VCVTPH2PS(h, d)
		g.VMULPS(d, s, s)
		return s
	}
	g.VPMOVZXBD(g.factors(at), s)
	g.VCVTDQ2PS(s, s)
	g.VMULPS(g.float16s(c, at, offset(at, 2)), s, s)
	return s
}

// factors returns bytes of a block of Q4_K: the factors of eight scales, then those of eight m, as function factors of blas has them.
func (g *weights) factors(at operand.Mem) reg.VecVirtual {
	a, b := g.XMM(), g.XMM()
	and, or := g.VPANDD, g.VPORD // take all 32 registers
	if g.ISA == asm.AVX2 {
		and = func(o ...operand.Op) { g.VPAND(o[0], o[1], o[2]) }
		or = func(o ...operand.Op) { g.VPOR(o[0], o[1], o[2]) }
	}
	g.VPSHUFD(operand.U8(0x98), offset(at, 4), a)
	g.VPSHUFD(operand.U8(0x50), offset(at, 4), b)
	g.VPSRLVD(g.TableBits("factorShift", []uint32{0, 0, 0, 4}), a, a)
	and(g.TableBits("factorLow", []uint32{0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f}), a, a)
	g.VPSRLD(operand.U8(2), b, b)
	and(g.TableBits("factorHigh", []uint32{0, 0x30303030, 0, 0x30303030}), b, b)
	or(a, b, a)
	return a
}

// index returns the table that spreads the scales of part n of a block of 256 to the lanes.
func (g *weights) index(t quantizedType, n int) operand.Mem {
	if t.name == "Q6_K" {
		return g.TableBits(fmt.Sprintf("four%d", n), repeat(4, uint32(4*n), uint32(4*n+1), uint32(4*n+2), uint32(4*n+3)))
	}
	return g.TableBits(fmt.Sprintf("two%d", n), repeat(8, uint32(2*n), uint32(2*n+1)))
}

// quarter returns 64 numbers of a block of 256.
func (g *weights) quarter(t quantizedType, c constants, at operand.Mem, n int) reg.VecVirtual {
	u := g.ZMM()
	if t.name == "Q4_K" {
		g.VBROADCASTI64X4(offset(at, 16+32*n), u)
		g.VPSRLVW(c.shift, u, u)
		g.VPANDD(c.low, u, u)
		return u
	}
	h := g.ZMM()
	g.VMOVDQU64(offset(at, n/2*64), u)
	g.VBROADCASTI64X4(offset(at, 128+n/2*32), h)
	if n%2 == 0 {
		g.VPSLLVW(g.TableBits("left", repeat(8, 0x00040004, 0x00020002)), h, h)
	} else {
		g.VPSRLW(operand.U8(4), u, u)
		g.VPSRLVW(g.TableBits("right", repeat(8, 0, 0x00020002)), h, h)
	}
	g.VPANDD(c.low, u, u)
	g.VPANDD(c.high, h, h)
	g.VPORD(u, h, u)
	return u
}
