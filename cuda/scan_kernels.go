package cuda

import (
	"fmt"
	"strings"
	"unsafe"
)

// scanArgs has the same fields as the kernels' struct Scan (kernels/scan.cuh).
type scanArgs struct {
	batch, length, channels, state                      int64
	zStep, bStep, cStep                                 int64
	section, bChannels, cChannels                       int64
	softplus, reverse, alog, vectors                    int64
	u, delta, a, b, c, d, z, bias, initial, start       uintptr
	y, final, checkpoints                               uintptr
	chunks, chunkSteps                                  int64
	states, sums                                        uintptr
	dy, dfinal, du, ddelta, dz, dinitial, dA, dD, dBias uintptr
	dB, dC                                              uintptr
}

// scanPass says how a kernel divides a scan.
type scanPass struct {
	split   int  // threads per channel
	states  int  // states per thread
	wide    int  // channels per thread
	threads int  // threads per block
	blocks  int  // blocks per multiprocessor
	async   bool // the kernels are those of a file *async.cu
	shared  int  // bytes of dynamic shared memory per block, at most
}

// channels returns the number of channels of a block of threads.
func (p scanPass) channels() int { return p.threads / p.split * p.wide }

// fewest returns the smallest number of chunks that are faster than the length in one piece.
func (p scanPass) fewest() int {
	if p == *scanSizes[0].asyncBackward {
		return 2
	}
	return fewChunks
}

// scanSize describes the kernels for scans of up to states() states. kernels/entries.cuh has the same numbers.
type scanSize struct {
	file              string // the kernels' PTX files begin with this
	forward, backward scanPass
	every             int  // steps from checkpoint to checkpoint
	chunked           bool // the length can be cut into chunks
	// The kernels for compute capability 8.0 that take the place of forward and backward where they fit (Scan.async), if there are any.
	asyncForward, asyncBackward *scanPass
	asyncFew                    *scanPass // takes the place of asyncForward if there are few channels (Scan.few)
}

// MaxState is the largest State of a Scan or Block of float32.
const MaxState = 256

// maxStateBF16 is the largest State with activations of bfloat16.
const maxStateBF16 = 16

func (z scanSize) states() int { return z.forward.split * z.forward.states }

var (
	scanSizes = []scanSize{
		{"scan16", scanPass{4, 4, 1, 128, 4, false, 0}, scanPass{4, 4, 1, 128, 4, false, 0}, 16, true, &scanPass{4, 4, 2, 64, 4, true, 0},
			&scanPass{4, 4, 2, 128, 2, true, 111152}, &scanPass{4, 4, 1, 128, 3, true, 0}},
		{"scan64", scanPass{16, 4, 1, 128, 2, false, 0}, scanPass{16, 4, 1, 64, 4, false, 0}, 16, false, nil, nil, nil},
		{"scan256", scanPass{32, 8, 1, 128, 2, false, 0}, scanPass{32, 8, 1, 128, 2, false, 0}, 4, false, nil, nil, nil},
	}
	// asyncCarries is the first pass over chunks of asyncBackward. The warps of a block have the same channels.
	asyncCarries = scanPass{8, 4, 1, 128, 8, true, 0}
	// scanFew is for scans of few channels that are too short to be cut into chunks. It uses more threads per channel.
	scanFew = scanSize{"scan16", scanPass{16, 1, 1, 128, 4, false, 0}, scanPass{16, 1, 1, 128, 4, false, 0}, 16, false, scanSizes[0].asyncForward, nil, scanSizes[0].asyncFew}
)

// A scan of few channels leaves most of the device idle, unless its length is cut into chunks that run at the same time. Chunks cost one
// more pass. So a scan is cut only if it gives at least fewChunks chunks of at least chunkSteps steps. For asyncBackward, whose first pass is
// faster, two are enough.
const (
	fewChunks  = 3
	mostChunks = 64
	chunkSteps = 64 // the length of a chunk is also a multiple of it
	// Up to this length, two chunks of asyncBackward need no first pass: the blocks of the first chunk carry the gradient of the state back through the second, which
	// takes a third of the time of its own steps. So the first has three eighths of the steps.
	twoSteps = 512
)

// size returns the kernels that the scan uses.
func (s *Scan[T]) size() scanSize {
	if s.usual() && s.State <= 16 && !s.U.Absent() && s.chunks(scanSizes[0], scanSizes[0].forward) == 1 &&
		s.Batch*s.Channels <= 32*s.U.stream.multiprocessors() {
		return scanFew
	}
	for _, z := range scanSizes {
		if s.State <= z.states() {
			return z
		}
	}
	return scanSizes[len(scanSizes)-1]
}

// chunks returns the number of chunks that a pass cuts the length into: as many as fill the device, or 1.
func (s *Scan[T]) chunks(z scanSize, p scanPass) int {
	if !z.chunked || s.U.Absent() {
		return 1
	}
	room := s.U.stream.multiprocessors() * p.blocks * p.channels()
	n := min(room/max(s.Batch*s.Channels, 1), s.Length/chunkSteps, mostChunks)
	if n < p.fewest() {
		return 1
	}
	steps := s.chunkSteps(n)
	return (s.Length + steps - 1) / steps
}

// chunkSteps returns the steps of a chunk, if the length is cut into n. The last chunk may be shorter.
func (s *Scan[T]) chunkSteps(n int) int {
	return (s.Length + n*chunkSteps - 1) / (n * chunkSteps) * chunkSteps
}

// async reports whether the kernels for compute capability 8.0 compute the scan: with 16 states, softplus, B and C that vary with time,
// and all rows of activations at multiples of four elements (args.vectors; B and C too). Their numbers of steps have 32 bits.
func (s *Scan[T]) async(a *scanArgs) bool {
	each := uintptr(size[T]())
	return s.B.Groups > 0 && s.C.Groups > 0 && s.State == 16 && s.Softplus && a.vectors == 1 && s.U.stream.device.kernels >= 80 && s.Length < 1<<30 &&
		(uintptr(s.B.stride(s.State)|s.C.stride(s.State))|a.b/each|a.c/each)%4 == 0
}

// asyncBackward reports whether the kernels for compute capability 8.0 compute the backward pass: they also need aligned checkpoints, and a
// device with the shared memory. With half of it, for 32 channels a block, they are slower than the other kernels. They are faster than scanFew.
func (s *Scan[T]) asyncBackward(a *scanArgs) bool {
	return s.async(a) && a.checkpoints%16 == 0 && scanSizes[0].asyncBackward.shared <= s.U.stream.device.shared
}

func (s *Scan[T]) usual() bool { return s.B.Groups > 0 && s.C.Groups > 0 && s.Start.Absent() }

// args returns the kernels' arguments for the operands.
func (s *Scan[T]) args() scanArgs {
	a := scanArgs{
		batch: int64(s.Batch), length: int64(s.Length), channels: int64(s.Channels), state: int64(s.State),
		zStep: int64(s.zStride()), bStep: int64(s.B.stride(s.State)), cStep: int64(s.C.stride(s.State)),
		section: int64(s.section()), bChannels: int64(s.channelsOf(s.B)), cChannels: int64(s.channelsOf(s.C)),
		u: s.U.address, delta: s.Delta.address, a: s.A.address, b: s.B.Data.address, c: s.C.Data.address,
		d: s.D.address, z: s.Z.address, bias: s.DeltaBias.address, initial: s.Initial.address, start: s.Start.address,
	}
	// Kernels read four activations at a time if all rows begin at a multiple of four elements.
	together := uintptr(s.Channels | s.section() | s.zStride())
	for _, address := range []uintptr{a.u, a.delta, a.z} {
		together |= address / uintptr(size[T]())
	}
	if together%4 == 0 {
		a.vectors = 1
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

// alsoAligned sets vectors to 0 unless at, the address of further activations in elements, is a multiple of four.
func (a *scanArgs) alsoAligned(at uintptr) {
	if at%4 != 0 {
		a.vectors = 0
	}
}

// channelsOf returns the number of channels that share a group of p.
func (s *Scan[T]) channelsOf(p Projection[T]) int {
	if p.Groups == 0 {
		return s.Channels
	}
	return s.Channels / p.Groups
}

// section returns the number of neighbouring channels that share both a group of B and a group of C.
func (s *Scan[T]) section() int {
	a, b := s.channelsOf(s.B), s.channelsOf(s.C)
	for b > 0 {
		a, b = b, a%b
	}
	return a
}

// blocks returns the number of blocks that a pass needs for the channels of a section.
func (s *Scan[T]) blocks(p scanPass) int {
	return (s.section() + p.channels() - 1) / p.channels()
}

// kernel returns the name of a pass's kernel and of its PTX file.
func (s *Scan[T]) kernel(p scanPass, direction string, size scanSize) (file, name string) {
	kind := func(groups int) string {
		if groups == 0 {
			return "c"
		}
		return "v"
	}
	last, starts := "n", ""
	if !s.Start.Absent() {
		last, starts = "s", "starts"
	}
	mark := ""
	file = size.file + "forward"
	switch direction {
	case "few":
		file = size.file + "few"
	case "backward", "two", "carries":
		file = size.file + "backward"
	}
	if typeName[T]() == "bf16" {
		file, mark = file+"bf16", "bf16_"
	} else if !s.usual() && !p.async {
		file += "options"
	}
	if !p.async {
		return file, fmt.Sprintf("scan_%s_%s%dx%d_%s", direction, mark, p.split, p.states, kind(s.B.Groups)+kind(s.C.Groups)+last)
	}
	switch direction {
	case "carries":
		return strings.Replace(file, "backward", "carries", 1) + starts + "async", "scan_carries_" + mark + "async_" + last
	case "backward", "two":
		which := "any"
		if direction == "two" {
			which = "two"
		} else if s.whole(p, size) {
			which = "whole"
		}
		return file + which + starts + "async", "scan_backward_" + mark + "async_" + which + "_" + last
	}
	gate := "n"
	if !s.Z.Absent() {
		gate = "z"
	}
	return file + starts + "async", "scan_" + direction + "_" + mark + "async_" + gate + last
}

// whole reports whether a scan has a z, and blocks and tiles of asyncBackward have all their channels and steps.
func (s *Scan[T]) whole(p scanPass, size scanSize) bool {
	return s.section()%p.channels() == 0 && s.Length%size.every == 0 && !s.Z.Absent()
}

// launch queues a pass. If the length is cut into chunks, it first queues kernels that compute the state at the beginning of each chunk: first
// scans every chunk from a zero state, and combine joins the results, unless the pass does so itself. launch appends
// their memory to work.
func (s *Scan[T]) launch(stream *Stream, p scanPass, direction, first, combine string, z scanSize, args *scanArgs,
	work *temporaries) error {
	gridOf := func(p scanPass, chunks int) grid {
		return grid{x: int64(s.Batch) * int64(s.Channels/s.section()) * int64(s.blocks(p)), y: int64(chunks), threads: p.threads, shared: p.shared}
	}
	queue := func(direction string, p, in scanPass, chunks int) error {
		file, name := s.kernel(p, direction, z)
		return stream.run(file, name, gridOf(in, chunks), unsafe.Pointer(args))
	}
	chunks := s.chunks(z, p)
	args.chunks, args.chunkSteps = int64(chunks), int64(s.chunkSteps(chunks))
	if p.async && chunks == 2 && s.Length <= twoSteps && s.whole(p, z) {
		args.chunkSteps = int64(s.Length / z.every * 3 / 8 * z.every)
		return queue("two", p, p, chunks)
	}
	if chunks > 1 {
		if err := s.takeStates(stream, args, work); err != nil {
			return err
		}
		over := p
		switch {
		case direction == "backward" && p.async:
			over = asyncCarries
		case direction == "backward": // one thread for each state
			over = scanPass{split: p.split * p.states, states: 1, wide: 1, threads: 256}
		}
		if err := queue(first, p, over, chunks-1); err != nil {
			return err
		}
		if p.async { // it begins early, and waits for the first pass by itself
			file, name := s.kernel(p, direction, z)
			return stream.run(file, name, gridOf(p, chunks).wait(stream), unsafe.Pointer(args))
		}
		file, _ := (&Scan[float32]{B: Projection[float32]{Groups: 1}, C: Projection[float32]{Groups: 1}}).kernel(p, direction, z)
		if err := stream.run(file, combine, blocksOf(s.Batch*s.Channels*s.State, 128), unsafe.Pointer(args)); err != nil {
			return err
		}
	}
	return queue(direction, p, p, chunks)
}

// cut returns into how many chunks asyncForward cuts the length, and the steps of the first. The kernels cut the others evenly, in tiles. The first pass scans the first chunk and
// computes the ends of the others but the last, so it has as many blocks as the second pass, which scans all but the first. One chunk is the whole length.
func (s *Scan[T]) cut(z scanSize) (chunks, steps int) {
	const tile = 16
	p, tiles := *z.asyncForward, (s.Length+tile-1)/tile
	others := min(s.U.stream.multiprocessors()*p.blocks*p.channels()/max(s.Batch*s.Channels, 1), tiles*tile/chunkSteps, mostChunks)
	if !z.chunked || others < p.fewest() {
		return 1, tiles * tile
	}
	// The unit of exponentials bounds both passes: 19 for each step and channel of a scan, 17 if only the end is computed.
	first := 17 * tiles / (19*others + 17)
	return others + 1, first * tile
}

// few reports whether a scan in one piece takes less time with asyncFew, whose threads have one channel instead of two. The results have the same bits. While its blocks run,
// a tile takes three quarters of the time of one of asyncForward, of whose blocks five fit on a multiprocessor then.
func (s *Scan[T]) few(z scanSize) bool {
	waves := func(p scanPass, fit int) int {
		room := fit * s.U.stream.multiprocessors()
		return (s.Batch*(s.Channels/s.section())*s.blocks(p) + room - 1) / room
	}
	return 3*waves(*z.asyncFew, z.asyncFew.blocks) < 4*waves(*z.asyncForward, 5)
}

// forwardAsync queues asyncForward, or asyncFew.
func (s *Scan[T]) forwardAsync(stream *Stream, z scanSize, args *scanArgs, work *temporaries) error {
	p, direction := *z.asyncForward, "forward"
	chunks, steps := s.cut(z)
	if chunks == 1 && s.few(z) {
		p, direction = *z.asyncFew, "few"
	}
	args.chunks, args.chunkSteps = int64(chunks), int64(steps)
	file, name := s.kernel(p, direction, z)
	g := grid{x: int64(s.Batch) * int64(s.Channels/s.section()) * int64(s.blocks(p)), threads: p.threads}
	if chunks == 1 {
		return stream.run(file, name, g, unsafe.Pointer(args))
	}
	if err := s.takeStates(stream, args, work); err != nil {
		return err
	}
	// With this much shared memory, asyncForward.blocks fit on a multiprocessor, and not one more: see kernels/scan_forward_async.cuh.
	g.y, g.shared = int64(chunks-1), 7<<10
	file, first := s.kernel(p, "first", z)
	if err := stream.run(file, first, g, unsafe.Pointer(args)); err != nil {
		return err
	}
	return stream.run(file, name, g.wait(stream), unsafe.Pointer(args))
}

// takeStates allocates the memory of what the first pass over chunks computes.
func (s *Scan[T]) takeStates(stream *Stream, args *scanArgs, work *temporaries) (err error) {
	channels := s.Batch * int(args.chunks) * s.Channels
	args.states = take[float32](stream, work, channels*(s.State+1), &err).address
	args.sums = args.states + uintptr(4*channels*s.State)
	return err
}
