package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"

	"github.com/gomamba/mamba/nn"
)

// failure is an error of the API, as OpenAI has it.
type failure struct {
	status  int
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

func (f *failure) Error() string { return f.Message }

// fail returns an error for a status. param and code may be empty.
func fail(status int, param, code, format string, args ...any) *failure {
	f := &failure{status: status, Message: fmt.Sprintf(format, args...), Type: "invalid_request_error"}
	switch {
	case status == http.StatusTooManyRequests:
		f.Type = "rate_limit_error"
	case status >= 500:
		f.Type = "server_error"
	}
	if param != "" {
		f.Param = &param
	}
	if code != "" {
		f.Code = &code
	}
	return f
}

// invalid returns the error of a parameter.
func invalid(param, format string, args ...any) *failure {
	return fail(http.StatusBadRequest, param, "", param+" "+format, args...)
}

// parameters are the members of a request's object that are not read yet.
type parameters map[string]json.RawMessage

// parseParameters reads an object. Members that are null are as those that are missing.
func parseParameters(body []byte) (p parameters, err error) {
	if err := json.Unmarshal(body, &p); err != nil || p == nil {
		return nil, fail(http.StatusBadRequest, "", "invalid_json", "the body is no JSON object: %v", err)
	}
	for name, v := range p {
		if bytes.Equal(v, []byte("null")) {
			delete(p, name)
		}
	}
	return p, nil
}

// get reads a member into to, which it leaves as it is if there is none. what says what the member should be.
func (p parameters) get(name, what string, to any) error {
	v, ok := p[name]
	if !ok {
		return nil
	}
	delete(p, name)
	d := json.NewDecoder(bytes.NewReader(v))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return invalid(name, "is %.80s, should be %s", v, what)
	}
	return nil
}

// number reads a number from least to most.
func (p parameters) number(name string, to *float64, least, most float64) error {
	what := fmt.Sprintf("a number from %v to %v", least, most)
	if err := p.get(name, what, to); err != nil {
		return err
	}
	if !(*to >= least && *to <= most) {
		return invalid(name, "is %v, should be %s", *to, what)
	}
	return nil
}

// whole reads a whole number from least to most.
func (p parameters) whole(name string, to *int, least, most int) error {
	what := fmt.Sprintf("a whole number from %d to %d", least, most)
	if err := p.get(name, what, to); err != nil {
		return err
	}
	if *to < least || *to > most {
		return invalid(name, "is %d, should be %s", *to, what)
	}
	return nil
}

// texts reads a text or a list of texts.
func (p parameters) texts(name string, most int) (texts []string, err error) {
	v := p[name]
	if len(v) > 0 && v[0] == '"' {
		texts = make([]string, 1)
		return texts, p.get(name, "a text", &texts[0])
	}
	what := fmt.Sprintf("a text or a list of at most %d texts", most)
	if err := p.get(name, what, &texts); err != nil {
		return nil, err
	}
	if len(texts) > most {
		return nil, invalid(name, "is a list of %d, should be %s", len(texts), what)
	}
	return texts, nil
}

// generation is the parameters that completions and chats share.
type generation struct {
	how          nn.Sampling
	seed         uint64
	n, most, top int
	topParam     string // the parameter of top
	stops        []string
	stream       bool
	usage        bool // at the end of a stream
}

const (
	mostChoices     = 128 // OpenAI's limit of n
	mostStops       = 16
	mostAlternative = 20
)

// options reads the shared parameters. least is the smallest max_tokens, and most its default.
func (s *server) options(p parameters, least, most int) (o generation, err error) {
	o = generation{how: nn.Sampling{Temperature: 1, TopP: 1, RepetitionPenalty: 1}, n: 1, most: min(most, s.set.maxTokens), top: -1}
	var model, user string
	seed := int64(rand.Uint64())
	include := struct {
		Usage bool `json:"include_usage"`
	}{}
	_, streamed := p["stream_options"]
	for _, read := range []func() error{
		func() error { return p.get("model", "the name of a model", &model) },
		func() error { return p.get("user", "a text", &user) },
		func() error { return p.whole("max_tokens", &o.most, least, s.set.maxTokens) },
		func() error { return p.number("temperature", &o.how.Temperature, 0, 2) },
		func() error { return p.number("top_p", &o.how.TopP, 0, 1) },
		func() error { return p.whole("top_k", &o.how.TopK, 0, math.MaxInt32) },
		func() error { return p.number("min_p", &o.how.MinP, 0, 1) },
		func() error { return p.number("repetition_penalty", &o.how.RepetitionPenalty, 0.01, 100) },
		func() error { return p.number("presence_penalty", &o.how.PresencePenalty, -2, 2) },
		func() error { return p.number("frequency_penalty", &o.how.FrequencyPenalty, -2, 2) },
		func() error { return p.get("seed", "a whole number of 64 bits", &seed) },
		func() error { return p.whole("n", &o.n, 1, min(mostChoices, s.set.batch)) },
		func() error { o.stops, err = p.texts("stop", mostStops); return err },
		func() error { return p.get("stream", "true or false", &o.stream) },
		func() error { return p.get("stream_options", `{"include_usage": true} or false`, &include) },
	} {
		if err := read(); err != nil {
			return o, err
		}
	}
	if o.how.TopP == 0 {
		o.how.TopK = 1 // nn takes 0 for all tokens
	}
	o.seed, o.usage = uint64(seed), include.Usage
	switch {
	case slices.Contains(o.stops, ""):
		return o, invalid("stop", "has an empty text, should be texts that end an answer")
	case streamed && !o.stream:
		return o, invalid("stream_options", "is set without stream, should be left out")
	case model == "":
		return o, invalid("model", "is missing, should be %q", s.model.name)
	case model != s.model.name:
		return o, fail(http.StatusNotFound, "model", "model_not_found", "the model %.200q does not exist, should be %q", model, s.model.name)
	}
	return o, nil
}

// finish returns an error if a parameter was not read.
func (p parameters) finish() error {
	for _, name := range slices.Sorted(maps.Keys(p)) {
		return fail(http.StatusBadRequest, name, "unknown_parameter", "%.80q is no parameter of this server, should be left out (it is %.80s)", name, p[name])
	}
	return nil
}

// prompts reads the parameter prompt of a completion: a text, a list of texts, a list of tokens, or a list of such lists.
func (s *server) prompts(p parameters) (prompts []*prompt, err error) {
	const what = "a text, a list of texts, a list of tokens, or a list of lists of tokens"
	raw, ok := p["prompt"]
	if !ok {
		return nil, invalid("prompt", "is missing, should be %s", what)
	}
	delete(p, "prompt")
	var one string
	var several []string
	var ids []int
	var lists [][]int
	switch {
	case json.Unmarshal(raw, &one) == nil:
		several = []string{one}
	case json.Unmarshal(raw, &several) == nil:
	case json.Unmarshal(raw, &ids) == nil:
		lists = [][]int{ids}
	case json.Unmarshal(raw, &lists) == nil:
	default:
		return nil, invalid("prompt", "is %.80s, should be %s", raw, what)
	}
	for _, text := range several {
		q, err := s.newPrompt("prompt", text)
		if err != nil {
			return nil, err
		}
		prompts = append(prompts, q)
	}
	for _, ids := range lists {
		for _, id := range ids {
			if id < 0 || id >= s.model.vocab {
				return nil, invalid("prompt", "has the token %d, should be 0 to %d", id, s.model.vocab-1)
			}
		}
		text, err := s.model.tokenizer.Decode(ids)
		if err != nil {
			return nil, invalid("prompt", "is not decoded: %v", err)
		}
		prompts = append(prompts, &prompt{text: text, tokens: ids})
	}
	if len(prompts) == 0 {
		return nil, invalid("prompt", "is an empty list, should be %s", what)
	}
	for _, q := range prompts {
		if err := s.checkPrompt("prompt", q); err != nil {
			return nil, err
		}
	}
	return prompts, nil
}

// newPrompt returns a prompt of a text.
func (s *server) newPrompt(param, text string) (*prompt, error) {
	ids, err := s.model.tokenizer.Encode(text)
	if err != nil {
		return nil, invalid(param, "is not encoded: %v", err)
	}
	q := &prompt{text: text, tokens: ids}
	return q, s.checkPrompt(param, q)
}

// checkPrompt returns an error if a prompt is empty or too long.
func (s *server) checkPrompt(param string, q *prompt) error {
	switch n := len(q.tokens); {
	case n == 0:
		return invalid(param, "is empty, should be a text to continue")
	case n > s.set.maxPrompt:
		return fail(http.StatusBadRequest, param, "context_length_exceeded", "%s has %d tokens, should have at most %d", param, n, s.set.maxPrompt)
	}
	return nil
}

// newCall returns a call with n answers for each prompt. Answer i has the seed seed+i.
func (s *server) newCall(o generation, prompts []*prompt) (*call, error) {
	n := o.n * len(prompts)
	if n > s.set.batch {
		return nil, invalid("n", "is %d for %d prompts, should make at most %d answers", o.n, len(prompts), s.set.batch)
	}
	if most := s.set.likely / 4; o.top >= 0 && 1+o.top > most/n/max(o.most, 1) { // without a product, which can be too large
		return nil, invalid(o.topParam, "is %d with %d answers of up to %d tokens, which is more than %d probabilities, should be smaller, or max_tokens should be",
			o.top, n, o.most, most)
	}
	c := &call{likely: n * o.most * (1 + o.top), prompts: prompts, out: mailbox{filled: make(chan struct{}, 1)}}
	for _, p := range prompts {
		p.call = c
		for range o.n {
			i := len(c.answers)
			a := &answer{call: c, prompt: p, index: i, seed: o.seed + uint64(i), how: o.how, most: o.most, stops: o.stops,
				ends: s.model.ends, top: o.top, stream: s.model.tokenizer.NewStream()}
			p.answers = append(p.answers, a)
			c.answers = append(c.answers, a)
		}
	}
	return c, nil
}
