package main

import (
	"fmt"

	"github.com/gomamba/mamba/examples/internal/loop"
	"github.com/gomamba/mamba/task"
	"github.com/gomamba/mamba/train"
)

const (
	// Go's library is about twice as large. The default run reads only a small part of this.
	textLimit = 8 << 20
	// The limit for text from -text, so that it fits into memory.
	namedTextLimit = 1 << 30
	heldOutShare   = 0.1
	// So much of the held-out part is evaluated ten times in a run, which takes a second or two each time.
	scoredWindows = 256
	scoredBytes   = 32 << 10
)

// data is the text, divided and cut into windows.
type data struct {
	path           string
	files          int
	train, heldOut []byte
	source         train.Source  // of windows of the training part
	windows        []train.Batch // of the held-out part
	scored         int           // number of held-out bytes that are targets in the windows
	bigram         float64       // bits per byte of a bigram model on the windows
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

// cut makes the windows of both parts, and the bigram model of the training part.
func (d *data) cut(set settings) error {
	open := func() (func() (task.Batch, error), error) {
		s, err := task.NewSampler(d.train, set.batch, set.length, int64(set.seed))
		return s.Next, err
	}
	if _, err := open(); err != nil {
		return err
	}
	d.source = loop.Source(set.length, open)
	// At least one batch: a full batch costs as much as a part of it.
	limit := max(min(scoredWindows, scoredBytes/set.length), set.batch)
	windows, err := task.Windows(d.heldOut, set.batch, set.length, limit)
	if err != nil {
		return err
	}
	for _, w := range windows {
		batch, err := loop.Batch(w, set.length)
		if err != nil {
			return err
		}
		d.windows = append(d.windows, batch)
		d.scored += w.Count()
	}
	bigram, err := task.NewBigram(d.train)
	if err != nil {
		return err
	}
	d.bigram, err = bigram.BitsPerByte(windows)
	return err
}

// size returns a number of bytes with a unit, such as "1.2 MB".
func size(bytes int) string {
	switch {
	case bytes >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(bytes)/1e6)
	case bytes >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(bytes)/1e3)
	}
	return fmt.Sprintf("%d bytes", bytes)
}
