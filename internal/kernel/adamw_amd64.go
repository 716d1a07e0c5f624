//go:build amd64 && !noasm

package kernel

import "github.com/gomamba/mamba/internal/cpu"

// adamWArgs are the arguments of the kernel adamW.
type adamWArgs struct {
	AdamW[float32]
	w, g, m, v *float32
	n          int
}

// adamW32 is the loop of AdamW.step, at a level that has assembly.
func adamW32(c *AdamW[float32], w, g, m, v []float32) {
	if len(w) == 0 {
		return
	}
	_, _, _ = g[len(w)-1], m[len(w)-1], v[len(w)-1]
	var args adamWArgs
	args.AdamW, args.w, args.g, args.m, args.v, args.n = *c, &w[0], &g[0], &m[0], &v[0], len(w)
	if level == cpu.AVX512 {
		adamWAVX512(&args)
	} else {
		adamWAVX2(&args)
	}
}
