package main

import (
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// vector writes the kernels of the elementwise functions.
func vector(isa asm.ISA) {
	f := asm.NewFile("..", isa)

	mathOf(f, "vecNegExp", "-e^x", func(m *asm.Math, x, y reg.Register) { m.Exp(x, y); m.Negate(y, y) })
	mathOf(f, "vecSigmoid", "sigmoid(x)", func(m *asm.Math, x, y reg.Register) { m.Sigmoid(x, y) })
	mathOf(f, "vecSiLU", "silu(x)", func(m *asm.Math, x, y reg.Register) { m.SiLU(x, y) })
	mathBack(f, "vecNegExpBack", "-e^x", func(m *asm.Math, x, y reg.Register) { m.Exp(x, y); m.Negate(y, y) })
	mathBack(f, "vecSiLUBack", "siluSlope(x)", func(m *asm.Math, x, y reg.Register) { m.SiLUSlope(x, y) })

	k := f.Func("vecSum", "func(y, a, b *float32, n int)", "vecSum computes y[i] = a[i] + b[i] for n elements.")
	y, a, b, n := k.Ptr("y"), k.Ptr("a"), k.Ptr("b"), k.Int("n")
	k.EachVector("sum", n, 4, func(at reg.Register, vectors int, mask *asm.Mask) {
		for i := range vectors {
			v, w := k.Vec(), k.Vec()
			k.LoadMasked(asm.AtIndex(a, at, 1, i*k.Bytes()), mask, v)
			k.LoadMasked(asm.AtIndex(b, at, 1, i*k.Bytes()), mask, w)
			k.Add(v, w, v)
			k.StoreMasked(v, mask, asm.AtIndex(y, at, 1, i*k.Bytes()))
		}
	})
	k.Return()

	k = f.Func("vecAddProduct", "func(y, w, x *float32, n int)", "vecAddProduct computes y[i] += w[i]·x[i] for n elements.")
	y, a, b, n = k.Ptr("y"), k.Ptr("w"), k.Ptr("x"), k.Int("n")
	k.EachVector("addProduct", n, 4, func(at reg.Register, vectors int, mask *asm.Mask) {
		for i := range vectors {
			u, v, w := k.Vec(), k.Vec(), k.Vec()
			k.LoadMasked(asm.AtIndex(y, at, 1, i*k.Bytes()), mask, u)
			k.LoadMasked(asm.AtIndex(a, at, 1, i*k.Bytes()), mask, v)
			k.LoadMasked(asm.AtIndex(b, at, 1, i*k.Bytes()), mask, w)
			k.MulAdd(v, w, u)
			k.StoreMasked(u, mask, asm.AtIndex(y, at, 1, i*k.Bytes()))
		}
	})
	k.Return()

	scaled(f, "vecAxpy", "y[i] += a·x[i]", true)
	scaled(f, "vecScale", "y[i] = a·x[i]", false)
	f.Write("vector")
}

// mathOf writes a kernel that computes y[i] = f(x[i]).
func mathOf(f *asm.File, name, what string, of func(m *asm.Math, x, y reg.Register)) {
	k := f.Func(name, "func(y, x *float32, n int)", name+" computes y[i] = "+what+" for n elements.")
	yp, xp, n := k.Ptr("y"), k.Ptr("x"), k.Int("n")
	m := k.Math(registers(f))
	k.EachVector(name, n, 1, func(at reg.Register, _ int, mask *asm.Mask) {
		x, y := k.Vec(), k.Vec()
		k.LoadMasked(asm.AtIndex(xp, at, 1, 0), mask, x)
		of(m, x, y)
		k.StoreMasked(y, mask, asm.AtIndex(yp, at, 1, 0))
	})
	k.Return()
}

// mathBack writes a kernel that computes dx[i] = f(x[i])·dy[i].
func mathBack(f *asm.File, name, what string, of func(m *asm.Math, x, y reg.Register)) {
	k := f.Func(name, "func(dx, dy, x *float32, n int)", name+" computes dx[i] = "+what+"·dy[i] for n elements.")
	dxp, dyp, xp, n := k.Ptr("dx"), k.Ptr("dy"), k.Ptr("x"), k.Int("n")
	m := k.Math(registers(f))
	k.EachVector(name, n, 1, func(at reg.Register, _ int, mask *asm.Mask) {
		x, y, dy := k.Vec(), k.Vec(), k.Vec()
		k.LoadMasked(asm.AtIndex(xp, at, 1, 0), mask, x)
		of(m, x, y)
		k.LoadMasked(asm.AtIndex(dyp, at, 1, 0), mask, dy)
		k.Mul(y, dy, y)
		k.StoreMasked(y, mask, asm.AtIndex(dxp, at, 1, 0))
	})
	k.Return()
}

// registers returns how many constants stay in registers. AVX2 has only 16 registers.
func registers(f *asm.File) int {
	if f.ISA == asm.AVX2 {
		return asm.KeepFew
	}
	return asm.KeepExp
}

// scaled writes a kernel that computes y[i] = a·x[i], or y[i] += a·x[i] if add.
func scaled(f *asm.File, name, what string, add bool) {
	k := f.Func(name, "func(y, x *float32, a float32, n int)", name+" computes "+what+" for n elements.")
	yp, xp, n, a := k.Ptr("y"), k.Ptr("x"), k.Int("n"), k.Scalar("a")
	k.EachVector(name, n, 4, func(at reg.Register, vectors int, mask *asm.Mask) {
		for i := range vectors {
			x := k.Vec()
			k.LoadMasked(asm.AtIndex(xp, at, 1, i*k.Bytes()), mask, x)
			if to := asm.AtIndex(yp, at, 1, i*k.Bytes()); add {
				y := k.Vec()
				k.LoadMasked(to, mask, y)
				k.MulAdd(x, a, y)
				k.StoreMasked(y, mask, to)
			} else {
				k.Mul(a, x, x)
				k.StoreMasked(x, mask, to)
			}
		}
	})
	k.Return()
}
