package tokens

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/text/unicode/norm"
)

// document is a tokenizer.json.
type document struct {
	AddedTokens   []addedToken `json:"added_tokens"`
	Normalizer    *part
	PreTokenizer  *part `json:"pre_tokenizer"`
	PostProcessor *part `json:"post_processor"`
	Decoder       *part
	Model         model
}

type part struct {
	Type           string
	UseRegex       *bool `json:"use_regex"`
	AddPrefixSpace bool  `json:"add_prefix_space"`
	Single         []struct{ SpecialToken *struct{ ID string } }
}

func (p *part) String() string {
	if p == nil {
		return "missing"
	}
	return fmt.Sprintf("of type %q", p.Type)
}

type addedToken struct {
	ID         *int
	Content    string
	SingleWord bool `json:"single_word"`
	LStrip     bool
	RStrip     bool
	Normalized bool
	Special    bool
}

type model struct {
	Type         string
	Vocab        vocabulary
	Merges       []pair
	Dropout      float64
	Unknown      string `json:"unk_token"`
	Prefix       string `json:"continuing_subword_prefix"`
	Suffix       string `json:"end_of_word_suffix"`
	FuseUnknown  bool   `json:"fuse_unk"`
	ByteFallback bool   `json:"byte_fallback"`
	IgnoreMerges bool   `json:"ignore_merges"`
}

// vocabulary has the tokens of a model in the order of the file.
type vocabulary []struct {
	token string
	id    int
}

// UnmarshalJSON reads {"token": id, …}. A map would lose tokens that stand twice.
func (v *vocabulary) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	open, err := d.Token()
	if err != nil {
		return err
	}
	if open != json.Delim('{') {
		return errors.New("vocab should be an object of tokens and their numbers")
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		value, err := d.Token()
		if err != nil {
			return err
		}
		token := key.(string) // the decoder has checked that it is
		number, ok := value.(json.Number)
		id, err := number.Int64()
		if !ok || err != nil || int64(int(id)) != id {
			return fmt.Errorf("vocab: %q is %.40v, should be the number of the token", token, value)
		}
		*v = append(*v, struct {
			token string
			id    int
		}{token, int(id)})
	}
	return nil
}

// pair is a merge, ["a", "b"] or "a b".
type pair [2]string

func (p *pair) UnmarshalJSON(text []byte) error {
	var parts []string
	if text[0] == '"' {
		var both string
		if err := json.Unmarshal(text, &both); err != nil {
			return err
		}
		parts = strings.Split(both, " ")
	} else if err := json.Unmarshal(text, &parts); err != nil {
		return err
	}
	if len(parts) != 2 {
		return fmt.Errorf("the merge %.40q should be a pair of tokens", text)
	}
	*p = pair(parts)
	return nil
}

// parse reads a tokenizer.json for a model of a vocabulary.
func parse(file []byte, vocab int) (*Tokenizer, error) {
	var d document
	if err := json.Unmarshal(file, &d); err != nil {
		return nil, err
	}
	return d.tokenizer(vocab)
}

// tokenizer returns the tokenizer of a document for a model of a vocabulary.
func (d *document) tokenizer(vocab int) (*Tokenizer, error) {
	if err := d.supported(); err != nil {
		return nil, err
	}
	t := &Tokenizer{vocab: vocab, nfc: d.Normalizer != nil, pieces: make(map[int]string, len(d.Model.Vocab))}
	ids := make(map[string]int, len(d.Model.Vocab))
	for _, e := range d.Model.Vocab {
		if _, ok := ids[e.token]; ok {
			return nil, fmt.Errorf("vocab has the token %.40q twice", e.token)
		}
		if other, ok := t.pieces[e.id]; ok {
			return nil, fmt.Errorf("vocab has the number %d twice, for %.40q and for another token that decodes to %.40q", e.id, e.token, other)
		}
		if err := inside("token", e.token, e.id, vocab); err != nil {
			return nil, err
		}
		ids[e.token], t.pieces[e.id] = e.id, unspell(e.token)
	}
	var err error
	if t.bpe, err = d.Model.bpe(ids); err != nil {
		return nil, err
	}
	return t, t.add(d.AddedTokens, ids)
}

func inside(kind, token string, id, vocab int) error {
	if id < 0 || id >= vocab {
		return fmt.Errorf("%s %.40q is %d, the model's are 0 to %d", kind, token, id, vocab-1)
	}
	return nil
}

// supported returns an error for what would give other tokens than this package does.
func (d *document) supported() error {
	for _, c := range []struct{ name, got, want string }{
		{"model", (&part{Type: d.Model.Type}).String(), `of type "BPE"`},
		{"pre_tokenizer", d.PreTokenizer.String(), `of type "ByteLevel"`},
		{"decoder", d.Decoder.String(), `of type "ByteLevel"`},
	} {
		if c.got != c.want {
			return fmt.Errorf("%s is %s, should be %s, as in Mamba's checkpoints", c.name, c.got, c.want)
		}
	}
	if p := d.PreTokenizer; p.AddPrefixSpace || p.UseRegex != nil && !*p.UseRegex {
		return errors.New("pre_tokenizer has add_prefix_space or no use_regex, should be as in Mamba's checkpoints")
	}
	if n := d.Normalizer; n != nil && n.Type != "NFC" {
		return fmt.Errorf("normalizer is of type %q, should be %q or none", n.Type, "NFC")
	}
	if p := d.PostProcessor; p != nil {
		for _, item := range p.Single {
			if item.SpecialToken != nil {
				return fmt.Errorf("post_processor adds %q to every text, should add nothing", item.SpecialToken.ID)
			}
		}
		if p.Type != "ByteLevel" && p.Type != "TemplateProcessing" {
			return fmt.Errorf(`post_processor is of type %q, should be "ByteLevel", or "TemplateProcessing" without tokens, or none`, p.Type)
		}
	}
	for _, c := range []struct {
		name string
		set  bool
	}{
		{"dropout", d.Model.Dropout != 0}, {"continuing_subword_prefix", d.Model.Prefix != ""}, {"end_of_word_suffix", d.Model.Suffix != ""},
		{"byte_fallback", d.Model.ByteFallback}, {"ignore_merges", d.Model.IgnoreMerges},
	} {
		if c.set {
			return fmt.Errorf("model has %s, should have none, as in Mamba's checkpoints", c.name)
		}
	}
	return nil
}

// bpe returns the model, whose tokens are numbered by ids.
func (m *model) bpe(ids map[string]int) (*bpe, error) {
	b := &bpe{merges: make(map[[2]int]merged, len(m.Merges)), unknown: -1, fuse: m.FuseUnknown}
	for i, letter := range letters {
		b.bytes[i] = -1
		if id, ok := ids[string(letter)]; ok {
			b.bytes[i] = id
		}
	}
	if m.Unknown != "" {
		id, ok := ids[m.Unknown]
		if !ok {
			return nil, fmt.Errorf("unk_token %.40q is not in vocab", m.Unknown)
		}
		b.unknown = id
	}
	for rank, p := range m.Merges {
		var numbers [3]int
		for i, token := range []string{p[0], p[1], p[0] + p[1]} {
			id, ok := ids[token]
			if !ok {
				return nil, fmt.Errorf("merge %d is of %.40q and %.40q, but %.40q is not in vocab", rank, p[0], p[1], token)
			}
			numbers[i] = id
		}
		key := [2]int(numbers[:2])
		if first, ok := b.merges[key]; ok {
			return nil, fmt.Errorf("merge %d, of %.40q and %.40q, is merge %d again", rank, p[0], p[1], first.rank)
		}
		b.merges[key] = merged{rank, numbers[2]}
	}
	return b, nil
}

// add gives the tokenizer the added tokens.
func (t *Tokenizer) add(tokens []addedToken, ids map[string]int) error {
	seen := make(map[string]int, len(tokens))
	for i, a := range tokens {
		switch {
		case a.Content == "":
			return fmt.Errorf("added token %d is empty, should be a text", i)
		case a.ID == nil:
			return fmt.Errorf("added token %d, %.40q, has no id", i, a.Content)
		case a.SingleWord || a.LStrip || a.RStrip:
			return fmt.Errorf("added token %d, %.40q, has single_word, lstrip or rstrip, should have none, as in Mamba's checkpoints", i, a.Content)
		}
		if err := inside(fmt.Sprintf("added token %d,", i), a.Content, *a.ID, t.vocab); err != nil {
			return err
		}
		if first, ok := seen[a.Content]; ok {
			return fmt.Errorf("added token %d, %.40q, is added token %d again", i, a.Content, first)
		}
		seen[a.Content] = i
		id, known := ids[a.Content]
		if known && id != *a.ID {
			return fmt.Errorf("added token %d, %.40q, is %d, but %d in vocab", i, a.Content, *a.ID, id)
		}
		if other, ok := t.pieces[*a.ID]; ok && !known {
			return fmt.Errorf("added token %d, %.40q, is %d, which is the number of another token that decodes to %.40q", i, a.Content, *a.ID, other)
		}
		content, into := a.Content, &t.raw
		if a.Normalized {
			into = &t.normal
			if t.nfc {
				content = norm.NFC.String(content)
			}
		}
		if len(content) > maxAdded {
			return fmt.Errorf("added token %d has %d bytes, should have at most %d", i, len(content), maxAdded)
		}
		into.insert(content, *a.ID)
		if a.Special {
			t.pieces[*a.ID] = ""
		} else if !known {
			t.pieces[*a.ID] = a.Content
		}
		if a.Content == "<|endoftext|>" {
			t.end = []int{*a.ID}
		}
	}
	if id, ok := ids["<|endoftext|>"]; ok {
		t.end = []int{id}
	}
	return nil
}
