package tokens

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gomlx/go-huggingface/tokenizers/hftokenizer"
	"pgregory.net/rapid"
)

const neox = "../testdata/neox-tokenizer-tiny"

func open(t *testing.T, dir string, vocab int) *Tokenizer {
	t.Helper()
	tokenizer, err := Open(dir, vocab)
	if err != nil {
		t.Fatal(err)
	}
	return tokenizer
}

func encode(t interface{ Fatal(...any) }, tokenizer *Tokenizer, text string) []int {
	tokens, err := tokenizer.Encode(text)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// stream decodes the tokens one at a time, and checks that every part is whole and that Decode says the same.
func stream(t interface{ Fatal(...any) }, tokenizer *Tokenizer, tokens []int) (text string, parts []string) {
	s := tokenizer.NewStream()
	for _, token := range tokens {
		part, err := s.Decode(token)
		if err != nil {
			t.Fatal(err)
		}
		if !utf8.ValidString(part) {
			t.Fatal("a part is not UTF-8", []byte(part))
		}
		parts = append(parts, part)
	}
	text = strings.Join(parts, "") + s.Flush()
	if again := s.Flush(); again != "" {
		t.Fatal("a second Flush returns", again)
	}
	if whole, err := tokenizer.Decode(tokens); err != nil || whole != text {
		t.Fatal("decoded at once", whole, err, "one at a time", text)
	}
	return text, parts
}

// bytesOf returns the bytes of tokens, which may be no text.
func bytesOf(t interface{ Fatal(...any) }, tokenizer *Tokenizer, tokens []int) string {
	var all strings.Builder
	for _, token := range tokens {
		piece, err := tokenizer.piece(token)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(piece)
	}
	return all.String()
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
		if got := encode(t, tokenizer, c.Text); !slices.Equal(got, c.IDs) {
			t.Errorf("%q: %v, want %v", c.Text, got, c.IDs)
		}
	}
	if !slices.Equal(tokenizer.End(), []int{0}) {
		t.Errorf("the end is %v, want 0", tokenizer.End())
	}
}

var anyText = rapid.OneOf(
	rapid.String(),
	rapid.StringMatching(`[a-zé0-9 '\n\t.,!世 ]{0,30}`),
	rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
)

// Words put together are the text, whatever it is, and so are the tokens.
func TestRoundTrip(t *testing.T) {
	tokenizer := open(t, neox, 464)
	rapid.Check(t, func(t *rapid.T) {
		text := anyText.Draw(t, "text")
		tokenizer.nfc = false // which may change the text
		tokens := encode(t, tokenizer, text)
		if got := bytesOf(t, tokenizer, tokens); got != text {
			t.Fatalf("the tokens of %q are those of %q", text, got)
		}
		if got, _ := stream(t, tokenizer, tokens); got != string([]rune(text)) {
			t.Fatalf("%q is decoded to %q", text, got)
		}
	})
}

// White space before a word leaves its last character to the word. At the end of the text it is one word.
func TestWords(t *testing.T) {
	for text, want := range map[string][]string{
		"a  b": {"a", " ", " b"}, "a \n\t": {"a", " \n\t"}, "  ": {"  "}, "\n\nb": {"\n", "\n", "b"}, "it's 12 —x!": {"it", "'s", " 12", " —", "x", "!"}, "'tis": {"'t", "is"},
	} {
		var got []string
		for rest, word := text, ""; rest != ""; got = append(got, word) {
			word, rest = nextWord(rest)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// The tokens of a word are those of go-huggingface.
func TestLibrary(t *testing.T) {
	file, err := os.ReadFile(filepath.Join(neox, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	var parts map[string]any
	if err := json.Unmarshal(file, &parts); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"added_tokens", "normalizer", "pre_tokenizer", "post_processor"} {
		delete(parts, name)
	}
	if file, err = json.Marshal(parts); err != nil {
		t.Fatal(err)
	}
	library, err := hftokenizer.NewFromContent(nil, file)
	if err != nil {
		t.Fatal(err)
	}
	tokenizer := open(t, neox, 464)
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.OneOf(anyText, rapid.StringMatching(`( ?[theinorats]{0,40}){3}`)).Draw(t, "word")
		var spelled strings.Builder
		for _, b := range []byte(word) {
			spelled.WriteRune(letters[b])
		}
		got, err := tokenizer.bpe.encode(nil, word)
		if want := library.Encode(spelled.String()); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q: %v, %v, want %v", word, got, err, want)
		}
	})
}

// A long word does not take the square of its length.
func TestLongWord(t *testing.T) {
	tokenizer := open(t, neox, 464)
	for _, text := range []string{strings.Repeat("the", 1<<16), strings.Repeat(" ", 1<<17), strings.Repeat("<|endoftext|", 1<<12)} {
		tokens := encode(t, tokenizer, text)
		if got := bytesOf(t, tokenizer, tokens); got != text {
			t.Errorf("%.20q… of %d bytes comes back as %d bytes", text, len(text), len(got))
		}
	}
}

// A character of several tokens comes when it is complete; what never is becomes U+FFFD; special tokens have no text.
func TestStream(t *testing.T) {
	tokenizer := open(t, neox, 464)
	if _, parts := stream(t, tokenizer, encode(t, tokenizer, "é🙂.")); !slices.Equal(parts, []string{"", "é", "", "", "", "🙂", "."}) {
		t.Errorf("the parts are %q", parts)
	}
	if got, _ := stream(t, tokenizer, encode(t, tokenizer, "a<|endoftext|>b    c\x1bd\xf0\x9f")); got != "ab    c\x1bd\uFFFD\uFFFD" {
		t.Errorf("%q", got)
	}
	if got, _ := stream(t, tokenizer, []int{463, 27 + 463 - 463}); len(got) != 1 { // the model has 463, the tokenizer does not
		t.Errorf("a token that tokenizer.json lacks, and one that it has: %q", got)
	}
	if got, _ := stream(t, Bytes(), []int{'a', 0xc3, 0xa9, 0xff, '\n', 0xe2, 0x82}); got != "aé\uFFFD\n\uFFFD\uFFFD" {
		t.Errorf("bytes: %q", got)
	}
}

// write writes a tokenizer.json, that of neox with other parts, into a folder of its own.
func write(t testing.TB, parts map[string]string) (dir string) {
	t.Helper()
	whole, err := os.ReadFile(filepath.Join(neox, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(whole, &all); err != nil {
		t.Fatal(err)
	}
	for name, value := range parts {
		all[name] = json.RawMessage(value)
	}
	file, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), file, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Of added tokens that overlap, the one that begins first is taken, and of those that begin there the longest; those that are looked for
// before normalization come first, wherever they are.
func TestAddedOverlap(t *testing.T) {
	add := func(id int, content string, normalized bool) string {
		return fmt.Sprintf(`{"id":%d,"content":%q,"normalized":%t}`, id, content, normalized)
	}
	for _, c := range []struct {
		added []string
		text  string
		want  []int
	}{
		{[]string{add(1000, "ab", false), add(1001, "bcd", false)}, "abcd", []int{1000, 'c', 'd'}},
		{[]string{add(1000, "bcd", false), add(1001, "ab", false)}, "abcd", []int{1001, 'c', 'd'}},
		{[]string{add(1000, "ab", false), add(1001, "abc", false)}, "abcab", []int{1001, 1000}},
		{[]string{add(1000, "aa", true), add(1001, "aaa", true)}, "aaaaaaaa", []int{1001, 1001, 1000}},
		{[]string{add(1000, "ab", false), add(1001, "abcd", false)}, "abcx", []int{1000, 'c', 'x'}},
		{[]string{add(1000, "ab", true), add(1001, "bc", false)}, "abcab", []int{'a', 1001, 1000}},
		{[]string{add(1000, "ẽ", true), add('e', "e", false)}, "e\u0303ẽ", []int{'e', 0xcc, 0x83, 1000}},
		{[]string{add(1000, "e\u0303", true)}, "e\u0303ẽ", []int{1000, 1000}},
		{[]string{add(1000, "abc", false)}, "ababab", []int{'a', 'b', 'a', 'b', 'a', 'b'}},
	} {
		dir := write(t, map[string]string{"model": byteModel(256, `"merges":[]`), "added_tokens": "[" + strings.Join(c.added, ",") + "]"})
		if got := encode(t, open(t, dir, 2000), c.text); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q: %v, want %v", c.added, c.text, got, c.want)
		}
	}
}

// byteModel is a BPE of the first n bytes and of what rest says.
func byteModel(n int, rest string) string {
	vocab := map[string]int{}
	for b := range n {
		vocab[string(letters[b])] = b
	}
	text, err := json.Marshal(vocab)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf(`{"type":"BPE","vocab":%s,%s}`, text, rest)
}

// A byte that the vocabulary lacks is an error that names its character, or the file's unk_token. Nothing is left out.
func TestUnknown(t *testing.T) {
	const lacking = `the character %q has no token: tokenizer.json lacks its byte %#02x, and names no unk_token`
	open := func(rest string) *Tokenizer {
		return open(t, write(t, map[string]string{"model": byteModel(128, `"merges":[],`+rest), "added_tokens": "[]"}), 256)
	}
	plain := open(`"unk_token":null`)
	for text, want := range map[string]string{
		"ab é":   fmt.Sprintf(lacking, "é", 0xc3),
		"a🙂":     fmt.Sprintf(lacking, "🙂", 0xf0),
		"\xff":   fmt.Sprintf(lacking, "\xff", 0xff),
		"a\x80b": fmt.Sprintf(lacking, "\x80", 0x80),
	} {
		if got, err := plain.Encode(text); err == nil || err.Error() != "tokens: encode: "+want || got != nil {
			t.Errorf("%q: %v, %v, want %s", text, got, err, want)
		}
	}
	if got := encode(t, plain, "ab c"); !slices.Equal(got, []int{'a', 'b', ' ', 'c'}) {
		t.Errorf("%v", got)
	}
	if got, want := encode(t, open(`"unk_token":"?"`), "aé b"), []int{'a', '?', '?', ' ', 'b'}; !slices.Equal(got, want) {
		t.Errorf("with unk_token: %v, want %v", got, want)
	}
	if got, want := encode(t, open(`"unk_token":"?","fuse_unk":true`), "éé x"), []int{'?', ' ', 'x'}; !slices.Equal(got, want) {
		t.Errorf("with fuse_unk: %v, want %v", got, want)
	}
}

// A directory without a tokenizer is one of bytes if the vocabulary is, and else an error; what a tokenizer.json has that is
// not supported is an error that names it.
func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	if bytes := open(t, dir, 256); !bytes.IsBytes() || !slices.Equal(encode(t, bytes, "aé"), []int{'a', 0xc3, 0xa9}) || bytes.End() != nil {
		t.Error("a vocabulary of 256 is not one of bytes")
	}
	path := filepath.Join(dir, "tokenizer.json")
	if _, err := Open(dir, 257); err == nil || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) || !strings.HasSuffix(err.Error(), ", and a vocabulary of 257 is not one of bytes, which has 256") {
		t.Errorf("no tokenizer.json: %v", err)
	}
	many := strings.Repeat("x", maxAdded+1)
	for _, c := range []struct{ part, value, want string }{
		{"model", `{"type":"Unigram","vocab":{}}`, `model is of type "Unigram", should be of type "BPE"`},
		{"pre_tokenizer", `null`, `pre_tokenizer is missing, should be of type "ByteLevel"`},
		{"pre_tokenizer", `{"type":"Metaspace"}`, `pre_tokenizer is of type "Metaspace", should be of type "ByteLevel"`},
		{"pre_tokenizer", `{"type":"ByteLevel","add_prefix_space":true}`, `pre_tokenizer has add_prefix_space`},
		{"pre_tokenizer", `{"type":"ByteLevel","use_regex":false}`, `pre_tokenizer has add_prefix_space or no use_regex`},
		{"decoder", `{"type":"WordPiece"}`, `decoder is of type "WordPiece"`},
		{"normalizer", `{"type":"Lowercase"}`, `normalizer is of type "Lowercase", should be "NFC" or none`},
		{"post_processor", `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{"id":"A"}}]}`, `post_processor adds "<s>" to every text`},
		{"post_processor", `{"type":"RobertaProcessing","sep":["</s>",2],"cls":["<s>",0]}`, `post_processor is of type "RobertaProcessing"`},
		{"post_processor", `{"type":"Sequence","processors":[]}`, `post_processor is of type "Sequence"`},
		{"model", `null`, `model is of type "", should be of type "BPE"`},
		{"model", `[]`, `cannot unmarshal array`},
		{"model", `{"type":"BPE","vocab":[["a",0]]}`, `vocab should be an object of tokens and their numbers`},
		{"model", `{"type":"BPE","vocab":null}`, `vocab should be an object of tokens and their numbers`},
		{"model", `{"type":"BPE","vocab":{"a":"0"}}`, `vocab: "a" is 0, should be the number of the token`},
		{"model", `{"type":"BPE","vocab":{"a":1.5}}`, `vocab: "a" is 1.5, should be the number of the token`},
		{"model", `{"type":"BPE","vocab":{"a":99999999999999999999}}`, `should be the number of the token`},
		{"model", `{"type":"BPE","vocab":{"a":{}}}`, `should be the number of the token`},
		{"model", `{"type":"BPE","vocab":{"a":0,"a":1}}`, `vocab has the token "a" twice`},
		{"model", `{"type":"BPE","vocab":{"a":0,"b":0}}`, `vocab has the number 0 twice, for "b" and for another token that decodes to "a"`},
		{"model", `{"type":"BPE","vocab":{"a":-1}}`, `token "a" is -1, the model's are 0 to 463`},
		{"model", `{"type":"BPE","vocab":{"a":464}}`, `token "a" is 464, the model's are 0 to 463`},
		{"model", `{"type":"BPE","vocab":{"a":4611686018427387904}}`, `the model's are 0 to 463`},
		{"model", `{"type":"BPE","vocab":{"a":0},"merges":["a b"]}`, `merge 0 is of "a" and "b", but "b" is not in vocab`},
		{"model", `{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}`, `merge 0 is of "a" and "b", but "ab" is not in vocab`},
		{"model", `{"type":"BPE","vocab":{"a":0,"aa":1},"merges":["a a",["a","a"]]}`, `merge 1, of "a" and "a", is merge 0 again`},
		{"model", `{"type":"BPE","vocab":{"a":0},"merges":["a"]}`, `should be a pair of tokens`},
		{"model", `{"type":"BPE","vocab":{"a":0},"merges":[["a","b","c"]]}`, `should be a pair of tokens`},
		{"model", `{"type":"BPE","vocab":{"a":0},"merges":[null]}`, `should be a pair of tokens`},
		{"model", `{"type":"BPE","vocab":{"a":0},"merges":{"a":"b"}}`, `cannot unmarshal object`},
		{"model", `{"type":"BPE","vocab":{"a":0},"unk_token":"b"}`, `unk_token "b" is not in vocab`},
		{"model", `{"type":"BPE","vocab":{"a":0},"byte_fallback":true}`, `model has byte_fallback, should have none`},
		{"model", `{"type":"BPE","vocab":{"a":0},"dropout":0.1}`, `model has dropout, should have none`},
		{"model", `{"type":"BPE","vocab":{"a":0},"ignore_merges":true}`, `model has ignore_merges, should have none`},
		{"model", `{"type":"BPE","vocab":{"a":0},"end_of_word_suffix":"</w>"}`, `model has end_of_word_suffix, should have none`},
		{"added_tokens", `[{"id":0,"content":"<|endoftext|>"},{"id":461,"content":""}]`, `added token 1 is empty, should be a text`},
		{"added_tokens", `[{"id":461}]`, `added token 0 is empty`},
		{"added_tokens", `[null]`, `added token 0 is empty`},
		{"added_tokens", `{}`, `cannot unmarshal object`},
		{"added_tokens", `[{"content":"x y"}]`, `added token 0, "x y", has no id`},
		{"added_tokens", `[{"id":464,"content":"x y"}]`, `added token 0, "x y" is 464, the model's are 0 to 463`},
		{"added_tokens", `[{"id":-1,"content":"x y"}]`, `added token 0, "x y" is -1, the model's are 0 to 463`},
		{"added_tokens", `[{"id":461,"content":"x"}]`, `added token 0, "x", is 461, but `},
		{"added_tokens", `[{"id":5,"content":"x y"}]`, `added token 0, "x y", is 5, which is the number of another token that decodes to "$"`},
		{"added_tokens", `[{"id":461,"content":"x y"},{"id":461,"content":"x z"}]`, `added token 1, "x z", is 461, which is the number of another token`},
		{"added_tokens", `[{"id":461,"content":"x y"},{"id":462,"content":"x y"}]`, `added token 1, "x y", is added token 0 again`},
		{"added_tokens", `[{"id":461,"content":"x y","lstrip":true}]`, `has single_word, lstrip or rstrip`},
		{"added_tokens", `[{"id":461,"content":"` + many + `"}]`, `added token 0 has 257 bytes, should have at most 256`},
	} {
		dir := write(t, map[string]string{c.part: c.value})
		if _, err := Open(dir, 464); err == nil || !strings.HasPrefix(err.Error(), "tokens: open: "+filepath.Join(dir, "tokenizer.json")+": ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %.80s: %v, want %s", c.part, c.value, err, c.want)
		}
	}
	for _, text := range []string{"{", "null", "[]", "\x00", "\xff\xfe", `{"added_tokens":`, strings.Repeat("[", 1<<20), `{"a":` + strings.Repeat(`{"a":`, 1<<20)} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, 464); err == nil || !strings.HasPrefix(err.Error(), "tokens: open: "+path+": ") {
			t.Errorf("%q: %v", text, err)
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
	if _, err := Open(dir, 464); err == nil || !strings.Contains(err.Error(), `config.json: eos_token_id is "no", should be a token or a list of tokens`) {
		t.Errorf("%v", err)
	}
}

// What nobody should pass is an error that says so.
func TestArguments(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir   string
		vocab int
		want  string
	}{
		{neox, 0, "vocab is 0, should be the size of the model's vocabulary"}, {neox, math.MinInt / 2, "should be the size of the model's vocabulary"},
		{"", 256, "no such file"}, {filepath.Join(neox, "none"), 256, "no such file"}, {file, 256, "is a file, should be the folder of a model"},
	} {
		if _, err := Open(c.dir, c.vocab); err == nil || !strings.HasPrefix(err.Error(), "tokens: open: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, %d: %v, want %s", c.dir, c.vocab, err, c.want)
		}
	}
	if _, err := Open(neox, math.MaxInt); err != nil {
		t.Errorf("a vocabulary of math.MaxInt: %v", err)
	}
	var none *Tokenizer
	if _, err := none.Encode("a"); err == nil {
		t.Error("nil: Encode has no error")
	}
	if none.IsBytes() || none.End() != nil {
		t.Error("nil has tokens")
	}
	var stream *Stream
	for name, decode := range map[string]func(int) (string, error){"nil": stream.Decode, "zero": new(Stream).Decode, "of nil": none.NewStream().Decode,
		"all of nil": func(token int) (string, error) { return none.Decode([]int{token}) }} {
		if _, err := decode(1); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if stream.Flush()+new(Stream).Flush() != "" {
		t.Error("a Stream without tokens has text")
	}
	neox := open(t, neox, 464)
	for tokenizer, tokens := range map[*Tokenizer][]int{Bytes(): {-1, 256, math.MaxInt, math.MinInt / 2}, neox: {-1, 464, math.MaxInt}} {
		for _, token := range tokens {
			s := tokenizer.NewStream()
			if _, err := s.Decode(token); err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("tokens: decode: a token is %d, should be 0 to ", token)) {
				t.Errorf("%d: %v", token, err)
			}
		}
	}
	neox.End()[0] = 99
	if neox.End()[0] != 0 {
		t.Error("End returns what the Tokenizer needs")
	}
}

// A tokenizer.json that is no regular file, has no content or too much, is refused at once.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tokenizer.json")
	refused := func(want string) {
		t.Helper()
		for _, vocab := range []int{256, 464} {
			if _, err := Open(dir, vocab); err == nil || !strings.HasPrefix(err.Error(), "tokens: open: "+path) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	refused("unexpected end of JSON input")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40); err == nil { // where files can have holes
		refused("has 1099511627776 bytes, want at most")
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	refused("is a folder, no regular file")
}

// Whatever a tokenizer.json says, nothing panics or hangs, and tokens are the model's.
func FuzzTokenizer(f *testing.F) {
	small := `,"pre_tokenizer":{"type":"ByteLevel"},"decoder":{"type":"ByteLevel"},"normalizer":{"type":"NFC"}}`
	f.Add([]byte(`{"model":`+byteModel(128, `"merges":[],"unk_token":"?","fuse_unk":true`)+`,"added_tokens":[{"id":300,"content":"ab","special":true}]`+small), "abcé")
	f.Add([]byte(`{"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"aba":3,"ba":4},"merges":["a b",["ab","a"],"b a","a ba"]}`+small), "abababa")
	f.Add([]byte(`{"model":{"type":"BPE","vocab":{"a":0}},"added_tokens":[{"id":1,"content":""}]`+small), "aa")
	f.Fuzz(func(t *testing.T, file []byte, text string) {
		tokenizer, err := parse(file, 464)
		if err != nil {
			return
		}
		tokens, err := tokenizer.Encode(text)
		if err != nil {
			return
		}
		stream(t, tokenizer, tokens)
		tokenizer.nfc = false
		if tokenizer.bpe.unknown < 0 && len(tokenizer.raw.ids)+len(tokenizer.normal.ids) == 0 {
			if tokens, err = tokenizer.Encode(text); err == nil && bytesOf(t, tokenizer, tokens) != text {
				t.Errorf("the tokens of %q are those of %q", text, bytesOf(t, tokenizer, tokens))
			}
		}
	})
}
