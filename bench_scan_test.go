package mamba_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// scanFlop is the number of operations for one step of one state, where an exponential counts as one: Δ·A, exp, ·h, ·B, +, ·C, +.
const scanFlop = 7

// BenchmarkScan measures the operator alone at batch 1: with D, z, softplus and delta_bias, as in a block, or without them. A layer of a 130M
// model has 1536 channels of state 16.
func BenchmarkScan(b *testing.B) {
	for _, pass := range passes {
		for _, c := range []struct {
			with                    string
			length, channels, state int
		}{
			{"none", 1024, 1536, 16}, // the size for which make floor measures the lower bound
			{"all", 1024, 1536, 16},
			{"all", 1024, 1536, 1}, {"all", 1024, 1536, 8}, {"all", 1024, 1536, 32}, {"all", 1024, 1536, 64}, {"all", 1024, 1536, 128},
			{"all", 4096, 256, 16}, // few channels, so the cores must divide the length
			{"all", 1024, 64, 16}, {"all", 262144, 64, 16},
		} {
			if testing.Short() && c.length*c.channels*c.state > 1<<25 {
				continue
			}
			name := fmt.Sprintf("pass=%s/with=%s/L=%d/D=%d/N=%d", pass.name, c.with, c.length, c.channels, c.state)
			tdn := c.length * c.channels * c.state
			w := work{tdn: tdn, flop: float64(tdn) * scanFlop}.times(pass.runs)
			measure(b, name, w, func() program {
				y, by := newScan(c.with == "all", c.length, c.channels, c.state)
				if !pass.backward {
					by = nil
				}
				return newProgram(y, tensor.Shape{1, c.length, c.channels}, by...)
			})
		}
	}
}

// newScan returns a scan's output and its operands.
func newScan(all bool, length, channels, state int) (*G.Node, G.Nodes) {
	g := G.NewGraph()
	r := rand.New(rand.NewPCG(2, 2))
	in := op.ScanInputs{
		U: input(g, "u", 1, length, channels),
		// Step sizes between 0.001 and 0.1 with a uniform logarithm, like the initial ones of a block.
		Delta: leaf(g, "delta", func() float32 { return float32(math.Exp(-6.9 + 4.6*r.Float64())) }, 1, length, channels),
		A:     leaf(g, "A", func() float32 { return -1 - 15*r.Float32() }, channels, state),
		B:     input(g, "B", 1, length, state),
		C:     input(g, "C", 1, length, state),
	}
	by := G.Nodes{in.U, in.Delta, in.A, in.B, in.C}
	if all {
		in.D, in.Z = input(g, "D", channels), input(g, "z", 1, length, channels)
		in.DeltaBias = leaf(g, "delta_bias", func() float32 { return -7 + 5*r.Float32() }, channels)
		by = append(by, in.D, in.Z, in.DeltaBias)
	}
	return G.Must(op.SelectiveScan(in, op.ScanConfig{DeltaSoftplus: all})), by
}
