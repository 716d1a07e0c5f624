package kernel

// layout cuts one space into arrays. The arrays are asked for twice: first they are counted, and are nil; then the space is
// borrowed, and they are cut from it.
type layout[T Float] struct {
	space Space[T]
	need  int
	cut   bool
}

// lay calls arrays for the counting and for the cutting.
func (l *layout[T]) lay(arrays func(l *layout[T])) {
	l.need, l.cut = 0, false
	arrays(l)
	l.space, l.cut = Borrow[T](l.need), true
	whole := l.space
	arrays(l)
	l.space = whole
}

// array returns the next n numbers.
func (l *layout[T]) array(n int) []T {
	if !l.cut {
		l.need += Padded[T](n)
		return nil
	}
	return l.space.Cut(n)
}

// arrayIf is array, or nil where it is not needed.
func (l *layout[T]) arrayIf(needed bool, n int) []T {
	if !needed {
		return nil
	}
	return l.array(n)
}
