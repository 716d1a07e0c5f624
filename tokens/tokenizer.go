package tokens

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/text/unicode/norm"

	"github.com/gomamba/mamba/internal/gguf"
	"github.com/gomamba/mamba/internal/tensorfile"
)

// Tokenizer converts between text and the tokens of a model. Open returns one. The zero Tokenizer is that of Bytes. A Tokenizer
// never changes, so several goroutines can share it.
type Tokenizer struct {
	bpe    *bpe // nil for bytes
	vocab  int  // of the model
	raw    added
	normal added // looked for after normalization
	nfc    bool
	pieces map[int]string // the bytes of each token
	end    []int
}

// Bytes returns the tokenizer of a model whose 256 tokens are the bytes of UTF-8.
func Bytes() *Tokenizer { return new(Tokenizer) }

// Open returns the tokenizer in dir, the folder of a model whose vocabulary has vocab tokens. It reads tokenizer.json, which must
// be a byte-level BPE, and takes the end of a text (see End) from generation_config.json or config.json. Without a
// tokenizer.json, a vocabulary of 256 is that of Bytes. A dir that ends in .gguf is a GGUF file, which has all of this inside.
//
// It is an error if dir is neither a folder nor a GGUF file; if there is no tokenizer.json (errors.Is fs.ErrNotExist) and vocab is not 256; if a file
// is not a regular file of at most 64 MiB; if tokenizer.json contradicts itself or has a token outside of 0 to vocab-1; or if it
// needs what this package does not do: a model other than BPE, a normalizer other than NFC, a split into words other than
// GPT-2's, or tokens that are added to every text. The error names the part.
func Open(dir string, vocab int) (*Tokenizer, error) {
	if vocab < 1 {
		return nil, fmt.Errorf("tokens: open: vocab is %d, should be the size of the model's vocabulary, at least 1", vocab)
	}
	if gguf.IsFile(dir) {
		t, err := openGGUF(dir, vocab)
		if err != nil {
			return nil, fmt.Errorf("tokens: open: %w", err)
		}
		return t, nil
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("tokens: open: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("tokens: open: %s is a file, should be the folder of a model", dir)
	}
	path := filepath.Join(dir, "tokenizer.json")
	file, err := tensorfile.ReadFile(path, maxFile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && vocab == 256:
		return Bytes(), nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("tokens: open: %w, and a vocabulary of %d is not one of bytes, which has 256", err, vocab)
	case err != nil:
		return nil, fmt.Errorf("tokens: open: %w", err)
	}
	t, err := parse(file, vocab)
	if err != nil {
		return nil, fmt.Errorf("tokens: open: %s: %w", path, err)
	}
	end, err := endTokens(dir)
	if err != nil {
		return nil, fmt.Errorf("tokens: open: %w", err)
	}
	if end = slices.DeleteFunc(end, func(id int) bool { return id < 0 || id >= vocab }); len(end) > 0 {
		t.end = end
	}
	return t, nil
}

// IsBytes reports whether the tokens are bytes.
func (t *Tokenizer) IsBytes() bool { return t != nil && t.bpe == nil }

// End returns the tokens that end a text, for GenerateConfig.StopTokens. They are the eos_token_id of the model's configuration
// or, if it has none, the token <|endoftext|>. A model of bytes has none. Tokens outside the model's vocabulary are left out.
func (t *Tokenizer) End() []int {
	if t == nil {
		return nil
	}
	return slices.Clone(t.end)
}

// Encode returns the tokens of text. Text that spells an added token, such as <|endoftext|>, becomes that token.
//
// A complete byte-level vocabulary has a token for every byte. A byte that has none becomes the file's unk_token. If there is no
// unk_token either, it is an error that names the character; Hugging Face's program drops the byte there.
func (t *Tokenizer) Encode(text string) ([]int, error) {
	if t == nil {
		return nil, errors.New("tokens: encode: the Tokenizer is nil, should come from Open or Bytes")
	}
	var tokens []int
	if t.bpe == nil {
		for i := range len(text) {
			tokens = append(tokens, int(text[i]))
		}
		return tokens, nil
	}
	err := t.raw.split(text, &tokens, func(plain string) error {
		if t.nfc {
			plain = norm.NFC.String(plain)
		}
		return t.normal.split(plain, &tokens, func(plain string) (err error) {
			for word := ""; plain != "" && err == nil; {
				word, plain = nextWord(plain)
				tokens, err = t.bpe.encode(tokens, word)
			}
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("tokens: encode: %w", err)
	}
	return tokens, nil
}

// Decode returns the text of tokens. Special tokens, such as <|endoftext|>, give no text, and neither do tokens of the model that
// are not in tokenizer.json. Each byte that is not part of a character of UTF-8 becomes U+FFFD.
//
// It is an error if a token is not in the model's vocabulary.
func (t *Tokenizer) Decode(tokens []int) (string, error) {
	var text []byte
	for _, token := range tokens {
		piece, err := t.piece(token)
		if err != nil {
			return "", err
		}
		text = append(text, piece...)
	}
	return string([]rune(string(text))), nil
}

// Piece returns the bytes of a token, which can be a part of a character. A special token, and a token of the model that is not in tokenizer.json,
// has none.
//
// It is an error if token is not in the model's vocabulary.
func (t *Tokenizer) Piece(token int) ([]byte, error) {
	piece, err := t.piece(token)
	return []byte(piece), err
}

// piece returns the bytes of a token.
func (t *Tokenizer) piece(token int) (string, error) {
	vocab := 256
	switch {
	case t == nil:
		return "", errors.New("tokens: decode: the Tokenizer is nil, should come from Open or Bytes")
	case t.bpe != nil:
		vocab = t.vocab
	}
	if token < 0 || token >= vocab {
		return "", fmt.Errorf("tokens: decode: a token is %d, should be 0 to %d", token, vocab-1)
	}
	if t.bpe == nil {
		return string([]byte{byte(token)}), nil
	}
	return t.pieces[token], nil
}

// endTokens reads eos_token_id from a model's configuration.
func endTokens(dir string) ([]int, error) {
	for _, name := range []string{"generation_config.json", "config.json"} {
		path := filepath.Join(dir, name)
		file, err := tensorfile.ReadFile(path, maxFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var config struct {
			End json.RawMessage `json:"eos_token_id"`
		}
		if err := json.Unmarshal(file, &config); err != nil {
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
			return nil, fmt.Errorf("%s: eos_token_id is %.40s, should be a token or a list of tokens", path, config.End)
		}
	}
	return nil, nil
}

// maxFile bounds the files that are read whole. The largest tokenizer.json in use, with a vocabulary of 262144, has about 33 MB.
const maxFile = 64 << 20
