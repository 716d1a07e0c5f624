package main

import (
	"context"
	"crypto/subtle"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

//go:embed page.html
var page []byte

// server answers requests over HTTP.
type server struct {
	set     settings
	model   *model
	engine  *engine
	metrics *metrics
	log     *slog.Logger
	started time.Time
	number  atomic.Int64 // of the last request
	open    atomic.Int64 // requests that are answered now
	likely  atomic.Int64 // probabilities that these can have
	ending  atomic.Bool  // the server is shutting down

	readTime time.Duration // for a request to arrive
	endTime  time.Duration // for the last answers to be sent when the server ends
	accepted atomic.Int64  // requests that the engine has taken
}

// handler returns the handler of all paths.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'")
		w.Write(page)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if s.ending.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "shutting down\n")
			return
		}
		io.WriteString(w, "ok\n")
	})
	mux.Handle("GET /metrics", s.keyed(promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{})))
	mux.Handle("GET /v1/models", s.api(s.models))
	mux.Handle("GET /v1/models/{name...}", s.api(s.oneModel))
	mux.Handle("POST /v1/completions", s.api(s.completions))
	mux.Handle("POST /v1/chat/completions", s.api(s.chat))
	mux.Handle("/", s.api(func(w *responder, r *http.Request) error {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			other := r.Clone(r.Context())
			other.Method = method
			if _, pattern := mux.Handler(other); pattern != "/" {
				w.Header().Set("Allow", method)
				return fail(http.StatusMethodNotAllowed, "", "", "the method is %s, should be %s", r.Method, method)
			}
		}
		return fail(http.StatusNotFound, "", "unknown_url", "there is no %.200q here", r.URL.Path)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.readTime)) // until the body has arrived, also one that nobody reads
		mux.ServeHTTP(w, r)
	})
}

// keyed lets only requests with the API key pass, if one is set.
func (s *server) keyed(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if s.set.key != "" && subtle.ConstantTimeCompare([]byte(given), []byte(s.set.key)) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			(&responder{ResponseWriter: w}).fail(fail(http.StatusUnauthorized, "", "invalid_api_key", "the API key is missing or wrong, should be sent as Authorization: Bearer KEY"))
			return
		}
		h.ServeHTTP(w, r)
	})
}

// responder writes an answer and remembers what to log of it.
type responder struct {
	http.ResponseWriter
	status int
	call   *call
}

func (w *responder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *responder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// json writes a value with a status.
func (w *responder) json(status int, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(writeTime))
	w.WriteHeader(status)
	_, err = w.Write(append(text, '\n'))
	return err
}

// fail writes an error, if nothing has been written yet.
func (w *responder) fail(f *failure) {
	if w.status == 0 {
		w.json(f.status, map[string]any{"error": f})
	}
}

// asFailure returns the failure that an error is for a client.
func (s *server) asFailure(err error) *failure {
	var f *failure
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, errBusy):
		return fail(http.StatusTooManyRequests, "", "rate_limit_exceeded", "the queue of %d is full, should be tried again later", s.set.queue)
	case errors.Is(err, errLikely):
		return fail(http.StatusTooManyRequests, "", "rate_limit_exceeded", "the open requests ask for %d probabilities, the most, should be tried again later", s.set.likely)
	case errors.Is(err, errStopped):
		return fail(http.StatusServiceUnavailable, "", "shutting_down", "%v", errStopped)
	case errors.Is(err, errTimeout):
		return fail(http.StatusServiceUnavailable, "", "timeout", "the answer was not complete after %v, the time limit", s.set.timeout)
	}
	return fail(http.StatusInternalServerError, "", "", "the model failed: %v", err)
}

// api is what all paths of the API share: the key, the limits of number and time, errors, log and metrics.
func (s *server) api(answer func(w *responder, r *http.Request) error) http.Handler {
	return s.keyed(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w, start := &responder{ResponseWriter: rw}, time.Now()
		id := s.number.Add(1)
		w.Header().Set("X-Request-Id", strconv.FormatInt(id, 10))
		defer s.open.Add(-1)
		var err error
		// More requests than can run and wait are refused before their bodies are read.
		if s.open.Add(1) > int64(s.set.batch+s.set.queue+s.set.batch) {
			err = errBusy
		} else {
			err = answer(w, r)
		}
		gone := errors.Is(err, context.Canceled) // the client
		if err != nil && !gone {
			f := s.asFailure(err)
			if f.status == http.StatusTooManyRequests {
				w.Header().Set("Retry-After", strconv.Itoa(s.engine.retryAfter()))
			}
			if f.status == http.StatusServiceUnavailable {
				w.Header().Set("Connection", "close")
			}
			w.fail(f)
		}
		status := w.status
		if gone {
			status = statusGone
		}
		s.metrics.requests.WithLabelValues(r.Pattern, strconv.Itoa(status)).Inc()
		s.logRequest(w, r, id, status, time.Since(start), err)
	}))
}

const (
	writeTime  = 30 * time.Second // for a client to take a part of an answer
	statusGone = 499              // in the log: the client closed the connection
)

func (s *server) logRequest(w *responder, r *http.Request, id int64, status int, took time.Duration, err error) {
	level := slog.LevelInfo
	if status >= 500 {
		level = slog.LevelError
	}
	attrs := []slog.Attr{slog.Int64("id", id), slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", status),
		slog.Duration("took", took.Round(time.Microsecond))}
	if c := w.call; c != nil {
		u := c.usage()
		attrs = append(attrs, slog.Int("prompt_tokens", u.Prompt), slog.Int("cached_tokens", u.Details.Cached), slog.Int("tokens", u.Completion))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	s.log.LogAttrs(r.Context(), level, "request", attrs...)
}

// body reads the parameters of a request.
func (s *server) body(w *responder, r *http.Request) (parameters, error) {
	text, err := io.ReadAll(http.MaxBytesReader(w.ResponseWriter, r.Body, s.set.maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, fail(http.StatusRequestEntityTooLarge, "", "body_too_large", "the body is larger than %d bytes, the limit", large.Limit)
	case err != nil:
		return nil, fail(http.StatusBadRequest, "", "", "the body could not be read: %v", err)
	}
	// A deadline that passes while an answer is made would look like a client that has left.
	if err := http.NewResponseController(w.ResponseWriter).SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return parseParameters(text)
}

// modelObject is a model in the list of models.
type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func (s *server) modelObject() modelObject {
	return modelObject{s.model.name, "model", s.started.Unix(), "mamba"}
}

func (s *server) models(w *responder, r *http.Request) error {
	return w.json(http.StatusOK, map[string]any{"object": "list", "data": []modelObject{s.modelObject()}})
}

func (s *server) oneModel(w *responder, r *http.Request) error {
	if name := r.PathValue("name"); name != s.model.name {
		return fail(http.StatusNotFound, "model", "model_not_found", "the model %.200q does not exist, should be %q", name, s.model.name)
	}
	return w.json(http.StatusOK, s.modelObject())
}

// usage counts the tokens of a call. Each prompt counts once.
type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
	Details    struct {
		Cached int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

// shape makes the objects of one path of the API.
type shape interface {
	begin(c *call) []any               // what a stream begins with
	part(e event) any                  // a part of a stream
	whole(c *call, parts []merged) any // all at once
	usage(u usage) any                 // the end of a stream, with usage
}

// merged is a whole answer.
type merged struct {
	answer *answer
	text   strings.Builder
	likely []likelihood
	finish string
}

// serve lets the engine answer a call, and writes the answers.
func (s *server) serve(w *responder, r *http.Request, c *call, o generation, sh shape) error {
	ctx, cancel := context.WithTimeoutCause(r.Context(), s.set.timeout, errTimeout)
	defer cancel() // the engine then drops what is left
	c.ctx = ctx
	defer s.likely.Add(-int64(c.likely))
	if s.likely.Add(int64(c.likely)) > int64(s.set.likely) {
		return errLikely
	}
	if o.most == 0 {
		for _, a := range c.answers {
			c.out.put(event{answer: a, finish: "length"})
		}
	} else if err := s.engine.submit(c); err != nil {
		return err
	}
	w.call = c
	s.accepted.Add(1)
	if o.stream {
		return s.stream(w, c, o.usage, sh)
	}
	answers := make([]merged, len(c.answers))
	err := c.each(0, func(events []event) error {
		for _, e := range events {
			m := &answers[e.answer.index]
			m.text.WriteString(e.text)
			m.likely, m.finish = append(m.likely, e.likely...), e.finish
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, a := range c.answers {
		answers[i].answer = a
	}
	return w.json(http.StatusOK, sh.whole(c, answers))
}

// gather is the least time between two writes of a stream. A small model chooses several tokens in it, and a write costs as much as one of its steps.
const gather = 4 * time.Millisecond

// each calls f with the events of a call until all of its answers are complete. It waits after each call of f but the last.
func (c *call) each(wait time.Duration, f func([]event) error) error {
	for first, left := true, len(c.answers); left > 0; first = false {
		if !first && wait > 0 {
			time.Sleep(wait)
		}
		events, err := c.out.take(c.ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.err != nil {
				return e.err
			}
			c.tokens += e.tokens
			c.cached += e.cached
			if e.finish != "" {
				left--
			}
		}
		if err := f(events); err != nil {
			return err
		}
	}
	return nil
}

// stream writes the parts of a call as server-sent events.
func (s *server) stream(w *responder, c *call, withUsage bool, sh shape) error {
	control := http.NewResponseController(w.ResponseWriter)
	var buffer []byte
	send := func(v any) error {
		text, err := json.Marshal(v)
		buffer = fmt.Appendf(buffer, "data: %s\n\n", text)
		return err
	}
	flush := func() error {
		control.SetWriteDeadline(time.Now().Add(writeTime))
		_, err := w.Write(buffer)
		buffer = buffer[:0]
		if err == nil {
			err = control.Flush()
		}
		return err
	}
	start := func() error { // with the first part, so that an error before it has its status
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("X-Accel-Buffering", "no") // nginx
		w.WriteHeader(http.StatusOK)
		for _, v := range sh.begin(c) {
			if err := send(v); err != nil {
				return err
			}
		}
		return nil
	}
	err := c.each(gather, func(events []event) error {
		if w.status == 0 {
			if err := start(); err != nil {
				return err
			}
		}
		for _, e := range events {
			if err := send(sh.part(e)); err != nil {
				return err
			}
		}
		return flush()
	})
	switch {
	case err != nil && w.status == 0:
		return err
	case err != nil:
		send(map[string]any{"error": s.asFailure(err)})
		return errors.Join(err, flush())
	}
	if withUsage {
		if err := send(sh.usage(c.usage())); err != nil {
			return err
		}
	}
	buffer = append(buffer, "data: [DONE]\n\n"...)
	return flush()
}
