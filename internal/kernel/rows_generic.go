//go:build !amd64 || noasm

package kernel

func addTo64s(sum []float64, x []float32) { panic(noAssembly) }

func sumColumns32(sum, rows []float32, count, stride int) { panic(noAssembly) }

func addProductTo64s(sum []float64, a, b []float32) { panic(noAssembly) }

func sum32s64(x []float32) float64 { panic(noAssembly) }

func dot32s(x, y []float32) float64 { panic(noAssembly) }

func centre32s(c, x []float32, high, low float32) { panic(noAssembly) }

func squares32s(x []float32) float64 { panic(noAssembly) }

func norm32s(y, x, w []float32, s float32) { panic(noAssembly) }

func (r *RMSNorm[T]) rows32(y []float32, rows, at int) { panic(noAssembly) }

func (r *RMSNorm[T]) backRows32(dw, dy, dx []float32, rows, at int) { panic(noAssembly) }

func normSums32s(dw, dy, x, w []float32, s float32) float64 { panic(noAssembly) }

func normBack32s(dx, dy, x, w []float32, s, mean float32) { panic(noAssembly) }

func largest32s(x []float32) float32 { panic(noAssembly) }

func (c *CrossEntropy[T]) rows32(dx, x []float32, all []crossEntropyRow, i int, each float64) {
	panic(noAssembly)
}

func expSumTo32s(y, x []float32, top float32) float64 { panic(noAssembly) }
