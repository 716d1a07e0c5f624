package checkpoint

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/vision"
)

// shapes are the shapes of the tensors of a file, from which the configuration of a model follows. Each size in a configuration is that of a tensor, and
// the repetitions of a block have the shapes of the first. So a small file cannot ask for a large model.
type shapes struct {
	of    map[string][]int
	parts map[string]bool // the modules
	names []string        // of all tensors, sorted
	err   error           // the first
}

func newShapes(tensors map[string]*tensorfile.Tensor) *shapes {
	s := &shapes{of: map[string][]int{}, parts: map[string]bool{}}
	for name, t := range tensors {
		s.of[name] = t.Shape
		for i, c := range name {
			if c == '.' {
				s.parts[name[:i]] = true
			}
		}
	}
	s.names = slices.Sorted(maps.Keys(s.of))
	return s
}

// config returns the configuration of the model in the file.
func (s *shapes) config(h hidden) any {
	switch {
	case s.parts["layers.0.mixer"]:
		return s.vim(h)
	case s.parts["vmunet.layers_up"]:
		return s.unet(h)
	case s.parts["vit.stages"]:
		return s.segMamba(h)
	case s.parts["layers.0.blocks"]:
		return s.vmamba(h)
	}
	s.err = errors.New("its tensors are those of no model of package vision, want layers.0.blocks… of a VMamba, layers.0.mixer… of a Vim, " +
		"vmunet.layers_up… of a VM-UNet or vit.stages… of a SegMamba")
	return nil
}

// has reports whether there is a tensor.
func (s *shapes) has(name string) bool { return s.of[name] != nil }

// at returns the size of an axis of a tensor that has at least so many axes, or 1 after an error.
func (s *shapes) at(name string, axis int) int {
	shape, ok := s.of[name]
	switch {
	case ok && axis < len(shape) && shape[axis] > 0:
		return shape[axis]
	case s.err == nil && !ok:
		s.err = fmt.Errorf("%s is missing", name)
	case s.err == nil:
		s.err = fmt.Errorf("%s has shape %v, want at least %d axes that are not empty", name, shape, axis+1)
	}
	return 1
}

// count returns the number of modules prefix.0, prefix.1 and so on.
func (s *shapes) count(prefix string) (n int) {
	for s.parts[fmt.Sprintf("%s.%d", prefix, n)] {
		n++
	}
	return n
}

// blocks is count for modules that all have the tensors of the first.
func (s *shapes) blocks(prefix string) int {
	if s.err != nil { // a hostile file may have many more modules
		return 0
	}
	n := s.count(prefix)
	first := prefix + ".0."
	at, _ := slices.BinarySearch(s.names, first)
	for i := 1; i < n; i++ {
		for _, name := range s.names[at:] {
			if !strings.HasPrefix(name, first) {
				break
			}
			other := fmt.Sprintf("%s.%d.%s", prefix, i, name[len(first):])
			if shape, ok := s.of[other]; !ok || !slices.Equal(shape, s.of[name]) {
				s.err = fmt.Errorf("%s has shape %v, want %v like %s", other, shape, s.of[name], name)
				return n
			}
		}
	}
	return n
}

// ratio returns the number r, near saved, for which int(r·of) is part.
func ratio(saved float64, part, of int) float64 {
	if int(saved*float64(of)) == part {
		return saved
	}
	r := float64(part) / float64(of)
	if int(r*float64(of)) < part {
		r = math.Nextafter(r, math.Inf(1))
	}
	return r
}

func (s *shapes) vmamba(h hidden) vision.VMambaConfig {
	const first = "layers.0.blocks.0."
	c := vision.VMambaConfig{
		Classes: s.at("classifier.head.weight", 0), Channels: s.at("patch_embed.0.weight", 1),
		State: s.at(first+"op.A_logs", 1), Conv: s.at(first+"op.conv2d.weight", 2), ConvBias: s.has(first + "op.conv2d.bias"),
		NoMLP: !s.has(first + "mlp.fc1.weight"), OneConv: !s.has("patch_embed.5.weight"), Merging: s.has("layers.0.downsample.reduction.weight"),
		DropPath: h.DropPath,
	}
	usual := true // rank
	for i := range s.count("layers") {
		block := fmt.Sprintf("layers.%d.blocks.0.", i)
		dim := s.at(block+"norm.weight", 0)
		c.Depths, c.Dims = append(c.Depths, s.blocks(fmt.Sprintf("layers.%d.blocks", i))), append(c.Dims, dim)
		c.Rank = s.at(block+"op.dt_projs_weight", 2)
		usual = usual && c.Rank == (dim+15)/16
	}
	if usual {
		c.Rank = 0
	}
	dim, inner := s.at(first+"norm.weight", 0), s.at(first+"op.out_norm.weight", 0)
	c.Expand, c.Gate = ratio(h.Expand, inner, dim), s.at(first+"op.in_proj.weight", 0) == 2*inner
	if !c.NoMLP {
		c.MLPRatio = ratio(h.MLPRatio, s.at(first+"mlp.fc1.weight", 0), dim)
	}
	return c
}

func (s *shapes) vim(h hidden) vision.VimConfig {
	const mixer, proj = "layers.0.mixer.", "patch_embed.proj.weight"
	c := vision.VimConfig{
		Classes: s.at("head.weight", 0), Channels: s.at(proj, 1), Patch: s.at(proj, 2), Dim: s.at(proj, 0), Depth: s.blocks("layers"),
		State: s.at(mixer+"A_log", 1), Conv: s.at(mixer+"conv1d.weight", 2), Inner: s.at(mixer+"A_log", 0), Rank: s.at(mixer+"dt_proj.weight", 1),
		LayerNorm: s.has("norm_f.bias"), Token: h.Token, Sum: h.Sum, Eps: h.Eps, DropPath: h.DropPath,
	}
	if s.has(mixer + "gamma") {
		c.LayerScale = 1
	}
	cells := s.at("pos_embed", 1)
	switch {
	case s.has("cls_token"):
		cells--
	case h.Token < vision.MeanToken:
		c.Token = vision.MeanToken
	}
	c.Stride, c.Height, c.Width = cmp.Or(h.Stride, c.Patch), h.Height, h.Width
	if c.Height == 0 {
		side := int(math.Sqrt(float64(cells)))
		if c.Height = (side-1)*c.Stride + c.Patch; s.err == nil && side*side != cells {
			s.err = fmt.Errorf("pos_embed has %d cells, which make no square image, want VisionConfig.Model with its Height and Width", cells)
		}
		return c
	}
	width := cmp.Or(c.Width, c.Height)
	rows, columns := (c.Height-c.Patch)/c.Stride+1, (width-c.Patch)/c.Stride+1
	if s.err == nil && (rows < 1 || cells%rows != 0 || columns != cells/rows) { // before a model of that size is made
		s.err = fmt.Errorf("pos_embed has %d cells, want as many as the image of the metadata has, %d by %d with patches of %d at a distance of %d",
			cells, c.Height, width, c.Patch, c.Stride)
	}
	return c
}

func (s *shapes) unet(h hidden) vision.MambaUNetConfig {
	c := vision.MambaUNetConfig{
		Axes: 2, Classes: s.at("vmunet.final_conv.weight", 0), Channels: s.at("vmunet.patch_embed.proj.weight", 1),
		State: s.at("vmunet.layers.0.blocks.0.self_attention.A_logs", 1), DeepSupervision: s.parts["deep"], DropPath: h.DropPath,
	}
	for i := range s.count("vmunet.stem") {
		c.Stem = append(c.Stem, s.at(fmt.Sprintf("vmunet.stem.%d.conv1.conv.weight", i), 0))
		c.Channels = s.at("vmunet.stem.0.conv1.conv.weight", 1)
	}
	for i := range s.count("vmunet.layers") {
		stage := fmt.Sprintf("vmunet.layers.%d.blocks", i)
		c.Depths, c.Dims = append(c.Depths, s.blocks(stage)), append(c.Dims, s.at(stage+".0.ln_1.weight", 0))
	}
	for i := range s.count("vmunet.layers_up") {
		c.DecoderDepths = append(c.DecoderDepths, s.blocks(fmt.Sprintf("vmunet.layers_up.%d.blocks", i)))
	}
	return c
}

func (s *shapes) segMamba(hidden) vision.MambaUNetConfig {
	c := vision.MambaUNetConfig{
		Axes: 3, Classes: s.at("out.conv.conv.weight", 0), Channels: s.at("vit.downsample_layers.0.0.weight", 1),
		State: s.at("vit.stages.0.0.mamba.A_log", 1), DeepSupervision: s.parts["deep"],
	}
	for i := range s.count("vit.stages") {
		down := fmt.Sprintf("vit.downsample_layers.%d.%d.weight", i, min(i, 1))
		c.Depths, c.Dims = append(c.Depths, s.blocks(fmt.Sprintf("vit.stages.%d", i))), append(c.Dims, s.at(down, 0))
	}
	c.Hidden = s.at(fmt.Sprintf("encoder%d.layer.conv1.conv.weight", len(c.Dims)+1), 0)
	return c
}
