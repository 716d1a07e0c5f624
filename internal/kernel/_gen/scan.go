package main

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/mmcloughlin/avo/gotypes"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// The scan's kernels process one tile of steps of one strip of 16 channels, one channel for each lane. Every row of a strip has 16 float32:
// one AVX-512 vector, or two AVX2 vectors, which take two calls. A call keeps up to 16 states (AVX2: 8) in registers. More states are
// scanned in groups.

const (
	row = 64 // bytes of a strip's row

	// backRows is the number of rows of an array of a tile of the backward pass, as in internal/kernel/scan.go.
	backRows = 80
	// backSteps is the number of steps between two states that a forward pass keeps, as there.
	backSteps = 16
)

// stateBlocks returns the numbers of states for which there are kernels.
func stateBlocks(isa asm.ISA) []int {
	if isa == asm.AVX512 {
		return []int{16, 8, 4, 2, 1}
	}
	return []int{8, 4, 2, 1}
}

func writeScan(isa asm.ISA) {
	f := asm.NewFile("..", isa)
	for _, n := range stateBlocks(isa) {
		for _, vectors := range []bool{false, true} {
			for _, kind := range []scanKind{scanAdvance, scanForward, scanRecompute} {
				scanStates(f, n, vectors, kind)
			}
			scanBackward(f, n, vectors)
		}
	}
	for _, n := range smallStates {
		for _, kind := range []scanKind{scanAdvance, scanForward} {
			scanSmall(f, n, kind)
		}
	}
	scanPrepare(f)
	scanFinish(f)
	scanPrepareBack(f)
	if isa == asm.AVX512 {
		scanTile(f)
	}
	scanFinishBack(f)
	f.Write("scan")
}

// variant returns the name of a kernel for n states. With vectors, B and C have a vector for each state instead of one float32.
func variant(name string, n int, vectors bool) string {
	if vectors {
		name += "Vectors"
	}
	return fmt.Sprint(name, n)
}

// decay writes code that computes e^(Δ·A) from Δ and A·log2(e). The error is below 2 units in the last place, plus |Δ·A| units from the
// rounding of Δ·A·log2(e).
type decay struct {
	f          *asm.File
	magic      reg.VecVirtual
	low, high  reg.VecVirtual // AVX-512: 2^(i/32) for i in 0…31
	c1, c2, c0 reg.VecVirtual
}

func newDecay(f *asm.File) *decay {
	d := &decay{f: f}
	if f.ISA == asm.AVX2 {
		// A float32 of about 1.5·2^23 has no bits for a fraction. 127 is the bias of the exponent.
		d.magic = f.BroadcastConst(12582912 + 127)
		return d
	}
	table := make([]float32, 32)
	for i := range table {
		table[i] = float32(math.Exp2(float64(i) / 32))
	}
	t := f.Table("exp2", table)
	d.low, d.high = f.Vec(), f.Vec()
	f.Load(t, d.low)
	f.Load(t.Offset(64), d.high)
	d.magic = f.BroadcastConst(12582912.0 / 32)
	d.c1 = f.BroadcastConst(0.6931237316010141)
	d.c2 = f.BroadcastConst(0.24265269251775118)
	d.c0 = f.BroadcastConst(1)
	return d
}

// exp returns a register with e^(Δ·A). a is the address of A·log2(e).
func (d *decay) exp(dt reg.Register, a operand.Mem) reg.VecVirtual {
	f := d.f
	x, t, r := f.Vec(), f.Vec(), f.Vec()
	f.Mul(a, dt, x)
	if f.ISA == asm.AVX512 {
		// 2^x = 2^k · 2^(i/32) · 2^r, where k + i/32 is x rounded down to a multiple of 1/32. i is in the low bits of x + magic, rounded down.
		// VSCALEFPS itself takes k from x, and handles infinities and NaN.
		p := f.Vec()
		f.VADDPS_RD_SAE(d.magic, x, t)
		f.VREDUCEPS(operand.U8(5<<4|1<<3|1), x, r)
		f.VPERMI2PS(d.high, d.low, t)
		f.Load(d.c2, p)
		f.Horner(d.c1, r, p)
		f.Horner(d.c0, r, p)
		f.Mul(t, p, p)
		f.VSCALEFPS(x, p, p)
		return p
	}
	// 2^x = 2^k · 2^r, where k is x rounded to an integer. The result is zero below 2^-126 and infinite above 2^127.5. VMAXPS and VMINPS
	// return their first operand, in this notation, if it is NaN.
	f.Load(wide(f, -127), t)
	f.Max(x, t, x)
	f.Load(wide(f, 128), r)
	f.Min(x, r, x)
	f.Add(d.magic, x, t)
	f.Sub(d.magic, t, r)
	f.Sub(r, x, r) // x - k
	p := f.Vec()
	f.Load(wide(f, 0.0013276467799312258), p)
	for _, c := range []float32{0.009675541248286255, 0.05550713286647641, 0.24022119726572633, 0.6931469670586844, 1} {
		f.Horner(wide(f, c), r, p)
	}
	f.VPSLLD(operand.U8(23), t, t)
	f.Mul(t, p, p)
	return p
}

// wide returns the address of a vector with v in every lane. AVX2 needs it because it has no broadcast operands and few registers.
func wide(f *asm.File, v float32) operand.Mem {
	all := make([]float32, f.Lanes())
	for i := range all {
		all[i] = v
	}
	return f.Table(fmt.Sprintf("wide_%08x", math.Float32bits(v)), all)
}

type scanKind string

const (
	scanAdvance   scanKind = "scanAdvance"
	scanForward   scanKind = "scanForward"
	scanRecompute scanKind = "scanRecompute"
)

// scanDoc returns the comment of a kernel that scans a tile. decay is e^(ΔA).
func scanDoc(name string, n int, kind scanKind) string {
	keep, sum, kept := "", "", ""
	if kind == scanRecompute {
		keep = "\n\t\t\tkeep[t][n] = {decay, h[n]}"
	}
	if kind != scanAdvance {
		sum = "\n\t\t\ty[t] += c[t][n] * h[n]"
	}
	if kind == scanForward {
		kept = fmt.Sprintf(`
		if left--; left == 0 {
			kept[keptAt][n] = h[n] for all n // keptAt and keptStep in bytes
			keptAt, left = keptAt+keptStep, %d
		}`, backSteps)
	}
	end := ""
	if kind == scanRecompute {
		end = "\n\tkeep[steps][n][1] = h[n] for all n"
	}
	return fmt.Sprintf(`%s scans a tile of %d state(s), one vector of lanes for each:

	for t := range steps {%s
		for n := range %d {
			decay := exp2(dt[t] * a[n])%s
			h[n] = decay*h[n] + du[t]*b[t][n]%s
		}
	}%s`, name, n, kept, n, keep, sum, end)
}

// scanStates writes a kernel that scans a tile with n states in registers.
func scanStates(f *asm.File, n int, vectors bool, kind scanKind) {
	name := variant(string(kind), n, vectors)
	k := f.Func(name, "func(args *scanArgs)", scanDoc(name, n, kind))
	h := f.Vecs(n)
	hPtr, a, dtPtr, duPtr, b := k.Ptr("h"), k.Ptr("a"), k.Ptr("dt"), k.Ptr("du"), k.Ptr("b")
	var c, y, keep reg.GPVirtual
	if kind != scanAdvance {
		c, y = k.Ptr("c"), k.Ptr("y")
	}
	if kind == scanRecompute {
		keep = k.Ptr("keep")
	}
	steps := k.Int("steps")
	move := k.GP64()

	for i := range h {
		f.Load(asm.At(hPtr, i*row), h[i])
	}
	p := newPrefetch(k, kind)
	d := newDecay(f)
	du := f.Vec()
	acc := f.Vecs(2) // two sums have shorter chains of dependent additions than one
	operandAt := func(p reg.GPVirtual, i int) operand.Mem {
		if vectors {
			return asm.At(p, i*row)
		}
		return asm.At(p, 4*i)
	}
	mulB := func(i int, to reg.VecVirtual) {
		if vectors {
			f.Mul(operandAt(b, i), du, to)
		} else {
			f.MulScalar(operandAt(b, i), du, to)
		}
	}
	addC := func(i int) {
		if kind == scanAdvance {
			return
		}
		if vectors {
			f.MulAdd(operandAt(c, i), h[i], acc[i%2])
		} else {
			f.MulAddScalar(operandAt(c, i), h[i], acc[i%2])
		}
	}
	k.Label("loop")
	if kind == scanForward {
		k.DECQ(k.Addr("left"))
		k.JNE(asm.Label("going"))
		k.Load64("kept", move)
		k.ADDQ(k.Addr("keptAt"), move)
		for i := range h {
			f.Store(h[i], asm.At(move, i*row))
		}
		k.Load64("keptStep", move)
		k.ADDQ(move, k.Addr("keptAt"))
		k.MOVQ(k.Imm(backSteps), k.Addr("left"))
		k.Label("going")
	}
	dt := f.Vec()
	f.Load(asm.At(duPtr, 0), du)
	f.Load(asm.At(dtPtr, 0), dt)
	if kind != scanAdvance {
		f.Load(asm.At(y, 0), acc[0])
		if n > 1 {
			f.Zero(acc[1])
		}
	}
	for i := range h {
		e := d.exp(dt, asm.At(a, i*row))
		if kind == scanRecompute {
			f.Store(e, asm.At(keep, 2*row*i))
			f.Store(h[i], asm.At(keep, 2*row*i+row))
		}
		t := f.Vec() // the same operations in all kernels, so that recomputed states are the same bit for bit
		mulB(i, t)
		f.Horner(t, e, h[i])
		addC(i)
		if i == 0 {
			p.step()
		}
	}
	if kind != scanAdvance {
		if n > 1 {
			f.Add(acc[1], acc[0], acc[0])
		}
		f.Store(acc[0], asm.At(y, 0))
		k.ADDQ(k.Imm(row), y)
		k.Load64("cStep", move)
		k.ADDQ(move, c)
	}
	if kind == scanRecompute {
		k.ADDQ(k.Imm(2*row*n), keep)
	}
	k.ADDQ(k.Imm(row), dtPtr)
	k.ADDQ(k.Imm(row), duPtr)
	k.Load64("bStep", move)
	k.ADDQ(move, b)
	k.DECQ(steps)
	k.JNE(asm.Label("loop"))

	to, size := k.Ptr("h"), row
	if kind == scanRecompute {
		to, size = keep, 2*row
	}
	for i := range h {
		f.Store(h[i], asm.At(to, i*size+size-row))
	}
	k.Return()
}

// prefetch writes code that prefetches rows of the next tile while the states of the current tile are computed. At the width of a model every
// row lies on another page, and the processor does not prefetch across pages.
type prefetch struct {
	k                    *asm.Func
	kind                 scanKind
	ahead, at, zAt, left reg.GPVirtual
}

func newPrefetch(k *asm.Func, kind scanKind) *prefetch {
	p := &prefetch{k, kind, k.GP64(), k.GP64(), k.GP64(), k.GP64()}
	k.Load64("ahead", p.ahead)
	k.TESTQ(p.ahead, p.ahead)
	k.JE(asm.Label("alone"))
	k.Context.Load(p.field("at"), p.at)
	k.Context.Load(p.field("zAt"), p.zAt)
	k.Context.Load(p.field("left"), p.left)
	k.Label("alone")
	return p
}

// field returns a field of the scanAhead.
func (p *prefetch) field(name string) gotypes.Component {
	return p.k.Param("ahead").Dereference(p.ahead).Field(name)
}

// step writes code that prefetches one line of each matrix. The lines of a row are prefetched in order, which is fastest for the memory.
func (p *prefetch) step() {
	k := p.k
	k.TESTQ(p.ahead, p.ahead)
	k.JE(asm.Label("asked"))
	rows, zRows := 2, 0 // u and Δ
	switch p.kind {
	case scanForward: // also y and z
		rows, zRows = 3, 1
	case scanRecompute: // also dy, the gradients of u and Δ, z and its gradient
		rows, zRows = 5, 2
	}
	t := k.GP64()
	ask := func(field string, n int, at reg.Register) {
		for i := range n {
			k.Context.Load(p.field(field).Index(i), t)
			k.PREFETCHT0(asm.AtIndex(t, at, 1, 0))
		}
	}
	ask("rows", rows, p.at)
	ask("z", zRows, p.zAt)
	if p.kind == scanRecompute {
		k.Context.Load(p.field("states"), t)
		k.ADDQ(k.AddrOf(p.field("statesAt")), t)
		k.PREFETCHT0(asm.At(t, 0))
		k.ADDQ(k.Imm(64), k.AddrOf(p.field("statesAt")))
	}
	k.ADDQ(k.Imm(64), p.at)
	k.ADDQ(k.Imm(64), p.zAt)
	k.DECQ(p.left)
	k.JNE(asm.Label("asked"))
	k.ADDQ(k.AddrOf(p.field("jump")), p.at)
	k.ADDQ(k.AddrOf(p.field("zJump")), p.zAt)
	k.Context.Load(p.field("lines"), p.left)
	k.Label("asked")
}

// Offsets of the arrays of the backward pass, in the order of layBack in scan_backward.go. Each has backRows rows.
const (
	rowsDt        = iota * backRows * row // Δ
	rowsDu                                // Δ·u
	rowsDOut                              // the gradient of Σ C h
	rowsGB                                // Σ_n g B
	rowsDDelta                            // Σ_n g A a h_{t-1}
	rowsU                                 // u
	rowsY                                 // Σ C h
	rowsSlope                             // the derivative of softplus
	rowsGate                              // silu(z)
	rowsGateSlope                         // the gradient of the output times the derivative of silu at z
)

// scanBackward writes a kernel that carries the gradient of n states through a tile, from the last step to the first.
//
// dB and dC are sums over channels. The kernel adds the lanes of n vectors in a tree of shuffles, always in the same order. With vectors it
// does not add the lanes: dB and dC have one value for each lane.
func scanBackward(f *asm.File, n int, vectors bool) {
	name := variant("scanBackward", n, vectors)
	doc := fmt.Sprintf(`%s goes back through a tile of %d state(s), one vector of lanes for each:

	for t := steps - 1; t >= 0; t-- {
		for n := range %[2]d {
			decay, before := keep[t][n]
			g := carry[n] + c[t][n]*dOut[t]
			dB[t][n] += g * du[t]
			dC[t][n] += dOut[t] * keep[t+1][n][1]
			gB[t] += g * b[t][n]
			carry[n] = decay * g
			dDelta[t] += a[n] * carry[n] * before
			dA[n] += dt[t] * carry[n] * before
		}
	}`, name, n)
	if !vectors {
		doc += "\n\ndB and dC get the sums over the lanes."
	}
	k := f.Func(name, "func(args *scanBackArgs)", doc)
	rows, keep, carryPtr, a, dA := k.Ptr("rows"), k.Ptr("keep"), k.Ptr("carry"), k.Ptr("a"), k.Ptr("dA")
	b, c, dB, dC := k.Ptr("b"), k.Ptr("c"), k.Ptr("dB"), k.Ptr("dC")
	steps := k.Int("steps")
	step := k.GP64()

	k.Label("loop")
	dt, du, dOut, gB, dDelta := f.Vec(), f.Vec(), f.Vec(), f.Vec(), f.Vec()
	f.Load(asm.At(rows, rowsDt), dt)
	f.Load(asm.At(rows, rowsDu), du)
	f.Load(asm.At(rows, rowsDOut), dOut)
	f.Load(asm.At(rows, rowsGB), gB)
	f.Load(asm.At(rows, rowsDDelta), dDelta)
	sumB, sumC := &laneSums{f: f}, &laneSums{f: f}
	for i := range n {
		g, bv := f.Vec(), f.Vec()
		f.Load(asm.At(carryPtr, i*row), g)
		if vectors {
			f.Load(asm.At(b, i*row), bv)
			f.MulAdd(asm.At(c, i*row), dOut, g)
		} else {
			f.Broadcast(asm.At(b, 4*i), bv)
			f.MulAddScalar(asm.At(c, 4*i), dOut, g)
		}
		// carry
		next := f.Vec()
		f.Mul(asm.At(keep, 2*row*i), g, next)
		f.Store(next, asm.At(carryPtr, i*row))
		q := next
		f.Mul(asm.At(keep, 2*row*i+row), next, q)
		// dC
		v := f.Vec()
		if after := asm.At(keep, 2*row*(n+i)+row); vectors {
			f.Load(asm.At(dC, i*row), v)
			f.MulAdd(after, dOut, v)
			f.Store(v, asm.At(dC, i*row))
		} else {
			f.Mul(after, dOut, v)
			sumC.push(v)
		}
		f.MulAdd(g, bv, gB)
		// dB
		if vectors {
			v := f.Vec()
			f.Load(asm.At(dB, i*row), v)
			f.MulAdd(du, g, v)
			f.Store(v, asm.At(dB, i*row))
		} else {
			f.Mul(du, g, g)
			sumB.push(g)
		}
		f.MulAdd(asm.At(a, i*row), q, dDelta)
		v = f.Vec()
		f.Load(asm.At(dA, i*row), v)
		f.MulAdd(dt, q, v)
		f.Store(v, asm.At(dA, i*row))
	}
	if !vectors {
		sumB.addTo(dB, n)
		sumC.addTo(dC, n)
	}
	f.Store(gB, asm.At(rows, rowsGB))
	f.Store(dDelta, asm.At(rows, rowsDDelta))
	for _, p := range []struct {
		by  string
		ptr reg.GPVirtual
	}{{"bStep", b}, {"cStep", c}, {"dBStep", dB}, {"dCStep", dC}} {
		k.Load64(p.by, step)
		k.ADDQ(step, p.ptr)
	}
	k.SUBQ(k.Imm(row), rows)
	k.SUBQ(k.Imm(2*row*n), keep)
	k.DECQ(steps)
	k.JNE(asm.Label("loop"))
	k.Return()
}

// laneSums writes code that adds up the lanes of each of up to 16 vectors (AVX2: 8), so that lane i gets the sum of vector i. It joins
// vectors in pairs as they come, like the digits of a binary counter: two vectors at a level become one vector at the next level, with twice
// as many sums.
type laneSums struct {
	f      *asm.File
	levels [5]reg.VecVirtual // at each level, a vector without a partner yet
}

func (s *laneSums) push(v reg.VecVirtual) {
	for level := range s.levels {
		if s.levels[level] == nil {
			s.levels[level] = v
			return
		}
		v = s.join(level, s.levels[level], v)
		s.levels[level] = nil
	}
	panic("too many vectors")
}

// join adds pairs of lanes of v and of w. In groups of 2^level lanes, the sums of v come before those of w.
func (s *laneSums) join(level int, v, w reg.VecVirtual) reg.VecVirtual {
	f := s.f
	low, high := f.Vec(), f.Vec()
	switch {
	case level == 0:
		f.VUNPCKLPS(w, v, low)
		f.VUNPCKHPS(w, v, high)
	case level == 1:
		f.VUNPCKLPD(w, v, low)
		f.VUNPCKHPD(w, v, high)
	case f.ISA == asm.AVX2: // level 2, the last
		f.VPERM2F128(operand.U8(0x20), w, v, low)
		f.VPERM2F128(operand.U8(0x31), w, v, high)
	case level == 2: // quarters 0 and 1 of both, and quarters 2 and 3
		f.VSHUFF32X4(operand.U8(0<<0|1<<2|0<<4|1<<6), w, v, low)
		f.VSHUFF32X4(operand.U8(2<<0|3<<2|2<<4|3<<6), w, v, high)
	default: // quarters 0 and 2 of both, and quarters 1 and 3
		f.VSHUFF32X4(operand.U8(0<<0|2<<2|0<<4|2<<6), w, v, low)
		f.VSHUFF32X4(operand.U8(1<<0|3<<2|1<<4|3<<6), w, v, high)
	}
	f.Add(high, low, low)
	return low
}

// addTo adds the n sums, n a power of two, to memory.
func (s *laneSums) addTo(p reg.Register, n int) {
	f := s.f
	level := bits.TrailingZeros(uint(n)) // the level of the vector into which all were joined
	v := s.levels[level]
	for ; 1<<level < f.Lanes(); level++ { // without a partner, it is joined with itself
		v = s.join(level, v, v)
	}
	switch n {
	case 16:
		f.VADDPS(asm.At(p, 0), v, v)
		f.VMOVUPS(v, asm.At(p, 0))
	case 8:
		f.VADDPS(asm.At(p, 0), v.AsY(), v.AsY())
		f.VMOVUPS(v.AsY(), asm.At(p, 0))
	case 4:
		f.VADDPS(asm.At(p, 0), v.AsX(), v.AsX())
		f.VMOVUPS(v.AsX(), asm.At(p, 0))
	case 2:
		t := f.XMM()
		f.VMOVQ(asm.At(p, 0), t)
		f.VADDPS(v.AsX(), t, t)
		f.VMOVQ(t, asm.At(p, 0))
	case 1:
		f.VADDSS(asm.At(p, 0), v.AsX(), v.AsX())
		f.VMOVSS(v.AsX(), asm.At(p, 0))
	}
}
