package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// rows writes the kernels for rows of RMSNorm and cross-entropy, and for sums in float64.
func rows(isa asm.ISA) {
	f := asm.NewFile("..", isa)

	k := f.Func("rowAdd64", "func(sum *float64, x *float32, n int)", "rowAdd64 computes sum[i] += float64(x[i]) for n elements.")
	sum, x, n := k.Ptr("sum"), k.Ptr("x"), k.Int("n")
	k.EachHalf("add64", n, 2, func(h asm.Half, at reg.Register, offset, _ int) {
		v, w := k.Vec(), k.Vec()
		h.Load(asm.AtIndex(x, at, 1, offset), v)
		h.Widen(v, w)
		h.Add64(asm.AtIndex(sum, at, 2, 2*offset), w)
		h.Store64(w, asm.AtIndex(sum, at, 2, 2*offset))
	})
	k.Return()

	k = f.Func("rowSums", "func(sum, rows *float32, count, stride, n int)", `rowSums computes the sum of count ≥ 1 rows of n elements:

	for i := range n {
		var all float64
		for r := range count {
			all += float64(rows[r*stride+i])
		}
		sum[i] = float32(all)
	}`)
	sums(k)
	k.Return()

	k = f.Func("rowSquares", "func(x *float32, n int) float64", "rowSquares returns Σ float64(x[i])² of n elements.")
	x, n = k.Ptr("x"), k.Int("n")
	k.ReturnSum64(squares(k, x, n))

	k = f.Func("rowAddProduct64", "func(sum *float64, a, b *float32, n int)", "rowAddProduct64 computes sum[i] += float64(a[i])·float64(b[i]) for n elements.")
	sum, a, b, n := k.Ptr("sum"), k.Ptr("a"), k.Ptr("b"), k.Int("n")
	k.EachHalf("addProduct64", n, 2, func(h asm.Half, at reg.Register, offset, _ int) {
		u, v, w := k.Vec(), k.Vec(), k.Vec()
		h.Load(asm.AtIndex(a, at, 1, offset), u)
		h.Widen(u, v)
		h.Load(asm.AtIndex(b, at, 1, offset), u)
		h.Widen(u, w)
		k.VMULPD(v, w, v)
		h.Add64(asm.AtIndex(sum, at, 2, 2*offset), v)
		h.Store64(v, asm.AtIndex(sum, at, 2, 2*offset))
	})
	k.Return()

	k = f.Func("rowSum", "func(x *float32, n int) float64", "rowSum returns Σ float64(x[i]) of n elements.")
	x, n = k.Ptr("x"), k.Int("n")
	accs := zeros(k, 4)
	k.EachHalf("sum", n, len(accs), func(h asm.Half, at reg.Register, offset, i int) {
		v, w := k.Vec(), k.Vec()
		h.Load(asm.AtIndex(x, at, 1, offset), v)
		h.Widen(v, w)
		k.VADDPD(w, accs[i], accs[i])
	})
	k.ReturnSum64(accs)

	k = f.Func("rowDot", "func(x, y *float32, n int) float64", "rowDot returns Σ float64(x[i])·float64(y[i]) of n elements.")
	x, y, n := k.Ptr("x"), k.Ptr("y"), k.Int("n")
	accs = zeros(k, 4)
	k.EachHalf("dot", n, len(accs), func(h asm.Half, at reg.Register, offset, i int) {
		u, v, w := k.Vec(), k.Vec(), k.Vec()
		h.Load(asm.AtIndex(x, at, 1, offset), u)
		h.Widen(u, v)
		h.Load(asm.AtIndex(y, at, 1, offset), u)
		h.Widen(u, w)
		h.MulAdd64(v, w, accs[i])
	})
	k.ReturnSum64(accs)

	k = f.Func("rowCentre", "func(c, x *float32, high, low float32, n int)", "rowCentre computes c[i] = x[i] - high - low for n elements.")
	c, x, n := k.Ptr("c"), k.Ptr("x"), k.Int("n")
	high, low := k.Scalar("high"), k.Scalar("low")
	k.EachVector("centre", n, 2, func(at reg.Register, vectors int, mask *asm.Mask) {
		for i := range vectors {
			v := k.Vec()
			k.LoadMasked(asm.AtIndex(x, at, 1, i*k.Bytes()), mask, v)
			k.Sub(high, v, v)
			k.Sub(low, v, v)
			k.StoreMasked(v, mask, asm.AtIndex(c, at, 1, i*k.Bytes()))
		}
	})
	k.Return()

	k = f.Func("rowNorm", "func(y, x, w *float32, s float32, n int)", "rowNorm computes y[i] = x[i]·s·w[i] for n elements.")
	y, x, w, n := k.Ptr("y"), k.Ptr("x"), k.Ptr("w"), k.Int("n")
	s := k.Scalar("s")
	normed(k, y, x, w, n, s)
	k.Return()

	k = f.Func("rowNormSums", "func(dw, dy, x, w *float32, s float32, n int) float64",
		"rowNormSums computes dw[i] += dy[i]·x[i]·s for n elements, and returns Σ dy[i]·w[i]·x[i]·s, summed in float64.")
	dw, dy, x, w, n := k.Ptr("dw"), k.Ptr("dy"), k.Ptr("x"), k.Ptr("w"), k.Int("n")
	s = k.Scalar("s")
	k.ReturnSum64(normSums(k, dw, dy, x, w, n, s))

	k = f.Func("rowNormBack", "func(dx, dy, x, w *float32, s, mean float32, n int)",
		"rowNormBack computes dx[i] = s·(dy[i]·w[i] - x[i]·s·mean) for n elements.")
	dx, dy, x, w, n := k.Ptr("dx"), k.Ptr("dy"), k.Ptr("x"), k.Ptr("w"), k.Int("n")
	s, mean := k.Scalar("s"), k.Scalar("mean")
	normBack(k, dx, dy, x, w, n, s, mean)
	k.Return()

	rmsNorm(f)
	rmsNormBack(f)

	k = f.Func("rowMax", "func(x *float32, n int) float32",
		"rowMax returns the largest of n elements that is not NaN, or -Inf if there is none.")
	x, n = k.Ptr("x"), k.Int("n")
	k.ReturnMax(largest(k, "max", x, n))

	expSum(f)
	crossEntropy(f, false)
	crossEntropy(f, true)
	f.Write("rows")
}

// largest writes the largest of n elements that is not NaN, or -Inf: the largest of all lanes of the vectors that it returns.
func largest(k *asm.Func, label string, x, n reg.Register) []reg.VecVirtual {
	tops := k.Vecs(4)
	for _, v := range tops {
		k.Broadcast(k.Const(float32(math.Inf(-1))), v)
	}
	k.EachVector(label, n, len(tops), func(at reg.Register, vectors int, mask *asm.Mask) {
		for i := range vectors {
			v := k.Vec()
			k.VMOVAPS(tops[0], v)
			k.LoadOver(asm.AtIndex(x, at, 1, i*k.Bytes()), mask, v)
			k.Max(tops[i], v, tops[i]) // the first operand if the second is NaN
		}
	})
	return tops
}

// crossEntropy writes the kernels of the cross-entropy of some rows, with and without gradients. A short row takes less time than the calls that it would need.
func crossEntropy(f *asm.File, write bool) {
	name, gradient := "rowsLoss", ""
	if write {
		name, gradient = "rowsGradient", `
		y = e·each/sum, but -others·each/sum for the target`
	}
	k := f.Func(name, "func(args *crossEntropyArgs)", name+` computes what a cross-entropy needs of each row of n elements:

	for range rows {
		e := exp(x - max(x))
		others, own := sum(e) without that of the target, in float64; that of the target
		sum = others + own
		gap = x - max(x) of the target, in float64`+gradient+`
	}`)
	x, all, rows, n, bytes := k.Ptr("x"), k.Ptr("all"), k.Int("rows"), k.Int("n"), k.Int("n")
	k.SHLQ(operand.U8(2), bytes)
	var y reg.Register
	if write {
		y = k.Ptr("y")
	}
	keep := asm.KeepFew // some instructions reach only the first 16 registers
	if f.ISA == asm.AVX2 {
		keep = asm.KeepNone
	}
	m := k.Math(keep)
	var numbers, each []uint32
	for i := range f.Lanes() {
		numbers, each = append(numbers, uint32(i)), append(each, uint32(f.Lanes()))
	}
	at := func(field int) operand.Mem { return operand.Mem{Base: all, Disp: 8 * field} } // of crossEntropyRow
	const target, sum, gap = 0, 1, 2

	top := k.Vec()
	k.VBROADCASTSS(k.MaxLane(largest(k, "first", x, n)).AsX(), top)
	k.Label("rows")
	t, own, wide := k.GP64(), k.XMM(), k.XMM()
	k.MOVQ(at(target), t)
	k.VMOVSS(asm.AtIndex(x, t, 4, 0), own)
	k.VCVTSS2SD(own, own, own)
	k.VCVTSS2SD(top.AsX(), top.AsX(), wide)
	k.VSUBSD(wide, own, own)
	k.VMOVSD(own, at(gap))

	left := k.Vec() // from the first element of a vector to the target
	k.VMOVD(t.As32(), left.AsX())
	k.VPBROADCASTD(left.AsX(), left)
	accs, ownExp := zeros(k, 2), zeros(k, 1)[0]
	k.EachVector("exp", n, 1, func(i reg.Register, _ int, mask *asm.Mask) {
		v, w := k.Vec(), k.Vec()
		k.LoadMasked(asm.AtIndex(x, i, 1, 0), mask, v)
		k.Sub(top, v, v)
		m.Exp(v, v)
		k.ClearOthers(v, mask)
		if write {
			k.StoreMasked(v, mask, asm.AtIndex(y, i, 1, 0))
		}
		k.Split(v, f.TableBits("numbers", numbers), left, w)
		k.Add(w, ownExp, ownExp)
		k.WidenAdd(v, accs[0], accs[1])
		k.VPSUBD(f.TableBits("laneCount", each), left, left)
	})
	k.ADDQ(bytes, x)
	k.CMPQ(rows, k.Imm(1))
	k.JE(asm.Label("last"))
	k.VBROADCASTSS(k.MaxLane(largest(k, "next", x, n)).AsX(), top) // now, so that the processor need not wait for it when it has this row's sums
	k.Label("last")
	others := k.Sum64(accs).AsX()
	halves := zeros(k, 2)
	k.WidenAdd(ownExp, halves[0], halves[1])
	both := k.Sum64(halves).AsX() // exactly the target's
	k.VADDSD(others, both, both)
	k.VMOVSD(both, at(sum))
	if write {
		factor, scale := k.XMM(), k.Vec()
		k.VMOVSD(k.Addr("each"), factor)
		k.VDIVSD(both, factor, factor)
		k.VMULSD(factor, others, others)
		k.VCVTSD2SS(factor, factor, factor)
		k.VBROADCASTSS(factor, scale)
		k.EachVector("scale", n, 4, func(i reg.Register, vectors int, mask *asm.Mask) {
			for j := range vectors {
				v := k.Vec()
				k.LoadMasked(asm.AtIndex(y, i, 1, j*k.Bytes()), mask, v)
				k.Mul(scale, v, v)
				k.StoreMasked(v, mask, asm.AtIndex(y, i, 1, j*k.Bytes()))
			}
		})
		k.VXORPD(factor, factor, factor)
		k.VSUBSD(others, factor, others)
		k.VCVTSD2SS(others, others, others)
		k.VMOVSS(others, asm.AtIndex(y, t, 4, 0))
		k.ADDQ(bytes, y)
	}
	k.ADDQ(operand.U8(8*3), all)
	k.DECQ(rows)
	k.JNE(asm.Label("rows"))
	k.Return()
}

// sums writes what rowSums computes: the sums of some columns stay in registers.
func sums(k *asm.Func) {
	sum, rows, count, stride, n := k.Ptr("sum"), k.Ptr("rows"), k.Int("count"), k.Int("stride"), k.Int("n")
	k.SHLQ(operand.U8(2), stride)
	loops := 0
	k.EachVector("sums", n, 4, func(at reg.Register, vectors int, mask *asm.Mask) {
		from, left, accs := k.GP64(), k.GP64(), zeros(k, 2*vectors)
		k.LEAQ(asm.AtIndex(rows, at, 1, 0), from)
		k.MOVQ(count, left)
		loops++
		label := fmt.Sprintf("sumsRows%d", loops)
		k.Label(label)
		for i := range vectors {
			v := k.Vec()
			k.LoadMasked(operand.Mem{Base: from, Disp: i * k.Bytes()}, mask, v)
			k.WidenAdd(v, accs[2*i], accs[2*i+1])
		}
		k.ADDQ(stride, from)
		k.DECQ(left)
		k.JNE(asm.Label(label))
		for i := range vectors {
			v := k.Vec()
			k.Join64(accs[2*i], accs[2*i+1], v)
			k.StoreMasked(v, mask, asm.AtIndex(sum, at, 1, i*k.Bytes()))
		}
	})
}

// squares writes the sum of the squares of n elements, in float64: the lanes of the vectors that it returns.
func squares(k *asm.Func, x, n reg.Register) []reg.VecVirtual {
	accs := zeros(k, 4)
	k.EachHalf("squares", n, len(accs), func(h asm.Half, at reg.Register, offset, i int) {
		v, w := k.Vec(), k.Vec()
		h.Load(asm.AtIndex(x, at, 1, offset), v)
		h.Widen(v, w)
		h.MulAdd64(w, w, accs[i])
	})
	return accs
}

// normed writes y = x·s·w for n elements.
func normed(k *asm.Func, y, x, w, n reg.Register, s reg.VecVirtual) {
	k.EachVector("norm", n, 2, func(at reg.Register, vectors int, mask *asm.Mask) {
		for i := range vectors {
			v, u := k.Vec(), k.Vec()
			k.LoadMasked(asm.AtIndex(x, at, 1, i*k.Bytes()), mask, v)
			k.LoadMasked(asm.AtIndex(w, at, 1, i*k.Bytes()), mask, u)
			k.Mul(s, v, v)
			k.Mul(u, v, v)
			k.StoreMasked(v, mask, asm.AtIndex(y, at, 1, i*k.Bytes()))
		}
	})
}

// normSums writes what rowNormSums computes. The sum is in the lanes of the vectors that it returns.
func normSums(k *asm.Func, dw, dy, x, w, n reg.Register, s reg.VecVirtual) []reg.VecVirtual {
	accs := zeros(k, 4)
	k.EachHalf("normSums", n, len(accs), func(h asm.Half, at reg.Register, offset, i int) {
		hat, g, sum, wide, wideHat := k.Vec(), k.Vec(), k.Vec(), k.Vec(), k.Vec()
		h.Load(asm.AtIndex(x, at, 1, offset), hat)
		h.Load(asm.AtIndex(dy, at, 1, offset), g)
		h.Load(asm.AtIndex(dw, at, 1, offset), sum)
		k.VMULPS(h.Narrow(s), h.Narrow(hat), h.Narrow(hat))
		k.VFMADD231PS(h.Narrow(hat), h.Narrow(g), h.Narrow(sum))
		h.Store(sum, asm.AtIndex(dw, at, 1, offset))
		h.Load(asm.AtIndex(w, at, 1, offset), sum)
		k.VMULPS(h.Narrow(sum), h.Narrow(g), h.Narrow(g))
		h.Widen(g, wide)
		h.Widen(hat, wideHat)
		h.MulAdd64(wide, wideHat, accs[i])
	})
	return accs
}

// normBack writes what rowNormBack computes.
func normBack(k *asm.Func, dx, dy, x, w, n reg.Register, s, mean reg.VecVirtual) {
	k.EachVector("normBack", n, 2, func(at reg.Register, vectors int, mask *asm.Mask) {
		for i := range vectors {
			hat, g, u := k.Vec(), k.Vec(), k.Vec()
			k.LoadMasked(asm.AtIndex(x, at, 1, i*k.Bytes()), mask, hat)
			k.LoadMasked(asm.AtIndex(dy, at, 1, i*k.Bytes()), mask, g)
			k.LoadMasked(asm.AtIndex(w, at, 1, i*k.Bytes()), mask, u)
			k.Mul(s, hat, hat)
			k.Mul(u, g, g)
			k.VFNMADD231PS(mean, hat, g)
			k.Mul(s, g, g)
			k.StoreMasked(g, mask, asm.AtIndex(dx, at, 1, i*k.Bytes()))
		}
	})
}

// rmsScale writes 1/√(mean(x²) + eps), rounded to float32, into each lane of a vector. Its operations on float64 are those of Go.
func rmsScale(k *asm.Func, x, n reg.Register) reg.VecVirtual {
	sum, one, s := k.Sum64(squares(k, x, n)).AsX(), k.XMM(), k.Vec()
	k.VDIVSD(k.Addr("count"), sum, sum)
	k.VADDSD(k.Addr("eps"), sum, sum)
	k.VSQRTSD(sum, sum, sum)
	k.VMOVSD(k.Float64(1), one)
	k.VDIVSD(sum, one, sum)
	k.VCVTSD2SS(sum, sum, sum)
	k.VBROADCASTSS(sum, s)
	return s
}

// rmsNorm and rmsNormBack write the kernels of RMSNorm. A short row takes less time than a call, and while one row waits for its root the processor computes
// the next one.
func rmsNorm(f *asm.File) {
	k := f.Func("rmsNormRows", "func(args *rmsNormArgs)", `rmsNormRows computes a norm:

	for range rows {
		s := float32(1 / sqrt(squares(x)/count+eps))
		y = x·s·w // n elements
	}`)
	y, x, w, rows, n, bytes := k.Ptr("y"), k.Ptr("x"), k.Ptr("w"), k.Int("rows"), k.Int("n"), k.Int("n")
	k.SHLQ(operand.U8(2), bytes)
	k.Label("rows")
	normed(k, y, x, w, n, rmsScale(k, x, n))
	k.ADDQ(bytes, y)
	k.ADDQ(bytes, x)
	k.DECQ(rows)
	k.JNE(asm.Label("rows"))
	k.Return()
}

func rmsNormBack(f *asm.File) {
	k := f.Func("rmsNormBackRows", "func(args *rmsNormArgs)", `rmsNormBackRows computes the gradients of a norm:

	for range rows {
		s := float32(1 / sqrt(squares(x)/count+eps))
		dw += dy·x·s
		mean := float32(sum(dy·w·x·s)/count)
		dx = s·(dy·w - x·s·mean) // n elements
	}`)
	dx, dy, x, w, dw, rows, n := k.Ptr("dx"), k.Ptr("dy"), k.Ptr("x"), k.Ptr("w"), k.Ptr("dw"), k.Int("rows"), k.Int("n")
	bytes := k.Int("n")
	k.SHLQ(operand.U8(2), bytes)
	k.Label("rows")
	s, mean := rmsScale(k, x, n), k.Vec()
	dot := k.Sum64(normSums(k, dw, dy, x, w, n, s)).AsX()
	k.VDIVSD(k.Addr("count"), dot, dot)
	k.VCVTSD2SS(dot, dot, dot)
	k.VBROADCASTSS(dot, mean)
	normBack(k, dx, dy, x, w, n, s, mean)
	k.ADDQ(bytes, dx)
	k.ADDQ(bytes, dy)
	k.ADDQ(bytes, x)
	k.DECQ(rows)
	k.JNE(asm.Label("rows"))
	k.Return()
}

func zeros(k *asm.Func, n int) []reg.VecVirtual {
	v := k.Vecs(n)
	for _, r := range v {
		k.Zero(r)
	}
	return v
}

func expSum(f *asm.File) {
	k := f.Func("rowExpSumTo", "func(y, x *float32, top float32, n int) float64",
		"rowExpSumTo computes y[i] = e^(x[i]-top) for n elements, and returns Σ y[i], summed in float64.")
	y, x, n, top := k.Ptr("y"), k.Ptr("x"), k.Int("n"), k.Scalar("top")
	m := k.Math(registers(f))
	accs := zeros(k, 2)
	k.EachVector("exp", n, 1, func(at reg.Register, _ int, mask *asm.Mask) {
		v := k.Vec()
		k.LoadMasked(asm.AtIndex(x, at, 1, 0), mask, v)
		k.Sub(top, v, v)
		m.Exp(v, v)
		k.ClearOthers(v, mask)
		k.StoreMasked(v, mask, asm.AtIndex(y, at, 1, 0))
		k.WidenAdd(v, accs[0], accs[1])
	})
	k.ReturnSum64(accs)
}
