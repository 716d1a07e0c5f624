package main

import (
	"fmt"

	"github.com/gomamba/mamba/internal/kernel/_gen/asm"
)

// smallStates are the numbers of states of which a scan goes through a tile in one call. With so few states, storing Δ, Δ·u and Σ C h and loading
// them again would take much of the time. With more, the processor does not see enough of the next step to begin it early.
var smallStates = []int{1, 2}

// scanSmall writes a kernel that scans a tile from its operands to its output, with all states in registers. It computes the same bits as
// scanPrepare, scanForward or scanAdvance, and scanFinish.
func scanSmall(f *asm.File, n int, kind scanKind) {
	output := ""
	if kind == scanForward {
		output = `
		y[cells[t]] = (Σ_n c[t][n]*h[n] + d*u) * silu(z[cells[t]]) // plus y if adds is 1`
	}
	name := fmt.Sprintf("%sSmall%d", kind, n)
	k := f.Func(name, "func(args *scanSmallArgs)", fmt.Sprintf(`%s scans a tile of %d state(s). bias, d and z may be nil:

	for t := range steps {
		dt := delta[cells[t]] + bias // softplus of the sum if softplus is 1
		u := from[cells[t]]
		for n := range %[2]d {
			h[n] = exp2(dt*a[n])*h[n] + dt*u*b[t][n]
		}%s
	}`, name, n, output))
	a, b := k.Ptr("a"), k.Ptr("b")
	c := b
	if kind == scanForward {
		c = k.Ptr("c")
	}
	steps := k.Int("steps")
	t := k.GP64()
	rows := newCellRows(k, "delta", "from", "y")
	mask := f.FirstLanes(k.Int("width"))
	h := f.Vecs(n)
	hPtr := k.Ptr("h")
	for i := range h {
		f.Load(asm.At(hPtr, i*row), h[i])
	}
	m, d := f.Math(mathKept(f)), newDecay(f)
	rowLoop(k, steps, func() {
		x, v, in, du := f.Vec(), f.Vec(), f.Vec(), f.Vec()
		rows.next()
		if kind == scanForward {
			rows.prefetch("delta", "step", "from", "uStep", "y", "yStep")
		} else {
			rows.prefetch("delta", "step", "from", "uStep")
		}
		f.LoadMasked(rows.of("delta", "step"), mask, x)
		k.Load64("bias", t)
		ifThere(k, "Bias", t, func() {
			f.LoadMasked(asm.At(t, 0), mask, v)
			f.Add(v, x, x)
		})
		k.Load64("softplus", t)
		f.VMOVAPS(x, v)
		ifThere(k, "Softplus", t, func() { m.Softplus(x, v) })
		f.LoadMasked(rows.of("from", "uStep"), mask, in)
		f.Mul(in, v, du)
		acc := f.Vecs(min(n, 2))
		if kind == scanForward {
			for _, s := range acc {
				f.Zero(s)
			}
		}
		for i := range h {
			e := d.exp(v, asm.At(a, i*row))
			s := f.Vec()
			f.MulScalar(asm.At(b, 4*i), du, s)
			f.Horner(s, e, h[i])
			if kind == scanForward {
				f.MulAddScalar(asm.At(c, 4*i), h[i], acc[i%2])
			}
		}
		k.Load64("bStep", t)
		k.ADDQ(t, b)
		if kind != scanForward {
			return
		}
		k.Load64("cStep", t)
		k.ADDQ(t, c)
		if n > 1 {
			f.Add(acc[1], acc[0], acc[0])
		}
		k.Load64("d", t)
		ifThere(k, "D", t, func() {
			f.LoadMasked(asm.At(t, 0), mask, v)
			f.MulAdd(in, v, acc[0])
		})
		k.Load64("z", t)
		ifThere(k, "Z", t, func() {
			f.LoadMasked(rows.of("z", "zStep"), mask, x)
			m.Sigmoid(x, v)
			f.Mul(x, v, v) // rounded as in scanPrepareBack
			f.Mul(v, acc[0], acc[0])
		})
		y := rows.of("y", "yStep")
		k.Load64("adds", t)
		ifThere(k, "Adds", t, func() {
			f.LoadMasked(y, mask, v)
			f.Add(v, acc[0], acc[0])
		})
		f.StoreMasked(acc[0], mask, y)
	})
	hPtr = k.Ptr("h")
	for i := range h {
		f.Store(h[i], asm.At(hPtr, i*row))
	}
	k.Return()
}
