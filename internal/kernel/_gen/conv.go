package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// convSteps is the number of steps that the convolution's kernels process at a time. Each tap is loaded once for four products.
const convSteps = 4

// conv writes the kernels of the causal convolution.
//
// Their inner loop goes along the channels of a few steps. A loop along the steps of a few channels would touch another page of memory at
// each step.
func conv(isa asm.ISA) {
	f := asm.NewFile("..", isa)
	convFilter(f, "convRows", convSteps)
	convFilter(f, "convRow", 1)
	convSum(f)
	convUsual(f)
	f.Write("conv")
}

func convFilter(f *asm.File, name string, steps int) {
	k := f.Func(name, "func(args *convArgs)", fmt.Sprintf("%s computes convRows.run for %d step(s).", name, steps))
	n := k.Int("n")
	m := k.Math(convKeep(f))
	k.EachVector(name, n, 1, func(at reg.Register, _ int, mask *asm.Mask) {
		label := name + "Vector"
		if mask != nil {
			label = name + "Tail"
		}
		sums := k.Vecs(steps)
		convBias(k, label, at, mask, sums, k.Ptr("bias"))

		x, taps, left := k.Ptr("x"), k.Ptr("taps"), k.Int("width")
		k.ADDQ(at, x)
		k.ADDQ(at, taps)
		step, next, tapNext := k.Int("xStep"), k.Int("xNext"), k.Int("tapNext")
		tap := k.Vec()
		k.Label(label + "Taps")
		k.LoadMasked(asm.At(taps, 0), mask, tap)
		row := k.GP64()
		k.MOVQ(x, row)
		for i, v := range sums {
			if mask == nil {
				k.MulAdd(asm.At(row, 0), tap, v)
			} else {
				t := k.Vec()
				k.LoadMasked(asm.At(row, 0), mask, t)
				k.MulAdd(t, tap, v)
			}
			if i < steps-1 {
				k.ADDQ(step, row)
			}
		}
		k.ADDQ(next, x)
		k.ADDQ(tapNext, taps)
		k.DECQ(left)
		k.JNZ(asm.Label(label + "Taps"))

		convFinish(k, m, label, at, mask, sums, true)
	})
	k.Return()
}

// convFinish writes the code that stores the sums, or silu of the sums, or dy·siluSlope of the sums. With slopes there is an argument
// slope: if it is not nil, siluSlope of the sums is stored there, beside silu of the sums.
func convFinish(k *asm.Func, m *asm.Math, label string, at reg.Register, mask *asm.Mask, sums []reg.VecVirtual, slopes bool) {
	y, yStep, dy := k.Ptr("y"), k.Int("yStep"), k.Ptr("dy")
	k.ADDQ(at, y)
	store := func(of func(v reg.VecVirtual) reg.Register) {
		for i, v := range sums {
			k.StoreMasked(of(v), mask, asm.At(y, 0))
			if i < len(sums)-1 {
				k.ADDQ(yStep, y)
			}
		}
		k.JMP(asm.Label(label + "Stored"))
	}
	k.TESTQ(dy, dy)
	k.JNZ(asm.Label(label + "Back"))
	k.CMPQ(k.Addr("silu"), operand.U8(0))
	k.JNE(asm.Label(label + "SiLU"))
	store(func(v reg.VecVirtual) reg.Register { return v })
	k.Label(label + "SiLU")
	if slopes {
		slope, slopeStep := k.Ptr("slope"), k.Int("slopeStep")
		k.TESTQ(slope, slope)
		k.JZ(asm.Label(label + "NoSlope"))
		k.ADDQ(at, slope)
		store(func(v reg.VecVirtual) reg.Register {
			to, d := k.Vec(), k.Vec()
			m.SiLUAndSlope(v, to, d)
			k.StoreMasked(d, mask, asm.At(slope, 0))
			k.ADDQ(slopeStep, slope)
			return to
		})
		k.Label(label + "NoSlope")
	}
	store(func(v reg.VecVirtual) reg.Register {
		to := k.Vec()
		m.SiLU(v, to)
		return to
	})
	k.Label(label + "Back")
	dyStep := k.Int("dyStep")
	k.ADDQ(at, dy)
	store(func(v reg.VecVirtual) reg.Register {
		to, d := k.Vec(), k.Vec()
		m.SiLUSlope(v, to)
		k.LoadMasked(asm.At(dy, 0), mask, d)
		k.ADDQ(dyStep, dy)
		k.Mul(d, to, to)
		return to
	})
	k.Label(label + "Stored")
}

// convUsual writes convRows4 and convSum4, the kernels for 4 taps. They load each row of x once for all steps that read it: since x.step
// equals next, tap t of step s reads row s+t.
func convUsual(f *asm.File) {
	for _, sum := range []bool{false, true} {
		name, what := "convRows4", "run"
		if sum {
			name, what = "convSum4", "sum"
		}
		k := f.Func(name, "func(args *convArgs)", fmt.Sprintf("%s computes convRows.%s for %d steps and %d taps, if x.step equals next.",
			name, what, convSteps, convSteps))
		n := k.Int("n")
		var m *asm.Math
		if !sum {
			m = k.Math(convKeep(f))
		}
		k.EachVector(name, n, 1, func(at reg.Register, _ int, mask *asm.Mask) {
			label := name + "Vector"
			if mask != nil {
				label = name + "Tail"
			}
			// For run, steps holds the sums and taps the weights. For sum, steps holds the gradients dy and taps the sums.
			steps, taps := k.Vecs(convSteps), k.Vecs(convSteps)
			if bias := k.Ptr("bias"); sum {
				convGradients(k, label, at, mask, steps, bias)
			} else {
				convBias(k, label, at, mask, steps, bias)
			}
			tap, tapNext := k.Ptr("taps"), k.Int("tapNext")
			k.ADDQ(at, tap)
			for i, v := range taps {
				if i > 0 {
					k.ADDQ(tapNext, tap)
				}
				k.LoadMasked(asm.At(tap, 0), mask, v)
			}
			x, next, ahead := k.Ptr("x"), k.Int("xStep"), k.Int("ahead")
			k.ADDQ(at, x)
			for row := range 2*convSteps - 1 {
				v := k.Vec()
				if row > 0 {
					k.ADDQ(next, x)
				}
				if row < convSteps {
					k.PREFETCHT0(asm.AtIndex(x, ahead, 1, 0))
				}
				k.LoadMasked(asm.At(x, 0), mask, v)
				for s, step := range steps {
					switch t := row - s; {
					case t < 0 || t >= convSteps:
					case sum:
						k.MulAdd(v, step, taps[t])
					default:
						k.MulAdd(v, taps[t], step)
					}
				}
			}
			if !sum {
				convFinish(k, m, label, at, mask, steps, true)
				return
			}
			for i := range taps { // from the last to the first: tap points to the last
				if i > 0 {
					k.SUBQ(tapNext, tap)
				}
				k.StoreMasked(taps[convSteps-1-i], mask, asm.At(tap, 0))
			}
		})
		k.Return()
	}
}

// convBias writes the code that sets all sums to the bias, or to zero if bias is nil.
func convBias(k *asm.Func, label string, at reg.Register, mask *asm.Mask, sums []reg.VecVirtual, bias reg.Register) {
	for _, v := range sums {
		k.Zero(v)
	}
	k.TESTQ(bias, bias)
	k.JZ(asm.Label(label + "NoBias"))
	k.LoadMasked(asm.AtIndex(bias, at, 1, 0), mask, sums[0])
	for _, v := range sums[1:] {
		k.VMOVAPS(sums[0], v)
	}
	k.Label(label + "NoBias")
}

// convGradients writes the code that loads the gradients of the steps into g, and adds them to the bias unless it is nil.
func convGradients(k *asm.Func, label string, at reg.Register, mask *asm.Mask, g []reg.VecVirtual, bias reg.Register) {
	d, dStep := k.Ptr("dy"), k.Int("dyStep")
	k.ADDQ(at, d)
	for i, v := range g {
		if i > 0 {
			k.ADDQ(dStep, d)
		}
		k.LoadMasked(asm.At(d, 0), mask, v)
	}
	k.TESTQ(bias, bias)
	k.JZ(asm.Label(label + "NoBias"))
	total := k.Vec()
	k.ADDQ(at, bias)
	k.LoadMasked(asm.At(bias, 0), mask, total)
	for _, v := range g {
		k.Add(total, v, total)
	}
	k.StoreMasked(total, mask, asm.At(bias, 0))
	k.Label(label + "NoBias")
}

// convKeep returns how many constants of SiLU stay in registers. AVX2 needs all its registers for the sums, the taps and a mask.
func convKeep(f *asm.File) int {
	if f.ISA == asm.AVX2 {
		return asm.KeepNone
	}
	return asm.KeepExp
}

// convSum writes the kernel that adds up the gradients of weight and bias.
func convSum(f *asm.File) {
	k := f.Func("convSum", "func(args *convArgs)", fmt.Sprintf("convSum computes convRows.sum for %d steps.", convSteps))
	n := k.Int("n")
	k.EachVector("convSum", n, 1, func(at reg.Register, _ int, mask *asm.Mask) {
		label := "convSumVector"
		if mask != nil {
			label = "convSumTail"
		}
		g := k.Vecs(convSteps)
		convGradients(k, label, at, mask, g, k.Ptr("bias"))
		sum, sumNext := k.Ptr("taps"), k.Int("tapNext")
		k.ADDQ(at, sum)

		x, step, xNext, left := k.Ptr("x"), k.Int("xStep"), k.Int("xNext"), k.Int("width")
		k.ADDQ(at, x)
		k.Label(label + "Taps")
		row, acc := k.GP64(), k.Vec()
		k.MOVQ(x, row)
		k.LoadMasked(asm.At(sum, 0), mask, acc)
		for _, v := range g {
			t := k.Vec()
			k.LoadMasked(asm.At(row, 0), mask, t)
			k.ADDQ(step, row)
			k.MulAdd(t, v, acc)
		}
		k.StoreMasked(acc, mask, asm.At(sum, 0))
		k.ADDQ(xNext, x)
		k.ADDQ(sumNext, sum)
		k.DECQ(left)
		k.JNZ(asm.Label(label + "Taps"))
	})
	k.Return()
}
