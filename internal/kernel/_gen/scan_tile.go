package main

import (
	"fmt"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// tileStates is the number of states that scanTile processes at a time: what it keeps of a tile of 16 steps then stays in the first-level cache, and the
// carried gradients and the sums of dA in registers. AVX2 has too few registers.
const tileStates = 8

// scanTile writes a kernel that does the work of scanRecompute and scanBackward, for groups of tileStates states, one group after another.
func scanTile(f *asm.File) {
	const n = tileStates
	k := f.Func("scanTile", "func(args *scanTileArgs)", fmt.Sprintf(`scanTile goes forward and back through a tile, for groups of %d states, one vector of lanes for each:

	for each group {
		for t := range steps {
			for n := range %[1]d {
				keep[t][n] = {exp2(dt[t] * scaled[n]), h[n]}
				h[n] = keep[t][n][0]*h[n] + du[t]*b[t][n]
				y[t] += c[t][n] * h[n]
			}
		}
		keep[steps][n][1] = h[n] for all n
		as scanBackward
	}

It changes args, but not h. The pointers of args stay inside of their arrays, since the garbage collector reads them at any time.`, n))
	group := k.GP64()
	k.Label("group")

	h := f.Vecs(n)
	at, scaled, rows, keep := k.Ptr("h"), k.Ptr("scaled"), k.Ptr("rows"), k.Ptr("keep")
	b, c, steps := k.Ptr("b"), k.Ptr("c"), k.Int("steps")
	for i := range h {
		f.Load(asm.At(at, i*row), h[i])
	}
	p := newPrefetch(k, scanRecompute)
	d := newDecay(f)
	k.Label("forward")
	dt, du, acc := f.Vec(), f.Vec(), f.Vecs(2)
	f.Load(asm.At(rows, rowsDt), dt)
	f.Load(asm.At(rows, rowsDu), du)
	f.Load(asm.At(rows, rowsY), acc[0])
	f.Zero(acc[1])
	for i := range h {
		e, t := d.exp(dt, asm.At(scaled, i*row)), f.Vec()
		f.Store(e, asm.At(keep, 2*row*i))
		f.Store(h[i], asm.At(keep, 2*row*i+row))
		f.MulScalar(asm.At(b, 4*i), du, t) // as in scanStates
		f.Horner(t, e, h[i])
		f.MulAddScalar(asm.At(c, 4*i), h[i], acc[i%2])
	}
	p.step()
	f.Add(acc[1], acc[0], acc[0])
	f.Store(acc[0], asm.At(rows, rowsY))
	k.ADDQ(k.Addr("bStep"), b)
	k.ADDQ(k.Addr("cStep"), c)
	k.ADDQ(k.Imm(row), rows)
	k.ADDQ(k.Imm(2*row*n), keep)
	k.DECQ(steps)
	k.JNE(asm.Label("forward"))
	for i := range h {
		f.Store(h[i], asm.At(keep, 2*row*i+row))
	}

	carry, dA := f.Vecs(n), f.Vecs(n)
	carryPtr, dAPtr := k.Ptr("carry"), k.Ptr("dA")
	for i := range carry {
		f.Load(asm.At(carryPtr, i*row), carry[i])
		f.Load(asm.At(dAPtr, i*row), dA[i])
	}
	steps = k.Int("steps")
	a, dB, dC := k.Ptr("a"), k.Ptr("dB"), k.Ptr("dC")
	k.Label("back")
	k.SUBQ(k.Addr("bStep"), b)
	k.SUBQ(k.Addr("cStep"), c)
	k.SUBQ(k.Imm(row), rows)
	k.SUBQ(k.Imm(2*row*n), keep)
	du, dOut, gB, dDelta := f.Vec(), f.Vec(), f.Vec(), f.Vec()
	f.Load(asm.At(rows, rowsDu), du)
	f.Load(asm.At(rows, rowsDOut), dOut)
	f.Load(asm.At(rows, rowsGB), gB)
	f.Load(asm.At(rows, rowsDDelta), dDelta)
	sumB, sumC := &laneSums{f: f}, &laneSums{f: f}
	for i, g := range carry {
		f.MulAddScalar(asm.At(c, 4*i), dOut, g)
		f.MulAddScalar(asm.At(b, 4*i), g, gB)
		v := f.Vec()
		f.Mul(asm.At(keep, 2*row*(n+i)+row), dOut, v)
		sumC.push(v)
		v = f.Vec()
		f.Mul(du, g, v)
		sumB.push(v)
		f.Mul(asm.At(keep, 2*row*i), g, g)
		q := f.Vec()
		f.Mul(asm.At(keep, 2*row*i+row), g, q)
		f.MulAdd(asm.At(a, i*row), q, dDelta)
		f.MulAdd(asm.At(rows, rowsDt), q, dA[i])
	}
	sumB.addTo(dB, n)
	sumC.addTo(dC, n)
	f.Store(gB, asm.At(rows, rowsGB))
	f.Store(dDelta, asm.At(rows, rowsDDelta))
	k.SUBQ(k.Addr("dStep"), dB)
	k.SUBQ(k.Addr("dStep"), dC)
	k.DECQ(steps)
	k.JNE(asm.Label("back"))
	carryPtr, dAPtr = k.Ptr("carry"), k.Ptr("dA")
	for i := range carry {
		f.Store(carry[i], asm.At(carryPtr, i*row))
		f.Store(dA[i], asm.At(dAPtr, i*row))
	}

	k.DECQ(k.Addr("groups"))
	k.JE(asm.Label("done"))
	for _, v := range []string{"h", "scaled", "a", "carry", "dA"} {
		k.ADDQ(k.Imm(n*row), k.Addr(v))
	}
	for _, v := range []string{"b", "c", "dB", "dC"} {
		k.ADDQ(k.Imm(n*4), k.Addr(v))
	}
	k.XORQ(group, group)
	k.MOVQ(group, k.Addr("ahead"))
	k.JMP(asm.Label("group"))
	k.Label("done")
	k.Return()
}
