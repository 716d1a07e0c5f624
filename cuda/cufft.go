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
	cufftExecD2Z
	cufftExecZ2D
)

var cufft = newCuFFT()

func newCuFFT() *library {
	return &library{
		name: "cuFFT", file: "libcufft.so", variable: "MAMBA_CUFFT", majors: []string{"12", "11", "10"}, // of CUDA 13, 12 and 11
		symbols: []string{"cufftCreate", "cufftDestroy", "cufftSetAutoAllocation", "cufftMakePlanMany", "cufftSetStream", "cufftSetWorkArea",
			"cufftExecD2Z", "cufftExecZ2D"},
		codes: map[int]string{
			1: "CUFFT_INVALID_PLAN", codeOutOfMemory: "CUFFT_ALLOC_FAILED", 4: "CUFFT_INVALID_VALUE", 5: "CUFFT_INTERNAL_ERROR",
			6: "CUFFT_EXEC_FAILED", 7: "CUFFT_SETUP_FAILED", 8: "CUFFT_INVALID_SIZE", 13: "CUFFT_NO_WORKSPACE", 14: "CUFFT_NOT_IMPLEMENTED",
			15: "CUFFT_LICENSE_ERROR", 16: "CUFFT_NOT_SUPPORTED",
		},
	}
}

// fft is a real Fourier transform in place, of several rows of points + 2 float64 each: from points real numbers to points/2 + 1 complex
// numbers, or back, multiplied by points.
type fft struct {
	inverse      bool
	points, rows int
}

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
	if s.ffts == nil {
		s.ffts = map[fft]fftPlan{}
	}
	p.wrong = err
	s.ffts[f] = p
	return p, err
}

func (s *Stream) newPlan(f fft) (p fftPlan, err error) {
	d := s.device
	if err := cufft.load(); err != nil {
		return p, err
	}
	if err := cufft.do(d, cufftCreate, uintptr(unsafe.Pointer(&p.handle))); err != nil {
		return p, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, cufft.do(d, cufftDestroy, uintptr(p.handle)))
		}
	}()
	if err := cufft.do(d, cufftSetAutoAllocation, uintptr(p.handle), 0); err != nil {
		return p, err
	}
	kind, from, to := uintptr(0x6a), f.points+2, f.points/2+1 // CUFFT_D2Z
	if f.inverse {
		kind, from, to = 0x6c, to, from // CUFFT_Z2D
	}
	points, row := int32(f.points), [2]int32{int32(from), int32(to)}
	if err := s.pool.retry(0, func() error {
		return cufft.do(d, cufftMakePlanMany, uintptr(p.handle), 1, uintptr(unsafe.Pointer(&points)), uintptr(unsafe.Pointer(&row[0])), 1, uintptr(from),
			uintptr(unsafe.Pointer(&row[1])), 1, uintptr(to), kind, uintptr(f.rows), uintptr(unsafe.Pointer(&p.work)))
	}); err != nil {
		return p, err
	}
	return p, cufft.do(d, cufftSetStream, uintptr(p.handle), s.handle)
}

// transform queues a transform. work has as many bytes as its plan says.
func (s *Stream) transform(f fft, rows Array[float64], work Array[uint8]) error {
	p, err := s.planFFT(f)
	if err != nil {
		return err
	}
	exec := cufftExecD2Z
	if f.inverse {
		exec = cufftExecZ2D
	}
	return s.queue(fourier, append(s.words[:0], uint64(p.handle), uint64(work.address), uint64(rows.address), uint64(exec)))
}

// releasePlans frees the plans.
func (s *Stream) releasePlans() error {
	var errs []error
	for _, p := range s.ffts {
		if p.wrong == nil {
			errs = append(errs, cufft.call(s.device, cufftDestroy, uintptr(p.handle)))
		}
	}
	s.ffts = nil
	return errors.Join(errs...)
}
