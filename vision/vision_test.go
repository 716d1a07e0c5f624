package vision_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/golden"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/vision"
)

// sample is a small model of each form, with the shape of an image of a size that no stage divides.
type sample struct {
	name  string
	image []int // without the batch
	make  func(dropPath float64, opts ...layer.Option) network
}

func samples() []sample {
	flat, volume := []int{13, 21, 3}, []int{5, 9, 6, 1}
	return []sample{
		{"VMamba", flat, func(drop float64, opts ...layer.Option) network {
			return vision.NewVMamba(vision.VMambaConfig{Classes: 5, Depths: []int{1, 2}, Dims: []int{4}, DropPath: drop}, opts...)
		}},
		{"first VMamba", flat, func(drop float64, opts ...layer.Option) network {
			cfg := vision.VMambaFirstTiny()
			cfg.Classes, cfg.Depths, cfg.Dims, cfg.State, cfg.DropPath = 5, []int{1, 2}, []int{4, 6}, 3, drop
			return vision.NewVMamba(cfg, opts...)
		}},
		{"Vim", flat, func(drop float64, opts ...layer.Option) network {
			return vision.NewVim(vision.VimConfig{Classes: 5, Height: 16, Width: 20, Patch: 4, Stride: 3, Dim: 6, Depth: 2, State: 3, DropPath: drop, LayerScale: 0.5}, opts...)
		}},
		{"Vim of the mean", flat, func(drop float64, opts ...layer.Option) network {
			return vision.NewVim(vision.VimConfig{Classes: 5, Height: 16, Patch: 4, Dim: 6, Depth: 2, State: 3, DropPath: drop, Token: vision.MeanToken, LayerNorm: true}, opts...)
		}},
		{"MambaUNet", flat, func(drop float64, opts ...layer.Option) network {
			return vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Dims: []int{8}, Depths: []int{1, 1}, State: 3, DropPath: drop}, opts...)
		}},
		{"MambaUNet with a stem", flat, func(drop float64, opts ...layer.Option) network {
			return vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Stem: []int{3, 4}, Dims: []int{6}, Depths: []int{1, 1}, State: 3, DropPath: drop}, opts...)
		}},
		{"MambaUNet of volumes", volume, func(_ float64, opts ...layer.Option) network {
			return vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Axes: 3, Dims: []int{4}, Depths: []int{1, 1}, State: 3}, opts...)
		}},
	}
}

func randomImage(r *rand.Rand, dt tensor.Dtype, shape ...int) *tensor.Dense {
	v := make([]float64, tensor.Shape(shape).TotalSize())
	for i := range v {
		v[i] = r.NormFloat64()
	}
	c := comparison{precision: precision{dt: dt}}
	return c.dense(golden.Tensor{Shape: shape, Data: v})
}

// stir changes all weights, so that biases and scales are not special values.
func stir(params layer.Params) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, p := range params {
		switch d := p.Value.Data().(type) {
		case []float64:
			for i := range d {
				d[i] += 0.3 * r.NormFloat64()
			}
		case []float32:
			for i := range d {
				d[i] += float32(0.3 * r.NormFloat64())
			}
		}
	}
	params.ValuesChanged()
}

// logits returns the logits of images and, with gradients, those of all weights, for the sum of the squares of the logits.
func logits(t *testing.T, m network, x *tensor.Dense, gradients bool, opts ...vision.CallOption) [][]float64 {
	t.Helper()
	c := comparison{t: t}
	g := G.NewGraph()
	y := c.must(m.Apply(G.NodeFromAny(g, x, G.WithName("x")), opts...))
	nodes := G.Nodes{y}
	if gradients {
		grads, err := G.Grad(c.must(G.Sum(c.must(G.Square(y)))), m.Params().Nodes(g)...)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, grads...)
	}
	return c.run(g, nodes...)
}

func apart(a, b []float64) float64 {
	d, err := golden.Distance(a, b)
	if err != nil {
		return math.Inf(1)
	}
	return d
}

// The images of a batch have no effect on each other, whatever their size.
func TestBatch(t *testing.T) {
	for _, s := range samples() {
		m := s.make(0, layer.WithDtype(tensor.Float64), layer.WithSeed(1))
		if err := m.Err(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		stir(m.Params())
		x := randomImage(rand.New(rand.NewPCG(1, 2)), tensor.Float64, append([]int{2}, s.image...)...)
		both := logits(t, m, x, false)[0]
		each := len(x.Data().([]float64)) / 2
		for i := range 2 {
			one := tensor.New(tensor.WithShape(append([]int{1}, s.image...)...), tensor.WithBacking(slices.Clone(x.Data().([]float64)[i*each:(i+1)*each])))
			got := logits(t, m, one, false)[0]
			if d := apart(got, both[i*len(got):(i+1)*len(got)]); !(d <= 1e-12) {
				t.Errorf("%s: image %d of a batch is %v apart from the image alone", s.name, i, d)
			}
		}
	}
}

// Logits and gradients are the same bit for bit for any GOMAXPROCS and in every run.
func TestBits(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, s := range samples() {
		m := s.make(0.4, layer.WithSeed(1))
		stir(m.Params())
		x := randomImage(rand.New(rand.NewPCG(1, 2)), tensor.Float32, append([]int{2}, s.image...)...)
		var want [][]float64
		for _, procs := range []int{1, 2, 3, 8, 8} {
			runtime.GOMAXPROCS(procs)
			got := logits(t, m, x, true)
			if want == nil {
				want = got
			}
			for i := range got {
				if !slices.Equal(got[i], want[i]) {
					t.Errorf("%s: result %d differs with GOMAXPROCS %d", s.name, i, procs)
				}
			}
		}
	}
}

// In training, blocks are dropped for some images, the same ones in the same step; the first block and a step below 0 drop nothing. A model whose blocks
// are all dropped does not depend on their weights.
func TestDropPath(t *testing.T) {
	run := func(m network, x *tensor.Dense, step int) []float64 {
		c := comparison{t: t}
		g := G.NewGraph()
		n := G.NodeFromAny(g, tensor.New(tensor.WithShape(1), tensor.WithBacking([]int{step})), G.WithName("step"))
		y := c.must(m.Apply(G.NodeFromAny(g, x, G.WithName("x")), nn.WithTraining(n)))
		return c.run(g, y)[0]
	}
	for _, s := range samples()[:6] {
		m := s.make(0.6, layer.WithDtype(tensor.Float64), layer.WithSeed(1))
		stir(m.Params())
		x := randomImage(rand.New(rand.NewPCG(1, 2)), tensor.Float64, append([]int{6}, s.image...)...)
		want := logits(t, m, x, false)[0]
		if d := apart(run(m, x, -1), want); !(d <= 1e-12) {
			t.Errorf("%s: a step below 0 changes the logits by %v", s.name, d)
		}
		first := run(m, x, 7)
		if slices.Equal(first, want) || !slices.Equal(run(m, x, 7), first) || slices.Equal(run(m, x, 8), first) && slices.Equal(run(m, x, 9), first) {
			t.Errorf("%s: in training, steps 7, 7, 8 and 9 want other logits than in evaluation, the same in the same step", s.name)
		}
	}
}

// A model for images of another size: the position embedding of a Vim is interpolated, so one that is the same everywhere stays so.
func TestVimPositions(t *testing.T) {
	for _, token := range []vision.Token{vision.MiddleToken, vision.FirstToken, vision.LastToken} {
		m := vision.NewVim(vision.VimConfig{Classes: 3, Height: 8, Width: 12, Patch: 4, Dim: 4, Depth: 1, State: 2, Token: token}, layer.WithDtype(tensor.Float64))
		if err := m.Err(); err != nil {
			t.Fatal(err)
		}
		stir(m.Params())
		position := m.Params().ByName("pos_embed").Value.Data().([]float64)
		for i := range position {
			position[i] = float64(i%4) - 1 // the same for each token
		}
		x := randomImage(rand.New(rand.NewPCG(1, 2)), tensor.Float64, 1, 20, 8, 3)
		got := logits(t, m, x, true)
		// A model made for that size, with the same numbers.
		other := vision.NewVim(vision.VimConfig{Classes: 3, Height: 20, Width: 8, Patch: 4, Dim: 4, Depth: 1, State: 2, Token: token}, layer.WithDtype(tensor.Float64))
		for i, p := range other.Params() {
			if p.Name == "pos_embed" {
				for i := range p.Value.Data().([]float64) {
					p.Value.Data().([]float64)[i] = float64(i%4) - 1
				}
			} else if err := tensor.Copy(p.Value, m.Params()[i].Value); err != nil {
				t.Fatal(err)
			}
		}
		want := logits(t, other, x, true)
		for i, p := range m.Params() {
			if p.Name == "pos_embed" {
				continue // of another shape
			}
			if d := apart(got[1+i], want[1+i]); !(d <= 1e-10) {
				t.Errorf("token %d, %s: the gradient is %v apart from that of a model for this size", token, p.Name, d)
			}
		}
		if d := apart(got[0], want[0]); !(d <= 1e-10) {
			t.Errorf("token %d: the logits are %v apart from those of a model for this size", token, d)
		}
	}
}

// Zeros at the right and lower edge, with which a U-Net continues an image, have no effect beyond what they are: the logits are those of the image with
// zeros, cut.
func TestUNetSizes(t *testing.T) {
	for _, s := range samples()[4:] {
		m := s.make(0, layer.WithDtype(tensor.Float64))
		stir(m.Params())
		x := randomImage(rand.New(rand.NewPCG(1, 2)), tensor.Float64, append([]int{1}, s.image...)...)
		y := logits(t, m, x, false)[0]
		if want := x.Shape().TotalSize() / s.image[len(s.image)-1] * 2; len(y) != want {
			t.Errorf("%s: %d logits, want %d", s.name, len(y), want)
		}
	}
	// 5 by 3 becomes 8 by 8.
	m := vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 1, Dims: []int{8}, Depths: []int{1, 1}, State: 2}, layer.WithDtype(tensor.Float64))
	stir(m.Params())
	small, large := randomImage(rand.New(rand.NewPCG(1, 2)), tensor.Float64, 1, 5, 3, 3), tensor.New(tensor.WithShape(1, 8, 8, 3), tensor.WithBacking(make([]float64, 192)))
	for i := range 5 {
		copy(large.Data().([]float64)[i*24:], small.Data().([]float64)[i*9:(i+1)*9])
	}
	got, all := logits(t, m, small, false)[0], logits(t, m, large, false)[0]
	for i := range 5 {
		if !slices.Equal(got[i*3:(i+1)*3], all[i*8:i*8+3]) {
			t.Errorf("row %d is %v, want %v", i, got[i*3:(i+1)*3], all[i*8:i*8+3])
		}
	}
	// A gray image is one of three equal channels.
	gray := randomImage(rand.New(rand.NewPCG(1, 2)), tensor.Float64, 1, 8, 8, 1)
	for i, v := range gray.Data().([]float64) {
		for c := range 3 {
			large.Data().([]float64)[3*i+c] = v
		}
	}
	if a, b := logits(t, m, gray, false)[0], logits(t, m, large, false)[0]; !slices.Equal(a, b) {
		t.Error("a gray image has other logits than three equal channels")
	}
}

// Deep supervision adds a head to each map of the decoder but the finest.
func TestDeep(t *testing.T) {
	for _, test := range []struct {
		axes   int
		image  []int
		shapes []string
	}{
		{2, []int{1, 32, 16, 3}, []string{"(1, 32, 16, 2)", "(1, 4, 2, 2)", "(1, 2, 1, 2)"}},
		{3, []int{1, 8, 16, 8, 1}, []string{"(1, 8, 16, 8, 2)", "(1, 4, 8, 4, 2)", "(1, 2, 4, 2, 2)"}},
	} {
		cfg := vision.MambaUNetConfig{Classes: 2, Axes: test.axes, Dims: []int{8}, Depths: []int{1, 1, 1}, State: 2, DeepSupervision: true}
		m := vision.NewMambaUNet(cfg)
		g := G.NewGraph()
		x := G.NodeFromAny(g, randomImage(rand.New(rand.NewPCG(1, 2)), tensor.Float32, test.image...), G.WithName("x"))
		all, err := m.Deep(x)
		if err != nil {
			t.Fatal(err)
		}
		var shapes []string
		for _, y := range all {
			shapes = append(shapes, fmt.Sprint(y.Shape()))
		}
		if !slices.Equal(shapes, test.shapes) {
			t.Errorf("shapes are %v, want %v", shapes, test.shapes)
		}
		c := comparison{t: t}
		if v := c.run(g, append(all, c.must(m.Apply(x)))...); !slices.Equal(v[0], v[len(v)-1]) {
			t.Error("the first result is not that of Apply")
		}
		odd := G.NodeFromAny(g, randomImage(rand.New(rand.NewPCG(1, 2)), tensor.Float32, append([]int{1, 9}, test.image[2:]...)...), G.WithName("odd"))
		if _, err := m.Deep(odd); err == nil || !strings.Contains(err.Error(), "for deep supervision") {
			t.Errorf("of an odd size: error %v", err)
		}
	}
}

// Initial values are those of the references.
func TestInitialValues(t *testing.T) {
	deviation := func(p *layer.Param) float64 {
		var sum float64
		v := golden.Elements(p.Value.Data())
		for _, x := range v {
			sum += x * x
		}
		return math.Sqrt(sum / float64(len(v)))
	}
	type check struct {
		name string
		want float64 // root of the mean of squares
	}
	for _, test := range []struct {
		model  network
		checks []check
	}{
		{vision.NewVMamba(vision.VMambaConfig{Classes: 100, Depths: []int{1, 1}, Dims: []int{64}}, layer.WithSeed(1)), []check{
			{"layers.0.blocks.0.op.in_proj.weight", 0.02}, {"layers.1.blocks.0.op.out_proj.weight", 0.02}, {"layers.0.blocks.0.mlp.fc1.weight", 0.02},
			{"layers.0.blocks.0.mlp.fc1.bias", 0}, {"classifier.head.weight", 0.02}, {"classifier.head.bias", 0},
			{"layers.0.blocks.0.op.A_logs", 0}, {"layers.0.blocks.0.op.Ds", 1}, {"layers.0.blocks.0.op.x_proj_weight", 1 / math.Sqrt(3*64)},
			{"layers.0.blocks.0.op.dt_projs_weight", 1 / math.Sqrt(3*4)}, {"layers.0.downsample.1.weight", 1 / math.Sqrt(3*9*64)},
		}},
		{vision.NewVim(vision.VimConfig{Classes: 100, Dim: 64, Depth: 4}, layer.WithSeed(1)), []check{
			{"patch_embed.proj.weight", 1 / math.Sqrt(3*16*16)}, {"patch_embed.proj.bias", 0}, {"pos_embed", 0.02}, {"cls_token", 0.02}, {"head.weight", 0.02},
			{"layers.0.mixer.dt_proj_b.bias", 0}, {"layers.0.mixer.dt_proj_b.weight", 1 / math.Sqrt(3*4)},
			{"layers.0.mixer.out_proj.weight", 1 / math.Sqrt(3*128*4)}, {"layers.0.mixer.in_proj.weight", 1 / math.Sqrt(3*64)},
		}},
		{vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Dims: []int{32}, Depths: []int{1, 1}}, layer.WithSeed(1)), []check{
			{"vmunet.layers.0.downsample.reduction.weight", 0.02}, {"vmunet.layers_up.1.upsample.expand.weight", 0.02}, {"vmunet.final_up.expand.weight", 0.02},
			{"vmunet.layers_up.0.blocks.0.self_attention.in_proj.weight", 0.02},
		}},
		{vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Axes: 3, Dims: []int{16}, Depths: []int{1, 1}}, layer.WithSeed(1)), []check{
			{"vit.stages.1.0.mamba.dt_proj_s.bias", 1 / math.Sqrt(3*2)}, {"encoder2.layer.conv1.conv.weight", 1 / math.Sqrt(3*27*16)},
		}},
	} {
		if err := test.model.Err(); err != nil {
			t.Fatal(err)
		}
		for _, c := range test.checks {
			p := test.model.Params().ByName(c.name)
			if p == nil {
				t.Errorf("no weight %s", c.name)
			} else if got := deviation(p); !(math.Abs(got-c.want) <= 0.15*c.want) {
				t.Errorf("%s: root of the mean of squares %.4f, want about %.4f", c.name, got, c.want)
			}
		}
	}
}

// The named configurations have the numbers of parameters of the published models, as far as those are known.
func TestNamedConfigurations(t *testing.T) {
	if testing.Short() {
		fmt.Println("the named configurations take seconds to make: left out with -short")
		t.Skip()
	}
	for name, test := range map[string]struct {
		model    network
		millions float64 // 0 for any
	}{
		"VMambaTiny":       {vision.NewVMamba(vision.VMambaTiny(), layer.WithZeros()), 30.2},
		"VMambaSmall":      {vision.NewVMamba(vision.VMambaSmall(), layer.WithZeros()), 0},
		"VMambaBase":       {vision.NewVMamba(vision.VMambaBase(), layer.WithZeros()), 0},
		"VMambaFirstTiny":  {vision.NewVMamba(vision.VMambaFirstTiny(), layer.WithZeros()), 22.9},
		"VMambaFirstSmall": {vision.NewVMamba(vision.VMambaFirstSmall(), layer.WithZeros()), 44.4},
		"VMambaFirstBase":  {vision.NewVMamba(vision.VMambaFirstBase(), layer.WithZeros()), 76.3},
		"VimTiny":          {vision.NewVim(vision.VimTiny(), layer.WithZeros()), 7.1},
		"VimSmall":         {vision.NewVim(vision.VimSmall(), layer.WithZeros()), 26},
		"VimBase":          {vision.NewVim(vision.VimBase(), layer.WithZeros()), 98},
		"MambaUNetTiny":    {vision.NewMambaUNet(vision.MambaUNetTiny(9), layer.WithZeros()), 27.4},
		"MambaUNetSmall":   {vision.NewMambaUNet(vision.MambaUNetSmall(9), layer.WithZeros()), 0},
		"MambaUNetBase":    {vision.NewMambaUNet(vision.MambaUNetBase(9), layer.WithZeros()), 0},
		"MambaUNet3DTiny":  {vision.NewMambaUNet(vision.MambaUNet3DTiny(4), layer.WithZeros()), 0},
		"MambaUNet3DSmall": {vision.NewMambaUNet(vision.MambaUNet3DSmall(4), layer.WithZeros()), 0},
		"MambaUNet3DBase":  {vision.NewMambaUNet(vision.MambaUNet3DBase(4), layer.WithZeros()), 67.4},
	} {
		if err := test.model.Err(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := float64(test.model.Params().Count()) / 1e6
		if test.millions > 0 && math.Abs(got-test.millions) > 0.02*test.millions {
			t.Errorf("%s has %.2f million parameters, want about %.1f", name, got, test.millions)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, test := range []struct {
		model network
		want  string
	}{
		{vision.NewVMamba(vision.VMambaConfig{}), "vision: VMamba: Classes is 0, want"},
		{vision.NewVMamba(vision.VMambaConfig{Classes: 2, Dims: []int{4, 8}}), "Dims is [4 8], want 4 numbers"},
		{vision.NewVMamba(vision.VMambaConfig{Classes: 2, NoMLP: true, MLPRatio: 4}), "MLPRatio is 4 and NoMLP true, want one of them"},
		{vision.NewVMamba(vision.VMambaConfig{Classes: 2, DropPath: 1}), "DropPath is 1, want at least 0 and below 1"},
		{vision.NewVim(vision.VimConfig{Classes: 2, Height: 8}), "the image is 8 by 8, want at least the size of a patch, 16"},
		{vision.NewVim(vision.VimConfig{Classes: 2, Token: 9}), "Token is 9, want MiddleToken"},
		{vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Axes: 4}), "Axes is 4, want 2 for images or 3 for volumes"},
		{vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Dims: []int{6}}), "Dims[0] is 6, want a multiple of 4"},
		{vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Stem: []int{4, 0}}), "Stem[1] is 0, want 1 to"},
		{vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 2, Axes: 3, DropPath: 0.1}), "DropPath, Stem, Orders or Attention is given, want none"},
	} {
		if err := test.model.Err(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %s", err, test.want)
		}
	}
	m := vision.NewVMamba(vision.VMambaConfig{Classes: 2, Depths: []int{1}, Dims: []int{4}})
	g := G.NewGraph()
	volume := G.NewTensor(g, tensor.Float32, 5, G.WithShape(1, 3, 4, 2, 4), G.WithName("volume"))
	stage := vision.NewSegMambaStage(vision.SegMambaStageConfig{Channels: 4, State: 2, Slices: 5})
	if _, err := stage.Apply(volume); err == nil || !strings.Contains(err.Error(), "slices") {
		t.Errorf("a volume that five slices do not divide: error %v, want one that names the slices", err)
	}
	node := func(dt tensor.Dtype, shape ...int) *G.Node {
		return G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprint(dt, shape)))
	}
	for _, test := range []struct {
		x    *G.Node
		opts []vision.CallOption
		want string
	}{
		{node(tensor.Float32, 1, 8, 8), nil, "x has shape (1, 8, 8), want (batch, height, width, channels) with 3 channels"},
		{node(tensor.Float32, 1, 3, 8, 8), nil, "x has shape (1, 3, 8, 8), want (batch, height, width, channels) with 3 channels"},
		{node(tensor.Float64, 1, 8, 8, 3), nil, "x is of float64, want float32 like the weights"},
		{node(tensor.Float32, 1, 8, 8, 3), []vision.CallOption{nn.WithStart(node(tensor.Float32, 1, 64))}, "start is given, want none"},
	} {
		if _, err := m.Apply(test.x, test.opts...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %s", err, test.want)
		}
	}
}
