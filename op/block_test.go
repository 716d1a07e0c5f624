package op

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

// The operator of a block has the same results and gradients as the composition of separate operators, on both machines and in both types.
func TestMambaBlockIsComposed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawBlock(t, 9)
		want, err := p.use(true).run(f64, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		lisp := rapid.Bool().Draw(t, "lisp machine")
		got, err := p.use(false).run(f64, lisp, nil)
		if err == nil {
			err = sameResults(got, want, 1e-11)
		}
		if err != nil {
			t.Fatalf("float64: %v", err)
		}
		if got, err = p.use(false).run(f32, lisp, nil); err == nil {
			err = sameResults(got, want, 2e-4)
		}
		if err != nil {
			t.Fatalf("float32: %v", err)
		}
	})
}

func TestMambaBlockGradients(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, in := drawBlock(t, 5).function(false)
		grad.MustCheck(t, f, in, grad.Sample(3, 5), grad.Tolerance(1e-6, 3e-8))
	})
}

var levels = []Recompute{RecomputeCheap, RecomputeNone, RecomputeAll}

// Results and gradients are the same bit for bit for each Recompute.
func TestRecomputeBitIdentical(t *testing.T) {
	for _, optional := range [][]string{nil, blockOptional} {
		p := &blockProblem{batch: 2, length: 70, model: 9, channels: 35, state: 5, width: 4, rank: 3, withState: optional != nil}
		p.fill(50, optional...)
		p.cfg.Eps = 1e-5
		for _, dt := range everyDtype {
			var want map[string][]float64
			for _, level := range levels {
				p.cfg.Recompute = level
				for _, lisp := range []bool{false, true} {
					got, err := p.use(false).run(dt, lisp, nil)
					if err != nil {
						t.Fatal(err)
					}
					if want == nil {
						want = got
					}
					for name, v := range want {
						if !slices.Equal(got[name], v) {
							t.Errorf("%v, recompute %v, lisp machine %t: %s differs", dt, level, lisp, name)
						}
					}
				}
			}
		}
	}
}

// The numbers of kept elements are those in the documentation of Recompute.
func TestRecomputeKeeps(t *testing.T) {
	for level, want := range map[Recompute]int{RecomputeCheap: 2*1536 + 80, RecomputeNone: 4*1536 + 768 + 80, RecomputeAll: 0} {
		f := &mambaBlock[float32]{BlockConfig: BlockConfig{Recompute: level}, batch: 3, length: 7, model: 768, channels: 1536, state: 16, rank: 48}
		if got := f.Keeps(); got != 3*7*want {
			t.Errorf("recompute %v keeps %d numbers for 21 steps, want %d for each", level, got, want)
		}
	}
	for level, want := range map[Recompute]string{RecomputeCheap: "cheap", RecomputeNone: "none", RecomputeAll: "all", 7: "Recompute(7)"} {
		if got := fmt.Sprint(level); got != want {
			t.Errorf("level %d is called %s, want %s", int(level), got, want)
		}
	}
}
