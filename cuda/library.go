package cuda

import "sync"

// library is a library of the CUDA toolkit that is loaded at its first use.
type library struct {
	name     string         // such as cuBLAS
	file     string         // such as libcublas.so, without the major version
	variable string         // the environment variable that can name the file
	majors   []string       // the versions whose functions have the arguments that we pass, the newest first
	needs    string         // pattern of a library that it needs, which may be in the same folder; or ""
	install  string         // what to install
	symbols  []string       // the functions that we call
	codes    map[int]string // the names of its return codes

	once    sync.Once
	address []uintptr // of the functions
	wrong   error     // why it could not be loaded
}

// load loads the library. The error says what is missing.
func (l *library) load() error {
	l.once.Do(func() { l.address, l.wrong = l.find() })
	return l.wrong
}

// do calls function f of a library with the device's context. It returns an error if the device is closed.
//
//go:uintptrescapes
func (l *library) do(d *Device, f int, args ...uintptr) error {
	return d.whileOpen(func() error { return l.call(d, f, args...) })
}

// call is do that also works while Close releases the device.
//
//go:uintptrescapes
func (l *library) call(d *Device, f int, args ...uintptr) error {
	return d.withContext(func() error {
		return l.result(f, invoke(l.address[f], args...))
	})
}

// result returns the error of a return code of function f.
func (l *library) result(f, code int) error {
	if code == 0 {
		return nil
	}
	name := l.codes[code]
	if name == "" {
		name = "unknown"
	}
	return &Error{Call: l.symbols[f], Code: code, Name: name, Text: l.name}
}
