package kernel

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/gomamba/mamba/internal/cpu"
)

// Scans of few channels and many steps are cut into chunks of time. They equal the reference, which has no chunks.
func TestScanChunks(t *testing.T) {
	cases := []struct {
		chunks int
		scanCase
	}{
		{2, scanCase{batch: 1, length: 2048, channels: 1, state: 1, bGroups: 1, cGroups: 1}},
		{8, scanCase{batch: 1, length: 8200, channels: 3, state: 2, bGroups: 1, cGroups: 1, d: true, z: true, bias: true, initial: true, softplus: true}},
		{2, scanCase{batch: 1, length: 3001, channels: 20, state: 3, bGroups: 2, cGroups: 0, z: true, initial: true, softplus: true, reverse: true}},
		{4, scanCase{batch: 2, length: 4100, channels: 5, state: 2, bGroups: 0, cGroups: 1, d: true, bias: true, start: true, softplus: true}},
		{2, scanCase{batch: 1, length: 2500, channels: 40, state: 2, bGroups: 1, cGroups: 1, d: true, z: true, start: true, reverse: true}},
		{8, scanCase{batch: 1, length: 8200, channels: 12, state: 1, bGroups: 4, cGroups: 4, directions: 4, d: true, bias: true, softplus: true, oneU: true, merge: true}},
		{2, scanCase{batch: 1, length: 2100, channels: 21, state: 3, bGroups: 3, cGroups: 3, directions: 3, d: true, oneU: true}},
		{2, scanCase{batch: 1, length: 2100, channels: 21, state: 2, bGroups: 3, cGroups: 3, directions: 3, initial: true, merge: true}},
		{1, scanCase{batch: 2, length: 2500, channels: 40, state: 1, bGroups: 1, cGroups: 1}},
		{1, scanCase{batch: 1, length: 2047, channels: 1, state: 1, bGroups: 1, cGroups: 1}},
	}
	eachLevel(t, func(t *testing.T) {
		for i, c := range cases {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				s := c.make64(uint64(i))
				if c.start { // few starts, so that some chunks have none
					for j := range s.Start {
						s.Start[j] = j%1700 == 900
					}
				}
				if got := s.newChunks(s.sections(nil)).count; got != c.chunks {
					t.Errorf("%d chunks, want %d", got, c.chunks)
				}
				if level == cpu.Generic {
					compareWithReference(t, s, s, 1e-12)
				}
				compareWithReference(t, s.narrow(s), s, 2e-5)
			})
		}
	})
}

func TestScanChunksBitIdentical(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, c := range []scanCase{
		{batch: 1, length: 4500, channels: 17, state: 4, bGroups: 1, cGroups: 1, d: true, z: true, bias: true, initial: true, softplus: true},
		{batch: 1, length: 4500, channels: 9, state: 1, bGroups: 3, cGroups: 3, directions: 3, d: true, bias: true, initial: true, oneU: true, merge: true},
		{batch: 2, length: 300, channels: 150, state: 5, bGroups: 3, cGroups: 3, directions: 3, d: true, bias: true, initial: true, oneU: true, merge: true},
	} {
		s := convert[float32](c.make64(5))
		run := func() (out [][]float32) {
			y, final := make([]float32, len(s.U)), make([]float32, len(s.Initial))
			s.Forward(y, final)
			g := s.newGrad()
			s.Backward(y, final, g)
			return [][]float32{y, final, g.U, g.Delta, g.A, g.B, g.C, g.D, g.Z, g.DeltaBias, g.Initial}
		}
		runtime.GOMAXPROCS(1)
		want := run()
		for _, procs := range []int{2, 3, 8} {
			runtime.GOMAXPROCS(procs)
			for j, got := range run() {
				if !slices.Equal(got, want[j]) {
					t.Fatalf("%+v, GOMAXPROCS %d: result %d differs", c, procs, j)
				}
			}
		}
	}
}
