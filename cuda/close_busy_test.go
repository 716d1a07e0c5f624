package cuda

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/gomamba/mamba/internal/gputest"
)

// Close of a device frees memory while goroutines copy, allocate, record and multiply: they return errors, and touch nothing that is freed.
func TestCloseOfABusyDevice(t *testing.T) {
	for i := range 40 {
		d := gputest.Open(t, Open)
		var all sync.WaitGroup
		for g := range 4 {
			s, err := d.NewStream()
			do(t, err)
			all.Go(func() {
				for {
					if err := busy(s, g); err != nil {
						if !errors.Is(err, errClosed) {
							t.Errorf("goroutine %d: %v", g, err)
						}
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(i) * 200 * time.Microsecond)
		do(t, d.Close())
		all.Wait()
		if used, held := d.Memory(); used != 0 || held != 0 {
			t.Errorf("after Close %d bytes are in use and %d held", used, held)
		}
		t.Run("nothing is left", func(t *testing.T) {
			if left := gputest.Alive(t); left != "" {
				t.Errorf("after Close: %s", left)
			}
		})
	}
}

// busy uses a stream in all ways that have memory of the host or of the stream.
func busy(s *Stream, kind int) error {
	host := make([]float32, 1<<16+1<<18*kind)
	a, err := Upload(s, host)
	if err != nil {
		return err
	}
	defer a.Free()
	o, err := NewOutbox[float32](s, 64)
	if err != nil {
		return err
	}
	defer o.Close()
	for i := range 4 {
		part := a.Slice(0, 64)
		if cufft.load() == nil {
			if _, err := s.planFFT(fft{points: 8 << kind, rows: i + 1}); err != nil {
				return err
			}
		}
		m := Matrix[float32]{Data: part, Stride: 8}
		if err := firstError(Add(s, part, part, part), part.CopyTo(s, host[:64]), MatMul(s, Strict, 8, 8, 8, m, m, 0, m), o.Send(part), o.Seal(), a.CopyTo(s, host), a.CopyFrom(s, host)); err != nil {
			return err
		}
		if _, err := o.Wait(); err != nil {
			return err
		}
		b, err := NewArray[float32](s, len(host)/2)
		if err != nil {
			return err
		}
		b.Free()
	}
	return s.Trim()
}

// Close of a device while a stream is captured ends the capture. The capture then returns an error that says so.
func TestCloseDuringCapture(t *testing.T) {
	d := gputest.Open(t, Open)
	s, err := d.NewStream()
	do(t, err)
	a, err := NewArray[float32](s, 1000)
	do(t, err)
	do(t, a.Fill(s, 1)) // its kernel is loaded
	c, err := s.Capture(func() error {
		do(t, a.Fill(s, 2))
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		return a.Fill(s, 3)
	})
	if c != nil || !errors.Is(err, errClosed) {
		t.Errorf("the capture is %v with the error %v, want none and an error that says that the device is closed", c, err)
	}
	if left := gputest.Alive(t); left != "" {
		t.Errorf("after Close: %s", left)
	}
}
