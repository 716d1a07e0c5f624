package tokens

import (
	"errors"
	"fmt"
	"strings"

	"github.com/gomamba/mamba/internal/gguf"
)

// The types of tokens in a GGUF file.
const (
	normalToken  = 1
	controlToken = 3
	userToken    = 4
	unusedToken  = 5
)

// openGGUF reads the tokenizer in a GGUF file. Text is not normalized.
func openGGUF(path string, vocab int) (*Tokenizer, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	t, err := ggufTokenizer(f, vocab)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

func ggufTokenizer(f *gguf.File, vocab int) (*Tokenizer, error) {
	const prefix = "tokenizer.ggml."
	kind, ok, err := gguf.Value[string](f, prefix+"model")
	switch {
	case err != nil:
		return nil, err
	case (!ok || kind == "no_vocab") && vocab == 256:
		return Bytes(), nil
	case kind != "gpt2":
		return nil, fmt.Errorf("%smodel is %.40q, want %q, a byte-level BPE", prefix, kind, "gpt2")
	}
	// These split text by GPT-2's pattern. Files that do not say are older, and of Mamba's tokenizer.
	switch pre, ok, err := gguf.Value[string](f, prefix+"pre"); {
	case err != nil:
		return nil, err
	case ok && pre != "gpt-2" && pre != "gpt2" && pre != "mpt" && pre != "olmo" && pre != "default":
		return nil, fmt.Errorf("%spre is %.40q, want mpt, olmo or gpt-2, as in Mamba's checkpoints", prefix, pre)
	}
	if begins, _, err := gguf.Value[bool](f, prefix+"add_bos_token"); err != nil || begins {
		return nil, errors.Join(err, fmt.Errorf("%sadd_bos_token is %t, want false: a token would be added to every text", prefix, begins))
	}
	texts, err := gguf.Required[[]string](f, prefix+"tokens")
	if err != nil {
		return nil, err
	}
	types, ok, err := gguf.Value[[]int64](f, prefix+"token_type")
	if err != nil {
		return nil, err
	}
	if ok && len(types) != len(texts) {
		return nil, fmt.Errorf("%stoken_type has %d elements, want %d, the number of tokens", prefix, len(types), len(texts))
	}
	merges, err := gguf.Required[[]string](f, prefix+"merges")
	if err != nil {
		return nil, err
	}
	byteLevel := &part{Type: "ByteLevel"}
	d := document{PreTokenizer: byteLevel, Decoder: byteLevel, Model: model{Type: "BPE"}}
	for id, text := range texts {
		typ := int64(normalToken)
		if types != nil {
			typ = types[id]
		}
		switch typ {
		case normalToken:
			d.Model.Vocab = append(d.Model.Vocab, struct {
				token string
				id    int
			}{text, id})
		case controlToken, userToken:
			d.AddedTokens = append(d.AddedTokens, addedToken{ID: &id, Content: text, Special: typ == controlToken})
		case unusedToken:
		default:
			return nil, fmt.Errorf("token %d, %.40q, is of type %d, want normal (1), control (3), user-defined (4) or unused (5)", id, text, typ)
		}
	}
	for i, m := range merges {
		p := strings.SplitN(m, " ", 2)
		if len(p) != 2 {
			return nil, fmt.Errorf("merge %d, %.40q, should be a pair of tokens", i, m)
		}
		d.Model.Merges = append(d.Model.Merges, pair(p))
	}
	t, err := d.tokenizer(vocab)
	if err != nil {
		return nil, err
	}
	if end, ok, err := gguf.Value[uint64](f, prefix+"eos_token_id"); err != nil {
		return nil, err
	} else if ok && end < uint64(vocab) {
		t.end = []int{int(end)}
	}
	return t, nil
}
