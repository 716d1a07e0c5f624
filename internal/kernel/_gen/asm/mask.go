package asm

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Mask selects the first lanes of a vector: for the tail of a row. A nil Mask selects all of them.
type Mask struct {
	k reg.Register // AVX-512
	v reg.Register // AVX2: all bits of the lanes selected
}

// FirstLanes returns a mask of the first n lanes, n from 0 to the number of lanes.
func (f *File) FirstLanes(n reg.Register) *Mask {
	t := f.GP64()
	if f.ISA == AVX512 {
		m := &Mask{k: f.K()}
		f.MOVQ(operand.I32(-1), t)
		f.BZHIQ(n, t, t)
		f.KMOVW(t.As32(), m.k)
		return m
	}
	m := &Mask{v: f.Vec()}
	bits := make([]uint32, 16)
	for i := range 8 {
		bits[i] = 1<<32 - 1
	}
	f.LEAQ(f.TableBits("lanes", bits).Offset(32), t)
	index := f.GP64()
	f.MOVQ(n, index)
	f.NEGQ(index)
	f.VMOVUPS(AtIndex(t, index, 4, 0), m.v)
	return m
}

// LoadMasked reads the lanes that m selects, and no memory beside them; the other lanes are zero.
func (f *File) LoadMasked(from operand.Op, m *Mask, to reg.Register) {
	switch {
	case m == nil:
		f.VMOVUPS(from, to)
	case f.ISA == AVX512:
		f.VMOVUPS_Z(from, m.k, to)
	default:
		f.VMASKMOVPS(from, m.v, to)
	}
}

// StoreMasked writes the lanes that m selects, and no memory beside them.
func (f *File) StoreMasked(v reg.Register, m *Mask, to operand.Op) {
	switch {
	case m == nil:
		f.VMOVUPS(v, to)
	case f.ISA == AVX512:
		f.VMOVUPS(v, m.k, to)
	default:
		f.VMASKMOVPS(v, m.v, to)
	}
}

// EachHalf is EachVector for kernels that convert to float64, of which a register holds half as many: once for each half of
// a vector, and once for each element of the rest. The body takes the offset in bytes of the float32 in a register, and
// whether it is a single one.
func (f *File) EachHalf(label string, n reg.Register, body func(at reg.Register, single bool)) {
	at, left := f.GP64(), f.GP64()
	f.XORQ(at, at)
	f.MOVQ(n, left)
	for _, single := range []bool{false, true} {
		size, name, next := f.Lanes()/2, label+"Half", label+"Single"
		if single {
			size, name, next = 1, label+"Single", label+"Done"
		}
		f.Label(name)
		f.CMPQ(left, f.Imm(size))
		f.JL(Label(next))
		body(at, single)
		f.ADDQ(f.Imm(4*size), at)
		f.SUBQ(f.Imm(size), left)
		f.JMP(Label(name))
	}
	f.Label(label + "Done")
}

// Widen converts half a vector of float32 to a vector of float64, or a single one to the lowest lane of one whose others are
// zero.
func (f *File) Widen(from operand.Mem, single bool, to reg.VecVirtual) {
	switch {
	case single:
		f.VMOVSS(from, to.AsX())
		f.VCVTPS2PD(to.AsX(), to.AsX())
	default:
		f.VCVTPS2PD(from, to)
	}
}

// EachVector writes a loop over the n elements of rows: body once for so many vectors at a time, once for a vector, and once
// for the rest, which is masked. The body takes the offset in bytes of its vectors from each row's beginning, in a register,
// which operands add to a base with scale 1, and how many vectors it is; it keeps n.
func (f *File) EachVector(label string, n reg.Register, unroll int, body func(at reg.Register, vectors int, mask *Mask)) {
	at, left := f.GP64(), f.GP64()
	f.XORQ(at, at)
	f.MOVQ(n, left)
	loop := func(name string, vectors int, next string) {
		f.Label(label + name)
		f.CMPQ(left, f.Imm(vectors*f.Lanes()))
		f.JL(Label(label + next))
		body(at, vectors, nil)
		f.ADDQ(f.Imm(vectors*f.Bytes()), at)
		f.SUBQ(f.Imm(vectors*f.Lanes()), left)
		f.JMP(Label(label + name))
	}
	if unroll > 1 {
		loop("Many", unroll, "One")
	}
	loop("One", 1, "Rest")
	f.Label(label + "Rest")
	f.TESTQ(left, left)
	f.JZ(Label(label + "Done"))
	body(at, 1, f.FirstLanes(left))
	f.Label(label + "Done")
}
