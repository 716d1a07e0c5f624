package gguf

import (
	"fmt"
	"math"
	"os"
)

// Value returns a value of type T of the metadata: uint64, int64, float64, bool, string, or a slice of one of them. ok is false if the file does not have the
// key. It is an error if the value is of another type.
func Value[T any](f *File, key string) (v T, ok bool, err error) {
	raw, ok := f.metadata[key]
	if !ok {
		return v, false, nil
	}
	if v, ok = raw.(T); !ok {
		return v, false, fmt.Errorf("%s is of type %T, want %T", key, raw, v)
	}
	return v, true, nil
}

// Required is Value for a key that the file must have.
func Required[T any](f *File, key string) (v T, err error) {
	v, ok, err := Value[T](f, key)
	if err == nil && !ok {
		err = fmt.Errorf("%s is missing", key)
	}
	return v, err
}

// Size returns a size, at least 1.
func Size(f *File, key string) (int, error) {
	n, err := Required[uint64](f, key)
	if err == nil && (n < 1 || n > math.MaxInt32) {
		err = fmt.Errorf("%s is %d, want 1 to %d", key, n, math.MaxInt32)
	}
	return int(n), err
}

// IsFile reports whether a path has the name of a GGUF file, and is no folder.
func IsFile(path string) bool {
	if len(path) <= 5 || path[len(path)-5:] != ".gguf" {
		return false
	}
	info, err := os.Stat(path)
	return err != nil || !info.IsDir()
}
