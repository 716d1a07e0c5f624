package text

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const neox = "../../../testdata/neox-tokenizer-tiny"

func open(t *testing.T, dir string, vocab int) *Tokenizer {
	t.Helper()
	tokenizer, err := Open(dir, vocab)
	if err != nil {
		t.Fatal(err)
	}
	return tokenizer
}

// decode writes the tokens to a stream one at a time.
func decode(t interface{ Fatal(...any) }, tokenizer *Tokenizer, tokens []int) string {
	var out strings.Builder
	s := NewStream(tokenizer, &out)
	for _, token := range tokens {
		if err := s.Write(token); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Tokens are those of Hugging Face's own implementation.
func TestEncodeGolden(t *testing.T) {
	file, err := os.ReadFile(filepath.Join(neox, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Text string
		IDs  []int
	}
	if err := json.Unmarshal(file, &cases); err != nil || len(cases) < 20 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	tokenizer := open(t, neox, 464)
	for _, c := range cases {
		if got := tokenizer.Encode(c.Text); !slices.Equal(got, c.IDs) {
			t.Errorf("%q: %v, want %v", c.Text, got, c.IDs)
		}
	}
	if !slices.Equal(tokenizer.End(), []int{0}) {
		t.Errorf("the end is %v, want 0", tokenizer.End())
	}
}

// Words put together are the text, whatever it is, and so are the tokens.
func TestRoundTrip(t *testing.T) {
	tokenizer := open(t, neox, 464)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(
			rapid.String(),
			rapid.StringMatching(`[a-zé0-9 '\n\t.,!世 ]{0,30}`),
			rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
		).Draw(t, "text")
		if got := strings.Join(words(text), ""); got != text {
			t.Fatalf("the words of %q are %q", text, words(text))
		}
		tokenizer.nfc = false // which may change the text
		var bytes strings.Builder
		for _, token := range tokenizer.Encode(text) {
			bytes.WriteString(tokenizer.bytes(token))
		}
		if got := bytes.String(); got != text {
			t.Fatalf("the tokens of %q are those of %q", text, got)
		}
	})
}

// A character of several tokens is written when it is whole; what never gets whole, and control characters, are replaced;
// special tokens are not written.
func TestStream(t *testing.T) {
	tokenizer := open(t, neox, 464)
	var out strings.Builder
	s := NewStream(tokenizer, &out)
	var seen []string
	for _, token := range tokenizer.Encode("é🙂.") {
		if err := s.Write(token); err != nil {
			t.Fatal(err)
		}
		seen = append(seen, out.String())
	}
	if want := []string{"", "é", "é", "é", "é", "é🙂", "é🙂."}; !slices.Equal(seen, want) {
		t.Errorf("written step by step: %q, want %q", seen, want)
	}
	if got := decode(t, tokenizer, tokenizer.Encode("a<|endoftext|>b    c\x1b[2Jd\xf0\x9f")); got != "ab    c\uFFFD[2Jd\uFFFD\uFFFD" && got != "ab    c\uFFFD[2Jd\uFFFD" {
		t.Errorf("%q", got)
	}
	if got := decode(t, new(Tokenizer), []int{'a', 0xc3, 0xa9, 0xff, '\n'}); got != "aé\uFFFD\n" {
		t.Errorf("bytes: %q", got)
	}
}

// A directory without a tokenizer is one of bytes if the vocabulary is, and else an error; what a tokenizer.json has that is
// not supported is an error that names it.
func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	bytes := open(t, dir, 256)
	if !bytes.Bytes() || !slices.Equal(bytes.Encode("aé"), []int{'a', 0xc3, 0xa9}) || bytes.End() != nil {
		t.Error("a vocabulary of 256 is not one of bytes")
	}
	path := filepath.Join(dir, "tokenizer.json")
	if _, err := Open(dir, 257); err == nil || err.Error() != path+" is not there, and a vocabulary of 257 is not one of bytes, which would be 256" {
		t.Errorf("no tokenizer.json: %v", err)
	}
	whole, err := os.ReadFile(filepath.Join(neox, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ part, value, want string }{
		{"model", `{"type":"Unigram"}`, `model is of type "Unigram", should be of type "BPE"`},
		{"pre_tokenizer", `null`, `pre_tokenizer is missing, should be of type "ByteLevel"`},
		{"pre_tokenizer", `{"type":"Metaspace"}`, `pre_tokenizer is of type "Metaspace", should be of type "ByteLevel"`},
		{"pre_tokenizer", `{"type":"ByteLevel","add_prefix_space":true}`, `pre_tokenizer has add_prefix_space`},
		{"pre_tokenizer", `{"type":"ByteLevel","use_regex":false}`, `pre_tokenizer has add_prefix_space or no use_regex`},
		{"decoder", `{"type":"WordPiece"}`, `decoder is of type "WordPiece"`},
		{"normalizer", `{"type":"Lowercase"}`, `normalizer is of type "Lowercase", should be "NFC" or none`},
		{"post_processor", `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{"id":"A"}}]}`, `post_processor adds "<s>" to every text`},
		{"version", `{`, `unexpected end of JSON`},
	} {
		var parts map[string]json.RawMessage
		if err := json.Unmarshal(whole, &parts); err != nil {
			t.Fatal(err)
		}
		parts[c.part] = json.RawMessage(c.value)
		file, err := json.Marshal(parts)
		if err != nil {
			file = []byte(c.value)
		}
		if err := os.WriteFile(path, file, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, 464); err == nil || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %s", c.part, c.value, err, c.want)
		}
	}
	if _, err := Open(neox, 460); err == nil || !strings.Contains(err.Error(), `the model's are 0 to 459`) {
		t.Errorf("a small vocabulary: %v", err)
	}
}

// The tokens that end a text are those of the configuration, in whichever of its files.
func TestEnd(t *testing.T) {
	whole, err := os.ReadFile(filepath.Join(neox, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		generation, config string
		want               []int
	}{
		{"", "", []int{0}},
		{"", `{"eos_token_id":3}`, []int{3}},
		{`{"eos_token_id":[4,5]}`, `{"eos_token_id":3}`, []int{4, 5}},
		{`{"eos_token_id":null}`, `{"eos_token_id":3}`, []int{3}},
		{`{}`, `{"eos_token_id":9999}`, []int{0}},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"tokenizer.json": string(whole), "generation_config.json": c.generation, "config.json": c.config} {
			if text != "" {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := open(t, dir, 464).End(); !slices.Equal(got, c.want) {
			t.Errorf("%q, %q: %v, want %v", c.generation, c.config, got, c.want)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), whole, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"eos_token_id":"no"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, 464); err == nil || !strings.Contains(err.Error(), `config.json: eos_token_id is "no", should be a token or a list of them`) {
		t.Errorf("%v", err)
	}
}
