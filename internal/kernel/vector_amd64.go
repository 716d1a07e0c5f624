//go:build amd64 && !noasm

package kernel

import "github.com/gomamba/mamba/internal/cpu"

// Each function computes the loop of its caller in vector.go, in assembly.

func negExp32s(y, x []float32) {
	if len(y) == 0 {
		return
	}
	_ = x[len(y)-1]
	if level == cpu.AVX512 {
		vecNegExpAVX512(&y[0], &x[0], len(y))
	} else {
		vecNegExpAVX2(&y[0], &x[0], len(y))
	}
}

func sigmoid32s(y, x []float32) {
	if len(y) == 0 {
		return
	}
	_ = x[len(y)-1]
	if level == cpu.AVX512 {
		vecSigmoidAVX512(&y[0], &x[0], len(y))
	} else {
		vecSigmoidAVX2(&y[0], &x[0], len(y))
	}
}

func silu32s(y, x []float32) {
	if len(y) == 0 {
		return
	}
	_ = x[len(y)-1]
	if level == cpu.AVX512 {
		vecSiLUAVX512(&y[0], &x[0], len(y))
	} else {
		vecSiLUAVX2(&y[0], &x[0], len(y))
	}
}

func negExpBack32s(dx, dy, x []float32) {
	if len(dx) == 0 {
		return
	}
	_, _ = dy[len(dx)-1], x[len(dx)-1]
	if level == cpu.AVX512 {
		vecNegExpBackAVX512(&dx[0], &dy[0], &x[0], len(dx))
	} else {
		vecNegExpBackAVX2(&dx[0], &dy[0], &x[0], len(dx))
	}
}

func siluBack32s(dx, dy, x []float32) {
	if len(dx) == 0 {
		return
	}
	_, _ = dy[len(dx)-1], x[len(dx)-1]
	if level == cpu.AVX512 {
		vecSiLUBackAVX512(&dx[0], &dy[0], &x[0], len(dx))
	} else {
		vecSiLUBackAVX2(&dx[0], &dy[0], &x[0], len(dx))
	}
}

func sum32s(y, a, b []float32) {
	if len(y) == 0 {
		return
	}
	_, _ = a[len(y)-1], b[len(y)-1]
	if level == cpu.AVX512 {
		vecSumAVX512(&y[0], &a[0], &b[0], len(y))
	} else {
		vecSumAVX2(&y[0], &a[0], &b[0], len(y))
	}
}

func addProduct32s(y, w, x []float32) {
	if len(y) == 0 {
		return
	}
	_, _ = w[len(y)-1], x[len(y)-1]
	if level == cpu.AVX512 {
		vecAddProductAVX512(&y[0], &w[0], &x[0], len(y))
	} else {
		vecAddProductAVX2(&y[0], &w[0], &x[0], len(y))
	}
}

func axpy32s(y, x []float32, a float32) {
	if len(y) == 0 {
		return
	}
	_ = x[len(y)-1]
	if level == cpu.AVX512 {
		vecAxpyAVX512(&y[0], &x[0], a, len(y))
	} else {
		vecAxpyAVX2(&y[0], &x[0], a, len(y))
	}
}

func scale32s(y, x []float32, a float32) {
	if len(y) == 0 {
		return
	}
	_ = x[len(y)-1]
	if level == cpu.AVX512 {
		vecScaleAVX512(&y[0], &x[0], a, len(y))
	} else {
		vecScaleAVX2(&y[0], &x[0], a, len(y))
	}
}
