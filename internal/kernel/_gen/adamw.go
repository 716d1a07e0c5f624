package main

import (
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// adamW writes the step of AdamW. It rounds at the same places as the loop in Go, so that the weights are the same bit for bit.
func adamW(isa asm.ISA) {
	f := asm.NewFile("kernel", isa)
	k := f.Func("adamW", "func(w, dw, m, v, c *float32, n int)",
		"adamW computes AdamW.step for n elements. dw is the gradient, and c points to the fields of AdamW.")
	// Go's assembler reserves the name g for a register.
	w, g, m, v, c, n := k.Ptr("w"), k.Ptr("dw"), k.Ptr("m"), k.Ptr("v"), k.Ptr("c"), k.Int("n")
	const (
		scale = iota
		beta1
		rest1
		beta2
		rest2
		rate
		root
		eps
		keep
		fields
	)
	broadcast := func(field int) reg.VecVirtual {
		r := k.Vec()
		k.Broadcast(asm.At(c, 4*field), r)
		return r
	}
	constant := broadcast // AVX2 has too few registers to hold them
	if isa == asm.AVX512 {
		var held [fields]reg.VecVirtual
		for i := range held {
			held[i] = broadcast(i)
		}
		constant = func(field int) reg.VecVirtual { return held[field] }
	}
	zero := k.Vec()
	k.Zero(zero)
	k.EachVector("adamW", n, 1, func(at reg.Register, _ int, mask *asm.Mask) {
		grad, mean, square, weight, t := k.Vec(), k.Vec(), k.Vec(), k.Vec(), k.Vec()
		k.LoadMasked(asm.AtIndex(g, at, 1, 0), mask, grad)
		k.Mul(grad, constant(scale), grad)

		k.LoadMasked(asm.AtIndex(m, at, 1, 0), mask, mean)
		k.Mul(mean, constant(beta1), mean)
		k.Mul(grad, constant(rest1), t)
		k.Add(mean, t, mean)

		k.LoadMasked(asm.AtIndex(v, at, 1, 0), mask, square)
		k.Mul(square, constant(beta2), square)
		k.Mul(grad, constant(rest2), t)
		k.Mul(t, grad, t)
		k.Add(square, t, square)

		k.StoreMasked(mean, mask, asm.AtIndex(m, at, 1, 0))
		k.StoreMasked(square, mask, asm.AtIndex(v, at, 1, 0))
		k.StoreMasked(zero, mask, asm.AtIndex(g, at, 1, 0))

		k.VSQRTPS(square, square)
		k.Mul(square, constant(root), square)
		k.Add(square, constant(eps), square)
		k.Mul(mean, constant(rate), mean)
		k.VDIVPS(square, mean, mean)
		k.LoadMasked(asm.AtIndex(w, at, 1, 0), mask, weight)
		k.Mul(weight, constant(keep), weight)
		k.Sub(mean, weight, weight)
		k.StoreMasked(weight, mask, asm.AtIndex(w, at, 1, 0))
	})
	k.Return()
	f.Write("..", "adamw")
}
