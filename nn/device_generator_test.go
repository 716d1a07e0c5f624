package nn_test

import (
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

// TestDeviceGeneratorFailures: if any allocation, or any copy between host and device, fails, Continue returns an error, and a later call
// continues to the tokens of a run without failures.
func TestDeviceGeneratorFailures(t *testing.T) {
	lm := smallOnDevice(t, cuda.Strict)
	sequences := func() []*nn.Sequence { return []*nn.Sequence{nn.NewSequence(1, 5, 6, 7, 8, 9), nn.NewSequence(2, 3)} }
	proceed := func(s []*nn.Sequence, n int, sampling nn.Sampling) ([][]int, error) {
		g, err := nn.NewGenerator(lm, nn.GenerateConfig{Sampling: sampling, MaxTokens: n, Piece: 3})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		return g.Continue(t.Context(), s, nil)
	}
	const first, all = 3, 6
	for _, c := range []struct {
		what     string
		limit    gputest.Limit
		sampling nn.Sampling
	}{{"allocation", gputest.Allocations(t), nn.Sampling{}}, {"copy", gputest.Copies(t), nn.Sampling{Temperature: 1}}} {
		want, err := proceed(sequences(), all, c.sampling)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for failed := 1; failed > 0; n++ {
			s := sequences()
			if err := lm.Params()[0].OnDevice().Place().Do((*cuda.Stream).Trim); err != nil { // so that Continue allocates again
				t.Fatal(err)
			}
			c.limit(n)
			got, err := proceed(s, first, c.sampling)
			if failed = c.limit(-1); (failed > 0) != (err != nil) {
				t.Fatalf("%d calls failed from %s %d on: error %v", failed, c.what, n, err)
			}
			if got == nil {
				got = make([][]int, len(s))
			}
			more, err := proceed(s, all-len(got[0]), c.sampling)
			if err != nil {
				t.Fatal(err)
			}
			for i := range s {
				if tokens := fmt.Sprint(slices.Concat(got[i], more[i])); tokens != fmt.Sprint(want[i]) {
					t.Errorf("sequence %d, %s %d failed: %s, want %v", i, c.what, n, tokens, want[i])
				}
			}
		}
		t.Logf("each %s of %d", c.what, n)
		if n < 5 {
			t.Errorf("only %d calls", n)
		}
	}
}

// smallOnDevice returns a small model on a device.
func smallOnDevice(t *testing.T, p cuda.Precision) *nn.LM {
	t.Helper()
	cfg := nn.LMConfig{Config: nn.Config{DModel: 8, DState: 4, NLayer: 1}, Vocab: 11}
	return nn.NewLM(cfg, nn.WithSeed(5), nn.OnDevice(gputest.Open(t, cuda.Open)), nn.WithPrecision(p))
}

// TestDeviceGeneratorClose: Close returns all that a Generator or Stepper holds on the device at once, without the collector.
func TestDeviceGeneratorClose(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for _, p := range []cuda.Precision{cuda.Strict, cuda.BF16} {
		lm := smallOnDevice(t, p)
		d := lm.Params()[0].OnDevice().Place().Device()
		use := func() {
			g, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 4, Piece: 3})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := g.Generate(t.Context(), [][]int{{1, 2, 3, 4, 5, 6, 7, 8}, {9, 8, 7}}, nil); err != nil {
				t.Fatal(err)
			}
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
		}
		use() // which brings the weights there
		before, _ := d.Memory()
		use()
		if after, _ := d.Memory(); after != before {
			t.Errorf("%v: %d bytes are in use after Close, %d before", p, after, before)
		}
	}
}

// TestDeviceRefuses: what generation on a device does not have is an error that names it.
func TestDeviceRefuses(t *testing.T) {
	_, lm := onBoth(t)
	g := G.NewGraph()
	ids := G.NewMatrix(g, tensor.Int, G.WithShape(1, 2), G.WithName("ids"))
	state, err := lm.Stack().ZeroState(g, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := lm.ApplyWithState(ids, state[1:]); err == nil || !strings.Contains(err.Error(), "the state has 2 layers, want 3") {
		t.Errorf("a state of two layers: error %v", err)
	}
	if _, err := lm.Stack().ZeroState(g, 0); err == nil || !strings.Contains(err.Error(), "ZeroState: batch is 0, want at least 1") {
		t.Errorf("a state of no batch: error %v", err)
	}
	if _, err := lm.Loss(ids, nil); err == nil || !strings.Contains(err.Error(), "targets is missing") {
		t.Errorf("no targets: error %v", err)
	}
}

// TestDevicePrecisionReaches: the precision changes the results of the blocks, and those of the head alone, in logits and loss.
func TestDevicePrecisionReaches(t *testing.T) {
	results := map[string][]string{}
	for _, p := range []cuda.Precision{cuda.Strict, cuda.BF16} {
		for _, blocks := range []bool{true, false} {
			lm := smallOnDevice(t, p)
			for _, w := range lm.Params() {
				if !blocks && strings.HasSuffix(w.Name, "out_proj.weight") { // the blocks then add nothing
					w.Value.Zero()
				}
			}
			lm.Params().ValuesChanged()
			g := G.NewGraph()
			ids := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 3), tensor.WithBacking([]int{7, 8, 9})), G.WithName("ids"))
			logits, err := lm.Apply(ids)
			if err != nil {
				t.Fatal(err)
			}
			loss, err := lm.Loss(ids, ids)
			if err != nil {
				t.Fatal(err)
			}
			x := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 2, 8), tensor.WithBacking(tensor.Range(tensor.Float32, 1, 17))), G.WithName("x"))
			y, err := lm.Stack().Blocks()[0].Apply(x)
			if err != nil {
				t.Fatal(err)
			}
			var v [3]G.Value
			for i, n := range []*G.Node{logits, loss, y} {
				G.Read(n, &v[i])
			}
			m := G.NewTapeMachine(g)
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
			for i, what := range []string{"logits", "loss", "block"} {
				if !blocks && what == "block" {
					continue
				}
				key := fmt.Sprintf("%s, with blocks %t", what, blocks)
				results[key] = append(results[key], fmt.Sprint(v[i].Data()))
			}
			m.Close()
		}
	}
	for key, r := range results {
		if len(r) != 2 || r[0] == r[1] {
			t.Errorf("%s: BF16 gives what Strict gives, or there are %d results", key, len(r))
		}
	}
}
