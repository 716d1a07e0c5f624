package cuda

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"unsafe"
)

//go:generate kernels/generate.sh

// The kernels, as nvcc's PTX, which the driver compiles for the device when they are first used, and keeps on disk.
//
//go:embed kernels/*.ptx.gz
var ptxFiles embed.FS

// module is a file of kernels on a device.
type module struct {
	handle    uintptr
	functions map[string]uintptr
}

// function returns a kernel of a file, which is loaded at its first use.
func (d *Device) function(file, name string) (uintptr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, errClosed
	}
	m := d.modules[file]
	if m == nil {
		ptx, err := readPTX(file)
		if err != nil {
			return 0, err
		}
		m = &module{functions: map[string]uintptr{}}
		if err := d.do(cuModuleLoadData, uintptr(unsafe.Pointer(&m.handle)), uintptr(unsafe.Pointer(unsafe.SliceData(ptx)))); err != nil {
			return 0, fmt.Errorf("%w (loading %s)", err, file)
		}
		d.modules[file] = m
	}
	f, ok := m.functions[name]
	if !ok {
		text := append([]byte(name), 0)
		if err := d.do(cuModuleGetFunction, uintptr(unsafe.Pointer(&f)), m.handle, uintptr(unsafe.Pointer(&text[0]))); err != nil {
			return 0, fmt.Errorf("%w (%s in %s)", err, name, file)
		}
		m.functions[name] = f
	}
	return f, nil
}

// readPTX returns a file's text, closed by a zero byte as the driver wants it.
func readPTX(file string) ([]byte, error) {
	packed, err := ptxFiles.ReadFile("kernels/" + file + ".ptx.gz")
	if err != nil {
		return nil, err
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(r)
	return append(text, 0), err
}

// maxArgs is the number of arguments of a kernel, at most.
const maxArgs = 6

// launch queues a kernel: blocks times threads of it, with the arguments at those addresses.
func (s *Stream) launch(f uintptr, blocks int64, threads int, args ...unsafe.Pointer) error {
	if blocks > 1<<31-1 {
		return fmt.Errorf("cuda: %d blocks, want at most 2^31-1", blocks)
	}
	var list [maxArgs]unsafe.Pointer
	copy(list[:], args)
	return s.device.do(cuLaunchKernel, f, uintptr(blocks), 1, 1, uintptr(threads), 1, 1, 0, s.handle, uintptr(unsafe.Pointer(&list)), 0)
}
