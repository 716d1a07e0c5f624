package nn_test

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

func onBoth(t *testing.T, opts ...nn.Option) (host, device *nn.LM) {
	t.Helper()
	d := gputest.Open(t, cuda.Open)
	cfg := nn.LMConfig{Config: nn.Config{DModel: 40, NLayer: 3}, Vocab: 61}
	opts = append(opts, nn.WithSeed(5))
	return nn.NewLM(cfg, nn.WithSeed(5)), nn.NewLM(cfg, append(opts, nn.OnDevice(d))...)
}

// pair is a stepper on the host and one on a device, whose results should be the same.
type pair [2]*nn.Stepper

func pairOf(t rapid.TB, host, device *nn.LM, batch int) (p pair) {
	t.Helper()
	for i, lm := range []*nn.LM{host, device} {
		s, err := nn.NewStepper(lm, batch)
		if err != nil {
			t.Fatal(err)
		}
		p[i] = s
	}
	return p
}

func (p pair) close() {
	for _, s := range p {
		s.Close()
	}
}

// step makes a step with both and compares the logits. The tolerance may depend on the logits.
func (p pair) step(t rapid.TB, tokens []int, tol func(logit float64) float64) {
	t.Helper()
	var rows [2][][]float64
	for i, s := range p {
		r, err := s.Step(tokens)
		if err != nil {
			t.Fatal(err)
		}
		rows[i] = r
	}
	for i, row := range rows[0] {
		for j, want := range row {
			if got := rows[1][i][j]; !(math.Abs(got-want) <= tol(want)) {
				t.Fatalf("tokens %v: logit %d of sequence %d is %v, want %v", tokens, j, i, got, want)
			}
		}
	}
}

func within(tol float64) func(float64) float64 { return func(float64) float64 { return tol } }

// TestDeviceStepper checks that the logits of steps on a device agree with those on the host.
func TestDeviceStepper(t *testing.T) {
	for _, p := range []struct {
		cuda.Precision
		tol float64
	}{{cuda.Strict, 1e-5}, {cuda.BF16, 0.02}} {
		host, device := onBoth(t, nn.WithPrecision(p.Precision))
		batches := []int{1, 2, 3, 7, 20}
		if testing.Short() {
			batches = []int{1, 7, 20}
		}
		for _, batch := range batches {
			pair := pairOf(t, host, device, batch)
			defer pair.close()
			for step := range 9 {
				if step == 6 {
					pair[0].Reset()
					pair[1].Reset()
				}
				tokens := make([]int, batch)
				for i := range tokens {
					tokens[i] = (step*13 + i*5) % 61
				}
				pair.step(t, tokens, within(p.tol))
			}
		}
	}
}

// TestDeviceGenerate checks that the same prompts give the same tokens on the host and on a device, and that a sequence from one can continue
// on the other.
func TestDeviceGenerate(t *testing.T) {
	host, device := onBoth(t)
	prompts := [][]int{{1}, {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37}, {4, 4, 4, 4, 4, 4, 4, 4}}
	cfg := nn.GenerateConfig{MaxTokens: 12, Piece: 4}
	run := func(lm *nn.LM, sequences []*nn.Sequence) [][]int {
		g, err := nn.NewGenerator(lm, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		tokens, err := g.Continue(context.Background(), sequences, nil)
		if err != nil {
			t.Fatal(err)
		}
		return tokens
	}
	sequences := func() (all []*nn.Sequence) {
		for i, p := range prompts {
			all = append(all, nn.NewSequence(uint64(i), p...))
		}
		return all
	}
	a, b := sequences(), sequences()
	if want, got := fmt.Sprint(run(host, a)), fmt.Sprint(run(device, b)); got != want {
		t.Errorf("on the device\n%s, want\n%s", got, want)
	}
	for i := range a { // each through a file to the other side
		for _, s := range []**nn.Sequence{&a[i], &b[i]} {
			file := filepath.Join(t.TempDir(), "sequence")
			if err := (*s).Save(file); err != nil {
				t.Fatal(err)
			}
			loaded, err := nn.LoadSequence(file)
			if err != nil {
				t.Fatal(err)
			}
			*s = loaded
		}
	}
	x, y := run(device, a), run(host, b)
	for i := range x {
		if !slices.Equal(x[i], y[i]) {
			t.Errorf("sequence %d, from the host on the device: %v; from the device on the host: %v", i, x[i], y[i])
		}
	}
}

// TestDeviceStepperWhole checks that single steps give the logits of the whole sequence.
func TestDeviceStepperWhole(t *testing.T) {
	_, device := onBoth(t)
	ids := []int{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8}
	g := G.NewGraph()
	out, err := device.Apply(G.NodeFromAny(g, tensor.New(tensor.WithShape(1, len(ids)), tensor.WithBacking(slices.Clone(ids))), G.WithName("ids")))
	if err != nil {
		t.Fatal(err)
	}
	var whole G.Value
	G.Read(out, &whole)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	s, err := nn.NewStepper(device, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := whole.Data().([]float32)
	for i, id := range ids {
		got, err := s.Step([]int{id})
		if err != nil {
			t.Fatal(err)
		}
		for j, v := range got[0] {
			if w := float64(want[i*61+j]); !(math.Abs(v-w) <= 1e-5) {
				t.Fatalf("step %d: logit %d is %v, want %v", i, j, v, w)
			}
		}
	}
}

// TestDeviceStepperWeights checks that a captured step uses weights that were changed in place, and weights that were moved.
func TestDeviceStepperWeights(t *testing.T) {
	for _, p := range []struct {
		cuda.Precision
		tol float64
	}{{cuda.Strict, 1e-5}, {cuda.FP16x3, 1e-5}, {cuda.TF32, 1e-5}, {cuda.BF16, 0.02}} {
		host, device := onBoth(t, nn.WithPrecision(p.Precision))
		pair := pairOf(t, host, device, 2)
		defer pair.close()
		for step := range 9 {
			if step%3 == 2 { // after two steps: the first loads the kernels, the second is captured
				for i, lm := range []*nn.LM{host, device} {
					for _, w := range lm.Params() {
						d := w.Value.Data().([]float32)
						for j := range d {
							d[j] += 0.05 * float32(math.Sin(float64(j+step)))
						}
						if i == 1 && step == 5 {
							if err := w.OnDevice().Free(); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
				device.Params().ValuesChanged()
			}
			pair.step(t, []int{step * 7 % 61, step * 11 % 61}, func(logit float64) float64 { return p.tol * max(1, math.Abs(logit)) })
		}
	}
}

// TestDeviceStepperWidth checks steps for all widths of the convolution that have kernels, and the error for a wider one.
func TestDeviceStepperWidth(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	for _, width := range []int{1, 2, 3, 4, 5, 16, 17, 20} {
		cfg := nn.LMConfig{Config: nn.Config{DModel: 8, DConv: width, DState: width + 3}, Vocab: 5}
		device := nn.NewLM(cfg, nn.WithSeed(5), nn.OnDevice(d))
		s, err := nn.NewStepper(device, 2)
		if (err == nil) != (width <= 16) {
			t.Errorf("a width of %d: %v", width, err)
		}
		if err != nil {
			continue
		}
		s.Close()
		pair := pairOf(t, nn.NewLM(cfg, nn.WithSeed(5)), device, 2)
		defer pair.close()
		for step := range 20 {
			pair.step(t, []int{step % 5, step * step % 5}, within(1e-5))
		}
	}
}

// TestDeviceStepperChannels checks steps of a block with more channels than the kernels of a step take.
func TestDeviceStepperChannels(t *testing.T) {
	cfg := nn.LMConfig{Config: nn.Config{DModel: 4, DInner: cuda.StepProductMost + 8, DState: 2}, Vocab: 5}
	pair := pairOf(t, nn.NewLM(cfg, nn.WithSeed(5)), nn.NewLM(cfg, nn.WithSeed(5), nn.OnDevice(gputest.Open(t, cuda.Open))), 2)
	defer pair.close()
	for step := range 4 {
		pair.step(t, []int{step % 5, step * step % 5}, within(1e-5))
	}
}
