package cuda

import (
	"fmt"
	"math"
	"unsafe"
)

// Interpolation is how the values between the cells of a grid are found.
type Interpolation int

// The interpolations. op.Interpolate defines them.
const (
	InterpolateNearest Interpolation = iota
	InterpolateLinear
	InterpolateCubic
)

// Interpolate changes the sizes of a grid. A grid of fewer than three axes has axes of size 1 before its own.
type Interpolate struct {
	Batch, Channels int
	From, To        [3]int
	Mode            Interpolation
	AlignCorners    bool
}

// Forward queues y (batch, to, channels) from x (batch, from, channels).
func (p *Interpolate) Forward(s *Stream, x, y Array[float32]) error {
	return p.run(s, "interpolate", "x", x, "y", y, true)
}

// Backward queues dx, the gradient of x, from dy, the gradient of y. The sums are added in a fixed order.
func (p *Interpolate) Backward(s *Stream, dy, dx Array[float32]) error {
	return p.run(s, "interpolate_backward", "dy", dy, "dx", dx, false)
}

func (p *Interpolate) run(s *Stream, name, fromName string, from Array[float32], toName string, to Array[float32], forward bool) error {
	if p == nil {
		return missing("interpolation")
	}
	if p.Mode < InterpolateNearest || p.Mode > InterpolateCubic {
		return fmt.Errorf("cuda: interpolation: the mode is %d, want InterpolateNearest, InterpolateLinear or InterpolateCubic", int(p.Mode))
	}
	reads, writes := p.From, p.To
	if !forward {
		reads, writes = p.To, p.From
	}
	if err := firstError(
		checkGrid("interpolation", p.Batch, p.Channels, p.From), checkGrid("interpolation", p.Batch, p.Channels, p.To),
		expect("interpolation", fromName, from.n, count(p.Batch, reads[0], reads[1], reads[2], p.Channels), toName, to.n,
			count(p.Batch, writes[0], writes[1], writes[2], p.Channels)),
		s.usable(),
	); err != nil {
		return err
	}
	k := struct {
		from, to                uintptr
		cells, results          [3]int32
		channels, mode, corners int32
	}{from: from.address, to: to.address, cells: int32s(p.From), results: int32s(p.To), mode: int32(p.Mode)}
	if p.AlignCorners && p.Mode != InterpolateNearest {
		k.corners = 1
	}
	g, suffix, channels := lines(p.Batch, writes, p.Channels, from.address, to.address)
	k.channels = channels
	return s.run("resize", name+suffix, g, unsafe.Pointer(&k))
}

// Window takes the maximum or the mean over windows of the cells of a grid. A grid of fewer than three axes has axes of size 1 before its own.
type Window struct {
	Batch, Channels       int
	From, To              [3]int // cells of the operand, and of the result
	Size, Stride, Padding [3]int
	Max                   bool
	ExcludePadding        bool // the mean is over the cells of a window that are in the grid, instead of over all
}

// windowTask is the argument of the kernels; resize.cu has the same struct.
type windowTask struct {
	x, dy, to, chosen                       uintptr
	cells, results, window, stride, padding [3]int32
	channels, largest, exclude              int32
}

// Forward queues y (batch, to, channels) from x (batch, from, channels).
func (p *Window) Forward(s *Stream, x, y Array[float32]) error {
	if err := p.check(s, x, "y", y, p.to()); err != nil {
		return err
	}
	return p.run(s, "window_forward", windowTask{x: x.address, to: y.address}, p.To)
}

// Backward queues dx, the gradient of x, from dy, the gradient of y. That of a maximum goes to the first cell of the window that has it.
func (p *Window) Backward(s *Stream, x, dy, dx Array[float32]) error {
	if err := firstError(p.check(s, x, "dy", dy, p.to()), p.check(s, x, "dx", dx, p.from())); err != nil {
		return err
	}
	t := windowTask{x: x.address, dy: dy.address, to: dx.address}
	if p.Max {
		chosen, err := NewArray[int32](s, p.to())
		if err != nil {
			return err
		}
		defer chosen.Free()
		if t.chosen = chosen.address; t.chosen != 0 {
			if err := p.run(s, "window_forward", t, p.To); err != nil {
				return err
			}
		}
	}
	return p.run(s, "window_backward", t, p.From)
}

func (p *Window) run(s *Stream, name string, t windowTask, writes [3]int) error {
	t.cells, t.results, t.window, t.stride, t.padding = int32s(p.From), int32s(p.To), int32s(p.Size), int32s(p.Stride), int32s(p.Padding)
	if p.Max {
		t.largest = 1
	}
	if p.ExcludePadding {
		t.exclude = 1
	}
	g, suffix, channels := lines(p.Batch, writes, p.Channels, t.x, t.dy, t.to)
	t.channels = channels
	return s.run("resize", name+suffix, g, unsafe.Pointer(&t))
}

func (p *Window) from() int { return p.elements(func(p *Window) [3]int { return p.From }) }

func (p *Window) to() int { return p.elements(func(p *Window) [3]int { return p.To }) }

// elements returns the number of elements of a grid, 0 for a nil p.
func (p *Window) elements(of func(*Window) [3]int) int {
	if p == nil {
		return 0
	}
	return count(p.Batch, of(p)[0], of(p)[1], of(p)[2], p.Channels)
}

// check checks the sizes, x, and an array of size elements.
func (p *Window) check(s *Stream, x Array[float32], name string, a Array[float32], size int) error {
	if p == nil {
		return missing("window")
	}
	if err := firstError(checkGrid("window", p.Batch, p.Channels, p.From), checkGrid("window", p.Batch, p.Channels, p.To)); err != nil {
		return err
	}
	for i := range 3 {
		if p.Size[i] < 1 || p.Stride[i] < 1 || p.Padding[i] < 0 || p.Padding[i] >= p.Size[i] || max(p.Size[i], p.Stride[i]) > math.MaxInt32/2 {
			return fmt.Errorf("cuda: window: Size is %v, Stride %v and Padding %v, want at least 1, and a padding below the size", p.Size, p.Stride, p.Padding)
		}
		if want := (p.From[i]+2*p.Padding[i]-p.Size[i])/p.Stride[i] + 1; p.To[i] != want || p.From[i]+2*p.Padding[i] < p.Size[i] {
			return fmt.Errorf("cuda: window: To is %v, want %d at axis %d", p.To, want, i)
		}
	}
	return firstError(expect("window", "x", x.n, p.from(), name, a.n, size), s.usable())
}

// checkGrid returns an error unless a grid has sizes for which the kernels count with 32 bits: the cells of a sequence, and the elements of a line.
func checkGrid(what string, batch, channels int, grid [3]int) error {
	if err := atLeast(1, what, "Batch", batch, "Channels", channels); err != nil {
		return err
	}
	if min(grid[0], grid[1], grid[2]) < 1 || count(grid[0], grid[1], grid[2]) > math.MaxInt32 || count(grid[2], channels) > math.MaxInt32 {
		return fmt.Errorf("cuda: %s: a grid of %v with %d channels, want 1 to 2^31-1 cells, and as many elements along the last axis", what, grid, channels)
	}
	return nil
}

func int32s(v [3]int) [3]int32 { return [3]int32{int32(v[0]), int32(v[1]), int32(v[2])} }

// lines returns the grid of a kernel that writes the lines of a grid of cells, the suffix of its name, and the channels in its groups of four or one.
func lines(batch int, cells [3]int, channels int, addresses ...uintptr) (g grid, suffix string, groups int32) {
	const threads = 256
	suffix = "_1"
	if vectors(channels, addresses...) {
		suffix, channels = "_4", channels/4
	}
	line := cells[2] * channels
	g = grid{x: int64(batch) * int64(cells[0]) * int64(cells[1]), y: int64(min((line+threads-1)/threads, 64)), threads: min(threads, (line+31)/32*32)}
	return g, suffix, int32(channels)
}
