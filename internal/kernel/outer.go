package kernel

import "github.com/gomamba/mamba/internal/work"

// The functions below multiply vectors of size elements and matrices (size, size). Each argument is a sequence of vectors or matrices in
// contiguous memory. The i-th result is the product of the i-th operands. With size 1 all functions are the elementwise product.

// OuterProduct writes s = k vᵀ.
func OuterProduct[T Float](s, k, v []T, size int) {
	eachMatrix(len(k), size, func(from, to int) {
		if size == 1 {
			product(s[from:to], k[from:to], v[from:to])
			return
		}
		for at := from; at < to; at += size {
			for i, a := range k[at : at+size] {
				scaleOf(s[(at+i)*size:][:size], v[at:at+size], a)
			}
		}
	})
}

// VectorMatrix writes y = qᵀ s. It adds the rows of s in order.
func VectorMatrix[T Float](y, q, s []T, size int) {
	eachMatrix(len(q), size, func(from, to int) {
		if size == 1 {
			product(y[from:to], q[from:to], s[from:to])
			return
		}
		for at := from; at < to; at += size {
			y := y[at : at+size]
			clear(y)
			for i, a := range q[at : at+size] {
				axpy(y, s[(at+i)*size:][:size], a)
			}
		}
	})
}

// MatrixVector writes y = s v. It adds the columns of s in order.
func MatrixVector[T Float](y, s, v []T, size int) {
	eachMatrix(len(v), size, func(from, to int) {
		if size == 1 {
			product(y[from:to], s[from:to], v[from:to])
			return
		}
		for at := from; at < to; at += size {
			v := v[at : at+size]
			for i := range v {
				var sum T
				for j, a := range s[(at+i)*size:][:size] {
					sum += a * v[j]
				}
				y[at+i] = sum
			}
		}
	})
}

// product writes y = a·b, element by element.
func product[T Float](y, a, b []T) {
	clear(y)
	addProduct(y, a, b)
}

// eachMatrix cuts the n elements of the vectors into ranges of whole vectors and calls task for each range, in parallel.
func eachMatrix(n, size int, task func(from, to int)) {
	work.ParallelRange(n/size, max(piece/(size*size), 1), func(from, to int) { task(from*size, to*size) })
}
