package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
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
