package kernel

import (
	"testing"

	"gonum.org/v1/gonum/blas/gonum"
)

func narrowed(v []float64) []float32 {
	if v == nil {
		return nil
	}
	n := make([]float32, len(v))
	for i, x := range v {
		n[i] = float32(x)
	}
	return n
}

func widened(v []float32) []float64 {
	w := make([]float64, len(v))
	for i, x := range v {
		w[i] = float64(x)
	}
	return w
}

// Results and gradients in float32, which the assembly computes, equal those in float64 to within rounding.
func TestAttentionFloat32(t *testing.T) {
	eachAttention(func(name string, a *Attention[float64]) {
		b := &Attention[float32]{
			Batch: a.Batch, Length: a.Length, Channels: a.Channels, Heads: a.Heads, Window: a.Window, Base: a.Base,
			Q: narrowed(a.Q), K: narrowed(a.K), V: narrowed(a.V), Context: narrowed(a.Context), Start: a.Start, Gemm: gonum.Implementation{}.Sgemm,
		}
		n := len(a.Q)
		want := AttentionGrad[float64]{Q: make([]float64, n), K: make([]float64, n), V: make([]float64, n)}
		got := AttentionGrad[float32]{Q: make([]float32, n), K: make([]float32, n), V: make([]float32, n)}
		if a.Context != nil {
			want.Context, got.Context = make([]float64, len(a.Context)), make([]float32, len(a.Context))
		}
		y, y32 := make([]float64, n), make([]float32, n)
		a.Forward(y, nil)
		b.Forward(y32, nil)
		a.Backward(a.Q, nil, &want)
		b.Backward(b.Q, nil, &got)
		for what, of := range map[string]struct {
			got  []float32
			want []float64
		}{"y": {y32, y}, "Q": {got.Q, want.Q}, "K": {got.K, want.K}, "V": {got.V, want.V}, "Context": {got.Context, want.Context}} {
			if e := farthest(widened(of.got), of.want); e > 2e-5 {
				t.Errorf("%s: %s is off by %.2g", name, what, e)
			}
		}
	})
}
