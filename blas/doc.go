// Package blas is a single-precision matrix product for this processor, behind gonum's BLAS interface.
//
//	gorgonia.Use(blas.Implementation{}) // all of Gorgonia's products
//	blas32.Use(blas.Implementation{})   // all of gonum's in single precision
//
// The operators of this library use it without being asked, unless gorgonia.Use has put another BLAS than gonum's in place.
//
// Implementation is gonum's, but for Sgemm and Sgemv, which run AVX-512 or AVX2 kernels on all processors that Go may use
// (GOMAXPROCS). Where there is neither, on other architectures and with the build tag noasm, it is gonum's throughout.
// Arguments and the panics for bad ones are gonum's. Results differ from gonum's in the last bits, and
//
//   - an element is within (k+3)·2⁻²⁴ of the sum of its terms' magnitudes, k being the number of terms;
//   - it is the same bit for bit on any number of processors and in every run;
//   - NaN and infinities come through as in any sum of products (gonum leaves out terms in which A is zero);
//   - if beta is 0, C is not read, and if alpha is 0, A and B are not.
//
// # How it works
//
// A tile of C, 8×48 with AVX-512 and 6×16 with AVX2, is summed in registers over up to 384 of k. B is packed so that a
// tile reads it in one direction, and a part of it that the second cache holds meets many tiles of rows, packed one at a
// time into the first cache. All sizes and transposes run the same tile: masks cut its columns, and there is one for each
// number of rows. Few rows against a transposed B, as in generating text, need no tiles: the rows of B are read once, as
// they lie, at the speed of memory.
//
// Small products are done in place; large ones are cut into blocks of C by their sizes, never by the number of processors,
// the last of them smaller so that all processors finish together. A block's task packs for itself, in memory that is kept:
// the processors share nothing that is written, and never wait for each other. The folder _openblas, a module of its own,
// compares with OpenBLAS.
package blas
