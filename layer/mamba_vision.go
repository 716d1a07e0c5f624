package layer

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/op"
)

// MambaVision is the mixer of MambaVision (Hatamizadeh and Kautz, "MambaVision: A Hybrid Mamba-Transformer Vision Backbone", equation 6). Its input and its
// result are (batch, length, channels).
//
//	x → in_proj → split u, z;  u, z → each a depthwise convolution, SiLU;  y = S6(u);  out_proj(u and z side by side, with y in place of u)
//
// The convolutions see as many steps after a step as before it, and one more after it if the width is even. So the layer has no state. It has no gate. As in
// the published code, the scan adds the bias of dt_proj a second time.
type MambaVision = build.OverTime[MambaVisionParts, Params]

// MambaVisionParts is what a MambaVision is made of.
type MambaVisionParts struct {
	InProj, OutProj *Linear // "in_proj" (inner, channels), "out_proj" (channels, inner)
	S6              *S6     // its weights have no prefix; of inner/2 channels
	ConvX, ConvZ    *Conv   // "conv1d_x", "conv1d_z", without bias
}

// MambaVisionConfig configures a MambaVision. A zero field stands for its default.
type MambaVisionConfig struct {
	Channels int // required
	Inner    int // channels of u and z together, an even number; Channels
	State    int // N, the size of the state of each channel; 8
	Width    int // of the convolutions; 3
	Rank     int // of the projection that computes Δ; Channels/16, rounded up
}

// NewMambaVision returns the mixer of a MambaVision.
func NewMambaVision(cfg MambaVisionConfig, opts ...Option) *MambaVision {
	cfg.Inner, cfg.State = build.OrDefault(cfg.Inner, cfg.Channels), build.OrDefault(cfg.State, 8)
	cfg.Width, cfg.Rank = build.OrDefault(cfg.Width, 3), build.OrDefault(cfg.Rank, (cfg.Channels+15)/16)
	sizes := []any{"channels", cfg.Channels, "inner", cfg.Inner, "state", cfg.State, "width", cfg.Width, "rank", cfg.Rank}
	return newMixer("MambaVision", opts, sizes, func(l *MambaVision, p *MambaVisionParts, o build.Options) (params Params, err error) {
		half := cfg.Inner / 2
		if cfg.Inner%2 != 0 {
			return nil, fmt.Errorf("inner is %d, want an even number", cfg.Inner)
		}
		p.InProj, p.OutProj = projection(o, "in_proj", cfg.Channels, cfg.Inner, false), projection(o, "out_proj", cfg.Inner, cfg.Channels, false)
		p.S6 = NewS6(S6Config{Channels: half, State: cfg.State, Rank: cfg.Rank, DtFloor: 1e-4}, o.Part("")...)
		conv := ConvConfig{
			In: half, Out: half, Kernel: []int{cfg.Width}, NoBias: true, Padding: []int{(cfg.Width - 1) / 2}, PaddingEnd: []int{cfg.Width / 2}, Groups: half, SiLU: true,
		}
		p.ConvX, p.ConvZ = NewConv(conv, o.Part("conv1d_x")...), NewConv(conv, o.Part("conv1d_z")...)
		build.MixWith(l, cfg.Channels, nil, p.mix)
		build.WithoutState(l, reversedState)
		return together(p.S6, p.InProj, p.OutProj, p.ConvX, p.ConvZ)
	})
}

func (p *MambaVisionParts) mix(s *build.Steps, x *G.Node) *G.Node {
	if s.Start != nil {
		return s.Do(nil, fmt.Errorf("start is given, want none: the convolutions would cross the boundaries between sequences"))
	}
	half := p.S6.Parts.channels
	uz := split(s, s.Do(p.InProj.Apply(x)), half, half)
	u, z := s.Do(p.ConvX.Apply(uz[0])), s.Do(p.ConvZ.Apply(uz[1])) // (batch, length, inner/2)
	y := p.S6.Parts.scanWith(s, u, nil, true)
	return s.Do(p.OutProj.Apply(s.Do(op.Concat(2, y, z)))) // (batch, length, channels)
}
