package blas_test

import (
	"fmt"

	gonum "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"

	"github.com/gomamba/mamba/blas"
)

func Example() {
	blas32.Use(blas.Implementation{})
	a := blas32.General{Rows: 2, Cols: 2, Stride: 2, Data: []float32{1, 2, 3, 4}}
	c := blas32.General{Rows: 2, Cols: 2, Stride: 2, Data: make([]float32, 4)}
	blas32.Gemm(gonum.NoTrans, gonum.Trans, 1, a, a, 0, c)
	fmt.Println(c.Data)
	// Output: [5 11 11 25]
}

func ExampleQuantize() {
	data := make([]float32, 2*256)
	for i := range data {
		data[i] = float32(i%16) / 15
	}
	w, err := blas.Quantize(blas.Q4_K, 2, 256, data)
	if err != nil {
		panic(err)
	}
	var y [2]float32
	w.Mul(y[:], 2, data, 256, 1, false) // y = w·x of the first row of data
	fmt.Printf("%d bytes of %d; %.0f\n", w.Bytes(), 4*len(data), y)
	// Output: 288 bytes of 2048; [88 88]
}
