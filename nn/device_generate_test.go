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

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

func onBoth(t *testing.T, opts ...nn.Option) (host, device *nn.LM) {
	t.Helper()
	d := gputest.Open(t)
	cfg := nn.LMConfig{Config: nn.Config{DModel: 40, NLayer: 3}, Vocab: 61}
	opts = append(opts, nn.WithSeed(5))
	return nn.NewLM(cfg, nn.WithSeed(5)), nn.NewLM(cfg, append(opts, nn.OnDevice(d))...)
}

// TestDeviceStepper: the logits of steps on a device are those on the host.
func TestDeviceStepper(t *testing.T) {
	for _, p := range []struct {
		cuda.Precision
		tol float64
	}{{cuda.Strict, 1e-5}, {cuda.BF16, 0.02}} {
		host, device := onBoth(t, nn.WithPrecision(p.Precision))
		for _, batch := range []int{1, 2, 3, 7, 20} {
			var steppers [2]*nn.Stepper
			for i, lm := range []*nn.LM{host, device} {
				s, err := nn.NewStepper(lm, batch)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				steppers[i] = s
			}
			for step := range 9 {
				if step == 6 {
					steppers[0].Reset()
					steppers[1].Reset()
				}
				tokens := make([]int, batch)
				for i := range tokens {
					tokens[i] = (step*13 + i*5) % 61
				}
				want, err := steppers[0].Step(tokens)
				if err != nil {
					t.Fatal(err)
				}
				got, err := steppers[1].Step(tokens)
				if err != nil {
					t.Fatal(err)
				}
				for i := range want {
					for j, w := range want[i] {
						if !(math.Abs(got[i][j]-w) <= p.tol) {
							t.Fatalf("%v, batch %d, step %d: logit %d of sequence %d is %v, want %v", p.Precision, batch, step, j, i, got[i][j], w)
						}
					}
				}
			}
		}
	}
}

// TestDeviceGenerate: the same prompts give the same tokens, and a sequence goes on from the device on the host and the other way
// round.
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
	for i := range a { // through a file each, to the other side
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

// TestDeviceStepperWhole: steps give what the whole sequence gives.
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

// TestDeviceStepperWeights: a captured step sees weights that change, written over where they are and moved elsewhere.
func TestDeviceStepperWeights(t *testing.T) {
	for _, p := range []struct {
		cuda.Precision
		tol float64
	}{{cuda.Strict, 1e-5}, {cuda.TF32, 1e-5}, {cuda.BF16, 0.02}} {
		host, device := onBoth(t, nn.WithPrecision(p.Precision))
		var steppers [2]*nn.Stepper
		for i, lm := range []*nn.LM{host, device} {
			s, err := nn.NewStepper(lm, 2)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			steppers[i] = s
		}
		for step := range 9 {
			if step%3 == 2 { // two steps before: one that loads the kernels, one that is captured
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
			var rows [2][][]float64
			for i, s := range steppers {
				r, err := s.Step([]int{step * 7 % 61, step * 11 % 61})
				if err != nil {
					t.Fatal(err)
				}
				rows[i] = r
			}
			for b, row := range rows[0] {
				for j, want := range row {
					if got := rows[1][b][j]; !(math.Abs(got-want) <= p.tol*max(1, math.Abs(want))) {
						t.Fatalf("%v, step %d: logit %d of sequence %d is %v, want %v", p.Precision, step, j, b, got, want)
					}
				}
			}
		}
	}
}

// TestDeviceStepperWidth: steps of convolutions of any width that there are kernels for; a wider one is an error.
func TestDeviceStepperWidth(t *testing.T) {
	d := gputest.Open(t)
	for _, width := range []int{1, 2, 3, 4, 5, 16, 17, 20} {
		cfg := nn.LMConfig{Config: nn.Config{DModel: 8, DConv: width, DState: width + 3}, Vocab: 5}
		device, err := nn.NewStepper(nn.NewLM(cfg, nn.WithSeed(5), nn.OnDevice(d)), 2)
		if (err == nil) != (width <= 16) {
			t.Errorf("a width of %d: %v", width, err)
		}
		if err != nil {
			continue
		}
		defer device.Close()
		host, err := nn.NewStepper(nn.NewLM(cfg, nn.WithSeed(5)), 2)
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		for step := range 20 {
			tokens := []int{step % 5, step * step % 5}
			got, err := device.Step(tokens)
			if err != nil {
				t.Fatal(err)
			}
			want, err := host.Step(tokens)
			if err != nil {
				t.Fatal(err)
			}
			for i := range want {
				for j, w := range want[i] {
					if !(math.Abs(got[i][j]-w) <= 1e-5) {
						t.Fatalf("a width of %d, step %d: logit %d of sequence %d is %v, want %v", width, step, j, i, got[i][j], w)
					}
				}
			}
		}
	}
}
