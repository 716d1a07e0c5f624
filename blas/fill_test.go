package blas

import "math/rand/v2"

type fill struct{ *rand.Rand }

func newFill(seed uint64) fill { return fill{rand.New(rand.NewPCG(seed, 1))} }

func (f fill) normal(v []float32) {
	for i := range v {
		v[i] = float32(f.NormFloat64())
	}
}

func normal(n int) []float32 {
	v := make([]float32, n)
	newFill(uint64(n)).normal(v)
	return v
}
