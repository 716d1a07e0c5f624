package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

const tileSignature = "func(units int, x *float32, ldx int, panel *float32, y *float32, ldy int, add int)"

// The bytes of packed weights of 32 outputs: of a block of 32 numbers, four numbers of each output together, then the scales and the m.
const blockPanel = 8*128 + 2*128

// quantizedTile writes the kernel for many rows of quantized activations: rows of them and 32 outputs.
func (g *weights) quantizedTile(rows int) {
	name := fmt.Sprintf("tileQuantized%d", rows)
	f := g.Func(name, tileSignature, fmt.Sprintf(
		"%s multiplies a panel of 32 outputs by %d row(s) of quantized x, ldx float32 apart: y[i*ldy+j], added to what is there if add is 1. A unit is 64 numbers.", name, rows))
	x, panel, sums := g.tileBegin(f, rows)
	none := g.ZMM()
	g.Zero(none)
	g.Label("loop")
	for half := range 2 {
		var parts [][]reg.VecVirtual
		for range rows {
			p := g.Vecs(2)
			g.VMOVDQA64(none, p[0])
			g.VMOVDQA64(none, p[1])
			parts = append(parts, p)
		}
		at := half * blockPanel
		for k := range 8 {
			u := g.Vecs(2)
			for i := range u {
				g.VMOVDQU64(asm.At(panel, at+k*128+i*64), u[i])
			}
			for i := range rows {
				b := g.ZMM()
				g.VPBROADCASTD(offset(x.at(i), half*32+4*k), b)
				for j := range u {
					g.VPDPBUSD(b, u[j], parts[i][j])
				}
			}
		}
		for i := range rows {
			scale, total := g.ZMM(), g.ZMM()
			g.VBROADCASTSS(offset(x.at(i), unitScales+4*half), scale)
			g.VBROADCASTSS(offset(x.at(i), unitSums+4*half), total)
			for j := range 2 {
				p := g.ZMM()
				g.VMULPS(asm.At(panel, at+8*128+j*64), scale, p)
				g.VCVTDQ2PS(parts[i][j], parts[i][j])
				g.VFMADD231PS(asm.At(panel, at+9*128+j*64), total, sums[i][j])
				g.VFMADD231PS(parts[i][j], p, sums[i][j])
			}
		}
	}
	g.ADDQ(operand.U32(unitBytes), x.base)
	g.ADDQ(operand.U32(2*blockPanel), panel)
	g.tileEnd(f, sums)
}

// wordsTile writes the kernel for many rows of bfloat16.
func (g *weights) wordsTile(rows int) {
	name := fmt.Sprintf("tileBFloat16%d", rows)
	f := g.Func(name, tileSignature, fmt.Sprintf(
		"%s multiplies a panel of 32 outputs by %d row(s) of x in bfloat16, ldx float32 apart: y[i*ldy+j], added to what is there if add is 1. A unit is two numbers.", name, rows))
	x, panel, sums := g.tileBegin(f, rows)
	g.Label("loop")
	u := g.Vecs(2)
	for i := range u {
		g.VMOVDQU64(asm.At(panel, i*64), u[i])
	}
	for i := range rows {
		b := g.ZMM()
		g.VPBROADCASTD(x.at(i), b)
		for j := range u {
			g.VPDPWSSD(u[j], b, sums[i][j]) // File.Write makes VDPBF16PS of it
		}
	}
	g.ADDQ(operand.U32(4), x.base)
	g.ADDQ(operand.U32(128), panel)
	g.tileEnd(f, sums)
}

func (g *weights) tileBegin(f *asm.Func, rows int) (x gemmStrided, panel reg.GPVirtual, sums [][]reg.VecVirtual) {
	x, panel = g.strided(f.Ptr("x"), g.bytes(f, "ldx"), rows), f.Ptr("panel")
	for range rows {
		s := g.Vecs(2)
		g.Zero(s[0])
		g.Zero(s[1])
		sums = append(sums, s)
	}
	g.units = f.Int("units")
	return x, panel, sums
}

func (g *weights) tileEnd(f *asm.Func, sums [][]reg.VecVirtual) {
	g.DECQ(g.units)
	g.JNE(asm.Label("loop"))
	y, ldy, add := f.Ptr("y"), g.bytes(f, "ldy"), f.Int("add")
	g.TESTQ(add, add)
	g.JE(asm.Label("store"))
	for i, s := range sums {
		for j := range s {
			g.VADDPS(asm.At(y, 64*j), s[j], s[j])
		}
		if i < len(sums)-1 {
			g.ADDQ(ldy, y)
		}
	}
	f.Load64("y", y)
	g.Label("store")
	for i, s := range sums {
		for j := range s {
			g.VMOVUPS(s[j], asm.At(y, 64*j))
		}
		if i < len(sums)-1 {
			g.ADDQ(ldy, y)
		}
	}
	f.Return()
}
