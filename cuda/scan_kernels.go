package cuda

import (
	"fmt"
	"unsafe"
)

// scanArgs is the kernels' struct Scan (kernels/scan.cuh), field for field.
type scanArgs struct {
	batch, length, channels, state                      int64
	zStep, bStep, cStep                                 int64
	section, bChannels, cChannels                       int64
	softplus, reverse, alog                             int64
	u, delta, a, b, c, d, z, bias, initial, start       uintptr
	y, final, checkpoints                               uintptr
	dy, dfinal, du, ddelta, dz, dinitial, dA, dD, dBias uintptr
	dB, dC                                              uintptr
}

// scanPass is a kernel's cut of a scan: so many threads for a channel, states for a thread, threads for a block.
type scanPass struct{ split, states, threads int }

// scanSize is the kernels for scans of up to so many states (kernels/entries.cuh has the same numbers): in the file, with a
// checkpoint every so many steps. If options are missing, it is only for variable B and C without starts.
type scanSize struct {
	file              string
	options           bool
	forward, backward scanPass
	every             int
}

func (z scanSize) states() int { return z.forward.split * z.forward.states }

var (
	scanSizes = []scanSize{
		{"scan16", true, scanPass{4, 4, 128}, scanPass{4, 4, 128}, 16},
		{"scan64", true, scanPass{16, 4, 128}, scanPass{16, 4, 64}, 16},
		{"scan256", true, scanPass{32, 8, 64}, scanPass{32, 8, 64}, 4},
	}
	// Few channels are split among more threads, or most of the device would wait: below so many channels of the batch for
	// each multiprocessor.
	scanFew = []struct {
		channels int
		scanSize
	}{
		{32, scanSize{"scan16", false, scanPass{16, 1, 128}, scanPass{16, 1, 128}, 16}},
		{64, scanSize{"scan16", false, scanPass{8, 2, 128}, scanPass{8, 2, 128}, 16}},
	}
)

// size returns the kernels for the scan.
func (s *Scan[T]) size() scanSize {
	if s.usual() && s.State <= 16 && !s.U.Absent() {
		for _, few := range scanFew {
			if s.Batch*s.Channels <= few.channels*s.U.stream.device.multiprocessors {
				return few.scanSize
			}
		}
	}
	for _, z := range scanSizes {
		if s.State <= z.states() {
			return z
		}
	}
	return scanSizes[len(scanSizes)-1]
}

func (s *Scan[T]) usual() bool { return s.B.Groups > 0 && s.C.Groups > 0 && s.Start.Absent() }

// args are the operands' arguments.
func (s *Scan[T]) args() scanArgs {
	a := scanArgs{
		batch: int64(s.Batch), length: int64(s.Length), channels: int64(s.Channels), state: int64(s.State),
		zStep: int64(s.zStride()), bStep: int64(s.B.stride(s.State)), cStep: int64(s.C.stride(s.State)),
		section: int64(s.section()), bChannels: int64(s.channelsOf(s.B)), cChannels: int64(s.channelsOf(s.C)),
		u: s.U.address, delta: s.Delta.address, a: s.A.address, b: s.B.Data.address, c: s.C.Data.address,
		d: s.D.address, z: s.Z.address, bias: s.DeltaBias.address, initial: s.Initial.address, start: s.Start.address,
	}
	if s.Softplus {
		a.softplus = 1
	}
	if s.Reverse {
		a.reverse = 1
	}
	if s.ALog {
		a.alog = 1
	}
	return a
}

// channelsOf is the number of channels that share a group.
func (s *Scan[T]) channelsOf(p Projection[T]) int {
	if p.Groups == 0 {
		return s.Channels
	}
	return s.Channels / p.Groups
}

// section is the number of channels, side by side, that share a group of B and one of C.
func (s *Scan[T]) section() int {
	a, b := s.channelsOf(s.B), s.channelsOf(s.C)
	for b > 0 {
		a, b = b, a%b
	}
	return a
}

// blocks is the number of a pass's blocks of a section's channels.
func (s *Scan[T]) blocks(p scanPass) int {
	width := p.threads / p.split
	return (s.section() + width - 1) / width
}

// kernel names a pass's kernel and its file.
func (s *Scan[T]) kernel(p scanPass, direction string, size scanSize) (file, name string) {
	kind := func(groups int) byte {
		if groups == 0 {
			return 'c'
		}
		return 'v'
	}
	options := []byte{kind(s.B.Groups), kind(s.C.Groups), 'n'}
	if !s.Start.Absent() {
		options[2] = 's'
	}
	if typeName[T]() == "bf16" {
		return "scan16bf16", fmt.Sprintf("scan_%s_bf16_%dx%d_%s", direction, p.split, p.states, options)
	}
	file = size.file
	if !s.usual() {
		file += "options"
	}
	return file, fmt.Sprintf("scan_%s_%dx%d_%s", direction, p.split, p.states, options)
}

// launch queues a pass.
func (s *Scan[T]) launch(stream *Stream, p scanPass, direction string, size scanSize, args *scanArgs) error {
	f, err := stream.device.function(s.kernel(p, direction, size))
	if err != nil {
		return err
	}
	blocks := int64(s.Batch) * int64(s.Channels/s.section()) * int64(s.blocks(p))
	return stream.launch(f, blocks, p.threads, unsafe.Pointer(args))
}

// sumParts queues the sum of count parts of so many numbers each, whose rows of that width go to rows that are step apart.
func (s *Stream) sumParts(as string, to, parts uintptr, count, size, width, step int) error {
	return s.run("scan16", "sum_parts_"+as, blocksOf(size, 256), to, parts, count, size, width, step)
}
