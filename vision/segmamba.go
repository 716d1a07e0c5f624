package vision

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// SegMambaStage is a stage of SegMamba's encoder: gated spatial convolutions, layers x + Mamba(norm x) over the cells of the grid with layer.Mamba's three
// passes, an instance norm, and an MLP of the channels. x and the result are (batch, grid…, channels), with a grid of one to three axes.
//
// The weights are gsc.proj.weight, stage.0.norm.weight, stage.0.mamba.in_proj.weight, mlp.fc1.weight and so on.
type SegMambaStage struct {
	layer.Base
	cfg   SegMambaStageConfig
	gated [4]*layer.Conv // "proj", "proj2", "proj3", "proj4"
	seq   []umambaParts
	mlp   [2]*layer.Conv // "fc1", "fc2"
}

// SegMambaStageConfig configures a SegMambaStage. A zero field stands for its default.
type SegMambaStageConfig struct {
	Channels int // required
	Axes     int // of the grid; 3
	Depth    int // layers with a Mamba; 1
	State    int // N, the size of the state of each channel; 16
	Conv     int // width of the causal convolutions; 4
	Inner    int // channels inside of a Mamba; 2·Channels
	Slices   int // of the third pass; by default the size of the first axis of the grid
	Hidden   int // channels inside of the MLP; 2·Channels
}

// segMambaNames are the names of the parts of a stage; that of the layers is followed by a number.
type segMambaNames struct{ gated, layers, mlp string }

// NewSegMambaStage returns a stage with SegMamba's initial weights.
func NewSegMambaStage(cfg SegMambaStageConfig, opts ...Option) *SegMambaStage {
	o, err := build.Collect(opts)
	return newSegMambaStage(cfg, o, err, segMambaNames{"gsc", "stage", "mlp"})
}

func newSegMambaStage(cfg SegMambaStageConfig, o build.Options, err error, names segMambaNames) *SegMambaStage {
	twice := size.Product(2, cfg.Channels)
	cfg.Axes, cfg.Depth, cfg.State, cfg.Conv = cmp.Or(cfg.Axes, 3), cmp.Or(cfg.Depth, 1), cmp.Or(cfg.State, 16), cmp.Or(cfg.Conv, 4)
	cfg.Inner, cfg.Hidden = cmp.Or(cfg.Inner, twice), cmp.Or(cfg.Hidden, twice)
	err = cmp.Or(build.Axes("Channels", cfg.Channels, "Depth", cfg.Depth, "State", cfg.State, "Conv", cfg.Conv, "Inner", cfg.Inner, "Hidden", cfg.Hidden), err)
	if err == nil && (cfg.Axes < 1 || cfg.Axes > 3) {
		err = fmt.Errorf("field Axes is %d, want 1 to 3", cfg.Axes)
	}
	if err == nil && cfg.Slices < 0 {
		err = fmt.Errorf("field Slices is %d, want at least 1, or 0 for the size of the first axis", cfg.Slices)
	}
	sizes := []any{"Channels", cfg.Channels, "Depth", cfg.Depth, "State", cfg.State, "Inner", cfg.Inner, "Hidden", cfg.Hidden}
	return build.New("vision: SegMambaStage", sizes, o, named("SegMambaStage", err), func(t *SegMambaStage, o build.Options) (params layer.Params, err error) {
		t.cfg = cfg
		add := func(p layer.Params, err2 error) {
			params, err = append(params, p...), cmp.Or(err, err2)
		}
		conv := func(in, out, kernel int, name string) *layer.Conv {
			c := layer.NewConv(layer.ConvConfig{In: in, Out: out, Kernel: slices.Repeat([]int{kernel}, cfg.Axes), Padding: []int{kernel / 2}}, o.Part(name)...)
			add(c.Params(), c.Err())
			return c
		}
		for i, kernel := range []int{3, 3, 1, 1} {
			t.gated[i] = conv(cfg.Channels, cfg.Channels, kernel, names.gated+[]string{".proj", ".proj2", ".proj3", ".proj4"}[i])
		}
		each, count := o.Repeated(cfg.Depth)
		for i := range count {
			part := each
			part.Name = build.Join(o.Name, fmt.Sprintf("%s.%d", names.layers, i))
			l, p, err := newUMamba(part, layer.MambaConfig{
				Channels: cfg.Channels, Inner: cfg.Inner, State: cfg.State, Width: cfg.Conv, Bidirectional: true, Slices: max(cfg.Slices, 1),
			})
			add(p, err)
			if err == nil && !o.Zeros { // SegMamba leaves these biases as PyTorch draws them
				for _, s6 := range []*layer.S6{l.mamba.Parts.S6B, l.mamba.Parts.S6S} {
					w, bias := s6.Parts.DtProj.Weight, s6.Parts.DtProj.Bias
					bias.Value = o.New(build.Uniform(o.Rand(bias.Name), 1/math.Sqrt(float64(w.Value.Shape()[1]))), cfg.Inner)
				}
			}
			t.seq = append(t.seq, l)
		}
		t.mlp = [2]*layer.Conv{conv(cfg.Channels, cfg.Hidden, 1, names.mlp+".fc1"), conv(cfg.Hidden, cfg.Channels, 1, names.mlp+".fc2")}
		return params, named("SegMambaStage", err)
	})
}

// Err returns the error of an invalid configuration, or nil.
func (t *SegMambaStage) Err() error { return build.Err(t) }

// Apply applies the stage to x (batch, grid…, channels).
func (t *SegMambaStage) Apply(x *G.Node) (*G.Node, error) {
	return build.At(t, x, func(x *G.Node) (*G.Node, error) {
		if shape := x.Shape(); len(shape) != t.cfg.Axes+2 {
			return nil, fmt.Errorf("vision: %s: x has shape %v, want a batch, %d axes of a grid and channels", t.Name(), shape, t.cfg.Axes)
		}
		s := &build.Steps{Graph: x.Graph()}
		_, y := t.apply(s, x)
		return s.Result(y, nil)
	})
}

// Fwd is Apply in the form of golgi's layers.
func (t *SegMambaStage) Fwd(x G.Input) G.Result { return build.Lift(x, t.Apply) }

// apply returns the map after the layers, which the next stage takes, and the result of the MLP.
func (t *SegMambaStage) apply(s *build.Steps, x *G.Node) (stream, y *G.Node) {
	conv := func(i int, x *G.Node) *G.Node {
		return activatedNorm(s, s.Do(t.gated[i].Apply(x)), nil, op.ReLU, false)
	}
	x = s.Do(op.Add(x, conv(3, s.Do(op.Add(conv(1, conv(0, x)), conv(2, x))))))
	for i := range t.seq {
		x = s.Do(op.Add(x, t.seq[i].apply(s, x, t.cfg.Slices)))
	}
	y = instanceNorm(s, x)
	return x, s.Do(t.mlp[1].Apply(activate(s, s.Do(t.mlp[0].Apply(y)), op.GELU)))
}

// UMambaLayer is the layer of U-Mamba: a layer norm and a Mamba over the cells of the grid, row by row, without a residual connection (Ma et al., "U-Mamba:
// Enhancing Long-range Dependency for Biomedical Image Segmentation"). x and the result are (batch, grid…, channels).
//
// Its weights are norm.weight, norm.bias, and those of layer.Mamba after mamba.
type UMambaLayer struct {
	layer.Base
	parts umambaParts
}

// umambaParts is what a UMambaLayer is made of.
type umambaParts struct {
	norm  *layer.LayerNorm // "norm"
	mamba *layer.Mamba     // "mamba"
}

// NewUMambaLayer returns a layer of U-Mamba. cfg is that of its Mamba, in any direction.
func NewUMambaLayer(cfg layer.MambaConfig, opts ...Option) *UMambaLayer {
	o, err := build.Collect(opts)
	return build.New("vision: UMambaLayer", []any{"channels", cfg.Channels}, o, named("UMambaLayer", err), func(l *UMambaLayer, o build.Options) (params layer.Params, err error) {
		l.parts, params, err = newUMamba(o, cfg)
		return params, err
	})
}

func newUMamba(o build.Options, cfg layer.MambaConfig) (p umambaParts, params layer.Params, err error) {
	p.norm = layer.NewLayerNorm(layer.LayerNormConfig{Channels: cfg.Channels}, o.Part("norm")...)
	p.mamba = layer.NewMamba(cfg, o.Part("mamba")...)
	params, err = build.Together[layer.Params](p.norm, p.mamba)
	return p, params, err
}

// apply returns the result for x (batch, grid…, channels). The slices of a Mamba that has some are those given or, for 0, the size of the first axis.
func (p *umambaParts) apply(s *build.Steps, x *G.Node, slices int) *G.Node {
	if x == nil {
		return nil
	}
	shape := x.Shape().Clone()
	last := len(shape) - 1
	defer func(before int) { s.Slices = before }(s.Slices)
	if s.Slices = slices; slices == 0 {
		s.Slices = shape[1]
	}
	x = s.Do(op.Reshape(s.Do(p.norm.Apply(x)), shape[0], shape[1:last].TotalSize(), shape[last]))
	return s.Do(op.Reshape(s.Mix(p.mamba, x), shape...))
}

// Err returns the error of an invalid configuration, or nil.
func (l *UMambaLayer) Err() error { return build.Err(l) }

// Apply applies the layer to x (batch, grid…, channels).
func (l *UMambaLayer) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		if shape := x.Shape(); len(shape) < 3 {
			return nil, fmt.Errorf("vision: %s: x has shape %v, want a batch, at least one axis of a grid and channels", l.Name(), shape)
		}
		s := &build.Steps{Graph: x.Graph()}
		return s.Result(l.parts.apply(s, x, 0), nil)
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *UMambaLayer) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }

// segMamba is SegMamba.
type segMamba struct {
	down    []*layer.Conv // "vit.downsample_layers"
	stages  []*SegMambaStage
	encoder []*resBlock // "encoder1" and so on, of the image and of each stage
	decoder []decoderStage
	last    *resBlock   // "decoder1"
	head    *layer.Conv // "out"
}

// decoderStage doubles the resolution and joins the skip.
type decoderStage struct {
	up    *layer.ConvTranspose
	block *resBlock
}

// resBlock is MONAI's residual block: two convolutions of 3 cells with instance norms and leaky ReLUs, and, where the channels change, a convolution of one
// cell with a norm around them.
type resBlock struct {
	conv [3]*layer.Conv // the third or nil
}

// convParts makes the convolutional parts of a U-Net.
type convParts struct {
	axes int
	o    build.Options
	add  func(layer.Params, error)
}

func (p convParts) conv(in, out, kernel, stride, padding int, bias bool, name string) *layer.Conv {
	k := slices.Repeat([]int{kernel}, p.axes)
	c := layer.NewConv(layer.ConvConfig{In: in, Out: out, Kernel: k, Stride: []int{stride}, Padding: []int{padding}, NoBias: !bias}, p.o.Part(name)...)
	p.add(c.Params(), c.Err())
	return c
}

func (p convParts) block(in, out int, name string) *resBlock {
	b := &resBlock{}
	b.conv[0], b.conv[1] = p.conv(in, out, 3, 1, 1, false, name+".conv1.conv"), p.conv(out, out, 3, 1, 1, false, name+".conv2.conv")
	if in != out {
		b.conv[2] = p.conv(in, out, 1, 1, 0, false, name+".conv3.conv")
	}
	return b
}

func (p convParts) decoder(in, out int, name string) decoderStage {
	up := layer.NewConvTranspose(layer.ConvTransposeConfig{In: in, Out: out, Kernel: slices.Repeat([]int{2}, p.axes), Stride: []int{2}, NoBias: true},
		p.o.Part(name+".transp_conv.conv")...)
	p.add(up.Params(), up.Err())
	return decoderStage{up, p.block(2*out, out, name+".conv_block")}
}

func newSegMamba(cfg MambaUNetConfig, o build.Options, add func(layer.Params, error)) *segMamba {
	n, dims := len(cfg.Dims), cfg.Dims
	c := convParts{3, o, add}
	m := &segMamba{}
	for i, dim := range dims {
		if i == 0 {
			m.down = append(m.down, c.conv(cfg.Channels, dim, 7, 2, 3, true, "vit.downsample_layers.0.0"))
		} else {
			m.down = append(m.down, c.conv(dims[i-1], dim, 2, 2, 0, true, fmt.Sprintf("vit.downsample_layers.%d.1", i)))
		}
		part, err := build.Collect(o.Part(""))
		names := segMambaNames{fmt.Sprintf("vit.gscs.%d", i), fmt.Sprintf("vit.stages.%d", i), fmt.Sprintf("vit.mlps.%d", i)}
		t := newSegMambaStage(SegMambaStageConfig{Channels: dim, Depth: cfg.Depths[i], State: cfg.State}, part, err, names)
		add(t.Params(), t.Err())
		m.stages = append(m.stages, t)
	}
	wide := append(append([]int{cfg.Channels}, dims...), cfg.Hidden) // the channels of the image and of each map
	for i := range n + 1 {
		m.encoder = append(m.encoder, c.block(wide[i], wide[i+1], fmt.Sprintf("encoder%d.layer", i+1)))
	}
	for i := n; i > 0; i-- {
		m.decoder = append(m.decoder, c.decoder(wide[i+1], wide[i], fmt.Sprintf("decoder%d", i+1)))
	}
	m.last = c.block(dims[0], dims[0], "decoder1.layer")
	m.head = c.conv(dims[0], cfg.Classes, 1, 1, 0, true, "out.conv.conv")
	return m
}

// instanceNorm returns the instance norm of x, without weights.
func instanceNorm(s *build.Steps, x *G.Node) *G.Node {
	return s.Do(op.InstanceNorm(x, nil, nil, 1e-5))
}

// activatedNorm returns the activation of the instance norm of x, or of its sum with a residual, which may be normalized too.
func activatedNorm(s *build.Steps, x, residual *G.Node, f op.Activation, norm bool) *G.Node {
	return s.Do(op.ActivatedNorm(x, nil, nil, residual, op.ActivatedNormConfig{Eps: 1e-5, Activation: f, NormResidual: norm}))
}

func (b *resBlock) apply(s *build.Steps, x *G.Node) *G.Node {
	conv := func(i int, x *G.Node) *G.Node { return s.Do(b.conv[i].Apply(x)) }
	y := conv(1, activatedNorm(s, conv(0, x), nil, op.LeakyReLU, false))
	if b.conv[2] != nil {
		x = conv(2, x)
	}
	return activatedNorm(s, y, x, op.LeakyReLU, b.conv[2] != nil)
}

func (d decoderStage) apply(s *build.Steps, x, skip *G.Node) *G.Node {
	up := s.Do(d.up.Apply(x))
	if up == nil {
		return nil
	}
	return d.block.apply(s, s.Do(op.Concat(up.Dims()-1, up, skip)))
}

func (m *segMamba) apply(s *build.Steps, x *G.Node) (maps, decoded G.Nodes, logits *G.Node) {
	skips := G.Nodes{m.encoder[0].apply(s, x)}
	for i, t := range m.stages {
		if i > 0 {
			x = instanceNorm(s, x)
		}
		x = s.Do(m.down[i].Apply(x))
		var y *G.Node
		x, y = t.apply(s, x)
		maps = append(maps, y)
		skips = append(skips, m.encoder[i+1].apply(s, y))
	}
	x = skips[len(skips)-1]
	for i, d := range m.decoder {
		x = d.apply(s, x, skips[len(skips)-2-i])
		decoded = append(decoded, x)
	}
	return maps, decoded[:len(decoded)-1], s.Do(m.head.Apply(m.last.apply(s, x)))
}
