package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/images"
	"github.com/gomamba/mamba/train"
)

// dataset is images of classes.
type dataset struct {
	name           string
	classes        []string
	train, heldOut *loader
	sum            string // checksum of all images
}

// patterns are the classes of the images that the program makes.
var patterns = []string{"checks", "dots", "rings", "stripes"}

// pattern draws an image of a class: two colours in a pattern of some size, place and direction, in noise.
func pattern(seed uint64, class, side int) *images.Sample {
	r := rand.New(rand.NewPCG(seed, uint64(class)))
	im := &images.Image{Size: []int{side, side}, Channels: 3, Pix: make([]float32, 3*side*side)}
	sin, cos := math.Sincos(2 * math.Pi * r.Float64())
	wave, cy, cx := 2*math.Pi/(float64(side)*(0.25+0.15*r.Float64())), float64(side)*(0.3+0.4*r.Float64()), float64(side)*(0.3+0.4*r.Float64())
	var colors [2][3]float64
	for c := range 3 { // a dark and a bright one
		colors[0][c], colors[1][c] = 0.4*r.Float64(), 0.6+0.4*r.Float64()
	}
	for i := range side * side {
		y, x := float64(i/side)-cy, float64(i%side)-cx
		u, v := math.Sin(wave*(x*cos+y*sin)), math.Sin(wave*(y*cos-x*sin))
		value := u
		switch patterns[class] {
		case "checks":
			value = u * v
		case "dots":
			value = u + v - 0.7
		case "rings":
			value = math.Sin(wave * math.Hypot(y, x))
		}
		share := 1 / (1 + math.Exp(-6*value))
		for c := range 3 {
			im.Pix[3*i+c] = float32(colors[0][c]*share + colors[1][c]*(1-share) + 0.1*r.NormFloat64())
		}
	}
	return &images.Sample{Name: fmt.Sprintf("%s-%d", patterns[class], seed), Image: im, Class: class}
}

// read reads the data that -data names, or makes some.
func read(set settings) (*dataset, error) {
	d := &dataset{name: set.data}
	var all [2]loader
	if set.data == "" {
		const made = 60 // of each class
		d.name, d.classes, d.sum = "made", patterns, "made"
		for i := range made * len(patterns) {
			part := &all[0]
			if i/len(patterns) >= made-made/5 {
				part = &all[1]
			}
			part.files, part.class = append(part.files, fmt.Sprint(i/len(patterns))), append(part.class, i%len(patterns))
		}
	} else {
		names, files, class, err := images.ByClass(set.data)
		if err != nil {
			return nil, fmt.Errorf("-data is %q: %w", set.data, err)
		}
		d.classes = names
		count, seen, sum := make([]int, len(names)), make([]int, len(names)), sha256.New()
		for _, c := range class {
			count[c]++
		}
		for i, c := range class {
			if seen[c]++; count[c] < 2 {
				return nil, fmt.Errorf("-data is %q, whose folder %s has 1 image: should have at least 2, one of them to hold out", set.data, names[c])
			}
			part := &all[0]
			if held := min(max(int(math.Round(set.heldout*float64(count[c]))), 1), count[c]-1); seen[c] > count[c]-held {
				part = &all[1]
			}
			part.files, part.class = append(part.files, files[i]), append(part.class, c)
			fmt.Fprintln(sum, c)
			if err := hashFile(sum, files[i]); err != nil {
				return nil, fmt.Errorf("-data is %q: %w", set.data, err)
			}
		}
		d.sum = fmt.Sprintf("%x", sum.Sum(nil)[:8])
	}
	d.train, d.heldOut = &all[0], &all[1]
	d.train.made, d.heldOut.made = set.data == "", set.data == ""
	return d, nil
}

func hashFile(to io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(to, f)
	return err
}

// loader reads images when they are needed, or makes them. It is an images.Source.
type loader struct {
	files []string // or seeds
	class []int
	side  int
	made  bool
}

func (l *loader) Len() int { return len(l.files) }

func (l *loader) Load(i int) (*images.Sample, error) {
	var s *images.Sample
	if l.made {
		var seed uint64
		if _, err := fmt.Sscan(l.files[i], &seed); err != nil {
			return nil, err
		}
		s = pattern(seed, l.class[i], l.side)
	} else {
		im, err := images.Read(l.files[i])
		if err != nil {
			return nil, err
		}
		s = &images.Sample{Name: l.files[i], Image: im, Class: l.class[i]}
	}
	var err error
	s.Image, err = prepare(s.Image, l.side)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	return s, nil
}

// usual is the normalization of images that released classifiers want.
var usual = images.Normalization{
	{Low: -10, High: 10, Mean: 0.485, Deviation: 0.229}, {Low: -10, High: 10, Mean: 0.456, Deviation: 0.224}, {Low: -10, High: 10, Mean: 0.406, Deviation: 0.225},
}

// prepare makes of an image what a model takes: the square in its middle, of side by side pixels, coloured and normalized.
func prepare(im *images.Image, side int) (*images.Image, error) {
	if len(im.Size) != 2 {
		return nil, fmt.Errorf("it has %d axes, want 2", len(im.Size))
	}
	im, err := im.Color()
	if err != nil {
		return nil, err
	}
	h, w := im.Size[0], im.Size[1]
	n := min(h, w)
	square, err := images.New([]int{n, n}, 3)
	if err != nil {
		return nil, err
	}
	for y := range n {
		copy(square.Pix[3*n*y:3*n*(y+1)], im.Pix[3*((y+(h-n)/2)*w+(w-n)/2):])
	}
	if square, err = square.Resample([]int{side, side}); err != nil {
		return nil, err
	}
	return usual.Apply(square)
}

// batches returns batches of the images of a source: for training, changed at random.
func (set settings) batches(source images.Source, training bool, size int) (func(i int) (train.Batch, error), error) {
	p := images.Patches{Size: []int{set.size, set.size}, Seed: uint64(set.seed)}
	if training && !set.noaugment {
		p.Augment = images.Augment{Flips: true, Share: 0.5, Rotate: 15, Scale: 0.2, Brightness: 0.2, Contrast: 0.3, Noise: 0.1}
	}
	b, err := images.NewBatches(source, p, size, 0)
	if err != nil {
		return nil, err
	}
	return func(i int) (train.Batch, error) {
		x, err := b.At(i)
		if err != nil {
			return train.Batch{}, err
		}
		return train.Batch{Values: map[string]*tensor.Dense{
			"image": tensor.New(tensor.WithShape(size, set.size, set.size, 3), tensor.WithBacking(x.Pix)),
			"class": tensor.New(tensor.WithShape(size), tensor.WithBacking(x.Classes)),
		}, Weight: float64(size)}, nil
	}, nil
}
