// Serve answers requests in the form of OpenAI's API with a Mamba model, many at a time.
//
//	go run ./examples/serve                       # trains a small model for some seconds and serves it
//	go run ./examples/serve -model DIR            # a checkpoint in the layout of Hugging Face or of state-spaces/mamba
//	go run ./examples/serve -model FILE.gguf      # a file of llama.cpp
//	go run ./examples/serve -device cuda …        # on a GPU
//	go run ./examples/serve -h                    # all flags
//
// It has /v1/models, /v1/completions and /v1/chat/completions; a page at /; /metrics for Prometheus and /healthz. docs/serve.md says more.
//
// SIGTERM or Ctrl-C ends the program after the requests that it has accepted. A second signal ends it at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal, the next one has its usual effect.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the program and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	set, err := parse(args, stdout)
	if err == nil {
		err = serve(ctx, set, stderr)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(stderr, "serve:", err)
		return 1
	}
	return 0
}

// serve serves until ctx ends, and then finishes what was accepted.
func serve(ctx context.Context, set settings, stderr io.Writer) error {
	var handler slog.Handler = slog.NewTextHandler(stderr, nil)
	if set.logFormat == "json" {
		handler = slog.NewJSONHandler(stderr, nil)
	}
	log := slog.New(handler)
	// The address first: a model takes a while to load.
	listener, err := net.Listen("tcp", set.addr)
	if err != nil {
		return fmt.Errorf("-addr is %q: %w", set.addr, err)
	}
	defer listener.Close()
	where, device, closeDevice, err := set.device.Open()
	if err != nil {
		return err
	}
	defer closeDevice()
	if device != "" {
		log.Info("device", "name", device)
	}
	m, err := openModel(ctx, set, where, stderr, log)
	if err != nil {
		return err
	}
	s, err := newServer(set, m, log)
	if err != nil {
		return err
	}
	log.Info("serving", "address", "http://"+listener.Addr().String(), "key", set.key != "")
	return s.run(ctx, listener)
}

// newServer returns a server of a model.
func newServer(set settings, m *model, log *slog.Logger) (*server, error) {
	metrics := newMetrics()
	e, err := newEngine(m.lm, set.piece, limits{batch: set.batch, queue: set.queue, cache: int64(set.cache) << 20}, metrics)
	if err != nil {
		return nil, err
	}
	return &server{set: set, model: m, engine: e, metrics: metrics, log: log, started: time.Now(), readTime: 30 * time.Second, endTime: 10 * time.Second}, nil
}

// run serves at a listener until ctx ends or the device fails, which is an error. When ctx ends, it refuses new requests and gives the accepted ones the
// time of -grace.
func (s *server) run(ctx context.Context, listener net.Listener) error {
	web := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second, WriteTimeout: writeTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)}
	hard, kill := context.WithCancel(context.Background())
	defer kill()
	computed, served := make(chan error, 1), make(chan error, 1)
	go func() { computed <- s.engine.run(hard) }()
	go func() { served <- web.Serve(listener) }()
	var err error
	select {
	case <-ctx.Done():
		s.log.Info("shutting down", "grace", s.set.grace)
		s.ending.Store(true)
		s.engine.stop()
		timer := time.AfterFunc(s.set.grace, kill)
		defer timer.Stop()
		err = <-computed
	case err = <-computed:
		s.ending.Store(true)
	case err := <-served:
		return err
	}
	// All answers are in the mailboxes. What is left is to send them.
	last, cancel := context.WithTimeout(context.Background(), s.endTime)
	defer cancel()
	if web.Shutdown(last) != nil {
		s.log.Warn("closing the connections of clients that neither send nor take anything")
		err = errors.Join(err, web.Close())
	}
	s.log.Info("stopped")
	return err
}
