package vision_test

import (
	"encoding/json"
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

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/golden"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/vision"
)

// goldenFolders are the folders of testdata with numbers of the references of vision models.
var goldenFolders = []string{"ss2d", "vision-blocks", "vmamba-v0-tiny", "vmamba-v2-tiny", "vim-tiny", "vmunet-tiny", "vmunet-tiny-9"}

// TestGoldenVision compares models, SS2D, mixers and blocks with numbers from the references of VMamba, Vim, VM-UNet, SegMamba, U-Mamba and MambaVision, in
// float64 and float32: results, losses, maps and all gradients. With MAMBA_GOLDEN set, it also takes the folders of that directory that have one of
// golden.VisionFiles.
func TestGoldenVision(t *testing.T) {
	for _, dir := range goldenDirs(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			goldenFolder(t, dir, precision{"float64", tensor.Float64, 1e-9, 1e-9, 1e-12, 1e-6, nil})
			goldenFolder(t, dir, precision{"float32", tensor.Float32, 1e-5, 2e-4, 1e-5, 2e-4, nil})
		})
	}
}

// TestGoldenVisionOnDevice is the same on a GPU, in float32.
func TestGoldenVisionOnDevice(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	for _, dir := range goldenDirs(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			goldenFolder(t, dir, precision{d.Name(), tensor.Float32, 1e-5, 2e-4, 1e-5, 2e-4, []layer.Option{layer.OnDevice(d)}})
		})
	}
}

// goldenDirs are the folders that MAMBA_GOLDEN names, and those of testdata.
func goldenDirs(t *testing.T) []string {
	given, err := golden.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if given.Dir != "" && len(given.Vision) == 0 {
		fmt.Printf("no vision folder: %v\n", given)
	}
	dirs := given.Vision
	for _, name := range goldenFolders {
		dirs = append(dirs, filepath.Join("../testdata", name))
	}
	return dirs
}

// precision is a type of numbers and a place, with the tolerances of results and gradients of operators and blocks, of models' logits and losses, and of their
// gradients, which are stored in float32. They are shares of the largest magnitude of a tensor.
type precision struct {
	name                                 string
	dt                                   tensor.Dtype
	results, gradients, logits, ofModels float64
	opts                                 []layer.Option
}

func goldenFolder(t *testing.T, dir string, p precision) {
	found := 0
	for _, name := range golden.VisionFiles {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		file, err := golden.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		found++
		c := &comparison{t: t, precision: p}
		if name == golden.VisionFiles[0] {
			c.model(dir, file)
		} else {
			c.cases(file)
		}
		fmt.Printf("%s/%s, %s: %s\n", filepath.Base(dir), name, p.name, c)
	}
	if found == 0 {
		t.Fatalf("%s has none of %v", dir, golden.VisionFiles)
	}
}

// comparison compares tensors and remembers the largest distances.
type comparison struct {
	t *testing.T
	precision
	results, gradients int
	worst              [2]float64
}

func (c *comparison) String() string {
	return fmt.Sprintf("%d results within %.1e, %d gradients within %.1e", c.results, c.worst[0], c.gradients, c.worst[1])
}

// near compares a result, or a gradient, whose largest magnitude is at least scale.
func (c *comparison) near(what string, got []float64, want golden.Tensor, tol, scale float64, gradient bool) {
	c.t.Helper()
	if len(got) != len(want.Data) {
		c.t.Errorf("%s, %s: %d elements, want %v", c.name, what, len(got), want.Shape)
		return
	}
	largest := 0.0
	for i, x := range want.Data {
		scale, largest = max(scale, math.Abs(x)), max(largest, math.Abs(got[i]-x))
		if math.IsNaN(got[i]) {
			largest = math.NaN()
			break
		}
	}
	d := largest / scale
	if largest == 0 {
		d = 0
	}
	if !(d <= tol) {
		c.t.Errorf("%s, %s: off by %.2g of the largest magnitude, %.2g, want at most %g", c.name, what, d, scale, tol)
	}
	if gradient {
		c.gradients++
		c.worst[1] = max(c.worst[1], d)
	} else {
		c.results++
		c.worst[0] = max(c.worst[0], d)
	}
}

func (c *comparison) leaf(g *G.ExprGraph, name string, x golden.Tensor) *G.Node {
	return G.NodeFromAny(g, c.dense(x), G.WithName(name))
}

func (c *comparison) dense(x golden.Tensor) *tensor.Dense {
	shape := tensor.WithShape(x.Shape...)
	if c.dt == tensor.Float64 {
		return tensor.New(shape, tensor.WithBacking(slices.Clone(x.Data)))
	}
	v := make([]float32, len(x.Data))
	for i := range v {
		v[i] = float32(x.Data[i])
	}
	return tensor.New(shape, tensor.WithBacking(v))
}

// run runs a graph that has the given gradients, and returns the values of nodes.
func (c *comparison) run(g *G.ExprGraph, nodes ...*G.Node) [][]float64 {
	c.t.Helper()
	values := make([]G.Value, len(nodes))
	for i, n := range nodes {
		G.Read(n, &values[i])
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		c.t.Fatal(err)
	}
	all := make([][]float64, len(nodes))
	for i, v := range values {
		all[i] = golden.Elements(v.Data())
	}
	return all
}

// last moves the channels of a tensor (batch, channels, grid…) to the end.
func last(x golden.Tensor) golden.Tensor {
	axes := []int{0}
	for i := 2; i < len(x.Shape); i++ {
		axes = append(axes, i)
	}
	return x.Transpose(append(axes, 1)...)
}

func (c *comparison) must(n *G.Node, err error) *G.Node {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// arguments are the arguments of a reference's constructor. A number or text that is missing is zero.
type arguments map[string]any

func (a arguments) number(name string) float64 {
	n, _ := a[name].(float64)
	return n
}
func (a arguments) int(name string) int { return int(a.number(name)) }
func (a arguments) text(name string) string {
	s, _ := a[name].(string)
	return s
}
func (a arguments) is(name string) bool {
	b, _ := a[name].(bool)
	return b
}
func (a arguments) ints(name string) (all []int) {
	switch v := a[name].(type) {
	case float64:
		all = []int{int(v)}
	case []any:
		for _, n := range v {
			all = append(all, int(n.(float64)))
		}
	}
	return all
}

// applied is a layer or a model with one input.
type applied interface {
	Err() error
	Params() layer.Params
}

// cases compares the cases of a file of operators and blocks.
func (c *comparison) cases(file *golden.File) {
	for _, name := range slices.Sorted(maps.Keys(file.Metadata)) {
		var a arguments
		if err := json.Unmarshal([]byte(file.Metadata[name]), &a); err != nil {
			continue // metadata of the whole file
		}
		get := func(key string) golden.Tensor {
			x, ok := file.Tensors[name+"."+key]
			if !ok {
				c.t.Fatalf("%s has no %s", name, key)
			}
			return x
		}
		if what := a.text("op"); what == "cross_scan" || what == "cross_merge" {
			c.cross(name, a, get)
			continue
		}
		l, apply := c.block(name, a)
		if err := l.Err(); err != nil {
			c.t.Fatalf("%s: %v", name, err)
		}
		params := map[string]golden.Tensor{}
		for key, x := range file.Tensors {
			if weight, ok := strings.CutPrefix(key, name+".param."); ok {
				params[weight] = x
			}
		}
		c.assign(name, l.Params(), params)
		layout := func(x golden.Tensor) golden.Tensor { return x }
		if x := get("in.x"); len(x.Shape) == 5 || a.is("channel_first") {
			layout = last
		}
		g := G.NewGraph()
		x := c.leaf(g, "x", layout(get("in.x")))
		y := c.must(apply(x))
		loss := c.must(G.Sum(c.must(G.HadamardProd(y, c.leaf(g, "dout", layout(get("dout")))))))
		grads, err := G.Grad(loss, append(G.Nodes{x}, l.Params().Nodes(g)...)...)
		if err != nil {
			c.t.Fatal(err)
		}
		values := c.run(g, append(G.Nodes{y}, grads...)...)
		c.near(name+".out", values[0], layout(get("out")), c.precision.results, 0, false)
		c.near(name+".grad.x", values[1], layout(get("grad.x")), c.precision.gradients, 0, true)
		// The gradient of a bias before an instance norm is 0 but for rounding. It is compared with the others.
		scale := 0.0
		for key, x := range file.Tensors {
			if strings.HasPrefix(key, name+".grad.") {
				for _, v := range x.Data {
					scale = max(scale, math.Abs(v))
				}
			}
		}
		for i, p := range l.Params() {
			want, least := get("grad."+p.Name), 0.0
			if slices.Max(want.Data) < 1e-9*scale && slices.Min(want.Data) > -1e-9*scale {
				least = scale
			}
			c.near(name+".grad."+p.Name, values[2+i], want, c.precision.gradients, least, true)
		}
	}
}

// block returns the layer of a case.
func (c *comparison) block(name string, a arguments) (applied, func(*G.Node) (*G.Node, error)) {
	opts := append(slices.Clone(c.opts), layer.WithDtype(c.dt), layer.WithZeros())
	channels := a.int("d_model") + a.int("dim")
	inner := a.int("expand") * channels
	mamba := layer.MambaConfig{
		Channels: channels, State: a.int("d_state"), Width: a.int("d_conv"), Inner: inner, Rank: a.int("dt_rank"),
		Bidirectional: a.text("bimamba_type") != "", Slices: a.int("nslices"), Average: a.is("if_divide_out"), LayerScale: a.number("init_layer_scale"),
	}
	switch what := a.text("op"); what {
	case "SS2D":
		l := layer.NewSS2D(layer.SS2DConfig{
			Channels: channels, State: a.int("d_state"), Inner: int(a.number("ssm_ratio") * float64(channels)), Rank: a.int("dt_rank"), Width: a.int("d_conv"),
			NoGate: strings.HasSuffix(a.text("forward_type"), "_noz"), NoConvBias: !a.is("conv_bias"),
		}, opts...)
		return l, l.Apply
	case "Vim Mamba", "SegMamba Mamba":
		l := layer.NewMamba(mamba, opts...)
		return l, func(x *G.Node) (*G.Node, error) { return l.Apply(x) }
	case "SegMamba stage":
		l := vision.NewSegMambaStage(vision.SegMambaStageConfig{
			Channels: channels, State: a.int("d_state"), Slices: a.int("nslices"), Conv: a.int("d_conv"), Inner: inner,
		}, opts...)
		return l, l.Apply
	case "U-Mamba MambaLayer":
		l := vision.NewUMambaLayer(mamba, opts...)
		return l, l.Apply
	case "MambaVisionMixer":
		l := layer.NewMambaVision(layer.MambaVisionConfig{
			Channels: channels, Inner: inner, State: a.int("d_state"), Width: a.int("d_conv"), Rank: a.int("dt_rank"),
		}, opts...)
		return l, func(x *G.Node) (*G.Node, error) { return l.Apply(x) }
	default:
		c.t.Fatalf("%s: %q is unknown", name, what)
		return nil, nil
	}
}

// cross compares a cross scan or a cross merge: Reorder in VMamba's four orders.
func (c *comparison) cross(name string, a arguments, get func(string) golden.Tensor) {
	orders, in := op.VMambaOrders(a.int("H"), a.int("W")), "x"
	if a.text("op") == "cross_merge" {
		in = "ys"
	}
	// To channels last: images (batch, height, width, channels), sequences (batch, cells, 4, channels).
	layout := func(x golden.Tensor) golden.Tensor {
		switch n := len(x.Shape); {
		case !a.is("channel_first"):
			return x
		case n == 5: // (batch, 4, channels, height, width)
			return x.Transpose(0, 3, 4, 1, 2)
		case n == 4 && x.Shape[1] == 4 && x.Shape[3] == a.int("H")*a.int("W") && (x.Shape[2] != a.int("H") || in == "x" && x.Shape[2] == get("in.x").Shape[1]):
			return x.Transpose(0, 3, 1, 2) // (batch, 4, channels, cells)
		}
		return last(x)
	}
	g := G.NewGraph()
	x := c.leaf(g, in, layout(get("in."+in)))
	shape := x.Shape()
	batch, channels, cells := shape[0], shape[len(shape)-1], orders[0].Len()
	var results G.Nodes
	if in == "x" {
		for _, o := range orders {
			results = append(results, c.must(op.Reorder(x, o)))
		}
	} else {
		parts, err := op.Split(c.must(op.Reshape(x, batch, cells, 4*channels)), channels, channels, channels, channels)
		if err != nil {
			c.t.Fatal(err)
		}
		y := c.must(op.Reorder(parts[0], orders[0].Inverse()))
		for k, o := range orders[1:] {
			y = c.must(op.Add(y, c.must(op.Reorder(parts[1+k], o.Inverse()))))
		}
		results = G.Nodes{y}
	}
	out, dout := layout(get("out")), layout(get("dout"))
	part := func(x golden.Tensor, k int) golden.Tensor { // result k of x (batch, cells, results, channels)
		y := golden.Tensor{Shape: []int{batch, cells, channels}}
		for i := range batch * cells {
			y.Data = append(y.Data, x.Data[(i*len(results)+k)*channels:][:channels]...)
		}
		return y
	}
	var loss *G.Node
	for k, y := range results {
		l := c.must(G.Sum(c.must(G.HadamardProd(y, c.leaf(g, fmt.Sprint("dout", k), part(dout, k))))))
		if loss == nil {
			loss = l
		} else {
			loss = c.must(G.Add(loss, l))
		}
	}
	grads, err := G.Grad(loss, x)
	if err != nil {
		c.t.Fatal(err)
	}
	values := c.run(g, append(grads, results...)...)
	c.near(name+".grad."+in, values[0], layout(get("grad."+in)), c.precision.gradients, 0, true)
	for k := range results {
		c.near(fmt.Sprintf("%s.out %d", name, k), values[1+k], part(out, k), c.precision.results, 0, false)
	}
}

// assign writes weights into the parameters.
func (c *comparison) assign(what string, params layer.Params, weights map[string]golden.Tensor) {
	c.t.Helper()
	if len(weights) != len(params) {
		c.t.Fatalf("%s: %d weights in the file, %d in the layer", what, len(weights), len(params))
	}
	for _, p := range params {
		w, ok := weights[p.Name]
		if !ok || !p.Value.Shape().Eq(tensor.Shape(w.Shape)) {
			c.t.Fatalf("%s: %s has shape %v in the layer, %v in the file", what, p.Name, p.Value.Shape(), w.Shape)
		}
		if err := tensor.Copy(p.Value, c.dense(w)); err != nil {
			c.t.Fatal(err)
		}
	}
	params.ValuesChanged()
}

// network is a model of this package.
type network interface {
	applied
	Apply(x *G.Node, opts ...vision.CallOption) (*G.Node, error)
	Features(x *G.Node, opts ...vision.CallOption) (G.Nodes, error)
}

// newNetwork returns the model of a reference's arguments, and the names of the maps that Features returns.
func newNetwork(t *testing.T, a arguments, opts []layer.Option) (network, []string) {
	names := []string{"patch_embed"}
	stages := func(prefix string, n int) {
		for i := range n {
			names = append(names, fmt.Sprintf("%s.%d", prefix, i))
		}
	}
	switch {
	case a["forward_type"] != nil:
		form := a.text("forward_type")
		cfg := vision.VMambaConfig{
			Classes: a.int("num_classes"), Channels: a.int("in_chans"), Depths: a.ints("depths"), Dims: a.ints("dims"), State: a.int("ssm_d_state"),
			Expand: a.number("ssm_ratio"), Rank: a.int("ssm_dt_rank"), Conv: a.int("ssm_conv"), MLPRatio: a.number("mlp_ratio"), NoMLP: a.number("mlp_ratio") == 0,
			DropPath: a.number("drop_path_rate"), Gate: !strings.HasSuffix(form, "_noz"), ConvBias: a.is("ssm_conv_bias"),
			OneConv: a.text("patchembed_version") == "v1", Merging: a.text("downsample_version") == "v1",
		}
		stages("layers", len(cfg.Depths))
		return vision.NewVMamba(cfg, opts...), names
	case a["bimamba_type"] != nil:
		cfg := vision.VimConfig{
			Classes: a.int("num_classes"), Channels: a.int("channels"), Patch: a.int("patch_size"), Stride: a.int("stride"), Dim: a.int("embed_dim"),
			Depth: a.int("depth"), State: a.int("d_state"), LayerScale: a.number("init_layer_scale"), Sum: !a.is("if_divide_out"),
			LayerNorm: !a.is("rms_norm"), Eps: a.number("norm_epsilon"), DropPath: a.number("drop_path_rate"),
		}
		size := a.ints("img_size")
		cfg.Height, cfg.Width = size[0], size[len(size)-1]
		switch {
		case a.is("if_cls_token") && !a.is("use_middle_cls_token"):
			cfg.Token = vision.FirstToken
		case !a.is("if_cls_token") && a.text("final_pool_type") == "mean":
			cfg.Token = vision.MeanToken
		case !a.is("if_cls_token"):
			cfg.Token = vision.LastToken
		}
		stages("layers", cfg.Depth)
		return vision.NewVim(cfg, opts...), names
	case a["depths_decoder"] != nil:
		cfg := vision.MambaUNetConfig{
			Classes: a.int("num_classes"), Channels: a.int("input_channels"), Dims: a.ints("dims"), Depths: a.ints("depths"), DecoderDepths: a.ints("depths_decoder"),
			State: a.int("d_state"), DropPath: a.number("drop_path_rate"),
		}
		stages("layers", len(cfg.Depths))
		stages("layers_up", len(cfg.Depths))
		return vision.NewMambaUNet(cfg, opts...), names
	}
	t.Fatalf("the configuration is of no known model: %v", a)
	return nil, nil
}

// model compares a model with the numbers of its folder.
func (c *comparison) model(dir string, file *golden.File) {
	raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	var a arguments
	if err := json.Unmarshal(raw, &a); err != nil {
		c.t.Fatal(err)
	}
	m, names := newNetwork(c.t, a, append(slices.Clone(c.opts), layer.WithDtype(c.dt), layer.WithZeros()))
	if err := m.Err(); err != nil {
		c.t.Fatal(err)
	}
	if err := load(dir, m.Params()); err != nil {
		c.t.Fatal(err)
	}
	for i := 0; ; i++ {
		image, ok := file.Tensors[fmt.Sprint("image", i)]
		if !ok {
			if i == 0 {
				c.t.Error("no image0 in the file")
			}
			break
		}
		c.image(m, names, file, i, last(image))
	}
}

// load reads the weights of a folder.
func load(dir string, params layer.Params) error {
	for _, name := range []string{"model.safetensors", "best.pth", "vssm.pth", "vim.pth"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		r, err := checkpoint.OpenFile(path, "")
		if err != nil {
			return err
		}
		defer r.Close()
		return r.LoadParams(params, "")
	}
	return fmt.Errorf("%s has no weights", dir)
}

// image compares logits, loss, maps and gradients for image i.
func (c *comparison) image(m network, names []string, file *golden.File, i int, image golden.Tensor) {
	key := func(name string) string { return fmt.Sprint(name, i) }
	g := G.NewGraph()
	x := c.leaf(g, "image", image)
	logits := c.must(m.Apply(x))
	nodes := G.Nodes{logits}
	target, hasLoss := file.Tensors[key("target")]
	var losses []string
	if hasLoss {
		n := G.NodeFromAny(g, tensor.New(tensor.WithShape(target.Shape...), tensor.WithBacking(golden.Ints(target))), G.WithName("target"))
		add := func(name string, loss *G.Node, err error) {
			if _, ok := file.Tensors[key(name)]; ok {
				nodes, losses = append(nodes, c.must(loss, err)), append(losses, key(name))
			}
		}
		const ignore = -100
		classes := logits.Shape()[logits.Dims()-1]
		if logits.Dims() == 2 {
			loss, err := op.CrossEntropy(logits, n, ignore)
			add("loss", loss, err)
		} else {
			if classes == 1 {
				shape := slices.Clone(target.Shape)
				n = G.NodeFromAny(g, tensor.New(tensor.WithShape(shape[0], shape[2], shape[3]), tensor.WithBacking(golden.Ints(target))), G.WithName("target"))
				loss, err := op.BinaryCrossEntropy(logits, n, ignore)
				add("loss_bce", loss, err)
			} else {
				loss, err := op.CrossEntropy(logits, n, ignore)
				add("loss_ce", loss, err)
			}
			loss, err := op.Dice(logits, n, ignore)
			add("loss_dice", loss, err)
			loss, err = op.SegmentationLoss(logits, n, ignore, op.SegmentationWeights{CrossEntropy: 1, Dice: 1})
			add("loss", loss, err)
		}
	}
	lossNode := nodes[len(nodes)-1]
	maps, err := m.Features(x)
	if err != nil {
		c.t.Fatal(err)
	}
	if len(maps) != len(names) {
		c.t.Fatalf("%d maps, want %d", len(maps), len(names))
	}
	if i == 0 {
		nodes = append(nodes, maps...)
	}
	first := len(nodes)
	if hasLoss && i == 0 {
		grads, err := G.Grad(lossNode, m.Params().Nodes(g)...)
		if err != nil {
			c.t.Fatal(err)
		}
		nodes = append(nodes, grads...)
	}
	values := c.run(g, nodes...)
	want := file.Tensors[key("logits")]
	if len(want.Shape) > 2 {
		want = last(want)
	}
	logitsTolerance := c.precision.logits
	if len(want.Shape) > 2 { // maps are stored in float32
		logitsTolerance = max(logitsTolerance, 2e-7)
	}
	c.near(key("logits"), values[0], want, logitsTolerance, 0, false)
	for j, name := range losses {
		c.near(name, values[1+j], file.Tensors[name], min(c.precision.logits, 1e-6), 0, false)
	}
	if i > 0 {
		return
	}
	seen := 0
	for j, name := range names {
		want, ok := file.Tensors["feat0."+name]
		if !ok {
			continue
		}
		seen++
		if !slices.Equal(maps[j].Shape(), want.Shape) {
			want = last(want)
		}
		if !slices.Equal(maps[j].Shape(), want.Shape) {
			c.t.Errorf("%s has shape %v, want %v", name, maps[j].Shape(), want.Shape)
		}
		c.near("feat0."+name, values[1+len(losses)+j], want, max(c.precision.logits, 2e-7), 0, false)
	}
	gradients := 0
	for key := range file.Tensors {
		if strings.HasPrefix(key, "feat0.") {
			seen--
		}
		if strings.HasPrefix(key, "grad0.") {
			gradients++
		}
	}
	if seen != 0 || gradients != len(m.Params()) {
		c.t.Errorf("%d maps of the file are missing; it has %d gradients, and the model %d weights", -seen, gradients, len(m.Params()))
	}
	for j, p := range m.Params() {
		c.near("grad0."+p.Name, values[first+j], file.Tensors["grad0."+p.Name], c.precision.ofModels, 0, true)
	}
}
