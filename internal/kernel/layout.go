package kernel

// layout cuts one space into arrays. It asks for the arrays twice: the first time it adds up their sizes and returns nil slices, then it
// borrows the space, and the second time it cuts the arrays from the space.
type layout[T Float] struct {
	space Space[T]
	need  int
	cut   bool
}

// lay calls arrays twice, to count and to cut. arrays must ask for the same sizes each time.
func (l *layout[T]) lay(arrays func(l *layout[T])) {
	l.need, l.cut = 0, false
	arrays(l)
	l.space, l.cut = Borrow[T](l.need), true
	whole := l.space
	arrays(l)
	l.space = whole
}

// array returns the next n elements, or nil while counting.
func (l *layout[T]) array(n int) []T {
	if !l.cut {
		l.need += Padded[T](n)
		return nil
	}
	return l.space.Cut(n)
}

// arrayIf is array if needed, else it returns nil.
func (l *layout[T]) arrayIf(needed bool, n int) []T {
	if !needed {
		return nil
	}
	return l.array(n)
}
