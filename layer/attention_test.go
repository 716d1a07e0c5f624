package layer

import (
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// The number of heads that nobody has set fits any even width.
func TestAttentionDefaultHeads(t *testing.T) {
	for width, want := range map[int]int{2: 1, 64: 1, 100: 1, 128: 2, 200: 2, 390: 5, 768: 12} {
		l := NewAttention(AttentionConfig{Channels: width}, WithZeros())
		if err := l.Err(); err != nil || l.Parts.cfg.Heads != want {
			t.Errorf("attention of width %d has %d heads, %v, want %d", width, l.Parts.cfg.Heads, err, want)
		}
	}
}

func TestAttentionErrors(t *testing.T) {
	x := G.NewTensor(G.NewGraph(), tensor.Float32, 3, G.WithShape(1, 2, 6), G.WithName("x"))
	for want, l := range map[string]*Attention{
		"layer: attention: channels is 0, want at least 1":                                                                                              NewAttention(AttentionConfig{Channels: 0}),
		"layer: attention: heads is 4, want a number that divides the channels, 6":                                                                      NewAttention(AttentionConfig{Channels: 6, Heads: 4}),
		"layer: attention: heads is -1, want a number that divides the channels, 6":                                                                     NewAttention(AttentionConfig{Channels: 6, Heads: -1}),
		"layer: attention: rotary positions need an even head dimension, and 6/2 is 3":                                                                  NewAttention(AttentionConfig{Channels: 6, Heads: 2}),
		"layer: attention: the rotary base is 0.5, want a number above 1, or 0 for the default":                                                         NewAttention(AttentionConfig{Channels: 6, Rotary: 0.5}),
		"layer: attention: the window is 1, want at least 2, or 0 for none":                                                                             NewAttention(AttentionConfig{Channels: 6, Window: 1}),
		"layer: attention: the window is -2, want at least 2, or 0 for none":                                                                            NewAttention(AttentionConfig{Channels: 6, Window: -2}),
		"layer: attention: the rotary base is 100 with NoRotary, want 0":                                                                                NewAttention(AttentionConfig{Channels: 6, Rotary: 100, NoRotary: true}),
		"attention: attention without a window has a state that would grow with every step, want a Window of at least 2 (in package nn, Config.Window)": NewAttention(AttentionConfig{Channels: 6}),
	} {
		if _, _, err := l.ApplyWithState(x, nil); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
