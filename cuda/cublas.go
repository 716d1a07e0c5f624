package cuda

import (
	"errors"
	"fmt"
	"math"
	"unsafe"
)

// The functions of cuBLAS that we call.
const (
	cublasCreate = iota
	cublasDestroy
	cublasSetStream
	cublasSetWorkspace
	cublasSetMathMode
	cublasGemmEx
	cublasGemmStridedBatchedEx
)

var cublas = &library{
	name: "cuBLAS", file: "libcublas.so", variable: "MAMBA_CUBLAS", majors: []string{"13", "12", "11"}, needs: "libcublasLt.so.*",
	symbols: []string{"cublasCreate_v2", "cublasDestroy_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasSetMathMode",
		"cublasGemmEx", "cublasGemmStridedBatchedEx"},
	codes: map[int]string{
		1: "CUBLAS_STATUS_NOT_INITIALIZED", 3: "CUBLAS_STATUS_ALLOC_FAILED", 7: "CUBLAS_STATUS_INVALID_VALUE",
		8: "CUBLAS_STATUS_ARCH_MISMATCH", 11: "CUBLAS_STATUS_MAPPING_ERROR", 13: "CUBLAS_STATUS_EXECUTION_FAILED",
		14: "CUBLAS_STATUS_INTERNAL_ERROR", 15: "CUBLAS_STATUS_NOT_SUPPORTED", 16: "CUBLAS_STATUS_LICENSE_ERROR",
	},
}

// blasHandle is the cuBLAS handle of a stream, with its workspace.
type blasHandle struct {
	handle    uintptr
	workspace Array[uint8]
}

// blasWorkspace is the size in bytes that NVIDIA recommends for Hopper. We allocate the workspace ourselves, so that a product's bits do not
// depend on other work, and so that products can be captured.
const blasWorkspace = 32 << 20

// cublas returns the stream's handle. The first call creates it.
func (s *Stream) cublas() (uintptr, error) {
	if err := s.usable(); err != nil {
		return 0, err
	}
	if s.blas.handle != 0 {
		return s.blas.handle, nil
	}
	d := s.device
	w, err := NewArray[uint8](s, blasWorkspace)
	if err != nil {
		return 0, err
	}
	err = d.whileOpen(func() error { // Close destroys the handle
		var h uintptr
		if err := cublas.call(d, cublasCreate, uintptr(unsafe.Pointer(&h))); err != nil {
			return err
		}
		err := cublas.call(d, cublasSetStream, h, s.handle)
		if err == nil {
			err = cublas.call(d, cublasSetWorkspace, h, w.address, blasWorkspace)
		}
		if err == nil {
			const sumsInFloat = 16 // also where cuBLAS divides k and the result has 16 bits: in float16 the sums of the parts could overflow
			err = cublas.call(d, cublasSetMathMode, h, sumsInFloat)
		}
		if err != nil {
			return errors.Join(err, cublas.call(d, cublasDestroy, h))
		}
		s.blas = blasHandle{h, w}
		return nil
	})
	if err != nil {
		w.Free()
	}
	return s.blas.handle, err
}

// release changes nothing, as that of replay.
func (b *blasHandle) release(d *Device) error {
	if b.handle == 0 {
		return nil
	}
	return cublas.call(d, cublasDestroy, b.handle)
}

// Matrix is a matrix in row-major order. Its rows are Stride elements apart.
type Matrix[T Element] struct {
	Data       Array[T]
	Stride     int
	Transposed bool // the operand is the transpose of the matrix in memory
}

// rowsAndWidth returns the rows and the width of the matrix in memory, for an operand (rows, width).
func (m Matrix[T]) rowsAndWidth(rows, width int) (int, int) {
	if m.Transposed {
		return width, rows
	}
	return rows, width
}

func (m Matrix[T]) check(name string, rows, width int) error {
	rows, width = m.rowsAndWidth(rows, width)
	if m.Stride < width || m.Stride > 1<<31-1 { // cuBLAS counts in 32 bits
		return fmt.Errorf("cuda: product: %s has a stride of %d, want %d to 2^31-1", name, m.Stride, width)
	}
	if want := strided(rows, m.Stride, width); m.Data.n < want {
		return fmt.Errorf("cuda: product: %s has %d elements, want %d", name, m.Data.n, want)
	}
	return nil
}

// operation returns cuBLAS's code for a transposed or an untransposed operand.
func (m Matrix[T]) operation() uintptr {
	if m.Transposed {
		return 1
	}
	return 0
}

// Codes of cuBLAS for types and for modes of computation.
const (
	blasFloat    = 0
	blasFloat16  = 2
	blasBFloat16 = 14
	computeFloat = 68
	computeTF32  = 77
	defaultAlgo  = ^uintptr(0) // -1
)

func blasType[T Activation]() uintptr {
	if typeName[T]() == "bf16" {
		return blasBFloat16
	}
	return blasFloat
}

// In TF32, cuBLAS multiplies two operands that both lie across k at two thirds of the speed that it has if one of them lies along k, as for
// the gradient of a weight. Products with m and n of at least leastAlongK and a large k copy the smaller operand.
const leastAlongK = 256

// alongK returns a copy of a matrix (k, n) that lies along k, as (n, k). The caller frees its data, also after an error.
func alongK[T Activation](s *Stream, x Matrix[T], k, n int) (Matrix[T], error) {
	y, err := NewArray[T](s, k*n)
	if err != nil {
		return Matrix[T]{}, err
	}
	g := grid{x: int64((k + 31) / 32), y: int64((n + 31) / 32), threads: 256}
	return Matrix[T]{Data: y, Stride: k}, s.run("elementwise", "transpose", g, x.Data.address, y.address, k, n, x.Stride)
}

// MatMul queues c (m, n) = a (m, k) · b (k, n) + beta·c, with sums in float32, through cuBLAS or, for float32, kernels of ours: for many rows and few columns, and on compute capability 9.0 for
// large sizes. FP16x3 and TF32 change only products of float32. FP16x3 needs working memory, for operands of m rows at most 256 MB and the size of b. Large products of float32 whose result is
// small need at most 128 MB on compute capability 9.0.
func MatMul[A, C Activation](s *Stream, p Precision, m, n, k int, a, b Matrix[A], beta float32, c Matrix[C]) error {
	return MatMulScaled(s, p, m, n, k, 1, a, b, beta, c)
}

// MatMulScaled queues c (m, n) = alpha·a (m, k) · b (k, n) + beta·c, as MatMul does.
func MatMulScaled[A, C Activation](s *Stream, p Precision, m, n, k int, alpha float32, a, b Matrix[A], beta float32, c Matrix[C]) error {
	if m < 0 || n < 0 || k < 0 || max(m, n, k) > 1<<31-1 {
		return fmt.Errorf("cuda: product: (%d, %d) by (%d, %d), want sizes of 0 to 2^31-1", m, k, k, n)
	}
	if err := p.Err(); err != nil {
		return fmt.Errorf("cuda: product: %w", err)
	}
	if c.Transposed {
		return errors.New("cuda: product: c is transposed, want a matrix as it lies in memory")
	}
	if err := firstError(a.check("a", m, k), b.check("b", k, n), c.check("c", m, n)); err != nil {
		return err
	}
	if m == 0 || n == 0 {
		return s.usable()
	}
	if k == 0 {
		return fmt.Errorf("cuda: product: k is 0, want at least 1")
	}
	if p == FP16x3 {
		if done, err := fp16x3(s, m, n, k, alpha, a, b, beta, c); done || err != nil {
			return err
		}
	}
	h, err := s.cublas()
	if err != nil {
		return err
	}
	if p != TF32 {
		if done, err := narrow(s, m, n, k, alpha, a, b, beta, c); done || err != nil {
			return err
		}
		if done, err := wide(s, m, n, k, alpha, a, b, beta, c); done || err != nil {
			return err
		}
	}
	compute := uintptr(computeFloat)
	if p == TF32 && blasType[A]() == blasFloat {
		compute = computeTF32
		if a.Transposed && !b.Transposed && min(m, n) >= leastAlongK && k >= 4*leastAlongK && k%8 == 0 {
			var copied Array[A]
			if m <= n {
				a, err = alongK(s, a, k, m)
				copied, a.Transposed = a.Data, false
			} else {
				b, err = alongK(s, b, k, n)
				copied, b.Transposed = b.Data, true
			}
			defer copied.Free()
			if err != nil {
				return err
			}
		}
	}
	// cuBLAS is column-major. The rows of c are the columns of cᵀ = bᵀ·aᵀ.
	s.words = append(s.words[:0], uint64(h), uint64(b.operation()), uint64(a.operation()), uint64(n), uint64(m), uint64(k),
		uint64(math.Float32bits(alpha)), uint64(b.Data.address), uint64(blasType[A]()), uint64(b.Stride), uint64(a.Data.address), uint64(blasType[A]()), uint64(a.Stride),
		uint64(math.Float32bits(beta)), uint64(c.Data.address), uint64(blasType[C]()), uint64(c.Stride), uint64(compute), uint64(defaultAlgo))
	return s.queue(product, s.words)
}
