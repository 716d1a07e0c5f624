package main

import (
	"fmt"
	"io"
	"math"

	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/train"
)

// newProgress returns a Progress that shows losses in bits per byte.
func newProgress(out io.Writer, set settings) *report.Progress {
	return &report.Progress{
		Out: out, Steps: set.steps, Tokens: set.batch * set.length,
		Summary: func(c *train.Curve, last int) string {
			text := fmt.Sprintf("training %.3f", bits(c.Mean(last)))
			if n := len(c.HeldOut); n > 0 {
				text += fmt.Sprintf("  held out %.3f", bits(c.HeldOut[n-1].Loss))
			}
			return text + " bits per byte"
		},
		Rate: func(bytes float64) string { return size(int(bytes)) + "/s" },
	}
}

// bits converts nats to bits.
func bits(nats float64) float64 { return nats * math.Log2E }
