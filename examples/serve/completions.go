package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"
)

// completion is the object of /v1/completions, and of each part of its stream.
type completion struct {
	heading
	Choices []completionChoice `json:"choices"`
	Usage   *usage             `json:"usage,omitempty"`
}

type completionChoice struct {
	Text     string              `json:"text"`
	Index    int                 `json:"index"`
	Logprobs *completionLogprobs `json:"logprobs"`
	Finish   *string             `json:"finish_reason"`
}

// completionLogprobs has one element for each token.
type completionLogprobs struct {
	Tokens  []string             `json:"tokens"`
	Logs    []float64            `json:"token_logprobs"`
	Top     []map[string]float64 `json:"top_logprobs"`
	Offsets []int                `json:"text_offset"`
}

// heading is what the objects of answers begin with.
type heading struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	Model   string `json:"model"`
}

func (s *server) heading(w *responder, prefix, object string) heading {
	return heading{fmt.Sprintf("%s-%x-%s", prefix, s.started.UnixNano(), w.Header().Get("X-Request-Id")), object, time.Now().Unix(), s.model.name}
}

func (s *server) completions(w *responder, r *http.Request) error {
	p, err := s.body(w, r)
	if err != nil {
		return err
	}
	top, echo, least := -1, false, 1
	if err := p.get("echo", "true or false", &echo); err != nil {
		return err
	}
	if echo {
		least = 0 // the prompt alone
	}
	o, err := s.options(p, least, 16)
	if err != nil {
		return err
	}
	if _, ok := p["logprobs"]; ok {
		top = 0
	}
	if err := p.whole("logprobs", &top, min(top, 0), mostAlternative); err != nil {
		return err
	}
	o.top, o.topParam = top, "logprobs"
	if echo && top >= 0 {
		return invalid("logprobs", "is set together with echo, should be left out: the probabilities of a prompt's tokens are not computed")
	}
	best := o.n
	if err := p.whole("best_of", &best, o.n, o.n); err != nil {
		return err
	}
	prompts, err := s.prompts(p)
	if err != nil {
		return err
	}
	if err := p.finish(); err != nil {
		return err
	}
	c, err := s.newCall(o, prompts)
	if err != nil {
		return err
	}
	return s.serve(w, r, c, o, &completionShape{completion{heading: s.heading(w, "cmpl", "text_completion")}, s.model, echo})
}

// completionShape makes completions.
type completionShape struct {
	object completion // without choices and usage
	model  *model
	echo   bool
}

func (s *completionShape) begin(c *call) (parts []any) {
	if !s.echo {
		return nil
	}
	for _, a := range c.answers {
		parts = append(parts, s.part(event{answer: a, text: a.prompt.text}))
	}
	return parts
}

func (s *completionShape) part(e event) any {
	o := s.object
	o.Choices = []completionChoice{s.choice(e.answer, e.text, e.likely, e.finish)}
	return o
}

func (s *completionShape) choice(a *answer, text string, likely []likelihood, finish string) completionChoice {
	choice := completionChoice{Text: text, Index: a.index, Finish: orNull(finish)}
	if a.top < 0 {
		return choice
	}
	l := &completionLogprobs{Tokens: []string{}, Logs: []float64{}, Offsets: []int{}}
	for _, x := range likely {
		l.Tokens, l.Logs, l.Offsets = append(l.Tokens, s.model.show(x.token)), append(l.Logs, x.log), append(l.Offsets, x.offset)
		if a.top > 0 {
			top := map[string]float64{s.model.show(x.token): x.log}
			for _, y := range x.top {
				top[s.model.show(y.token)] = y.log
			}
			l.Top = append(l.Top, top)
		}
	}
	choice.Logprobs = l
	return choice
}

func (s *completionShape) whole(c *call, answers []merged) any {
	o, u := s.object, c.usage()
	o.Usage = &u
	for i := range answers {
		m := &answers[i]
		text := m.text.String()
		if s.echo {
			text = m.answer.prompt.text + text
		}
		o.Choices = append(o.Choices, s.choice(m.answer, text, m.likely, m.finish))
	}
	return o
}

func (s *completionShape) usage(u usage) any {
	o := s.object
	o.Choices, o.Usage = []completionChoice{}, &u
	return o
}

// usage counts the tokens so far.
func (c *call) usage() (u usage) {
	for _, p := range c.prompts {
		u.Prompt += len(p.tokens)
	}
	u.Details.Cached, u.Completion = c.cached, c.tokens
	u.Total = u.Prompt + u.Completion
	return u
}

// orNull returns nil for "".
func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// show returns the text of a token. A token whose bytes are not UTF-8 is shown as OpenAI shows it.
func (m *model) show(token int) string {
	piece, err := m.tokenizer.Piece(token)
	if err != nil || utf8.Valid(piece) {
		return string(piece)
	}
	var b strings.Builder
	b.WriteString("bytes:")
	for _, x := range piece {
		fmt.Fprintf(&b, `\x%02x`, x)
	}
	return b.String()
}
