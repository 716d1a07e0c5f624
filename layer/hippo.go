package layer

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
)

// StartA names the initial diagonal of a state space. The names are those of S4D (Gu et al., "On the Parameterization and
// Initialization of Diagonal State Space Models", section 4).
type StartA string

// The initial diagonals, for state size N and n from 0:
const (
	S4DLin  StartA = "S4D-Lin"  // -1/2 + iπn, the frequencies of Fourier; the default
	S4DInv  StartA = "S4D-Inv"  // -1/2 + i·N/π·(N/(2n+1) - 1), close to those of LegS
	S4DLegS StartA = "S4D-LegS" // the eigenvalues of the normal part of the HiPPO matrix LegS, computed from it
	S4DReal StartA = "S4D-Real" // -(n+1), real
)

// modes returns the number of values for state size N, or what is wrong with the name or with N.
func (s StartA) modes(n int) (int, error) {
	switch s {
	case S4DReal:
		return n, build.Axes("state size", n)
	case S4DLin, S4DInv, S4DLegS, "":
		if n < 2 || n%2 != 0 {
			return 0, fmt.Errorf("state size is %d, want an even number, two for each complex mode; or S4DReal", n)
		}
		return n / 2, build.Axes("state size", n)
	}
	return 0, fmt.Errorf("no values start as %q, want %q, %q, %q or %q", string(s), S4DLin, S4DInv, S4DLegS, S4DReal)
}

// Values returns the diagonal for state size N: N real numbers for S4DReal; for the others N/2 numbers, one of each conjugate pair,
// with an imaginary part that is not negative. It is an error if n is below 1, if it is odd where the numbers come in pairs, if the
// name is unknown, or if the machine's memory does not hold the numbers.
func (s StartA) Values(n int) ([]complex128, error) {
	modes, err := s.modes(n)
	if err == nil {
		need := size.Of(16, modes)
		if s == S4DLegS {
			need = need.Plus(size.Of(8, 4, n, n)) // the matrix, its Hessenberg form, and two work spaces
		}
		if err = need.Fits("its eigenvalues"); err != nil {
			err = fmt.Errorf("state size is %d: %w", n, err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("layer: S4: %w", err)
	}
	a, size := make([]complex128, modes), float64(n)
	for i := range a {
		switch s {
		case S4DLegS:
			return legS(n)
		case S4DReal:
			a[i] = complex(-float64(i+1), 0)
		case S4DInv:
			a[i] = complex(-0.5, size/math.Pi*(size/float64(2*i+1)-1))
		default:
			a[i] = complex(-0.5, math.Pi*float64(i))
		}
	}
	return a, nil
}

// hippo returns the matrix LegS of size N. With it, a state holds the coefficients of the Legendre polynomials that best fit the
// whole past (Gu et al., "HiPPO: Recurrent Memory with Optimal Polynomial Projections", theorem 2):
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

// legS returns the eigenvalues of the normal part of LegS, one of each conjugate pair. LegS is not a normal matrix, so it has no
// stable diagonal form. But A + p pᵀ with p_n = √(n+1/2) is normal: it is -1/2 on the diagonal, and antisymmetric off it.
func legS(n int) ([]complex128, error) {
	normal := hippo(n)
	for i := range n {
		for k := range n {
			normal.Set(i, k, normal.At(i, k)+math.Sqrt(float64(2*i+1)*float64(2*k+1))/2)
		}
	}
	var eigen mat.Eigen
	if !eigen.Factorize(normal, mat.EigenNone) {
		return nil, fmt.Errorf("layer: S4: the eigenvalues of LegS do not converge for state size %d; another size, or S4DInv, is close", n)
	}
	values := slices.DeleteFunc(eigen.Values(nil), func(z complex128) bool { return imag(z) <= 0 })
	slices.SortFunc(values, func(a, b complex128) int { return cmp.Compare(imag(a), imag(b)) })
	return values, nil
}
