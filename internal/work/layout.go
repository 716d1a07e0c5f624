package work

// Layout cuts one space into arrays. It asks for the arrays twice: the first time it adds up their sizes and returns nil slices, then it
// borrows the space, and the second time it cuts the arrays from the space.
type Layout[T float32 | float64] struct {
	space Space[T]
	need  int
	cut   bool
}

// Lay calls arrays twice, to count and to cut. arrays must ask for the same sizes each time.
func (l *Layout[T]) Lay(arrays func(l *Layout[T])) {
	l.need, l.cut = 0, false
	arrays(l)
	l.space, l.cut = Borrow[T](l.need), true
	whole := l.space
	arrays(l)
	l.space = whole
}

// Array returns the next n elements, or nil while counting.
func (l *Layout[T]) Array(n int) []T {
	if !l.cut {
		l.need += padded[T](n)
		return nil
	}
	return l.space.Cut(n)
}

// ArrayIf is Array if needed, else it returns nil.
func (l *Layout[T]) ArrayIf(needed bool, n int) []T {
	if !needed {
		return nil
	}
	return l.Array(n)
}

// Return returns the space.
func (l *Layout[T]) Return() { l.space.Return() }

// Space returns the space, whose Return returns all arrays.
func (l *Layout[T]) Space() Space[T] { return l.space }
