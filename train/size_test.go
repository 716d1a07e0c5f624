package train

import (
	"math"
	"strings"
	"testing"

	"github.com/gomamba/mamba/nn"
)

// Batches that exceed the machine's memory are errors before anything is allocated.
func TestHugeBatches(t *testing.T) {
	docs := []Document{{Tokens: []int{1, 2, 3}}}
	const huge = math.MaxInt / 2
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4}, Vocab: 5})
	train := func(batch, length, accumulate int) error {
		_, err := New(lm, Config{Batch: batch, Length: length, Steps: 1, Accumulate: accumulate, Data: docs, AdamW: AdamWConfig{LearnRate: 0.1}})
		return err
	}
	for _, size := range [][3]int{{huge, 2, 1}, {2, huge, 1}, {huge, huge, 1}, {2, 2, huge}} {
		if err := train(size[0], size[1], size[2]); err == nil || !strings.Contains(err.Error(), "this machine's memory") {
			t.Errorf("batch, length, accumulate %v: error %v", size, err)
		}
	}
	for _, size := range [][2]int{{huge, 2}, {2, huge}} {
		if _, err := Pack(docs, size[0], size[1]); err == nil || !strings.Contains(err.Error(), "this machine's memory") {
			t.Errorf("Pack %v: error %v", size, err)
		}
		if _, err := NewPacker(docs, size[0], size[1], 1); err == nil || !strings.Contains(err.Error(), "this machine's memory") {
			t.Errorf("NewPacker %v: error %v", size, err)
		}
	}
}
