package asm

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Mask selects the first lanes of a vector, for the end of a row. A nil Mask selects all lanes.
type Mask struct {
	k reg.Register // AVX-512
	v reg.Register // AVX2: all bits of the selected lanes are set
}

// FirstLanes returns a mask of the first n lanes, 0 ≤ n ≤ Lanes().
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

// LoadMasked reads the lanes that m selects, and no other memory. It sets the other lanes to zero.
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

// StoreMasked writes the lanes that m selects, and no other memory.
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

// LoadOver is LoadMasked, but keeps the values of the other lanes.
func (f *File) LoadOver(from operand.Op, m *Mask, to reg.Register) {
	switch {
	case m == nil:
		f.VMOVUPS(from, to)
	case f.ISA == AVX512:
		f.VMOVUPS(from, m.k, to)
	default:
		t := f.Vec()
		f.VMASKMOVPS(from, m.v, t)
		f.VBLENDVPS(m.v, t, to, to)
	}
}

// ClearOthers sets the lanes that m does not select to zero.
func (f *File) ClearOthers(v reg.Register, m *Mask) {
	switch {
	case m == nil:
	case f.ISA == AVX512:
		f.VMOVAPS_Z(v, m.k, v)
	default:
		f.VANDPS(m.v, v, v)
	}
}

// Split moves the lanes of v whose number in memory equals that in register to own, and sets them to zero in v. The other lanes of own become zero.
func (f *File) Split(v reg.VecVirtual, memory operand.Mem, register, own reg.VecVirtual) {
	if f.ISA == AVX512 {
		k := f.K()
		f.VPCMPEQD(memory, register, k)
		f.VMOVAPS_Z(v, k, own)
		f.KNOTW(k, k)
		f.VMOVAPS_Z(v, k, v)
		return
	}
	f.VPCMPEQD(memory, register, own)
	t := f.Vec()
	f.VANDNPS(v, own, t)
	f.VANDPS(v, own, own)
	f.VMOVAPS(t, v)
}

// EachVector writes a loop over n elements. It uses body in a loop over unroll vectors at a time, in a loop over single vectors, and once for
// the rest, with a mask. at is a register with the offset in bytes of the vectors from the beginning of a row, to be added to a base with
// scale 1. vectors is the number of vectors to process. EachVector does not change n.
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
