package nn

import (
	"fmt"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/layer"
)

// Config configures a Mamba block or stack. The names are the paper's. A zero field stands for its default.
type Config struct {
	DModel int // channels of the residual stream; required
	NLayer int // layers of a stack; by default 1, or the length of Pattern. The initial out_proj is scaled by 1/√NLayer
	DState int // N, the size of the state of each channel; 16
	DConv  int // width of the causal convolution; 4
	Expand int // channels inside a block, as a multiple of DModel; 2
	DInner int // channels inside a block, if they are not a multiple of DModel; by default Expand·DModel
	DtRank int // rank of the projection that computes Δ; DModel/16, rounded up

	DtMin, DtMax float64 // range of the initial steps Δ; 0.001 to 0.1
	DtScale      float64 // scale of the initial weight of dt_proj; 1
	DtInitFloor  float64 // the smallest initial step; 1e-4
	NormEps      float64 // number that the norms add to the mean of squares; 1e-5

	Bias       bool // in_proj and out_proj have a bias; in other kinds of layers, all projections
	NoConvBias bool // the convolution has no bias

	// In training (WithTraining), Dropout is the probability to drop each element of what a layer adds to the residual stream, and
	// DropPath that to drop all of it for a sequence. A Mamba block is then composed of separate operators.
	Dropout, DropPath float64

	// Pattern holds the kinds of the layers of a stack, first to last. NLayer is the length of Pattern, or a multiple of it: the
	// pattern then repeats. Without a pattern, all layers are Mamba blocks. A block by itself has no pattern.
	Pattern []Kind
	NHead   int // heads of attention, about DModel/64 by default; heads of H3, by default one for each channel
	Window  int // steps that attention sees, the current one included; 0 for all, but then the model cannot generate
	DHidden int // channels inside SwiGLU and GeGLU; 8/3 of DModel, rounded up to a multiple of 8
}

// field is a field of a Config, for messages.
type field[T any] struct {
	name  string
	value T
}

// withDefaults returns the configuration with its defaults, or an error if a field is out of its range.
func (c Config) withDefaults() (Config, error) {
	c.Pattern = slices.Clone(c.Pattern) // the caller may change his
	c.NLayer = build.OrDefault(c.NLayer, max(len(c.Pattern), 1))
	c.DState, c.DConv, c.Expand = build.OrDefault(c.DState, 16), build.OrDefault(c.DConv, 4), build.OrDefault(c.Expand, 2)
	c.DtRank = build.OrDefault(c.DtRank, (c.DModel+15)/16)
	c.DtMin, c.DtMax, c.DtScale = build.OrDefault(c.DtMin, 0.001), build.OrDefault(c.DtMax, 0.1), build.OrDefault(c.DtScale, 1)
	c.DtInitFloor, c.NormEps = build.OrDefault(c.DtInitFloor, 1e-4), build.OrDefault(c.NormEps, 1e-5)
	if err := build.Axes("DModel", c.DModel, "NLayer", min(c.NLayer, 1), "DState", c.DState, "DConv", c.DConv, "Expand", c.Expand,
		"DtRank", c.DtRank); err != nil {
		return c, fmt.Errorf("nn: %w", err)
	}
	for _, f := range []field[int]{{"DInner", c.DInner}, {"NHead", c.NHead}, {"Window", c.Window}, {"DHidden", c.DHidden}} {
		if f.value < 0 {
			zero := map[string]string{"DInner": "Expand·DModel", "Window": "no window"}[f.name]
			return c, fmt.Errorf("nn: %s is %d, want at least 1, or 0 for %s", f.name, f.value, build.OrDefault(zero, "the default"))
		}
	}
	if err := size.Axis(c.inner()); err != nil {
		return c, fmt.Errorf("nn: the channels inside a block, DInner or Expand·DModel = %d·%d: their number %w", c.Expand, c.DModel, err)
	}
	for _, kind := range c.Pattern {
		if err := kind.check(); err != nil {
			return c, err
		}
	}
	if n := len(c.Pattern); n > 0 && c.NLayer%n != 0 {
		return c, fmt.Errorf("nn: NLayer is %d, want a multiple of %d, the length of Pattern, or 0 for %d", c.NLayer, n, n)
	}
	for _, f := range []field[float64]{
		{"DtMin", c.DtMin}, {"DtMax", c.DtMax}, {"DtScale", c.DtScale}, {"DtInitFloor", c.DtInitFloor}, {"NormEps", c.NormEps},
	} {
		if !(f.value > 0) || math.IsInf(f.value, 1) {
			return c, fmt.Errorf("nn: %s is %v, want a positive number", f.name, f.value)
		}
	}
	for _, f := range []field[float64]{{"Dropout", c.Dropout}, {"DropPath", c.DropPath}} {
		if !(f.value >= 0 && f.value < 1) {
			return c, fmt.Errorf("nn: %s is %v, want at least 0 and below 1", f.name, f.value)
		}
	}
	if c.DtMin > c.DtMax {
		return c, fmt.Errorf("nn: DtMin is %v, want at most DtMax, %v", c.DtMin, c.DtMax)
	}
	return c, nil
}

func (c Config) inner() int { return build.OrDefault(c.DInner, size.Product(c.Expand, c.DModel)) }

// sizes returns the names and values of the fields on which the sizes of the weights depend.
func (c Config) sizes() []any {
	sizes := []any{"DModel", c.DModel, "NLayer", c.NLayer, "DState", c.DState, "DConv", c.DConv, "DtRank", c.DtRank}
	for _, f := range []field[int]{{"Expand", c.Expand}, {"DInner", c.DInner}, {"NHead", c.NHead}, {"DHidden", c.DHidden}} {
		if f.value > 0 {
			sizes = append(sizes, f.name, f.value)
		}
	}
	return sizes
}

// Option configures how a model is made, for example its name, its type and its seed.
type Option = layer.Option

// WithName puts a name in front of the names of the weights. With "encoder", "layers.0.norm.weight" becomes
// "encoder.layers.0.norm.weight".
func WithName(name string) Option { return layer.WithName(name) }

// WithDtype sets the type of the weights and so of the model: tensor.Float32 (the default) or tensor.Float64.
func WithDtype(dt tensor.Dtype) Option { return layer.WithDtype(dt) }

// WithSeed sets the seed of the initial weights, as layer.WithSeed has it. The weights of an LM depend only on its seed, 0 by default, and
// its configuration.
func WithSeed(seed uint64) Option { return layer.WithSeed(seed) }

// collect returns options and configuration with their defaults, or an error if one is wrong.
func collect(cfg Config, opts []Option) (Config, build.Options, error) {
	o, err := build.Collect(opts)
	if err != nil {
		return cfg, o, fmt.Errorf("nn: %w", err)
	}
	cfg, err = cfg.withDefaults()
	return cfg, o, err
}
