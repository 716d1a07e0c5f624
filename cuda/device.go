package cuda

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"unsafe"
)

// Device is an opened GPU.
type Device struct {
	driver  *driver
	name    string
	handle  int32
	context uintptr
	foreign bool // the context was made by another library; Close does not release it

	multiprocessors int
	shared          int  // bytes of shared memory that a block can have
	single          bool // all work is queued one by one
	kernels         int  // the set of kernels that is used: 70, or 80 or 90 for those of compute capability 8.0 or 9.0 too
	hopper          bool // it has the kernels for compute capability 9.0 alone, those of the files *90a
	cooperates      bool // it can run all blocks of a kernel at the same time
	overlaps        bool // a kernel can begin before the one before it has ended, in CUDA graphs too

	// Every call holds calls for reading. Close locks it, so that it waits for running calls; later calls fail. Lock calls before mu.
	calls    sync.RWMutex
	released bool

	mu        sync.Mutex
	closed    bool // Close was called
	resources map[resource]struct{}
	modules   map[string]*module
	memory    usage
	onClose   []func()

	launches launches
}

// resource is a thing on the device that Close releases, unless its own Close was called before.
type resource interface {
	release() error
}

// errMissing is what every call returns without a device.
var errMissing = errors.New("cuda: the device is missing, want one that Open returned")

// errClosed is the error of every call after Close.
var errClosed = errors.New("cuda: the device is closed")

// Attributes of a device, as the driver numbers them.
const (
	attributeMultiprocessors = 16
	attributeMajor           = 75
	attributeMinor           = 76
	attributeCooperative     = 95
	attributeShared          = 97 // per block, for a kernel that asks for it
)

// Open opens the GPU with the given number, 0 for the first. The error says what is missing: the driver, cuBLAS, a GPU with this number, or a
// GPU that is new enough (compute capability 7.0, Volta).
//
// $MAMBA_PTX=70 makes the device use only the kernels for compute capability 7.0, without tensor cores in attention
// and without the faster kernels of the scan and of decoding. With 80 it does not use those for 9.0 either.
func Open(ordinal int) (*Device, error) {
	count, err := Count()
	if err != nil {
		return nil, err
	}
	if ordinal < 0 || ordinal >= count {
		return nil, fmt.Errorf("cuda: device %d: there are %d", ordinal, count)
	}
	dr, err := loadDriver()
	if err != nil {
		return nil, err
	}
	var handle int32
	if err := dr.call(cuDeviceGet, uintptr(unsafe.Pointer(&handle)), uintptr(ordinal)); err != nil {
		return nil, err
	}
	d, err := newDevice(dr, handle)
	if err != nil {
		return nil, err
	}
	if err := dr.call(cuDevicePrimaryCtxRetain, uintptr(unsafe.Pointer(&d.context)), uintptr(d.handle)); err != nil {
		return nil, err
	}
	return d, nil
}

// Count returns the number of GPUs that this process sees: those of the machine, or those that $CUDA_VISIBLE_DEVICES or a container leaves. The error says why the driver
// cannot be used.
func Count() (int, error) {
	dr, err := loadDriver()
	if err != nil {
		return 0, err
	}
	var count int32
	err = dr.call(cuDeviceGetCount, uintptr(unsafe.Pointer(&count)))
	return int(count), err
}

// Current returns a device that uses the CUDA context that is current on the calling thread. Lock the goroutine to its thread first, with
// runtime.LockOSThread. Current is for a program that already has a context with arrays in it ([ArrayAt]). Close does not destroy the
// context. Its owner destroys it, after Close or instead of Close. The error says what is missing, as that of Open, or that no context is
// current.
func Current() (*Device, error) {
	dr, err := loadDriver()
	if err != nil {
		return nil, err
	}
	var context uintptr
	if err := dr.call(cuCtxGetCurrent, uintptr(unsafe.Pointer(&context))); err != nil {
		return nil, err
	}
	if context == 0 {
		return nil, errors.New("cuda: no context is current on this thread, want one")
	}
	var handle int32
	if err := dr.call(cuCtxGetDevice, uintptr(unsafe.Pointer(&handle))); err != nil {
		return nil, err
	}
	d, err := newDevice(dr, handle)
	if err != nil {
		return nil, err
	}
	d.context, d.foreign = context, true
	return d, nil
}

// newDevice returns a device with the name and attributes that the driver reports. It has no context yet.
func newDevice(dr *driver, handle int32) (*Device, error) {
	if err := cublas.load(); err != nil {
		return nil, err
	}
	d := &Device{driver: dr, handle: handle, resources: map[resource]struct{}{}, modules: map[string]*module{}}
	var name [256]byte
	if err := dr.call(cuDeviceGetName, uintptr(unsafe.Pointer(&name)), uintptr(len(name)), uintptr(d.handle)); err != nil {
		return nil, err
	}
	for d.name = ""; len(d.name) < len(name) && name[len(d.name)] != 0; {
		d.name += string(name[len(d.name)])
	}
	var major, minor, processors, shared, cooperative, version int32
	for attribute, to := range map[uintptr]*int32{
		attributeMajor: &major, attributeMinor: &minor, attributeMultiprocessors: &processors, attributeShared: &shared,
		attributeCooperative: &cooperative,
	} {
		if err := dr.call(cuDeviceGetAttribute, uintptr(unsafe.Pointer(to)), attribute, uintptr(d.handle)); err != nil {
			return nil, err
		}
	}
	if major < 7 {
		return nil, fmt.Errorf("cuda: device %d, %s, has compute capability %d.%d, want 7.0 or newer", handle, d.name, major, minor)
	}
	if err := dr.call(cuDriverGetVersion, uintptr(unsafe.Pointer(&version))); err != nil {
		return nil, err
	}
	d.multiprocessors, d.shared, d.cooperates = int(processors), int(shared), cooperative != 0
	var err error
	switch graphs := os.Getenv("MAMBA_GRAPHS"); graphs {
	case "", "on":
	case "off":
		d.single = true
	default:
		return nil, fmt.Errorf("cuda: MAMBA_GRAPHS is %q, want on or off, or nothing for on", graphs)
	}
	d.kernels, err = kernelSet(int(10*major+minor), os.Getenv("MAMBA_PTX"))
	if err != nil {
		return nil, err
	}
	d.hopper = d.kernels == 90 && major == 9 && minor == 0 && version >= 12000 // CUDA 12.0, which has their instructions
	d.overlaps = d.kernels >= 90 && version >= 12030                           // CUDA 12.3, whose graphs keep such launches
	return d, nil
}

// kernelSet returns the newest set of kernels for a compute capability, such as 75, or the one that $MAMBA_PTX asks for.
func kernelSet(capability int, asked string) (int, error) {
	for _, set := range []int{90, 80, 70} {
		switch {
		case set <= capability && (asked == "" || asked == strconv.Itoa(set)):
			return set, nil
		case asked == strconv.Itoa(set):
			return 0, fmt.Errorf("cuda: MAMBA_PTX is %d, and the device has compute capability %d.%d, want at least %d.0", set, capability/10, capability%10, set/10)
		}
	}
	return 0, fmt.Errorf("cuda: MAMBA_PTX is %q, want 70, 80 or 90, or nothing for what fits the device", asked)
}

// Name returns the device's name, such as "NVIDIA H200".
func (d *Device) Name() string { return d.name }

// OnClose registers f to run when Close is called, before the device's memory is freed. Functions run in the order in which they were
// registered. On a closed device f runs at once. If f is nil, OnClose does nothing.
func (d *Device) OnClose(f func()) {
	if f == nil {
		return
	}
	d.mu.Lock()
	closed := d.closed
	if !closed {
		d.onClose = append(d.onClose, f)
	}
	d.mu.Unlock()
	if closed {
		f()
	}
}

// Close runs the functions registered with OnClose, waits for the queued work, and frees all streams, events, captures, memory and modules.
// After that, any use of what was made on the device returns an error, but closing it does nothing. A second Close does nothing.
func (d *Device) Close() error {
	if d == nil || d.driver == nil {
		return errMissing
	}
	d.mu.Lock()
	closed, onClose := d.closed, d.onClose
	d.onClose, d.closed = nil, true
	d.mu.Unlock()
	if closed {
		return nil
	}
	for _, f := range onClose {
		f()
	}
	d.mu.Lock()
	resources, modules := d.resources, d.modules // without those that the functions have closed
	d.resources, d.modules = nil, nil
	d.mu.Unlock()
	var errs []error
	for r := range resources {
		s, ok := r.(*Stream)
		if ok && d.foreign { // the memory outlives the device, so the work counts
			errs = append(errs, s.flush("the end of the device"))
		}
		if ok {
			s.records.Lock()
			defer s.records.Unlock()
		}
	}
	d.calls.Lock()
	defer d.calls.Unlock()
	d.released = true
	for r := range resources { // NCCL waits for the end of graphs before it ends a connection
		if c, ok := r.(*Capture); ok {
			errs = append(errs, c.release())
			delete(resources, c)
		}
	}
	for r := range resources {
		errs = append(errs, r.release())
	}
	for _, m := range modules {
		errs = append(errs, d.call(cuModuleUnload, m.handle))
	}
	d.mu.Lock()
	d.memory = usage{ended: true}
	d.mu.Unlock()
	if !d.foreign {
		errs = append(errs, d.driver.call(cuDevicePrimaryCtxRelease, uintptr(d.handle)))
	}
	return errors.Join(errs...)
}

// do calls the driver with the device's context. It returns an error if the device is closed.
//
//go:uintptrescapes
func (d *Device) do(f call, args ...uintptr) error {
	return d.whileOpen(func() error { return d.call(f, args...) })
}

// whileOpen runs f. Close waits until f returns. If the device is closed, whileOpen returns errClosed instead.
func (d *Device) whileOpen(f func() error) error {
	if d == nil || d.driver == nil {
		return errMissing
	}
	d.calls.RLock()
	defer d.calls.RUnlock()
	if d.released {
		return errClosed
	}
	return f()
}

// create runs f, which makes r, and registers r for Close. f must call the driver with call, not do.
func (d *Device) create(r resource, f func() error) error {
	return d.whileOpen(func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.closed {
			return errClosed
		}
		if err := f(); err != nil {
			return err
		}
		d.resources[r] = struct{}{}
		return nil
	})
}

// close releases r. It does nothing if r or the device is already closed.
func (d *Device) close(r resource) error {
	err := d.whileOpen(func() error {
		d.mu.Lock()
		_, open := d.resources[r]
		delete(d.resources, r)
		d.mu.Unlock()
		if !open {
			return nil
		}
		return r.release()
	})
	if err == errClosed {
		return nil
	}
	return err
}

// call calls the driver with the device's context, also while Close releases the device. Use it only in release methods and in functions that
// whileOpen or create runs; elsewhere use do. The current context belongs to a thread and a goroutine can move between threads, so call sets
// the context each time.
//
//go:uintptrescapes
func (d *Device) call(f call, args ...uintptr) error {
	return d.withContext(func() error { return d.driver.call(f, args...) })
}

func (d *Device) withContext(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := d.driver.call(cuCtxSetCurrent, d.context); err != nil {
		return err
	}
	return f()
}
