package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/gomamba/mamba/examples/internal/loop"
	"github.com/gomamba/mamba/images"
)

// preparation makes of an image what a model takes.
type preparation struct {
	Channels int // 1 for grey
}

// apply returns the image with the right number of channels, and with mean 0 and variance 1 in each of them.
func (p preparation) apply(im *images.Image) (*images.Image, error) {
	var err error
	switch {
	case p.Channels == 1:
		im, err = im.Gray()
	case p.Channels == 3:
		im, err = im.Color()
	case im.Channels != p.Channels:
		err = fmt.Errorf("the image has %d channels, want %d", im.Channels, p.Channels)
	}
	if err != nil {
		return nil, err
	}
	out := *im
	out.Pix = make([]float32, len(im.Pix))
	for c := range im.Channels {
		sum, squares, n := 0., 0., float64(len(im.Pix)/im.Channels)
		for i := c; i < len(im.Pix); i += im.Channels {
			sum += float64(im.Pix[i])
		}
		mean := sum / n
		for i := c; i < len(im.Pix); i += im.Channels {
			squares += (float64(im.Pix[i]) - mean) * (float64(im.Pix[i]) - mean)
		}
		by := 1 / max(math.Sqrt(squares/n), 1e-6)
		for i := c; i < len(im.Pix); i += im.Channels {
			out.Pix[i] = float32((float64(im.Pix[i]) - mean) * by)
		}
	}
	return &out, nil
}

// predict segments the files of -predict.
func predict(ctx context.Context, set settings, out io.Writer) error {
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
		return loop.OutError(set.out, err)
	}
	p, err := n.predictor()
	if err != nil {
		return err
	}
	defer p.Close()
	for _, file := range set.predict {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopped before %s", file)
		}
		if err := p.file(file, set, out); err != nil {
			return fmt.Errorf("-predict: %s: %w", file, err)
		}
	}
	return nil
}

// file segments one file.
func (p *predictor) file(file string, set settings, out io.Writer) error {
	im, err := images.Read(file)
	if err != nil {
		return err
	}
	if len(im.Size) != p.Axes {
		return fmt.Errorf("it has %d axes, want %d as the model's images", len(im.Size), p.Axes)
	}
	prepared, err := p.Prepare.apply(im)
	if err != nil {
		return err
	}
	classes, err := p.labels(prepared, set)
	if err != nil {
		return err
	}
	classes.Grid = im.Grid
	values, err := p.Classes.Values(classes)
	if err != nil {
		return err
	}
	name := filepath.Join(set.out, strings.TrimSuffix(filepath.Base(strings.TrimSuffix(file, ".gz")), filepath.Ext(strings.TrimSuffix(file, ".gz"))))
	mask := name + "_mask.png"
	if p.Axes == 3 {
		mask = name + "_mask.nii.gz"
	}
	if err := images.WriteLabels(mask, values); err != nil {
		return loop.OutError(set.out, err)
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
			return loop.OutError(set.out, err)
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
		n := im.Size[1] * im.Size[2]
		s := *im
		s.Size, s.Channels, s.Grid, s.Pix = im.Size[1:], 1, images.Grid{}, make([]float32, n)
		for i := range s.Pix {
			s.Pix[i] = im.Pix[(im.Size[0]/2*n+i)*im.Channels]
		}
		im = &s
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
func middle(l *images.Labels) *images.Labels {
	if len(l.Size) == 2 {
		return l
	}
	n := l.Size[1] * l.Size[2]
	return &images.Labels{Size: l.Size[1:], Values: l.Values[l.Size[0]/2*n:][:n]}
}
