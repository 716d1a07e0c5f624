// Package images brings images and volumes into a model and its results back into files: it reads and writes files, turns the values of labels
// into classes, draws augmented patches from a seed, and lets a model see an image of any size in windows. It uses no Gorgonia.
//
// A folder of images and labels becomes batches:
//
//	pairs, err := images.Pairs("data")                         // data/image/*.png and data/label/*.png
//	samples, classes, err := images.ReadPairs(pairs, nil)      // labels as classes from 0; classes has the labels' values
//	batches, err := images.NewBatches(images.Samples(samples), images.Patches{
//		Size: []int{256, 256}, Seed: 1, Augment: images.Augment{Flips: true, Turns: true, Elastic: 3, Noise: 0.1},
//	}, 8, 0)
//	source := train.NewSource(func(i int) (train.Batch, error) {
//		b, err := batches.At(i) // b.Pix and b.Labels are values of the inputs of a loss
//		...
//	})
//
// and a model's scores become a mask with the labels' own values:
//
//	im, err := images.Read("new.png")
//	w := images.Windows{Size: []int{256, 256}, Overlap: 0.5}
//	l, err := w.Labels(im, len(classes), model)                // model: windows in, scores out
//	mask, err := classes.Values(l)
//	err = images.WriteLabels("new_mask.png", mask)
//
// Files are PNG, JPEG, TIFF (one page) of 8 or 16 bits, and NIfTI-1. DICOM is not read: dcm2niix (https://github.com/rordenlab/dcm2niix) converts it
// to NIfTI. Files are not trusted: a header that claims more than the file can hold, or than the memory holds, is an error before anything is
// allocated.
//
// Everything random depends on a seed and an index alone, never on the time or the number of goroutines: the same batch has the same bits on each
// run of a machine, for any number of workers.
package images
