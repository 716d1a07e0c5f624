//go:build linux && (amd64 || arm64)

package cuda

import (
	"fmt"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"
)

// libraries lists the names of the driver: first for the loader's own search, then the paths that containers, WSL and NixOS use.
var libraries = []string{
	"libcuda.so.1", "libcuda.so", "/usr/local/nvidia/lib64/libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1",
	"/run/opengl-driver/lib/libcuda.so.1",
}

// driver holds the addresses of the functions of the driver's library.
type driver struct{ address [calls]uintptr }

var loadDriver = sync.OnceValues(func() (*driver, error) {
	var handle uintptr
	var first error
	for _, name := range libraries {
		h, err := purego.Dlopen(name, purego.RTLD_NOW|purego.RTLD_GLOBAL)
		if err == nil {
			handle = h
			break
		}
		if first == nil {
			first = err
		}
	}
	if handle == 0 {
		return nil, fmt.Errorf("cuda: no NVIDIA driver: %w", first)
	}
	d := new(driver)
	for i, name := range symbols {
		address, err := purego.Dlsym(handle, name)
		if err != nil {
			return nil, fmt.Errorf("cuda: the NVIDIA driver is too old: %w", err)
		}
		d.address[i] = address
	}
	if err := d.call(cuInit, 0); err != nil {
		return nil, err
	}
	return d, nil
})

// call calls the driver. Objects whose pointers are converted to uintptr in the arguments are kept alive and in place during the call.
//
//go:uintptrescapes
func (d *driver) call(f call, args ...uintptr) error {
	code, _, _ := purego.SyscallN(d.address[f], args...)
	if int32(code) == 0 {
		return nil
	}
	return d.errorOf(f, int(int32(code)))
}

func (d *driver) errorOf(f call, code int) *Error {
	text := func(f call) string {
		var s *byte
		if r, _, _ := purego.SyscallN(d.address[f], uintptr(code), uintptr(unsafe.Pointer(&s))); int32(r) != 0 || s == nil {
			return "unknown"
		}
		n := 0
		for *(*byte)(unsafe.Add(unsafe.Pointer(s), n)) != 0 {
			n++
		}
		return string(unsafe.Slice(s, n))
	}
	return &Error{Call: symbols[f], Code: code, Name: text(cuGetErrorName), Text: text(cuGetErrorString)}
}
