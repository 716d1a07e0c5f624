package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// writeAVX2 writes the products for AVX2. They take any number of rows of activations: there are no tiles.
func (g *weights) writeAVX2() {
	g.quantize()
	g.round()
	for _, v := range []int{1, 2, 4} {
		g.halvesAVX2("Float16", v)
		g.halvesAVX2("BFloat16", v)
		for _, t := range quantizedTypes {
			g.dotsAVX2(t, v)
		}
	}
	g.Write("weights")
}

// halvesAVX2 writes the kernel for numbers of 16 bits. It multiplies one row of a group after the other.
func (g *weights) halvesAVX2(name string, v int) {
	const unit = 4 // vectors
	bf := name == "BFloat16"
	all := g.begin(name, v, "A unit is 32 numbers of w, and as many float32 of x. Of the tail, the caller multiplies tail%8.")
	for first, sums := range all {
		label := func(name string) string { return fmt.Sprint(name, first) }
		// One sum would wait for itself. There are two for any number of rows of activations, so that each row has the bits that it has alone.
		acc := [][]reg.VecVirtual{sums, g.Vecs(v)}
		for _, r := range acc[1] {
			g.Zero(r)
		}
		w, x := g.chunk(first, 1, v)
		loop := func(name string, times reg.GPVirtual, unit int, next string) {
			g.JE(asm.Label(label(next)))
			g.Label(label(name))
			g.prefetch(w, 0, 1, 0)
			for n := range unit {
				wv := g.YMM()
				if bf {
					g.VPMOVZXWD(offset(w.at(0), n*16), wv)
					g.VPSLLD(operand.U8(16), wv, wv)
				} else {
					g.VCVTPH2PS(offset(w.at(0), n*16), wv)
				}
				for i := range v {
					g.VFMADD231PS(offset(x.at(i), n*32), wv, acc[n%len(acc)][i])
				}
			}
			g.step(w, 1, unit*16)
			g.ADDQ(operand.U32(unit*32), x.base)
			g.DECQ(times)
			g.JNE(asm.Label(label(name)))
			g.Label(label(next))
		}
		units := g.f.Int("units")
		g.TESTQ(units, units)
		loop("loop", units, unit, "tail")
		tail := g.f.Int("tail")
		g.SHRQ(operand.U8(3), tail)
		loop("vector", tail, 1, "done")
		for i := range v {
			g.VADDPS(acc[1][i], sums[i], sums[i])
		}
	}
	g.end(v, all)
}

// dotsAVX2 writes the kernel for a quantized type. It multiplies 32 numbers at a time, one row of a group after the other.
func (g *weights) dotsAVX2(t quantizedType, v int) {
	all := g.begin(t.name, v, "A unit is 64 numbers, or 256 if a block has as many, and x is quantized. The caller multiplies the tail.")
	for first, acc := range all {
		label := func(name string) string { return fmt.Sprint(name, first) }
		w, x := g.chunk(first, 1, v)
		units := g.f.Int("units")
		g.TESTQ(units, units)
		g.JE(asm.Label(label("done")))
		g.Label(label("loop"))
		size := max(64, t.block)
		bytes := size / t.block * t.bytes
		for line := 0; line < bytes; line += 64 {
			g.prefetch(w, 0, 1, line)
		}
		var scales [2]reg.VecVirtual
		if t.block == 256 {
			scales = g.scalesAVX2(t, w.at(0), x, acc)
		}
		for n := range size / 32 {
			var u, s reg.VecVirtual
			if t.block == 256 {
				u, s = g.partAVX2(t, w.at(0), n), g.spread(t, scales, n)
			} else {
				b := offset(w.at(0), n*t.bytes)
				u, s = g.blockAVX2(t, b), g.float16AVX2(b)
				if t.name == "Q5_1" {
					m := g.float16AVX2(offset(b, 2))
					for i := range v { // m·sum, in the first lane: the others are zero
						sum := g.YMM()
						g.VBROADCASTSS(offset(x.at(i), unitSums+4*n), sum)
						g.VANDPS(g.TableBits("first", append([]uint32{1<<32 - 1}, make([]uint32, 7)...)), sum, sum)
						g.VFMADD231PS(sum, m, acc[i])
					}
				}
			}
			g.multiplyAVX2(t, x, n/2*unitBytes, n%2, u, s, acc)
		}
		g.step(w, 1, bytes)
		g.ADDQ(operand.U32(size/64*unitBytes), x.base)
		g.DECQ(units)
		g.JNE(asm.Label(label("loop")))
		g.Label(label("done"))
	}
	g.end(v, all)
}

// multiplyAVX2 multiplies 32 numbers u with half a unit of activations. VPMADDUBSW wants numbers without a sign: that of u is given to the
// activations. Its sums of two products fit into 16 bits, as activations are at most 127.
func (g *weights) multiplyAVX2(t quantizedType, x gemmStrided, at, half int, u, s reg.VecVirtual, acc []reg.VecVirtual) {
	magnitude := u
	if t.zero > 0 {
		magnitude = g.YMM()
		g.VPABSB(u, magnitude)
	}
	for i := range acc {
		d, scale := g.YMM(), g.YMM()
		if from := offset(x.at(i), at+32*half); t.zero > 0 {
			g.VMOVDQU(from, d)
			g.VPSIGNB(u, d, d)
			g.VPMADDUBSW(d, magnitude, d)
		} else {
			g.VPMADDUBSW(from, u, d)
		}
		g.VPMADDWD(g.TableBits("ones", repeat(8, 0x00010001)), d, d)
		g.VCVTDQ2PS(d, d)
		g.VBROADCASTSS(offset(x.at(i), at+unitScales+4*half), scale)
		g.VMULPS(s, scale, scale)
		g.VFMADD231PS(d, scale, acc[i])
	}
}

// float16AVX2 returns a number in all lanes.
func (g *weights) float16AVX2(at operand.Mem) reg.VecVirtual {
	h, r := g.XMM(), g.YMM()
	g.VPBROADCASTW(at, h)
	g.VCVTPH2PS(h, r)
	return r
}

// bytes32 returns a table with a byte in all places.
func (g *weights) bytes32(b uint32) operand.Mem {
	return g.TableBits(fmt.Sprintf("bytes%d", b), repeat(8, b*0x01010101))
}

// blockAVX2 returns the numbers of a block of 32.
func (g *weights) blockAVX2(t quantizedType, at operand.Mem) reg.VecVirtual {
	u := g.YMM()
	if t.name == "Q8_0" {
		g.VMOVDQU(offset(at, 2), u)
		return u
	}
	first := t.bytes - 16
	g.VBROADCASTI128(offset(at, first), u)
	g.VPSRLVD(g.TableBits("nibbles", repeat(4, 0, 4)), u, u)
	g.VPAND(g.bytes32(15), u, u)
	if t.name != "Q4_0" { // the fifth bits
		b, bit := g.YMM(), g.TableBits("bits", repeat2(4, 0x08040201, 0x80402010))
		g.VPBROADCASTD(offset(at, first-4), b)
		g.VPSHUFB(g.TableBits("bytesOfBits", repeat(2, 0, 0x01010101, 0x02020202, 0x03030303)), b, b)
		g.VPAND(bit, b, b)
		g.VPCMPEQB(bit, b, b)
		g.VPAND(g.bytes32(16), b, b)
		g.VPOR(b, u, u)
	}
	if t.zero > 0 {
		g.VPSUBB(g.bytes32(uint32(t.zero)), u, u)
	}
	return u
}

func repeat2(n int, v ...uint32) (all []uint32) {
	for range n {
		all = append(all, v...)
	}
	return all
}

// scalesAVX2 returns the factors of a block of 256: of Q6_K 16, of Q4_K eight. It multiplies the m of Q4_K.
func (g *weights) scalesAVX2(t quantizedType, at operand.Mem, x gemmStrided, acc []reg.VecVirtual) (s [2]reg.VecVirtual) {
	d := g.float16AVX2(offset(at, t.scale))
	if t.name == "Q6_K" {
		for i := range s {
			s[i] = g.YMM()
			g.VPMOVSXBD(offset(at, 192+8*i), s[i])
			g.VCVTDQ2PS(s[i], s[i])
			g.VMULPS(d, s[i], s[i])
		}
		return s
	}
	factors := g.factors(at)
	s[0] = g.YMM()
	g.VPMOVZXBD(factors, s[0])
	g.VCVTDQ2PS(s[0], s[0])
	g.VMULPS(d, s[0], s[0])
	m := g.YMM()
	g.VPSRLDQ(operand.U8(8), factors, factors)
	g.VPMOVZXBD(factors, m)
	g.VCVTDQ2PS(m, m)
	g.VMULPS(g.float16AVX2(offset(at, 2)), m, m)
	for i := range acc {
		sums, two := g.YMM(), g.YMM()
		g.VBROADCASTSD(offset(x.at(i), unitSums), sums)
		for n := 1; n < 4; n++ {
			g.VBROADCASTSD(offset(x.at(i), n*unitBytes+unitSums), two)
			g.VBLENDPS(operand.U8(3<<(2*n)), two, sums, sums)
		}
		g.VFNMADD231PS(m, sums, acc[i])
	}
	return s
}

// spread returns the scales of part n of a block of 256 in the lanes.
func (g *weights) spread(t quantizedType, scales [2]reg.VecVirtual, n int) reg.VecVirtual {
	from, a, b := scales[0], uint32(n), uint32(n)
	if t.name == "Q6_K" {
		from, a, b = scales[n/4], uint32(n%4*2), uint32(n%4*2+1)
	}
	s := g.YMM()
	g.VMOVDQU(g.TableBits(fmt.Sprintf("lanes%d%d", a, b), repeat(4, a, b)), s)
	g.VPERMPS(from, s, s)
	return s
}

// partAVX2 returns numbers 32·n to 32·n+31 of a block of 256.
func (g *weights) partAVX2(t quantizedType, at operand.Mem, n int) reg.VecVirtual {
	u := g.YMM()
	if t.name == "Q4_K" {
		if g.VMOVDQU(offset(at, 16+n/2*32), u); n%2 == 1 {
			g.VPSRLW(operand.U8(4), u, u)
		}
		g.VPAND(g.bytes32(15), u, u)
		return u
	}
	if g.VMOVDQU(offset(at, n/4*64+n%2*32), u); n%4 >= 2 {
		g.VPSRLW(operand.U8(4), u, u)
	}
	g.VPAND(g.bytes32(15), u, u)
	h := g.YMM()
	g.VMOVDQU(offset(at, 128+n/4*32), h)
	switch n % 4 {
	case 0:
		g.VPSLLW(operand.U8(4), h, h)
	case 1:
		g.VPSLLW(operand.U8(2), h, h)
	case 3:
		g.VPSRLW(operand.U8(2), h, h)
	}
	g.VPAND(g.bytes32(0x30), h, h)
	g.VPOR(h, u, u)
	g.VPSUBB(g.bytes32(uint32(t.zero)), u, u)
	return u
}
