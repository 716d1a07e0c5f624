package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"
)

// Device is an opened GPU.
type Device struct {
	driver  *driver
	blas    *blasLibrary
	name    string
	handle  int32
	context uintptr
	foreign bool // the context is someone else's

	multiprocessors int

	mu      sync.Mutex
	closed  bool
	streams map[*Stream]struct{}
	modules map[string]*module
	memory  usage
	onClose []func()
}

// Attributes of a device, as the driver numbers them.
const (
	attributeMultiprocessors = 16
	attributeMajor           = 75
	attributeMinor           = 76
)

// Open opens a GPU by its number, 0 being the first. The error says what is missing: the driver, cuBLAS, a GPU, this one, or one that is
// new enough (compute capability 7.0, Volta).
func Open(ordinal int) (*Device, error) {
	dr, err := loadDriver()
	if err != nil {
		return nil, err
	}
	var count int32
	if err := dr.call(cuDeviceGetCount, uintptr(unsafe.Pointer(&count))); err != nil {
		return nil, err
	}
	if ordinal < 0 || ordinal >= int(count) {
		return nil, fmt.Errorf("cuda: device %d: there are %d", ordinal, count)
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

// Current returns a device on the context that is current on the calling thread, to which the goroutine is locked. It is for a
// program that has a context already, and arrays in it ([ArrayAt]). Whoever made the context destroys it, after Close or instead
// of it. The error says what is missing, as Open's does, or that there is no context.
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

// newDevice asks the driver about a device; what it returns has no context yet.
func newDevice(dr *driver, handle int32) (*Device, error) {
	blas, err := loadBLAS()
	if err != nil {
		return nil, err
	}
	d := &Device{driver: dr, blas: blas, handle: handle, streams: map[*Stream]struct{}{}, modules: map[string]*module{}}
	var name [256]byte
	if err := dr.call(cuDeviceGetName, uintptr(unsafe.Pointer(&name)), uintptr(len(name)), uintptr(d.handle)); err != nil {
		return nil, err
	}
	for d.name = ""; len(d.name) < len(name) && name[len(d.name)] != 0; {
		d.name += string(name[len(d.name)])
	}
	var major, minor, processors int32
	for attribute, to := range map[uintptr]*int32{
		attributeMajor: &major, attributeMinor: &minor, attributeMultiprocessors: &processors,
	} {
		if err := dr.call(cuDeviceGetAttribute, uintptr(unsafe.Pointer(to)), attribute, uintptr(d.handle)); err != nil {
			return nil, err
		}
	}
	if major < 7 {
		return nil, fmt.Errorf("cuda: device %d, %s, has compute capability %d.%d, want 7.0 or newer", handle, d.name, major, minor)
	}
	d.multiprocessors = int(processors)
	return d, nil
}

// Name is what the maker calls the device.
func (d *Device) Name() string { return d.name }

// OnClose has a function called when the device is closed, before its memory is freed.
func (d *Device) OnClose(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onClose = append(d.onClose, f)
}

// Close waits for the work that is queued, and frees all streams, memory and modules. What was made on the device is of no
// use afterwards. Closing twice does nothing.
func (d *Device) Close() error {
	d.mu.Lock()
	streams, modules, closed, onClose := d.streams, d.modules, d.closed, d.onClose
	d.streams, d.modules, d.closed = nil, nil, true
	d.mu.Unlock()
	if closed {
		return nil
	}
	for _, f := range onClose {
		f()
	}
	var errs []error
	for s := range streams {
		errs = append(errs, s.release())
	}
	for _, m := range modules {
		errs = append(errs, d.do(cuModuleUnload, m.handle))
	}
	if !d.foreign {
		errs = append(errs, d.driver.call(cuDevicePrimaryCtxRelease, uintptr(d.handle)))
	}
	return errors.Join(errs...)
}

// do calls the driver with the device's context. A goroutine may move between threads, and the context is a thread's, so it is
// set before every call.
//
//go:uintptrescapes
func (d *Device) do(f call, args ...uintptr) error {
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
