package main

import (
	"fmt"

	"github.com/gomamba/mamba/task"
)

const (
	// Go's library is about twice as large; this is many times what the default run sees.
	textLimit = 8 << 20
	// For text that a person names, as much as fits comfortably into memory.
	namedTextLimit = 1 << 30
	heldOutShare   = 0.1
	// Scoring so much of the held-out part takes a second or two, and is done ten times in a run.
	scoredWindows = 256
	scoredBytes   = 32 << 10
)

// data is everything that is made from the text.
type data struct {
	path           string
	files          int
	train, heldOut []byte
	sampler        *task.Sampler // of the training part
	windows        []task.Batch  // of the held-out part
	scored         int           // bytes of it that are targets in the windows
	bigram         float64       // bits per byte of a bigram model over the windows
	prompt         []byte
}

func readData(set settings) (*data, error) {
	text, err := readText(set.text)
	if err != nil {
		return nil, err
	}
	train, heldOut, err := task.Split(text, heldOutShare)
	if err != nil {
		return nil, err
	}
	d := &data{path: text.Path, files: len(text.Files), train: train.Join(), heldOut: heldOut.Join()}
	if err := d.cut(set); err != nil {
		return nil, fmt.Errorf("%s: %w", d.path, err)
	}
	switch {
	case set.prompt != "":
		d.prompt = []byte(set.prompt)
	case set.text == "":
		d.prompt = []byte("func ")
	default:
		d.prompt = append(d.prompt, d.heldOut[:min(40, len(d.heldOut))]...)
	}
	return d, nil
}

func readText(path string) (task.Text, error) {
	if path != "" {
		return task.ReadText(path, namedTextLimit)
	}
	text, err := task.GoSource(textLimit)
	if err != nil {
		err = fmt.Errorf("%w; name another text with -text", err)
	}
	return text, err
}

// cut makes the windows of both parts, and counts the training part for the bigram model.
func (d *data) cut(set settings) (err error) {
	if d.sampler, err = task.NewSampler(d.train, set.batch, set.length, int64(set.seed)); err != nil {
		return err
	}
	// A full batch costs as much as a part of it.
	windows := max(min(scoredWindows, scoredBytes/set.length), set.batch)
	if d.windows, err = task.Windows(d.heldOut, set.batch, set.length, windows); err != nil {
		return err
	}
	for _, batch := range d.windows {
		d.scored += batch.Count()
	}
	bigram, err := task.NewBigram(d.train)
	if err != nil {
		return err
	}
	d.bigram, err = bigram.BitsPerByte(d.windows)
	return err
}

// size writes a number of bytes as people do.
func size(bytes int) string {
	switch {
	case bytes >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(bytes)/1e6)
	case bytes >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(bytes)/1e3)
	}
	return fmt.Sprintf("%d bytes", bytes)
}
