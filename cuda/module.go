package cuda

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"math"
	"unsafe"
)

//go:generate kernels/generate.sh

// The kernels, as PTX from nvcc. The driver compiles a file for the device when one of its kernels is first used, and caches the result on
// disk.
//
//go:embed kernels/*.ptx.gz
var ptxFiles embed.FS

// module is a loaded file of kernels.
type module struct {
	handle    uintptr
	functions map[string]uintptr
}

// function returns a kernel of a file. It loads the file at its first use.
func (d *Device) function(file, name string) (f uintptr, err error) {
	err = d.whileOpen(func() error {
		f, err = d.load(file, name)
		return err
	})
	return f, err
}

func (d *Device) load(file, name string) (uintptr, error) {
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
		if err := d.call(cuModuleLoadData, uintptr(unsafe.Pointer(&m.handle)), uintptr(unsafe.Pointer(unsafe.SliceData(ptx)))); err != nil {
			return 0, fmt.Errorf("%w (loading %s)", err, file)
		}
		d.modules[file] = m
	}
	f, ok := m.functions[name]
	if !ok {
		text := append([]byte(name), 0)
		if err := d.call(cuModuleGetFunction, uintptr(unsafe.Pointer(&f)), m.handle, uintptr(unsafe.Pointer(&text[0]))); err != nil {
			return 0, fmt.Errorf("%w (%s in %s)", err, name, file)
		}
		m.functions[name] = f
	}
	return f, nil
}

// GorgoniaPTX returns the PTX text of the kernels that Gorgonia's own CUDA machine needs: add_vv_f32 and add_vv_f64.
func GorgoniaPTX() (string, error) {
	ptx, err := readPTX("gorgonia")
	return string(bytes.TrimSuffix(ptx, []byte{0})), err
}

// readPTX returns a file's text with a zero byte at the end, which the driver needs.
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

// maxArgs is the largest number of arguments of a kernel.
const maxArgs = 16

// usualShared is the shared memory in bytes that a block can have without asking for more.
const usualShared = 48 << 10

// grid is the launch configuration of a kernel.
type grid struct {
	x, y, z         int64 // blocks along each axis; 0 in y or z means 1
	threads, shared int   // threads per block, and bytes of shared memory per block in addition to those that the kernel declares
	cooperative     bool  // all blocks are on the device at the same time, or the launch fails
}

// blocksOf returns the grid of at least n threads, in blocks of threads threads.
func blocksOf(n, threads int) grid {
	return grid{x: (int64(n) + int64(threads) - 1) / int64(threads), threads: threads}
}

func (s *Stream) launchGrid(f uintptr, g grid, args ...unsafe.Pointer) error {
	g.y, g.z = max(g.y, 1), max(g.z, 1)
	if g.x > 1<<31-1 || g.y > 1<<16-1 || g.z > 1<<16-1 {
		return fmt.Errorf("cuda: %d x %d x %d blocks, want at most 2^31-1 x 65535 x 65535", g.x, g.y, g.z)
	}
	if g.x == 0 {
		return nil
	}
	var list [maxArgs]unsafe.Pointer
	if copy(list[:], args) < len(args) {
		return fmt.Errorf("cuda: a kernel of %d arguments, want at most %d", len(args), maxArgs)
	}
	if g.shared > usualShared {
		const maxDynamicShared = 8 // the attribute's number
		if err := s.do(cuFuncSetAttribute, f, maxDynamicShared, uintptr(g.shared)); err != nil {
			return err
		}
	}
	if g.cooperative {
		return s.do(cuLaunchCooperativeKernel, f, uintptr(g.x), uintptr(g.y), uintptr(g.z), uintptr(g.threads), 1, 1, uintptr(g.shared), s.handle,
			uintptr(unsafe.Pointer(&list)))
	}
	return s.do(cuLaunchKernel, f, uintptr(g.x), uintptr(g.y), uintptr(g.z), uintptr(g.threads), 1, 1, uintptr(g.shared), s.handle,
		uintptr(unsafe.Pointer(&list)), 0)
}

// run queues a kernel. args are its arguments in order: an int stands for an int64, a uintptr for an address in the device's memory, and an
// unsafe.Pointer for a struct at that address.
func (s *Stream) run(file, name string, g grid, args ...any) error {
	if err := s.usable(); err != nil {
		return err
	}
	f, err := s.device.function(file, name)
	if err != nil {
		return err
	}
	var words [maxArgs]uint64
	var list [maxArgs]unsafe.Pointer
	for i, arg := range args {
		list[i] = unsafe.Pointer(&words[i])
		switch v := arg.(type) {
		case int:
			words[i] = uint64(v)
		case int32:
			words[i] = uint64(uint32(v))
		case float32:
			words[i] = uint64(math.Float32bits(v))
		case uintptr:
			words[i] = uint64(v)
		case unsafe.Pointer:
			list[i] = v
		default:
			return fmt.Errorf("cuda: %s: argument %d is a %T", name, i, arg)
		}
	}
	return s.launchGrid(f, g, list[:len(args)]...)
}
