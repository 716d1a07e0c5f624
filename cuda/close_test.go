package cuda

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/gputest"
)

// everything holds one of each thing that can be made on a device.
type everything struct {
	device  *Device
	stream  *Stream
	event   *Event
	capture *Capture
	array   Array[float32]
}

// makeEverything uses every resource of a device: memory, pinned memory, a module of kernels, cuBLAS, a plan of cuFFT.
func makeEverything(t *testing.T, d *Device) everything {
	t.Helper()
	s, err := d.NewStream()
	do(t, err)
	e, err := d.NewEvent()
	do(t, err)
	a, err := Upload(s, make([]float32, 16))
	do(t, err, Add(s, a, a, a), s.Record(e), s.Synchronize())
	m := Matrix[float32]{Data: a, Stride: 4}
	do(t, MatMul(s, Strict, 4, 4, 4, m, m, 1, m))
	if cufft.load() == nil {
		_, err = s.planFFT(fft{points: 8, rows: 2})
		do(t, err)
	}
	c, err := s.Capture(func() error { return Add(s, a, a, a) })
	do(t, err)
	return everything{d, s, e, c, a}
}

// TestClose checks that Close runs the functions of OnClose once and in order, while the device can still be used, and frees all resources.
func TestClose(t *testing.T) {
	d := gputest.Open(t, Open)
	made := makeEverything(t, d)
	var ran []int
	for i := range 3 {
		d.OnClose(func() {
			ran = append(ran, i)
			do(t, made.stream.Synchronize())
			if i == 2 {
				do(t, made.stream.Close())
			}
		})
	}
	do(t, d.Close(), d.Close())
	if !slices.Equal(ran, []int{0, 1, 2}) {
		t.Errorf("the functions of OnClose that ran are %v, want 0, 1, 2", ran)
	}
	d.OnClose(func() { ran = append(ran, 3) })
	if len(ran) != 4 {
		t.Error("on a closed device OnClose did not run its function")
	}
	do(t, d.Close())
	if len(ran) != 4 {
		t.Errorf("Close of a closed device ran a function of OnClose: %v", ran)
	}
	t.Run("nothing is left", func(t *testing.T) {
		if left := gputest.Alive(t); left != "" {
			t.Errorf("after Close: %s", left)
		}
	})
}

// TestCloseOne checks that closing each thing by itself frees its resources, and that a second Close does nothing.
func TestCloseOne(t *testing.T) {
	d := gputest.Open(t, Open)
	made := makeEverything(t, d)
	for range 2 {
		do(t, made.event.Close(), made.capture.Close(), made.stream.Close())
	}
	made.array.Free() // its stream is closed: does nothing
	t.Run("nothing is left", func(t *testing.T) {
		if left := gputest.Alive(t); left != "1 context, 1 module" && left != "1 context, 2 modules" {
			t.Errorf("there are %s, want only the context and the modules of kernels", left)
		}
	})
}

// TestUseAfterClose checks that every method of a thing made on a device returns an error after Close of the device or of the thing itself.
func TestUseAfterClose(t *testing.T) {
	// use maps the name of a method to a call of it. Methods that cannot return an error map to nil.
	type use map[string]func(everything) error
	one := func(_ any, err error) error { return err }
	host := make([]float32, 16)
	device := use{
		"Close": nil, "Name": nil, "Memory": nil, "OnClose": nil, "Launches": nil,
		"NewStream":       func(m everything) error { return one(m.device.NewStream()) },
		"NewEvent":        func(m everything) error { return one(m.device.NewEvent()) },
		"NewConnectionID": func(m everything) error { return one(m.device.NewConnectionID()) },
	}
	stream := use{
		"Close": nil, "Device": nil, "Capturing": nil,
		"Synchronize": func(m everything) error { return m.stream.Synchronize() },
		"Record":      func(m everything) error { return m.stream.Record(m.event) },
		"Wait":        func(m everything) error { return m.stream.Wait(m.event) },
		"Repeat":      nil, "Lasting": nil, "Here": nil, "Since": nil, "Follows": nil, "Skip": nil,
		"Settle":       func(m everything) error { return m.stream.Settle() },
		"Trim":         func(m everything) error { return m.stream.Trim() },
		"Connect":      func(m everything) error { return m.stream.Connect(ConnectionID{}, 0, 1) },
		"Disconnect":   func(m everything) error { return m.stream.Disconnect() },
		"Disconnected": func(m everything) error { return m.stream.Disconnected() },
		"Exchange":     func(m everything) error { return m.stream.Exchange() },
		"Capture":      func(m everything) error { return one(m.stream.Capture(func() error { return nil })) },
	}
	event := use{
		"Close":       nil,
		"Synchronize": func(m everything) error { return m.event.Synchronize() },
		"Reached":     func(m everything) error { return one(m.event.Reached()) },
		"Since":       func(m everything) error { return one(m.event.Since(m.event)) },
	}
	capture := use{"Close": nil, "Launch": func(m everything) error { return m.capture.Launch(m.stream) }}
	array := use{
		"Len": nil, "Address": nil, "Absent": nil, "Free": nil, "Slice": nil, "Bytes": nil, "Stream": nil,
		"CopyPartsFrom": func(m everything) error { return m.array.CopyPartsFrom(m.stream, host[:8], host[8:]) },
		"CopyFrom":      func(m everything) error { return m.array.CopyFrom(m.stream, host) },
		"CopyTo":        func(m everything) error { return m.array.CopyTo(m.stream, host) },
		"CopyOf":        func(m everything) error { return m.array.CopyOf(m.stream, m.array) },
		"Fill":          func(m everything) error { return m.array.Fill(m.stream, 0) },
	}
	functions := use{ // a kernel, a product, an allocation
		"Add":      func(m everything) error { return Add(m.stream, m.array, m.array, m.array) },
		"NewArray": func(m everything) error { return one(NewArray[float32](m.stream, 4)) },
		"Upload":   func(m everything) error { return one(Upload(m.stream, host)) },
		"MatMul": func(m everything) error {
			x := Matrix[float32]{Data: m.array, Stride: 4}
			return MatMul(m.stream, Strict, 4, 4, 4, x, x, 0, x)
		},
	}
	for thing, methods := range map[any]use{new(Device): device, new(Stream): stream, new(Event): event, new(Capture): capture,
		Array[float32]{}: array} {
		of := reflect.TypeOf(thing)
		for i := range of.NumMethod() {
			if _, ok := methods[of.Method(i).Name]; !ok {
				t.Errorf("the method %s of %v is missing in this test", of.Method(i).Name, of)
			}
		}
	}
	check := func(closed string, m everything, all ...use) {
		t.Helper()
		for _, methods := range all {
			for name, f := range methods {
				if f == nil {
					continue
				}
				if err := f(m); err == nil || !strings.Contains(err.Error(), "is closed") {
					t.Errorf("%s with its %s closed: %v, want an error that says so", name, closed, err)
				}
			}
		}
	}
	d := gputest.Open(t, Open)
	m := makeEverything(t, d)
	do(t, m.event.Close(), m.capture.Close())
	check("event or capture", m, event, capture, use{"Record": stream["Record"], "Wait": stream["Wait"]})
	do(t, m.stream.Close())
	check("stream", m, stream, array, functions)

	m = makeEverything(t, d)
	do(t, d.Close())
	check("device", m, device, stream, event, capture, array, functions)
	m.array.Slice(1, 2).Free()
	m.array.Free()
	do(t, m.event.Close(), m.capture.Close(), m.stream.Close())
	if used, held := d.Memory(); used != 0 || held != 0 {
		t.Errorf("%d bytes are in use and %d held", used, held)
	}

	var none *Stream
	for _, err := range []error{none.Trim(), one(NewArray[float32](none, 1)), Array[float32]{}.CopyFrom(none, nil),
		Array[float32]{}.Fill(none, 0), Array[float32]{}.CopyOf(none, Array[float32]{})} {
		if err == nil || !strings.Contains(err.Error(), "the stream is missing") {
			t.Errorf("without a stream: %v", err)
		}
	}
	if _, err := new(Device).NewStream(); err == nil {
		t.Error("a Device that nobody opened: no error")
	}
}

// TestFailedCreation checks that a creation that fails halfway frees all its resources, and succeeds the next time.
func TestFailedCreation(t *testing.T) {
	limit := gputest.Allocations(t)
	for n := 0; ; n++ {
		d := gputest.Open(t, Open)
		s, err := d.NewStream()
		do(t, err)
		work := func() error {
			a, err := Upload(s, make([]float32, 16))
			if err != nil {
				return err
			}
			defer a.Free()
			m := Matrix[float32]{Data: a, Stride: 4}
			return MatMul(s, Strict, 4, 4, 4, m, m, 0, m)
		}
		limit(n)
		err = work()
		failed := limit(-1)
		if failed > 0 && (err == nil || !strings.Contains(err.Error(), "out of memory")) {
			t.Errorf("no memory for allocation %d: %v, want an error that says so", n, err)
		}
		if used, _ := d.Memory(); failed > 0 && used > blasWorkspace {
			t.Errorf("no memory for allocation %d: %d bytes are in use afterwards", n, used)
		}
		do(t, work(), d.Close())
		if left := gputest.Alive(t); left != "" {
			t.Errorf("no memory for allocation %d: after Close %s", n, left)
		}
		if failed == 0 {
			if n < 4 { // an array, two pinned buffers, cuBLAS's workspace
				t.Errorf("%d allocations, want at least 4", n)
			}
			return
		}
	}
}

// Close waits for the running calls of other goroutines. Their later calls return errors.
func TestCloseFromElsewhere(t *testing.T) {
	d := gputest.Open(t, Open)
	wrong := make(chan error)
	const goroutines = 3
	for range goroutines {
		go func() {
			for {
				s, err := d.NewStream()
				if err == nil {
					err = s.Synchronize()
				}
				if err != nil {
					wrong <- err
					return
				}
			}
		}()
	}
	do(t, d.Close())
	for range goroutines {
		if err := <-wrong; !errors.Is(err, errClosed) {
			t.Error(fmt.Errorf("the error is %w", err))
		}
	}
}
