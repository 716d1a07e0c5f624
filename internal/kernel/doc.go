// Package kernel holds the arithmetic of the library, on plain slices: no graph, no tensors, no allocation that a caller
// could not foresee.
//
// Every kernel is generic over float32 and float64 and written to be read. Work is cut into tasks by the sizes of the
// problem alone, never by the number of processors, and every sum is taken in a fixed order; so a result is the same bit
// for bit on one core and on many, and from run to run.
//
// Matrices are row-major. The order of axes is (batch, length, channels). Offsets are Go ints, 64 bits wide on the
// platforms that can hold a tensor of that size.
package kernel
