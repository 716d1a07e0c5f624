// The comparison with OpenBLAS, in a module of its own: the library needs no cgo.
module github.com/gomamba/mamba/blas/_openblas

go 1.26.0

require (
	github.com/gomamba/mamba v0.0.0
	gonum.org/v1/gonum v0.16.0
	gonum.org/v1/netlib v0.0.0-20230729102104-8b8060e7531f
)

require golang.org/x/sys v0.49.0 // indirect

replace github.com/gomamba/mamba => ../..
