package layer

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// SS2D mixes the pixels of an image by selective scans in several directions (Liu et al., "VMamba: Visual State Space Model", section 4.2). Its input and
// its result are (batch, height, width, channels).
//
//	x → in_proj → split u, z;  u → depthwise convolution, SiLU;  for each direction k: dt, B, C = split(x_proj_k(u));  Δ = softplus(dt_proj_k(dt));
//	y = Σ_k scan(u, Δ, A = -exp(A_logs), B, C, D) in the order of k → out_norm → times silu(z) → out_proj
//
// The scans and their projections are op.SS2D, which makes no copy of the image for a direction. The defaults are VMamba's first form, which VM-UNet has too. With NoGate,
// State 1 and NoConvBias, it is the form of the released VMambas of 2024 ("v05_noz"): in_proj has no z.
//
// The weights have VMamba's names. Projections and convolution start uniform as in Linear and Conv, and the others as in S6.
type SS2D struct {
	Base
	InProj, OutProj *Linear    // "in_proj" (2·inner or, without the gate, inner, channels), "out_proj" (channels, inner)
	Conv, ConvBias  *Param     // "conv2d.weight" (inner, 1, width, width), "conv2d.bias" (inner), or nil
	XProj           *Param     // "x_proj_weight" (directions, rank+2·state, inner)
	DtProj, DtBias  *Param     // "dt_projs_weight" (directions, inner, rank), "dt_projs_bias" (directions, inner)
	ALogs, Ds       *Param     // "A_logs" (directions·inner, state), "Ds" (directions·inner)
	OutNorm         *LayerNorm // "out_norm"
	cfg             SS2DConfig
	directions      int
}

// SS2DConfig configures an SS2D. A zero field stands for its default.
type SS2DConfig struct {
	Channels int // required
	Inner    int // channels of convolution and scans; 2·Channels
	State    int // N, the size of the state of each channel; 16
	Width    int // of the convolution, an odd number; 3
	Rank     int // of the projections that compute Δ; Channels/16, rounded up

	NoGate     bool // in_proj computes no z
	NoConvBias bool // the convolution has no bias

	DtMin, DtMax float64 // range of the initial steps Δ; 0.001 to 0.1

	// Orders returns the directions for an image, always as many of them; op.VMambaOrders. A layer of LocalMamba takes four of
	// op.LocalMambaOrders.
	Orders func(height, width int) []op.Order
}

// NewSS2D returns an SS2D.
func NewSS2D(cfg SS2DConfig, opts ...Option) *SS2D {
	cfg.Inner = build.OrDefault(cfg.Inner, size.Product(2, cfg.Channels))
	cfg.State, cfg.Width = build.OrDefault(cfg.State, 16), build.OrDefault(cfg.Width, 3)
	cfg.Rank = build.OrDefault(cfg.Rank, (cfg.Channels+15)/16)
	if cfg.Orders == nil {
		cfg.Orders = op.VMambaOrders
	}
	sizes := []any{"channels", cfg.Channels, "inner", cfg.Inner, "state", cfg.State, "width", cfg.Width, "rank", cfg.Rank}
	return newLayer("SS2D", opts, sizes, func(l *SS2D, o build.Options) (Params, error) {
		low, high, err := dtRange(cfg.DtMin, cfg.DtMax)
		if err != nil {
			return nil, err
		}
		l.cfg, l.directions = cfg, len(cfg.Orders(2, 2))
		switch {
		case cfg.Width%2 == 0:
			return nil, fmt.Errorf("width is %d, want an odd number", cfg.Width)
		case l.directions == 0:
			return nil, fmt.Errorf("field Orders returns no order, want at least one")
		}
		n, k, in := cfg.Inner, l.directions, cfg.Inner
		if !cfg.NoGate {
			in *= 2
		}
		l.InProj, l.OutProj = projection(o, "in_proj", cfg.Channels, in, false), projection(o, "out_proj", n, cfg.Channels, false)
		conv := o
		conv.Name = build.Join(o.Name, "conv2d")
		var convParams Params
		l.Conv, l.ConvBias, convParams = affine(conv, !cfg.NoConvBias, 1/float64(cfg.Width), n, 1, cfg.Width, cfg.Width)
		l.OutNorm = NewLayerNorm(LayerNormConfig{Channels: n}, o.Part("out_norm")...)
		param := func(name string, decay bool, draw func(name string) func() float64, shape ...int) *Param {
			name = build.Join(o.Name, name)
			return NewParam(name, o.New(draw(name), shape...), decay)
		}
		uniform := func(bound float64) func(string) func() float64 {
			return func(name string) func() float64 { return build.Uniform(o.Rand(name), bound) }
		}
		l.XProj = param("x_proj_weight", true, uniform(1/math.Sqrt(float64(n))), k, cfg.Rank+2*cfg.State, n)
		l.DtProj = param("dt_projs_weight", true, uniform(1/math.Sqrt(float64(cfg.Rank))), k, n, cfg.Rank)
		l.DtBias = param("dt_projs_bias", false, func(name string) func() float64 {
			step := build.LogUniform(o.Rand(name), low, high)
			return func() float64 { return build.InverseSoftplus(max(step(), 1e-4)) }
		}, k, n)
		l.ALogs = param("A_logs", false, func(string) func() float64 {
			i := 0
			return func() float64 {
				i = i%cfg.State + 1
				return math.Log(float64(i)) // S4D-Real: A_n = -n
			}
		}, k*n, cfg.State)
		l.Ds = param("Ds", false, func(string) func() float64 { return build.Constant(1) }, k*n)
		first, err := together(l.InProj)
		rest, err2 := together(l.OutNorm, l.OutProj)
		for _, err := range []error{err, err2} {
			if err != nil {
				return nil, err
			}
		}
		params := append(Params{l.XProj, l.DtProj, l.DtBias, l.ALogs, l.Ds}, first...)
		return append(append(params, convParams...), rest...), nil
	})
}

// Err returns what is wrong with the layer, or nil.
func (l *SS2D) Err() error { return build.Err(l) }

// Apply applies the layer to x (batch, height, width, channels).
func (l *SS2D) Apply(x *G.Node) (*G.Node, error) {
	return build.At(l, x, func(x *G.Node) (*G.Node, error) {
		shape := x.Shape()
		if len(shape) != 4 || shape[3] != l.cfg.Channels {
			return nil, fmt.Errorf("%s: x has shape %v, want (batch, height, width, channels) = (any, any, any, %d)", l.Name(), shape, l.cfg.Channels)
		}
		orders := l.cfg.Orders(shape[1], shape[2])
		if len(orders) != l.directions {
			return nil, fmt.Errorf("%s: Orders returns %d orders for (%d, %d) and %d for (2, 2), want as many", l.Name(), len(orders), shape[1], shape[2], l.directions)
		}
		s := build.Steps{Graph: x.Graph()}
		w := weights(&s, l.Conv, l.ConvBias, l.XProj, l.DtProj, l.DtBias, l.ALogs, l.Ds)
		n := l.cfg.Inner
		u := s.Do(l.InProj.Apply(x))
		var z *G.Node
		if !l.cfg.NoGate {
			uz := split(&s, u, n, n)
			u, z = uz[0], uz[1]
		}
		u = s.Do(op.Conv(u, w[0], w[1], op.ConvConfig{Padding: []int{l.cfg.Width / 2}, Groups: n, SiLU: true})) // (batch, height, width, inner)
		y := s.Do(op.SS2D(op.SS2DInputs{X: u, XProj: w[2], DtProj: w[3], DtBias: w[4], ALog: w[5], D: w[6]}, op.SS2DConfig{Orders: orders}))
		y = s.Do(l.OutNorm.Apply(y))
		if z != nil {
			y = s.Do(op.Gate(z, y, op.SiLU))
		}
		return s.Result(l.OutProj.Apply(y))
	})
}

// Fwd is Apply in the form of golgi's layers.
func (l *SS2D) Fwd(x G.Input) G.Result { return build.Lift(x, l.Apply) }
