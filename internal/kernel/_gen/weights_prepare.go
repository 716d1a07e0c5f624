package main

import (
	"math"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// round writes the rounding of activations to bfloat16: AVX-512 writes numbers of 16 bits, AVX2 float32.
func (g *weights) round() {
	to := "float32"
	if g.ISA == asm.AVX512 {
		to = "uint16"
	}
	f := g.Func("round", "func(vectors int, x *float32, to *"+to+")", "round rounds vectors of x to the nearest bfloat16, the even one of two.")
	n, x, y := f.Int("vectors"), f.Ptr("x"), f.Ptr("to")
	constant := func(bits uint32) reg.VecVirtual {
		r := g.Vec()
		g.VBROADCASTSS(g.Bits(bits), r)
		return r
	}
	one, half, quiet := constant(1), constant(0x7fff), constant(0x400000)
	var upper reg.VecVirtual
	if g.ISA == asm.AVX2 {
		upper = constant(0xffff0000)
	}
	g.Label("loop")
	v, r := g.Vec(), g.Vec()
	g.VMOVUPS(asm.At(x, 0), v)
	g.VPSRLD(operand.U8(16), v, r)
	if g.ISA == asm.AVX512 {
		nan := g.K()
		g.VPANDD(one, r, r)
		g.VPADDD(half, r, r)
		g.VPADDD(v, r, r)
		g.VCMPPS(operand.U8(3), v, v, nan)
		g.VPORD(quiet, v, nan, r) // rounding could make a NaN infinite
		g.VPSRLD(operand.U8(16), r, r)
		g.VPMOVDW(r, asm.At(y, 0))
	} else {
		nan := g.Vec()
		g.VPAND(one, r, r)
		g.VPADDD(half, r, r)
		g.VPADDD(v, r, r)
		g.VCMPPS(operand.U8(3), v, v, nan)
		g.VPOR(quiet, v, v)
		g.VBLENDVPS(nan, v, r, r)
		g.VPAND(upper, r, r)
		g.VMOVUPS(r, asm.At(y, 0))
	}
	g.ADDQ(operand.U32(g.Bytes()), x)
	g.ADDQ(operand.U32(32), y)
	g.DECQ(n)
	g.JNE(asm.Label("loop"))
	f.Return()
}

// quantize writes the quantization of activations, as method quantize of quantized in blas does it, for AVX2.
func (g *weights) quantize() {
	f := g.Func("quantizeUnits", "func(units int, x *float32, to *float32)", "quantizeUnits quantizes units of 64 activations.")
	units, x, to := f.Int("units"), f.Ptr("x"), f.Ptr("to")
	g.Label("loop")
	for h, name := range []string{"first", "second"} {
		label := func(what string) string { return name + what }
		at, scaleAt, sumAt := asm.At(to, 32*h), asm.At(to, unitScales+4*h), asm.At(to, unitSums+4*h)
		v := g.Vecs(4)
		var bits []reg.VecVirtual
		for i := range v {
			g.VMOVUPS(asm.At(x, 128*h+32*i), v[i])
			b := g.YMM()
			g.VANDPS(g.TableBits("magnitude", repeat(8, 1<<31-1)), v[i], b)
			bits = append(bits, b)
		}
		// The largest, as an integer: that of a NaN is larger than that of infinity.
		combine := func(f func(a, b reg.VecVirtual), r []reg.VecVirtual) reg.VecVirtual {
			f(r[1], r[0])
			f(r[3], r[2])
			f(r[2], r[0])
			return r[0]
		}
		across := func(f func(a, b reg.VecVirtual), r reg.VecVirtual) reg.VecVirtual {
			x, high := r.AsX(), g.XMM()
			g.VEXTRACTI128(operand.U8(1), r, high)
			low := g.XMM()
			g.VMOVDQA(x, low)
			f(high, low)
			for _, order := range []uint8{0x4e, 0xb1} {
				g.VPSHUFD(operand.U8(order), low, high)
				f(high, low)
			}
			return low
		}
		largest := across(func(a, b reg.VecVirtual) { g.VPMAXUD(a, b, b) }, combine(func(a, b reg.VecVirtual) { g.VPMAXUD(a, b, b) }, bits))
		n := g.GP32()
		g.VMOVD(largest, n)
		g.CMPL(n, operand.U32(0x7f800000))
		g.JAE(asm.Label(label("NaN")))
		g.CMPL(n, operand.U32(math.Float32bits(0x1p-100)))
		g.JBE(asm.Label(label("Zero")))
		most, scale, first, inverse := g.XMM(), g.XMM(), g.XMM(), g.YMM()
		g.VMOVSS(g.Const(127), most)
		g.VDIVSS(most, largest, scale)
		g.VDIVSS(largest, most, first)
		g.VBROADCASTSS(first, inverse)
		g.VMOVSS(scale, scaleAt)
		shift := g.YMM() // a sum with it is rounded to an integer, which is in its low bits
		g.VBROADCASTSS(g.Const(0x1.8p23), shift)
		for i := range v {
			g.VMULPS(inverse, v[i], v[i])
			g.VADDPS(shift, v[i], v[i])
			g.VPSUBD(shift, v[i], v[i])
		}
		a, b, order := g.YMM(), g.YMM(), g.YMM()
		g.VPACKSSDW(v[1], v[0], a)
		g.VPACKSSDW(v[3], v[2], b)
		g.VPACKSSWB(b, a, a)
		g.VMOVDQU(g.TableBits("packed", []uint32{0, 4, 1, 5, 2, 6, 3, 7}), order)
		g.VPERMD(a, order, a)
		g.VMOVDQU(a, at)
		add := func(a, b reg.VecVirtual) { g.VPADDD(a, b, b) }
		sum := across(add, combine(add, v))
		g.VCVTDQ2PS(sum, sum)
		g.VMULSS(scale, sum, sum)
		g.VMOVSS(sum, sumAt)
		g.JMP(asm.Label(label("Done")))
		special := func(what string, bits uint32) {
			g.Label(label(what))
			none := g.YMM()
			g.Zero(none)
			g.VMOVDQU(none, at)
			g.MOVL(operand.U32(bits), scaleAt)
			g.MOVL(operand.U32(bits), sumAt)
		}
		special("NaN", 0x7fc00000)
		g.JMP(asm.Label(label("Done")))
		special("Zero", 0)
		g.Label(label("Done"))
	}
	g.ADDQ(operand.U32(256), x)
	g.ADDQ(operand.U32(unitBytes), to)
	g.DECQ(units)
	g.JNE(asm.Label("loop"))
	f.Return()
}
