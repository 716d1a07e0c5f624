package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// Conv is a convolution over a grid, from (batch, cells…, in) to (batch, cells…, out), with one to three axes of cells; see op.Conv. Weights
// and bias start uniform within ±1/√n, where n is the number of inputs of a cell, as in PyTorch.
type Conv struct {
	Base
	Weight *Param // "weight" (out, in/groups, kernel…)
	Bias   *Param // "bias" (out), or nil
	cfg    op.ConvConfig
}

// ConvConfig configures a Conv. The lists after Kernel are those of op.ConvConfig.
type ConvConfig struct {
	In, Out int   // required: channels
	Kernel  []int // required: the cells of the kernel along each axis of the grid
	NoBias  bool

	Stride, Padding, PaddingEnd, Dilation []int
	Groups                                int
	SiLU                                  bool // apply SiLU to the result
}

// NewConv returns a convolution.
func NewConv(cfg ConvConfig, opts ...Option) *Conv {
	return newConv("grid convolution", cfg, opts)
}

func newConv(what string, cfg ConvConfig, opts []Option) *Conv {
	return newLayer(what, opts, convSizes(cfg.In, cfg.Out, cfg.Kernel), func(l *Conv, o build.Options) (params Params, err error) {
		l.cfg = op.ConvConfig{Stride: cfg.Stride, Padding: cfg.Padding, PaddingEnd: cfg.PaddingEnd, Dilation: cfg.Dilation, Groups: cfg.Groups, SiLU: cfg.SiLU}
		if err := l.cfg.Err(len(cfg.Kernel)); err != nil {
			return nil, err
		}
		groups := max(cfg.Groups, 1)
		if cfg.In%groups != 0 || cfg.Out%groups != 0 {
			return nil, fmt.Errorf("groups is %d, want a number that divides in, %d, and out, %d", groups, cfg.In, cfg.Out)
		}
		shape, bound := convWeight(cfg.Out, cfg.In/groups, cfg.Kernel)
		l.Weight, l.Bias, params = affine(o, !cfg.NoBias, bound, shape...)
		return params, nil
	})
}

// convSizes returns the sizes of a convolution for newLayer.
func convSizes(in, out int, kernel []int) []any {
	sizes := []any{"in", in, "out", out}
	for _, n := range kernel {
		sizes = append(sizes, "kernel", n)
	}
	return sizes
}

// convWeight returns the shape of a weight, and the bound of its initial values.
func convWeight(first, second int, kernel []int) (shape []int, bound float64) {
	inputs := float64(second)
	for _, n := range kernel {
		inputs *= float64(n)
	}
	return append([]int{first, second}, kernel...), 1 / math.Sqrt(inputs)
}

// Err returns what is wrong with the layer, or nil.
func (l *Conv) Err() error { return build.Err(l) }

// Apply applies the layer to x (batch, cells…, in).
func (l *Conv) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		s := build.Steps{Graph: x.Graph()}
		w := weights(&s, l.Weight, l.Bias)
		return s.Result(op.Conv(x, w[0], w[1], l.cfg))
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *Conv) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }

// ConvTranspose is a transposed convolution over a grid, from (batch, cells…, in) to (batch, cells…, out); see op.ConvTranspose. Weights and
// bias start uniform within ±1/√n, where n is out/groups times the cells of the kernel, as in PyTorch.
type ConvTranspose struct {
	Base
	Weight *Param // "weight" (in, out/groups, kernel…)
	Bias   *Param // "bias" (out), or nil
	cfg    op.ConvTransposeConfig
}

// ConvTransposeConfig configures a ConvTranspose. The lists after Kernel are those of op.ConvTransposeConfig.
type ConvTransposeConfig struct {
	In, Out int   // required: channels
	Kernel  []int // required: the cells of the kernel along each axis of the grid
	NoBias  bool

	Stride, Padding, OutputPadding, Dilation []int
	Groups                                   int
}

// NewConvTranspose returns a transposed convolution.
func NewConvTranspose(cfg ConvTransposeConfig, opts ...Option) *ConvTranspose {
	sizes := convSizes(cfg.In, cfg.Out, cfg.Kernel)
	return newLayer("transposed convolution", opts, sizes, func(l *ConvTranspose, o build.Options) (params Params, err error) {
		l.cfg = op.ConvTransposeConfig{Stride: cfg.Stride, Padding: cfg.Padding, OutputPadding: cfg.OutputPadding, Dilation: cfg.Dilation, Groups: cfg.Groups}
		if err := l.cfg.Err(len(cfg.Kernel)); err != nil {
			return nil, err
		}
		groups := max(cfg.Groups, 1)
		if cfg.In%groups != 0 || cfg.Out%groups != 0 {
			return nil, fmt.Errorf("groups is %d, want a number that divides in, %d, and out, %d", groups, cfg.In, cfg.Out)
		}
		shape, bound := convWeight(cfg.In, cfg.Out/groups, cfg.Kernel)
		if l.Weight, _, params = affine(o, false, bound, shape...); !cfg.NoBias {
			l.Bias = draw(o, "bias", false, bound, cfg.Out)
			params = append(params, l.Bias)
		}
		return params, nil
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *ConvTranspose) Err() error { return build.Err(l) }

// Apply applies the layer to x (batch, cells…, in).
func (l *ConvTranspose) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		s := build.Steps{Graph: x.Graph()}
		w := weights(&s, l.Weight, l.Bias)
		return s.Result(op.ConvTranspose(x, w[0], w[1], l.cfg))
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *ConvTranspose) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }

// PatchEmbed maps each patch of a grid to a vector: the convolution whose kernel is the patch.
type PatchEmbed = Conv

// PatchEmbedConfig configures a PatchEmbed.
type PatchEmbedConfig struct {
	In, Out int   // required: channels
	Patch   []int // required: the cells of a patch along each axis of the grid
	Stride  []int // cells from one patch to the next; default Patch, where patches do not overlap
	NoBias  bool
}

// NewPatchEmbed returns a patch embedding.
func NewPatchEmbed(cfg PatchEmbedConfig, opts ...Option) *PatchEmbed {
	if cfg.Stride == nil {
		cfg.Stride = cfg.Patch
	}
	return newConv("patch embedding", ConvConfig{In: cfg.In, Out: cfg.Out, Kernel: cfg.Patch, Stride: cfg.Stride, NoBias: cfg.NoBias}, opts)
}
