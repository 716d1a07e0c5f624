package nn_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

// Each kind of layer, alone in a stack, and a hybrid of all of them, on a device: loss and gradients are those of the host, and so are the
// logits of single steps, and the tokens of generation.
func TestKindsOnDevice(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	patterns := [][]nn.Kind{nn.Kinds()}
	for _, k := range nn.Kinds() {
		patterns = append(patterns, []nn.Kind{k, k})
	}
	for _, pattern := range patterns {
		t.Run(fmt.Sprint(pattern), func(t *testing.T) {
			cfg := nn.LMConfig{Config: nn.Config{DModel: 24, DState: 6, Pattern: pattern, NHead: 2, Window: 6, DHidden: 20, Bias: true}, Vocab: 23}
			host, device := nn.NewLM(cfg, nn.WithSeed(3)), nn.NewLM(cfg, nn.WithSeed(3), nn.OnDevice(d))
			if err := device.Err(); err != nil {
				t.Fatal(err)
			}
			loss, want := lossAndGradients(t, host, 2, 19, false)
			there, got := lossAndGradients(t, device, 2, 19, false)
			if !(math.Abs(there-loss) <= 1e-4*loss) {
				t.Errorf("the loss is %v, want %v", there, loss)
			}
			most := 0.0
			for _, w := range want {
				most = max(most, largest(w))
			}
			for i, w := range device.Params() {
				if far := relativeTo(max(1e-30, most*0.01), got[i], want[i]); !(far <= 2e-3) {
					t.Errorf("the gradient of %s is %.2g off, want at most 0.002", w.Name, far)
				}
			}
			p := pairOf(t, host, device, 3)
			defer p.close()
			for step := range 9 {
				p.step(t, []int{step, 2 * step, (3*step + 1) % 23}, func(logit float64) float64 { return 1e-4 * max(1, math.Abs(logit)) })
			}
			var tokens [2][][]int
			for i, lm := range []*nn.LM{host, device} {
				g, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 12, Piece: 5})
				if err != nil {
					t.Fatal(err)
				}
				if tokens[i], err = g.Generate(t.Context(), [][]int{{1, 2, 3, 4, 5, 6, 7, 8}, {9}}, nil); err != nil {
					t.Fatal(err)
				}
				if err := g.Close(); err != nil {
					t.Fatal(err)
				}
			}
			for i := range tokens[0] {
				if !slices.Equal(tokens[0][i], tokens[1][i]) {
					t.Errorf("sequence %d: the device generates %v, the host %v", i, tokens[1][i], tokens[0][i])
				}
			}
		})
	}
}

// The block of one operator is the composition of separate operators, on the same device, in loss and gradients.
func TestComposedOnDevice(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	cfg := nn.LMConfig{Config: nn.Config{DModel: 20, NLayer: 2, DState: 7, Bias: true}, Vocab: 19}
	for p, tol := range map[cuda.Precision]float64{cuda.Strict: 1e-4, cuda.FP16x3: 1e-4, cuda.TF32: 0.05, cuda.BF16: 0.2} {
		lm := nn.NewLM(cfg, nn.WithSeed(5), nn.OnDevice(d), nn.WithPrecision(p))
		loss, fused := lossAndGradients(t, lm, 2, 33, false)
		other, composed := lossAndGradients(t, lm, 2, 33, false, nn.WithComposed())
		if !(math.Abs(other-loss) <= tol*loss) {
			t.Errorf("%v: the loss is %v composed, %v fused", p, other, loss)
		}
		most := 0.0
		for _, g := range fused {
			most = max(most, largest(g))
		}
		for i, w := range lm.Params() {
			if far := relativeTo(most*0.1, composed[i], fused[i]); !(far <= tol) {
				t.Errorf("%v: the gradient of %s is %.2g apart, want at most %.2g", p, w.Name, far, tol)
			}
		}
	}
}

// A block that keeps nothing on a device has the loss and the gradients of one that keeps its values, bit for bit, and needs less memory.
func TestRecomputeOnDevice(t *testing.T) {
	for _, p := range []cuda.Precision{cuda.Strict, cuda.BF16} {
		var loss [2]float64
		var grads [2][][]float32
		var held [2]int64
		for i, level := range []nn.Recompute{nn.RecomputeCheap, nn.RecomputeAll} {
			d := gputest.Open(t, cuda.Open)
			lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 32, NLayer: 4, Bias: true}, Vocab: 23}, nn.WithSeed(3), nn.OnDevice(d), nn.WithPrecision(p))
			loss[i], grads[i] = lossAndGradients(t, lm, 1, 300, true, nn.WithRecompute(level))
			_, held[i] = d.Memory()
		}
		if loss[0] != loss[1] || !slices.EqualFunc(grads[0], grads[1], slices.Equal[[]float32]) {
			t.Errorf("%v: the loss or a gradient has other bits", p)
		}
		if held[1] >= held[0] {
			t.Errorf("%v: a device holds %d bytes with RecomputeAll, want less than %d", p, held[1], held[0])
		}
	}
}
