package vision

import (
	"cmp"
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// MambaUNet segments images or volumes of any size: an encoder and a decoder of selective scans, joined by skips at each resolution. It returns logits
// (batch, grid…, classes) of the size of the image.
//
// For images (batch, height, width, channels) it is VM-UNet (Ruan and Xiang, "VM-UNet: Vision Mamba UNet for Medical Image Segmentation"): VMamba's blocks
// of the first form on both sides, patch merging and expanding, added skips. Its names of weights begin with vmunet. An image of one channel is repeated
// three times if the model takes three. Its cells are 4 by 4 pixels, so thin structures pass through one cell. With a Stem, stages of residual convolutions see
// each pixel before the scans, and again after them.
//
// For volumes (batch, depth, height, width, channels) it is SegMamba (Xing et al., "SegMamba: Long-range Sequential Modeling Mamba For 3D Medical Image
// Segmentation"): stages of gated convolutions and of layer.Mamba with slices, and a decoder of residual convolutions with concatenated skips. The scans of
// a stage have as many slices as its map has cells along the depth.
//
// Sizes that the model cannot halve as often as it has stages are continued with zeros, and the logits are cut to the image.
type MambaUNet struct {
	layer.Base
	cfg    MambaUNetConfig
	image  *vmUNet   // of two axes
	volume *segMamba // of three
	deep   []*layer.Conv
}

// MambaUNetConfig configures a MambaUNet. A zero field stands for its default. Where there are two defaults, they are those of images and of volumes.
type MambaUNetConfig struct {
	Classes  int   // required; 1 for two classes with one logit
	Axes     int   // 2 for images, 3 for volumes; 2
	Channels int   // of the image; 3; 1
	Dims     []int // channels of each stage; 96, 192, 384, 768; 48, 96, 192, 384. One number stands for itself and its doubles
	Depths   []int // blocks of each stage of the encoder; 2, 2, 2, 2
	State    int   // N, the size of the state of each channel; 16

	// Of images alone.
	DecoderDepths []int   // blocks of each stage of the decoder, the coarsest first; 2, …, 2, 1
	DropPath      float64 // probability, in training, to drop a block for an image. It grows linearly from 0 to the coarsest block, and falls again to 0
	// Stem has the channels of stages of residual convolutions before the scans, the first at the resolution of the image, each at half of that before it.
	// The scans begin at half the resolution of the last. Each stage has its counterpart after the scans, with a concatenated skip. None by default: then the
	// scans begin at a quarter of the image's resolution.
	Stem []int
	// Orders returns the directions of the scans; op.VMambaOrders. See layer.SS2DConfig.
	Orders func(height, width int) []op.Order

	// Of volumes alone.
	Hidden int // channels of the coarsest map of the decoder; twice the last of Dims

	// Attention puts attention over all cells of a map in the place of the scans of an image, for comparison: layer.Attention, in which each cell sees those
	// before it, row by row. It takes half of the products of attention in both directions. Its time grows with the square of the number of pixels.
	Attention bool

	DeepSupervision bool // a head for each stage of the decoder, for the method Deep
}

// MambaUNetTiny returns the configuration of VM-UNet as its project trains it, for images, with two blocks a stage.
func MambaUNetTiny(classes int) MambaUNetConfig {
	return MambaUNetConfig{Classes: classes, DropPath: 0.2}.withDefaults()
}

// MambaUNetSmall returns the configuration of a VM-UNet for images that has the widths and depths of VMamba-T's first form in its encoder.
func MambaUNetSmall(classes int) MambaUNetConfig {
	return MambaUNetConfig{Classes: classes, Depths: []int{2, 2, 9, 2}, DecoderDepths: []int{2, 9, 2, 2}, DropPath: 0.2}.withDefaults()
}

// MambaUNetBase returns the configuration of a VM-UNet for images that has the widths and depths of VMamba-B's first form in its encoder.
func MambaUNetBase(classes int) MambaUNetConfig {
	return MambaUNetConfig{Classes: classes, Dims: []int{128}, Depths: []int{2, 2, 27, 2}, DecoderDepths: []int{2, 27, 2, 2}, DropPath: 0.6}.withDefaults()
}

// MambaUNet3DTiny returns the configuration of a SegMamba for volumes with a third of its channels.
func MambaUNet3DTiny(classes int) MambaUNetConfig {
	return MambaUNetConfig{Classes: classes, Axes: 3, Dims: []int{16}}.withDefaults()
}

// MambaUNet3DSmall returns the configuration of a SegMamba for volumes with two thirds of its channels.
func MambaUNet3DSmall(classes int) MambaUNetConfig {
	return MambaUNetConfig{Classes: classes, Axes: 3, Dims: []int{32}}.withDefaults()
}

// MambaUNet3DBase returns the configuration of the published SegMamba for volumes: 48 to 384 channels, depths 2, 2, 2, 2.
func MambaUNet3DBase(classes int) MambaUNetConfig {
	return MambaUNetConfig{Classes: classes, Axes: 3}.withDefaults()
}

func (c MambaUNetConfig) withDefaults() MambaUNetConfig {
	c.Axes, c.State = cmp.Or(c.Axes, 2), cmp.Or(c.State, 16)
	channels, dim := 3, 96
	if c.Axes == 3 {
		channels, dim = 1, 48
	}
	c.Channels = cmp.Or(c.Channels, channels)
	if c.Depths == nil {
		stages := 4
		if len(c.Dims) > 1 {
			stages = len(c.Dims)
		}
		c.Depths = slices.Repeat([]int{2}, stages)
	}
	if c.Dims == nil {
		c.Dims = []int{dim}
	}
	c.Dims = doubles(c.Dims, len(c.Depths))
	switch {
	case c.Axes == 2 && c.DecoderDepths == nil && len(c.Depths) > 0:
		c.DecoderDepths = slices.Repeat([]int{2}, len(c.Depths))
		c.DecoderDepths[len(c.Depths)-1] = 1
	case c.Axes == 3 && len(c.Dims) > 0 && c.Dims[len(c.Dims)-1] < 1<<30:
		c.Hidden = cmp.Or(c.Hidden, 2*c.Dims[len(c.Dims)-1])
	}
	return c
}

// maxStages is the largest number of stages: each halves the resolution.
const maxStages = 16

func (c MambaUNetConfig) check() error {
	stages := len(c.Depths)
	if err := cmp.Or(build.Axes("Classes", c.Classes, "Channels", c.Channels, "State", c.State), counts("Depths", c.Depths, stages),
		counts("Dims", c.Dims, stages), rate("DropPath", c.DropPath)); err != nil {
		return err
	}
	if all := stages + len(c.Stem); all > maxStages {
		return fmt.Errorf("fields Depths and Stem have %d stages, want at most %d", all, maxStages)
	}
	switch c.Axes {
	case 2:
		if c.Attention && c.Orders != nil {
			return fmt.Errorf("field Orders is given and Attention true, want one of them")
		}
		if c.Hidden != 0 {
			return fmt.Errorf("field Hidden is %d, want 0: it is for volumes, Axes 3", c.Hidden)
		}
		if len(c.Stem) > 0 {
			if err := counts("Stem", c.Stem, len(c.Stem)); err != nil {
				return err
			}
		} else if c.Dims[0]%4 != 0 {
			return fmt.Errorf("field Dims[0] is %d, want a multiple of 4: the last expansion makes 4 by 4 pixels of a cell, with a quarter of its channels", c.Dims[0])
		}
		return counts("DecoderDepths", c.DecoderDepths, stages)
	case 3:
		if c.DecoderDepths != nil || c.DropPath != 0 || c.Orders != nil || c.Attention || c.Stem != nil {
			return fmt.Errorf("field DecoderDepths, DropPath, Stem, Orders or Attention is given, want none: they are for images, Axes 2")
		}
		return build.Axes("Hidden", c.Hidden)
	}
	return fmt.Errorf("field Axes is %d, want 2 for images or 3 for volumes", c.Axes)
}

// multiple returns the number of pixels that a cell of the coarsest map is wide.
func (c MambaUNetConfig) multiple() int {
	if c.Axes == 3 {
		return 1 << len(c.Depths)
	}
	return c.cell() << (len(c.Depths) - 1)
}

// cell returns the number of pixels of an image that a cell of the first scans is wide.
func (c MambaUNetConfig) cell() int {
	if len(c.Stem) > 0 {
		return 1 << len(c.Stem)
	}
	return 4
}

// unet is what a MambaUNet has inside.
type unet interface {
	// apply returns the maps of all stages that Features returns, those of the decoder that deep supervision reads, the finest last, and the logits.
	apply(s *build.Steps, x *G.Node) (maps, decoded G.Nodes, logits *G.Node)
}

// NewMambaUNet returns a MambaUNet with the initial weights of VM-UNet or SegMamba. If the configuration is invalid, or if its weights do not fit into memory,
// Err and every use of the model return the error.
func NewMambaUNet(cfg MambaUNetConfig, opts ...Option) *MambaUNet {
	cfg = cfg.withDefaults()
	o, err := build.Collect(opts)
	err = cmp.Or(cfg.check(), err)
	sizes := []any{"Classes", cfg.Classes, "Dims", cfg.Dims, "Depths", cfg.Depths, "State", cfg.State}
	return build.New("vision: MambaUNet", sizes, o, named("MambaUNet", err), func(m *MambaUNet, o build.Options) (params layer.Params, err error) {
		m.cfg = cfg
		add := func(p layer.Params, err2 error) {
			params, err = append(params, p...), cmp.Or(err, err2)
		}
		if cfg.Axes == 2 {
			m.image = newVMUNet(cfg, o, add)
		} else {
			m.volume = newSegMamba(cfg, o, add)
		}
		for i, dim := range cfg.Dims[1:] { // of the maps of the decoder, but for the finest
			if cfg.DeepSupervision {
				head := layer.NewConv(layer.ConvConfig{In: dim, Out: cfg.Classes, Kernel: slices.Repeat([]int{1}, cfg.Axes)}, o.Part(fmt.Sprintf("deep.%d", i))...)
				add(head.Params(), head.Err())
				m.deep = append(m.deep, head)
			}
		}
		return params, named("MambaUNet", err)
	})
}

// Err returns the error of an invalid configuration, or nil.
func (m *MambaUNet) Err() error { return build.Err(m) }

// Config returns the configuration with its defaults filled in.
func (m *MambaUNet) Config() MambaUNetConfig { return m.cfg }

// Apply returns the logits (batch, grid…, classes) of images or volumes x (batch, grid…, channels).
func (m *MambaUNet) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	return first(m.run(x, opts, func(s *build.Steps, _, _ G.Nodes, logits *G.Node, cut func(*G.Node) *G.Node) G.Nodes {
		return G.Nodes{cut(logits)}
	}))
}

// Features returns the maps of all stages: of an image, the patch embedding, the stages of the encoder after they have halved the resolution, and those of
// the decoder; of a volume, those that the stages of the encoder give to the decoder. Maps of a size that was continued are continued.
func (m *MambaUNet) Features(x *G.Node, opts ...CallOption) (G.Nodes, error) {
	return m.run(x, opts, func(_ *build.Steps, maps, _ G.Nodes, _ *G.Node, _ func(*G.Node) *G.Node) G.Nodes { return maps })
}

// Deep returns the logits of Apply and then those of the heads of the decoder, from fine to coarse, for a loss with deep supervision such as
// op.DeepSupervision. Each is (batch, grid…, classes): of an image the second has an eighth of its resolution without a Stem, of a volume half, and every further one half of
// the one before. It is an error if the model has no such heads, or if it cannot halve the size of x as often as it has stages.
func (m *MambaUNet) Deep(x *G.Node, opts ...CallOption) (G.Nodes, error) {
	if err := build.Err(m); err != nil {
		return nil, err
	}
	if !m.cfg.DeepSupervision {
		return nil, fmt.Errorf("vision: %s: the model has no heads for deep supervision, want the option DeepSupervision of its configuration", m.Name())
	}
	return m.run(x, opts, func(s *build.Steps, _, decoded G.Nodes, logits *G.Node, cut func(*G.Node) *G.Node) G.Nodes {
		results := G.Nodes{cut(logits)}
		if results[0] != logits {
			s.Do(nil, fmt.Errorf("x has shape %v, want a grid of multiples of %d for deep supervision", x.Shape(), m.cfg.multiple()))
		}
		for i, head := range m.deep {
			if at := len(decoded) - 1 - i; at >= 0 {
				results = append(results, s.Do(head.Apply(decoded[at])))
			}
		}
		return results
	})
}

// run applies the model to x, continued to a size that it can halve. cut cuts a result to the size of x.
func (m *MambaUNet) run(x *G.Node, opts []CallOption,
	f func(s *build.Steps, maps, decoded G.Nodes, logits *G.Node, cut func(*G.Node) *G.Node) G.Nodes,
) (G.Nodes, error) {
	var in image
	if build.Err(m) == nil {
		in = image{m.cfg.Axes, m.cfg.Channels}
	}
	repeat := in == image{2, 3} && x != nil && len(x.Shape()) == 4 && x.Shape()[3] == 1
	if repeat {
		in.channels = 1
	}
	return run(m, in, x, opts, func(s *build.Steps, x *G.Node) G.Nodes {
		none, after, back := make([]int, in.axes), make([]int, in.axes), make([]int, in.axes)
		padded := false
		for i, n := range x.Shape()[1 : 1+in.axes] {
			each := m.cfg.multiple()
			after[i] = (each - n%each) % each
			back[i] = -after[i]
			padded = padded || after[i] > 0
		}
		if repeat {
			x = s.Do(op.Concat(3, x, x, x))
		}
		if padded {
			x = s.Do(op.Pad(x, none, after))
		}
		var net unet = m.image
		if m.volume != nil {
			net = m.volume
		}
		maps, decoded, logits := net.apply(s, x)
		return f(s, maps, decoded, logits, func(y *G.Node) *G.Node {
			if padded {
				y = s.Do(op.Pad(y, none, back))
			}
			return y
		})
	})
}

// Fwd is Apply in the form of golgi's layers.
func (m *MambaUNet) Fwd(x G.Input) G.Result {
	return build.Lift(x, func(x *G.Node) (*G.Node, error) { return m.Apply(x) })
}

// vmUNet is VM-UNet.
type vmUNet struct {
	stem     []*resBlock // or none
	embed    *layer.Conv
	norm     *layer.LayerNorm
	down, up []vmUNetStage
	last     *layer.PatchExpanding // or nil with a stem
	stemUp   []decoderStage        // of the stem, the coarsest first
	head     *layer.Conv
}

// vmUNetStage is some blocks and, of the encoder, what halves the resolution after them or, of the decoder, what doubles it before them.
type vmUNetStage struct {
	blocks []*vssBlock
	merge  *layer.PatchMerging   // or nil
	expand *layer.PatchExpanding // or nil
}

func newVMUNet(cfg MambaUNetConfig, o build.Options, add func(layer.Params, error)) *vmUNet {
	const prefix = "vmunet."
	part := func(name string) []Option { return o.Part(prefix + name) }
	n, dims := len(cfg.Dims), cfg.Dims
	u, in, patch, c := &vmUNet{}, cfg.Channels, 4, convParts{2, o, add}
	for i, out := range cfg.Stem {
		u.stem = append(u.stem, c.block(in, out, fmt.Sprintf("%sstem.%d", prefix, i)))
		in, patch = out, 2
	}
	u.embed = c.conv(in, dims[0], patch, patch, 0, true, prefix+"patch_embed.proj")
	u.norm = layer.NewLayerNorm(layer.LayerNormConfig{Channels: dims[0]}, part("patch_embed.norm")...)
	add(u.norm.Params(), u.norm.Err())
	// blocks returns the blocks of a stage. drop returns that of a block.
	blocks := func(name string, dim, depth int, drop func(i int) drop) (all []*vssBlock) {
		each, count := o.Repeated(depth)
		for j := range count {
			part := each
			part.Name = build.Join(o.Name, fmt.Sprintf("%s%s.blocks.%d", prefix, name, j))
			b, p, err := newVSSBlock(part, vssNames{"ln_1", "self_attention"}, layer.SS2DConfig{Channels: dim, State: cfg.State, Orders: cfg.Orders}, 0, cfg.Attention, drop(j))
			add(p, err)
			all = append(all, b)
		}
		return all
	}
	encoder, decoder, done := sum(cfg.Depths), sum(cfg.DecoderDepths), 0
	for i, dim := range dims {
		at := done
		stage := vmUNetStage{blocks: blocks(fmt.Sprintf("layers.%d", i), dim, cfg.Depths[i], func(j int) drop {
			return drops(encoder, cfg.DropPath, o.Seed)(at + j)
		})}
		if i < n-1 {
			stage.merge = layer.NewPatchMerging(layer.PatchMergingConfig{Channels: dim, Out: dims[i+1], Cut: true}, part(fmt.Sprintf("layers.%d.downsample", i))...)
			normal(o, stage.merge.Reduction)
			add(stage.merge.Params(), stage.merge.Err())
		}
		u.down, done = append(u.down, stage), done+cfg.Depths[i]
	}
	done = 0
	for i := range n {
		var stage vmUNetStage
		dim, at := dims[n-1-i], done
		if i > 0 {
			stage.expand = layer.NewPatchExpanding(layer.PatchExpandingConfig{Channels: dims[n-i], Out: dim}, part(fmt.Sprintf("layers_up.%d.upsample", i))...)
			normal(o, stage.expand.Expand)
			add(stage.expand.Params(), stage.expand.Err())
		}
		stage.blocks = blocks(fmt.Sprintf("layers_up.%d", i), dim, cfg.DecoderDepths[i], func(j int) drop {
			d := drops(decoder, cfg.DropPath, o.Seed)(decoder - 1 - at - j) // the rates fall
			d.block = encoder + at + j
			return d
		})
		u.up, done = append(u.up, stage), done+cfg.DecoderDepths[i]
	}
	out := dims[0]
	for i := len(cfg.Stem) - 1; i >= 0; i-- {
		u.stemUp = append(u.stemUp, c.decoder(out, cfg.Stem[i], fmt.Sprintf("%sstem_up.%d", prefix, i)))
		out = cfg.Stem[i]
	}
	if u.stem == nil {
		out = dims[0] / 4
		u.last = layer.NewPatchExpanding(layer.PatchExpandingConfig{Channels: dims[0], Out: out, Block: []int{4, 4}}, part("final_up")...)
		normal(o, u.last.Expand)
		add(u.last.Params(), u.last.Err())
	}
	u.head = c.conv(out, cfg.Classes, 1, 1, 0, true, prefix+"final_conv")
	return u
}

func sum(list []int) (n int) {
	for _, v := range list {
		n += v
	}
	return n
}

func (u *vmUNet) apply(s *build.Steps, x *G.Node) (maps, decoded G.Nodes, logits *G.Node) {
	var fine, skips G.Nodes
	for i, b := range u.stem {
		if i > 0 {
			x = s.Do(op.MaxPool(x, op.PoolConfig{Kernel: []int{2, 2}}))
		}
		x = b.apply(s, x)
		fine = append(fine, x)
	}
	x = s.Do(u.norm.Apply(s.Do(u.embed.Apply(x))))
	maps = G.Nodes{x}
	for _, stage := range u.down {
		skips = append(skips, x)
		for _, b := range stage.blocks {
			x = b.apply(s, x)
		}
		if stage.merge != nil {
			x = s.Do(stage.merge.Apply(x))
		}
		maps = append(maps, x)
	}
	for i, stage := range u.up {
		if i > 0 {
			x = s.Do(stage.expand.Apply(s.Do(op.Add(x, skips[len(skips)-i]))))
		}
		for _, b := range stage.blocks {
			x = b.apply(s, x)
		}
		maps, decoded = append(maps, x), append(decoded, x)
	}
	for i, d := range u.stemUp {
		x = d.apply(s, x, fine[len(fine)-1-i])
	}
	if u.last != nil {
		x = s.Do(u.last.Apply(x))
	}
	return maps, decoded[:len(decoded)-1], s.Do(u.head.Apply(x))
}
