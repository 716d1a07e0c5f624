package main

import (
	"context"
	"fmt"
	"image"
	"image/color"
	"io"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/plot/vg"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/train"
	"github.com/gomamba/mamba/vision"
)

// The classes of a pixel: background, and a disc in an image with a bright or with a dark frame.
const classes = 3

// example draws an image of side·side pixels and its classes. There are discs in noise, one of them in the centre. The frame of the image is bright or
// dark, and says the class of every disc: nothing near a disc does.
func example(seed uint64, side int) (pixels []float32, labels []int) {
	r := rand.New(rand.NewPCG(seed, 1))
	pixels, labels = make([]float32, side*side), make([]int, side*side)
	for i := range pixels {
		pixels[i] = float32(0.2 * r.NormFloat64())
	}
	class, frame := 1, float32(1)
	if r.IntN(2) == 1 {
		class, frame = 2, -1
	}
	radius := float64(side) / 12
	centres := [][2]float64{{float64(side) / 2, float64(side) / 2}}
	for range 3 {
		centres = append(centres, [2]float64{float64(side) * (0.3 + 0.4*r.Float64()), float64(side) * (0.3 + 0.4*r.Float64())})
	}
	for i := range pixels {
		for _, c := range centres {
			if math.Hypot(float64(i/side)-c[0], float64(i%side)-c[1]) <= radius {
				pixels[i], labels[i] = pixels[i]+1, class
				break
			}
		}
	}
	for i := range pixels {
		if min(i/side, i%side, side-1-i/side, side-1-i%side) < side/12 {
			pixels[i] += frame
		}
	}
	return pixels, labels
}

// examples returns a batch of the images of some seeds.
func examples(side int, seeds []int) (train.Batch, error) {
	var pixels []float32
	var labels []int
	for _, seed := range seeds {
		p, l := example(uint64(seed), side)
		pixels, labels = append(pixels, p...), append(labels, l...)
	}
	return train.Batch{Values: map[string]*tensor.Dense{
		"x":      tensor.New(tensor.WithShape(len(seeds), side, side, 1), tensor.WithBacking(pixels)),
		"labels": tensor.New(tensor.WithShape(len(seeds), side, side), tensor.WithBacking(labels)),
	}, Weight: float64(len(seeds))}, nil
}

// model is a network of segmentation.
type model struct {
	name   string
	params layer.Params
	apply  func(x *G.Node) (*G.Node, error)
}

// models returns a small VM-UNet and a convolutional network with the same patches of 4 by 4 pixels, of which it sees two to each side.
func models(seed uint64) ([]model, error) {
	unet := vision.NewMambaUNet(vision.MambaUNetConfig{Classes: classes, Channels: 1, Dims: []int{16, 32}, Depths: []int{1, 1},
		DecoderDepths: []int{1, 1}, State: 4}, layer.WithName("unet"), layer.WithSeed(seed))
	if err := unet.Err(); err != nil {
		return nil, err
	}
	const channels = 32
	conv := func(name string, in, kernel, stride, padding int) *layer.Conv {
		return layer.NewConv(layer.ConvConfig{In: in, Out: channels, Kernel: []int{kernel, kernel}, Stride: []int{stride}, Padding: []int{padding}},
			layer.WithName(name), layer.WithSeed(seed))
	}
	stem := conv("stem", 1, 4, 4, 0)
	blocks := []*layer.Conv{conv("conv1", channels, 3, 1, 1), conv("conv2", channels, 3, 1, 1)}
	head := layer.NewConvTranspose(layer.ConvTransposeConfig{In: channels, Out: classes, Kernel: []int{4, 4}, Stride: []int{4}},
		layer.WithName("head"), layer.WithSeed(seed))
	if err := head.Err(); err != nil {
		return nil, err
	}
	params := append(stem.Params(), head.Params()...)
	for _, b := range blocks {
		params = append(params, b.Params()...)
	}
	return []model{
		{"VM-UNet", unet.Params(), func(x *G.Node) (*G.Node, error) { return unet.Apply(x) }},
		{"convolutions", params, func(x *G.Node) (*G.Node, error) {
			x, err := stem.Apply(x)
			for i := 0; i < len(blocks) && err == nil; i += 2 { // x + conv(ReLU(conv(ReLU(x))))
				y := x
				for _, b := range blocks[i : i+2] {
					if y, err = op.Activate(y, op.ReLU); err == nil {
						y, err = b.Apply(y)
					}
					if err != nil {
						return nil, err
					}
				}
				x, err = op.Add(x, y)
			}
			if err != nil {
				return nil, err
			}
			return head.Apply(x)
		}},
	}, nil
}

// train trains the model and prints the loss.
func (m model) train(ctx context.Context, set settings, out io.Writer) error {
	load := func(seeds []int) (train.Batch, error) { return examples(set.side, seeds) }
	data, err := train.NewShuffled(1<<20, set.batch, uint64(set.seed), load)
	if err != nil {
		return err
	}
	trainer, err := train.NewTrainer(train.Problem{Params: m.params, Data: data, Loss: func(c *train.Call) (*G.Node, error) {
		y, err := m.apply(c.Input("x"))
		if err != nil {
			return nil, err
		}
		return op.SegmentationLoss(y, c.Input("labels"), -1, op.SegmentationWeights{CrossEntropy: 1, Dice: 1})
	}}, train.RunConfig{Steps: set.steps, AdamW: train.AdamWConfig{LearnRate: 5e-3, Clip: 1, Schedule: train.WarmupCosine(set.steps/20, set.steps, 0.05)},
		Report: func(c *train.Curve) {
			if p := c.Training[len(c.Training)-1]; p.Step%max(set.steps/5, 1) == 0 {
				fmt.Fprintf(out, "%-12s step %5d  loss %.4f\n", m.name, p.Step, p.Loss)
			}
		}})
	if err != nil {
		return err
	}
	defer trainer.Close()
	return trainer.Run(ctx)
}

// field returns the mean over images of |∂(logit of class 1 - logit of class 2)/∂x| for the pixel in the centre, and the Dice of the discs' classes.
func (m model) field(set settings) (mean []float64, dice float64, err error) {
	seeds := make([]int, set.images)
	for i := range seeds {
		seeds[i] = 1<<20 + i
	}
	batch, err := examples(set.side, seeds)
	if err != nil {
		return nil, 0, err
	}
	g := G.NewGraph()
	value := batch.Values["x"]
	x := G.NewTensor(g, value.Dtype(), value.Dims(), G.WithShape(value.Shape()...), G.WithName("x"), G.WithValue(value))
	y, err := m.apply(x)
	if err != nil {
		return nil, 0, err
	}
	pick := make([]float32, y.Shape().TotalSize())
	for i := range set.images {
		at := ((i*set.side+set.side/2)*set.side + set.side/2) * classes
		pick[at+1], pick[at+2] = 1, -1
	}
	w := G.NewConstant(tensor.New(tensor.WithShape(y.Shape()...), tensor.WithBacking(pick)))
	sum, err := G.Sum(G.Must(G.HadamardProd(y, w)))
	if err != nil {
		return nil, 0, err
	}
	grads, err := G.Grad(sum, x)
	if err != nil {
		return nil, 0, err
	}
	var logits, grad G.Value
	G.Read(y, &logits)
	G.Read(grads[0], &grad)
	vm := G.NewTapeMachine(g)
	defer vm.Close()
	if err := vm.RunAll(); err != nil {
		return nil, 0, err
	}
	mean = make([]float64, set.side*set.side)
	for i, v := range grad.Data().([]float32) {
		mean[i%len(mean)] += math.Abs(float64(v)) / float64(set.images)
	}
	predicted, err := vision.Labels(logits.Data().([]float32), classes)
	if err != nil {
		return nil, 0, err
	}
	confusion, err := vision.NewConfusion(classes)
	if err != nil {
		return nil, 0, err
	}
	if err := confusion.Add(predicted, batch.Values["labels"].Data().([]int), -1); err != nil {
		return nil, 0, err
	}
	return mean, (confusion.Dice(1) + confusion.Dice(2)) / 2, nil
}

// drawFields trains the models and draws an image, and their fields before and after.
func drawFields(ctx context.Context, set settings, out io.Writer) error {
	all, err := models(uint64(set.seed))
	if err != nil {
		return err
	}
	const side, margin = 10 * vg.Centimeter, 0.5 * vg.Centimeter
	p := newPicture(vg.Length(1+2*len(all))*(side+margin)+margin, side+1.6*vg.Centimeter+margin)
	column := margin
	panel := func(name string, values []float64, shade func(v float64) color.Color) {
		img := image.NewRGBA(image.Rect(0, 0, set.side*8, set.side*8)) // enlarged here, since drawing would smooth the pixels
		for y := range set.side * 8 {
			for x := range set.side * 8 {
				img.Set(x, y, shade(values[y/8*set.side+x/8]))
			}
		}
		p.text(column, p.height-0.8*vg.Centimeter, name)
		p.pixels(column, p.height-1.2*vg.Centimeter, side, img)
		column += side + margin
	}
	pixels, _ := example(1<<20, set.side)
	var grays []float64
	for _, v := range pixels {
		grays = append(grays, float64(v))
	}
	panel("an image: the frame says the class of the discs", grays, func(v float64) color.Color { return color.Gray{uint8(255 * min(max((v+2)/4, 0), 1))} })
	for _, m := range all {
		count := 0
		for _, w := range m.params {
			count += w.Value.Shape().TotalSize()
		}
		fmt.Fprintf(out, "%-12s %d weights\n", m.name, count)
		for _, when := range []string{"before", "after"} {
			if when == "after" {
				if err := m.train(ctx, set, out); err != nil {
					return err
				}
			}
			field, dice, err := m.field(set)
			if err != nil {
				return err
			}
			most := slices.Max(field)
			far, all := 0., 0. // the share of the field that is further from the centre than a quarter of the side
			for i, v := range field {
				if all += v; math.Hypot(float64(i/set.side-set.side/2), float64(i%set.side-set.side/2)) > float64(set.side)/4 {
					far += v
				}
			}
			fmt.Fprintf(out, "%-12s %-6s  Dice of the discs %.3f, %.1f%% of the gradient is further than a quarter of the side\n", m.name, when, dice, 100*far/all)
			panel(fmt.Sprintf("%s, %s training: Dice %.2f", m.name, when, dice), field, func(v float64) color.Color {
				return dark(1 + math.Log10(v/most)/4) // four orders of magnitude
			})
		}
	}
	return p.write(set.out)
}

// dark returns a colour from white, at 0 and below, over blue to black, at 1.
func dark(v float64) color.Color {
	v = 1 - min(max(v, 0), 1)
	channel := func(power float64) uint8 { return uint8(255 * math.Pow(v, power)) }
	return color.RGBA{channel(1.6), channel(1.1), channel(0.6), 255}
}
