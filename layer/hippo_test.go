package layer

import (
	"math"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// HiPPO-LegS makes its state the best approximation of the past by Legendre polynomials. Here that is tested without the
// formula of its elements: for x(s) = s^p on [0, t], the coefficients c_j(t) by the basis √(2j+1) P_j(2s/t - 1), orthonormal
// under the mean over [0, t], solve t c' = A c + B x(t) with B_j = √(2j+1). They are t^p times constants, so p·c = A c + B.
func TestHiPPOProjects(t *testing.T) {
	const n = 8
	a := hippo(n)
	for p := range n {
		c := mat.NewVecDense(n, nil)
		for j := range n {
			// ∫ s^p P_j(2s-1) ds over [0, 1] is p!²/((p-j)! (p+j+1)!), and 0 for j > p.
			if j <= p {
				c.SetVec(j, math.Sqrt(float64(2*j+1))*math.Gamma(float64(p+1))*math.Gamma(float64(p+1))/
					(math.Gamma(float64(p-j+1))*math.Gamma(float64(p+j+2))))
			}
		}
		var got mat.VecDense
		got.MulVec(a, c)
		for j := range n {
			want := float64(p)*c.AtVec(j) - math.Sqrt(float64(2*j+1))
			if g := got.AtVec(j); math.Abs(g-want) > 1e-12*max(1, math.Abs(want)) {
				t.Errorf("the past is s^%d: (A c)_%d is %v, want %v", p, j, g, want)
			}
		}
	}
}

// Every -½ ± iω is an eigenvalue of the normal part, built here by its definition: A^N - λ is singular. As real matrices that is
// the block matrix (A+½ ω; -ω A+½), with singular values of A^N - λ, each twice. And the ω are all of them, by the trace.
func TestLegS(t *testing.T) {
	for _, n := range []int{2, 4, 16, 64} {
		values, err := legS(n)
		if err != nil || len(values) != n/2 {
			t.Fatalf("N = %d: %d eigenvalues, want %d; %v", n, len(values), n/2, err)
		}
		root := func(j int) float64 { return math.Sqrt(float64(2*j + 1)) }
		squares, sum := 0.0, 0.0
		for j := range n {
			for k := range j {
				squares += root(j) * root(j) * root(k) * root(k) / 4
			}
		}
		for i, value := range values {
			omega := imag(value)
			if math.Abs(real(value)+0.5) > 1e-13*omega {
				t.Errorf("N = %d: eigenvalue %v, want a real part of -½", n, value)
			}
			sum += omega * omega
			if i > 0 && omega <= imag(values[i-1]) {
				t.Errorf("N = %d: frequency %d is %v, after %v", n, i, omega, imag(values[i-1]))
			}
			block := mat.NewDense(2*n, 2*n, nil)
			for j := range n {
				for k := range n {
					v := root(j) * root(k) / 2 // A^N + ½, from (-A)_jk = √(2j+1)√(2k+1) below the diagonal, and ½qqᵀ
					if j > k {
						v = -v
					} else if j == k {
						v = 0
					}
					block.Set(j, k, v)
					block.Set(n+j, n+k, v)
				}
				block.Set(j, n+j, omega)
				block.Set(n+j, j, -omega)
			}
			var svd mat.SVD
			if !svd.Factorize(block, mat.SVDNone) {
				t.Fatal("no singular values")
			}
			if v := svd.Values(nil); v[2*n-1] > 1e-13*v[0] || v[2*n-2] > 1e-13*v[0] || n > 2 && v[2*n-3] < 1e-6*v[0] {
				t.Errorf("N = %d: -½ + %vi is no simple eigenvalue: singular values %v", n, omega, v[2*n-4:])
			}
		}
		if math.Abs(sum-squares) > 1e-12*squares {
			t.Errorf("N = %d: the squares of the frequencies add up to %v, want %v", n, sum, squares)
		}
	}
}
