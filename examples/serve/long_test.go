package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
)

var requests = flag.Int("requests", 600, "requests of TestLong; its long form has 100000")

// TestLong sends requests from many clients at once. A third are cancelled, malformed or too large. Every complete answer is the one of a
// Generator alone, bit for bit; every refusal has its status; and neither goroutines nor memory are left.
//
//	go test ./examples/serve -run TestLong -requests 100000 -timeout 1h -v
func TestLong(t *testing.T) {
	total := *requests
	if testing.Short() {
		total = min(total, 100)
	}
	testLong(t, testModel(tiny), total)
}

// The same on a GPU, whose memory is free again. Answers are those of a Generator on the GPU.
func TestDeviceLong(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	settled := func(most int64) (used int64) {
		for range 20 { // finalizers free the memory of models
			runtime.GC()
			if used, _ = d.Memory(); used <= most {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		return used
	}
	host := testModel(tiny)
	t.Run("first", func(t *testing.T) { answerTogether(t, onDevice(t, host, d), host, 2) })
	before := settled(0)
	t.Run("load", func(t *testing.T) { testLong(t, onDevice(t, host, d), min(*requests, 96)) })
	if after := settled(before); after > before {
		t.Errorf("%d bytes of the GPU are used, %d before", after, before)
	}
}

func testLong(t *testing.T, m *model, total int) {
	const piece = 16
	clients := min(48, total/4)
	questions := make([]question, max(total/10, 20))
	r := rand.New(rand.NewPCG(11, 1))
	for i := range questions {
		var err error
		if questions[i], err = randomQuestion(m, piece, r); err != nil {
			t.Fatal(err)
		}
	}
	before := runtime.NumGoroutine()
	s := start(t, m, "-piece", fmt.Sprint(piece), "-batch", "24", "-queue", "24", "-max-prompt", "300", "-max-body", "2", "-cache", "1")
	var counts struct{ complete, cancelled, late, refused, busy atomic.Int64 }
	client := func(r *rand.Rand) error {
		switch kind := r.IntN(9); {
		case kind < 6:
			q, stream := questions[r.IntN(len(questions))], r.IntN(2) == 0
			body := object{}
			for name, v := range q.body {
				body[name] = v
			}
			if stream {
				body["stream"], body["stream_options"] = true, object{"include_usage": true}
			}
			for {
				status, header, text, err := s.post(t.Context(), "/v1/completions", body)
				switch {
				case err != nil:
					return err
				case status == http.StatusTooManyRequests:
					counts.busy.Add(1)
					if wait, err := strconv.Atoi(header.Get("Retry-After")); err != nil || wait < 1 || wait > 60 {
						return fmt.Errorf("Retry-After is %q", header.Get("Retry-After"))
					}
					if err := refused(status, text, http.StatusTooManyRequests, ""); err != nil {
						return err
					}
					time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
					continue
				case status != http.StatusOK:
					return fmt.Errorf("status %d, %s", status, text)
				}
				counts.complete.Add(1)
				return q.check(t, text, stream)
			}
		case kind < 7:
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.IntN(8000))*time.Microsecond)
			defer cancel()
			_, _, _, err := s.post(ctx, "/v1/completions", object{"model": "test", "prompt": strings.Repeat("x", 1+r.IntN(299)), "max_tokens": 4000,
				"stream": r.IntN(2) == 0})
			if err == nil {
				counts.late.Add(1) // refused as one too many, or complete
			} else if !errors.Is(err, context.DeadlineExceeded) {
				return err
			} else {
				counts.cancelled.Add(1)
			}
			return nil
		default:
			w := wrongs[r.IntN(len(wrongs))]
			status, _, text, err := s.post(t.Context(), "/v1/"+w.path, w.body)
			if err != nil {
				return err
			}
			counts.refused.Add(1)
			return refused(status, text, w.status, w.param)
		}
	}
	var memory []uint64
	for range 4 { // quarters, after each of which everything is quiet
		var wait sync.WaitGroup
		for i := range clients {
			r := rand.New(rand.NewPCG(uint64(i), uint64(len(memory))))
			wait.Go(func() {
				for range total / clients / 4 {
					if err := client(r); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wait.Wait()
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		memory = append(memory, stats.HeapAlloc>>10)
	}
	t.Logf("complete %d, cancelled %d, late %d, refused %d, busy %d; KiB after each quarter: %d", counts.complete.Load(), counts.cancelled.Load(),
		counts.late.Load(), counts.refused.Load(), counts.busy.Load(), memory)
	if grown := int(memory[3]) - int(memory[1]); grown > 4<<10 {
		t.Errorf("the second half of the requests left %d KiB", grown)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	for range 100 { // connections end a moment later
		if runtime.NumGoroutine() <= before+1 { // a helper of package work may wait
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before+1 {
		stack := make([]byte, 1<<16)
		t.Errorf("%d goroutines, %d before:\n%s", n, before, stack[:runtime.Stack(stack, true)])
	}
}

// When the server shuts down under load, every accepted request is answered completely. Others get status 503, or no connection.
func TestShutdown(t *testing.T) { testShutdown(t, testModel(tiny)) }

// The same on a GPU.
func TestDeviceShutdown(t *testing.T) {
	testShutdown(t, onDevice(t, testModel(tiny), gputest.Open(t, cuda.Open)))
}

func testShutdown(t *testing.T, m *model) {
	s := start(t, m, "-batch", "8", "-queue", "64")
	questions := make([]question, 24)
	r := rand.New(rand.NewPCG(5, 1))
	for i := range questions {
		var err error
		if questions[i], err = randomQuestion(m, 64, r); err != nil {
			t.Fatal(err)
		}
	}
	var wait sync.WaitGroup
	var complete, refusals, unconnected atomic.Int64
	for _, q := range questions {
		wait.Go(func() {
			for {
				status, _, text, err := s.post(context.Background(), "/v1/completions", q.body)
				switch {
				case err != nil:
					if unconnected.Add(1); strings.Contains(err.Error(), "unexpected EOF") {
						t.Errorf("an answer is incomplete: %v", err)
					}
					return
				case status == http.StatusServiceUnavailable:
					if err := refused(status, text, status, ""); err != nil {
						t.Error(err)
					}
					refusals.Add(1)
					return
				case status == http.StatusTooManyRequests:
					time.Sleep(time.Millisecond)
				case status != http.StatusOK:
					t.Errorf("status %d, %s", status, text)
					return
				default:
					complete.Add(1)
					if err := q.check(t, text, false); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	wait.Wait()
	if accepted := s.accepted.Load(); accepted != complete.Load() || accepted == 0 {
		t.Errorf("%d requests were accepted, %d answers are complete", accepted, complete.Load())
	}
	t.Logf("complete %d, refused %d, without a connection %d", complete.Load(), refusals.Load(), unconnected.Load())
}

// An answer that takes longer than -grace ends with 503, and in a stream with an error. One that takes longer than -timeout does too.
func TestTimeLimits(t *testing.T) {
	for _, c := range []struct{ flag, code string }{{"-grace", "shutting_down"}, {"-timeout", "timeout"}} {
		m := testModel(tiny)
		m.ends = nil
		s := start(t, m, c.flag, "150ms", "-max-tokens", "1000000000")
		body := object{"model": "test", "prompt": "a", "max_tokens": 1000000000}
		var wait sync.WaitGroup
		for _, stream := range []bool{false, true} {
			body := object{"model": "test", "prompt": "a", "max_tokens": 1000000000, "stream": stream, "n": 2}
			wait.Go(func() {
				status, _, text, err := s.post(context.Background(), "/v1/completions", body)
				if want := map[bool]int{false: 503, true: 200}[stream]; status != want || err != nil || !strings.Contains(text, `"code":"`+c.code+`"`) || strings.Contains(text, "[DONE]") {
					t.Errorf("%s, stream %t: status %d, %v, %.300s", c.flag, stream, status, err, text[max(0, len(text)-300):])
				}
			})
		}
		for s.accepted.Load() < 2 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond)
		if c.flag == "-grace" {
			if err := s.stop(); err != nil {
				t.Error(err)
			}
			if _, _, _, err := s.post(t.Context(), "/v1/completions", body); err == nil {
				t.Error("a stopped server answers")
			}
		}
		wait.Wait()
	}
}

// An answer may take longer than a request may take to arrive, on a connection that was used before. A client that does not send its body gets an error.
func TestSlowAnswer(t *testing.T) {
	m := testModel(tiny)
	m.ends = nil
	s := start(t, m, "-max-tokens", "12000")
	s.readTime = 20 * time.Millisecond
	for _, stream := range []bool{false, true} {
		began := time.Now()
		status, _, text, err := s.post(t.Context(), "/v1/completions", object{"model": "test", "prompt": "a", "max_tokens": 12000, "stream": stream})
		if took := time.Since(began); took < 2*s.readTime {
			t.Fatalf("the answer took %v, want more than a request may take to arrive", took)
		}
		if status != http.StatusOK || err != nil || !strings.Contains(text, `"finish_reason":"length"`) {
			t.Errorf("stream %t: status %d, %v, %d bytes", stream, status, err, len(text))
		}
	}
	connection, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	fmt.Fprint(connection, "POST /v1/completions HTTP/1.0\r\nContent-Length: 5\r\n\r\n{")
	answer, err := io.ReadAll(connection)
	if err != nil || !strings.Contains(string(answer), "the body could not be read") {
		t.Errorf("a body that does not come: %q, %v", answer, err)
	}
}

// A request that a client gives up leaves the batch, and a shared beginning is read once.
func TestCancelAndPrefix(t *testing.T) {
	m := testModel(tiny)
	m.ends = nil
	s := start(t, m, "-piece", "16", "-max-tokens", "1000000000")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.post(ctx, "/v1/completions", object{"model": "test", "prompt": "a", "max_tokens": 1000000000})
	}()
	for s.gauge(t, "mamba_running_answers") != 1 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	if _, _, _, err := s.post(t.Context(), "/v1/completions", object{"model": "test", "prompt": "b"}); err != nil { // the gauge changes at a step
		t.Fatal(err)
	}
	if n := s.gauge(t, "mamba_running_answers"); n > 1 {
		t.Errorf("%v answers run after one was cancelled, want at most 1", n)
	}
	for i := range 5 {
		_, _, text, err := s.post(t.Context(), "/v1/completions", object{"model": "test", "prompt": strings.Repeat("a long system prompt ", 20) + strings.Repeat(fmt.Sprint(i), 40)})
		if want := fmt.Sprintf(`"cached_tokens":%d}`, map[bool]int{false: 0, true: 416}[i > 1]); err != nil || !strings.Contains(text, want) {
			t.Errorf("request %d: %s, %v, want %s", i, text, err, want)
		}
	}
}

// gauge returns the value of a metric.
func (s *testServer) gauge(t *testing.T, name string) float64 {
	t.Helper()
	all, err := s.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.GetName() == name {
			return m.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
