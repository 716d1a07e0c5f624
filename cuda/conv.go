package cuda

import (
	"fmt"
	"unsafe"
)

// Conv is a causal depthwise convolution. op.CausalConv defines it.
type Conv[T Activation] struct {
	Batch, Length, Channels, Width int

	X       Array[T]       // (batch, length, channels)
	XStride int            // elements between two steps of X, which can be part of a wider matrix
	Weight  Array[float32] // (channels, width)
	Bias    Array[float32] // optional: (channels)
	Context Array[float32] // optional: (batch, width-1, channels): the steps before the first
	Start   Array[uint8]   // optional: (batch, length): a new sequence starts where it is not 0
	SiLU    bool           // the sum goes through SiLU
}

// convArgs has the same fields as the kernels' struct Conv (kernels/conv.cu).
type convArgs struct {
	batch, length, channels, width, silu, step, dstep, steps int64
	x, weight, bias, context, start, y, next                 uintptr
	dy, dnext, dx, parts, dcontext                           uintptr
}

// maxConvWidth is the largest width of the kernels that keep their inputs in registers. Other kernels, in float32, compute larger widths.
const maxConvWidth = 16

func (c *Conv[T]) check() error {
	if c == nil {
		return missing("convolution")
	}
	most := 1 << 16 // blocks along an axis of the grid
	if typeName[T]() == "bf16" {
		most = maxConvWidth
	}
	if c.Width < 1 || c.Width > most {
		return fmt.Errorf("cuda: convolution: Width is %d, want 1 to %d", c.Width, most)
	}
	if err := firstError(
		atLeast(0, "convolution", "Batch", c.Batch, "Length", c.Length, "Channels", c.Channels),
		inRow("convolution", "XStride", c.XStride, c.Channels),
	); err != nil {
		return err
	}
	rows := count(c.Batch, c.Length)
	return firstError(
		expect("convolution", "X", c.X.n, strided(rows, c.XStride, c.Channels), "Weight", c.Weight.n, count(c.Channels, c.Width)),
		optional("convolution", "Bias", c.Bias, c.Channels, "Context", c.Context, c.contextLen(), "Start", c.Start, rows),
	)
}

func (c *Conv[T]) contextLen() int { return count(c.Batch, c.Width-1, c.Channels) }

func (c *Conv[T]) args() convArgs {
	a := convArgs{
		batch: int64(c.Batch), length: int64(c.Length), channels: int64(c.Channels), width: int64(c.Width), step: int64(c.XStride),
		steps: int64(max(32, (c.Length+65534)/65535)), x: c.X.address, weight: c.Weight.address, bias: c.Bias.address,
		context: c.Context.address, start: c.Start.address,
	}
	if c.SiLU {
		a.silu = 1
	}
	return a
}

// tiles returns the number of tiles that the length is cut into.
func (c *Conv[T]) tiles(a *convArgs) int { return int((a.length + a.steps - 1) / a.steps) }

// vectors reports whether the kernels that read four channels at a time fit: four taps, and every step begins at a multiple of four
// elements of x and of the arrays at the addresses, in bytes, which are as large as T.
func (c *Conv[T]) vectors(strides int, addresses ...uintptr) bool {
	together := uintptr(c.Channels | c.XStride | strides)
	for _, address := range append(addresses, c.X.address) {
		together |= address / uintptr(size[T]())
	}
	return c.Width == 4 && c.Channels > 0 && together%4 == 0 && (c.Weight.address|c.Context.address)%16 == 0
}

func (c *Conv[T]) kernel(direction, kind string) string {
	name := "conv_" + direction + "_" + typeName[T]()
	switch {
	case c.Width != 4:
		return name + "_any"
	case c.Start.Absent():
		return name + kind
	}
	return name + kind + "_starts"
}

// grid returns a grid with one thread for each channel of each part of the length.
func (c *Conv[T]) grid(parts int) grid {
	g := blocksOf(c.Channels, 128)
	g.y, g.z = int64(parts), int64(c.Batch)
	return g
}

// Forward queues y (batch, length, channels) and, unless it is absent, next (batch, width-1, channels): the Context for the steps after
// the last.
func (c *Conv[T]) Forward(s *Stream, y Array[T], next Array[float32]) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := firstError(
		expect("convolution", "y", y.n, count(c.Batch, c.Length, c.Channels)),
		optional("convolution", "next", next, c.contextLen()),
		s.usable(),
	); err != nil {
		return err
	}
	a := c.args()
	a.y, a.next = y.address, next.address
	switch {
	case c.Batch*c.Length == 0:
	case c.Width > maxConvWidth:
		if err := c.wideForward(s, &a); err != nil {
			return err
		}
	case c.vectors(0, y.address):
		// A tile reads three steps again. Short tiles fill the device if there are few rows.
		for a.steps > 8 && c.Batch*c.tiles(&a)*c.Channels/4 < 512*s.device.multiprocessors && c.Length <= 8<<16-8 {
			a.steps /= 2
		}
		g := c.grid(c.tiles(&a))
		g.threads = min(64, (c.Channels/4+31)/32*32)
		g.x = blocksOf(c.Channels/4, g.threads).x
		if err := s.run("conv", c.kernel("forward", "_vectors"), g, unsafe.Pointer(&a)); err != nil {
			return err
		}
	default:
		if err := s.run("conv", c.kernel("forward", "_4"), c.grid(c.tiles(&a)), unsafe.Pointer(&a)); err != nil {
			return err
		}
	}
	if next.Absent() || c.contextLen() == 0 {
		return nil
	}
	return s.run("conv", "conv_next_"+typeName[T](), c.grid(c.Width-1), unsafe.Pointer(&a))
}

// Backward queues the gradients of every operand, from dy and, unless it is absent, dnext. The steps of dx are dxStride elements apart.
// dbias and dcontext may be absent.
func (c *Conv[T]) Backward(s *Stream, dy Array[T], dnext Array[float32], dx Array[T], dxStride int, dweight, dbias, dcontext Array[float32]) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := firstError(
		inRow("convolution", "dxStride", dxStride, c.Channels),
		expect("convolution", "dy", dy.n, count(c.Batch, c.Length, c.Channels), "dx", dx.n,
			strided(count(c.Batch, c.Length), dxStride, c.Channels), "dweight", dweight.n, c.Channels*c.Width),
		optional("convolution", "dnext", dnext, c.contextLen(), "dbias", dbias, c.Channels, "dcontext", dcontext, c.contextLen()),
	); err != nil {
		return err
	}
	if c.Length == 0 && !dcontext.Absent() { // the steps before the first are those before the next
		err := dcontext.Fill(s, 0)
		if err == nil && !dnext.Absent() {
			err = dcontext.CopyOf(s, dnext)
		}
		if err != nil {
			return err
		}
	}
	a := c.args()
	if c.Width > maxConvWidth && c.Batch*c.Length > 0 {
		a.dstep, a.dy, a.dnext, a.dx, a.dcontext = int64(dxStride), dy.address, dnext.address, dx.address, dcontext.address
		return c.wideBackward(s, &a, dweight, dbias)
	}
	a.steps = int64(max(64, (c.Length+65534)/65535))
	a.dstep, a.dy, a.dnext, a.dx, a.dcontext = int64(dxStride), dy.address, dnext.address, dx.address, dcontext.address
	name, g := c.kernel("backward", "_4"), c.grid(c.tiles(&a))
	if c.Context.Absent() && dnext.Absent() && c.vectors(dxStride, dy.address, dx.address) {
		const tiles = 8                          // of a block of threads
		a.steps = max(32, (a.steps/tiles+3)/4*4) // of a tile, a multiple of four
		// A tile reads three steps again. Short tiles fill the device if there are few rows.
		if c.Batch*c.tiles(&a)*c.Channels < 128*tiles*s.device.multiprocessors {
			a.steps = 16
		}
		g = c.grid(c.tiles(&a))
		name, g.x, g.threads = c.kernel("backward", "_vectors"), blocksOf(c.Channels/2, 32).x, 32*tiles
		g.y = (g.y + tiles - 1) / tiles
	}
	count := c.Batch * int(g.y)
	parts, err := NewArray[float32](s, count*(c.Width+1)*c.Channels)
	if err != nil {
		return err
	}
	if a.parts = parts.address; count > 0 {
		if err := s.run("conv", name, g, unsafe.Pointer(&a)); err != nil {
			parts.Free()
			return err
		}
	}
	return s.sum(nil, tapSums(parts, count, c.Width, c.Channels, dweight, dbias), parts)
}

// tapSums returns the gradients of taps and bias as the sums of count parts (taps+1, channels), the bias in the last row. The bias may be absent.
func tapSums(parts Array[float32], count, taps, channels int, dweight, dbias Array[float32]) []partSum {
	size, n := int64(taps*channels), int64(channels)
	sums := []partSum{{dweight.address, parts.address, int64(count), size + n, size, n, int64(taps), 1, 0}}
	if !dbias.Absent() {
		sums = append(sums, partSum{dbias.address, parts.address + uintptr(4*size), int64(count), size + n, n, n, 1, n, 0})
	}
	return sums
}

// wideForward queues y for a width of more than maxConvWidth.
func (c *Conv[T]) wideForward(s *Stream, a *convArgs) error {
	live, err := c.live(s, a)
	if err != nil {
		return err
	}
	defer live.Free()
	return s.run("conv_wide", "conv_wide_forward", blocksOf(c.Batch*c.Length*c.Channels, 256), unsafe.Pointer(a), live.address)
}

// live returns for each step how many taps have an input.
func (c *Conv[T]) live(s *Stream, a *convArgs) (Array[int32], error) {
	live, err := NewArray[int32](s, c.Batch*c.Length)
	if err != nil {
		return live, err
	}
	if err := s.run("conv_wide", "conv_wide_live", blocksOf(live.n, 256), unsafe.Pointer(a), live.address); err != nil {
		live.Free()
		return Array[int32]{}, err
	}
	return live, nil
}

// wideBackward queues the gradients for a width of more than maxConvWidth.
func (c *Conv[T]) wideBackward(s *Stream, a *convArgs, dweight, dbias Array[float32]) error {
	live, err := c.live(s, a)
	if err != nil {
		return err
	}
	defer live.Free()
	var work temporaries
	defer work.free()
	rows, taps := c.Batch*c.Length, (c.Width+1)*c.Channels
	each := max(64, (rows+63)/64) // rows of a partial sum
	n := (rows + each - 1) / each
	dsum := take[float32](s, &work, rows*c.Channels, &err)
	if err != nil {
		return err
	}
	parts, err := NewArray[float32](s, n*taps)
	if err != nil {
		return err
	}
	a.parts = parts.address
	over := blocksOf(taps, 256)
	over.y = int64(n)
	if err := firstError(
		s.run("conv_wide", "conv_wide_sums", blocksOf(rows*c.Channels, 256), unsafe.Pointer(a), live.address, dsum.address),
		s.run("conv_wide", "conv_wide_inputs", blocksOf(c.Batch*(c.Width-1+c.Length)*c.Channels, 256), unsafe.Pointer(a), live.address, dsum.address),
		s.run("conv_wide", "conv_wide_weights", over, unsafe.Pointer(a), live.address, dsum.address, each),
	); err != nil {
		parts.Free()
		return err
	}
	return s.sum(nil, tapSums(parts, n, c.Width, c.Channels, dweight, dbias), parts)
}
