//go:build amd64 && !noasm

package kernel

import "github.com/gomamba/mamba/internal/cpu"

// adamW32 is the loop of AdamW.step, at a level that has assembly.
func adamW32(c *AdamW[float32], w, g, m, v []float32) {
	if len(w) == 0 {
		return
	}
	_, _, _ = g[len(w)-1], m[len(w)-1], v[len(w)-1]
	if level == cpu.AVX512 {
		adamWAVX512(&w[0], &g[0], &m[0], &v[0], &c.Scale, len(w))
	} else {
		adamWAVX2(&w[0], &g[0], &m[0], &v[0], &c.Scale, len(w))
	}
}
