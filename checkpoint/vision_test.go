package checkpoint

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/golden"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/vision"
)

const folders = "../testdata/"

// released are files of weights as the projects save them, with the configuration that LoadVision finds, apart from what has defaults.
var released = map[string]any{
	"vmamba-v0-tiny/vssm.pth": vision.VMambaConfig{Classes: 17, Channels: 3, Depths: []int{1, 1, 2, 1}, Dims: []int{6, 8, 10, 14}, State: 16, Expand: 2, Conv: 3,
		Gate: true, ConvBias: true, NoMLP: true, OneConv: true, Merging: true},
	"vmamba-v2-tiny/vssm.pth": vision.VMambaConfig{Classes: 20, Channels: 3, Depths: []int{1, 1, 2, 1}, Dims: []int{8, 12, 16, 22}, State: 1, Expand: 1, Conv: 3,
		MLPRatio: 4},
	"vim-tiny/vim.pth": vision.VimConfig{Classes: 17, Channels: 3, Height: 64, Width: 64, Patch: 8, Stride: 8, Dim: 20, Depth: 3, State: 8, Conv: 4, Inner: 40,
		Rank: 2, Eps: 1e-5},
	"vmunet-tiny/best.pth": vision.MambaUNetConfig{Classes: 1, Axes: 2, Channels: 3, Dims: []int{8, 16, 32}, Depths: []int{1, 1, 1},
		DecoderDepths: []int{1, 1, 1}, State: 3},
	"vmunet-tiny-9/best.pth": vision.MambaUNetConfig{Classes: 9, Axes: 2, Channels: 3, Dims: []int{12, 24}, Depths: []int{2, 1}, DecoderDepths: []int{1, 2}, State: 4},
}

func configOf(m vision.Model) any {
	switch m := m.(type) {
	case *vision.VMamba:
		return m.Config()
	case *vision.Vim:
		return m.Config()
	case *vision.MambaUNet:
		return m.Config()
	}
	return nil
}

func loadVision(t *testing.T, path string, cfg VisionConfig, opts ...nn.Option) vision.Model {
	t.Helper()
	m, err := LoadVision(path, cfg, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// logits returns the logits of an image (batch, height, width, channels) in float64.
func logits(t *testing.T, m vision.Model, image *tensor.Dense) []float64 {
	t.Helper()
	g := G.NewGraph()
	y, err := m.Apply(G.NodeFromAny(g, image, G.WithName("image")))
	if err != nil {
		t.Fatal(err)
	}
	var value G.Value
	G.Read(y, &value)
	vm := G.NewTapeMachine(g)
	defer vm.Close()
	if err := vm.RunAll(); err != nil {
		t.Fatal(err)
	}
	return golden.Elements(value.Data())
}

// LoadVision finds the configuration of each kind of model, and the model has the logits of the reference. SaveVision writes a model that LoadVision loads
// with the same configuration and weights.
func TestLoadVision(t *testing.T) {
	for _, path := range slices.Sorted(maps.Keys(released)) {
		t.Run(filepath.Dir(path), func(t *testing.T) {
			m := loadVision(t, folders+path, VisionConfig{}, nn.WithDtype(tensor.Float64))
			if got, want := fmt.Sprintf("%+v", configOf(m)), fmt.Sprintf("%+v", released[path]); got != want {
				t.Errorf("the configuration is %s, want %s", got, want)
			}
			file, err := golden.Read(folders + filepath.Dir(path) + "/expected_vision.safetensors")
			if err != nil {
				t.Fatal(err)
			}
			image := file.Tensors["image0"].Transpose(0, 2, 3, 1)
			x := tensor.New(tensor.WithShape(image.Shape...), tensor.WithBacking(golden.Elements(image.Data)))
			want := file.Tensors["logits0"]
			if len(want.Shape) == 4 {
				want = want.Transpose(0, 2, 3, 1)
			}
			tol := 1e-9
			if len(want.Shape) == 4 { // maps are stored in float32
				tol = 2e-7
			}
			if err := golden.Near(logits(t, m, x), golden.Elements(want.Data), tol); err != nil {
				t.Error(err)
			}

			dir := t.TempDir()
			if err := SaveVision(dir, m); err != nil {
				t.Fatal(err)
			}
			again := loadVision(t, dir, VisionConfig{}, nn.WithDtype(tensor.Float64), nn.WithName("again"))
			sameWeights(t, again.Params(), m.Params())
			if got, want := fmt.Sprintf("%+v", configOf(again)), fmt.Sprintf("%+v", configOf(m)); got != want {
				t.Errorf("after SaveVision the configuration is %s, want %s", got, want)
			}
			byName := loadVision(t, dir, VisionConfig{Model: configOf(m), DropPath: 0.25})
			if !strings.Contains(fmt.Sprintf("%+v", configOf(byName)), "DropPath:0.25") {
				t.Errorf("DropPath was ignored: %+v", configOf(byName))
			}

			// Another number of classes: a new head, and all other weights from the file.
			tuned := loadVision(t, folders+path, VisionConfig{Classes: 5}, nn.WithDtype(tensor.Float64))
			changed := 0
			for i, p := range tuned.Params() {
				switch old := m.Params()[i]; {
				case p.Value.Shape().Eq(old.Value.Shape()):
					sameWeights(t, layer.Params{p}, layer.Params{old})
				case !strings.Contains(p.Name, "head") && !strings.Contains(p.Name, "final_conv"):
					t.Errorf("%s changed from %v to %v", p.Name, old.Value.Shape(), p.Value.Shape())
				default:
					changed++
				}
			}
			if changed != 2 {
				t.Errorf("%d weights have another shape, want those of the head", changed)
			}
		})
	}
}

// What no shape shows survives a save.
func TestSaveVisionHidden(t *testing.T) {
	for _, m := range []vision.Model{
		vision.NewVim(vision.VimConfig{Classes: 3, Height: 24, Width: 16, Patch: 8, Stride: 4, Dim: 6, Depth: 2, State: 2, Token: vision.FirstToken, Sum: true,
			Eps: 1e-3, DropPath: 0.1, LayerNorm: true}),
		vision.NewVim(vision.VimConfig{Classes: 3, Height: 8, Patch: 8, Dim: 6, Depth: 1, Token: vision.LastToken}),
		vision.NewVMamba(vision.VMambaConfig{Classes: 3, Depths: []int{1, 2}, Dims: []int{10, 14}, Expand: 1.35, MLPRatio: 0.77, Rank: 3, DropPath: 0.2}),
		vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Dims: []int{8, 12}, Depths: []int{1, 1}, DropPath: 0.3, DeepSupervision: true}),
		vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Channels: 1, Stem: []int{3, 5}, Dims: []int{6}, Depths: []int{1, 1}, State: 2}),
		vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Axes: 3, Dims: []int{2, 4}, Depths: []int{1, 2}, State: 3}),
	} {
		dir := t.TempDir()
		if err := SaveVision(dir, m); err != nil {
			t.Fatal(err)
		}
		again := loadVision(t, dir, VisionConfig{})
		sameWeights(t, again.Params(), m.Params())
		if got, want := fmt.Sprintf("%+v", configOf(again)), fmt.Sprintf("%+v", configOf(m)); got != want {
			t.Errorf("the configuration is %s, want %s", got, want)
		}
	}
}

// The position embedding of a Vim for another size of images is interpolated, and its class token keeps its row.
func TestLoadVisionResizes(t *testing.T) {
	const file, dim = folders + "vim-tiny/vim.pth", 20
	position := func(m vision.Model) [][]float64 {
		for _, p := range m.Params() {
			if strings.HasSuffix(p.Name, "pos_embed") {
				return slices.Collect(slices.Chunk(p.Value.Float64s(), dim))
			}
		}
		t.Fatal("no position embedding")
		return nil
	}
	old := position(loadVision(t, file, VisionConfig{}, nn.WithDtype(tensor.Float64)))
	at := func(y, x int) []float64 { // a cell of 8·8, of which the token is number 32
		i := min(max(y, 0), 7)*8 + min(max(x, 0), 7)
		if i >= 32 {
			i++
		}
		return old[i]
	}
	cubic := func(x float64) float64 { // Keys's kernel
		const a = -0.75
		if x = math.Abs(x); x <= 1 {
			return ((a+2)*x-(a+3))*x*x + 1
		} else if x < 2 {
			return ((a*x-5*a)*x+8*a)*x - 4*a
		}
		return 0
	}
	for _, size := range [][2]int{{64, 64}, {96, 72}, {40, 0}} {
		m := loadVision(t, file, VisionConfig{Height: size[0], Width: size[1], Classes: 3}, nn.WithDtype(tensor.Float64))
		c := m.(*vision.Vim).Config()
		rows, columns := c.Height/8, c.Width/8
		if c.Height != size[0] || size[1] != 0 && c.Width != size[1] || c.Classes != 3 {
			t.Errorf("%v: the model is for %d by %d and %d classes", size, c.Height, c.Width, c.Classes)
		}
		got := position(m)
		token := rows * columns / 2
		if !slices.Equal(got[token], old[32]) || len(got) != rows*columns+1 {
			t.Fatalf("%v: %d rows, want %d with that of the class token at %d", size, len(got), rows*columns+1, token)
		}
		got = slices.Delete(got, token, token+1)
		for i, row := range got {
			y, x := (float64(i/columns)+0.5)*8/float64(rows)-0.5, (float64(i%columns)+0.5)*8/float64(columns)-0.5
			for d, v := range row {
				want := 0.
				for j := int(math.Floor(y)) - 1; j < int(math.Floor(y))+3; j++ {
					for k := int(math.Floor(x)) - 1; k < int(math.Floor(x))+3; k++ {
						want += cubic(y-float64(j)) * cubic(x-float64(k)) * at(j, k)[d]
					}
				}
				if math.Abs(v-want) > 1e-12 {
					t.Fatalf("%v: cell %d, channel %d is %v, want %v", size, i, d, v, want)
				}
			}
		}
	}
}

// rewritten copies a file of weights with other names and shapes.
func rewritten(t *testing.T, from string, change func(name string, shape []int) (string, []int)) string {
	t.Helper()
	r, err := OpenFile(from, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []tensorfile.Array
	values := r.values(t)
	for _, name := range r.Names() {
		to, shape := change(name, r.tensors[name].Shape)
		if to != "" {
			all = append(all, tensorfile.Array{Name: to, Shape: shape, Data: values[name]})
		}
	}
	path := filepath.Join(t.TempDir(), "w.safetensors")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := tensorfile.Write(f, nil, all); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// The older names of VMamba's weights, its linear layers as convolutions of one cell, and a VM-UNet without its prefix.
func TestOlderVisionFiles(t *testing.T) {
	v0, v2, unet := folders+"vmamba-v0-tiny/vssm.pth", folders+"vmamba-v2-tiny/vssm.pth", folders+"vmunet-tiny/best.pth"
	older := strings.NewReplacer("patch_embed.0.", "patch_embed.proj.", "patch_embed.2.", "patch_embed.norm.", ".op.", ".self_attention.",
		"classifier.norm.", "norm.", "classifier.head.", "head.")
	for _, c := range []struct{ from, path string }{
		{v0, rewritten(t, v0, func(name string, shape []int) (string, []int) {
			if strings.Contains(name, ".blocks.") {
				name = strings.Replace(name, ".norm.", ".ln_1.", 1)
			}
			return older.Replace(name), shape
		})},
		{v2, rewritten(t, v2, func(name string, shape []int) (string, []int) {
			if strings.HasSuffix(name, "_proj.weight") || strings.Contains(name, ".fc") && len(shape) == 2 {
				shape = append(slices.Clone(shape), 1, 1)
			}
			return name, shape
		})},
		{unet, rewritten(t, unet, func(name string, shape []int) (string, []int) { return strings.TrimPrefix(name, "vmunet."), shape })},
	} {
		sameWeights(t, loadVision(t, c.path, VisionConfig{}).Params(), loadVision(t, c.from, VisionConfig{}).Params())
	}
}

// A VM-UNet starts from a VMamba of the first form: its encoder, and the blocks of its decoder from the encoder's stage of the same width.
func TestStartMambaUNet(t *testing.T) {
	from := vision.NewVMamba(vision.VMambaConfig{Classes: 4, Depths: []int{2, 3}, Dims: []int{8, 16}, State: 3, Expand: 2, Gate: true, ConvBias: true, NoMLP: true,
		OneConv: true, Merging: true}, nn.WithName("from"))
	dir := t.TempDir()
	if err := SaveVision(dir, from); err != nil {
		t.Fatal(err)
	}
	has := map[string]*layer.Param{}
	for _, p := range from.Params() {
		has[strings.TrimPrefix(p.Name, "from.")] = p
	}
	cfg := vision.MambaUNetConfig{Classes: 3, Dims: []int{8, 16}, Depths: []int{2, 2}, DecoderDepths: []int{1, 3}, State: 3}
	drawn := vision.NewMambaUNet(cfg, nn.WithSeed(3))
	filled := 0
	for i, p := range loadVision(t, dir, VisionConfig{Model: cfg, Classes: 3}, nn.WithSeed(3)).Params() {
		name := strings.NewReplacer("vmunet.", "", "patch_embed.proj", "patch_embed.0", "patch_embed.norm", "patch_embed.2", ".ln_1.", ".norm.",
			".self_attention.", ".op.").Replace(p.Name)
		decoder := strings.HasPrefix(name, "layers_up.")
		name = strings.NewReplacer("layers_up.0.blocks", "layers.1.blocks", "layers_up.1.blocks", "layers.0.blocks").Replace(name)
		if w := has[name]; w != nil {
			sameWeights(t, layer.Params{p}, layer.Params{w})
			filled++
		} else {
			sameWeights(t, layer.Params{p}, drawn.Params()[i:i+1])
			if !decoder && !strings.Contains(name, "final_") {
				t.Errorf("%s of the encoder has its initial value", p.Name)
			}
		}
	}
	// 4 of the patches, 4·13 of the encoder's blocks and 3 of its merging, 1·13 and 2·13 of the decoder's, whose third has none.
	if want := 4 + 4*13 + 3 + 3*13; filled != want {
		t.Errorf("%d weights were filled, want %d", filled, want)
	}
}

// A released VM-UNet gets heads for deep supervision with initial values.
func TestLoadVisionDeep(t *testing.T) {
	plain := loadVision(t, folders+"vmunet-tiny/best.pth", VisionConfig{})
	cfg := plain.(*vision.MambaUNet).Config()
	cfg.DeepSupervision = true
	deep := loadVision(t, folders+"vmunet-tiny/best.pth", VisionConfig{Model: cfg}).Params()
	n := len(plain.Params())
	sameWeights(t, deep[:n], plain.Params())
	if len(deep) != n+4 || !slices.ContainsFunc(deep[n].Value.Float32s(), func(v float32) bool { return v != 0 }) {
		t.Errorf("%d weights after those of the file, want 4 with initial values", len(deep)-n)
	}
}

func TestLoadVisionErrors(t *testing.T) {
	v0, vim := folders+"vmamba-v0-tiny/vssm.pth", folders+"vim-tiny/vim.pth"
	without := func(path, drop string) string {
		return rewritten(t, path, func(name string, shape []int) (string, []int) {
			if name == drop {
				name = ""
			}
			return name, shape
		})
	}
	large := t.TempDir() // a small file with the metadata of a large image
	small := vision.NewVim(vision.VimConfig{Classes: 3, Height: 16, Patch: 8, Dim: 6, Depth: 1, State: 2})
	if err := save(large, nil, ownNames(small), small.Params(), map[string]string{hiddenKey: `{"Height":40000,"Width":40000,"Stride":1}`}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		cfg  VisionConfig
		want string
	}{
		{large, VisionConfig{Classes: 5}, "pos_embed has 4 cells, want as many as the image of the metadata has, 40000 by 40000 with patches of 8 at a distance of 1"},
		{"none.pth", VisionConfig{}, "none.pth"},
		{t.TempDir(), VisionConfig{}, "no weights"},
		{"testdata/released.pth", VisionConfig{}, "its tensors are those of no model of package vision"},
		{"../testdata/original-mamba-tiny/pytorch_model.bin", VisionConfig{}, "its tensors are those of no model of package vision"},
		{v0, VisionConfig{From: "ema"}, "want a dictionary of tensors named ema"},
		{v0, VisionConfig{Model: vision.VMambaTiny()}, "tensors do not fit"},
		{v0, VisionConfig{Model: vision.VimTiny()}, "tensors do not fit"},
		{v0, VisionConfig{Model: 3}, "Model is a int, want a vision.VMambaConfig"},
		{v0, VisionConfig{Model: vision.MambaUNet3DTiny(2)}, "VisionConfig.Model has Axes 3 and Attention false, want Axes 2 without Attention"},
		{v0, VisionConfig{Height: 32}, "Height is 32 and Width 0, want 0: a *vision.VMamba takes images of any size"},
		{vim, VisionConfig{Width: 64}, "Width is 64 and Height 0, want both, or Height alone"},
		{vim, VisionConfig{Height: 4}, "want at least the size of a patch"},
		{v0, VisionConfig{Classes: -1}, "Classes is -1"},
		{v0, VisionConfig{DropPath: 2}, "DropPath is 2"},
		{without(v0, "layers.2.blocks.1.op.Ds"), VisionConfig{}, "layers.2.blocks.1.op.Ds has shape [], want [80] like layers.2.blocks.0.op.Ds"},
		{without(v0, "layers.0.blocks.0.op.Ds"), VisionConfig{}, "missing: layers.0.blocks.0.op.Ds (48)"},
		{without(v0, "classifier.head.weight"), VisionConfig{}, "classifier.head.weight is missing"},
		{without(vim, "pos_embed"), VisionConfig{}, "pos_embed is missing"},
		{without(vim, "cls_token"), VisionConfig{}, "pos_embed has 65 cells, which make no square image"},
	} {
		m, err := LoadVision(c.path, c.cfg)
		if err == nil || !strings.HasPrefix(err.Error(), "checkpoint: ") || !strings.Contains(err.Error(), c.want) || m != nil {
			t.Errorf("%s, %+v: error %v, want %s", c.path, c.cfg, err, c.want)
		}
	}
	var none *vision.VMamba
	for _, m := range []vision.Model{nil, none, vision.NewVMamba(vision.VMambaConfig{}), vision.NewVMamba(vision.VMambaConfig{Classes: 1, Dims: []int{2}, Depths: []int{1}, Orders: lines}),
		vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 1, Dims: []int{4}, Depths: []int{1}, Attention: true})} {
		if err := SaveVision(t.TempDir(), m); err == nil {
			t.Errorf("a %T was saved without an error", m)
		}
	}
}

// lines are the directions of VMamba.
func lines(height, width int) []op.Order { return op.VMambaOrders(height, width) }
