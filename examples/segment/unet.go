package main

import (
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// unet is a plain convolutional U-Net (Ronneberger et al.) for images or volumes: at each of four resolutions two convolutions of 3 cells, each with an
// instance norm and a ReLU; maxima of 2 cells on the way down; transposed convolutions and concatenated skips on the way up.
type unet struct {
	params   layer.Params
	axes     int
	down, up [][2]convolution
	expand   []*layer.ConvTranspose
	head     *layer.Conv
}

// convolution is a convolution with a norm after it.
type convolution struct {
	conv *layer.Conv
	norm *layer.InstanceNorm
}

// levels is the number of resolutions.
const levels = 4

// newUNet returns a U-Net with width channels at the full resolution, and twice as many at each further one.
func newUNet(axes, channels, width, classes int, opts []layer.Option) (*unet, error) {
	u := &unet{axes: axes}
	var failed error
	add := func(part interface {
		Params() layer.Params
		Err() error
	}) {
		u.params = append(u.params, part.Params()...)
		if err := part.Err(); err != nil && failed == nil {
			failed = err
		}
	}
	with := func(name string) []layer.Option { return append(slices.Clone(opts), layer.WithName(name)) }
	kernel := func(n int) []int { return slices.Repeat([]int{n}, axes) }
	double := func(name string, in, out int) (pair [2]convolution) {
		for i := range pair {
			part := fmt.Sprintf("%s.%d.", name, i)
			c := layer.NewConv(layer.ConvConfig{In: in, Out: out, Kernel: kernel(3), Padding: []int{1}}, with(part+"conv")...)
			n := layer.NewInstanceNorm(layer.InstanceNormConfig{Channels: out, Affine: true}, with(part+"norm")...)
			add(c)
			add(n)
			pair[i], in = convolution{c, n}, out
		}
		return pair
	}
	in := channels
	for i := range levels {
		u.down = append(u.down, double(fmt.Sprintf("down.%d", i), in, width<<i))
		in = width << i
	}
	for i := levels - 2; i >= 0; i-- {
		up := layer.NewConvTranspose(layer.ConvTransposeConfig{In: 2 * width << i, Out: width << i, Kernel: kernel(2), Stride: []int{2}},
			with(fmt.Sprintf("expand.%d", i))...)
		add(up)
		u.expand = append(u.expand, up)
		u.up = append(u.up, double(fmt.Sprintf("up.%d", i), 2*width<<i, width<<i))
	}
	u.head = layer.NewConv(layer.ConvConfig{In: width, Out: classes, Kernel: kernel(1)}, with("head")...)
	add(u.head)
	return u, failed
}

// Apply returns the logits (batch, grid…, classes) of x (batch, grid…, channels), whose grid is a multiple of 8 along each axis. x is where the weights
// are, and so are the logits.
func (u *unet) Apply(x *G.Node) (*G.Node, error) {
	var err error
	do := func(y *G.Node, err2 error) {
		if err == nil {
			x, err = y, err2
		}
	}
	double := func(pair [2]convolution) {
		for _, c := range pair {
			do(c.conv.Apply(x))
			do(c.norm.Apply(x))
			do(op.Activate(x, op.ReLU))
		}
	}
	var skips G.Nodes
	for i, pair := range u.down {
		if i > 0 {
			do(op.MaxPool(x, op.PoolConfig{Kernel: slices.Repeat([]int{2}, u.axes)}))
		}
		double(pair)
		skips = append(skips, x)
	}
	for i, pair := range u.up {
		do(u.expand[i].Apply(x))
		do(op.Concat(u.axes+1, x, skips[len(skips)-2-i]))
		double(pair)
	}
	do(u.head.Apply(x))
	return x, err
}
