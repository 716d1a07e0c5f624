package checkpoint

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomamba/mamba/internal/golden"
	"github.com/gomamba/mamba/nn"
)

// TestSaveForTransformers writes models into folders of the directory MAMBA_SAVE_FOR, so that a program with transformers can check
// them. Each folder also has ids.bin, int64 tokens (2, 21), and logits.bin, our float32 logits for these tokens. If MAMBA_SAVE_FOR is
// not set, the test writes the folders to a temporary directory and reads them with Load.
func TestSaveForTransformers(t *testing.T) {
	root := os.Getenv("MAMBA_SAVE_FOR")
	if root == "" {
		root = t.TempDir()
	} else if !filepath.IsAbs(root) {
		root = filepath.Join("..", root)
	}
	for name, cfg := range map[string]nn.LMConfig{
		"tied":             {Config: nn.Config{DModel: 64, NLayer: 4}, Vocab: 256},
		"untied_with_bias": {Config: nn.Config{DModel: 48, NLayer: 2, Bias: true, NormEps: 1e-3}, Vocab: 100, UntiedHead: true},
		"odd_sizes":        {Config: nn.Config{DModel: 33, NLayer: 3, DState: 5, DConv: 3, Expand: 3, DtRank: 7, NoConvBias: true}, Vocab: 97},
		"odd_width_inside": {Config: nn.Config{DModel: 20, NLayer: 2, DInner: 50}, Vocab: 31},
	} {
		lm := newLM(t, cfg, nn.WithSeed(1))
		for _, p := range lm.Params() { // larger than at the start, so that mistakes show
			if p.Decay {
				for i, v := range p.Value.Data().([]float32) {
					p.Value.Data().([]float32)[i] = 2 * v
				}
			}
		}
		dir := filepath.Join(root, name)
		if err := Save(dir, lm); err != nil {
			t.Fatal(err)
		}
		in := golden.Input{Batch: 2, Length: 21}
		var ids []byte
		for i := range in.Batch * in.Length {
			id := (i*i + 7*i) % lm.Config().Vocab
			in.IDs = append(in.IDs, id)
			ids = append(ids, byte(id), 0, 0, 0, 0, 0, 0, 0)
		}
		put(t, filepath.Join(dir, "ids.bin"), ids)
		logits, _, _ := evaluate(t, lm, in)
		var raw []byte
		for _, v := range logits {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(float32(v)))
		}
		put(t, filepath.Join(dir, "logits.bin"), raw)
		again, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		got, _, _ := evaluate(t, again, in)
		if d, err := golden.Distance(got, logits); d != 0 || err != nil {
			t.Errorf("%s: the logits differ by %g after loading (%v)", name, d, err)
		}
	}
}
