package kernel

// The elementwise functions below are the loops of other kernels. All slices of a call have one length. A result may be written over an
// operand.
//
// float32 has assembly. Its results can differ from those of the Go code in the last digits, since it uses fused multiply-adds and other
// polynomials.

// negExpOf writes y = -exp(x).
func negExpOf[T Float](y, x []T) {
	if y32, ok := asm32(y); ok {
		negExp32s(y32, any(x).([]float32))
		return
	}
	for i, v := range x {
		y[i] = -exp(v)
	}
}

// negExpBack writes dx = -exp(x)·dy.
func negExpBack[T Float](dx, dy, x []T) {
	if dx32, ok := asm32(dx); ok {
		negExpBack32s(dx32, any(dy).([]float32), any(x).([]float32))
		return
	}
	for i, v := range x {
		dx[i] = -exp(v) * dy[i]
	}
}

// sigmoidOf writes y = sigmoid(x).
func sigmoidOf[T Float](y, x []T) {
	if y32, ok := asm32(y); ok {
		sigmoid32s(y32, any(x).([]float32))
		return
	}
	for i, v := range x {
		y[i] = sigmoid(v)
	}
}

// siluOf writes y = silu(x).
func siluOf[T Float](y, x []T) {
	if y32, ok := asm32(y); ok {
		silu32s(y32, any(x).([]float32))
		return
	}
	for i, v := range x {
		y[i] = silu(v)
	}
}

// siluBack writes dx = siluSlope(x)·dy.
func siluBack[T Float](dx, dy, x []T) {
	if dx32, ok := asm32(dx); ok {
		siluBack32s(dx32, any(dy).([]float32), any(x).([]float32))
		return
	}
	for i, v := range x {
		dx[i] = siluSlope(v) * dy[i]
	}
}

// sumOf writes y = a + b.
func sumOf[T Float](y, a, b []T) {
	if y32, ok := asm32(y); ok {
		sum32s(y32, any(a).([]float32), any(b).([]float32))
		return
	}
	a, b = a[:len(y)], b[:len(y)]
	for i := range y {
		y[i] = a[i] + b[i]
	}
}

// addProduct adds w·x to y, element by element.
func addProduct[T Float](y, w, x []T) {
	if y32, ok := asm32(y); ok {
		addProduct32s(y32, any(w).([]float32), any(x).([]float32))
		return
	}
	w, x = w[:len(y)], x[:len(y)]
	for i := range y {
		y[i] += w[i] * x[i]
	}
}

// axpy adds a·x to y.
func axpy[T Float](y, x []T, a T) {
	if y32, ok := asm32(y); ok {
		axpy32s(y32, any(x).([]float32), float32(a))
		return
	}
	for i, v := range x {
		y[i] += a * v
	}
}

// scaleOf writes y = a·x.
func scaleOf[T Float](y, x []T, a T) {
	if y32, ok := asm32(y); ok {
		scale32s(y32, any(x).([]float32), float32(a))
		return
	}
	for i, v := range x {
		y[i] = a * v
	}
}
