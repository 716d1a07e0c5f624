//go:build !linux

package tensorfile

// hugePages is a hint that only Linux takes.
func hugePages[T float32 | float64]([]T) {}
