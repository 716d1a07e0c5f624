package asm

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// The constants of the functions below. Those that gain most from a register come first: read from memory, each of the first four costs an
// additional instruction, the others none.
const (
	cShift = iota // 1.5·2^23: a sum with it has no bits for a fraction
	cLow          // exp of smaller values is 0
	cHigh         // exp of larger values is +Inf
	cOne
	cE6    // Σ e_i r^i, with e_0 = e_1 = 1, is exp(r) for |r| up to ln 2 / 2, within 3.1e-9 (minimax of the relative error)
	cLog2E // 1/ln 2
	cLn2Hi // ln 2 rounded to float32
	cLn2Lo // ln 2 - cLn2Hi
	cE5
	cE4
	cE3
	cE2
	cSign // the sign bit
	cBias // bits of cShift - 254; subtracted from the bits of cShift + k it leaves k + 254, twice the exponent's bias; only for AVX2
	cHalf
	cL9 // s + Σ l_i s^i is log((1+s/2)/(1-s/2)) for s up to 2/3, within 4.5e-9 (minimax of the relative error)
	cL7
	cL5
	cL3
	constants
)

var constant = [constants]struct {
	name string
	bits uint32
}{
	cShift: {"shift", math.Float32bits(12582912)},
	cLow:   {"low", math.Float32bits(-105)},
	cHigh:  {"high", math.Float32bits(89)},
	cOne:   {"one", math.Float32bits(1)},
	cE6:    {"e6", math.Float32bits(0.00138145988)},
	cLog2E: {"log2e", math.Float32bits(1.44269504088896341)},
	cLn2Hi: {"ln2hi", math.Float32bits(0.693147182464599609375)},
	cLn2Lo: {"ln2lo", math.Float32bits(-1.90465429995776e-9)},
	cE5:    {"e5", math.Float32bits(0.00836871658)},
	cE4:    {"e4", math.Float32bits(0.041668389)},
	cE3:    {"e3", math.Float32bits(0.166665211)},
	cE2:    {"e2", math.Float32bits(0.49999994)},
	cSign:  {"sign", 1 << 31},
	cBias:  {"bias", 0x4b400000 - 254},
	cHalf:  {"half", math.Float32bits(0.5)},
	cL9:    {"l9", math.Float32bits(0.280187726 / 512)},
	cL7:    {"l7", math.Float32bits(0.280005366 / 128)},
	cL5:    {"l5", math.Float32bits(0.400215983 / 32)},
	cL3:    {"l3", math.Float32bits(0.666664124 / 8)},
}

// Math writes functions of vectors. They accept any x. The result for NaN is NaN.
//
// If a function's comment allows it, to may be the register of x. Otherwise x is preserved. The errors are the largest that
// internal/kernel/vector_test.go measured over the whole range, compared with float64.
type Math struct {
	*File
	kept [constants]reg.Register
}

// Numbers of constants that Math keeps in registers: none, the most important, and those of Exp, Sigmoid and SiLU.
const (
	KeepNone = 0
	KeepFew  = cE6 + 1
	KeepExp  = cBias + 1
)

// Math returns a Math that keeps the first keep constants in registers. It writes the code that loads them. Other constants are read from
// memory.
func (f *File) Math(keep int) *Math {
	m := &Math{File: f}
	for i := range keep {
		if i == cBias && f.ISA == AVX512 {
			continue
		}
		r := f.Vec()
		f.VBROADCASTSS(f.Bits(constant[i].bits), r)
		m.kept[i] = r
	}
	return m
}

// with writes an instruction whose first operand is a constant. broadcast is the form of ins whose operand in memory is broadcast.
func (m *Math) with(c int, ins, broadcast func(...operand.Op), rest ...operand.Op) {
	switch {
	case m.kept[c] != nil:
		ins(append([]operand.Op{m.kept[c]}, rest...)...)
	case m.ISA == AVX512:
		broadcast(append([]operand.Op{m.Bits(constant[c].bits)}, rest...)...)
	default:
		ins(append([]operand.Op{m.lanes(c)}, rest...)...)
	}
}

// lanes returns the address of a vector with a constant in each lane. AVX2 has no broadcast operands.
func (m *Math) lanes(c int) operand.Mem {
	v := make([]uint32, 8)
	for i := range v {
		v[i] = constant[c].bits
	}
	return m.TableBits(fmt.Sprintf("math_%s", constant[c].name), v)
}

// fetch copies a constant to a register.
func (m *Math) fetch(c int, to reg.Register) {
	if m.kept[c] != nil {
		m.VMOVAPS(m.kept[c], to)
	} else {
		m.VBROADCASTSS(m.Bits(constant[c].bits), to)
	}
}

// in returns a register with a constant: the register that keeps it, or else other, into which it loads the constant.
func (m *Math) in(c int, other reg.Register) reg.Register {
	if m.kept[c] != nil {
		return m.kept[c]
	}
	m.fetch(c, other)
	return other
}

// horner computes p = p·x + c.
func (m *Math) horner(c int, x, p reg.Register) { m.with(c, m.VFMADD213PS, m.VFMADD213PS_BCST, x, p) }

// Exp computes to = e^x. The error is at most 0.9 units in the last place, or of the smallest float32 if the result is denormal. to may be
// the register of x.
//
// x = k·ln 2 + r with an integer k. The products with k are exact, because they are fused with the sum.
func (m *Math) Exp(x, to reg.Register) { m.exp(x, to, true) }

// exp is Exp. Without bounded, x must be at most 89.
func (m *Math) exp(x, to reg.Register, bounded bool) {
	k, p := m.Vec(), m.Vec()
	m.VMAXPS(x, m.in(cLow, p), to) // VMAXPS and VMINPS return their first operand if one operand is NaN
	if bounded {
		m.VMINPS(to, m.in(cHigh, p), to)
	}
	m.fetch(cShift, k)
	m.with(cLog2E, m.VFMADD231PS, m.VFMADD231PS_BCST, to, k)
	shifted := k
	if m.ISA == AVX2 {
		shifted, k = k, m.Vec()
	}
	m.with(cShift, m.VSUBPS, m.VSUBPS_BCST, shifted, k)
	m.with(cLn2Hi, m.VFNMADD231PS, m.VFNMADD231PS_BCST, k, to)
	m.with(cLn2Lo, m.VFNMADD231PS, m.VFNMADD231PS_BCST, k, to)
	m.fetch(cE6, p)
	for _, c := range []int{cE5, cE4, cE3, cE2, cOne, cOne} {
		m.horner(c, to, p)
	}
	if m.ISA == AVX512 {
		m.VSCALEFPS(k, p, to)
		return
	}
	// 2^k is multiplied in two factors, so that denormal and very large results are correct: only the second product rounds.
	half := to
	m.with(cBias, m.VPSUBD, nil, shifted, shifted) // k + 254
	m.VPSRAD(operand.U8(1), shifted, half)
	m.VPSUBD(half, shifted, shifted)
	m.VPSLLD(operand.U8(23), half, half)
	m.VPSLLD(operand.U8(23), shifted, shifted)
	m.VMULPS(shifted, p, p)
	m.VMULPS(half, p, to)
}

// Negate computes to = -x. to may be the register of x.
func (m *Math) Negate(x, to reg.Register) { m.with(cSign, m.VXORPS, m.VXORPS_BCST, x, to) }

// Sigmoid computes to = 1/(1+e^-x). The error is at most 2.3 units in the last place, or 3e-38. to may be the register of x.
func (m *Math) Sigmoid(x, to reg.Register) {
	m.onePlusExp(x, to)
	m.VDIVPS(to, m.in(cOne, m.Vec()), to)
}

// onePlusExp computes to = 1 + e^-x.
func (m *Math) onePlusExp(x, to reg.Register) {
	m.Negate(x, to)
	m.Exp(to, to)
	m.with(cOne, m.VADDPS, m.VADDPS_BCST, to, to)
}

// SiLU computes to = x·sigmoid(x). The error is at most 2.4 units in the last place, or 3e-37. to must not be the register of x.
func (m *Math) SiLU(x, to reg.Register) {
	m.onePlusExp(x, to)
	m.VDIVPS(to, x, to)
}

// SiLUSlope writes to to the derivative of SiLU at x. The error is at most 1e-6. to must not be the register of x.
func (m *Math) SiLUSlope(x, to reg.Register) {
	s := m.Vec()
	m.Sigmoid(x, s)
	m.slope(x, s, to)
}

// slope computes to = s·(1 + x·(1-s)).
func (m *Math) slope(x, s, to reg.Register) {
	m.VSUBPS(s, m.in(cOne, to), to)
	m.horner(cOne, x, to)
	m.VMULPS(s, to, to)
}

// SiLUBoth computes SiLU and SiLUSlope together, at a lower cost. Neither y nor slope must be the register of x.
func (m *Math) SiLUBoth(x, y, slope reg.Register) {
	m.Sigmoid(x, y)
	m.slope(x, y, slope)
	m.VMULPS(x, y, y)
}

// SiLUAndSlope writes what SiLU and SiLUSlope write, bit for bit. Neither y nor slope must be the register of x.
func (m *Math) SiLUAndSlope(x, y, slope reg.Register) {
	s := m.Vec()
	m.onePlusExp(x, y)
	m.VDIVPS(y, m.in(cOne, s), s)
	m.slope(x, s, slope)
	m.VDIVPS(y, x, y)
}

// Softplus computes to = log(1+e^x). The error is at most 2.6 units in the last place. to must not be the register of x. Above 20 the result
// is x, which is the nearest float32.
//
// The result is max(x, 0) + log(1+e), with e = e^-|x| ≤ 1. With s = e/(1+e/2) ≤ 2/3, log(1+e) = log((1+s/2)/(1-s/2)), an odd series in s,
// which loses no digits for small e.
func (m *Math) Softplus(x, to reg.Register) { m.softplus(x, to, to) }

// SoftplusBoth computes Softplus and SoftplusSlope together, at a lower cost. The slope is e/(1+e) for negative x, else 1/(1+e). Neither y nor slope must be
// the register of x.
func (m *Math) SoftplusBoth(x, y, slope reg.Register) {
	e, sum := m.Vec(), m.Vec()
	m.softplus(x, e, y)
	one := m.in(cOne, slope)
	m.VADDPS(one, e, sum)
	if m.ISA == AVX512 {
		negative := m.K()
		m.VPMOVD2M(x, negative)
		m.VBLENDMPS(e, one, negative, slope)
	} else {
		m.VBLENDVPS(x, e, one, slope)
	}
	m.VDIVPS(sum, slope, slope)
}

// softplus is Softplus, which writes e^-|x| to e. e may be to.
func (m *Math) softplus(x, e, to reg.Register) {
	s, q := m.Vec(), m.Vec()
	m.with(cSign, m.VORPS, m.VORPS_BCST, x, e)
	m.exp(e, e, false)
	m.fetch(cHalf, s)
	m.horner(cOne, e, s)
	m.VDIVPS(s, e, s)
	m.VMULPS(s, s, to)
	m.fetch(cL9, q)
	for _, c := range []int{cL7, cL5, cL3} {
		m.horner(c, to, q)
	}
	m.VMULPS(to, q, q)
	m.VFMADD213PS(s, s, q)
	m.Zero(to)
	m.VMAXPS(to, x, to)
	m.VADDPS(q, to, to)
}

// SoftplusSlope writes to to the derivative of Softplus at x: Sigmoid, which is 1 above 20. to may be the register of x.
func (m *Math) SoftplusSlope(x, to reg.Register) { m.Sigmoid(x, to) }
