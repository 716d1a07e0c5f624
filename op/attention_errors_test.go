package op

import (
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

func TestAttentionErrors(t *testing.T) {
	g := G.NewGraph()
	node := unbound(g)
	for _, test := range []struct {
		change func(in *AttentionInputs, cfg *AttentionConfig)
		want   string
	}{
		{func(in *AttentionInputs, _ *AttentionConfig) { in.Q = nil }, "Q is missing"},
		{func(in *AttentionInputs, _ *AttentionConfig) { in.Q = node(tensor.Int, 2, 5, 12) }, "Q is of int, want float32 or float64"},
		{func(in *AttentionInputs, _ *AttentionConfig) { in.Q = node(f64, 5, 12) }, "Q has shape (5, 12), want (batch, length, channels)"},
		{func(in *AttentionInputs, _ *AttentionConfig) { in.K = nil }, "K is missing, want a node of shape (batch, length, channels)"},
		{func(in *AttentionInputs, _ *AttentionConfig) { in.K = node(f32, 2, 5, 12) }, "K is of float32, want float64 like the other operands"},
		{func(in *AttentionInputs, _ *AttentionConfig) { in.V = node(f64, 2, 6, 12) },
			"V has shape (2, 6, 12), want (batch, length, channels) = (2, 5, 12)"},
		{func(in *AttentionInputs, _ *AttentionConfig) { in.V = unbound(G.NewGraph())(f64, 2, 5, 12) },
			"V belongs to another graph than the other operands"},
		{func(in *AttentionInputs, _ *AttentionConfig) { in.Context = node(f64, 2, 4, 25) },
			"Context has shape (2, 4, 25), want (batch, window-1, 2·channels+1) = (2, 3, 25)"},
		{func(in *AttentionInputs, cfg *AttentionConfig) { cfg.Window = 0 },
			"Context has shape (2, 3, 25), want none: Window is 0, and only one of at least 2 has a context"},
		{func(in *AttentionInputs, _ *AttentionConfig) { in.Start = node(f64, 2, 4) }, "Start has shape (2, 4), want (batch, length) = (2, 5)"},
		{func(_ *AttentionInputs, cfg *AttentionConfig) { cfg.Heads = 0 }, "Heads is 0, want a number that divides the channels, 12"},
		{func(_ *AttentionInputs, cfg *AttentionConfig) { cfg.Heads = 5 }, "Heads is 5, want a number that divides the channels, 12"},
		{func(_ *AttentionInputs, cfg *AttentionConfig) { cfg.Heads = 4 }, "Rotary needs an even head dimension, and channels/Heads is 3"},
		{func(_ *AttentionInputs, cfg *AttentionConfig) { cfg.Rotary = 1 }, "Rotary is 1, want a base above 1, or 0 for none"},
		{func(_ *AttentionInputs, cfg *AttentionConfig) { cfg.Window = -1 }, "Window is -1, want at least 1, or 0 for all steps"},
	} {
		in := AttentionInputs{
			Q: node(f64, 2, 5, 12), K: node(f64, 2, 5, 12), V: node(f64, 2, 5, 12),
			Context: node(f64, 2, 3, 25), Start: node(f64, 2, 5),
		}
		cfg := AttentionConfig{Heads: 2, Window: 4, Rotary: 10000}
		test.change(&in, &cfg)
		_, err := Attention(in, cfg)
		_, _, withContext := AttentionWithContext(in, cfg)
		for _, err := range []error{err, withContext} {
			if err == nil || !strings.HasPrefix(err.Error(), "op: attention: "+test.want) {
				t.Errorf("%v, want op: attention: %s", err, test.want)
			}
		}
	}
	for _, window := range []int{0, 1} {
		q := node(f64, 2, 5, 12)
		_, _, err := AttentionWithContext(AttentionInputs{Q: q, K: q, V: q}, AttentionConfig{Heads: 2, Window: window})
		if err == nil || !strings.Contains(err.Error(), "want at least 2") {
			t.Errorf("a context of window %d: %v", window, err)
		}
	}
}
