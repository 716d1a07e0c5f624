package cuda

import (
	"errors"
	"unsafe"
)

// The functions of cuFFT that we call.
const (
	cufftCreate = iota
	cufftDestroy
	cufftSetAutoAllocation
	cufftMakePlanMany
	cufftSetStream
	cufftSetWorkArea
	cufftExecZ2Z
)

var cufft = newCuFFT()

func newCuFFT() *library {
	return &library{
		name: "cuFFT", file: "libcufft.so", variable: "MAMBA_CUFFT", majors: []string{"12", "11", "10"}, // of CUDA 13, 12 and 11
		symbols: []string{"cufftCreate", "cufftDestroy", "cufftSetAutoAllocation", "cufftMakePlanMany", "cufftSetStream", "cufftSetWorkArea",
			"cufftExecZ2Z"},
		codes: map[int]string{
			1: "CUFFT_INVALID_PLAN", codeOutOfMemory: "CUFFT_ALLOC_FAILED", 4: "CUFFT_INVALID_VALUE", 5: "CUFFT_INTERNAL_ERROR",
			6: "CUFFT_EXEC_FAILED", 7: "CUFFT_SETUP_FAILED", 8: "CUFFT_INVALID_SIZE", 13: "CUFFT_NO_WORKSPACE", 14: "CUFFT_NOT_IMPLEMENTED",
			15: "CUFFT_LICENSE_ERROR", 16: "CUFFT_NOT_SUPPORTED",
		},
	}
}

// fft is a Fourier transform in place, of rows of points complex numbers of float64.
type fft struct{ points, rows int }

// fftPlan is cuFFT's plan for a transform.
type fftPlan struct {
	handle int32
	work   uint64 // bytes of working memory
	wrong  error  // why there is no plan
}

// planFFT returns the stream's plan for a transform. The first call makes it. Plans stay until the stream is closed, since captures may use them.
func (s *Stream) planFFT(f fft) (fftPlan, error) {
	if p, ok := s.ffts[f]; ok {
		return p, p.wrong
	}
	p, err := s.newPlan(f)
	if out := (*OutOfMemory)(nil); errors.As(err, &out) {
		return p, err
	}
	p.wrong = err
	return p, firstError(err, s.device.whileOpen(func() error { return s.keepPlan(f, p) }))
}

// keepPlan keeps a plan for Close. It must run while the device is open, since Close reads the plans.
func (s *Stream) keepPlan(f fft, p fftPlan) error {
	if s.ffts == nil {
		s.ffts = map[fft]fftPlan{}
	}
	s.ffts[f] = p
	return nil
}

func (s *Stream) newPlan(f fft) (p fftPlan, err error) {
	d := s.device
	if err := cufft.load(); err != nil {
		return p, err
	}
	if err := d.whileOpen(func() error {
		if err := cufft.call(d, cufftCreate, uintptr(unsafe.Pointer(&p.handle))); err != nil {
			return err
		}
		return s.keepPlan(f, p)
	}); err != nil {
		return p, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.whileOpen(func() error {
				delete(s.ffts, f)
				return cufft.call(d, cufftDestroy, uintptr(p.handle))
			}))
		}
	}()
	if err := cufft.do(d, cufftSetAutoAllocation, uintptr(p.handle), 0); err != nil {
		return p, err
	}
	const z2z = 0x69
	points := int32(f.points)
	if err := s.pool.retry(0, func() error {
		return cufft.do(d, cufftMakePlanMany, uintptr(p.handle), 1, uintptr(unsafe.Pointer(&points)), uintptr(unsafe.Pointer(&points)), 1,
			uintptr(f.points), uintptr(unsafe.Pointer(&points)), 1, uintptr(f.points), z2z, uintptr(f.rows), uintptr(unsafe.Pointer(&p.work)))
	}); err != nil {
		return p, err
	}
	return p, cufft.do(d, cufftSetStream, uintptr(p.handle), s.handle)
}

// transform queues a transform with e^{-2πi/points}, or with the sign 1 its inverse times points. work has as many bytes as its plan says.
func (s *Stream) transform(f fft, sign int, rows Array[float64], work Array[uint8]) error {
	p, err := s.planFFT(f)
	if err != nil {
		return err
	}
	return s.queue(fourier, append(s.words[:0], uint64(p.handle), uint64(work.address), uint64(rows.address), uint64(sign)))
}

// releasePlans frees the plans. It changes nothing, as the release of replay.
func (s *Stream) releasePlans() error {
	var errs []error
	for _, p := range s.ffts {
		if p.wrong == nil {
			errs = append(errs, cufft.call(s.device, cufftDestroy, uintptr(p.handle)))
		}
	}
	return errors.Join(errs...)
}
