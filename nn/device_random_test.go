package nn_test

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

// TestDeviceAnyModel checks that models of random sizes and options have the same loss, gradients and steps on a device as on the host.
func TestDeviceAnyModel(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	rapid.Check(t, func(t *rapid.T) {
		precision := rapid.SampledFrom([]cuda.Precision{cuda.Strict, cuda.Strict, cuda.FP16x3, cuda.TF32, cuda.BF16}).Draw(t, "precision")
		upTo := func(most int, name string) int { return rapid.IntRange(1, most).Draw(t, name) }
		states := map[cuda.Precision]int{cuda.Strict: 70, cuda.FP16x3: 70, cuda.TF32: 70, cuda.BF16: 16}[precision]
		// A norm of few numbers is ill-conditioned; the norm of one number is its sign.
		least := map[cuda.Precision]int{cuda.Strict: 3, cuda.FP16x3: 3, cuda.TF32: 15, cuda.BF16: 15}[precision]
		cfg := nn.LMConfig{
			Config: nn.Config{
				DModel: least + upTo(40, "DModel beyond that"), NLayer: upTo(2, "NLayer"), DState: upTo(states, "DState"), DConv: upTo(16, "DConv"),
				DInner: upTo(80, "DInner"), DtRank: upTo(9, "DtRank"), Bias: rapid.Bool().Draw(t, "Bias"), NoConvBias: rapid.Bool().Draw(t, "NoConvBias"),
			},
			Vocab: upTo(70, "Vocab"), UntiedHead: rapid.Bool().Draw(t, "UntiedHead"),
		}
		batch, length := upTo(4, "batch"), 1+upTo(90, "length")
		// The errors of a weight's gradient are relative to its largest element, or to this part of the model's largest gradient.
		tol := map[cuda.Precision]struct{ loss, grad, small, logit float64 }{
			cuda.Strict: {1e-5, 1e-4, 0.01, 1e-5}, cuda.FP16x3: {1e-5, 1e-4, 0.01, 1e-5}, cuda.TF32: {5e-3, 0.1, 0.1, 1e-5}, cuda.BF16: {0.05, 0.4, 0.1, 0.1},
		}[precision]
		host, device := nn.NewLM(cfg, nn.WithSeed(1)), nn.NewLM(cfg, nn.WithSeed(1), nn.OnDevice(d), nn.WithPrecision(precision))

		loss, want := lossAndGradients(t, host, batch, length, false)
		there, got := lossAndGradients(t, device, batch, length, rapid.Bool().Draw(t, "bound"))
		if !(math.Abs(there-loss) <= tol.loss*max(loss, 1e-3)) {
			t.Errorf("the loss is %v, want %v", there, loss)
		}
		most := 0.0
		for _, w := range want {
			most = max(most, largest(w))
		}
		for i, w := range device.Params() {
			if far := relativeTo(max(1e-30, most*tol.small), got[i], want[i]); !(far <= tol.grad) {
				t.Errorf("the gradient of %s is %.2g off, want at most %.2g", w.Name, far, tol.grad)
			}
		}

		rows := upTo(12, "rows")
		p := pairOf(t, host, device, rows)
		defer p.close()
		for step := range 4 {
			tokens := make([]int, rows)
			for i := range tokens {
				tokens[i] = (step*13 + i*5) % cfg.Vocab
			}
			p.step(t, tokens, func(logit float64) float64 { return tol.logit * max(1, math.Abs(logit)) })
		}
	})
}
