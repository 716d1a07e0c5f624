package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/tokens"
)

// testModel returns a model of bytes with random weights, whose texts have characters of all lengths and broken ones.
func testModel(cfg nn.Config) *model {
	lm := nn.NewLM(nn.LMConfig{Config: cfg, Vocab: 256}, nn.WithSeed(3))
	for _, p := range lm.Params() { // larger logits, so that some texts are more likely than others
		if strings.Contains(p.Name, "embeddings") {
			for i, data := 0, p.Value.Data().([]float32); i < len(data); i++ {
				data[i] *= 20
			}
		}
	}
	return &model{lm: lm, name: "test", vocab: 256, tokenizer: tokens.Bytes(), ends: []int{'~'}}
}

var tiny = nn.Config{DModel: 8, NLayer: 2, DState: 4}

// testServer serves a model until the test ends, or until stop is called, which returns the error of the server.
type testServer struct {
	*server
	url    string
	client *http.Client
	stop   func() error
}

// start starts a server. flags are those of the command line.
func start(t testing.TB, m *model, flags ...string) *testServer {
	t.Helper()
	set, err := parse(flags, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newServer(set, m, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx, listener) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 128}
	ts := &testServer{server: s, url: "http://" + listener.Addr().String(), client: &http.Client{Transport: transport}}
	stopped := false
	ts.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		err := <-done
		transport.CloseIdleConnections()
		return err
	}
	t.Cleanup(func() {
		if err := ts.stop(); err != nil {
			t.Error(err)
		}
	})
	return ts
}

// post sends a request, whose body is a text or is made JSON.
func (s *testServer) post(ctx context.Context, path string, body any) (status int, header http.Header, text string, err error) {
	raw, ok := body.(string)
	if !ok {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, "", err
		}
		raw = string(b)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, strings.NewReader(raw))
	if err != nil {
		return 0, nil, "", err
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b), err
}

type object = map[string]any

// parts returns the objects of a stream, which ends with [DONE].
func parts(t testing.TB, text string) (all []object) {
	t.Helper()
	text, ok := strings.CutSuffix(text, "data: [DONE]\n\n")
	if !ok {
		t.Fatalf("%q should end with [DONE]", text)
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(text, "\n\n"), "\n\n") {
		var o object
		if err := json.Unmarshal([]byte(strings.TrimPrefix(part, "data: ")), &o); err != nil {
			t.Fatalf("%q: %v", part, err)
		}
		all = append(all, o)
	}
	return all
}

// question is a request for completions and what a Generator gives for it.
type question struct {
	body  object
	texts []string // by index
	ends  []string // finish reasons
	count int      // of tokens
}

// randomQuestion returns a question with random parameters. Its answers come from a Generator with the same Piece that continues each prompt alone.
func randomQuestion(m *model, piece int, r *rand.Rand) (q question, err error) {
	seed, n, most := r.Uint64()>>12, 1+r.IntN(8)/6+r.IntN(8)/7, 1+r.IntN(12)
	how := nn.Sampling{Temperature: 1, TopP: 1, RepetitionPenalty: 1}
	q.body = object{"model": m.name, "seed": seed, "n": n, "max_tokens": most}
	set := func(name string, to *float64, v float64) {
		if r.IntN(3) == 0 {
			q.body[name], *to = v, v
		}
	}
	set("temperature", &how.Temperature, float64(r.IntN(21))/10)
	set("top_p", &how.TopP, float64(1+r.IntN(10))/10)
	set("min_p", &how.MinP, 0.02)
	set("presence_penalty", &how.PresencePenalty, float64(r.IntN(41))/10-2)
	set("frequency_penalty", &how.FrequencyPenalty, float64(r.IntN(41))/10-2)
	set("repetition_penalty", &how.RepetitionPenalty, 1.2)
	text := func(length int) string {
		b := make([]rune, length)
		for i := range b {
			b[i] = []rune("ab é€😀")[r.IntN(6)]
		}
		return string(b)
	}
	prompts := []string{text(1 + r.IntN(20))}
	switch r.IntN(6) {
	case 0: // a beginning that many share
		prompts[0] = strings.Repeat("a system ", 8) + prompts[0]
	case 1:
		prompts = append(prompts, text(1+r.IntN(3)))
	}
	if q.body["prompt"] = prompts[0]; len(prompts) > 1 {
		q.body["prompt"] = prompts
	}
	var stops []string
	for range r.IntN(3) {
		stops = append(stops, string([]rune("\x00\x01 .eéa�")[r.IntN(8)]))
	}
	if len(stops) > 0 {
		q.body["stop"] = stops
	}
	echo := r.IntN(5) == 0
	if echo {
		q.body["echo"] = true
	}
	g, err := nn.NewGenerator(m.lm, nn.GenerateConfig{Sampling: how, MaxTokens: most, StopTokens: m.ends, Piece: piece})
	if err != nil {
		return q, err
	}
	defer g.Close()
	for i := range n * len(prompts) {
		prompt, err := m.tokenizer.Encode(prompts[i/n])
		if err != nil {
			return q, err
		}
		got, err := g.Continue(context.Background(), []*nn.Sequence{nn.NewSequence(seed+uint64(i), prompt...)}, nil)
		if err != nil {
			return q, err
		}
		answer, end, count := cutAnswer(m, got[0], stops)
		if q.count += count; echo {
			answer = prompts[i/n] + answer
		}
		q.texts, q.ends = append(q.texts, answer), append(q.ends, end)
	}
	return q, nil
}

// cutAnswer is the definition of the text of an answer: token by token, up to a stop string.
func cutAnswer(m *model, answer []int, stops []string) (text, end string, count int) {
	stream := m.tokenizer.NewStream()
	end = "length"
	for i, token := range answer {
		last := slices.Contains(m.ends, token)
		if last {
			end = "stop"
		} else {
			part, _ := stream.Decode(token)
			text += part
		}
		if last || i == len(answer)-1 {
			text += stream.Flush()
		}
		if i := firstOf(text, stops); i >= 0 {
			return text[:i], "stop", count + 1
		}
		count++
	}
	return text, end, count
}

// check returns an error if the answers to a question are not those of the Generator.
func (q question) check(t testing.TB, text string, stream bool) error {
	texts, ends := make([]string, len(q.texts)), make([]string, len(q.texts))
	count := 0.0
	objects := []object{}
	if stream {
		objects = parts(t, text)
	} else {
		var o object
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			return err
		}
		objects = append(objects, o)
	}
	for _, o := range objects {
		for _, c := range o["choices"].([]any) {
			c := c.(object)
			i := int(c["index"].(float64))
			texts[i] += c["text"].(string)
			if end, ok := c["finish_reason"].(string); ok {
				ends[i] += end
			}
		}
		if u, ok := o["usage"].(object); ok {
			count += u["completion_tokens"].(float64)
		}
	}
	if !slices.Equal(texts, q.texts) || !slices.Equal(ends, q.ends) || int(count) != q.count {
		return fmt.Errorf("%v: answers %q, ends %v, tokens %v, want %q, %v, %v", q.body, texts, ends, count, q.texts, q.ends, q.count)
	}
	return nil
}

// Requests for completions with any parameters, one after another, get what a Generator gives.
func TestCompletions(t *testing.T) {
	m := testModel(tiny)
	s := start(t, m, "-piece", "16")
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		q, err := randomQuestion(m, 16, r)
		if err != nil {
			t.Fatal(err)
		}
		stream := i%2 == 0
		if stream {
			q.body["stream"], q.body["stream_options"] = true, object{"include_usage": true}
		}
		status, _, text, err := s.post(t.Context(), "/v1/completions", q.body)
		if err != nil || status != http.StatusOK {
			t.Fatalf("%v: status %d, %v, %s", q.body, status, err, text)
		}
		if err := q.check(t, text, stream); err != nil {
			t.Error(err)
		}
	}
}

// A stop string ends an answer wherever the tokens are cut, and what may become one is held back.
func TestStopStrings(t *testing.T) {
	text := "one, two, thrée, fo"
	for _, c := range []struct {
		stops []string
		want  string
		end   string
	}{
		{nil, text, "length"}, {[]string{", t"}, "one", "stop"}, {[]string{"wo,", "two"}, "one, ", "stop"}, {[]string{"rée", "é"}, "one, two, thr", "stop"},
		{[]string{"four", "foo"}, text, "length"}, {[]string{"o"}, "", "stop"}, {[]string{"ée, fo"}, "one, two, thr", "stop"},
	} {
		m := testModel(tiny)
		call := &call{out: mailbox{filled: make(chan struct{}, 1)}}
		p := &prompt{call: call}
		a := &answer{call: call, prompt: p, stops: c.stops, most: len(text), top: -1, stream: m.tokenizer.NewStream()}
		p.answers = []*answer{a}
		got, end := "", ""
		for i := range len(text) {
			done, err := a.take(nn.Next{Token: int(text[i])})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range call.out.events {
				got, end = got+e.text, e.finish
				if strings.HasPrefix(text, got) == false || e.finish == "" && !strings.HasPrefix(c.want, got) {
					t.Errorf("%q: %q was sent, and the answer is %q", c.stops, got, c.want)
				}
			}
			if call.out.events = nil; done {
				break
			}
		}
		if got != c.want || end != c.end {
			t.Errorf("%q: %q ends with %s, want %q, %s", c.stops, got, end, c.want, c.end)
		}
	}
}

// wrongs are requests that are refused: path, body, status and the parameter that the error names.
var wrongs = []struct {
	path, body string
	status     int
	param      string
}{
	{"completions", ``, 400, ""}, {"completions", `[]`, 400, ""}, {"completions", `null`, 400, ""}, {"completions", `{"model":`, 400, ""},
	{"completions", `{"prompt":"a"}`, 400, "model"}, {"completions", `{"model":"other","prompt":"a"}`, 404, "model"},
	{"completions", `{"model":"test"}`, 400, "prompt"}, {"completions", `{"model":"test","prompt":""}`, 400, "prompt"},
	{"completions", `{"model":"test","prompt":[]}`, 400, "prompt"}, {"completions", `{"model":"test","prompt":[[]]}`, 400, "prompt"},
	{"completions", `{"model":"test","prompt":[256]}`, 400, "prompt"}, {"completions", `{"model":"test","prompt":["a",1]}`, 400, "prompt"},
	{"completions", `{"model":"test","prompt":{"a":1}}`, 400, "prompt"}, {"completions", `{"model":"test","prompt":[-1]}`, 400, "prompt"},
	{"completions", `{"model":"test","prompt":"a","temperature":2.1}`, 400, "temperature"},
	{"completions", `{"model":"test","prompt":"a","temperature":"hot"}`, 400, "temperature"},
	{"completions", `{"model":"test","prompt":"a","top_p":-0.1}`, 400, "top_p"}, {"completions", `{"model":"test","prompt":"a","top_k":-1}`, 400, "top_k"},
	{"completions", `{"model":"test","prompt":"a","min_p":2}`, 400, "min_p"}, {"completions", `{"model":"test","prompt":"a","n":0}`, 400, "n"},
	{"completions", `{"model":"test","prompt":"a","n":1.5}`, 400, "n"}, {"completions", `{"model":"test","prompt":["a","b"],"n":16}`, 400, "n"},
	{"completions", `{"model":"test","prompt":"a","max_tokens":0}`, 400, "max_tokens"}, {"completions", `{"model":"test","prompt":"a","max_tokens":100000}`, 400, "max_tokens"},
	{"completions", `{"model":"test","prompt":"a","seed":"x"}`, 400, "seed"}, {"completions", `{"model":"test","prompt":"a","seed":1e30}`, 400, "seed"},
	{"completions", `{"model":"test","prompt":"a","stop":[""]}`, 400, "stop"}, {"completions", `{"model":"test","prompt":"a","stop":7}`, 400, "stop"},
	{"completions", `{"model":"test","prompt":"a","stop":["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]}`, 400, "stop"},
	{"completions", `{"model":"test","prompt":"a","presence_penalty":3}`, 400, "presence_penalty"},
	{"completions", `{"model":"test","prompt":"a","frequency_penalty":-3}`, 400, "frequency_penalty"},
	{"completions", `{"model":"test","prompt":"a","repetition_penalty":0}`, 400, "repetition_penalty"},
	{"completions", `{"model":"test","prompt":"a","logprobs":21}`, 400, "logprobs"}, {"completions", `{"model":"test","prompt":"a","logprobs":1,"echo":true}`, 400, "logprobs"},
	{"completions", `{"model":"test","prompt":"a","echo":1}`, 400, "echo"}, {"completions", `{"model":"test","prompt":"a","best_of":3}`, 400, "best_of"},
	{"completions", `{"model":"test","prompt":"a","stream":"yes"}`, 400, "stream"}, {"completions", `{"model":"test","prompt":"a","stream_options":{}}`, 400, "stream_options"},
	{"completions", `{"model":"test","prompt":"a","stream":true,"stream_options":{"x":1}}`, 400, "stream_options"},
	{"completions", `{"model":"test","prompt":"a","logit_bias":{"1":2}}`, 400, "logit_bias"}, {"completions", `{"model":"test","prompt":"a","user":1}`, 400, "user"},
	{"completions", `{"model":"test","prompt":"` + strings.Repeat("a", 301) + `"}`, 400, "prompt"},
	{"completions", `{"model":"test","prompt":"` + strings.Repeat("a", 3000) + `"}`, 413, ""},
	{"chat/completions", `{"model":"test"}`, 400, "messages"}, {"chat/completions", `{"model":"test","messages":[]}`, 400, "messages"},
	{"chat/completions", `{"model":"test","messages":[{"role":"tool","content":"a"}]}`, 400, "messages[0].role"},
	{"chat/completions", `{"model":"test","messages":[{"role":"user"}]}`, 400, "messages[0].content"},
	{"chat/completions", `{"model":"test","messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, 400, "messages[0].content"},
	{"chat/completions", `{"model":"test","messages":[{"role":"user","content":"a"}],"top_logprobs":3}`, 400, "top_logprobs"},
	{"chat/completions", `{"model":"test","messages":[{"role":"user","content":"a"}],"max_tokens":3,"max_completion_tokens":3}`, 400, "max_tokens"},
	{"chat/completions", `{"model":"test","messages":[{"role":"user","content":"a"}],"tools":[]}`, 400, "tools"},
	{"chat/completions", `{"model":"test","messages":[{"role":"user","content":"a"}]}`, 400, "messages"}, // without a template
	{"embeddings", `{}`, 404, ""},
}

// refused returns an error if an answer is not the refusal with a status and a parameter.
func refused(status int, text string, wantStatus int, wantParam string) error {
	var answer struct {
		Error *struct {
			Message, Type string
			Param         *string
		}
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil || answer.Error == nil || answer.Error.Message == "" || answer.Error.Type == "" {
		return fmt.Errorf("status %d, %q is no error object", status, text)
	}
	param := ""
	if answer.Error.Param != nil {
		param = *answer.Error.Param
	}
	if status != wantStatus || param != wantParam {
		return fmt.Errorf("status %d, parameter %q, %s, want %d, %q", status, param, answer.Error.Message, wantStatus, wantParam)
	}
	return nil
}

// Wrong requests have a status and an error that names the parameter. What is null is as what is missing.
func TestWrongRequests(t *testing.T) {
	s := start(t, testModel(tiny), "-max-prompt", "300", "-max-body", "2", "-batch", "24")
	for _, c := range wrongs {
		status, _, text, err := s.post(t.Context(), "/v1/"+c.path, c.body)
		if err == nil {
			err = refused(status, text, c.status, c.param)
		}
		if err != nil {
			t.Errorf("%.150s: %v", c.body, err)
		}
	}
	status, _, text, err := s.post(t.Context(), "/v1/completions", `{"model":"test","prompt":"a","temperature":null,"stop":null,"tools":null,"user":"u","top_p":0}`)
	if status != http.StatusOK || err != nil {
		t.Errorf("with null: status %d, %s, %v", status, text, err)
	}
}

// The other paths: models, health, metrics, the page, the key, and methods.
func TestPaths(t *testing.T) {
	t.Setenv("API_KEY", "secret")
	s := start(t, testModel(tiny))
	for _, c := range []struct {
		method, path, key string
		status            int
		want              string
	}{
		{"GET", "/", "", 200, "<!doctype html>"}, {"GET", "/healthz", "", 200, "ok\n"}, {"GET", "/metrics", "", 401, `"invalid_api_key"`},
		{"GET", "/metrics", "secret", 200, "\nmamba_waiting_answers 0\n"}, {"GET", "/v1/models", "", 401, `"invalid_api_key"`},
		{"GET", "/v1/models", "wrong", 401, `"invalid_api_key"`}, {"GET", "/v1/models", "secret", 200, `"id":"test"`},
		{"GET", "/v1/models/test", "secret", 200, `"id":"test"`}, {"GET", "/v1/models/a/b", "secret", 404, `"model_not_found"`},
		{"GET", "/v1/completions", "secret", 405, "should be POST"}, {"DELETE", "/v1/models", "secret", 405, "should be GET"},
		{"GET", "/v2", "secret", 404, `"unknown_url"`}, {"POST", "/v1/completions", "", 401, `"invalid_api_key"`},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, s.url+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.key != "" {
			r.Header.Set("Authorization", "Bearer "+c.key)
		}
		resp, err := s.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status || !strings.Contains(string(text), c.want) || err != nil {
			t.Errorf("%s %s with key %q: status %d, %.200s, %v, want %d, %q", c.method, c.path, c.key, resp.StatusCode, text, err, c.status, c.want)
		}
	}
}

// The logarithms of probabilities are those of the whole distribution, for each token that is shown.
func TestLogprobs(t *testing.T) {
	s := start(t, testModel(tiny))
	_, _, text, err := s.post(t.Context(), "/v1/completions", object{"model": "test", "prompt": "ab", "max_tokens": 9, "seed": 4, "logprobs": 2, "temperature": 0})
	if err != nil {
		t.Fatal(err)
	}
	var got completion
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	l := got.Choices[0].Logprobs
	if n := len(l.Tokens); n == 0 || n != len(l.Logs) || n != len(l.Top) || n != len(l.Offsets) {
		t.Fatalf("%+v", l)
	}
	stepper, err := nn.NewStepper(s.model.lm, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer stepper.Close()
	var logits [][]float64
	for _, b := range []byte("ab") {
		if logits, err = stepper.Step([]int{int(b)}); err != nil {
			t.Fatal(err)
		}
	}
	for i, shown := range l.Tokens {
		token := slices.Index(logits[0], slices.Max(logits[0])) // temperature 0
		want := newLikelihood(logits[0], token, 2)
		if diff := l.Logs[i] - want.log; shown != s.model.show(token) || diff > 1e-5 || diff < -1e-5 || len(l.Top[i]) != 2 || l.Top[i][s.model.show(want.top[1].token)] > l.Logs[i] {
			t.Errorf("token %d: %q, %v, %v, want %q, %+v", i, shown, l.Logs[i], l.Top[i], s.model.show(token), want)
		}
		if logits, err = stepper.Step([]int{token}); err != nil {
			t.Fatal(err)
		}
	}
}

const chatTemplate = `{% for message in messages %}
{% if message['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('no role') }}{% endif %}
{% if loop.index0 > 0 and message.role == 'system' %}{{ raise_exception('a system message comes first') }}{% endif %}
{{ '<|' + message['role'] + '|>' + message['content'].strip() + eos_token }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}`

// A chat is the completion of the prompt that the template makes of it.
func TestChat(t *testing.T) {
	m := testModel(tiny)
	var err error
	if m.chat, err = newTemplate(chatTemplate, map[string]any{"eos_token": "</s>"}); err != nil {
		t.Fatal(err)
	}
	s := start(t, m)
	const prompt = "<|system|>be kind</s>\n<|user|>hello you</s>\n<|assistant|>"
	chat := object{"model": "test", "seed": 5, "max_tokens": 20, "logprobs": true, "top_logprobs": 1, "messages": []object{{"role": "developer", "content": " be kind "},
		{"role": "user", "content": []object{{"type": "text", "text": "hello "}, {"type": "text", "text": "you"}}}}}
	var want completion
	_, _, text, err := s.post(t.Context(), "/v1/completions", object{"model": "test", "seed": 5, "max_tokens": 20, "prompt": prompt})
	if err == nil {
		err = json.Unmarshal([]byte(text), &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	var got chatCompletion
	_, _, text, err = s.post(t.Context(), "/v1/chat/completions", chat)
	if err == nil {
		err = json.Unmarshal([]byte(text), &got)
	}
	if err != nil || *got.Choices[0].Message.Content != want.Choices[0].Text || got.Usage.Prompt != len(prompt) || got.Choices[0].Message.Role != "assistant" {
		t.Errorf("%v, %s, want %q after %q", err, text, want.Choices[0].Text, prompt)
	}
	for _, l := range got.Choices[0].Logprobs.Content {
		if len(l.Bytes) != 1 || len(l.Top) != 1 || l.Top[0].Log < l.Log {
			t.Errorf("%+v", l)
		}
	}
	chat["stream"] = true
	_, _, text, err = s.post(t.Context(), "/v1/chat/completions", chat)
	if err != nil {
		t.Fatal(err)
	}
	streamed, end := "", ""
	for i, o := range parts(t, text) {
		c := o["choices"].([]any)[0].(object)
		delta := c["delta"].(object)
		if role, _ := delta["role"].(string); (role == "assistant") != (i == 0) || o["object"] != "chat.completion.chunk" {
			t.Errorf("part %d: %v", i, o)
		}
		content, _ := delta["content"].(string)
		streamed += content
		if f, ok := c["finish_reason"].(string); ok {
			end += f
		}
	}
	if streamed != want.Choices[0].Text || end != *want.Choices[0].Finish {
		t.Errorf("streamed %q, %s, want %q, %s", streamed, end, want.Choices[0].Text, *want.Choices[0].Finish)
	}
	for _, c := range []struct{ messages, want string }{
		{`[{"role":"user","content":"a"},{"role":"system","content":"a"}]`, "messages is refused by the model's chat template: a system message comes first"},
	} {
		status, _, text, err := s.post(t.Context(), "/v1/chat/completions", `{"model":"test","messages":`+c.messages+`}`)
		if err != nil || status != http.StatusBadRequest || !strings.Contains(text, c.want) {
			t.Errorf("%s: status %d, %v, %s", c.messages, status, err, text)
		}
	}
}
