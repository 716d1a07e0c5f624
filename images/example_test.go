package images_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/gomamba/mamba/images"
)

// A folder of images and labels becomes batches for training; a model's scores become a mask with the labels' own values.
func Example() {
	dir, err := os.MkdirTemp("", "images")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	if err := disks(dir); err != nil {
		fmt.Println(err)
		return
	}

	pairs, err := images.Pairs(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	samples, classes, err := images.ReadPairs(pairs, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d images of %v, labels with the values %v\n", len(samples), samples[0].Image.Size, classes)

	batches, err := images.NewBatches(images.Samples(samples), images.Patches{
		Size: []int{32, 32}, Seed: 1, Foreground: 0.5,
		Augment: images.Augment{Flips: true, Turns: true, Rotate: 15, Noise: 0.1},
	}, 4, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	b, err := batches.At(0) // the batch of a first step; a resumed run asks for the batch of its own step
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("a batch has %d values and %d classes of cells\n", len(b.Pix), len(b.Labels))

	// A model that was trained would stand here: bright cells are disks.
	model := func(windows []float32, n int) ([]float32, error) {
		scores := make([]float32, 0, 2*len(windows))
		for _, v := range windows {
			scores = append(scores, 1-v, v)
		}
		return scores, nil
	}
	im, err := images.Read(pairs[0].Image)
	if err != nil {
		fmt.Println(err)
		return
	}
	found, err := images.Windows{Size: []int{32, 32}, Overlap: 0.5, Flips: true}.Labels(im, len(classes), model)
	if err != nil {
		fmt.Println(err)
		return
	}
	mask, err := classes.Values(found)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := images.WriteLabels(filepath.Join(dir, "0_mask.png"), mask); err != nil {
		fmt.Println(err)
		return
	}

	again, err := images.ReadLabels(filepath.Join(dir, "0_mask.png"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("the mask has %v at the border and %v in the middle\n", again.Values[0], again.Values[32*64+32])
	// Output:
	// 3 images of [64 64], labels with the values [0 255]
	// a batch has 4096 values and 4096 classes of cells
	// the mask has 0 at the border and 255 in the middle
}

// disks writes three images with a bright disk each, and labels that are 255 inside of it.
func disks(dir string) error {
	for _, folder := range []string{"image", "label"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o777); err != nil {
			return err
		}
	}
	for i := range 3 {
		im, err := images.New([]int{64, 64}, 1)
		if err != nil {
			return err
		}
		l := &images.Labels{Size: im.Size, Values: make([]int32, len(im.Pix))}
		for c := range im.Pix {
			im.Pix[c] = 0.2
			if y, x := c/64-32, c%64-32; x*x+y*y < (10+5*i)*(10+5*i) {
				im.Pix[c], l.Values[c] = 0.8, 255
			}
		}
		name := fmt.Sprintf("%d.png", i)
		if err := images.WritePNG(filepath.Join(dir, "image", name), im); err != nil {
			return err
		}
		if err := images.WriteLabels(filepath.Join(dir, "label", name), l); err != nil {
			return err
		}
	}
	return nil
}
