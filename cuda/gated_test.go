package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/gomamba/mamba/internal/kernel"
)

func TestGate(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(21, 21))
	none := Array[float32]{}
	for f, host := range map[Nonlinearity]kernel.Activation{SiLU: kernel.SiLU, GELU: kernel.GELU} {
		for _, n := range []int{1, 255, 257, 5000} {
			gate, x, dy := numbers[float32](r, n, 3), numbers[float32](r, n, 1), numbers[float32](r, n, 1)
			gate[0], dy[n-1] = 40, -7
			gate[n/2] = -40
			y, dgate, dx := make([]float64, n), make([]float64, n), make([]float64, n)
			agate, ax, ady := put[float32](t, s, gate), put[float32](t, s, x), put[float32](t, s, dy)
			ay, adgate, adx := blank[float32](t, s, n), blank[float32](t, s, n), blank[float32](t, s, n)
			what := fmt.Sprintf("%v of %d: ", host, n)

			kernel.Gate(host, y, gate, x)
			kernel.GateBackward(host, dgate, dx, dy, gate, x)
			do(t, Gate(s, f, agate, ax, ay), GateBackward(s, f, agate, ax, ady, adgate, adx))
			near(t, what+"y", get(t, s, ay), y, 2e-6)
			near(t, what+"dgate", get(t, s, adgate), dgate, 2e-6)
			near(t, what+"dx", get(t, s, adx), dx, 2e-6)

			kernel.Gate(host, y, gate, nil)
			kernel.GateBackward(host, dgate, nil, dy, gate, nil)
			do(t, Gate(s, f, agate, none, ay), GateBackward(s, f, agate, none, ady, adgate, none))
			near(t, what+"activation", get(t, s, ay), y, 2e-6)
			near(t, what+"gradient of the activation", get(t, s, adgate), dgate, 2e-6)
		}
	}
	// GELU and its slope at infinity; NaN stays visible.
	x, y, dx := put[float32](t, s, []float64{math.Inf(1), math.Inf(-1), math.NaN()}), blank[float32](t, s, 3), blank[float32](t, s, 3)
	one := put[float32](t, s, []float64{1, 1, 1})
	do(t, Gate(s, GELU, x, none, y), GateBackward(s, GELU, x, none, one, dx, none))
	gotY, gotDx := get(t, s, y), get(t, s, dx)
	if !math.IsInf(gotY[0], 1) || gotDx[0] != 1 || gotDx[1] != 0 || gotY[2] == gotY[2] || gotDx[2] == gotDx[2] {
		t.Errorf("GELU of ±infinity and NaN is %v with slopes %v", gotY, gotDx)
	}
}

func TestNegExpAndColumns(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(22, 22))
	for _, size := range [][4]int{{1, 1, 0, 1}, {7, 10, 3, 5}, {300, 33, 32, 1}, {40, 65, 0, 65}} {
		rows, stride, from, width := size[0], size[1], size[2], size[3]
		x, dy := numbers[float32](r, rows*stride, 2), numbers[float32](r, rows*stride, 1)
		y, dx := make([]float64, len(x)), make([]float64, len(x))
		kernel.NegExp(y, x)
		kernel.NegExpBackward(dx, dy, x)
		ax, ay, adx := put[float32](t, s, x), blank[float32](t, s, len(x)), blank[float32](t, s, len(x))
		do(t, NegExp(s, ax, ay), NegExpBackward(s, ax, put[float32](t, s, dy), adx))
		near(t, "-exp", get(t, s, ay), y, 1e-6)
		near(t, "gradient of -exp", get(t, s, adx), dx, 1e-6)

		part, whole := make([]float64, rows*width), make([]float64, rows*stride)
		kernel.CopyColumns(part, x, stride, from, width)
		kernel.ScatterColumns(whole, part, stride, from, width)
		apart, awhole := blank[float32](t, s, rows*width), blank[float32](t, s, rows*stride)
		do(t, CopyColumns(s, rows, stride, from, width, ax, apart), ScatterColumns(s, rows, stride, from, width, apart, awhole))
		near(t, fmt.Sprint("columns ", size), get(t, s, apart), part, 0)
		near(t, fmt.Sprint("scattered ", size), get(t, s, awhole), whole, 0)
	}
}

func TestOuter(t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(23, 23))
	for _, size := range []int{1, 2, 3, 8, 31, 64, 100} {
		for _, vectors := range []int{1, 9, 70} {
			n := size * vectors
			k, v, m := numbers[float32](r, n, 1), numbers[float32](r, n, 1), numbers[float32](r, n*size, 1)
			outer, qm, mv := make([]float64, n*size), make([]float64, n), make([]float64, n)
			kernel.OuterProduct(outer, k, v, size)
			kernel.VectorMatrix(qm, k, m, size)
			kernel.MatrixVector(mv, m, v, size)
			ak, av, am := put[float32](t, s, k), put[float32](t, s, v), put[float32](t, s, m)
			aouter, aqm, amv := blank[float32](t, s, n*size), blank[float32](t, s, n), blank[float32](t, s, n)
			do(t, OuterProduct(s, size, ak, av, aouter), VectorMatrix(s, size, ak, am, aqm), MatrixVector(s, size, am, av, amv))
			what := fmt.Sprintf("%d vectors of %d: ", vectors, size)
			near(t, what+"outer product", get(t, s, aouter), outer, 1e-6)
			near(t, what+"vector and matrix", get(t, s, aqm), qm, 2e-6)
			near(t, what+"matrix and vector", get(t, s, amv), mv, 2e-6)
		}
	}
}
