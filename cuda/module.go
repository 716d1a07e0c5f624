package cuda

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unsafe"
)

//go:generate kernels/generate.sh

// The kernels, as PTX from nvcc. The driver compiles a file for the device when one of its kernels is first used, and caches the result on
// disk.
//
//go:embed kernels/*.ptx.gz
var ptxFiles embed.FS

// rounding has the files whose kernels round so much to bfloat16 that they are also compiled for compute capability 8.0, as file80.
var rounding = map[string]bool{
	"adamw": true, "conv": true, "cross_entropy": true, "elementwise": true, "gridconv": true, "norm": true, "steprows": true,
	"mlp": true, "grid1": true, "grid4": true, "grid8": true, "grid16": true,
}

// overlaps has the files whose kernels are also compiled for compute capability 9.0, where they can begin before the kernel before them has ended.
var overlaps = map[string]string{
	"norm": "norm90", "elementwise": "elementwise90", "fewmma": "few90", "manymma": "many90", "steprows": "steprows90", "weightsmma": "weights90",
	"scan16sums": "scan16sums90", "narrowasync": "narrow90", "cross_entropy": "cross_entropy90", "embedding": "embedding90", "adamw": "adamw90",
	"scan16forwardasync": "scan16forward90", "scan16forwardstartsasync": "scan16forwardstarts90",
	"scan16forwardbf16async": "scan16forwardbf1690", "scan16forwardbf16startsasync": "scan16forwardbf16starts90",
	"scan16backwardwholeasync": "scan16backwardwhole90", "scan16backwardwholestartsasync": "scan16backwardwholestarts90",
	"scan16backwardbf16wholeasync": "scan16backwardbf16whole90", "scan16backwardbf16wholestartsasync": "scan16backwardbf16wholestarts90",
	"scan16backwardanyasync": "scan16backwardany90", "scan16backwardanystartsasync": "scan16backwardanystarts90",
	"scan16backwardbf16anyasync": "scan16backwardbf16any90", "scan16backwardbf16anystartsasync": "scan16backwardbf16anystarts90",
	"scan16carriesasync": "scan16carries90", "scan16carriesstartsasync": "scan16carriesstarts90",
	"scan16carriesbf16async": "scan16carriesbf1690", "scan16carriesbf16startsasync": "scan16carriesbf16starts90",
}

// firsts has the files whose kernels have addresses only in so many of the first words of their arguments. In the others two numbers of 32 bits can look like an address (ahead.go).
var firsts = map[string]int{"wide192_90a": 3, "wide96_90a": 3}

// module is a loaded file of kernels.
type module struct {
	handle  uintptr
	sizes   map[string][]int // of the arguments of each kernel, in bytes
	kernels map[string]*function
}

// function returns a kernel of a file. It loads the file at its first use.
func (d *Device) function(file, name string) (k *function, err error) {
	switch newer := overlaps[file]; {
	case d.kernels >= 90 && newer != "":
		file = newer
	case d.kernels >= 80 && rounding[file]:
		file += "80"
	}
	err = d.whileOpen(func() error {
		k, err = d.load(file, name)
		return err
	})
	return k, err
}

func (d *Device) load(file, name string) (*function, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed
	}
	m := d.modules[file]
	if m == nil {
		ptx, err := readPTX(file)
		if err != nil {
			return nil, err
		}
		m = &module{sizes: argumentSizes(string(ptx)), kernels: map[string]*function{}}
		if err := d.call(cuModuleLoadData, uintptr(unsafe.Pointer(&m.handle)), uintptr(unsafe.Pointer(unsafe.SliceData(ptx)))); err != nil {
			return nil, fmt.Errorf("%w (loading %s)", err, file)
		}
		d.modules[file] = m
	}
	k := m.kernels[name]
	if k == nil {
		k = &function{name: name, sizes: m.sizes[name], firsts: firsts[file]}
		text := append([]byte(name), 0)
		if err := d.call(cuModuleGetFunction, uintptr(unsafe.Pointer(&k.handle)), m.handle, uintptr(unsafe.Pointer(&text[0]))); err != nil {
			return nil, fmt.Errorf("%w (%s in %s)", err, name, file)
		}
		m.kernels[name] = k
	}
	return k, nil
}

// argument matches an argument of a kernel in PTX: its type, and the bytes of a struct.
var argument = regexp.MustCompile(`\.param (?:\.align \d+ )?\.[a-z](\d+)[^,\n]*?(?:\[(\d+)\])?,?\n`)

// argumentSizes returns the sizes of the arguments of the kernels in a PTX text, in bytes.
func argumentSizes(ptx string) map[string][]int {
	all := map[string][]int{}
	for {
		var entry string
		if _, ptx, _ = strings.Cut(ptx, ".entry "); ptx == "" {
			return all
		}
		entry, ptx, _ = strings.Cut(ptx, ")")
		name, arguments, _ := strings.Cut(entry, "(")
		var sizes []int
		for _, a := range argument.FindAllStringSubmatch(arguments, -1) {
			bits, _ := strconv.Atoi(a[1])
			count, err := strconv.Atoi(a[2])
			if err != nil { // no array
				count = 1
			}
			sizes = append(sizes, bits/8*count)
		}
		all[name] = sizes
	}
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
const maxArgs = 18

// usualShared is the shared memory in bytes that a block can have without asking for more.
const usualShared = 48 << 10

// grid is the launch configuration of a kernel.
type grid struct {
	x, y, z         int64 // blocks along each axis; 0 in y or z means 1
	threads, shared int   // threads per block, and bytes of shared memory per block in addition to those that the kernel declares
	mode            launchMode
}

// launchMode says when a kernel begins. Every kernel begins after the work that was queued before it, if not said otherwise.
type launchMode uint64

const (
	cooperative launchMode = iota + 1 // all blocks are on the device at the same time, or the launch fails
	overlapping                       // may begin before the kernel before it has ended: it waits for it by itself (awaitLast in kernels/types.cuh), and writes nothing that the next one reads before
	waiting                           // overlapping, but what it writes may be what the next kernel reads before it waits, such as a weight: so all that writes the result of an operator
)

// launchConfig has the layout of the driver's CUlaunchConfig, with one attribute (CUlaunchAttribute).
type launchConfig struct {
	x, y, z, threadsX, threadsY, threadsZ, shared, _ uint32
	stream, attributes                               uintptr
	count, _                                         uint32
	attribute                                        struct {
		id, _ uint32
		value [16]uint32
	}
}

// blocksOf returns the grid of at least n threads, in blocks of threads threads.
func blocksOf(n, threads int) grid {
	return grid{x: (int64(n) + int64(threads) - 1) / int64(threads), threads: threads}
}

// run queues a kernel. args are its arguments in order: an int stands for an int64, a uintptr for an address in the device's memory, and an
// unsafe.Pointer for a struct at that address.
func (s *Stream) run(file, name string, g grid, args ...any) error {
	if err := s.usable(); err != nil {
		return err
	}
	k, err := s.device.function(file, name)
	if err != nil {
		return err
	}
	g.y, g.z = max(g.y, 1), max(g.z, 1)
	if !s.kernel && (g.mode == overlapping || g.mode == waiting) {
		g.mode = 0 // there is no kernel that it could overlap
	}
	if g.x > 1<<31-1 || g.y > 1<<16-1 || g.z > 1<<16-1 {
		return fmt.Errorf("cuda: %d x %d x %d blocks, want at most 2^31-1 x 65535 x 65535", g.x, g.y, g.z)
	}
	if g.x == 0 {
		return nil
	}
	if len(args) != len(k.sizes) || len(args) > maxArgs {
		return fmt.Errorf("cuda: %s: %d arguments, want %d, and at most %d", name, len(args), len(k.sizes), maxArgs)
	}
	w := append(s.words[:0], uint64(g.x), uint64(g.y), uint64(g.z), uint64(g.threads), uint64(g.shared), uint64(g.mode))
	for i, arg := range args {
		switch v := arg.(type) {
		case int:
			w = append(w, uint64(v))
		case int32:
			w = append(w, uint64(uint32(v)))
		case float32:
			w = append(w, uint64(math.Float32bits(v)))
		case float64:
			w = append(w, math.Float64bits(v))
		case uintptr:
			w = append(w, uint64(v))
		case unsafe.Pointer:
			at, n := len(w), wordsOf(k.sizes[i])
			w = append(w, make([]uint64, n)...)
			copy(bytesAt(w[at:], k.sizes[i]), unsafe.Slice((*byte)(v), k.sizes[i]))
		default:
			return fmt.Errorf("cuda: %s: argument %d is a %T", name, i, arg)
		}
	}
	s.words = w
	return s.queue(k, w)
}

// gridWords is the number of words of a kernel's task before those of its arguments.
const gridWords = 6

// wordsOf returns the number of words that an argument of n bytes takes.
func wordsOf(n int) int { return (n + 7) / 8 }

func bytesAt(w []uint64, n int) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))), n)
}

// allow lets a kernel have an amount of shared memory. It never lowers what another stream needs.
func (k *function) allow(d *Device, shared uintptr) error {
	if shared <= usualShared {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if shared <= k.shared {
		return nil
	}
	const maxDynamicShared = 8 // the attribute's number
	if err := d.do(cuFuncSetAttribute, k.handle, maxDynamicShared, shared); err != nil {
		return err
	}
	k.shared = shared
	return nil
}

// launch queues a kernel with the words of its task.
func (s *Stream) launch(k *function, w []uint64) error {
	var list [maxArgs]unsafe.Pointer
	at := gridWords
	for i, n := range k.sizes {
		list[i] = unsafe.Pointer(&w[at])
		at += wordsOf(n)
	}
	d, shared := s.device, uintptr(w[4])
	if err := k.allow(d, shared); err != nil {
		return err
	}
	switch launchMode(w[5]) {
	case overlapping, waiting:
		const programmaticStreamSerialization = 6 // the attribute's number
		c := &launchConfig{x: uint32(w[0]), y: uint32(w[1]), z: uint32(w[2]), threadsX: uint32(w[3]), threadsY: 1, threadsZ: 1, shared: uint32(shared), stream: s.handle, count: 1}
		c.attribute.id, c.attribute.value[0] = programmaticStreamSerialization, 1
		c.attributes = uintptr(unsafe.Pointer(&c.attribute))
		return d.do(cuLaunchKernelEx, uintptr(unsafe.Pointer(c)), k.handle, uintptr(unsafe.Pointer(&list)), 0)
	case cooperative:
		return d.do(cuLaunchCooperativeKernel, k.handle, uintptr(w[0]), uintptr(w[1]), uintptr(w[2]), uintptr(w[3]), 1, 1, shared, s.handle,
			uintptr(unsafe.Pointer(&list)))
	}
	return d.do(cuLaunchKernel, k.handle, uintptr(w[0]), uintptr(w[1]), uintptr(w[2]), uintptr(w[3]), 1, 1, shared, s.handle,
		uintptr(unsafe.Pointer(&list)), 0)
}
