package report_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/train"
)

// The curve of a training run, as train.Trainer returns it, becomes a picture beside the loss of a simpler model.
func ExampleWritePNG() {
	curve := &train.Curve{
		Training: []train.Point{{Step: 1, Loss: 5.5}, {Step: 2, Loss: 3.1}, {Step: 3, Loss: 2.2}, {Step: 4, Loss: 1.9}},
		HeldOut:  []train.Point{{Step: 2, Loss: 3.3}, {Step: 4, Loss: 2.1}},
	}
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "loss.png")
	loss := report.Loss{Levels: []report.Level{{Name: "bigram", Value: 2.9}}}
	if err := report.WritePNG(path, loss.Panel(curve)); err != nil {
		panic(err)
	}
	fmt.Println("written:", filepath.Base(path))
	// Output: written: loss.png
}
