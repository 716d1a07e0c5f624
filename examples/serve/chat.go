package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nikolalohinski/gonja/v2"
	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"

	"github.com/gomamba/mamba/internal/gguf"
)

// template turns the messages of a chat into a prompt: the Jinja template that comes with a model.
type template struct {
	parsed *exec.Template
	names  map[string]any // such as eos_token
}

// openTemplate returns the template of a model's folder, chat_template.jinja or chat_template in tokenizer_config.json, or that of a GGUF file. It returns
// nil if there is none.
func openTemplate(dir string) (*template, error) {
	if gguf.IsFile(dir) {
		return ggufTemplate(dir)
	}
	var c struct {
		Template json.RawMessage `json:"chat_template"`
		Begin    any             `json:"bos_token"`
		End      any             `json:"eos_token"`
	}
	path := filepath.Join(dir, "tokenizer_config.json")
	if text, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(text, &c); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := map[string]any{"bos_token": tokenText(c.Begin), "eos_token": tokenText(c.End)}
	if text, err := os.ReadFile(filepath.Join(dir, "chat_template.jinja")); err == nil {
		return newTemplate(string(text), names)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var text string
	var several []struct{ Name, Template string }
	switch {
	case c.Template == nil:
		return nil, nil
	case json.Unmarshal(c.Template, &text) == nil:
	case json.Unmarshal(c.Template, &several) == nil:
		for _, t := range several {
			if t.Name == "default" {
				text = t.Template
			}
		}
	}
	if text == "" {
		return nil, fmt.Errorf("%s: chat_template is %.80s, should be a text, or a list with one named default", path, c.Template)
	}
	return newTemplate(text, names)
}

// ggufTemplate returns the template of a GGUF file, or nil.
func ggufTemplate(path string) (*template, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, ok, err := gguf.Value[string](f, "tokenizer.chat_template")
	if err != nil || !ok {
		return nil, err
	}
	names := map[string]any{}
	all, _, err := gguf.Value[[]string](f, "tokenizer.ggml.tokens")
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"bos", "eos"} {
		id, ok, err := gguf.Value[uint64](f, "tokenizer.ggml."+name+"_token_id")
		if err != nil {
			return nil, err
		}
		if names[name+"_token"] = ""; ok && id < uint64(len(all)) {
			names[name+"_token"] = all[id]
		}
	}
	return newTemplate(text, names)
}

// tokenText returns the text of a special token: a text, or an object with its content.
func tokenText(token any) string {
	if o, ok := token.(map[string]any); ok {
		token = o["content"]
	}
	text, _ := token.(string)
	return text
}

func newTemplate(text string, names map[string]any) (*template, error) {
	// As Hugging Face's program has them. A template can include no files.
	c := config.New()
	c.TrimBlocks, c.LeftStripBlocks = true, true
	loader, err := loaders.NewMemoryLoader(map[string]string{"/chat": text})
	if err != nil {
		return nil, err
	}
	parsed, err := exec.NewTemplate("/chat", c, loader, gonja.DefaultEnvironment)
	if err != nil {
		return nil, fmt.Errorf("the chat template: %w", err)
	}
	return &template{parsed, names}, nil
}

// render returns the prompt of messages.
func (t *template) render(messages []message) (text string, err error) {
	defer func() { // the library panics where a template applies an operator to values that it is not for
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	var refused error
	list := make([]any, len(messages))
	for i, m := range messages {
		list[i] = map[string]any{"role": m.Role, "content": m.text}
	}
	data := map[string]any{
		"messages": list, "add_generation_prompt": true,
		"raise_exception": func(text string) (string, error) {
			refused = errors.New(text)
			return "", refused
		},
		"strftime_now": func(layout string) string {
			now := time.Now()
			return strings.NewReplacer("%Y", now.Format("2006"), "%m", now.Format("01"), "%d", now.Format("02"), "%b", now.Format("Jan"),
				"%B", now.Format("January"), "%H", now.Format("15"), "%M", now.Format("04"), "%S", now.Format("05")).Replace(layout)
		},
	}
	for name, v := range t.names {
		data[name] = v
	}
	var out bytes.Buffer
	if err = t.parsed.Execute(&out, exec.NewContext(data)); refused != nil {
		err = refused // what the template says, without the library's words around it
	}
	return out.String(), err
}

// message is a message of a chat. Its content is a text or a list of parts that are texts.
type message struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
	Name    string          `json:"name"`
	text    string
}

// UnmarshalJSON reads a message. Members that are null are as those that are missing, as in a client's copy of an answer.
func (m *message) UnmarshalJSON(text []byte) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return err
	}
	maps.DeleteFunc(members, func(name string, v json.RawMessage) bool { return name != "content" && string(v) == "null" })
	text, err := json.Marshal(members)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	type plain message // without this method
	return d.Decode((*plain)(m))
}

// messages reads the parameter messages.
func (p parameters) messages() (list []message, err error) {
	if err := p.get("messages", "a list of objects with role and content", &list); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, invalid("messages", "is missing or empty, should be a list of objects with role and content")
	}
	for i := range list {
		m, param := &list[i], fmt.Sprintf("messages[%d]", i)
		switch m.Role {
		case "system", "user", "assistant":
		case "developer":
			m.Role = "system"
		default:
			return nil, invalid(param+".role", "is %.80q, should be system, developer, user or assistant", m.Role)
		}
		var parts []struct{ Type, Text string }
		switch {
		case m.Content != nil && json.Unmarshal(m.Content, &m.text) == nil:
		case m.Content != nil && json.Unmarshal(m.Content, &parts) == nil:
			for _, part := range parts {
				if part.Type != "text" {
					return nil, invalid(param+".content", "has a part of type %.80q, should be text", part.Type)
				}
				m.text += part.Text
			}
		default:
			return nil, invalid(param+".content", "is %.80s, should be a text or a list of parts", m.Content)
		}
	}
	return list, nil
}

// chatCompletion is the object of /v1/chat/completions, and of each part of its stream.
type chatCompletion struct {
	heading
	Choices []chatChoice `json:"choices"`
	Usage   *usage       `json:"usage,omitempty"`
}

type chatChoice struct {
	Index    int           `json:"index"`
	Message  *chatMessage  `json:"message,omitempty"`
	Delta    *chatMessage  `json:"delta,omitempty"`
	Logprobs *chatLogprobs `json:"logprobs"`
	Finish   *string       `json:"finish_reason"`
}

// chatMessage is an answer, or a part of one. A part leaves out what it does not have.
type chatMessage struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

type chatLogprobs struct {
	Content []chatLogprob `json:"content"`
}

type chatLogprob struct {
	Token string        `json:"token"`
	Log   float64       `json:"logprob"`
	Bytes byteList      `json:"bytes"`
	Top   []chatLogprob `json:"top_logprobs,omitempty"`
}

// byteList is bytes that JSON has as a list of numbers.
type byteList []byte

func (b byteList) MarshalJSON() ([]byte, error) {
	text := []byte{'['}
	for i, v := range b {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendUint(text, uint64(v), 10)
	}
	return append(text, ']'), nil
}

func (s *server) chat(w *responder, r *http.Request) error {
	p, err := s.body(w, r)
	if err != nil {
		return err
	}
	if _, ok := p["max_completion_tokens"]; ok {
		if _, both := p["max_tokens"]; both {
			return invalid("max_tokens", "is set together with max_completion_tokens, should be left out")
		}
		p["max_tokens"] = p["max_completion_tokens"]
		delete(p, "max_completion_tokens")
	}
	o, err := s.options(p, 1, s.set.maxTokens)
	if err != nil {
		return err
	}
	wanted, top := false, 0
	_, alternatives := p["top_logprobs"]
	if err := p.get("logprobs", "true or false", &wanted); err != nil {
		return err
	}
	if err := p.whole("top_logprobs", &top, 0, mostAlternative); err != nil {
		return err
	}
	if alternatives && !wanted {
		return invalid("top_logprobs", "is set without logprobs, should be left out")
	}
	if wanted {
		o.top, o.topParam = top, "top_logprobs"
	}
	messages, err := p.messages()
	if err != nil {
		return err
	}
	if err := p.finish(); err != nil {
		return err
	}
	if s.model.chat == nil {
		return fail(http.StatusBadRequest, "messages", "no_chat_template", "the model %q has no chat template, should be used with /v1/completions", s.model.name)
	}
	text, err := s.model.chat.render(messages)
	if err != nil {
		return invalid("messages", "is refused by the model's chat template: %v", err)
	}
	q, err := s.newPrompt("messages", text)
	if err != nil {
		return err
	}
	c, err := s.newCall(o, []*prompt{q})
	if err != nil {
		return err
	}
	object := "chat.completion"
	if o.stream {
		object += ".chunk"
	}
	return s.serve(w, r, c, o, &chatShape{chatCompletion{heading: s.heading(w, "chatcmpl", object)}, s.model})
}

// chatShape makes chat completions.
type chatShape struct {
	object chatCompletion // without choices and usage
	model  *model
}

func (s *chatShape) begin(c *call) (parts []any) {
	for _, a := range c.answers {
		parts = append(parts, s.delta(event{answer: a}, &chatMessage{Role: "assistant", Content: new(string)}))
	}
	return parts
}

func (s *chatShape) part(e event) any {
	delta := &chatMessage{}
	if e.text != "" {
		delta.Content = &e.text
	}
	return s.delta(e, delta)
}

func (s *chatShape) delta(e event, delta *chatMessage) any {
	o := s.object
	o.Choices = []chatChoice{{Index: e.answer.index, Delta: delta, Logprobs: s.likely(e.answer, e.likely), Finish: orNull(e.finish)}}
	return o
}

func (s *chatShape) likely(a *answer, likely []likelihood) *chatLogprobs {
	if a.top < 0 {
		return nil
	}
	l := &chatLogprobs{Content: []chatLogprob{}}
	for _, x := range likely {
		one := s.logprob(x)
		for _, y := range x.top {
			one.Top = append(one.Top, s.logprob(y))
		}
		l.Content = append(l.Content, one)
	}
	return l
}

func (s *chatShape) logprob(l likelihood) chatLogprob {
	piece, _ := s.model.tokenizer.Piece(l.token)
	return chatLogprob{Token: s.model.show(l.token), Log: l.log, Bytes: byteList(piece)}
}

func (s *chatShape) whole(c *call, answers []merged) any {
	o, u := s.object, c.usage()
	o.Usage = &u
	for i := range answers {
		m := &answers[i]
		text := m.text.String()
		o.Choices = append(o.Choices, chatChoice{Index: i, Message: &chatMessage{"assistant", &text},
			Logprobs: s.likely(m.answer, m.likely), Finish: orNull(m.finish)})
	}
	return o
}

func (s *chatShape) usage(u usage) any {
	o := s.object
	o.Choices, o.Usage = []chatChoice{}, &u
	return o
}
