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

// cellRows writes the addresses of a step's rows. The rows of an operand are step bytes apart, from that of cell 0 on; cells has the cell of each step.
type cellRows struct {
	k           *asm.Func
	cells, cell reg.GPVirtual
	kept        map[string]reg.GPVirtual // operands whose addresses stay in registers
}

func newCellRows(k *asm.Func, kept ...string) *cellRows {
	c := &cellRows{k, k.Ptr("cells"), k.GP64(), map[string]reg.GPVirtual{}}
	for _, operand := range kept {
		c.kept[operand] = k.Ptr(operand)
	}
	return c
}

// next writes code that goes on to the next step.
func (c *cellRows) next() {
	c.k.MOVLQSX(asm.At(c.cells, 0), c.cell)
	c.k.ADDQ(c.k.Imm(4), c.cells)
}

// of returns the address of the row of an operand, whose rows are step bytes apart. operand and step are fields of the arguments.
func (c *cellRows) of(operand, step string) operand.Mem { return c.at(c.cell, operand, step) }

func (c *cellRows) at(cell reg.GPVirtual, operand, step string) operand.Mem {
	row, ok := c.kept[operand]
	if !ok {
		row = c.k.GP64()
		c.k.Load64(operand, row)
	}
	at := c.k.GP64()
	c.k.MOVQ(cell, at)
	c.k.IMULQ(c.k.Addr(step), at)
	return asm.AtIndex(row, at, 1, 0)
}

// prefetch writes code that prefetches the rows that the step ahead bytes on in cells has. operands holds pairs of an operand and its step.
func (c *cellRows) prefetch(operands ...string) {
	k := c.k
	ahead := k.GP64()
	k.Load64("ahead", ahead)
	ifThere(k, "Ahead", ahead, func() {
		cell := k.GP64()
		k.MOVLQSX(asm.AtIndex(c.cells, ahead, 1, -4), cell)
		for i := 0; i < len(operands); i += 2 {
			k.PREFETCHT0(c.at(cell, operands[i], operands[i+1]))
		}
	})
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
		dt[t] = delta[cells[t]] + bias // softplus of the sum if softplus is 1
		u[t] = from[cells[t]]
		du[t] = dt[t] * u[t]
	}`)
	dt, du, u, bias := k.Ptr("dt"), k.Ptr("du"), k.Ptr("u"), k.Ptr("bias")
	steps, width, softplus := k.Int("steps"), k.Int("width"), k.Int("softplus")
	rows := newCellRows(k)
	mask := f.FirstLanes(width)
	m := f.Math(mathKept(f))
	b := f.Vec()
	f.Zero(b)
	ifThere(k, "Bias", bias, func() { f.LoadMasked(asm.At(bias, 0), mask, b) })
	rowLoop(k, steps, func() {
		x, v, in := f.Vec(), f.Vec(), f.Vec()
		rows.next()
		rows.prefetch("delta", "step", "from", "uStep", "other", "otherStep")
		f.LoadMasked(rows.of("delta", "step"), mask, x)
		f.LoadMasked(rows.of("from", "uStep"), mask, in)
		f.Add(b, x, v)
		ifThere(k, "Softplus", softplus, func() {
			f.Add(b, x, x)
			m.Softplus(x, v)
		})
		f.Store(v, asm.At(dt, 0))
		f.Store(in, asm.At(u, 0))
		f.Mul(in, v, v)
		f.Store(v, asm.At(du, 0))
	}, dt, row, du, row, u, row)
	k.Return()
}

func scanFinish(f *asm.File) {
	k := f.Func("scanFinish", "func(args *scanFinishArgs)",
		`scanFinish writes the output. d and z may be nil: then there is no term d·u, or no gate:

	for t := range steps {
		y[cells[t]] = (acc[t] + d*u[t]) * silu(z[cells[t]]) // plus y if adds is 1
	}`)
	acc, u, d, z := k.Ptr("acc"), k.Ptr("u"), k.Ptr("d"), k.Ptr("z")
	steps, width, adds := k.Int("steps"), k.Int("width"), k.Int("adds")
	rows := newCellRows(k)
	mask := f.FirstLanes(width)
	m := f.Math(mathKept(f))
	dv := f.Vec()
	f.Zero(dv)
	ifThere(k, "DRow", d, func() { f.LoadMasked(asm.At(d, 0), mask, dv) })
	rowLoop(k, steps, func() {
		v := f.Vec()
		rows.next()
		f.Load(asm.At(acc, 0), v)
		ifThere(k, "D", d, func() { f.MulAdd(asm.At(u, 0), dv, v) })
		ifThere(k, "Z", z, func() {
			x, gate := f.Vec(), f.Vec()
			f.LoadMasked(rows.of("z", "zStep"), mask, x)
			m.Sigmoid(x, gate)
			f.Mul(x, gate, gate) // rounded as in scanPrepareBack
			f.Mul(gate, v, v)
		})
		y := rows.of("y", "yStep")
		ifThere(k, "Adds", adds, func() {
			before := f.Vec()
			f.LoadMasked(y, mask, before)
			f.Add(before, v, v)
		})
		f.StoreMasked(v, mask, y)
	}, acc, row, u, row)
	k.Return()
}

func scanPrepareBack(f *asm.File) {
	k := f.Func("scanPrepareBack", "func(args *scanPrepareBackArgs)",
		`scanPrepareBack computes what the backward pass over the states and scanFinishBack read. bias may be nil. z may be nil: then there is no gate.

	for t := range steps {
		c := cells[t]
		dt[t], slope[t] = delta[c] + bias // softplus of the sum, and its derivative, if softplus is 1
		u[t] = from[c]
		du[t] = dt[t] * u[t]
		gate[t] = silu(z[c])
		dOut[t] = dy[c] * gate[t]
		gateSlope[t] = dy[c] * siluSlope(z[c])
		y[t], gB[t], dDelta[t] = 0, 0, 0
	}`)
	rows, steps, t := k.Ptr("rows"), k.Int("steps"), k.GP64()
	cells := newCellRows(k)
	mask := f.FirstLanes(k.Int("width"))
	m := f.Math(mathKept(f))
	bias := f.Vec()
	f.Zero(bias)
	k.Load64("bias", t)
	ifThere(k, "Bias", t, func() { f.LoadMasked(asm.At(t, 0), mask, bias) })
	rowLoop(k, steps, func() {
		x, v, slope := f.Vec(), f.Vec(), f.Vec()
		cells.next()
		cells.prefetch("delta", "step", "from", "uStep", "dy", "yStep")
		f.LoadMasked(cells.of("delta", "step"), mask, x)
		f.Add(bias, x, x)
		f.VMOVAPS(x, v)
		k.Load64("softplus", t)
		ifThere(k, "Softplus", t, func() {
			m.SoftplusBoth(x, v, slope)
			f.Store(slope, asm.At(rows, rowsSlope))
		})
		f.Store(v, asm.At(rows, rowsDt))
		f.LoadMasked(cells.of("from", "uStep"), mask, x)
		f.Store(x, asm.At(rows, rowsU))
		f.Mul(x, v, v)
		f.Store(v, asm.At(rows, rowsDu))
		dy := f.Vec()
		f.LoadMasked(cells.of("dy", "yStep"), mask, dy)
		k.Load64("z", t)
		ifThere(k, "Z", t, func() {
			z, gate, slope := f.Vec(), f.Vec(), f.Vec()
			f.LoadMasked(cells.of("z", "zStep"), mask, z)
			m.SiLUBoth(z, gate, slope)
			f.Store(gate, asm.At(rows, rowsGate))
			f.Mul(dy, slope, slope)
			f.Store(slope, asm.At(rows, rowsGateSlope))
			f.Mul(gate, dy, dy)
		})
		f.Store(dy, asm.At(rows, rowsDOut))
		f.Zero(v)
		for _, sum := range []int{rowsY, rowsGB, rowsDDelta} {
			f.Store(v, asm.At(rows, sum))
		}
	}, rows, row)
	k.Return()
}

func scanFinishBack(f *asm.File) {
	k := f.Func("scanFinishBack", "func(args *scanFinishBackArgs)",
		`scanFinishBack writes the gradients and the output of a tile's rows. d, out and dz may be nil; without dz there is no gate:

	for t := range steps {
		c := cells[t]
		gu[c] = dt[t]*gB[t] + d*dOut[t] // plus gu if adds is 1
		gd[c] = dDelta[t] + u[t]*gB[t] // times slope[t] if softplus is 1
		dz[c] = (y[t] + d*u[t]) * gateSlope[t]
		out[c] = (y[t] + d*u[t]) * gate[t]
		sumD += dOut[t] * u[t]
		sumBias += gd[c]
	}`)
	rows, steps, t := k.Ptr("rows"), k.Int("steps"), k.GP64()
	cells := newCellRows(k)
	mask := f.FirstLanes(k.Int("width"))
	d, sumD, sumBias := f.Vec(), f.Vec(), f.Vec()
	f.Zero(d)
	k.Load64("d", t)
	ifThere(k, "DRow", t, func() { f.LoadMasked(asm.At(t, 0), mask, d) })
	k.Load64("sumD", t)
	f.Load(asm.At(t, 0), sumD)
	k.Load64("sumBias", t)
	f.Load(asm.At(t, 0), sumBias)
	rowLoop(k, steps, func() {
		gB, dOut, y, u, v, w := f.Vec(), f.Vec(), f.Vec(), f.Vec(), f.Vec(), f.Vec()
		cells.next()
		cells.prefetch("gu", "uStep", "gd", "step")
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
		gu := cells.of("gu", "uStep")
		k.Load64("adds", t)
		ifThere(k, "Adds", t, func() {
			f.LoadMasked(gu, mask, w)
			f.Add(w, v, v)
		})
		f.StoreMasked(v, mask, gu)
		f.Load(asm.At(rows, rowsDDelta), v)
		f.MulAdd(u, gB, v)
		k.Load64("softplus", t)
		ifThere(k, "Softplus", t, func() { f.Mul(asm.At(rows, rowsSlope), v, v) })
		f.Add(v, sumBias, sumBias)
		f.StoreMasked(v, mask, cells.of("gd", "step"))
		k.Load64("dz", t)
		ifThere(k, "Z", t, func() {
			f.Mul(asm.At(rows, rowsGateSlope), y, w)
			f.StoreMasked(w, mask, cells.of("dz", "zStep"))
			f.Mul(asm.At(rows, rowsGate), y, y)
		})
		k.Load64("out", t)
		ifThere(k, "Out", t, func() { f.StoreMasked(y, mask, cells.of("out", "yStep")) })
	}, rows, row)
	k.Load64("sumD", t)
	f.Store(sumD, asm.At(t, 0))
	k.Load64("sumBias", t)
	f.Store(sumBias, asm.At(t, 0))
	k.Return()
}
