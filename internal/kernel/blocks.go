package kernel

import "github.com/gomamba/mamba/internal/work"

// Blocks moves the cells of blocks of a grid into the channels of one cell, and back. A grid of fewer than three axes has axes of size 1 and blocks
// of size 1 before its own. Element (d, h, w) of a block is part (d·Block[1] + h)·Block[2] + w of the channels, or part
// (w·Block[1] + h)·Block[0] + d if FirstFastest.
type Blocks struct {
	Batch        int
	Wide         [3]int // the cells of the grid with Channels channels
	Deep         [3]int // the cells of the grid with Channels·(elements of a block) channels
	Block        [3]int
	Channels     int
	FirstFastest bool
}

// part returns the part of the channels in which an element of a block is.
func (b *Blocks) part(d, h, w int) int {
	if b.FirstFastest {
		return (w*b.Block[1]+h)*b.Block[0] + d
	}
	return (d*b.Block[1]+h)*b.Block[2] + w
}

func (b *Blocks) parts() int { return b.Block[0] * b.Block[1] * b.Block[2] }

// SpaceToDepth writes y (batch, deep, channels·parts) from x (batch, wide, channels). What lies outside of x is 0.
func SpaceToDepth[T Float](b *Blocks, y, x []T) {
	deep := b.Channels * b.parts()
	work.ParallelRange(b.Batch*b.Deep[0]*b.Deep[1], max(piece/(b.Deep[2]*deep), 1), func(from, to int) {
		for line := from; line < to; line++ {
			batch, d, h := line/(b.Deep[0]*b.Deep[1]), line/b.Deep[1]%b.Deep[0], line%b.Deep[1]
			for w := range b.Deep[2] {
				row := y[(line*b.Deep[2]+w)*deep:][:deep]
				for i := range b.Block[0] {
					for j := range b.Block[1] {
						for k := range b.Block[2] {
							into := row[b.part(i, j, k)*b.Channels:][:b.Channels]
							if at := b.wide(batch, d*b.Block[0]+i, h*b.Block[1]+j, w*b.Block[2]+k); at >= 0 {
								copy(into, x[at:at+b.Channels])
							} else {
								clear(into)
							}
						}
					}
				}
			}
		}
	})
}

// wide returns the offset of a cell of the wide grid, or -1 outside of it.
func (b *Blocks) wide(batch, d, h, w int) int {
	if d >= b.Wide[0] || h >= b.Wide[1] || w >= b.Wide[2] {
		return -1
	}
	return (((batch*b.Wide[0]+d)*b.Wide[1]+h)*b.Wide[2] + w) * b.Channels
}

// DepthToSpace writes x (batch, wide, channels) from y (batch, deep, channels·parts): the inverse of SpaceToDepth, and its gradient. What lies
// outside of y is 0.
func DepthToSpace[T Float](b *Blocks, x, y []T) {
	work.ParallelRange(b.Batch*b.Wide[0]*b.Wide[1], max(piece/(b.Wide[2]*b.Channels), 1), func(from, to int) {
		for line := from; line < to; line++ {
			batch, d, h := line/(b.Wide[0]*b.Wide[1]), line/b.Wide[1]%b.Wide[0], line%b.Wide[1]
			for w := range b.Wide[2] {
				into := x[(line*b.Wide[2]+w)*b.Channels:][:b.Channels]
				i, j, k := d/b.Block[0], h/b.Block[1], w/b.Block[2]
				if i >= b.Deep[0] || j >= b.Deep[1] || k >= b.Deep[2] {
					clear(into)
					continue
				}
				cell := ((batch*b.Deep[0]+i)*b.Deep[1]+j)*b.Deep[2] + k
				copy(into, y[(cell*b.parts()+b.part(d%b.Block[0], h%b.Block[1], w%b.Block[2]))*b.Channels:])
			}
		}
	})
}
