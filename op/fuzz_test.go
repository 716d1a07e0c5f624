package op

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/kernel"
)

// reference computes a problem with the plain loops of kernel.Scan.Reference.
func (p *scanProblem) reference() map[string][]float64 {
	s := &kernel.Scan[float64]{
		Batch: p.batch, Length: p.length, Channels: p.channels, State: p.state,
		U: p.in["U"], Delta: p.in["Delta"], A: p.in["A"],
		B: kernel.Projection[float64]{Data: p.in["B"], Groups: p.bGroups},
		C: kernel.Projection[float64]{Data: p.in["C"], Groups: p.cGroups},
		D: p.in["D"], Z: p.in["Z"], DeltaBias: p.in["DeltaBias"], Initial: p.in["InitialState"],
		Softplus: p.cfg.DeltaSoftplus, Reverse: p.cfg.Reverse,
	}
	if start := p.in["Start"]; start != nil {
		s.Start = make([]bool, len(start))
		for i, v := range start {
			s.Start[i] = v != 0
		}
	}
	all := map[string][]float64{"y": make([]float64, len(p.dy)), "final": make([]float64, len(p.dfinal))}
	for name, v := range p.in {
		if name != "Start" {
			all["gradient of "+name] = make([]float64, len(v))
		}
	}
	states := s.Reference(all["y"], all["final"])
	s.ReferenceBackward(states, p.dy, p.dfinal, &kernel.ScanGrad[float64]{
		U: all["gradient of U"], Delta: all["gradient of Delta"], A: all["gradient of A"], B: all["gradient of B"],
		C: all["gradient of C"], D: all["gradient of D"], Z: all["gradient of Z"],
		DeltaBias: all["gradient of DeltaBias"], Initial: all["gradient of InitialState"],
	})
	return all
}

// drawAnyScan draws a scan of any size that is quick to compute.
func drawAnyScan(t *rapid.T) *scanProblem {
	p := drawScan(t, 200)
	p.state = rapid.IntRange(1, 40).Draw(t, "larger state")
	p.channels *= rapid.IntRange(1, 1+80/p.channels).Draw(t, "more channels")
	p.length = min(p.length, 1+40000/(p.batch*p.channels*p.state))
	var with []string
	for _, name := range scanOptional {
		if p.in[name] != nil {
			with = append(with, name)
		}
	}
	return p.fill(rapid.Uint64().Draw(t, "seed of all"), with...)
}

func againstReference(t *rapid.T) {
	p := drawAnyScan(t)
	got, err := p.run(tensor.Float64, rapid.Bool().Draw(t, "lisp machine"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sameResults(got, p.reference(), 1e-11); err != nil {
		t.Fatal(err)
	}
}

// Scans of any shape and with any options have the results and gradients of the plain loops.
func TestSelectiveScanReference(t *testing.T) { rapid.Check(t, againstReference) }

// FuzzSelectiveScan looks for shapes and options for which results differ from those of the plain loops.
func FuzzSelectiveScan(f *testing.F) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 50))
		var bytes []byte
		for range 128 {
			bytes = binary.LittleEndian.AppendUint64(bytes, r.Uint64())
		}
		f.Add(bytes)
	}
	f.Fuzz(rapid.MakeFuzz(againstReference))
}
