package layer

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"
)

// StartA says how the diagonal of a state space starts. The names are those of S4D (Gu et al., "On the Parameterization and
// Initialization of Diagonal State Space Models", section 4).
type StartA string

// For state size N, and n from 0:
const (
	S4DLin  StartA = "S4D-Lin"  // -1/2 + iπn, the frequencies of Fourier; the default
	S4DInv  StartA = "S4D-Inv"  // -1/2 + i·N/π·(N/(2n+1) - 1), close to those of LegS
	S4DLegS StartA = "S4D-LegS" // the eigenvalues of the normal part of the HiPPO matrix LegS, computed from it
	S4DReal StartA = "S4D-Real" // -(n+1), real
)

// WithA says how the diagonal A of S4 starts.
func WithA(start StartA) Option { return func(o *Options) { o.A = start } }

// WithBilinear discretises S4 by the bilinear rule instead of the zero-order hold.
func WithBilinear() Option { return func(o *Options) { o.Bilinear = true } }

// Values returns the diagonal for state size N: one of each conjugate pair, N/2 numbers with an imaginary part above zero or at it; or
// N real ones. An N below 1, an odd one where there are to be pairs, and an unknown name are errors.
func (s StartA) Values(n int) ([]complex128, error) {
	switch s {
	case S4DReal:
		if err := positive("S4", "state size", n); err != nil {
			return nil, err
		}
	case S4DLin, S4DInv, S4DLegS, "":
		if n < 2 || n%2 != 0 {
			return nil, fmt.Errorf("layer: S4: state size is %d, want an even number, two for each complex mode; or WithA(S4DReal)", n)
		}
	default:
		return nil, fmt.Errorf("layer: S4: A is to start as %q, want %q, %q, %q or %q", string(s), S4DLin, S4DInv, S4DLegS, S4DReal)
	}
	switch s {
	case S4DLegS:
		return legS(n)
	case S4DReal:
		a := make([]complex128, n)
		for i := range a {
			a[i] = complex(-float64(i+1), 0)
		}
		return a, nil
	}
	a, size := make([]complex128, n/2), float64(n)
	for i := range a {
		frequency := math.Pi * float64(i)
		if s == S4DInv {
			frequency = size / math.Pi * (size/float64(2*i+1) - 1)
		}
		a[i] = complex(-0.5, frequency)
	}
	return a, nil
}

// hippo returns the matrix LegS of size N, with which a state keeps the coefficients of the Legendre polynomials that fit the
// whole past best (Gu et al., "HiPPO: Recurrent Memory with Optimal Polynomial Projections", theorem 2):
//
//	A_nk = -√(2n+1)·√(2k+1) for n > k,  -(n+1) for n = k,  0 for n < k
func hippo(n int) *mat.Dense {
	a := mat.NewDense(n, n, nil)
	for i := range n {
		for k := range i {
			a.Set(i, k, -math.Sqrt(float64(2*i+1)*float64(2*k+1)))
		}
		a.Set(i, i, -float64(i+1))
	}
	return a
}

// legS returns the eigenvalues of the normal part of LegS, one of each conjugate pair. LegS is no normal matrix, and so cannot
// be made diagonal in a stable way; but A + p pᵀ with p_n = √(n+1/2) is one: -1/2 on the diagonal, antisymmetric beside it.
func legS(n int) ([]complex128, error) {
	normal := hippo(n)
	for i := range n {
		for k := range n {
			normal.Set(i, k, normal.At(i, k)+math.Sqrt(float64(2*i+1)*float64(2*k+1))/2)
		}
	}
	var eigen mat.Eigen
	if !eigen.Factorize(normal, mat.EigenNone) {
		return nil, fmt.Errorf("layer: S4: the eigenvalues of LegS do not converge for state size %d; another size, or WithA(S4DInv), is close", n)
	}
	values := slices.DeleteFunc(eigen.Values(nil), func(z complex128) bool { return imag(z) <= 0 })
	slices.SortFunc(values, func(a, b complex128) int { return cmp.Compare(imag(a), imag(b)) })
	return values, nil
}
