package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/vision"
)

// VisionConfig says which model LoadVision makes of a file. The zero VisionConfig stands for the model in the file.
type VisionConfig struct {
	// From is the name of the dictionary with the weights in a file of PyTorch: see OpenFile.
	From string
	// Model is the configuration of the model in the file: a vision.VMambaConfig, vision.VimConfig or vision.MambaUNetConfig, such as
	// vision.VMambaTiny(). With nil, the names and shapes of the tensors say it, and for what SaveVision wrote also the file's metadata. No tensor shows
	// DropPath, Orders, and of a Vim the fields Stride, Sum, Eps, a Height that is not Width, and a Token other than MiddleToken or MeanToken.
	//
	// A vision.MambaUNetConfig for images with the file of a VMamba of the first form is the start of VM-UNet's training. The encoder gets the weights of the
	// VMamba. Those of its stage i also fill the blocks of stage n-1-i of the decoder. All other weights have their initial values.
	Model any
	// Classes makes, if it is not 0 and not the number of the file, a head of so many classes with initial weights, for fine-tuning.
	Classes int
	// Height and Width are the size of the images of a Vim; 0 for that of the file. For another size, the position embedding is interpolated, bicubic as
	// Vim's. The class token keeps its row. A Width of 0 stands for Height.
	Height, Width int
	// DropPath, if it is not 0, is the DropPath of the model, for fine-tuning.
	DropPath float64
}

// LoadVision returns a model of images: a *vision.VMamba, *vision.Vim or *vision.MambaUNet. The path is a file that OpenFile opens, or a directory that
// SaveVision wrote. It knows the names of VMamba's older files. The options are those of the model's constructor.
//
// Errors: those of OpenFile; names that are of none of these models; tensors that are missing, superfluous or of another shape (one error lists all of
// them); a weight that is not a number; a Vim whose position embedding is of no square image, without a Model.
func LoadVision(path string, cfg VisionConfig, opts ...nn.Option) (vision.Model, error) {
	r, err := OpenFile(path, cfg.From)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	m, err := r.vision(cfg, opts)
	if err != nil {
		return nil, r.fail(err)
	}
	return m, nil
}

// SaveVision writes a model of images to a directory. LoadVision loads it. The weights are in model.safetensors under the names of the published files, and
// what no tensor shows is in its metadata. The file is replaced as a whole, as by SaveParams.
//
// Errors: those of SaveParams; a model with Orders, since a file cannot hold a function. SaveParams saves the weights of such a model.
func SaveVision(dir string, m vision.Model) error {
	h, err := hiddenOf(m)
	if err == nil {
		err = m.Err()
	}
	var text []byte
	if err == nil {
		text, err = json.Marshal(h)
	}
	if err == nil {
		err = save(dir, nil, ownNames(m), m.Params(), map[string]string{hiddenKey: string(text)})
	}
	if err != nil {
		return fmt.Errorf("checkpoint: save to %s: %w", dir, err)
	}
	return nil
}

// hidden is what no tensor of a model shows.
type hidden struct {
	Expand, MLPRatio, DropPath, Eps float64
	Height, Width, Stride           int
	Token                           vision.Token
	Sum                             bool
}

// hiddenKey is the key of hidden in the metadata.
const hiddenKey = "vision"

func hiddenOf(m vision.Model) (h hidden, err error) {
	orders := false
	switch m := m.(type) {
	case *vision.VMamba:
		if m != nil {
			c := m.Config()
			h, orders = hidden{Expand: c.Expand, MLPRatio: c.MLPRatio, DropPath: c.DropPath}, c.Orders != nil
		}
	case *vision.Vim:
		if m != nil {
			c := m.Config()
			h = hidden{DropPath: c.DropPath, Eps: c.Eps, Height: c.Height, Width: c.Width, Stride: c.Stride, Token: c.Token, Sum: c.Sum}
		}
	case *vision.MambaUNet:
		if m != nil {
			c := m.Config()
			if h, orders = (hidden{DropPath: c.DropPath}), c.Orders != nil; c.Attention {
				return h, errors.New("the model has Attention, which LoadVision does not read: save its weights with SaveParams")
			}
		}
	default:
		return h, fmt.Errorf("the model is a %T, want one of package vision", m)
	}
	if orders {
		return h, errors.New("the model has Orders, a function, which a file cannot hold: save its weights with SaveParams")
	}
	return h, nil
}

// vision returns the model in the file.
func (r *Reader) vision(cfg VisionConfig, opts []nn.Option) (vision.Model, error) {
	var h hidden
	if text := r.metadata[hiddenKey]; text != "" {
		if err := json.Unmarshal([]byte(text), &h); err != nil {
			return nil, fmt.Errorf("the metadata %s: %w", hiddenKey, err)
		}
	}
	r.rename()
	s := newShapes(r.tensors)
	if cfg.Model == nil {
		cfg.Model = s.config(h)
		if s.err != nil {
			return nil, s.err
		}
	}
	l := &visionLoad{r, cfg, opts, map[string]bool{}}
	var m vision.Model
	var err error
	switch c := cfg.Model.(type) {
	case vision.VMambaConfig:
		l.change(&c.Classes, &c.DropPath, "classifier.head")
		m = vision.NewVMamba(c, l.options()...)
		err = l.fill(m, l.same)
	case vision.VimConfig:
		m, err = l.vim(c)
	case vision.MambaUNetConfig:
		if s.parts["layers.0.blocks.0.op"] {
			m, err = l.start(c)
			break
		}
		head := "vmunet.final_conv"
		if c.Axes == 3 {
			head = "out.conv.conv"
		}
		l.change(&c.Classes, &c.DropPath, head, "deep")
		if c.DeepSupervision && !s.parts["deep"] { // heads for training alone, which released files do not have
			l.own["deep"] = true
		}
		m = vision.NewMambaUNet(c, l.options()...)
		err = l.fill(m, l.same)
	default:
		err = fmt.Errorf("VisionConfig.Model is a %T, want a vision.VMambaConfig, vision.VimConfig or vision.MambaUNetConfig", cfg.Model)
	}
	if _, ok := cfg.Model.(vision.VimConfig); err == nil && !ok && cfg.Height|cfg.Width != 0 {
		err = fmt.Errorf("VisionConfig.Height is %d and Width %d, want 0: a %T takes images of any size", cfg.Height, cfg.Width, m)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// visionLoad loads one model.
type visionLoad struct {
	*Reader
	cfg  VisionConfig
	opts []nn.Option
	own  map[string]bool // the modules that keep their initial values
}

// change changes the configuration of the file to that of the model, and notes the modules whose shape then changes.
func (l *visionLoad) change(classes *int, dropPath *float64, heads ...string) {
	if l.cfg.DropPath != 0 {
		*dropPath = l.cfg.DropPath
	}
	if n := l.cfg.Classes; n != 0 && n != *classes {
		*classes = n
		for _, head := range heads {
			l.own[head] = true
		}
	}
}

// keeps reports whether a weight keeps its initial value.
func (l *visionLoad) keeps(name string) bool {
	for part := range l.own {
		if name == part || strings.HasPrefix(name, part+".") {
			return true
		}
	}
	return false
}

// same names the tensor of a weight, "" for none.
func (l *visionLoad) same(name string) string {
	if l.keeps(name) {
		return ""
	}
	return name
}

// options are those of the model: with zeros if all weights come from the file.
func (l *visionLoad) options() []nn.Option {
	if len(l.own) == 0 {
		return append(slices.Clone(l.opts), layer.WithZeros())
	}
	return l.opts
}

// fill fills the weights of a model with the tensors that from names. Other tensors are superfluous unless they are of modules that keep their values.
func (l *visionLoad) fill(m vision.Model, from func(name string) string) error {
	if err := m.Err(); err != nil {
		return err
	}
	return l.fillSome(m, from, func(name string) bool { return !l.keeps(name) })
}

func (l *visionLoad) fillSome(m vision.Model, from func(name string) string, superfluous func(name string) bool) error {
	var wants []tensorfile.Want
	var jobs []tensorfile.Job
	params := m.Params()
	for i, name := range ownNames(m) {
		if name = from(name); name == "" {
			continue
		}
		data, err := elements(params[i])
		if err != nil {
			return err
		}
		shape, t := params[i].Value.Shape(), l.tensors[name]
		// VMamba's linear layers over channel-first maps were convolutions of one cell at first.
		if t != nil && len(t.Shape) == 4 && len(shape) == 2 && slices.Equal(t.Shape, []int{shape[0], shape[1], 1, 1}) {
			t.Shape = shape
		}
		wants, jobs = append(wants, tensorfile.Want{Name: name, Shape: shape}), append(jobs, tensorfile.Job{From: t, To: data})
	}
	if err := tensorfile.Match(l.tensors, wants, superfluous); err != nil {
		return err
	}
	if err := tensorfile.Fill(jobs); err != nil {
		return err
	}
	params.ValuesChanged()
	return nil
}

// start returns a MambaUNet with the weights of a VMamba of the first form.
func (l *visionLoad) start(c vision.MambaUNetConfig) (vision.Model, error) {
	if c.Axes == 3 || c.Attention {
		return nil, fmt.Errorf("the file has the weights of a VMamba, and VisionConfig.Model has Axes %d and Attention %t, want Axes 2 without Attention", c.Axes, c.Attention)
	}
	if l.cfg.Classes != 0 {
		c.Classes = l.cfg.Classes
	}
	if l.cfg.DropPath != 0 {
		c.DropPath = l.cfg.DropPath
	}
	m := vision.NewMambaUNet(c, l.opts...)
	if err := m.Err(); err != nil {
		return nil, err
	}
	stages := len(m.Config().Depths)
	return m, l.fillSome(m, func(name string) string {
		name, ok := strings.CutPrefix(name, "vmunet.")
		decoder := strings.HasPrefix(name, "layers_up.")
		stem := strings.HasPrefix(name, "stem") || len(c.Stem) > 0 && strings.HasPrefix(name, "patch_embed.")
		if !ok || stem || strings.HasPrefix(name, "final_") || decoder && !strings.Contains(name, ".blocks.") {
			return ""
		}
		for i := range stages {
			if rest, ok := strings.CutPrefix(name, fmt.Sprintf("layers_up.%d.", i)); ok {
				name = fmt.Sprintf("layers.%d.%s", stages-1-i, rest)
				break
			}
		}
		name = vmambaName(name)
		if decoder && l.tensors[name] == nil {
			return "" // the stage of the decoder has more blocks
		}
		return name
	}, func(string) bool { return false })
}

// vim returns a Vim, whose position embedding may be of another size than that of the file.
func (l *visionLoad) vim(c vision.VimConfig) (vision.Model, error) {
	if l.cfg.Height == 0 && l.cfg.Width != 0 {
		return nil, fmt.Errorf("VisionConfig.Width is %d and Height 0, want both, or Height alone", l.cfg.Width)
	}
	const position = "pos_embed"
	small := c
	small.Depth = 1 // all that is read of it is its position embedding
	file := vision.NewVim(small, layer.WithZeros(), layer.WithDtype(tensor.Float64))
	if l.cfg.Height != 0 {
		if c.Height, c.Width = l.cfg.Height, l.cfg.Width; file.Err() != nil {
			return nil, file.Err()
		}
		l.own[position] = true
	}
	l.change(&c.Classes, &c.DropPath, "head")
	m := vision.NewVim(c, l.options()...)
	if err := l.fill(m, l.same); err != nil || l.cfg.Height == 0 {
		return m, err
	}
	err := l.fillSome(file, func(name string) string {
		if name == position {
			return name
		}
		return ""
	}, func(string) bool { return false })
	if err != nil {
		return nil, err
	}
	embedding := func(m *vision.Vim) *layer.Param { return m.Params()[slices.Index(ownNames(m), position)] }
	return m, resize(embedding(file).Value, file.Config(), embedding(m), m.Config())
}

// resize writes the position embedding of images of one size, interpolated, to that of another size.
//
// Vim's own script takes the first row for that of the class token, wherever the token is, and shifts the rows before a token in the middle by one. Here
// the token keeps its row, and a cell interpolates between the cells around it.
func resize(from *tensor.Dense, old vision.VimConfig, to *layer.Param, c vision.VimConfig) error {
	grid := func(c vision.VimConfig) (rows, columns, token int) {
		rows, columns, token = (c.Height-c.Patch)/c.Stride+1, (c.Width-c.Patch)/c.Stride+1, -1
		switch c.Token {
		case vision.MiddleToken:
			token = rows * columns / 2
		case vision.FirstToken:
			token = 0
		}
		return rows, columns, token
	}
	cells, row := from.Float64s(), []float64(nil) // row is that of the token
	rows, columns, token := grid(old)
	if token >= 0 {
		at := token * c.Dim
		row = slices.Clone(cells[at : at+c.Dim])
		cells = slices.Delete(cells, at, at+c.Dim)
	}
	toRows, toColumns, token := grid(c)
	cells, err := bicubic(cells, rows, columns, c.Dim, toRows, toColumns)
	if err != nil {
		return err
	}
	if token >= 0 {
		cells = slices.Insert(cells, token*c.Dim, row...)
	}
	switch data := to.Value.Data().(type) {
	case []float64:
		copy(data, cells)
	case []float32:
		for i, v := range cells {
			data[i] = float32(v)
		}
	}
	layer.Params{to}.ValuesChanged()
	return nil
}

// bicubic interpolates cells (rows, columns, channels) to another number of rows and columns.
func bicubic(cells []float64, rows, columns, channels, toRows, toColumns int) ([]float64, error) {
	g := G.NewGraph()
	x := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, rows, columns, channels), tensor.WithBacking(cells)), G.WithName("cells"))
	y, err := op.Interpolate(x, op.InterpolateConfig{Size: []int{toRows, toColumns}, Mode: op.InterpolateCubic})
	if err != nil {
		return nil, err
	}
	vm := G.NewTapeMachine(g)
	err = errors.Join(vm.RunAll(), vm.Close())
	if err != nil {
		return nil, err
	}
	return y.Value().Data().([]float64), nil
}

// vmambaName returns the present name of a weight of a VMamba in its older files, and in VM-UNet.
func vmambaName(name string) string {
	for _, pair := range [][2]string{{"patch_embed.proj.", "patch_embed.0."}, {"patch_embed.norm.", "patch_embed.2."},
		{"norm.", "classifier.norm."}, {"head.", "classifier.head."}} {
		if rest, ok := strings.CutPrefix(name, pair[0]); ok {
			return pair[1] + rest
		}
	}
	return strings.NewReplacer(".ln_1.", ".norm.", ".self_attention.", ".op.").Replace(name)
}

// rename gives the tensors of older and bare files the names of package vision's weights.
func (r *Reader) rename() {
	has := func(prefix string) bool {
		for name := range r.tensors {
			if strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return false
	}
	name := func(name string) string { return name }
	switch {
	case has("layers_up."): // a VM-UNet without its wrapper
		name = func(name string) string { return "vmunet." + name }
	case has("layers.0.blocks."):
		name = vmambaName
	}
	renamed := make(map[string]*tensorfile.Tensor, len(r.tensors))
	for old, t := range r.tensors {
		renamed[name(old)] = t
	}
	if len(renamed) == len(r.tensors) { // else two have one name, and one of them would be lost: they are then superfluous
		r.tensors = renamed
	}
}
