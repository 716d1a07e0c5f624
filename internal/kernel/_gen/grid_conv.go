package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// gridConv writes the kernels of the depthwise convolution over a grid: those of the causal convolution, but with a list of where the taps and their inputs
// are.
func gridConv(isa asm.ISA) {
	f := asm.NewFile("..", isa)
	gridFilter(f, "gridRows", convSteps)
	gridFilter(f, "gridRow", 1)
	gridSum(f)
	f.Write("grid_conv")
}

// eachListed writes a loop over the list of taps. body gets the registers of the address of the tap and of the address of its input.
func eachListed(k *asm.Func, label string, at reg.Register, body func(tap, row reg.GPVirtual)) {
	x, taps, list, left := k.Ptr("x"), k.Ptr("taps"), k.Ptr("list"), k.Int("width")
	k.ADDQ(at, x)
	k.ADDQ(at, taps)
	k.Label(label)
	row, tap := k.GP64(), k.GP64()
	k.MOVQ(asm.At(list, 0), row)
	k.ADDQ(x, row)
	k.MOVQ(asm.At(list, 8), tap)
	k.ADDQ(taps, tap)
	body(tap, row)
	k.ADDQ(operand.U8(16), list)
	k.DECQ(left)
	k.JNZ(asm.Label(label))
}

func gridFilter(f *asm.File, name string, steps int) {
	k := f.Func(name, "func(args *gridArgs)", fmt.Sprintf("%s computes gridRows.run for %d step(s).", name, steps))
	n := k.Int("n")
	m := k.Math(convKeep(f))
	k.EachVector(name, n, 1, func(at reg.Register, _ int, mask *asm.Mask) {
		label := name + "Vector"
		if mask != nil {
			label = name + "Tail"
		}
		sums := k.Vecs(steps)
		convBias(k, label, at, mask, sums, k.Ptr("bias"))
		step := k.Int("xStep")
		eachListed(k, label+"Taps", at, func(tap, row reg.GPVirtual) {
			w := k.Vec()
			k.LoadMasked(asm.At(tap, 0), mask, w)
			for i, v := range sums {
				if mask == nil {
					k.MulAdd(asm.At(row, 0), w, v)
				} else {
					t := k.Vec()
					k.LoadMasked(asm.At(row, 0), mask, t)
					k.MulAdd(t, w, v)
				}
				if i < steps-1 {
					k.ADDQ(step, row)
				}
			}
		})
		convFinish(k, m, label, at, mask, sums, false)
	})
	k.Return()
}

// gridSum writes the kernel that adds up the gradients of the taps.
func gridSum(f *asm.File) {
	k := f.Func("gridSum", "func(args *gridArgs)", fmt.Sprintf("gridSum computes gridRows.sum for %d steps.", convSteps))
	n := k.Int("n")
	k.EachVector("gridSum", n, 1, func(at reg.Register, _ int, mask *asm.Mask) {
		label := "gridSumVector"
		if mask != nil {
			label = "gridSumTail"
		}
		g := k.Vecs(convSteps)
		convGradients(k, label, at, mask, g, k.Ptr("bias"))
		step := k.Int("xStep")
		eachListed(k, label+"Taps", at, func(tap, row reg.GPVirtual) {
			acc := k.Vec()
			k.LoadMasked(asm.At(tap, 0), mask, acc)
			for _, v := range g {
				t := k.Vec()
				k.LoadMasked(asm.At(row, 0), mask, t)
				k.ADDQ(step, row)
				k.MulAdd(t, v, acc)
			}
			k.StoreMasked(acc, mask, asm.At(tap, 0))
		})
	})
	k.Return()
}
