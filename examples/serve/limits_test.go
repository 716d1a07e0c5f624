package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// stalled sends the header of a request whose body does not come.
func (s *testServer) stalled(t *testing.T, first string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", first)
	return c
}

// Whatever the path, a request whose body does not arrive in time gets its answer, and its connection is closed.
func TestStalledBody(t *testing.T) {
	t.Setenv("API_KEY", "secret")
	s := start(t, testModel(tiny))
	s.readTime = 20 * time.Millisecond
	for _, first := range []string{"POST /v1/completions", "GET /", "GET /healthz", "GET /metrics", "PUT /other"} {
		c := s.stalled(t, first)
		c.SetReadDeadline(time.Now().Add(5 * time.Second)) // the limit of the header is longer
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || !resp.Close {
			t.Errorf("%s: %+v, %v, want an answer and the end of the connection", first, resp, err)
		}
	}
}

// A client that sends nothing more does not make the end of the server an error.
func TestStopStalled(t *testing.T) {
	s := start(t, testModel(tiny))
	s.endTime = 50 * time.Millisecond
	c := s.stalled(t, "POST /v1/completions")
	for s.open.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the connection of a stopped server: %v, want its end", err)
	}
}

// The gauges of a server with nothing to do are 0, also after clients have left the queue.
func TestGauges(t *testing.T) {
	m := testModel(tiny)
	m.ends = nil
	s := start(t, m, "-batch", "1", "-max-tokens", "1000000000")
	wait := func(name string, want float64) {
		t.Helper()
		for begin := time.Now(); s.gauge(t, name) != want; time.Sleep(time.Millisecond) {
			if time.Since(begin) > 10*time.Second {
				t.Fatalf("%s is %v, want %v", name, s.gauge(t, name), want)
			}
		}
	}
	var all sync.WaitGroup
	ask := func(ctx context.Context) {
		all.Go(func() {
			s.post(ctx, "/v1/completions", object{"model": "test", "prompt": "x", "max_tokens": 1000000000})
		})
	}
	first, stopFirst := context.WithCancel(t.Context())
	others, stopOthers := context.WithCancel(t.Context())
	ask(first)
	wait("mamba_running_answers", 1)
	for range 5 {
		ask(others)
	}
	wait("mamba_waiting_answers", 5)
	stopOthers()
	wait("mamba_waiting_answers", 0)
	stopFirst()
	wait("mamba_running_answers", 0)
	all.Wait()
	if status, _, text, err := s.post(t.Context(), "/v1/completions", object{"model": "test", "prompt": "x"}); status != http.StatusOK {
		t.Errorf("status %d, %s, %v", status, text, err)
	}
	wait("mamba_running_answers", 0)
}

// After an error that would come again, as that of a lost device, every client gets its status, and the server ends with the error.
func TestLostDevice(t *testing.T) {
	s := start(t, testModel(tiny))
	if err := s.engine.batch.Close(); err != nil { // every later call fails, as on a lost device
		t.Fatal(err)
	}
	status, _, text, err := s.post(t.Context(), "/v1/completions", object{"model": "test", "prompt": "xyz"})
	if err != nil || status != http.StatusInternalServerError {
		t.Errorf("status %d, %s, %v, want 500", status, text, err)
	}
	for begin := time.Now(); !s.ending.Load(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("the server goes on")
		}
	}
	if err := s.stop(); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("the error is %v, want that of the batch", err)
	}
}

// The alternatives of a token are the first of all tokens in the order of their logits, then of their numbers.
func TestAlternatives(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		logits, order := make([]float64, 1+r.IntN(60)), []int{}
		for i := range logits {
			logits[i], order = float64(r.IntN(12)), append(order, i) // many are equal
		}
		slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(logits[j], logits[i]) })
		top := r.IntN(mostAlternative + 1)
		got := []int{}
		for _, l := range newLikelihood(logits, 0, top).top {
			if got = append(got, l.token); l.log != newLikelihood(logits, l.token, 0).log {
				t.Errorf("the logarithm of token %d is %v", l.token, l.log)
			}
		}
		if want := order[:min(top, len(order))]; !slices.Equal(got, want) {
			t.Errorf("%v: the %d most probable are %v, want %v", logits, top, got, want)
		}
	}
}

// Bytes are numbers in JSON.
func TestByteList(t *testing.T) {
	for _, c := range []struct {
		bytes byteList
		want  string
	}{{nil, "[]"}, {byteList{0}, "[0]"}, {byteList("a\xff"), "[97,255]"}} {
		if text, err := json.Marshal(c.bytes); string(text) != c.want || err != nil {
			t.Errorf("%v: %s, %v, want %s", c.bytes, text, err, c.want)
		}
	}
}

// The limit of probabilities is that of all answers together, and a request below it is answered.
func TestProbabilityLimit(t *testing.T) {
	m := testModel(tiny)
	m.ends = nil
	for token := range m.vocab { // each ends an answer
		m.ends = append(m.ends, token)
	}
	var err error
	if m.chat, err = newTemplate("{{ messages[0].content }}", nil); err != nil {
		t.Fatal(err)
	}
	s := start(t, m, "-max-tokens", "1000000000")
	for _, c := range []struct {
		path, body string
		status     int
		param      string
	}{
		{"completions", `{"model":"test","prompt":"a","n":64,"max_tokens":1024,"logprobs":20}`, 400, "logprobs"},
		{"completions", `{"model":"test","prompt":"a","n":64,"max_tokens":1024,"logprobs":3}`, 200, ""},
		{"completions", `{"model":"test","prompt":["a","b"],"n":32,"max_tokens":1025,"logprobs":3}`, 400, "logprobs"},
		{"completions", `{"model":"test","prompt":"a","n":64,"max_tokens":1000000000}`, 200, ""},
		{"chat/completions", `{"model":"test","messages":[{"role":"user","content":"a"}],"n":64,"logprobs":true}`, 400, "top_logprobs"},
	} {
		status, _, text, err := s.post(t.Context(), "/v1/"+c.path, c.body)
		if err == nil && c.status != http.StatusOK {
			err = refused(status, text, c.status, c.param)
		}
		if err != nil || status != c.status {
			t.Errorf("%s: status %d, %v, %.300s", c.body, status, err, text)
		}
	}
}

// The open requests together may ask for a limited number of probabilities. What a request has asked for is free again at its end.
func TestAllProbabilities(t *testing.T) {
	m := testModel(tiny)
	m.ends = nil
	s := start(t, m, "-logprobs", "8000", "-max-tokens", "1000000000")
	ask := func(ctx context.Context, most int) int {
		status, _, text, err := s.post(ctx, "/v1/completions", object{"model": "test", "prompt": "x", "max_tokens": most, "logprobs": 0})
		if status == http.StatusTooManyRequests {
			err = refused(status, text, status, "")
		}
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		return status
	}
	s.likely.Add(7000) // as of other requests
	for _, c := range []struct{ most, want int }{{1000, 200}, {1001, 429}, {1000, 200}, {2001, 400}} {
		if got := ask(t.Context(), c.most); got != c.want {
			t.Errorf("max_tokens %d: status %d, want %d", c.most, got, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ask(ctx, 1000)
	for begin := time.Now(); s.open.Load() > 0 && time.Since(begin) < 10*time.Second; {
		time.Sleep(time.Millisecond)
	}
	if n := s.likely.Load(); n != 7000 {
		t.Errorf("%d probabilities are taken, want 7000", n)
	}
}

// Prompts that come at once and have the same beginning do not read it at the same time: one reads it, or two if their last pieces differ.
func TestSharedAtOnce(t *testing.T) {
	beginning := strings.Repeat("a long system prompt ", 20) // 420 tokens
	for _, c := range []struct {
		end    string
		cached int // tokens of ten prompts
	}{{"", 9 * 416}, {strings.Repeat("x", 40), 8 * 416}} {
		s := start(t, testModel(tiny), "-piece", "16")
		var prompts []string
		for i := range 10 {
			prompts = append(prompts, beginning+fmt.Sprint(i)+c.end)
		}
		_, _, text, err := s.post(t.Context(), "/v1/completions", object{"model": "test", "prompt": prompts, "max_tokens": 1})
		if want := fmt.Sprintf(`"cached_tokens":%d}`, c.cached); err != nil || !strings.Contains(text, want) {
			t.Errorf("%s, %v, want %s", text, err, want)
		}
	}
}

// A client can send an answer's message back with its members that are null; members with values that the server does not know stay errors.
func TestEchoedMessage(t *testing.T) {
	for _, c := range []struct {
		messages string
		ok       bool
	}{
		{`[{"role":"assistant","content":"b","refusal":null,"tool_calls":null,"name":null}]`, true},
		{`[{"role":"assistant","content":"b","refusal":"no"}]`, false}, {`[{"role":"assistant","content":"b","tool_calls":[]}]`, false},
		{`[null]`, false}, {`["a"]`, false},
	} {
		list, err := parameters{"messages": json.RawMessage(c.messages)}.messages()
		if (err == nil) != c.ok || c.ok && list[0].text != "b" {
			t.Errorf("%s: %+v, %v", c.messages, list, err)
		}
	}
}

// With echo, max_tokens can be 0: the answer is the prompt.
func TestPromptAlone(t *testing.T) {
	s := start(t, testModel(tiny))
	for _, stream := range []bool{false, true} {
		body := object{"model": "test", "prompt": []string{"ab", "c"}, "max_tokens": 0, "echo": true, "stream": stream}
		if stream {
			body["stream_options"] = object{"include_usage": true}
		}
		status, _, text, err := s.post(t.Context(), "/v1/completions", body)
		if status != http.StatusOK || err != nil {
			t.Fatalf("stream %t: status %d, %s, %v", stream, status, text, err)
		}
		if err := (question{texts: []string{"ab", "c"}, ends: []string{"length", "length"}}).check(t, text, stream); err != nil {
			t.Error(err)
		}
	}
}
