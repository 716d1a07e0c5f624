package layer

import (
	"math"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/size"
)

// counted makes a layer in the way in which Build counts its bytes.
func counted(bytes *size.Bytes) Option {
	return func(o *Options) { o.count, o.times, o.Zeros = bytes, 1, true }
}

// What is counted before a layer is made is what its weights then take.
func TestCountedBytes(t *testing.T) {
	type made interface {
		Params() Params
		Err() error
	}
	for name, make := range map[string]func(opts ...Option) made{
		"linear":          func(o ...Option) made { return NewLinear(3, 5, append(o, WithBias(true))...) },
		"convolution":     func(o ...Option) made { return NewConv1D(6, 4, o...) },
		"embedding":       func(o ...Option) made { return NewEmbedding(11, 3, o...) },
		"RMS norm":        func(o ...Option) made { return NewRMSNorm(7, o...) },
		"gated MLP":       func(o ...Option) made { return NewGatedMLP(8, 0, append(o, WithBias(true))...) },
		"LSTM":            func(o ...Option) made { return NewLSTM(5, o...) },
		"S4":              func(o ...Option) made { return NewS4(3, o...) },
		"S4, real":        func(o ...Option) made { return NewS4(3, append(o, WithA(S4DReal))...) },
		"S4, LegS":        func(o ...Option) made { return NewS4(3, append(o, WithA(S4DLegS))...) },
		"S6":              func(o ...Option) made { return NewS6(20, o...) },
		"H3":              func(o ...Option) made { return NewH3(6, NewS6, append(o, WithHeads(2))...) },
		"attention":       func(o ...Option) made { return NewAttention(8, append(o, WithHeads(2))...) },
		"H3 with an LSTM": func(o ...Option) made { return NewH3(4, NewLSTM, o...) },
	} {
		for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
			var got, want size.Bytes
			for _, p := range make(WithDtype(dt)).Params() {
				want = want.Plus(size.Of(dt.Size(), p.Value.Shape()...)).Plus(overhead)
			}
			if err := make(WithDtype(dt), counted(&got)).Err(); err != nil || want == 0 || got != want {
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
			{NewLinear(n, 3), "layer: linear: in is "},
			{NewLinear(3, n), "layer: linear: out is "},
			{NewConv1D(n, 4), "layer: convolution: channels is "},
			{NewConv1D(4, n), "layer: convolution: width is "},
			{NewEmbedding(n, 4), "layer: embedding: vocabulary is "},
			{NewEmbedding(4, n), "layer: embedding: width is "},
			{NewRMSNorm(n), "layer: RMS norm: width is "},
			{NewGatedMLP(n, 0), "layer: gated MLP: width is "},
			{NewGatedMLP(4, n), "layer: gated MLP: hidden is "},
			{NewLSTM(n), "layer: LSTM: channels is "},
			{NewS4(n), "layer: S4: channels is "},
			{NewS4(4, WithStateSize(n)), "layer: S4: state size is "},
			{NewS6(n), "layer: S6: channels is "},
			{NewS6(4, WithStateSize(n)), "layer: S6: state size is "},
			{NewS6(4, WithDtRank(n)), "layer: S6: rank of Δ is "},
			{NewH3(n, NewS6), "layer: H3: width is "},
			{NewH3(4, NewS6, WithShift(n)), "layer: H3: shift is "},
			{NewH3(4, NewS6, WithHeads(n)), "layer: H3: heads is "},
			{NewH3(4, NewS6, WithStateSize(n)), "layer: H3: inner layer: layer: S6: state size is "},
			{NewAttention(n), "layer: attention: width is "},
			{NewAttention(4, WithWindow(n)), "layer: attention: the window is "},
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
		"the weights need": NewLinear(side, side).Err(),
		"in is ":           NewLinear(side, side).Err(),
		"hidden is ":       NewGatedMLP(side/2, side).Err(), // a projection fits
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
		func(o ...Option) Params { return NewLinear(3, 5, append(o, WithBias(true))...).Params() },
		func(o ...Option) Params { return NewEmbedding(3, 5, o...).Params() },
		func(o ...Option) Params { return NewAttention(4, append(o, WithBias(true))...).Params() },
		func(o ...Option) Params {
			return NewH3(4, func(n int, o ...Option) *Attention { return NewAttention(n, o...) }, o...).Params()
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
