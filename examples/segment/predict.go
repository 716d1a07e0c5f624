package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/images"
)

// preparation makes of an image what a model takes.
type preparation struct {
	Channels int                  // of the image; pictures become grey or coloured
	Spacing  []float64            // to resample to; nil leaves the cells as they are
	Clip     images.Normalization // of all images; nil normalizes each image by its own mean and deviation
}

// apply prepares an image.
func (p preparation) apply(im *images.Image) (*images.Image, error) {
	var err error
	switch {
	case im.Channels == p.Channels:
	case picture(im) && p.Channels == 1:
		im, err = im.Gray()
	case picture(im) && p.Channels == 3:
		im, err = im.Color()
	default:
		err = fmt.Errorf("it has %s, want %d as the other images", plural(im.Channels, "channel"), p.Channels)
	}
	if err == nil && p.Spacing != nil {
		var size []int
		if size, err = im.SizeAt(im.Size, p.Spacing); err == nil {
			im, err = im.Resample(size)
		}
	}
	normal := p.Clip
	if err == nil && normal == nil {
		normal, err = images.MeasureImage(im)
	}
	if err != nil {
		return nil, err
	}
	return normal.Apply(im)
}

// picture reports whether the channels of an image are colours. Those of a NIfTI file are modalities or points in time.
func picture(im *images.Image) bool { return len(im.Size) == 2 && im.Bits > 0 }

// sample prepares an image with its labels.
func (p preparation) sample(s *images.Sample) (*images.Sample, error) {
	im, err := p.apply(s.Image)
	if err != nil {
		return nil, err
	}
	labels, err := s.Labels.Resample(im.Size)
	return &images.Sample{Name: s.Name, Image: im, Labels: labels}, err
}

// predict segments the files of -predict.
func predict(ctx context.Context, set settings, out io.Writer) error {
	from := map[string]string{}
	for _, file := range set.predict {
		name := set.output(file)
		if other, there := from[name]; there {
			return fmt.Errorf("-predict names %s and %s, whose masks would both be %s_mask: should be files of different names, or calls with different -out", other, file, name)
		}
		from[name] = file
	}
	for _, file := range set.predict { // a result must not replace an image
		name := set.output(file)
		for _, end := range []string{"_mask.png", "_mask.nii.gz", "_overlay.png"} {
			if i := slices.IndexFunc(set.predict, func(in string) bool { return filepath.Clean(in) == filepath.Clean(name+end) }); i >= 0 {
				return fmt.Errorf("-predict names %s, which a result of %s would replace: should be in another directory than -out", set.predict[i], file)
			}
		}
	}
	dir := set.model
	if dir == "" {
		for _, kind := range kinds {
			if _, err := os.Stat(filepath.Join(folder(set, kind), "model.safetensors")); err == nil && dir == "" {
				dir = folder(set, kind)
			}
		}
		if dir == "" {
			return fmt.Errorf("-out is %q, which has no trained model: train one there, or name its directory with -model", set.out)
		}
	}
	opts, device, closeDevice, err := set.device.Open()
	if err != nil {
		return err
	}
	defer closeDevice()
	if device != "" {
		fmt.Fprintf(out, "device      %s\n", device)
	}
	n, err := load(dir, opts)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("-model is %q, should be the directory of a checkpoint: %w", dir, err)
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(set.out, 0o777); err != nil {
		return options.OutDirError(set.out, err)
	}
	p, err := n.predictor()
	if err != nil {
		return err
	}
	defer p.Close()
	var failed []error // a bad file does not stop the others
	for _, file := range set.predict {
		err := p.file(ctx, file, set, out)
		if ctx.Err() != nil {
			return errors.Join(append(failed, fmt.Errorf("stopped at %s", file))...)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("-predict: %s: %w", file, err))
		}
	}
	return errors.Join(failed...)
}

// output returns the path of what is written for a file, without _mask and the ending.
func (set settings) output(file string) string {
	name := strings.TrimSuffix(filepath.Base(file), ".gz")
	return filepath.Join(set.out, strings.TrimSuffix(name, filepath.Ext(name)))
}

// file segments one file.
func (p *predictor) file(ctx context.Context, file string, set settings, out io.Writer) error {
	im, err := images.Read(file)
	if err != nil {
		return err
	}
	if len(im.Size) != p.Axes {
		return fmt.Errorf("it has %d axes, want %d as the model's images", len(im.Size), p.Axes)
	}
	classes, err := p.segment(ctx, im, set)
	if err != nil {
		return err
	}
	values, err := p.Classes.Values(classes)
	if err != nil {
		return err
	}
	name := set.output(file)
	mask := name + "_mask.png"
	if !picture(im) {
		mask = name + "_mask.nii.gz"
	}
	if err := images.WriteLabels(mask, values); err != nil {
		return options.OutDirError(set.out, err)
	}
	written := mask
	if p.Axes == 2 {
		seen, err := shown(im)
		if err != nil {
			return err
		}
		overlay, err := images.Overlay(seen, classes, p.Background, 0.5)
		if err != nil {
			return err
		}
		if err := images.WritePNG(name+"_overlay.png", overlay); err != nil {
			return options.OutDirError(set.out, err)
		}
		written += ", " + name + "_overlay.png"
	}
	fmt.Fprintf(out, "%-11s %s%s\n", filepath.Base(file), written, shares(classes, p.Classes))
	return nil
}

// shares returns the shares of the labels in a mask, in words.
func shares(l *images.Labels, classes images.Classes) string {
	counts, text := make([]int, len(classes)), ""
	for _, c := range l.Values {
		counts[c]++
	}
	for c, n := range counts {
		text += fmt.Sprintf("  label %d: %.1f%%", classes[c], 100*float64(n)/float64(len(l.Values)))
	}
	return text
}

// shown returns an image of one or three channels with values from 0 to 1; of a volume, the slice in the middle.
func shown(im *images.Image) (*images.Image, error) {
	if len(im.Size) == 3 {
		slice, err := im.Slice(im.Size[0] / 2)
		if err != nil {
			return nil, err
		}
		im = &images.Image{Size: slice.Size, Channels: 1, Pix: make([]float32, len(slice.Pix)/im.Channels)}
		for i := range im.Pix {
			im.Pix[i] = slice.Pix[i*slice.Channels]
		}
	}
	if im.Bits > 0 {
		return im, nil
	}
	least, most := im.Pix[0], im.Pix[0]
	for _, v := range im.Pix {
		least, most = min(least, v), max(most, v)
	}
	s := *im
	s.Pix, s.Bits = make([]float32, len(im.Pix)), 8
	for i, v := range im.Pix {
		s.Pix[i] = (v - least) / max(most-least, 1e-30)
	}
	return &s, nil
}

// middle returns a map, or the slice in the middle of a volume.
func middle(l *images.Labels) (*images.Labels, error) {
	if len(l.Size) == 2 {
		return l, nil
	}
	return l.Slice(l.Size[0] / 2)
}
