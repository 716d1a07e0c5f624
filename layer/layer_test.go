package layer

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// golgi is the interface of the layers of gorgonia.org/golgi.
type golgi interface {
	Model() G.Nodes
	Fwd(x G.Input) G.Result
	Name() string
	Describe()
}

// any layer of ours.
type anyLayer interface {
	golgi
	Params() Params
	Err() error
}

// apply applies any layer.
func apply(l anyLayer, x *G.Node) (*G.Node, error) {
	if m, ok := l.(Mixer); ok {
		return m.Apply(x)
	}
	if b, ok := l.(*BatchNorm); ok {
		return b.Apply(x)
	}
	return l.(interface {
		Apply(x *G.Node) (*G.Node, error)
	}).Apply(x)
}

var (
	_ anyLayer = (*Linear)(nil)
	_ anyLayer = (*Conv1D)(nil)
	_ anyLayer = (*Conv)(nil)
	_ anyLayer = (*ConvTranspose)(nil)
	_ anyLayer = (*RMSNorm)(nil)
	_ anyLayer = (*Embedding)(nil)
	_ anyLayer = (*S6)(nil)
	_ anyLayer = (*GatedMLP)(nil)
	_ anyLayer = (*Attention)(nil)
	_ anyLayer = (*H3)(nil)
	_ anyLayer = (*S4)(nil)
	_ anyLayer = (*Mamba)(nil)
)

// Names, shapes, order and weight decay of the weights.
func TestLayerParams(t *testing.T) {
	for _, c := range []struct {
		layer  anyLayer
		name   string
		params string
	}{
		{NewLinear(LinearConfig{In: 3, Out: 5}), "linear", "weight (5, 3) decay"},
		{NewLinear(LinearConfig{In: 3, Out: 5, Bias: true}), "linear", "weight (5, 3) decay, bias (5)"},
		{NewLinear(LinearConfig{In: 3, Out: 5, Bias: true}, WithName("mixer.in_proj")), "mixer.in_proj",
			"mixer.in_proj.weight (5, 3) decay, mixer.in_proj.bias (5)"},
		{NewConv1D(Conv1DConfig{Channels: 6, Width: 4}), "convolution", "weight (6, 1, 4) decay, bias (6)"},
		{NewConv1D(Conv1DConfig{Channels: 6, Width: 4, NoBias: true}), "convolution", "weight (6, 1, 4) decay"},
		{NewConv1D(Conv1DConfig{Channels: 6, Width: 4}, WithName("conv1d")), "conv1d", "conv1d.weight (6, 1, 4) decay, conv1d.bias (6)"},
		{NewConv(ConvConfig{In: 6, Out: 4, Kernel: []int{3, 2}, Groups: 2}), "grid convolution", "weight (4, 3, 3, 2) decay, bias (4)"},
		{NewConvTranspose(ConvTransposeConfig{In: 6, Out: 4, Kernel: []int{3}, Groups: 2}, WithName("up")), "up", "up.weight (6, 2, 3) decay, up.bias (4)"},
		{NewConvTranspose(ConvTransposeConfig{In: 6, Out: 4, Kernel: []int{1, 2, 3}, NoBias: true}), "transposed convolution", "weight (6, 4, 1, 2, 3) decay"},
		{NewPatchEmbed(PatchEmbedConfig{In: 3, Out: 8, Patch: []int{4, 4}}, WithName("proj")), "proj", "proj.weight (8, 3, 4, 4) decay, proj.bias (8)"},
		{NewRMSNorm(RMSNormConfig{Channels: 7}), "RMS norm", "weight (7)"},
		{NewRMSNorm(RMSNormConfig{Channels: 7}, WithName("norm_f")), "norm_f", "norm_f.weight (7)"},
		{NewEmbedding(EmbeddingConfig{Vocabulary: 11, Channels: 3}), "embedding", "weight (11, 3) decay"},
		{NewS6(S6Config{Channels: 17}), "S6", "A_log (17, 16), D (17), x_proj.weight (34, 17) decay, dt_proj.weight (17, 2) decay, dt_proj.bias (17)"},
		{NewS6(S6Config{Channels: 3, State: 5, Rank: 4}, WithName("ssm")), "ssm", "ssm.A_log (3, 5), ssm.D (3), " +
			"ssm.x_proj.weight (14, 3) decay, ssm.dt_proj.weight (3, 4) decay, ssm.dt_proj.bias (3)"},
		{NewLSTM(LSTMConfig{Channels: 3}), "LSTM", "weight_ih (12, 3) decay, weight_hh (12, 3) decay, bias (12)"},
		{NewH3(H3Config{Channels: 4, Inner: S6Config{}}), "H3", "q_proj.weight (4, 4) decay, k_proj.weight (4, 4) decay, v_proj.weight (4, 4) decay, " +
			"shift.weight (4, 1, 4) decay, inner.A_log (4, 16), inner.D (4), inner.x_proj.weight (33, 4) decay, " +
			"inner.dt_proj.weight (4, 1) decay, inner.dt_proj.bias (4), out_proj.weight (4, 4) decay"},
		{NewH3(H3Config{Channels: 2, Inner: S6Config{State: 2}, Heads: 1, Shift: 3, Bias: true}, WithName("mixer")), "mixer",
			"mixer.q_proj.weight (2, 2) decay, mixer.q_proj.bias (2), mixer.k_proj.weight (2, 2) decay, mixer.k_proj.bias (2), " +
				"mixer.v_proj.weight (2, 2) decay, mixer.v_proj.bias (2), mixer.shift.weight (2, 1, 3) decay, " +
				"mixer.inner.A_log (4, 2), mixer.inner.D (4), mixer.inner.x_proj.weight (5, 4) decay, " +
				"mixer.inner.dt_proj.weight (4, 1) decay, mixer.inner.dt_proj.bias (4), " +
				"mixer.out_proj.weight (2, 2) decay, mixer.out_proj.bias (2)"},
		{NewMamba(MambaConfig{Channels: 2, Inner: 3, State: 2, Width: 2, Rank: 1, Bidirectional: true}), "Mamba",
			"A_log (3, 2), D (3), in_proj.weight (6, 2) decay, conv1d.weight (3, 1, 2) decay, conv1d.bias (3), x_proj.weight (5, 3) decay, " +
				"dt_proj.weight (3, 1) decay, dt_proj.bias (3), out_proj.weight (2, 3) decay, conv1d_b.weight (3, 1, 2) decay, conv1d_b.bias (3), " +
				"A_b_log (3, 2), D_b (3), x_proj_b.weight (5, 3) decay, dt_proj_b.weight (3, 1) decay, dt_proj_b.bias (3)"},
		{NewEmbedding(EmbeddingConfig{Vocabulary: 11, Channels: 3}, WithName("backbone.embeddings")), "backbone.embeddings", "backbone.embeddings.weight (11, 3) decay"},
	} {
		var s []string
		for _, p := range c.layer.Params() {
			w := fmt.Sprintf("%s %v", p.Name, p.Value.Shape())
			if p.Decay {
				w += " decay"
			}
			s = append(s, w)
			if p.Value.Dtype() != tensor.Float32 {
				t.Errorf("%s is of %v, want float32", p.Name, p.Value.Dtype())
			}
		}
		if got := strings.Join(s, ", "); got != c.params {
			t.Errorf("weights of %T are %q, want %q", c.layer, got, c.params)
		}
		if got := c.layer.Name(); got != c.name {
			t.Errorf("the name of %T is %q, want %q", c.layer, got, c.name)
		}
		if err := c.layer.Err(); err != nil {
			t.Errorf("%T: %v", c.layer, err)
		}
	}
}

// What is wrong with a configuration is what Err says, and Apply, and Fwd.
func TestInvalidLayers(t *testing.T) {
	g := G.NewGraph()
	x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 2, 3), G.WithName("x"))
	for _, c := range []struct {
		layer anyLayer
		want  string
	}{
		{NewLinear(LinearConfig{In: 0, Out: 5}), "layer: linear: in is 0, want at least 1"},
		{NewLinear(LinearConfig{In: 3, Out: -1}), "layer: linear: out is -1, want at least 1"},
		{NewLinear(LinearConfig{In: -2, Out: -1}), "layer: linear: in is -2, want at least 1"},
		{NewLinear(LinearConfig{In: 3, Out: 5}, WithDtype(tensor.Int)), "layer: linear: dtype is int, want float32 or float64"},
		{NewConv1D(Conv1DConfig{Channels: 0, Width: 4}), "layer: convolution: channels is 0, want at least 1"},
		{NewConv1D(Conv1DConfig{Channels: 6, Width: 0}), "layer: convolution: width is 0, want at least 1"},
		{NewConv1D(Conv1DConfig{Channels: 6, Width: 4}, WithDtype(tensor.Bool)), "layer: convolution: dtype is bool, want float32 or float64"},
		{NewConv(ConvConfig{In: 3, Kernel: []int{3}}), "layer: grid convolution: out is 0, want at least 1"},
		{NewConv(ConvConfig{In: 3, Out: 4, Kernel: []int{3, 0}}), "layer: grid convolution: kernel is 0, want at least 1"},
		{NewConv(ConvConfig{In: 3, Out: 4}), "layer: grid convolution: op: grid convolution: the grid has 0 axes, want 1 to 3"},
		{NewConv(ConvConfig{In: 3, Out: 4, Kernel: []int{3}, Groups: 2}), "layer: grid convolution: groups is 2, want a number that divides in, 3, and out, 4"},
		{NewConv(ConvConfig{In: 3, Out: 4, Kernel: []int{3}, Stride: []int{0}}),
			"layer: grid convolution: op: grid convolution: Stride is [0], want numbers from 1 to 1073741824"},
		{NewConvTranspose(ConvTransposeConfig{In: 3, Out: 4, Kernel: []int{3, 3}, Padding: []int{1, 1, 1}}),
			"layer: transposed convolution: op: grid convolution: Padding is [1 1 1], want one number, or one for each of the 2 axes of the grid"},
		{NewConvTranspose(ConvTransposeConfig{In: 3, Out: 4, Kernel: []int{3, 3}, OutputPadding: []int{1}}),
			"layer: transposed convolution: op: grid convolution: OutputPadding is [1], want less than Stride or Dilation"},
		{NewPatchEmbed(PatchEmbedConfig{In: 3, Out: 4, Patch: []int{1, 1, 1, 1}}), "layer: patch embedding: op: grid convolution: the grid has 4 axes, want 1 to 3"},
		{NewRMSNorm(RMSNormConfig{Channels: 0}), "layer: RMS norm: channels is 0, want at least 1"},
		{NewRMSNorm(RMSNormConfig{Channels: 3, Eps: -1}), "layer: RMS norm: eps is -1, want a positive number, or 0 for the default"},
		{NewEmbedding(EmbeddingConfig{Vocabulary: 0, Channels: 3}), "layer: embedding: vocabulary is 0, want at least 1"},
		{NewEmbedding(EmbeddingConfig{Vocabulary: 11, Channels: 0}), "layer: embedding: channels is 0, want at least 1"},
		{NewS6(S6Config{Channels: 0}), "layer: S6: channels is 0, want at least 1"},
		{NewS6(S6Config{Channels: 3, State: -1}), "layer: S6: state size is -1, want at least 1"},
		{NewS6(S6Config{Channels: 3, Rank: -2}), "layer: S6: rank of Δ is -2, want at least 1"},
		{NewS6(S6Config{Channels: 3}, WithDtype(tensor.Int)), "layer: S6: dtype is int, want float32 or float64"},
		{NewS6(S6Config{Channels: 3, DtMin: 0.1, DtMax: 0.01}),
			"layer: S6: the range of Δ is 0.1 to 0.01, want finite numbers above 0, the first not above the second"},
		{NewS6(S6Config{Channels: 3, DtMin: 0, DtMax: 0.01}),
			"layer: S6: the range of Δ is 0 to 0.01, want finite numbers above 0, the first not above the second"},
		{NewS6(S6Config{Channels: 3, DtMin: math.NaN(), DtMax: math.NaN()}),
			"layer: S6: the range of Δ is NaN to NaN, want finite numbers above 0, the first not above the second"},
		{NewS6(S6Config{Channels: 3, DtMin: 1, DtMax: math.Inf(1)}),
			"layer: S6: the range of Δ is 1 to +Inf, want finite numbers above 0, the first not above the second"},
		{NewLSTM(LSTMConfig{Channels: 0}), "layer: LSTM: channels is 0, want at least 1"},
		{NewH3(H3Config{Channels: 0, Inner: S6Config{}}), "layer: H3: channels is 0, want at least 1"},
		{NewH3(H3Config{Channels: 6, Inner: S6Config{}, Heads: -1}), "layer: H3: heads is -1, want at least 1"},
		{NewH3(H3Config{Channels: 6, Inner: S6Config{}, Shift: -1}), "layer: H3: shift is -1, want at least 1"},
		{NewH3(H3Config{Channels: 6, Inner: S6Config{}, Heads: 4}), "layer: H3: heads is 4, want a number that divides the channels, 6"},
		{NewH3(H3Config{Channels: 6, Inner: S6Config{State: -1}}), "layer: H3: inner layer: layer: S6: state size is -1, want at least 1"},
		{NewH3(H3Config{Channels: 6}), "layer: H3: the inner layer is missing, want its configuration, such as S6Config{}"},
		{NewH3(H3Config{Channels: 6, Inner: none{}}), "layer: H3: the configuration of the inner layer returns nil, want a layer"},
		{NewH3(H3Config{Channels: 6, Inner: (*S6Config)(nil)}), "layer: H3: the inner layer is missing, want its configuration, such as S6Config{}"},
		{NewMamba(MambaConfig{Channels: 0}), "layer: Mamba: channels is 0, want at least 1"},
		{NewMamba(MambaConfig{Channels: 2, Inner: -1}), "layer: Mamba: inner is -1, want at least 1"},
		{NewMamba(MambaConfig{Channels: 2, Depth: -1}), "layer: Mamba: depth is -1, want at least 1, or 0 for 1"},
		{NewMamba(MambaConfig{Channels: 2, Bidirectional: true, S4: true}), "layer: Mamba: the layer is bidirectional and has Reverse or S4, want neither"},
		{NewMamba(MambaConfig{Channels: 2, DtScale: -1}), "layer: Mamba: layer: S6: DtScale is -1, want a finite number that is not negative"},
		{NewMamba(MambaConfig{Channels: 2, State: 3, S4: true}), "layer: Mamba: layer: S4: state size is 3, want an even number, two for each complex mode; or S4DReal"},
	} {
		if err := c.layer.Err(); err == nil || err.Error() != c.want {
			t.Errorf("Err of %T is %v, want %s", c.layer, err, c.want)
			continue
		}
		if n, err := apply(c.layer, x); n != nil || err != c.layer.Err() {
			t.Errorf("Apply of %T returns %v, %v, want its Err", c.layer, n, err)
		}
		if r := c.layer.Fwd(x); !errors.Is(r.Err(), c.layer.Err()) {
			t.Errorf("Fwd of %T returns %v, want its Err", c.layer, r.Err())
		}
		if n := len(c.layer.Params()); n != 0 {
			t.Errorf("%T has %d weights", c.layer, n)
		}
		if n := c.layer.Model(); len(n) != 0 {
			t.Errorf("Model of %T is %v", c.layer, n)
		}
		if got, want := stdout(t, c.layer.Describe), c.layer.Name()+": 0 parameters\n"; got != want {
			t.Errorf("Describe of %T prints %q, want %q", c.layer, got, want)
		}
	}
	for _, l := range []Mixer{
		NewConv1D(Conv1DConfig{Channels: 6, Width: 0}), NewS6(S6Config{}), NewS4(S4Config{}), NewLSTM(LSTMConfig{}), NewMamba(MambaConfig{}),
		NewH3(H3Config{Channels: 0, Inner: S6Config{}}), NewAttention(AttentionConfig{}), NewGatedMLP(GatedMLPConfig{}),
	} {
		if _, _, err := l.ApplyWithState(x, nil); err == nil || err != l.Err() {
			t.Errorf("ApplyWithState of %T returns %v, want Err", l, err)
		}
		if slots := l.Slots(); slots != nil {
			t.Errorf("the slots of an invalid %T are %v, want none", l, slots)
		}
		if state, err := ZeroState(l, g, 1); state != nil || err != l.Err() {
			t.Errorf("ZeroState of an invalid %T returns %v, %v, want Err", l, state, err)
		}
	}
}

// none is the configuration of no layer.
type none struct{}

func (none) Mixer(int, ...Option) Mixer { return nil }

func TestMissingInput(t *testing.T) {
	for _, c := range []struct {
		layer anyLayer
		want  string
	}{
		{NewLinear(LinearConfig{In: 3, Out: 5}, WithName("head")), "head: the input is missing, want a node"},
		{NewConv1D(Conv1DConfig{Channels: 3, Width: 2}), "convolution: the input is missing, want a node"},
		{NewConv(ConvConfig{In: 3, Out: 2, Kernel: []int{1}}), "grid convolution: the input is missing, want a node"},
		{NewConvTranspose(ConvTransposeConfig{In: 3, Out: 2, Kernel: []int{1}}), "transposed convolution: the input is missing, want a node"},
		{NewRMSNorm(RMSNormConfig{Channels: 3}), "RMS norm: the input is missing, want a node"},
		{NewEmbedding(EmbeddingConfig{Vocabulary: 3, Channels: 2}), "embedding: the input is missing, want a node"},
		{NewS6(S6Config{Channels: 3}), "S6: the input is missing, want a node"},
		{NewH3(H3Config{Channels: 3, Inner: S6Config{}}), "H3: the input is missing, want a node"},
	} {
		if _, err := apply(c.layer, nil); err == nil || err.Error() != c.want {
			t.Errorf("Apply(nil) of %T returns %v, want %s", c.layer, err, c.want)
		}
		if r := c.layer.Fwd(nil); r.Err() == nil || r.Err().Error() != c.want {
			t.Errorf("Fwd(nil) of %T returns %v, want %s", c.layer, r.Err(), c.want)
		}
	}
}

// failed is a node that carries an error.
type failed struct {
	n   *G.Node
	err error
}

func (f failed) Node() *G.Node  { return f.n }
func (f failed) Nodes() G.Nodes { return G.Nodes{f.n} }
func (f failed) Err() error     { return f.err }

// Fwd is Apply; it passes on what went wrong before it.
func TestFwd(t *testing.T) {
	g := G.NewGraph()
	x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 2, 3), G.WithName("x"))
	ids := G.NewTensor(g, tensor.Int, 2, G.WithShape(1, 2), G.WithName("ids"))
	wrong := errors.New("no data today")
	for _, c := range []struct {
		layer anyLayer
		in    *G.Node
		shape string
	}{
		{NewLinear(LinearConfig{In: 3, Out: 5}), x, "(1, 2, 5)"},
		{NewConv1D(Conv1DConfig{Channels: 3, Width: 2}), x, "(1, 2, 3)"},
		{NewConv(ConvConfig{In: 3, Out: 4, Kernel: []int{2}}), x, "(1, 1, 4)"},
		{NewConvTranspose(ConvTransposeConfig{In: 3, Out: 4, Kernel: []int{2}, Stride: []int{2}}), x, "(1, 4, 4)"},
		{NewPatchEmbed(PatchEmbedConfig{In: 3, Out: 4, Patch: []int{2}, Stride: []int{1}}), x, "(1, 1, 4)"},
		{NewRMSNorm(RMSNormConfig{Channels: 3}), x, "(1, 2, 3)"},
		{NewEmbedding(EmbeddingConfig{Vocabulary: 7, Channels: 4}), ids, "(1, 2, 4)"},
		{NewS6(S6Config{Channels: 3}), x, "(1, 2, 3)"},
		{NewGatedMLP(GatedMLPConfig{Channels: 3, Hidden: 5}), x, "(1, 2, 3)"},
		{NewAttention(AttentionConfig{Channels: 3, NoRotary: true}), x, "(1, 2, 3)"},
		{NewH3(H3Config{Channels: 3, Inner: S6Config{}, Heads: 1}), x, "(1, 2, 3)"},
		{NewS4(S4Config{Channels: 3}), x, "(1, 2, 3)"},
	} {
		if n := c.layer.Model(); len(n) != 0 {
			t.Errorf("Model of %T before its first use is %v", c.layer, n)
		}
		r := c.layer.Fwd(c.in)
		if r.Err() != nil {
			t.Errorf("Fwd of %T: %v", c.layer, r.Err())
			continue
		}
		if s := fmt.Sprint(r.Node().Shape()); s != c.shape {
			t.Errorf("Fwd of %T has shape %s, want %s", c.layer, s, c.shape)
		}
		want := c.layer.Params().Nodes(g)
		if got := c.layer.Model(); len(got) != len(want) || got[0] != want[0] {
			t.Errorf("Model of %T is %v, want %v", c.layer, got, want)
		}
		if r := c.layer.Fwd(G.Err(wrong)); !errors.Is(r.Err(), wrong) {
			t.Errorf("Fwd of %T after an error returns %v, want it", c.layer, r.Err())
		}
		if r := c.layer.Fwd(failed{c.in, wrong}); !errors.Is(r.Err(), wrong) {
			t.Errorf("Fwd of %T on a node with an error returns %v, want it", c.layer, r.Err())
		}
	}
	if r := NewLinear(LinearConfig{In: 4, Out: 5}).Fwd(x); r.Err() == nil || r.Node() != nil {
		t.Errorf("Fwd of an input that does not fit returns %v, %v", r.Node(), r.Err())
	}
}

// Model follows the layer from graph to graph.
func TestModelOfLastGraph(t *testing.T) {
	l := NewLinear(LinearConfig{In: 3, Out: 2, Bias: true})
	for range 2 {
		g := G.NewGraph()
		if _, err := l.Apply(G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 1, 3), G.WithName("x"))); err != nil {
			t.Fatal(err)
		}
		m := l.Model()
		if len(m) != 2 || m[0] != l.Weight.Node(g) || m[1] != l.Bias.Node(g) {
			t.Errorf("Model is %v", m)
		}
	}
}

func TestDescribe(t *testing.T) {
	got := stdout(t, NewConv1D(Conv1DConfig{Channels: 6, Width: 4}, WithName("conv1d"), WithDtype(tensor.Float64)).Describe)
	want := "conv1d: 30 parameters\n" +
		"  conv1d.weight                            (6, 1, 4)        float64\n" +
		"  conv1d.bias                              (6)              float64  no weight decay\n"
	if got != want {
		t.Errorf("Describe prints\n%swant\n%s", got, want)
	}
}

// stdout returns what f prints.
func stdout(t *testing.T, f func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stdout
	os.Stdout = w
	f()
	os.Stdout = old
	w.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A layer does not keep the graph alive that it was applied in.
func TestModelKeepsNoGraph(t *testing.T) {
	l := NewLinear(LinearConfig{In: 3, Out: 2})
	func() {
		x := G.NewTensor(G.NewGraph(), tensor.Float32, 3, G.WithShape(1, 1, 3), G.WithName("x"))
		if _, err := l.Apply(x); err != nil {
			t.Fatal(err)
		}
		if len(l.Model()) != 1 {
			t.Error("Model has not the weight of the graph")
		}
		runtime.KeepAlive(x)
	}()
	runtime.GC()
	runtime.GC()
	if m := l.Model(); m != nil {
		t.Errorf("Model is %v after the graph was dropped, want nil", m)
	}
}
