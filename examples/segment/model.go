package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/images"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/train"
	"github.com/gomamba/mamba/vision"
)

// description is what a checkpoint says of its model beside the weights.
type description struct {
	Kind     string         // one of kinds
	Axes     int            // 2 for images, 3 for volumes
	Channels int            // of the image
	Width    int            // channels at the full resolution
	Crop     int            // side of the windows
	Classes  images.Classes // the labels' values
	// Background is the most frequent class of the training data: pictures leave it as it is.
	Background int
	Prepare    preparation
}

// check returns an error if the description of a file contradicts itself.
func (d description) check() error {
	for i, c := range d.Classes {
		if i > 0 && c <= d.Classes[i-1] {
			return fmt.Errorf("the classes are %v, want increasing values", d.Classes)
		}
	}
	for _, s := range d.Prepare.Spacing {
		if !(s > 0) {
			return fmt.Errorf("the spacing is %v, want numbers above 0", d.Prepare.Spacing)
		}
	}
	switch n := len(d.Prepare.Spacing); {
	case len(d.Classes) < 2 || len(d.Classes) > images.MaxClasses:
		return fmt.Errorf("it has %d classes, want 2 to %d", len(d.Classes), images.MaxClasses)
	case d.Background < 0 || d.Background >= len(d.Classes):
		return fmt.Errorf("the background is class %d, want 0 to %d", d.Background, len(d.Classes)-1)
	case d.Channels < 1 || d.Channels > math.MaxInt16 || d.Prepare.Channels != d.Channels:
		return fmt.Errorf("it has %d channels and prepares %d, want one number from 1 to %d", d.Channels, d.Prepare.Channels, math.MaxInt16)
	case n != 0 && n != d.Axes:
		return fmt.Errorf("the spacing has %d axes, want %d", n, d.Axes)
	case d.Prepare.Clip != nil && len(d.Prepare.Clip) != d.Channels:
		return fmt.Errorf("the normalization has %d channels, want %d", len(d.Prepare.Clip), d.Channels)
	}
	return nil
}

// network is a model of either kind.
type network struct {
	description
	params layer.Params
	apply  func(x *G.Node, opts ...nn.CallOption) (*G.Node, error)
}

// make makes the model.
func (d description) make(opts []nn.Option) (*network, error) {
	classes := len(d.Classes)
	switch {
	case d.Axes != 2 && d.Axes != 3:
		return nil, fmt.Errorf("a model of %d axes, want 2 for images or 3 for volumes", d.Axes)
	case d.Crop < 16 || d.Crop%16 != 0:
		return nil, fmt.Errorf("windows of %d cells, want a multiple of 16", d.Crop)
	case d.Width < 1 || d.Width > 1<<10:
		return nil, fmt.Errorf("-width is %d, should be 1 to 1024", d.Width)
	case classes < 2:
		return nil, fmt.Errorf("the labels have %d values, want at least 2", classes)
	}
	if err := size.Of(4, append(d.size(), d.Channels+d.Width)...).Fits(fmt.Sprintf("windows of %d cells a side", d.Crop)); err != nil {
		return nil, err
	}
	if d.Kind == "unet" {
		u, err := newUNet(d.Axes, d.Channels, d.Width, classes, opts)
		if err != nil {
			return nil, err
		}
		return &network{d, u.params, func(x *G.Node, _ ...nn.CallOption) (*G.Node, error) { return u.Apply(x) }}, nil
	}
	cfg := vision.MambaUNetConfig{
		Classes: classes, Channels: d.Channels, State: 8,
		Stem: []int{d.Width, 2 * d.Width}, Dims: []int{4 * d.Width, 8 * d.Width}, Depths: []int{2, 2}, DecoderDepths: []int{2, 2},
	}
	if d.Axes == 3 {
		cfg = vision.MambaUNetConfig{Axes: 3, Classes: classes, Channels: d.Channels, Dims: []int{d.Width, 2 * d.Width, 4 * d.Width}, Depths: []int{1, 1, 1}, State: 8}
	}
	m := vision.NewMambaUNet(cfg, opts...)
	return &network{d, m.Params(), m.Apply}, m.Err()
}

// pair returns the descriptions of the models of the kinds given. The U-Net has the width that brings it nearest to the parameters of the MambaUNet.
func pair(d description, names []string) ([]description, error) {
	d.Kind = kinds[0]
	m, err := d.make([]nn.Option{layer.WithZeros()})
	if err != nil {
		return nil, err
	}
	all := []description{}
	for _, name := range names {
		d := d
		if d.Kind = name; name == "unet" {
			if d.Width, err = widthFor(d, m.params.Count()); err != nil {
				return nil, err
			}
		}
		all = append(all, d)
	}
	return all, nil
}

// widthFor returns the width of a U-Net whose number of parameters is nearest to want.
func widthFor(d description, want int) (best int, err error) {
	least := 0
	for d.Width = 1; ; d.Width++ {
		u, err := d.make([]nn.Option{layer.WithZeros()})
		if err != nil {
			return 0, err
		}
		n := u.params.Count()
		if apart := max(n-want, want-n); best == 0 || apart < least {
			best, least = d.Width, apart
		}
		if n > want {
			return best, nil
		}
	}
}

// loss returns the loss of a batch: cross-entropy plus Dice.
func (n *network) loss(c *train.Call) (*G.Node, error) {
	x, err := n.upload(c.Input("image"))
	if err != nil {
		return nil, err
	}
	var opts []nn.CallOption
	if c.Training && n.Kind == "mambaunet" {
		opts = append(opts, nn.WithTraining(c.Step()))
	}
	logits, err := n.apply(x, opts...)
	if err != nil {
		return nil, err
	}
	if !c.Training {
		dice, err := op.Dice(logits, c.Input("label"), -1)
		if err != nil {
			return nil, err
		}
		c.Metric("1 - Dice", dice)
	}
	return op.SegmentationLoss(logits, c.Input("label"), -1, op.SegmentationWeights{CrossEntropy: 1, Dice: 1})
}

// upload puts x where the weights are. So the logits and the loss stay there.
func (n *network) upload(x *G.Node) (*G.Node, error) {
	if at := n.params.Place(); !at.OnHost() {
		return at.Upload(x)
	}
	return x, nil
}

// size returns the size of a window.
func (d description) size() []int { return slices.Repeat([]int{d.Crop}, d.Axes) }

// predictor runs the model on windows. Close frees it.
type predictor struct {
	*network
	input  *G.Node
	logits G.Value
	vm     G.VM
}

// predictor returns the model for single windows.
func (n *network) predictor() (*predictor, error) {
	p := &predictor{network: n}
	g := G.NewGraph()
	shape := append(append([]int{1}, n.size()...), n.Channels)
	p.input = G.NewTensor(g, tensor.Float32, len(shape), G.WithShape(shape...), G.WithName("image"))
	x, err := n.upload(p.input)
	if err != nil {
		return nil, err
	}
	y, err := n.apply(x)
	if err == nil && !n.params.Place().OnHost() {
		y, err = op.Download(y)
	}
	if err != nil {
		return nil, err
	}
	G.Read(y, &p.logits)
	op.FreeAfterUse(g)
	p.vm = G.NewTapeMachine(g)
	return p, nil
}

func (p *predictor) Close() error { return p.vm.Close() }

// scores returns the probabilities of the classes for each cell of a window. It is an images.Model.
func (p *predictor) scores(window []float32, _ int) ([]float32, error) {
	if err := G.Let(p.input, tensor.New(tensor.WithShape(p.input.Shape()...), tensor.WithBacking(window))); err != nil {
		return nil, err
	}
	p.vm.Reset()
	if err := p.vm.RunAll(); err != nil {
		return nil, err
	}
	scores := slices.Clone(p.logits.Data().([]float32))
	for row := range slices.Chunk(scores, len(p.Classes)) {
		softmax(row)
	}
	return scores, nil
}

// softmax turns logits into probabilities.
func softmax(x []float32) {
	most, sum := slices.Max(x), 0.
	for i, v := range x {
		e := math.Exp(float64(v - most))
		x[i], sum = float32(e), sum+e
	}
	for i := range x {
		x[i] = float32(float64(x[i]) / sum)
	}
}

// segment returns the classes of the cells of an image, on its own grid. When the context ends, it ends after the window that it is at.
func (p *predictor) segment(ctx context.Context, im *images.Image, set settings) (*images.Labels, error) {
	prepared, err := p.Prepare.apply(im)
	if err != nil {
		return nil, err
	}
	w := images.Windows{Size: p.size(), Overlap: set.overlap, Flips: set.flips}
	l, err := w.Labels(prepared, len(p.Classes), func(window []float32, n int) ([]float32, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return p.scores(window, n)
	})
	if err != nil {
		return nil, err
	}
	return l.Like(im)
}

// save writes the weights and the description to a folder.
func (n *network) save(dir string) error {
	text, err := json.Marshal(n.description)
	if err != nil {
		return err
	}
	return checkpoint.SaveParams(dir, n.params, map[string]string{metadataKey: string(text)})
}

// metadataKey is the key of the description in a checkpoint.
const metadataKey = "segment"

// load reads what save wrote.
func load(dir string, opts []nn.Option) (*network, error) {
	r, err := checkpoint.Open(dir)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	n, err := fill(r, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return n, nil
}

func fill(r *checkpoint.Reader, opts []nn.Option) (*network, error) {
	var d description
	text := r.Metadata()[metadataKey]
	if text == "" {
		return nil, errors.New("it is no checkpoint of this program: its metadata has no description of the model")
	}
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		return nil, fmt.Errorf("the description of the model: %w", err)
	}
	if !slices.Contains(kinds, d.Kind) {
		return nil, fmt.Errorf("the model is %q, want one of %q", d.Kind, kinds)
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("the description of the model: %w", err)
	}
	n, err := d.make(opts)
	if err != nil {
		return nil, err
	}
	return n, r.LoadParams(n.params, "")
}
