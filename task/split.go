package task

import (
	"fmt"
	"math"
)

// Split separates a text into a training part and a held-out part with about the given fraction of the bytes. No byte is in both parts.
//
// If possible, Split holds out whole files. It chooses them by a hash of their names, so that they are a fair sample and the same files
// every time. If the files are too few or too large for that (the size of the held-out part would be wrong by more than half), Split holds
// out the end of every file.
//
// It is an error if a part would have fewer than two bytes, one to predict from and one to predict. The error names the text's path.
func Split(text Text, fraction float64) (train, heldOut Text, err error) {
	if !(fraction > 0 && fraction < 1) {
		return Text{}, Text{}, fmt.Errorf("task: split: fraction is %v, should be between 0 and 1", fraction)
	}
	train, heldOut = splitFiles(text, fraction)
	if miss := math.Abs(float64(heldOut.Size()) - fraction*float64(text.Size())); miss > fraction*float64(text.Size())/2 {
		train, heldOut = splitEnds(text, fraction)
	}
	if train.Size() < 2 || heldOut.Size() < 2 {
		return Text{}, Text{}, fmt.Errorf("task: split: %s: %d bytes of text are too few to hold out a fraction of %v",
			text.Path, text.Size(), fraction)
	}
	return train, heldOut, nil
}

// splitFiles holds out whole files in the order of their hashes. It leaves out files that are larger than what is still to hold out.
func splitFiles(text Text, fraction float64) (train, heldOut Text) {
	most := int(math.Round(fraction * float64(text.Size())))
	names := make([]string, len(text.Files))
	size := make(map[string]int, len(text.Files))
	for i, f := range text.Files {
		names[i] = f.Name
		size[f.Name] = len(f.Data)
	}
	sortByHash(names)
	held := make(map[string]bool)
	for _, name := range names {
		if size[name] <= most {
			held[name] = true
			most -= size[name]
		}
	}
	train, heldOut = Text{Path: text.Path}, Text{Path: text.Path}
	for _, f := range text.Files {
		if held[f.Name] {
			heldOut.Files = append(heldOut.Files, f)
		} else {
			train.Files = append(train.Files, f)
		}
	}
	return train, heldOut
}

// splitEnds holds out the end of every file.
func splitEnds(text Text, fraction float64) (train, heldOut Text) {
	train, heldOut = Text{Path: text.Path}, Text{Path: text.Path}
	for _, f := range text.Files {
		cut := len(f.Data) - int(math.Ceil(fraction*float64(len(f.Data))))
		train.Files = append(train.Files, File{Name: f.Name, Data: f.Data[:cut:cut]})
		heldOut.Files = append(heldOut.Files, File{Name: f.Name, Data: f.Data[cut:]})
	}
	return train, heldOut
}
