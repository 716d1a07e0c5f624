package main

import (
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// adamW writes the step of AdamW. It rounds at the same places as the loop in Go, so that the weights are the same bit for bit.
func adamW(isa asm.ISA) {
	f := asm.NewFile("..", isa)
	k := f.Func("adamW", "func(args *adamWArgs)", "adamW is AdamW.loop for n elements.")
	w, g, m, v, n := k.Ptr("w"), k.Ptr("g"), k.Ptr("m"), k.Ptr("v"), k.Int("n")
	broadcast := func(field string) reg.VecVirtual {
		r := k.Vec()
		k.Broadcast(k.AddrOf(k.Param("AdamW").Field(field)), r)
		return r
	}
	constant := broadcast // AVX2 has too few registers to hold them
	if isa == asm.AVX512 {
		held := map[string]reg.VecVirtual{}
		for _, field := range []string{"Scale", "Beta1", "Rest1", "Beta2", "Rest2", "Rate", "Root", "Eps", "Keep"} {
			held[field] = broadcast(field)
		}
		constant = func(field string) reg.VecVirtual { return held[field] }
	}
	k.EachVector("adamW", n, 1, func(at reg.Register, _ int, mask *asm.Mask) {
		grad, mean, square, weight, t := k.Vec(), k.Vec(), k.Vec(), k.Vec(), k.Vec()
		k.LoadMasked(asm.AtIndex(g, at, 1, 0), mask, grad)
		k.Mul(grad, constant("Scale"), grad)

		k.LoadMasked(asm.AtIndex(m, at, 1, 0), mask, mean)
		k.Mul(mean, constant("Beta1"), mean)
		k.Mul(grad, constant("Rest1"), t)
		k.Add(mean, t, mean)

		k.LoadMasked(asm.AtIndex(v, at, 1, 0), mask, square)
		k.Mul(square, constant("Beta2"), square)
		k.Mul(grad, constant("Rest2"), t)
		k.Mul(t, grad, t)
		k.Add(square, t, square)

		k.StoreMasked(mean, mask, asm.AtIndex(m, at, 1, 0))
		k.StoreMasked(square, mask, asm.AtIndex(v, at, 1, 0))

		k.VSQRTPS(square, square)
		k.Mul(square, constant("Root"), square)
		k.Add(square, constant("Eps"), square)
		k.Mul(mean, constant("Rate"), mean)
		k.VDIVPS(square, mean, mean)
		k.LoadMasked(asm.AtIndex(w, at, 1, 0), mask, weight)
		k.Mul(weight, constant("Keep"), weight)
		k.Sub(mean, weight, weight)
		k.StoreMasked(weight, mask, asm.AtIndex(w, at, 1, 0))
	})
	k.Return()
	f.Write("adamw")
}
