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
		l := NewAttention(width, WithZeros())
		if err := l.Err(); err != nil || l.cfg.Heads != want {
			t.Errorf("attention of width %d has %d heads, %v, want %d", width, l.cfg.Heads, err, want)
		}
	}
}

func TestAttentionErrors(t *testing.T) {
	x := G.NewTensor(G.NewGraph(), tensor.Float32, 3, G.WithShape(1, 2, 6), G.WithName("x"))
	for want, l := range map[string]*Attention{
		"layer: attention: width is 0, want at least 1":                                       NewAttention(0),
		"layer: attention: heads is 4, want a number that divides the width, 6":               NewAttention(6, WithHeads(4)),
		"layer: attention: heads is -1, want a number that divides the width, 6":              NewAttention(6, WithHeads(-1)),
		"layer: attention: rotary positions need an even head dimension, and 6/2 is 3":        NewAttention(6, WithHeads(2)),
		"layer: attention: the rotary base is 0.5, want a number above 1, or 0 for none":      NewAttention(6, WithRotary(0.5)),
		"layer: attention: the window is 1, want at least 2, or 0 for none":                   NewAttention(6, WithWindow(1)),
		"layer: attention: the window is -2, want at least 2, or 0 for none":                  NewAttention(6, WithWindow(-2)),
		"attention: attention has no state of fixed size, want one with a window (WithWindow": NewAttention(6),
	} {
		if _, _, err := l.ApplyWithState(x, nil, nil); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
