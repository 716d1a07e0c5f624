package asm

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Half is the unit of a loop over float32 that are converted to float64: half a vector, or a single element of the rest. A vector holds
// half as many float64 as float32.
type Half struct {
	*File
	Single bool
}

// EachHalf writes a loop over n elements. It uses body unroll times in a loop over unroll half vectors, once in a loop over half vectors, and
// once in a loop over the single elements of the rest. body gets the offset of the float32 in bytes, as a register plus a constant, and the
// number of the half within the unrolled loop.
func (f *File) EachHalf(label string, n reg.Register, unroll int, body func(h Half, at reg.Register, offset, i int)) {
	at, left := f.GP64(), f.GP64()
	f.XORQ(at, at)
	f.MOVQ(n, left)
	loop := func(name, next string, h Half, size, times int) {
		f.Label(label + name)
		f.CMPQ(left, f.Imm(size*times))
		f.JL(Label(label + next))
		for i := range times {
			body(h, at, 4*size*i, i)
		}
		f.ADDQ(f.Imm(4*size*times), at)
		f.SUBQ(f.Imm(size*times), left)
		f.JMP(Label(label + name))
	}
	if unroll > 1 {
		loop("Many", "One", Half{f, false}, f.Lanes()/2, unroll)
	}
	loop("One", "Single", Half{f, false}, f.Lanes()/2, 1)
	loop("Single", "Done", Half{f, true}, 1, 1)
	f.Label(label + "Done")
}

// Narrow returns the part of register v that holds the float32.
func (h Half) Narrow(v reg.VecVirtual) reg.Register {
	if h.ISA == AVX512 && !h.Single {
		return v.AsY()
	}
	return v.AsX()
}

// Load and Store move float32 from and to memory. Store64 moves float64.
func (h Half) Load(from operand.Mem, to reg.VecVirtual) {
	if h.Single {
		h.VMOVSS(from, to.AsX())
	} else {
		h.VMOVUPS(from, h.Narrow(to))
	}
}

func (h Half) Store(v reg.VecVirtual, to operand.Mem) {
	if h.Single {
		h.VMOVSS(v.AsX(), to)
	} else {
		h.VMOVUPS(h.Narrow(v), to)
	}
}

func (h Half) Store64(v reg.VecVirtual, to operand.Mem) {
	if h.Single {
		h.VMOVSD(v.AsX(), to)
	} else {
		h.VMOVUPD(v, to)
	}
}

// Add64 computes to += from, where from is float64 in memory.
func (h Half) Add64(from operand.Mem, to reg.VecVirtual) {
	if h.Single {
		h.VADDSD(from, to.AsX(), to.AsX())
	} else {
		h.VADDPD(from, to, to)
	}
}

// Widen converts v to float64. For a single element, it sets the other lanes to zero.
func (h Half) Widen(v, to reg.VecVirtual) {
	if h.Single {
		h.VMOVQ(v.AsX(), to.AsX()) // also clears the upper lanes
		h.VCVTPS2PD(to.AsX(), to.AsX())
	} else {
		h.VCVTPS2PD(h.Narrow(v), to)
	}
}

// MulAdd64 computes acc += a·b in float64.
func (h Half) MulAdd64(a, b, acc reg.VecVirtual) { h.VFMADD231PD(a, b, acc) }

// WidenAdd adds the low half of v to low and the high half to high, in float64. It overwrites v.
func (f *File) WidenAdd(v, low, high reg.VecVirtual) {
	t := f.Vec()
	if f.ISA == AVX512 {
		f.VCVTPS2PD(v.AsY(), t)
		f.VEXTRACTF64X4(operand.U8(1), v, v.AsY())
		f.VADDPD(t, low, low)
		f.VCVTPS2PD(v.AsY(), t)
	} else {
		f.VCVTPS2PD(v.AsX(), t)
		f.VEXTRACTF128(operand.U8(1), v, v.AsX())
		f.VADDPD(t, low, low)
		f.VCVTPS2PD(v.AsX(), t)
	}
	f.VADDPD(t, high, high)
}

// Join64 rounds low and high, the halves of a vector in float64, to float32. It overwrites high.
func (f *File) Join64(low, high, to reg.VecVirtual) {
	if f.ISA == AVX512 {
		f.VCVTPD2PS(low, to.AsY())
		f.VCVTPD2PS(high, high.AsY())
		f.VINSERTF64X4(operand.U8(1), high.AsY(), to, to)
	} else {
		f.VCVTPD2PSY(low, to.AsX())
		f.VCVTPD2PSY(high, high.AsX())
		f.VINSERTF128(operand.U8(1), high.AsX(), to, to)
	}
}

// ReturnSum64 ends a function that returns the sum of all lanes of vectors of float64. It overwrites v.
func (k *Func) ReturnSum64(v []reg.VecVirtual) {
	k.Context.Store(k.Sum64(v).AsX(), k.Context.ReturnIndex(0))
	k.Return()
}

// Sum64 returns a register whose first lane is the sum of all lanes of vectors of float64. It overwrites v.
func (f *File) Sum64(v []reg.VecVirtual) reg.VecVirtual {
	for n := len(v); n > 1; n = (n + 1) / 2 {
		for i := range n / 2 {
			f.VADDPD(v[n-1-i], v[i], v[i])
		}
	}
	sum, t := v[0], f.Vec()
	if f.ISA == AVX512 {
		f.VEXTRACTF64X4(operand.U8(1), sum, t.AsY())
		f.VADDPD(t.AsY(), sum.AsY(), sum.AsY())
	}
	f.VEXTRACTF128(operand.U8(1), sum.AsY(), t.AsX())
	f.VADDPD(t.AsX(), sum.AsX(), sum.AsX())
	f.VUNPCKHPD(sum.AsX(), sum.AsX(), t.AsX())
	f.VADDSD(t.AsX(), sum.AsX(), sum.AsX())
	return sum
}

// ReturnMax ends a function that returns the largest lane of vectors of float32. It overwrites v.
func (k *Func) ReturnMax(v []reg.VecVirtual) {
	k.Context.Store(k.MaxLane(v).AsX(), k.Context.ReturnIndex(0))
	k.Return()
}

// MaxLane returns a register whose first lane is the largest lane of vectors of float32. It overwrites v.
func (k *File) MaxLane(v []reg.VecVirtual) reg.VecVirtual {
	for _, w := range v[1:] {
		k.Max(v[0], w, v[0])
	}
	top, t := v[0], k.Vec()
	if k.ISA == AVX512 {
		k.VEXTRACTF64X4(operand.U8(1), top, t.AsY())
		k.VMAXPS(t.AsY(), top.AsY(), top.AsY())
	}
	k.VEXTRACTF128(operand.U8(1), top.AsY(), t.AsX())
	k.VMAXPS(t.AsX(), top.AsX(), top.AsX())
	for _, shuffle := range []uint8{0b1110, 0b0001} {
		k.VPERMILPS(operand.U8(shuffle), top.AsX(), t.AsX())
		k.VMAXPS(t.AsX(), top.AsX(), top.AsX())
	}
	return top
}

// Scalar returns a vector with a float32 argument in every lane.
func (k *Func) Scalar(name string) reg.VecVirtual {
	v := k.Vec()
	k.Broadcast(k.Addr(name), v)
	return v
}
