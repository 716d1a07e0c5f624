package cuda

import (
	"errors"
	"os"
	"unsafe"
)

// s4Way says how an S4 is computed. Tests choose one; otherwise the sizes do.
type s4Way int

const (
	s4BySizes s4Way = iota
	s4Recurrence
	s4Convolution
)

// s4Piece is the second argument of the kernels of the convolution: struct Piece in kernels/s4fft.cu.
type s4Piece struct {
	rows, bad, turn        uintptr
	points, from, channels int64
}

// s4Bytes is the largest memory of the rows of a piece and of cuFFT's working memory for them. Tests change it.
var s4Bytes = 256 << 20

// fftPoints returns the points of a transform that convolves two sequences of the given length: the least number of at least 4 that is not
// shorter and is 4, 5 or 6 times a power of two. For other lengths cuFFT takes longer than for the next of these.
func fftPoints(length int) int {
	for unit := 1; ; unit *= 2 {
		for n := 4; n < 7; n++ {
			if n*unit >= length {
				return n * unit
			}
		}
	}
}

// convolves reports whether a pass is computed by convolution, and with how many channels at a time: whole sequences without states and starts,
// where cuFFT is on the machine, and faster. final is the final state or its gradient.
func (p *S4) convolves(s *Stream, final Array[float32], back bool) (channels int, err error) {
	if s.s4 == s4Recurrence || !p.Initial.Absent() || !p.Start.Absent() || !final.Absent() || p.Length > 1<<24 ||
		s.s4 == s4BySizes && !p.convolutionIsFaster() {
		return 0, nil
	}
	for bytes := s4Bytes; ; bytes /= 2 {
		row := 16 * fftPoints(p.Length)
		channels = min(bytes/row/p.rows(back), p.Channels, mostRows)
		if channels >= 32 { // kernels read 32 channels together
			pieces := (p.Channels + channels/32*32 - 1) / (channels / 32 * 32)
			channels = min(((p.Channels+pieces-1)/pieces+31)/32*32, p.Channels)
		}
		if channels == 0 {
			return 0, nil
		}
		used := 0
		for _, f := range p.transforms(channels, back) {
			plan, err := s.planFFT(f)
			if err != nil {
				if out := (*OutOfMemory)(nil); errors.As(err, &out) || os.Getenv(cufft.variable) != "" {
					return 0, err
				}
				return 0, nil // cuFFT is optional, and may be newer than the driver
			}
			used = max(used, row*channels*p.rows(back)+int(plan.work))
		}
		if used <= s4Bytes {
			return channels, nil
		}
	}
}

// transforms returns the transforms of a piece: that of all rows, and the inverse one of the results, which are the first rows.
func (p *S4) transforms(channels int, back bool) [2]fft {
	n, results := fftPoints(p.Length), p.Batch
	if back {
		results++
	}
	return [2]fft{{n, channels * p.rows(back)}, {n, channels * results}}
}

// rows returns the rows of memory for a channel.
func (p *S4) rows(back bool) int {
	if back {
		return 2*p.Batch + 1
	}
	return p.Batch + 1
}

// convolutionIsFaster is a rule from measurements on an H200. The time of the recurrence is proportional to the threads of a channel, and that of the
// convolution depends on them little. It has one row more than there are sequences, and long transforms take several passes.
func (p *S4) convolutionIsFaster() bool {
	n, least := fftPoints(p.Length), 22
	switch {
	case n > 16384:
		least = 40
	case n > 4096 || n < 512:
		least = 30
	}
	return p.Batch > 1 && p.Length >= 256 && p.size() >= 1<<20 && count(p.span(), p.Length, p.Batch) >= count(least, n, p.Batch+2)
}

// convolve queues the forward or the backward pass as a convolution, some channels at a time. v is U and result y, or v is dy and result is dU.
func (p *S4) convolve(s *Stream, a *s4Args, channels int, v, result Array[float32], back bool) error {
	var work temporaries
	defer func() { work.free() }()
	err := p.table(s, a, &work)
	transforms := p.transforms(channels, back)
	n, all, direction, multiply := transforms[0].points, transforms[0].rows, 0, "s4_fft_multiply"
	piece := s4Piece{points: int64(n), channels: int64(channels)}
	if back {
		direction, multiply = 1, "s4_fft_multiply_back"
		// A warp sums up at least 64 steps, eight warps are a part, and the sums of all parts take at most 32 MiB.
		parts := max(1, min(p.Length/512, 16, 32<<20/count(48, p.Channels, p.Modes)))
		a.parts, a.steps = int64(parts), int64((p.Length+8*parts-1)/(8*parts))
		a.sums = take[float64](s, &work, count(parts, 6, p.Channels, p.Modes), &err).address
		a.skipSums = take[float64](s, &work, count(parts, p.Channels), &err).address
	}
	rows := take[float64](s, &work, count(all, n, 2), &err)
	turn := take[float64](s, &work, 2*n, &err)
	bad := take[int32](s, &work, count(2, p.Batch, channels), &err)
	room := take[uint8](s, &work, int(max(s.ffts[transforms[0]].work, s.ffts[transforms[1]].work)), &err)
	piece.rows, piece.bad, piece.turn = rows.address, bad.address, turn.address
	run := func(name string, g grid, more ...any) {
		if g.threads = 256; err == nil {
			err = s.run("s4fft", name, g, append([]any{unsafe.Pointer(a), unsafe.Pointer(&piece)}, more...)...)
		}
	}
	transform := func(f fft, sign int) {
		if err == nil {
			err = s.transform(f, sign, rows, room)
		}
	}
	tiles := func(steps int) grid {
		return grid{x: int64(steps+63) / 64, y: int64(channels+31) / 32, z: int64(min(p.Batch, mostRows))}
	}
	if err == nil {
		err = s.run("s4fft", "s4_fft_turn", blocksOf(n, 256), turn.address, n)
	}
	for from := 0; from < p.Channels && err == nil; from += channels {
		piece.from = int64(min(from, p.Channels-channels)) // the last piece may compute some channels again, to the same results
		err = bad.Fill(s, 0)
		run("s4_fft_load", tiles(n), v.address, 0, bad.address, direction)
		if back {
			run("s4_fft_load", tiles(n), p.U.address, channels*(p.Batch+1), bad.address+uintptr(4*p.Batch*channels), 0)
		}
		run("s4_fft_impulse", grid{x: int64(n+1023) / 1024, y: int64(channels)})
		transform(transforms[0], -1)
		run(multiply, blocksOf(channels*n, 256))
		transform(transforms[1], 1)
		run("s4_fft_store", tiles(p.Length), result.address, direction)
		if back {
			run("s4_fft_modes", grid{x: int64(channels) * int64((p.Modes+31)/32), y: a.parts})
		}
	}
	if err == nil && back {
		err = s.run("s4", "s4_gradients", blocksOf(32*p.Channels, 128), unsafe.Pointer(a))
	}
	return err
}
