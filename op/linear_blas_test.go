package op

import (
	"sync/atomic"
	"testing"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/gonum"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	ours "github.com/gomamba/mamba/blas"
)

// countingBLAS is a BLAS as a user could set it. It counts its calls.
type countingBLAS struct {
	gonum.Implementation
	calls *atomic.Int64
}

func (b countingBLAS) Sgemm(tA, tB blas.Transpose, m, n, k int, alpha float32, x []float32, lda int, y []float32, ldb int, beta float32, c []float32, ldc int) {
	b.calls.Add(1)
	b.Implementation.Sgemm(tA, tB, m, n, k, alpha, x, lda, y, ldb, beta, c, ldc)
}

func TestLinearUsesTheBLASOfGorgonia(t *testing.T) {
	if _, isOurs := chosenBLAS().(ours.Implementation); !isOurs {
		t.Fatalf("without gorgonia.Use, the product is %T's", chosenBLAS())
	}
	defer G.Use(G.WhichBLAS())
	calls := new(atomic.Int64)
	G.Use(countingBLAS{calls: calls})

	g := G.NewGraph()
	leaf := func(name string, shape ...int) *G.Node {
		return G.NewTensor(g, tensor.Float32, len(shape), G.WithShape(shape...), G.WithName(name), G.WithInit(G.Ones()))
	}
	y := G.Must(Linear(leaf("x", 1, 2, 3), leaf("weight", 4, 3), nil))
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	if calls.Load() != 1 || y.Value().Data().([]float32)[0] != 3 {
		t.Fatalf("the chosen BLAS was called %d times; y is %v", calls.Load(), y.Value())
	}

	G.Use(ours.Implementation{})
	if _, isOurs := chosenBLAS().(ours.Implementation); !isOurs {
		t.Fatalf("gorgonia.Use(ours), but the product is %T's", chosenBLAS())
	}
}
