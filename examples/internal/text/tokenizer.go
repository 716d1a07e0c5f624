// Package text turns text into the tokens of a checkpoint and back, for the examples.
package text

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gomlx/go-huggingface/tokenizers/hftokenizer"
	"golang.org/x/text/unicode/norm"
)

// Tokenizer is the tokenizer of a model's directory: its tokenizer.json, or bytes.
type Tokenizer struct {
	bpe   *hftokenizer.Tokenizer // nil for bytes
	added []hftokenizer.AddedToken
	nfc   bool
	end   []int
}

// Open returns the tokenizer in a model's directory, for a model of a vocabulary: that of tokenizer.json, a byte-level BPE
// as GPT-NeoX's, which Mamba's checkpoints have. Without that file a vocabulary of 256 is one of bytes.
func Open(dir string, vocab int) (*Tokenizer, error) {
	path := filepath.Join(dir, "tokenizer.json")
	file, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if vocab == 256 {
			return new(Tokenizer), nil
		}
		return nil, fmt.Errorf("%s is not there, and a vocabulary of %d is not one of bytes, which would be 256", path, vocab)
	}
	if err != nil {
		return nil, err
	}
	t := new(Tokenizer)
	if err := t.parse(file, vocab); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if t.end, err = endTokens(dir); err != nil {
		return nil, err
	}
	t.end = slices.DeleteFunc(t.end, func(id int) bool { return id < 0 || id >= vocab }) // no model chooses those
	if len(t.end) == 0 {
		if id, ok := t.bpe.TokenToID("<|endoftext|>"); ok {
			t.end = []int{id}
		}
	}
	return t, nil
}

// Bytes is whether tokens are bytes.
func (t *Tokenizer) Bytes() bool { return t.bpe == nil }

// End returns the tokens that end a text; there may be none.
func (t *Tokenizer) End() []int { return t.end }

// parse reads a tokenizer.json. The library does merges and vocabulary; what comes before them is done here, since it
// splits at spaces alone, where a tokenizer of this kind splits words from numbers and signs, and lines.
func (t *Tokenizer) parse(file []byte, vocab int) error {
	type part struct {
		Type           string
		UseRegex       *bool `json:"use_regex"`
		AddPrefixSpace bool  `json:"add_prefix_space"`
		Single         []struct{ SpecialToken *struct{ ID string } }
	}
	var parts struct {
		Normalizer    *part
		PreTokenizer  *part `json:"pre_tokenizer"`
		PostProcessor *part `json:"post_processor"`
		Decoder       *part
		Model         part
	}
	if err := json.Unmarshal(file, &parts); err != nil {
		return err
	}
	for _, p := range []struct {
		name string
		part *part
		want string
	}{{"model", &parts.Model, "BPE"}, {"pre_tokenizer", parts.PreTokenizer, "ByteLevel"}, {"decoder", parts.Decoder, "ByteLevel"}} {
		if p.part == nil || p.part.Type != p.want {
			got := "missing"
			if p.part != nil {
				got = fmt.Sprintf("of type %q", p.part.Type)
			}
			return fmt.Errorf("%s is %s, should be of type %q, as in Mamba's checkpoints", p.name, got, p.want)
		}
	}
	if p := parts.PreTokenizer; p.AddPrefixSpace || p.UseRegex != nil && !*p.UseRegex {
		return fmt.Errorf("pre_tokenizer has add_prefix_space or no use_regex, should be as in Mamba's checkpoints")
	}
	if n := parts.Normalizer; n != nil {
		if n.Type != "NFC" {
			return fmt.Errorf("normalizer is of type %q, should be %q or none", n.Type, "NFC")
		}
		t.nfc = true
	}
	if p := parts.PostProcessor; p != nil {
		for _, item := range p.Single {
			if item.SpecialToken != nil {
				return fmt.Errorf("post_processor adds %q to every text, should add nothing", item.SpecialToken.ID)
			}
		}
	}

	var all map[string]json.RawMessage
	if err := json.Unmarshal(file, &all); err != nil {
		return err
	}
	for _, name := range []string{"normalizer", "pre_tokenizer", "post_processor"} {
		all[name] = json.RawMessage("null")
	}
	rest, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if t.bpe, err = hftokenizer.NewFromContent(nil, rest); err != nil {
		return err
	}
	t.added = t.bpe.AddedTokensList()
	slices.SortStableFunc(t.added, func(a, b hftokenizer.AddedToken) int { return len(b.Content) - len(a.Content) })
	t.added = slices.DeleteFunc(t.added, func(a hftokenizer.AddedToken) bool { return a.Content == "" })
	last := hftokenizer.AddedToken{ID: -1}
	for token, id := range t.bpe.GetVocab() {
		if id > last.ID {
			last = hftokenizer.AddedToken{Content: token, ID: id}
		}
	}
	for _, a := range t.added {
		if a.ID > last.ID {
			last = a
		}
	}
	if last.ID >= vocab {
		return fmt.Errorf("token %q is %d, the model's are 0 to %d", last.Content, last.ID, vocab-1)
	}
	return nil
}

// Encode returns the tokens of a text.
func (t *Tokenizer) Encode(text string) (tokens []int) {
	if t.Bytes() {
		for i := range len(text) {
			tokens = append(tokens, int(text[i]))
		}
		return tokens
	}
	for text != "" {
		at, found := len(text), hftokenizer.AddedToken{}
		for _, a := range t.added { // the first in the text, and the longest of those
			if i := strings.Index(text[:min(len(text), at+len(a.Content)-1)], a.Content); i >= 0 {
				at, found = i, a
			}
		}
		plain := text[:at]
		if t.nfc {
			plain = norm.NFC.String(plain)
		}
		for _, w := range words(plain) {
			tokens = append(tokens, t.bpe.Encode(spell(w))...)
		}
		if found.Content != "" {
			tokens = append(tokens, found.ID)
		}
		text = text[at+len(found.Content):]
	}
	return tokens
}

// bytes returns those that a token stands for, of a special token none.
func (t *Tokenizer) bytes(token int) string {
	if t.Bytes() {
		return string([]byte{byte(token)})
	}
	for _, a := range t.added {
		if a.ID == token {
			if a.Special {
				return ""
			}
			return a.Content
		}
	}
	return t.bpe.Decode([]int{token})
}

// endTokens reads what a checkpoint's configuration says of the end.
func endTokens(dir string) ([]int, error) {
	for _, name := range []string{"generation_config.json", "config.json"} {
		path := filepath.Join(dir, name)
		file, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var config struct {
			End json.RawMessage `json:"eos_token_id"`
		}
		if err == nil {
			err = json.Unmarshal(file, &config)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		var one *int
		var several []int
		switch {
		case config.End == nil:
			continue
		case json.Unmarshal(config.End, &one) == nil:
			if one != nil {
				return []int{*one}, nil
			}
		case json.Unmarshal(config.End, &several) == nil:
			return several, nil
		default:
			return nil, fmt.Errorf("%s: eos_token_id is %s, should be a token or a list of them", path, config.End)
		}
	}
	return nil, nil
}
