// Package kernel has the arithmetic of the library, on plain slices. It knows neither graphs nor tensors.
//
// Every kernel is generic over float32 and float64. Some also have assembly for float32, which _gen generates for AVX-512 and for AVX2.
// The variable level selects it, and tests compare it with the Go version. Work is cut into tasks by the sizes of the problem alone, never
// by the number of processors, and every sum is added in a fixed order. So a result is the same, bit for bit, for any number of processors
// and in every run.
//
// Matrices are row-major. The order of axes is (batch, length, channels). Offsets are Go ints, 64 bits wide on the
// platforms that can hold a tensor of that size.
package kernel
