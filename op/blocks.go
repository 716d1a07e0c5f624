package op

import (
	"fmt"
	"strings"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// BlocksConfig configures SpaceToDepth and DepthToSpace.
type BlocksConfig struct {
	Block []int // the cells of a block along each axis of the grid, 1 to 3 axes

	// FirstFastest orders the cells of a block in the channels with the first axis fastest: (0, 0), (1, 0), (0, 1), (1, 1), as Swin and VMamba merge
	// patches. Otherwise the last axis is fastest: (0, 0), (0, 1), (1, 0), (1, 1), as VM-UNet expands them.
	FirstFastest bool

	// Cut cuts off the last cells of a grid that Block does not divide, in SpaceToDepth. Otherwise the grid is continued with zeros.
	Cut bool
}

// SpaceToDepth moves each block of cells of a grid into the channels of one cell. From x (batch, grid…, channels) it returns (batch, grid/block…,
// elements·channels), where elements is the number of cells of a block. With blocks of 2 by 2 it merges patches.
//
// Errors: an x that is missing, or of another type or shape; a Block of another number of axes than the grid, or with a size below 1 or, with Cut,
// above the grid's.
func SpaceToDepth(x *G.Node, cfg BlocksConfig) (*G.Node, error) {
	c := newChecker("space to depth", "x", x)
	shape, f, ok := c.blocks(x, cfg)
	if !ok {
		return nil, c.err
	}
	result := shape.Clone()
	for i, n := range cfg.Block {
		if result[1+i] /= n; !cfg.Cut {
			result[1+i] = (shape[1+i] + n - 1) / n
		} else if result[1+i] == 0 {
			c.errorf("axis %d of the grid is %d, want at least the %d of Block, or no Cut", i, shape[1+i], n)
		}
	}
	f.Wide, f.Deep, f.Channels = gridOf(shape[:len(shape)-1]), gridOf(result[:len(result)-1]), shape[len(shape)-1]
	result[len(shape)-1] *= product3(f.Block)
	return c.apply1(spaceToDepth[float32]{f}, spaceToDepth[float64]{f}, result)
}

// DepthToSpace is the inverse of SpaceToDepth: from x (batch, grid…, elements·channels) it returns (batch, grid·block…, channels). Cut has no effect.
//
// Errors: an x that is missing, or of another type or shape; a Block of another number of axes than the grid, or with a size below 1; channels that
// the cells of a block do not divide.
func DepthToSpace(x *G.Node, cfg BlocksConfig) (*G.Node, error) {
	c := newChecker("depth to space", "x", x)
	shape, f, ok := c.blocks(x, cfg)
	if !ok {
		return nil, c.err
	}
	result, last := shape.Clone(), len(shape)-1
	for i, n := range cfg.Block {
		result[1+i] *= n
	}
	if elements := product3(f.Block); shape[last]%elements != 0 {
		c.errorf("x has %d channels, want a multiple of %d, the cells of a block of %v", shape[last], elements, cfg.Block)
	} else {
		result[last] /= elements
	}
	f.Wide, f.Deep, f.Channels = gridOf(result[:len(result)-1]), gridOf(shape[:len(shape)-1]), result[last]
	return c.apply1(depthToSpace[float32]{f}, depthToSpace[float64]{f}, result)
}

// blocks checks x and the configuration, and returns x's shape and the function without sizes.
func (c *checker) blocks(x *G.Node, cfg BlocksConfig) (tensor.Shape, kernel.Blocks, bool) {
	shape := c.grid("x", x, len(cfg.Block), "Block")
	f := kernel.Blocks{Batch: shape[0], Block: [3]int{1, 1, 1}, FirstFastest: cfg.FirstFastest}
	for i, n := range cfg.Block {
		if n < 1 || n > maxCells {
			c.errorf("Block is %v, want sizes of 1 to %d", cfg.Block, maxCells)
		}
		if c.err == nil {
			f.Block[3-len(cfg.Block)+i] = n
		}
	}
	return shape, f, c.err == nil
}

// grid checks an operand (batch, grid…, channels) whose grid has the axes of an option of that name, 1 to 3.
func (c *checker) grid(name string, n *G.Node, axes int, option string) tensor.Shape {
	if axes < 1 || axes > 3 {
		c.errorf("%s has %d axes, want 1 to 3, those of the grid", option, axes)
		axes = 1
	}
	return c.required(name, n, fmt.Sprintf("(batch, %schannels) with the %d axes of %s", strings.Repeat("size, ", axes), axes, option), make([]int, axes+2)...)
}

func product3(v [3]int) int { return v[0] * v[1] * v[2] }

type spaceToDepth[T kernel.Float] struct{ kernel.Blocks }

type depthToSpace[T kernel.Float] struct{ kernel.Blocks }

func (f spaceToDepth[T]) Forward(in []value[T], out [][]T) {
	kernel.SpaceToDepth(&f.Blocks, out[0], in[0].Data)
}

func (f spaceToDepth[T]) Backward(_ []value[T], dout, grad [][]T) {
	kernel.DepthToSpace(&f.Blocks, grad[0], dout[0])
}

func (f depthToSpace[T]) Forward(in []value[T], out [][]T) {
	kernel.DepthToSpace(&f.Blocks, out[0], in[0].Data)
}

func (f depthToSpace[T]) Backward(_ []value[T], dout, grad [][]T) {
	kernel.SpaceToDepth(&f.Blocks, grad[0], dout[0])
}

func (f spaceToDepth[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, (*cuda.Blocks)(&f.Blocks).SpaceToDepth(s, in[0].Array, out[0])
}

func (f spaceToDepth[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, _ []onDevice, dout, grad []array, _ kept) error {
	return (*cuda.Blocks)(&f.Blocks).DepthToSpace(s, dout[0], grad[0])
}

func (f depthToSpace[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, (*cuda.Blocks)(&f.Blocks).DepthToSpace(s, in[0].Array, out[0])
}

func (f depthToSpace[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, _ []onDevice, dout, grad []array, _ kept) error {
	return (*cuda.Blocks)(&f.Blocks).SpaceToDepth(s, dout[0], grad[0])
}
