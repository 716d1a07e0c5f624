package nn_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// adapted returns a model with LoRA of some weights, whose matrices are not zero. The embedding is as large as an in_proj, so that in_proj would get
// the memory of the updated embedding if that were freed too early.
func adapted(t *testing.T, opts ...nn.Option) *nn.LM {
	t.Helper()
	cfg := nn.LMConfig{Config: nn.Config{DModel: 32, NLayer: 2, Bias: true}, Vocab: 128}
	lm := nn.NewLM(cfg, append(opts, nn.WithSeed(1))...)
	added, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 3, Alpha: 5, Targets: append(slices.Clone(layer.LoRATargets), "embeddings")})
	if err != nil {
		t.Fatal(err)
	}
	if len(added) != 2*(1+4*2) {
		t.Fatalf("%d weights of LoRA, want those of the embedding and of four projections of two layers", len(added))
	}
	for i, p := range added {
		v := p.Value.Data().([]float32)
		for j := range v {
			v[j] = 0.1 * float32(math.Sin(float64(i*100+j)))
		}
	}
	added.ValuesChanged()
	return lm
}

// TestDeviceLoRA checks that the loss and the gradients with LoRA on a device agree with those on the host, with frozen and trained base weights.
func TestDeviceLoRA(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	for _, frozen := range []bool{true, false} {
		for _, p := range []struct {
			cuda.Precision
			loss, grad float64
		}{{cuda.Strict, 1e-5, 1e-4}, {cuda.FP16x3, 1e-5, 1e-4}, {cuda.TF32, 2e-3, 0.02}, {cuda.BF16, 0.02, 0.1}} {
			t.Run(fmt.Sprintf("frozen %v, %v", frozen, p.Precision), func(t *testing.T) {
				host, device := adapted(t), adapted(t, nn.OnDevice(d), nn.WithPrecision(p.Precision))
				if !frozen {
					host.Params().Unfreeze()
					device.Params().Unfreeze()
				}
				loss, grads := lossAndGradients(t, host, 3, 37, false)
				for _, bound := range []bool{false, true} {
					got, there := lossAndGradients(t, device, 3, 37, bound)
					if math.Abs(got-loss) > p.loss*loss {
						t.Errorf("the loss is %v, want %v", got, loss)
					}
					for i, w := range device.Params().Trainable() {
						if far := relative(there[i], grads[i]); !(far <= p.grad) {
							t.Errorf("bound %v: the gradient of %s is %.2g off, want at most %.2g", bound, w.Name, far, p.grad)
						}
					}
				}
			})
		}
	}
}

// TestDeviceLoRAMerged checks that merging does not change the model's results by a bit, those of single steps included.
func TestDeviceLoRAMerged(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	for _, p := range []cuda.Precision{cuda.Strict, cuda.FP16x3, cuda.TF32, cuda.BF16} {
		host, device := adapted(t), adapted(t, nn.OnDevice(d), nn.WithPrecision(p))
		logits := func() []float32 {
			g := G.NewGraph()
			ids := tensor.New(tensor.WithShape(2, 5), tensor.WithBacking([]int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}))
			out, err := device.Apply(G.NodeFromAny(g, ids, G.WithName("ids")))
			if err != nil {
				t.Fatal(err)
			}
			var v G.Value
			G.Read(out, &v)
			m := G.NewTapeMachine(g)
			defer m.Close()
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
			return v.Data().([]float32)
		}
		want := logits()
		steps := func() (all [][]float64) {
			s, err := nn.NewStepper(device, 2)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, tokens := range [][]int{{1, 6}, {2, 7}, {3, 8}} {
				rows, err := s.Step(tokens)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, rows...)
			}
			return all
		}
		unmerged := steps()
		for _, lm := range []*nn.LM{host, device} {
			if n, err := lm.Params().MergeLoRA(); n != 9 || err != nil {
				t.Fatalf("%d updates merged, want 9: %v", n, err)
			}
		}
		if !slices.Equal(logits(), want) {
			t.Errorf("%v: merging changes the results", p)
		}
		if merged := steps(); fmt.Sprint(merged) != fmt.Sprint(unmerged) {
			t.Errorf("%v: merging changes the results of single steps", p)
		}
		for i, w := range device.Params() {
			if far := relative(w.Value.Data().([]float32), host.Params()[i].Value.Data().([]float32)); far > 1e-6 {
				t.Errorf("%v: the merged %s is %.2g off", p, w.Name, far)
			}
		}
		s, err := nn.NewStepper(device, 1)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
}
