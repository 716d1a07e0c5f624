package vision

import (
	"cmp"
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// VMamba classifies images (Liu et al., "VMamba: Visual State Space Model"): a patch embedding, stages of blocks with layer.SS2D, each at half the
// resolution of the stage before, a norm, the mean over the pixels, and a linear layer. It takes images (batch, height, width, channels) of any size from
// 4×4 on, and returns logits (batch, classes).
//
// The weights have the names of the published checkpoints, in their present form: patch_embed.0.weight, layers.0.blocks.0.op.in_proj.weight,
// classifier.head.weight and so on.
type VMamba struct {
	layer.Base
	cfg    VMambaConfig
	embed  *stem
	stages []vmambaStage
	norm   *layer.LayerNorm
	head   *layer.Linear
}

// VMambaConfig configures a VMamba. A zero field stands for its default, which is the released VMamba-T of 2024 ("v05_noz", s1l8).
type VMambaConfig struct {
	Classes  int   // required
	Channels int   // of the image; 3
	Depths   []int // blocks of each stage; 2, 2, 8, 2
	Dims     []int // channels of each stage; 96, 192, 384, 768. One number stands for itself and its doubles

	State    int     // of SS2D; 1
	Expand   float64 // inner channels of SS2D, as a multiple of the stage's; 1
	Rank     int     // of the projections that compute Δ; 1/16 of the stage's channels, rounded up
	Conv     int     // width of the convolution of SS2D; 3
	MLPRatio float64 // channels inside of the MLP, as a multiple of the stage's; 4
	DropPath float64 // probability, in training, to drop a branch of the last block for an image. It grows linearly from 0 at the first block

	// What the first form of VMamba ("v0") has.
	Gate     bool // SS2D has a z gate
	ConvBias bool // the convolution of SS2D has a bias
	NoMLP    bool // blocks have no MLP
	OneConv  bool // patches are embedded by one convolution with stride 4, instead of two with stride 2
	Merging  bool // patches are merged, by layer.PatchMerging, instead of convolved with stride 2

	// Orders returns the directions of the scans; op.VMambaOrders. See layer.SS2DConfig.
	Orders func(height, width int) []op.Order
}

// VMambaTiny returns the configuration of the released VMamba-T (s1l8), with 1000 classes.
func VMambaTiny() VMambaConfig { return VMambaConfig{Classes: 1000, DropPath: 0.2}.withDefaults() }

// VMambaSmall returns the configuration of the released VMamba-S (s1l20), with 1000 classes.
func VMambaSmall() VMambaConfig {
	return VMambaConfig{Classes: 1000, Depths: []int{2, 2, 20, 2}, DropPath: 0.3}.withDefaults()
}

// VMambaBase returns the configuration of the released VMamba-B (s1l20), with 1000 classes.
func VMambaBase() VMambaConfig {
	return VMambaConfig{Classes: 1000, Depths: []int{2, 2, 20, 2}, Dims: []int{128}, DropPath: 0.5}.withDefaults()
}

// VMambaFirstTiny returns the configuration of VMamba-T in its first form, with 1000 classes.
func VMambaFirstTiny() VMambaConfig { return firstForm(96, 9, 0.2) }

// VMambaFirstSmall returns the configuration of VMamba-S in its first form, with 1000 classes.
func VMambaFirstSmall() VMambaConfig { return firstForm(96, 27, 0.3) }

// VMambaFirstBase returns the configuration of VMamba-B in its first form, with 1000 classes.
func VMambaFirstBase() VMambaConfig { return firstForm(128, 27, 0.6) }

func firstForm(dim, depth int, dropPath float64) VMambaConfig {
	return VMambaConfig{Classes: 1000, Depths: []int{2, 2, depth, 2}, Dims: []int{dim}, State: 16, Expand: 2, DropPath: dropPath,
		Gate: true, ConvBias: true, NoMLP: true, OneConv: true, Merging: true}.withDefaults()
}

func (c VMambaConfig) withDefaults() VMambaConfig {
	if c.Depths == nil {
		c.Depths = []int{2, 2, 8, 2}
	}
	if c.Dims == nil {
		c.Dims = []int{96}
	}
	c.Dims = doubles(c.Dims, len(c.Depths))
	c.Channels, c.State, c.Conv, c.Expand = cmp.Or(c.Channels, 3), cmp.Or(c.State, 1), cmp.Or(c.Conv, 3), cmp.Or(c.Expand, 1)
	if !c.NoMLP {
		c.MLPRatio = cmp.Or(c.MLPRatio, 4)
	}
	return c
}

// doubles returns dims, or, if it is one number and there are more stages, that number and its doubles.
func doubles(dims []int, stages int) []int {
	if len(dims) != 1 {
		return dims
	}
	for len(dims) < min(stages, 30) {
		dims = append(dims[:len(dims):len(dims)], 2*dims[len(dims)-1])
	}
	return dims
}

func (c VMambaConfig) check() error {
	if err := cmp.Or(build.Axes("Classes", c.Classes, "Channels", c.Channels, "State", c.State, "Conv", c.Conv),
		counts("Depths", c.Depths, len(c.Depths)), counts("Dims", c.Dims, len(c.Depths)), rate("DropPath", c.DropPath)); err != nil {
		return err
	}
	if c.Rank < 0 {
		return fmt.Errorf("field Rank is %d, want at least 1, or 0 for the default", c.Rank)
	}
	if c.NoMLP && c.MLPRatio != 0 {
		return fmt.Errorf("field MLPRatio is %v and NoMLP true, want one of them", c.MLPRatio)
	}
	if !c.OneConv && c.Dims[0] < 2 {
		return fmt.Errorf("field Dims[0] is %d, want at least 2: the first of two convolutions of the patch embedding has half of the channels", c.Dims[0])
	}
	for i, n := range c.Dims {
		for _, f := range []struct {
			name  string
			value float64
		}{{"Expand", c.Expand}, {"MLPRatio", c.MLPRatio}} {
			if f.value == 0 && c.NoMLP {
				continue
			}
			if channels := f.value * float64(n); !(channels >= 1 && channels < 1<<40) {
				return fmt.Errorf("%s is %v and Dims[%d] %d, want at least 1 and fewer than 2^40 inner channels", f.name, f.value, i, n)
			}
		}
	}
	return nil
}

// vmambaStage is some blocks and, in all stages but the last, what halves the resolution after them.
type vmambaStage struct {
	blocks []*vssBlock
	merge  *layer.PatchMerging // or
	conv   *layer.Conv
	norm   *layer.LayerNorm
}

// stem embeds patches of 4 by 4 pixels: one convolution with a norm or, if it has a second one, two.
type stem struct {
	conv, conv2 *layer.Conv
	norm, norm2 *layer.LayerNorm
}

// NewVMamba returns a VMamba with VMamba's initial weights. If the configuration is invalid, or if its weights do not fit into memory, Err and every use of
// the model return the error.
func NewVMamba(cfg VMambaConfig, opts ...Option) *VMamba {
	cfg = cfg.withDefaults()
	o, err := build.Collect(opts)
	err = cmp.Or(cfg.check(), err)
	sizes := []any{"Classes", cfg.Classes, "Depths", cfg.Depths, "Dims", cfg.Dims, "State", cfg.State}
	return build.New("vision: VMamba", sizes, o, named("VMamba", err), func(m *VMamba, o build.Options) (params layer.Params, err error) {
		m.cfg = cfg
		add := func(p layer.Params, err2 error) {
			params, err = append(params, p...), cmp.Or(err, err2)
		}
		m.embed = newStem(cfg, o, add)
		total := 0
		for _, n := range cfg.Depths {
			total += n
		}
		drop, done := drops(total, cfg.DropPath, o.Seed), 0
		for i, depth := range cfg.Depths {
			var stage vmambaStage
			name := fmt.Sprintf("layers.%d", i)
			dim := cfg.Dims[i]
			mixer := layer.SS2DConfig{
				Channels: dim, Inner: int(cfg.Expand * float64(dim)), State: cfg.State, Rank: cfg.Rank, Width: cfg.Conv,
				NoGate: !cfg.Gate, NoConvBias: !cfg.ConvBias, Orders: cfg.Orders,
			}
			each, count := o.Repeated(depth)
			for j := range count {
				part := each
				part.Name = build.Join(o.Name, fmt.Sprintf("%s.blocks.%d", name, j))
				b, p, err := newVSSBlock(part, vssNames{"norm", "op"}, mixer, int(cfg.MLPRatio*float64(dim)), false, drop(done+j))
				add(p, err)
				stage.blocks = append(stage.blocks, b)
			}
			done += depth
			if i+1 < len(cfg.Depths) {
				next := cfg.Dims[i+1]
				if cfg.Merging {
					stage.merge = layer.NewPatchMerging(layer.PatchMergingConfig{Channels: dim, Out: next}, o.Part(name+".downsample")...)
					normal(o, stage.merge.Reduction)
					add(stage.merge.Params(), stage.merge.Err())
				} else {
					stage.conv = layer.NewConv(layer.ConvConfig{In: dim, Out: next, Kernel: []int{3, 3}, Stride: []int{2}, Padding: []int{1}}, o.Part(name+".downsample.1")...)
					stage.norm = layer.NewLayerNorm(layer.LayerNormConfig{Channels: next}, o.Part(name+".downsample.3")...)
					add(build.Together[layer.Params](stage.conv, stage.norm))
				}
			}
			m.stages = append(m.stages, stage)
		}
		last := cfg.Dims[len(cfg.Dims)-1]
		m.norm = layer.NewLayerNorm(layer.LayerNormConfig{Channels: last}, o.Part("classifier.norm")...)
		m.head = layer.NewLinear(layer.LinearConfig{In: last, Out: cfg.Classes, Bias: true}, o.Part("classifier.head")...)
		normal(o, m.head)
		add(build.Together[layer.Params](m.norm, m.head))
		return params, named("VMamba", err)
	})
}

// named puts the package and the kind of model before an error.
func named(model string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("vision: %s: %w", model, err)
}

func newStem(cfg VMambaConfig, o build.Options, add func(layer.Params, error)) *stem {
	e, dim := &stem{}, cfg.Dims[0]
	conv := func(in, out int, name string, kernel, stride, padding int) *layer.Conv {
		c := layer.ConvConfig{In: in, Out: out, Kernel: []int{kernel, kernel}, Stride: []int{stride}, Padding: []int{padding}}
		return layer.NewConv(c, o.Part("patch_embed."+name)...)
	}
	norm := func(n int, name string) *layer.LayerNorm {
		return layer.NewLayerNorm(layer.LayerNormConfig{Channels: n}, o.Part("patch_embed."+name)...)
	}
	if cfg.OneConv {
		e.conv, e.norm = conv(cfg.Channels, dim, "0", 4, 4, 0), norm(dim, "2")
		add(build.Together[layer.Params](e.conv, e.norm))
		return e
	}
	e.conv, e.norm = conv(cfg.Channels, dim/2, "0", 3, 2, 1), norm(dim/2, "2")
	e.conv2, e.norm2 = conv(dim/2, dim, "5", 3, 2, 1), norm(dim, "7")
	add(build.Together[layer.Params](e.conv, e.norm, e.conv2, e.norm2))
	return e
}

func (e *stem) apply(s *build.Steps, x *G.Node) *G.Node {
	x = s.Do(e.norm.Apply(s.Do(e.conv.Apply(x))))
	if e.conv2 != nil {
		x = s.Do(e.norm2.Apply(s.Do(e.conv2.Apply(activate(s, x, op.GELU)))))
	}
	return x
}

func (t *vmambaStage) apply(s *build.Steps, x *G.Node) *G.Node {
	for _, b := range t.blocks {
		x = b.apply(s, x)
	}
	switch {
	case t.merge != nil:
		x = s.Do(t.merge.Apply(x))
	case t.conv != nil:
		x = s.Do(t.norm.Apply(s.Do(t.conv.Apply(x))))
	}
	return x
}

// Err returns the error of an invalid configuration, or nil.
func (m *VMamba) Err() error { return build.Err(m) }

// Config returns the configuration with its defaults filled in.
func (m *VMamba) Config() VMambaConfig { return m.cfg }

// Apply returns the logits (batch, classes) of images x (batch, height, width, channels).
func (m *VMamba) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	return first(run(m, m.input(), x, opts, func(s *build.Steps, x *G.Node) G.Nodes {
		maps := m.features(s, x)
		y := s.Do(op.MeanPool(s.Do(m.norm.Apply(maps[len(maps)-1])), nil))
		return G.Nodes{s.Do(m.head.Apply(y))}
	}))
}

// Features returns the maps (batch, height, width, channels) of the patch embedding and of each stage, after it has halved the resolution: a quarter, an
// eighth, … of the image's, and the last two of the same.
func (m *VMamba) Features(x *G.Node, opts ...CallOption) (G.Nodes, error) {
	return run(m, m.input(), x, opts, m.features)
}

func (m *VMamba) input() image {
	if m == nil {
		return image{}
	}
	return image{2, m.cfg.Channels}
}

func (m *VMamba) features(s *build.Steps, x *G.Node) G.Nodes {
	x = m.embed.apply(s, x)
	maps := G.Nodes{x}
	for i := range m.stages {
		x = m.stages[i].apply(s, x)
		maps = append(maps, x)
	}
	return maps
}

// Fwd is Apply in the form of golgi's layers.
func (m *VMamba) Fwd(x G.Input) G.Result {
	return build.Lift(x, func(x *G.Node) (*G.Node, error) { return m.Apply(x) })
}
