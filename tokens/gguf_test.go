package tokens

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The tokens are those of llama.cpp, with special tokens recognized. A text with a byte that has no token is an error here; llama.cpp drops the byte.
func TestGGUF(t *testing.T) {
	const folder = "../testdata/gguf-mamba-tiny"
	text, err := os.ReadFile(filepath.Join(folder, "narrow.texts.json"))
	if err != nil {
		t.Fatal(err)
	}
	var expected struct {
		Texts []struct {
			Text, Decoded string
			Special       []int `json:"ids_special"`
			IDs           []int
		}
	}
	if err := json.Unmarshal(text, &expected); err != nil || len(expected.Texts) < 10 {
		t.Fatal(len(expected.Texts), err)
	}
	tokenizer := open(t, filepath.Join(folder, "narrow-F32.gguf"), 96)
	same, dropped := 0, 0
	for _, c := range expected.Texts {
		ids, err := tokenizer.Encode(c.Text)
		if plain := strings.ReplaceAll(c.Text, "<|endoftext|>", ""); plain == c.Text && c.Decoded != c.Text {
			if dropped++; err == nil || !strings.Contains(err.Error(), "tokens: encode: ") {
				t.Errorf("%q: %v, %v, want an error", c.Text, ids, err)
			}
			continue
		}
		same++
		if err != nil || !slices.Equal(ids, c.Special) {
			t.Errorf("%q: %v, %v, want %v", c.Text, ids, err, c.Special)
		}
		if decoded, err := tokenizer.Decode(c.IDs); err != nil || decoded != c.Decoded {
			t.Errorf("%v: %q, %v, want %q", c.IDs, decoded, err, c.Decoded)
		}
	}
	if same < 8 || dropped < 1 || !slices.Equal(tokenizer.End(), []int{0}) {
		t.Errorf("%d texts, %d with bytes without a token; the end is %v", same, dropped, tokenizer.End())
	}
	if _, err := Open(filepath.Join(folder, "wide-Q6_K.gguf"), 96); err == nil || !strings.Contains(err.Error(), `tokenizer.ggml.model is "no_vocab", want "gpt2"`) {
		t.Errorf("no tokenizer: %v", err)
	}
}
