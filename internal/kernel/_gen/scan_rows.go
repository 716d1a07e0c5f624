package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// The kernels below process the rows of a strip before and after the states, one vector for each step. A mask selects the strip's channels,
// so that lanes without a channel are zero and no memory outside the strip is read or written.

// rowLoop writes a loop over steps: body, then additions to pointers. moves holds pairs of a pointer and a register or constant to add to it.
func rowLoop(k *asm.Func, steps reg.GPVirtual, body func(), moves ...any) {
	k.Label("loop")
	body()
	for i := 0; i < len(moves); i += 2 {
		switch by := moves[i+1].(type) {
		case int:
			k.ADDQ(k.Imm(by), moves[i].(reg.Register))
		case reg.Register:
			k.ADDQ(by, moves[i].(reg.Register))
		}
	}
	k.DECQ(steps)
	k.JNE(asm.Label("loop"))
}

// mathKept returns the number of constants that these kernels keep in registers.
func mathKept(f *asm.File) int {
	if f.ISA == asm.AVX512 {
		return asm.KeepExp
	}
	return 0
}

// ifThere writes code that runs if r, a pointer or a flag, is not zero.
func ifThere(k *asm.Func, label string, r reg.Register, then func()) {
	k.TESTQ(r, r)
	k.JE(asm.Label("no" + label))
	then()
	k.Label("no" + label)
}

func scanPrepare(f *asm.File) {
	k := f.Func("scanPrepare", "func(args *scanPrepareArgs)",
		`scanPrepare computes Δ and Δ·u. bias may be nil:

	for t := range steps {
		dt[t] = delta[t] + bias // softplus of the sum if softplus is 1
		u[t] = from[t]
		du[t] = dt[t] * u[t]
	}`)
	dt, du, u, delta, from, bias := k.Ptr("dt"), k.Ptr("du"), k.Ptr("u"), k.Ptr("delta"), k.Ptr("from"), k.Ptr("bias")
	step, steps, width, softplus := k.Int("step"), k.Int("steps"), k.Int("width"), k.Int("softplus")
	mask := f.FirstLanes(width)
	m := f.Math(mathKept(f))
	b := f.Vec()
	f.Zero(b)
	ifThere(k, "Bias", bias, func() { f.LoadMasked(asm.At(bias, 0), mask, b) })
	rowLoop(k, steps, func() {
		x, v, in := f.Vec(), f.Vec(), f.Vec()
		f.LoadMasked(asm.At(delta, 0), mask, x)
		f.LoadMasked(asm.At(from, 0), mask, in)
		f.Add(b, x, v)
		ifThere(k, "Softplus", softplus, func() {
			f.Add(b, x, x)
			m.Softplus(x, v)
		})
		f.Store(v, asm.At(dt, 0))
		f.Store(in, asm.At(u, 0))
		f.Mul(in, v, v)
		f.Store(v, asm.At(du, 0))
	}, dt, row, du, row, u, row, delta, step, from, step)
	k.Return()
}

func scanFinish(f *asm.File) {
	k := f.Func("scanFinish", "func(args *scanFinishArgs)",
		`scanFinish writes the output. d and z may be nil: then there is no term d·u, or no gate:

	for t := range steps {
		y[t] = (acc[t] + d*u[t]) * silu(z[t])
	}`)
	y, acc, u, d, z := k.Ptr("y"), k.Ptr("acc"), k.Ptr("u"), k.Ptr("d"), k.Ptr("z")
	yStep, zStep, steps, width := k.Int("yStep"), k.Int("zStep"), k.Int("steps"), k.Int("width")
	mask := f.FirstLanes(width)
	m := f.Math(mathKept(f))
	dv := f.Vec()
	f.Zero(dv)
	ifThere(k, "DRow", d, func() { f.LoadMasked(asm.At(d, 0), mask, dv) })
	rowLoop(k, steps, func() {
		v := f.Vec()
		f.Load(asm.At(acc, 0), v)
		ifThere(k, "D", d, func() { f.MulAdd(asm.At(u, 0), dv, v) })
		ifThere(k, "Z", z, func() {
			x, gate := f.Vec(), f.Vec()
			f.LoadMasked(asm.At(z, 0), mask, x)
			m.Sigmoid(x, gate)
			f.Mul(x, gate, gate) // rounded as in scanFinishBack
			f.Mul(gate, v, v)
			k.ADDQ(zStep, z)
		})
		f.StoreMasked(v, mask, asm.At(y, 0))
	}, acc, row, u, row, y, yStep)
	k.Return()
}

func scanUngate(f *asm.File) {
	k := f.Func("scanUngate", "func(args *scanUngateArgs)",
		`scanUngate writes the gradient before the gate. z may be nil: then there is no gate:

	for t := range steps {
		dOut[t] = dy[t] * silu(z[t])
	}`)
	dOut, dy, z := k.Ptr("dOut"), k.Ptr("dy"), k.Ptr("z")
	step, zStep, steps, width := k.Int("step"), k.Int("zStep"), k.Int("steps"), k.Int("width")
	mask := f.FirstLanes(width)
	m := f.Math(mathKept(f))
	rowLoop(k, steps, func() {
		v := f.Vec()
		f.LoadMasked(asm.At(dy, 0), mask, v)
		ifThere(k, "Z", z, func() {
			x, gate := f.Vec(), f.Vec()
			f.LoadMasked(asm.At(z, 0), mask, x)
			m.Sigmoid(x, gate)
			f.Mul(x, gate, gate) // rounded as in scanFinishBack
			f.Mul(gate, v, v)
			k.ADDQ(zStep, z)
		})
		f.Store(v, asm.At(dOut, 0))
	}, dOut, row, dy, step)
	k.Return()
}

func scanFinishBack(f *asm.File) {
	k := f.Func("scanFinishBack", "func(args *scanFinishBackArgs)",
		`scanFinishBack writes the gradients and the output of a tile's rows. bias, d, out, and z with dz may be nil:

	for t := range steps {
		gu[t] = dt[t]*gB[t] + d*dOut[t]
		gd[t] = dDelta[t] + u[t]*gB[t] // times sigmoid(delta[t] + bias) if softplus is 1
		dz[t] = dy[t] * (y[t] + d*u[t]) * siluSlope(z[t])
		out[t] = (y[t] + d*u[t]) * silu(z[t])
		sumD += dOut[t] * u[t]
		sumBias += gd[t]
	}`)
	rows, delta, dy, z := k.Ptr("rows"), k.Ptr("delta"), k.Ptr("dy"), k.Ptr("z")
	gu, gd, dz, out := k.Ptr("gu"), k.Ptr("gd"), k.Ptr("dz"), k.Ptr("out")
	steps := k.Int("steps")
	at, zAt, t := k.GP64(), k.GP64(), k.GP64()
	k.XORQ(at, at)
	k.XORQ(zAt, zAt)
	mask := f.FirstLanes(k.Int("width"))
	m := f.Math(mathKept(f))
	bias, d, sumD, sumBias := f.Vec(), f.Vec(), f.Vec(), f.Vec()
	f.Zero(bias)
	f.Zero(d)
	k.Load64("bias", t)
	ifThere(k, "BiasRow", t, func() { f.LoadMasked(asm.At(t, 0), mask, bias) })
	k.Load64("d", t)
	ifThere(k, "DRow", t, func() { f.LoadMasked(asm.At(t, 0), mask, d) })
	k.Load64("sumD", t)
	f.Load(asm.At(t, 0), sumD)
	k.Load64("sumBias", t)
	f.Load(asm.At(t, 0), sumBias)
	by := func(p reg.Register) operand.Mem { return asm.AtIndex(p, at, 1, 0) }
	byZ := func(p reg.Register) operand.Mem { return asm.AtIndex(p, zAt, 1, 0) }
	rowLoop(k, steps, func() {
		gB, dOut, y, u, v, w := f.Vec(), f.Vec(), f.Vec(), f.Vec(), f.Vec(), f.Vec()
		f.Load(asm.At(rows, rowsGB), gB)
		f.Load(asm.At(rows, rowsDOut), dOut)
		f.Load(asm.At(rows, rowsY), y)
		f.Load(asm.At(rows, rowsU), u)
		f.Mul(asm.At(rows, rowsDt), gB, v)
		k.Load64("d", t)
		ifThere(k, "D", t, func() {
			f.MulAdd(d, dOut, v)
			f.MulAdd(u, dOut, sumD)
			f.MulAdd(d, u, y)
		})
		f.StoreMasked(v, mask, by(gu))
		f.Load(asm.At(rows, rowsDDelta), v)
		f.MulAdd(u, gB, v)
		k.Load64("softplus", t)
		ifThere(k, "Softplus", t, func() {
			f.LoadMasked(by(delta), mask, w)
			f.Add(bias, w, w)
			m.SoftplusSlope(w, w)
			f.Mul(w, v, v)
		})
		f.Add(v, sumBias, sumBias)
		f.StoreMasked(v, mask, by(gd))
		ifThere(k, "Z", z, func() {
			x, gate, slope := f.Vec(), f.Vec(), f.Vec()
			f.LoadMasked(byZ(z), mask, x)
			m.SiLUBoth(x, gate, slope)
			f.LoadMasked(by(dy), mask, x)
			f.Mul(y, x, x)
			f.Mul(slope, x, x)
			f.StoreMasked(x, mask, byZ(dz))
			f.Mul(gate, y, y)
		})
		ifThere(k, "Out", out, func() { f.StoreMasked(y, mask, by(out)) })
		k.Load64("step", t)
		k.ADDQ(t, at)
		k.Load64("zStep", t)
		k.ADDQ(t, zAt)
	}, rows, row)
	k.Load64("sumD", t)
	f.Store(sumD, asm.At(t, 0))
	k.Load64("sumBias", t)
	f.Store(sumBias, asm.At(t, 0))
	k.Return()
}
