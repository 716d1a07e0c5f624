// Package blas implements the single-precision matrix product with AVX-512 and AVX2, behind gonum's BLAS interface.
//
//	gorgonia.Use(blas.Implementation{}) // all of Gorgonia's products
//	blas32.Use(blas.Implementation{})   // all of gonum's in single precision
//
// The operators of this library use it by default, unless gorgonia.Use has chosen another BLAS than gonum's.
//
// Implementation is gonum's BLAS with its own Sgemm and Sgemv. They run AVX-512 or AVX2 kernels on up to GOMAXPROCS processors. On
// processors without AVX2, on other architectures and with the build tag noasm, gonum's products run instead. Arguments are those of
// gonum, and invalid arguments panic as they do there. Results differ from gonum's in the last bits:
//
//   - the error of an element is at most (k+3)·2⁻²⁴ times the sum of the magnitudes of its k terms;
//   - results are the same, bit for bit, for any number of processors and in every run;
//   - NaN and infinities propagate as in any sum of products (gonum leaves out terms in which A is zero);
//   - if beta is 0, C is not read, and if alpha is 0, A and B are not.
//
// # How it works
//
// A kernel sums a tile of C in registers, over up to 384 of k. A tile is 8×48 with AVX-512 and 6×16 with AVX2. B is packed so that the
// tiles read it sequentially. A packed part of B fits into the second-level cache and is used by many tiles of rows. The rows of A are read where they lie; those
// of a transposed A are packed one tile at a time into the first-level cache. The same kernels run for all sizes and transposes: masks limit the columns, and
// there is a kernel for each number of rows. If A has few rows and B is transposed, as in text generation, no tiles are needed: the rows
// of B are read once, without packing, at the speed of memory.
//
// A small product is one task. A large product is cut into blocks of C by its sizes. The last blocks are smaller, so that all processors finish at about the
// same time. Each task packs its own operands, in memory that is kept for later products. So tasks share no memory that is written, and never wait for each
// other. Where processors would get fewer than four blocks each, there is one block for each of them instead; who has finished takes rows of the blocks of others.
// The order of a sum does not depend on the cut. The folder _openblas, a module of its own, compares with OpenBLAS.
package blas
