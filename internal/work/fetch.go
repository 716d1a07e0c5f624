package work

import "unsafe"

// FetchBytes is the number of bytes of a part that Fetch reads.
const FetchBytes = 1 << 11

// FetchParts returns the number of parts of v.
func FetchParts[T float32 | byte](v []T) int {
	return (len(v)*int(unsafe.Sizeof(*new(T))) + FetchBytes - 1) / FetchBytes
}

// Fetch reads a part of v from memory, if v has it, so that what follows finds it in the cache. Others may write v meanwhile: the numbers do not matter.
//
//go:norace
func Fetch[T float32 | byte](v []T, part int) {
	n := FetchBytes / int(unsafe.Sizeof(*new(T)))
	v = v[min(part*n, len(v)):min((part+1)*n, len(v))]
	var sum T
	for i := 0; i < len(v); i += n / (FetchBytes / cacheLine) {
		sum += v[i]
	}
	fetched(float32(sum))
}

// FetchAll is Fetch of all parts of v.
func FetchAll(v []float32) {
	for part := range FetchParts(v) {
		Fetch(v, part)
	}
}

// fetched is a use of what Fetch reads, which the compiler therefore does not remove.
//
//go:noinline
func fetched(float32) {}
