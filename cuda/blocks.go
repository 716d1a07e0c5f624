package cuda

import (
	"fmt"
	"math"
	"unsafe"
)

// Blocks moves the cells of blocks of a grid into the channels of one cell, and back. A grid of fewer than three axes has axes of size 1 and
// blocks of size 1 before its own. Element (d, h, w) of a block is part (d·Block[1] + h)·Block[2] + w of the channels, or part
// (w·Block[1] + h)·Block[0] + d if FirstFastest. What lies outside of the source is 0.
type Blocks struct {
	Batch        int
	Wide         [3]int // the cells of the grid with Channels channels
	Deep         [3]int // the cells of the grid with Channels·(elements of a block) channels
	Block        [3]int
	Channels     int
	FirstFastest bool
}

// SpaceToDepth queues deep (batch, deep, parts·channels) from wide (batch, wide, channels).
func (b *Blocks) SpaceToDepth(s *Stream, wide, deep Array[float32]) error {
	if err := b.check(s, wide, deep); err != nil {
		return err
	}
	return b.run(s, "space_to_depth", wide, deep, [3]int{b.Deep[0], b.Deep[1], b.Deep[2] * b.parts()})
}

// DepthToSpace queues wide from deep: the inverse of SpaceToDepth, and its gradient.
func (b *Blocks) DepthToSpace(s *Stream, deep, wide Array[float32]) error {
	if err := b.check(s, wide, deep); err != nil {
		return err
	}
	return b.run(s, "depth_to_space", deep, wide, b.Wide)
}

func (b *Blocks) parts() int { return count(b.Block[0], b.Block[1], b.Block[2]) }

// run queues a kernel that writes lines of cells[2]·channels elements.
func (b *Blocks) run(s *Stream, name string, from, to Array[float32], cells [3]int) error {
	k := struct {
		from, to               uintptr
		wide, deep, block      [3]int32
		channels, firstFastest int32
	}{from: from.address, to: to.address, wide: int32s(b.Wide), deep: int32s(b.Deep), block: int32s(b.Block)}
	if b.FirstFastest {
		k.firstFastest = 1
	}
	g, suffix, channels := lines(b.Batch, cells, b.Channels, from.address, to.address)
	k.channels = channels
	return s.run("blocks", name+suffix, g, unsafe.Pointer(&k))
}

func (b *Blocks) check(s *Stream, wide, deep Array[float32]) error {
	if b == nil {
		return missing("blocks")
	}
	if err := atLeast(1, "blocks", "Batch", b.Batch, "Channels", b.Channels); err != nil {
		return err
	}
	for i := range 3 {
		if b.Wide[i] < 1 || b.Deep[i] < 1 || b.Block[i] < 1 {
			return fmt.Errorf("cuda: blocks: Wide is %v, Deep %v and Block %v, want numbers of at least 1", b.Wide, b.Deep, b.Block)
		}
	}
	wideLine, deepLine := count(b.Wide[2], b.Channels), count(b.Deep[2], b.parts(), b.Channels)
	if line := max(wideLine, deepLine, count(b.Deep[0], b.Block[0]), count(b.Deep[1], b.Block[1])); line > math.MaxInt32 {
		return fmt.Errorf("cuda: blocks: a line of the last axis has %d elements, want at most 2^31-1", line)
	}
	return firstError(
		expect("blocks", "wide", wide.n, count(b.Batch, b.Wide[0], b.Wide[1], wideLine), "deep", deep.n, count(b.Batch, b.Deep[0], b.Deep[1], deepLine)),
		s.usable(),
	)
}

// vectors reports whether rows of size floats at the addresses can be moved four at a time.
func vectors(size int, addresses ...uintptr) bool {
	together := uintptr(size)
	for _, a := range addresses {
		together |= a / 4
	}
	return together%4 == 0
}

// CopyRows queues a copy of rows of width elements, fromStride elements apart, to rows that are toStride elements apart. With a fromStride of 0, one
// row is copied to each.
func CopyRows(s *Stream, rows, width int, from Array[float32], fromStride int, to Array[float32], toStride int) error {
	if err := atLeast(0, "copy rows", "rows", rows, "width", width, "fromStride", fromStride); err != nil {
		return err
	}
	read := width
	if fromStride != 0 {
		read = strided(rows, fromStride, width)
		if err := inRow("copy rows", "fromStride", fromStride, width); err != nil {
			return err
		}
	}
	if err := firstError(
		inRow("copy rows", "toStride", toStride, width), expect("copy rows", "from", from.n, read, "to", to.n, strided(rows, toStride, width)),
	); err != nil || rows*width == 0 {
		return err
	}
	name := "copy_rows_1"
	if vectors(width|fromStride|toStride, from.address, to.address) {
		name, width = "copy_rows_4", width/4
	}
	if width > math.MaxInt32 {
		return fmt.Errorf("cuda: copy rows: width is %d, want at most 2^31-1", width)
	}
	columns := min(width, 256)
	return s.run("blocks", name, grid{x: int64((rows + 256/columns - 1) / (256 / columns)), threads: 256}, from.address, to.address, rows, int32(width), fromStride, toStride,
		int32(columns))
}
