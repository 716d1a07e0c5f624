package vision

import (
	"cmp"
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// Vim classifies images by sequences of patches (Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space
// Model"): patches row by row, a class token in their middle, a learned position embedding, layers x + Mamba(norm x) that read the sequence in both
// directions, a norm, and a linear layer of the class token. It takes images (batch, height, width, channels) of any size from one patch on, and returns
// logits (batch, classes). For images of another size than VimConfig.Height by Width, the position embedding is interpolated.
//
// The weights have the names of the published checkpoints: patch_embed.proj.weight, cls_token, pos_embed, layers.0.mixer.in_proj.weight, head.weight and
// so on.
type Vim struct {
	layer.Base
	cfg      VimConfig
	embed    *layer.Conv
	token    *layer.Param // (1, 1, dim), or nil
	position *layer.Param // (1, tokens, dim)
	layers   []vimLayer
	norm     norm
	head     *layer.Linear
}

type vimLayer struct {
	norm  norm
	mixer *layer.Mamba
	drop  drop
}

// norm is a layer.RMSNorm or a layer.LayerNorm.
type norm interface {
	build.Part[layer.Params]
	Apply(x *G.Node) (*G.Node, error)
}

// Token says which token of a Vim the classes are computed of.
type Token int

// The tokens.
const (
	MiddleToken Token = iota // a class token in the middle of the patches
	FirstToken               // a class token before them
	MeanToken                // no class token: the mean of all patches
	LastToken                // no class token: the last patch
)

// VimConfig configures a Vim. A zero field stands for its default, which is the released Vim-Ti.
type VimConfig struct {
	Classes       int   // required
	Channels      int   // of the image; 3
	Height, Width int   // of the images of the position embedding; 224, and Height
	Patch         int   // side of a patch in pixels; 16
	Stride        int   // pixels from one patch to the next; Patch
	Dim           int   // channels of the layers; 192
	Depth         int   // number of layers; 24
	Token         Token // what is classified; MiddleToken

	State, Conv, Inner, Rank int     // of the mixers: see layer.MambaConfig
	LayerScale               float64 // of the mixers
	Sum                      bool    // the directions of a mixer are added, without division by 2
	LayerNorm                bool    // the norms are layer.LayerNorm instead of layer.RMSNorm
	Eps                      float64 // that the norms add; 1e-5
	DropPath                 float64 // probability, in training, to drop the last layer for an image. It grows linearly from 0 at the first layer
}

// VimTiny returns the configuration of the released Vim-Ti, with 1000 classes.
func VimTiny() VimConfig { return VimConfig{Classes: 1000}.withDefaults() }

// VimSmall returns the configuration of the released Vim-S, with 1000 classes.
func VimSmall() VimConfig { return VimConfig{Classes: 1000, Dim: 384, DropPath: 0.05}.withDefaults() }

// VimBase returns the configuration of the released Vim-B, with 1000 classes.
func VimBase() VimConfig { return VimConfig{Classes: 1000, Dim: 768, DropPath: 0.1}.withDefaults() }

func (c VimConfig) withDefaults() VimConfig {
	c.Channels, c.Height, c.Patch = cmp.Or(c.Channels, 3), cmp.Or(c.Height, 224), cmp.Or(c.Patch, 16)
	c.Width, c.Stride, c.Dim, c.Depth = cmp.Or(c.Width, c.Height), cmp.Or(c.Stride, c.Patch), cmp.Or(c.Dim, 192), cmp.Or(c.Depth, 24)
	c.State, c.Conv, c.Inner = cmp.Or(c.State, 16), cmp.Or(c.Conv, 4), cmp.Or(c.Inner, size.Product(2, c.Dim))
	c.Rank, c.Eps = cmp.Or(c.Rank, c.Dim/16+min(c.Dim%16, 1)), cmp.Or(c.Eps, 1e-5)
	return c
}

func (c VimConfig) check() error {
	if err := cmp.Or(build.Axes("Classes", c.Classes, "Channels", c.Channels, "Height", c.Height, "Width", c.Width, "Patch", c.Patch, "Stride", c.Stride,
		"Dim", c.Dim, "Depth", c.Depth, "State", c.State, "Conv", c.Conv, "Inner", c.Inner, "Rank", c.Rank), rate("DropPath", c.DropPath)); err != nil {
		return err
	}
	if c.Token < MiddleToken || c.Token > LastToken {
		return fmt.Errorf("field Token is %d, want MiddleToken, FirstToken, MeanToken or LastToken", int(c.Token))
	}
	if min(c.Height, c.Width) < c.Patch {
		return fmt.Errorf("the image is %d by %d, want at least the size of a patch, %d", c.Height, c.Width, c.Patch)
	}
	if !(c.Eps > 0) || math.IsInf(c.Eps, 1) {
		return fmt.Errorf("field Eps is %v, want a positive number, or 0 for the default", c.Eps)
	}
	return nil
}

// grid returns the patches of an image along its height and width.
func (c VimConfig) grid(height, width int) (rows, columns int) {
	return (height-c.Patch)/c.Stride + 1, (width-c.Patch)/c.Stride + 1
}

// hasToken reports whether there is a class token.
func (c VimConfig) hasToken() bool { return c.Token == MiddleToken || c.Token == FirstToken }

// NewVim returns a Vim with Vim's initial weights. If the configuration is invalid, or if its weights do not fit into memory, Err and every use of the model
// return the error.
func NewVim(cfg VimConfig, opts ...Option) *Vim {
	cfg = cfg.withDefaults()
	o, err := build.Collect(opts)
	err = cmp.Or(cfg.check(), err)
	sizes := []any{"Classes", cfg.Classes, "Height", cfg.Height, "Width", cfg.Width, "Patch", cfg.Patch, "Dim", cfg.Dim, "Depth", cfg.Depth, "State", cfg.State,
		"Inner", cfg.Inner, "Rank", cfg.Rank}
	return build.New("vision: Vim", sizes, o, named("Vim", err), func(m *Vim, o build.Options) (params layer.Params, err error) {
		m.cfg = cfg
		add := func(p layer.Params, err2 error) {
			params, err = append(params, p...), cmp.Or(err, err2)
		}
		param := func(name string, shape ...int) *layer.Param {
			name = build.Join(o.Name, name)
			return layer.NewParam(name, o.New(build.TruncatedNormal(o.Rand(name), deviation), shape...), false)
		}
		rows, columns := cfg.grid(cfg.Height, cfg.Width)
		tokens := rows * columns
		if cfg.hasToken() {
			m.token = param("cls_token", 1, 1, cfg.Dim)
			tokens++
			add(layer.Params{m.token}, nil)
		}
		m.position = param("pos_embed", 1, tokens, cfg.Dim)
		add(layer.Params{m.position}, nil)
		m.embed = layer.NewConv(layer.ConvConfig{In: cfg.Channels, Out: cfg.Dim, Kernel: []int{cfg.Patch, cfg.Patch}, Stride: []int{cfg.Stride}}, o.Part("patch_embed.proj")...)
		add(m.embed.Params(), m.embed.Err())
		if err == nil && !o.Zeros { // LeCun's initial values: normal, of variance 1/inputs
			w := m.embed.Weight
			w.Value = o.New(build.TruncatedNormal(o.Rand(w.Name), 1/math.Sqrt(float64(cfg.Channels)*float64(cfg.Patch)*float64(cfg.Patch))), w.Value.Shape()...)
			m.embed.Bias.Value = o.New(nil, cfg.Dim)
		}
		drop := drops(cfg.Depth, cfg.DropPath, o.Seed)
		each, count := o.Repeated(cfg.Depth)
		for i := range count {
			part := each
			part.Name = build.Join(o.Name, fmt.Sprintf("layers.%d", i))
			l := vimLayer{norm: newNorm(cfg, part, "norm"), drop: drop(i), mixer: layer.NewMamba(layer.MambaConfig{
				Channels: cfg.Dim, Inner: cfg.Inner, State: cfg.State, Width: cfg.Conv, Rank: cfg.Rank, Depth: cfg.Depth,
				Bidirectional: true, Average: !cfg.Sum, LayerScale: cfg.LayerScale,
			}, part.Part("mixer")...)}
			add(build.Together[layer.Params](l.norm, l.mixer))
			if err == nil && !o.Zeros { // Vim sets the bias of the second dt_proj to 0, since it marks only that of the first as set
				bias := l.mixer.Parts.S6B.Parts.DtProj.Bias
				bias.Value = o.New(nil, cfg.Inner)
			}
			m.layers = append(m.layers, l)
		}
		m.norm = newNorm(cfg, o, "norm_f")
		m.head = layer.NewLinear(layer.LinearConfig{In: cfg.Dim, Out: cfg.Classes, Bias: true}, o.Part("head")...)
		normal(o, m.head)
		add(build.Together[layer.Params](m.norm, m.head))
		return params, named("Vim", err)
	})
}

func newNorm(cfg VimConfig, o build.Options, name string) norm {
	if cfg.LayerNorm {
		return layer.NewLayerNorm(layer.LayerNormConfig{Channels: cfg.Dim, Eps: cfg.Eps}, o.Part(name)...)
	}
	return layer.NewRMSNorm(layer.RMSNormConfig{Channels: cfg.Dim, Eps: cfg.Eps}, o.Part(name)...)
}

// Err returns the error of an invalid configuration, or nil.
func (m *Vim) Err() error { return build.Err(m) }

// Config returns the configuration with its defaults filled in.
func (m *Vim) Config() VimConfig { return m.cfg }

// Apply returns the logits (batch, classes) of images x (batch, height, width, channels).
func (m *Vim) Apply(x *G.Node, opts ...CallOption) (*G.Node, error) {
	return first(run(m, m.input(), x, opts, func(s *build.Steps, x *G.Node) G.Nodes {
		_, x, at := m.features(s, x)
		if x == nil {
			return nil
		}
		x = s.Do(m.norm.Apply(x)) // of all tokens, for the mean
		if m.cfg.Token == MeanToken {
			x = s.Do(op.MeanPool(x, nil))
		} else {
			x = step(s, x, at)
		}
		return G.Nodes{s.Do(m.head.Apply(x))}
	}))
}

// Features returns the patch embedding (batch, rows·columns, dim), and the mixer's result of each layer (batch, tokens, dim).
func (m *Vim) Features(x *G.Node, opts ...CallOption) (G.Nodes, error) {
	return run(m, m.input(), x, opts, func(s *build.Steps, x *G.Node) G.Nodes {
		maps, _, _ := m.features(s, x)
		return maps
	})
}

// Fwd is Apply in the form of golgi's layers.
func (m *Vim) Fwd(x G.Input) G.Result {
	return build.Lift(x, func(x *G.Node) (*G.Node, error) { return m.Apply(x) })
}

func (m *Vim) input() image {
	if m == nil {
		return image{}
	}
	return image{2, m.cfg.Channels}
}

// features returns the results of Features, the residual stream after the last layer, and which token is classified.
func (m *Vim) features(s *build.Steps, x *G.Node) (maps G.Nodes, stream *G.Node, at int) {
	x = s.Do(m.embed.Apply(x))
	if x == nil {
		return nil, nil, 0
	}
	shape := x.Shape() // (batch, rows, columns, dim)
	patches := shape[1] * shape[2]
	x = s.Do(op.Reshape(x, shape[0], patches, shape[3]))
	maps = G.Nodes{x}
	at = patches - 1
	if m.cfg.hasToken() {
		if at = 0; m.cfg.Token == MiddleToken {
			at = patches / 2
		}
		x = insert(s, x, m.token.Node(s.Graph), at)
	}
	x = s.Do(op.Add(x, m.positions(s, shape[1], shape[2])))
	for i := range m.layers {
		l := &m.layers[i]
		y := s.Mix(l.mixer, s.Do(l.norm.Apply(x)))
		maps = append(maps, y)
		x = l.drop.add(s, x, y, 0)
	}
	return maps, x, at
}

// positions returns the position embedding (1, tokens, dim) of a grid of patches: that of the model or, for another grid, one interpolated between its
// cells. The class token keeps its own.
func (m *Vim) positions(s *build.Steps, rows, columns int) *G.Node {
	p := s.Do(m.position.Effective(s.Graph))
	r, c := m.cfg.grid(m.cfg.Height, m.cfg.Width)
	if p == nil || rows == r && columns == c {
		return p
	}
	var token *G.Node
	if at := 0; m.cfg.hasToken() {
		if m.cfg.Token == MiddleToken {
			at = r * c / 2
		}
		token = s.Do(op.Pad(p, []int{-at}, []int{at - r*c}))
		rest := s.Do(op.Pad(p, []int{-at - 1}, []int{0}))
		if at > 0 {
			rest = s.Do(op.Concat(1, s.Do(op.Pad(p, []int{0}, []int{at - r*c - 1})), rest))
		}
		p = rest
	}
	p = s.Do(op.Interpolate(s.Do(op.Reshape(p, 1, r, c, m.cfg.Dim)), op.InterpolateConfig{Size: []int{rows, columns}, Mode: op.InterpolateCubic}))
	p = s.Do(op.Reshape(p, 1, rows*columns, m.cfg.Dim))
	if token == nil {
		return p
	}
	at := 0
	if m.cfg.Token == MiddleToken {
		at = rows * columns / 2
	}
	return insert(s, p, token, at)
}

// insert returns x (batch, length, channels) with a token (1, 1, channels) before position at.
func insert(s *build.Steps, x, token *G.Node, at int) *G.Node {
	if x == nil {
		return nil
	}
	if at == 0 {
		return s.Do(op.Concat(1, token, x))
	}
	n := x.Shape()[1]
	return s.Do(op.Concat(1, s.Do(op.Pad(x, []int{0}, []int{at - n})), token, s.Do(op.Pad(x, []int{-at}, []int{0}))))
}

// step returns step at (batch, channels) of x (batch, length, channels).
func step(s *build.Steps, x *G.Node, at int) *G.Node {
	if x == nil {
		return nil
	}
	shape := x.Shape()
	x = s.Do(op.Pad(x, []int{-at}, []int{at + 1 - shape[1]}))
	return s.Do(op.Reshape(x, shape[0], shape[2]))
}
