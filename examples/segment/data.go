package main

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/images"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/train"
)

// dataset is images with their classes.
type dataset struct {
	name           string
	axes, channels int
	classes        images.Classes // the labels' values
	background     int            // the most frequent class
	least          int            // the smallest size of a prepared image along any axis
	sum            string         // checksum of images and labels
	prepare        preparation
	train, heldOut images.Source // prepared
	original       images.Source // heldOut before preparation
}

// made is how many images the program makes.
const made = 24

// read reads the data that -data names, or makes some.
func read(set settings) (*dataset, error) {
	d := &dataset{name: set.data}
	if set.data == "" {
		d.name, d.classes = "made", images.Classes{inside, membrane, organelle}
		var samples images.Samples
		for i := range made {
			samples = append(samples, microscope(uint64(i)))
		}
		return d, d.memory(samples, set)
	}
	err := d.files(set)
	if err != nil {
		return nil, fmt.Errorf("-data is %q: %w", set.data, err)
	}
	return d, nil
}

// files reads the folder of -data.
func (d *dataset) files(set settings) error {
	if info, err := os.Stat(set.data); err != nil || !info.IsDir() {
		return errors.New("should be a directory with image/ and label/, or with dataset.json")
	}
	if _, err := os.Stat(filepath.Join(set.data, "dataset.json")); errors.Is(err, fs.ErrNotExist) {
		pairs, err := images.Pairs(set.data)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("should have image/ and label/, or dataset.json: %w", err)
		}
		if err != nil {
			return err
		}
		samples, classes, err := images.ReadPairs(pairs, nil)
		if err != nil {
			return err
		}
		d.classes = classes
		return d.memory(samples, set)
	}
	list, err := images.Decathlon(set.data)
	if err != nil {
		return err
	}
	d.classes = list.Classes
	return d.decathlon(list, set)
}

// heldOutOf returns how many of n images are held out.
func (set settings) heldOutOf(n int) (int, error) {
	held := set.heldout
	if held == 0 {
		held = max((n+5)/6, 1)
	}
	if held >= n {
		return 0, fmt.Errorf("it has %s, and -heldout is %d, should be fewer", plural(n, "image"), held)
	}
	return held, nil
}

// memory takes images that are in memory, and prepares all.
func (d *dataset) memory(samples images.Samples, set settings) error {
	held, err := set.heldOutOf(len(samples))
	if err != nil {
		return err
	}
	if err := d.look(samples); err != nil {
		return err
	}
	prepared := make(images.Samples, len(samples))
	for i, s := range samples {
		if prepared[i], err = d.prepare.sample(s); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	n := len(samples) - held
	d.train, d.heldOut, d.original = prepared[:n], prepared[n:], samples[n:]
	return nil
}

// decathlon takes volumes in files, which are read when they are needed. They get a common spacing, the median of each axis. The values of CT are clipped
// and scaled by those of the foreground; other images are normalized each by its own.
func (d *dataset) decathlon(list *images.Dataset, set settings) error {
	held, err := set.heldOutOf(len(list.Training))
	if err != nil {
		return err
	}
	n := len(list.Training) - held
	files := func(pairs []images.Pair, prepare func(*images.Sample) (*images.Sample, error)) images.Source {
		source, err2 := images.NewFiles(pairs, list.Classes, uint64(size.Machine()/6), prepare) // three of them
		if err == nil {
			err = err2
		}
		return source
	}
	whole, raw := files(list.Training, nil), files(list.Training[:n], nil)
	d.original = files(list.Training[n:], nil)
	if err != nil {
		return err
	}
	if err := d.look(whole); err != nil {
		return err
	}
	if slices.Contains(list.Modality, "CT") {
		if d.prepare.Clip, err = images.MeasureForeground(raw, d.background); err != nil {
			return err
		}
	}
	d.train, d.heldOut = files(list.Training[:n], d.prepare.sample), files(list.Training[n:], d.prepare.sample)
	return err
}

// look goes through all samples once, and finds out what the dataset says of them.
func (d *dataset) look(source images.Source) error {
	if len(d.classes) < 2 {
		return fmt.Errorf("the labels have the values %v, want at least two", d.classes)
	}
	count, sum := make([]int, len(d.classes)), sha256.New()
	var sizes [][]int
	var spacings [][]float64
	for i := range source.Len() {
		s, err := source.Load(i)
		if err != nil {
			return err
		}
		im := s.Image
		if d.axes == 0 {
			d.axes = len(im.Size)
		}
		if len(im.Size) != d.axes {
			return fmt.Errorf("%s has %d axes, and the first image %d, want one number", s.Name, len(im.Size), d.axes)
		}
		if d.channels != 0 && im.Channels != d.channels && !picture(im) {
			return fmt.Errorf("%s has %s, and the images before it %d, want one number", s.Name, plural(im.Channels, "channel"), d.channels)
		}
		d.channels = max(d.channels, im.Channels)
		sizes = append(sizes, im.Size)
		if im.Spacing != nil {
			spacings = append(spacings, im.Spacing)
		}
		fmt.Fprintln(sum, s.Name, im.Size, im.Channels, im.Spacing)
		for _, values := range []any{im.Pix, s.Labels.Values} {
			if err := binary.Write(sum, binary.LittleEndian, values); err != nil {
				return err
			}
		}
		for _, v := range s.Labels.Values {
			count[v]++
		}
	}
	d.sum = fmt.Sprintf("%x", sum.Sum(nil)[:8])
	d.background = slices.Index(count, slices.Max(count))
	d.prepare.Channels = d.channels
	if len(spacings) == len(sizes) && d.axes == 3 {
		for a := range d.axes {
			var all []float64
			for _, s := range spacings {
				all = append(all, s[a])
			}
			slices.Sort(all)
			d.prepare.Spacing = append(d.prepare.Spacing, all[len(all)/2])
		}
	}
	for i, size := range sizes {
		if d.prepare.Spacing != nil {
			var err error
			if size, err = (images.Grid{Spacing: spacings[i]}).SizeAt(size, d.prepare.Spacing); err != nil {
				return err
			}
		}
		if least := slices.Min(size); i == 0 || least < d.least {
			d.least = least
		}
	}
	return nil
}

// augment is how patches are changed at random in training. Each change but mirrors and turns is for a fifth of the patches: interpolation takes noise
// from an image, so about half of the patches keep theirs.
func (d *dataset) augment() images.Augment {
	a := images.Augment{Flips: true, Turns: true, Share: 0.2, Rotate: 180, Scale: 0.15, Elastic: 3, Control: 32, Gamma: 0.3, Noise: 0.1}
	if d.axes == 3 { // what is up in a body stays up
		a.Turns, a.Rotate, a.Tilt = false, 15, 15
	}
	return a
}

// batches returns the source of training batches, and batches of patches of the images held out, as they are.
func (d *dataset) batches(set settings) (train.Source, []train.Batch, error) {
	patches := images.Patches{Size: slices.Repeat([]int{set.crop}, d.axes), Seed: uint64(set.seed), Foreground: set.foreground, Background: d.background}
	held, err := images.NewBatches(d.heldOut, patches, set.batch, 0)
	if err != nil {
		return nil, nil, err
	}
	var heldOut []train.Batch
	for i := range (2*d.heldOut.Len() + set.batch - 1) / set.batch { // two patches of each image
		b, err := d.batch(held, i, patches.Size)
		if err != nil {
			return nil, nil, err
		}
		heldOut = append(heldOut, b)
	}
	if !set.noaugment {
		patches.Augment = d.augment()
	}
	drawn, err := images.NewBatches(d.train, patches, set.batch, 0)
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
