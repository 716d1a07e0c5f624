package cuda

import (
	"fmt"
	"math/bits"
)

// OuterProduct queues s = k vᵀ for each pair of vectors of size elements: k and v have as many elements, and s has size times as many.
func OuterProduct(s *Stream, size int, k, v, product Array[float32]) error {
	if err := checkVectors("outer product", size, "k", k, "v", v, "product", product); err != nil {
		return err
	}
	return s.run("outer", "outer_product", blocksOf(k.n*size, 256), k.address, v.address, product.address, k.n, size)
}

// VectorMatrix queues y = qᵀ m for each vector of size elements and each matrix (size, size): q and y have as many elements, and m has size
// times as many. It adds the rows of a matrix in order.
func VectorMatrix(s *Stream, size int, q, m, y Array[float32]) error {
	if err := checkVectors("product of vector and matrix", size, "q", q, "y", y, "m", m); err != nil {
		return err
	}
	return s.run("outer", "vector_matrix", blocksOf(q.n, 256), q.address, m.address, y.address, q.n, size)
}

// MatrixVector queues y = m v for each matrix (size, size) and each vector of size elements: v and y have as many elements, and m has size
// times as many.
func MatrixVector(s *Stream, size int, m, v, y Array[float32]) error {
	if err := checkVectors("product of matrix and vector", size, "v", v, "y", y, "m", m); err != nil {
		return err
	}
	lanes := min(32, 1<<(bits.Len(uint(size))-1)) // the largest power of two up to size, at most a warp
	return s.run("outer", "matrix_vector", blocksOf(v.n*lanes, 256), m.address, v.address, y.address, v.n, size, int32(lanes))
}

// checkVectors returns an error unless a is a sequence of vectors of size elements, b is at least as long, and m is at least size times as long.
func checkVectors(what string, size int, aName string, a Array[float32], bName string, b Array[float32], mName string, m Array[float32]) error {
	if size < 1 || a.n%size != 0 {
		return fmt.Errorf("cuda: %s: size is %d, want a number that divides the %d elements of %s", what, size, a.n, aName)
	}
	if err := present(what, aName, a); err != nil {
		return err
	}
	return expect(what, bName, b.n, a.n, mName, m.n, count(a.n, size))
}
