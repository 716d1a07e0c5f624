package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/images"
	"github.com/gomamba/mamba/train"
)

// dataset is images with their classes, prepared for a model.
type dataset struct {
	name           string
	axes, channels int
	classes        images.Classes // the labels' values
	background     int            // the most frequent class
	prepare        preparation
	train, heldOut []*images.Sample
	original       []*images.Image // those of heldOut before preparation
	sum            string          // checksum of images and labels
}

// made is how many images the program makes.
const made = 24

// read reads the data that -data names, or makes some.
func read(set settings) (*dataset, error) {
	d := &dataset{name: set.data, axes: 2, channels: 1}
	var samples []*images.Sample
	var err error
	_, decathlon := os.Stat(filepath.Join(set.data, "dataset.json"))
	switch {
	case set.data == "":
		d.name, d.classes = "made", images.Classes{inside, membrane, organelle}
		for i := range made {
			samples = append(samples, microscope(uint64(i)))
		}
	case decathlon == nil:
		return nil, fmt.Errorf("not yet")
	default:
		var pairs []images.Pair
		if pairs, err = images.Pairs(set.data); err == nil {
			samples, d.classes, err = images.ReadPairs(pairs, nil)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("-data is %q: %w", set.data, err)
	}
	if err := d.fill(samples, set); err != nil {
		return nil, fmt.Errorf("-data is %q: %w", set.data, err)
	}
	return d, nil
}

// fill prepares the samples and holds the last ones out.
func (d *dataset) fill(samples []*images.Sample, set settings) error {
	if len(d.classes) < 2 {
		return fmt.Errorf("the labels have the values %v, want at least two", d.classes)
	}
	d.axes, d.channels = len(samples[0].Image.Size), 1
	count, sum := make([]int, len(d.classes)), sha256.New()
	for _, s := range samples {
		if len(s.Image.Size) != d.axes {
			return fmt.Errorf("%s has %d axes, and %s %d, want one number", s.Name, len(s.Image.Size), samples[0].Name, d.axes)
		}
		d.channels = max(d.channels, s.Image.Channels)
		fmt.Fprintln(sum, s.Name, s.Image.Size, s.Image.Channels)
		if err := binary.Write(sum, binary.LittleEndian, s.Image.Pix); err != nil {
			return err
		}
		if err := binary.Write(sum, binary.LittleEndian, s.Labels.Values); err != nil {
			return err
		}
		for _, v := range s.Labels.Values {
			count[v]++
		}
	}
	d.sum = fmt.Sprintf("%x", sum.Sum(nil)[:8])
	d.background = slices.Index(count, slices.Max(count))
	d.prepare = preparation{Channels: d.channels}
	n := set.heldout
	if n == 0 {
		n = max((len(samples)+5)/6, 1)
	}
	if n >= len(samples) {
		return fmt.Errorf("it has %d images, and -heldout is %d, should be fewer", len(samples), n)
	}
	for i, s := range samples {
		im, err := d.prepare.apply(s.Image)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		original := s.Image
		if s.Image = im; i < len(samples)-n {
			d.train = append(d.train, s)
		} else {
			d.heldOut, d.original = append(d.heldOut, s), append(d.original, original)
		}
	}
	return nil
}

// least returns the smallest size of an image along any axis.
func (d *dataset) least() int {
	least := d.train[0].Image.Size[0]
	for _, s := range d.train {
		least = min(least, slices.Min(s.Image.Size))
	}
	return least
}

// augment is how patches are changed at random in training.
func (d *dataset) augment() images.Augment {
	a := images.Augment{Flips: true, Turns: true, Share: 0.5, Rotate: 180, Scale: 0.25, Elastic: 4, Control: 32, Brightness: 0.3, Contrast: 0.4, Gamma: 0.5, Noise: 0.3}
	if d.axes == 3 { // what is up in a body stays up
		a.Turns, a.Rotate, a.Tilt, a.Elastic = false, 15, 15, 2
	}
	return a
}

// batches returns the source of training batches, and batches of patches of the images held out, as they are.
func (d *dataset) batches(set settings) (train.Source, []train.Batch, error) {
	patches := images.Patches{Size: slices.Repeat([]int{set.crop}, d.axes), Seed: uint64(set.seed), Foreground: set.foreground, Background: d.background}
	held, err := images.NewBatches(images.Samples(d.heldOut), patches, set.batch, 0)
	if err != nil {
		return nil, nil, err
	}
	var heldOut []train.Batch
	for i := range (2*len(d.heldOut) + set.batch - 1) / set.batch { // two patches of each image
		b, err := d.batch(held, i, patches.Size)
		if err != nil {
			return nil, nil, err
		}
		heldOut = append(heldOut, b)
	}
	if !set.noaugment {
		patches.Augment = d.augment()
	}
	drawn, err := images.NewBatches(images.Samples(d.train), patches, set.batch, 0)
	if err != nil {
		return nil, nil, err
	}
	return train.NewSource(func(i int) (train.Batch, error) { return d.batch(drawn, i, patches.Size) }), heldOut, nil
}

func (d *dataset) batch(all *images.Batches, i int, size []int) (train.Batch, error) {
	b, err := all.At(i)
	if err != nil {
		return train.Batch{}, err
	}
	shape := append([]int{len(b.Names)}, size...)
	return train.Batch{Values: map[string]*tensor.Dense{
		"image": tensor.New(tensor.WithShape(append(slices.Clone(shape), d.channels)...), tensor.WithBacking(b.Pix)),
		"label": tensor.New(tensor.WithShape(shape...), tensor.WithBacking(b.Labels)),
	}, Weight: float64(len(b.Names))}, nil
}
