package layer

import (
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// PatchMerging makes a grid half as fine: reduction(norm(the channels of 2·2 cells)), from (batch, height, width, channels) to (batch, height/2,
// width/2, out). The cells of a block are in the order (0, 0), (1, 0), (0, 1), (1, 1). Source: Liu et al., "Swin Transformer", section 3.1.
type PatchMerging struct {
	Base
	Norm      *LayerNorm // "norm" (elements·channels)
	Reduction *Linear    // "reduction" (out, elements·channels), without bias
	blocks    op.BlocksConfig
}

// PatchMergingConfig configures a PatchMerging. A zero field stands for its default.
type PatchMergingConfig struct {
	Channels int     // required
	Out      int     // channels of the result; 2·Channels
	Block    []int   // cells that are merged along each axis of the grid; 2, 2
	Cut      bool    // cut off the last cells of an odd grid, as VM-UNet does, instead of continuing it with zeros, as VMamba does
	Eps      float64 // of the norm; 1e-5
}

// NewPatchMerging returns a layer that merges patches.
func NewPatchMerging(cfg PatchMergingConfig, opts ...Option) *PatchMerging {
	out := cfg.Out
	if out == 0 && size.Axis(cfg.Channels) == nil {
		out = 2 * cfg.Channels
	}
	block, elements, err := blockOf(cfg.Block, 2)
	sizes := []any{"channels", cfg.Channels, "out", out}
	return newLayer("patch merging", opts, sizes, func(l *PatchMerging, o build.Options) (Params, error) {
		if err != nil {
			return nil, err
		}
		l.blocks = op.BlocksConfig{Block: block, FirstFastest: true, Cut: cfg.Cut}
		l.Norm = NewLayerNorm(LayerNormConfig{Channels: size.Product(elements, cfg.Channels), Eps: cfg.Eps}, o.Part("norm")...)
		l.Reduction = projection(o, "reduction", size.Product(elements, cfg.Channels), out, false)
		return together(l.Norm, l.Reduction)
	})
}

// blockOf returns the block of a configuration, by default byDefault in both axes, and the number of its cells.
func blockOf(block []int, byDefault int) ([]int, int, error) {
	if block = slices.Clone(block); block == nil {
		block = []int{byDefault, byDefault}
	}
	if len(block) < 1 || len(block) > 3 {
		return nil, 0, fmt.Errorf("block is %v, want 1 to 3 sizes, one for each axis of the grid", block)
	}
	elements := 1
	for _, n := range block {
		if n < 1 {
			return nil, 0, fmt.Errorf("block is %v, want sizes of at least 1", block)
		}
		elements = size.Product(elements, n)
	}
	return block, elements, nil
}

// Err returns what is wrong with the layer, or nil.
func (l *PatchMerging) Err() error { return build.Err(l) }

// Apply merges the patches of x (batch, grid…, channels).
func (l *PatchMerging) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		s := build.Steps{Graph: x.Graph()}
		y := s.Do(op.SpaceToDepth(x, l.blocks)) // (batch, grid/2…, elements·channels)
		y = s.Do(l.Norm.Apply(y))
		return s.Result(l.Reduction.Apply(y)) // (batch, grid/2…, out)
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *PatchMerging) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }

// PatchExpanding makes a grid finer: norm(the parts of expand(x)), from (batch, height, width, channels) to (batch, 2·height, 2·width, out). The
// channels of expand(x) are (row offset, column offset, out). Source: Cao et al., "Swin-Unet", section 3.4.
type PatchExpanding struct {
	Base
	Expand *Linear    // "expand" (elements·out, channels), without bias
	Norm   *LayerNorm // "norm" (out)
	blocks op.BlocksConfig
}

// PatchExpandingConfig configures a PatchExpanding. A zero field stands for its default.
type PatchExpandingConfig struct {
	Channels int     // required
	Out      int     // channels of the result; Channels/2, at least 1
	Block    []int   // cells that become of one, along each axis of the grid; 2, 2
	Eps      float64 // of the norm; 1e-5
}

// NewPatchExpanding returns a layer that expands patches.
func NewPatchExpanding(cfg PatchExpandingConfig, opts ...Option) *PatchExpanding {
	out := build.OrDefault(cfg.Out, max(cfg.Channels/2, 1))
	block, elements, err := blockOf(cfg.Block, 2)
	sizes := []any{"channels", cfg.Channels, "out", out}
	return newLayer("patch expanding", opts, sizes, func(l *PatchExpanding, o build.Options) (Params, error) {
		if err != nil {
			return nil, err
		}
		l.blocks = op.BlocksConfig{Block: block}
		l.Expand = projection(o, "expand", cfg.Channels, size.Product(elements, out), false)
		l.Norm = NewLayerNorm(LayerNormConfig{Channels: out, Eps: cfg.Eps}, o.Part("norm")...)
		return together(l.Expand, l.Norm)
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *PatchExpanding) Err() error { return build.Err(l) }

// Apply expands the patches of x (batch, grid…, channels).
func (l *PatchExpanding) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		s := build.Steps{Graph: x.Graph()}
		y := s.Do(l.Expand.Apply(x))           // (batch, grid…, elements·out)
		y = s.Do(op.DepthToSpace(y, l.blocks)) // (batch, 2·grid…, out)
		return s.Result(l.Norm.Apply(y))
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *PatchExpanding) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }
