package nn

import (
	"runtime"
	"testing"

	"github.com/gomamba/mamba/layer"
)

// A step of a hybrid allocates no results: neither the residuals' sums, nor the sum of a weight and its LoRA.
func TestStepAllocations(t *testing.T) {
	const width, batch = 256, 64
	cfg := LMConfig{Config: Config{DModel: width, DState: 2, Window: 3, Pattern: []Kind{S6, Attention, SwiGLU, H3, LSTM}}, Vocab: 5}
	lm := NewLM(cfg)
	if _, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 2, Alpha: 3, Targets: []string{"q_proj", "embeddings"}}); err != nil {
		t.Fatal(err)
	}
	s := must(NewStepper(lm, batch))
	defer s.Close()
	tokens := make([]int, batch)
	least := uint64(1 << 62)
	for i := range 8 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		must(s.Step(tokens))
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; i > 1 {
			least = min(least, n)
		}
	}
	t.Logf("a step allocates %d bytes", least)
	// The headers of tensors and Gorgonia's own lists remain: 195 KiB, and up to 310 under the race detector, where pools forget at random a part of what they
	// hold. The residuals of the five layers would take 320 KiB more, and the query weight with LoRA 256 KiB more.
	if most := uint64(400 << 10); least > most {
		t.Errorf("a step allocates %d bytes, want at most %d", least, most)
	}
}
