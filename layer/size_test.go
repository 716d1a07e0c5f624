package layer

import (
	"math"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
)

// What is counted before a layer is made is what its weights then take.
func TestCountedBytes(t *testing.T) {
	type made interface {
		Params() Params
		Err() error
	}
	for name, make := range map[string]func(opts ...Option) made{
		"linear":          func(o ...Option) made { return NewLinear(LinearConfig{In: 3, Out: 5, Bias: true}, o...) },
		"convolution":     func(o ...Option) made { return NewConv1D(Conv1DConfig{Channels: 6, Width: 4}, o...) },
		"embedding":       func(o ...Option) made { return NewEmbedding(EmbeddingConfig{Vocabulary: 11, Channels: 3}, o...) },
		"RMS norm":        func(o ...Option) made { return NewRMSNorm(RMSNormConfig{Channels: 7}, o...) },
		"gated MLP":       func(o ...Option) made { return NewGatedMLP(GatedMLPConfig{Channels: 8, Hidden: 0, Bias: true}, o...) },
		"LSTM":            func(o ...Option) made { return NewLSTM(LSTMConfig{Channels: 5}, o...) },
		"S4":              func(o ...Option) made { return NewS4(S4Config{Channels: 3}, o...) },
		"S4, real":        func(o ...Option) made { return NewS4(S4Config{Channels: 3, A: S4DReal}, o...) },
		"S4, LegS":        func(o ...Option) made { return NewS4(S4Config{Channels: 3, A: S4DLegS}, o...) },
		"S6":              func(o ...Option) made { return NewS6(S6Config{Channels: 20}, o...) },
		"H3":              func(o ...Option) made { return NewH3(H3Config{Channels: 6, Inner: S6Config{}, Heads: 2}, o...) },
		"Mamba":           func(o ...Option) made { return NewMamba(MambaConfig{Channels: 5, Bias: true}, o...) },
		"Mamba of S4":     func(o ...Option) made { return NewMamba(MambaConfig{Channels: 5, S4: true}, o...) },
		"attention":       func(o ...Option) made { return NewAttention(AttentionConfig{Channels: 8, Heads: 2}, o...) },
		"H3 with an LSTM": func(o ...Option) made { return NewH3(H3Config{Channels: 4, Inner: LSTMConfig{}}, o...) },
	} {
		for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
			var got, want size.Bytes
			for _, p := range make(WithDtype(dt)).Params() {
				want = want.Plus(size.Of(dt.Size(), p.Value.Shape()...)).Plus(build.Overhead)
			}
			if err := make(WithDtype(dt), build.Count(&got)).Err(); err != nil || want == 0 || got != want {
				t.Errorf("%s of %v: %d bytes are counted, and the weights take %d (%v)", name, dt, got, want, err)
			}
		}
	}
}

// Sizes that no machine has memory for are errors that name them.
func TestHugeLayers(t *testing.T) {
	const huge, most = math.MaxInt/1024/1024 + 1, math.MaxInt/2 + 1 // 1<<43 and 1<<62 where an int has 64 bits
	for _, n := range []int{huge, most} {
		for _, c := range []struct {
			layer interface {
				Params() Params
				Err() error
			}
			want string
		}{
			{NewLinear(LinearConfig{In: n, Out: 3}), "layer: linear: in is "},
			{NewLinear(LinearConfig{In: 3, Out: n}), "layer: linear: out is "},
			{NewConv1D(Conv1DConfig{Channels: n, Width: 4}), "layer: convolution: channels is "},
			{NewConv1D(Conv1DConfig{Channels: 4, Width: n}), "layer: convolution: width is "},
			{NewEmbedding(EmbeddingConfig{Vocabulary: n, Channels: 4}), "layer: embedding: vocabulary is "},
			{NewEmbedding(EmbeddingConfig{Vocabulary: 4, Channels: n}), "layer: embedding: channels is "},
			{NewRMSNorm(RMSNormConfig{Channels: n}), "layer: RMS norm: channels is "},
			{NewGatedMLP(GatedMLPConfig{Channels: n, Hidden: 0}), "layer: gated MLP: channels is "},
			{NewGatedMLP(GatedMLPConfig{Channels: 4, Hidden: n}), "layer: gated MLP: hidden is "},
			{NewLSTM(LSTMConfig{Channels: n}), "layer: LSTM: channels is "},
			{NewS4(S4Config{Channels: n}), "layer: S4: channels is "},
			{NewS4(S4Config{Channels: 4, State: n}), "layer: S4: state size is "},
			{NewS6(S6Config{Channels: n}), "layer: S6: channels is "},
			{NewS6(S6Config{Channels: 4, State: n}), "layer: S6: state size is "},
			{NewS6(S6Config{Channels: 4, Rank: n}), "layer: S6: rank of Δ is "},
			{NewH3(H3Config{Channels: n, Inner: S6Config{}}), "layer: H3: channels is "},
			{NewH3(H3Config{Channels: 4, Inner: S6Config{}, Shift: n}), "layer: H3: shift is "},
			{NewH3(H3Config{Channels: 4, Inner: S6Config{}, Heads: n}), "layer: H3: heads is "},
			{NewH3(H3Config{Channels: 4, Inner: S6Config{State: n}}), "layer: H3: inner layer: layer: S6: state size is "},
			{NewMamba(MambaConfig{Channels: n}), "layer: Mamba: channels is "},
			{NewMamba(MambaConfig{Channels: 4, Inner: n}), "layer: Mamba: inner is "},
			{NewMamba(MambaConfig{Channels: 4, Width: n}), "layer: Mamba: width is "},
			{NewAttention(AttentionConfig{Channels: n}), "layer: attention: channels is "},
			{NewAttention(AttentionConfig{Channels: 4, Window: n}), "layer: attention: the window is "},
		} {
			if err := c.layer.Err(); err == nil || !strings.HasPrefix(err.Error(), c.want) || !strings.Contains(err.Error(), "machine") && !strings.Contains(err.Error(), "heads") {
				t.Errorf("size %d: error %v, want %s…", n, err, c.want)
			}
			if len(c.layer.Params()) > 0 {
				t.Errorf("size %d: weights in spite of %v", n, c.layer.Err())
			}
		}
	}
	// Each size fits, and the weights do not.
	side := int(math.Sqrt(float64(size.Machine())))
	for want, err := range map[string]error{
		"the weights need": NewLinear(LinearConfig{In: side, Out: side}).Err(),
		"in is ":           NewLinear(LinearConfig{In: side, Out: side}).Err(),
		"hidden is ":       NewGatedMLP(GatedMLPConfig{Channels: side / 2, Hidden: side}).Err(), // a projection fits
		"its eigenvalues":  func() error { _, err := S4DLegS.Values(side &^ 1); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "this machine's memory of ") {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

// Two layers without name and seed are drawn apart, all of their parts; equal seeds or names draw alike.
func TestUnnamedLayersDrawApart(t *testing.T) {
	same := func(a, b Params) bool {
		equal := 0
		for i, p := range a {
			x, y := p.Value.Data().([]float32), b[i].Value.Data().([]float32)
			if x[0] == y[0] && x[len(x)-1] == y[len(y)-1] {
				equal++
			}
		}
		if equal != 0 && equal != len(a) {
			t.Errorf("%d of %d weights are equal", equal, len(a))
		}
		return equal > 0
	}
	for _, make := range []func(opts ...Option) Params{
		func(o ...Option) Params { return NewLinear(LinearConfig{In: 3, Out: 5, Bias: true}, o...).Params() },
		func(o ...Option) Params {
			return NewEmbedding(EmbeddingConfig{Vocabulary: 3, Channels: 5}, o...).Params()
		},
		func(o ...Option) Params { return NewAttention(AttentionConfig{Channels: 4, Bias: true}, o...).Params() },
		func(o ...Option) Params {
			return NewH3(H3Config{Channels: 4, Inner: AttentionConfig{}}, o...).Params()
		},
	} {
		if same(make(), make()) || same(make(), make(WithSeed(0))) || same(make(WithSeed(1)), make()) {
			t.Error("unnamed layers are equal")
		}
		if !same(make(WithSeed(0)), make(WithSeed(0))) || !same(make(WithName("a")), make(WithName("a"))) {
			t.Error("layers of one seed or name differ")
		}
	}
}
