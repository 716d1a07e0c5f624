//go:build linux && (amd64 || arm64)

package gputest

import (
	"testing"
	"unsafe"

	"github.com/ebitengine/purego"
)

// function returns the address of a function of the stand-in, 0 if there is none.
func function(name string) uintptr {
	library, err := purego.Dlopen("libcuda.so.1", purego.RTLD_NOW)
	if err != nil {
		return 0
	}
	f, err := purego.Dlsym(library, name)
	if err != nil { // the driver of a GPU
		return 0
	}
	return f
}

func standin() bool { return function("standinAlive") != 0 }

func limit(t testing.TB, name string) Limit {
	t.Helper()
	f := function(name)
	if f == 0 {
		needStandin(t)
	}
	set := func(n int) int {
		failed, _, _ := purego.SyscallN(f, uintptr(n))
		return int(failed)
	}
	t.Cleanup(func() { set(-1) })
	return set
}

// alive returns "" without the stand-in.
func alive() string {
	f := function("standinAlive")
	if f == 0 {
		return ""
	}
	var text [256]byte
	purego.SyscallN(f, uintptr(unsafe.Pointer(&text)), uintptr(len(text)))
	n := 0
	for n < len(text) && text[n] != 0 {
		n++
	}
	return string(text[:n])
}
