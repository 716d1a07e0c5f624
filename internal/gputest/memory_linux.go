//go:build linux && (amd64 || arm64)

package gputest

import (
	"testing"

	"github.com/ebitengine/purego"
)

// Grant returns a function that sets after how many allocations the stand-in for a GPU (tools/gpustandin) has no memory left, until
// it is called again; a negative number is no limit. On a GPU the test is skipped.
func Grant(t *testing.T) func(allocations int) {
	t.Helper()
	const file = "libcuda.so.1"
	library, err := purego.Dlopen(file, purego.RTLD_NOW)
	if err != nil {
		t.Skipf("no GPU: %v", err)
	}
	f, err := purego.Dlsym(library, "standinGrant")
	if err != nil {
		t.Skipf("%s is a GPU's, and no stand-in, which tools/gpustandin.sh makes", file)
	}
	t.Cleanup(func() { purego.SyscallN(f, ^uintptr(0)) })
	return func(n int) { purego.SyscallN(f, uintptr(n)) }
}
