package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are what /metrics shows, for Prometheus. Memory and goroutines come from the collectors of the client library.
type metrics struct {
	registry                  *prometheus.Registry
	requests                  *prometheus.CounterVec // by path and status
	prompt, cached, generated prometheus.Counter     // tokens
	waiting, running, held    prometheus.Gauge
	first, token, size        prometheus.Histogram
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "mamba_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "mamba_" + name, Help: help})
	}
	histogram := func(name, help string, least float64, buckets int) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "mamba_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(least, 2, buckets)})
	}
	m := &metrics{
		registry:  prometheus.NewRegistry(),
		requests:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mamba_requests_total", Help: "Requests to the API by path and status; 499: the client left."}, []string{"path", "status"}),
		prompt:    counter("prompt_tokens_total", "Tokens of prompts that were read."),
		cached:    counter("prompt_cached_tokens_total", "Tokens of prompts that were not read, since the state after them was kept."),
		generated: counter("generated_tokens_total", "Tokens that were generated."),
		waiting:   gauge("waiting_answers", "Answers in the queue."),
		running:   gauge("running_answers", "Answers that get a token in each step."),
		held:      gauge("prefix_bytes", "Memory of the states of shared beginnings of prompts."),
		first:     histogram("first_token_seconds", "Time from accepting a request to its first token.", 0.001, 17),
		token:     histogram("token_seconds", "Time between two tokens of a running answer: a step, and the pieces of prompts that were read before it.", 0.0001, 17),
		size:      histogram("batch_size", "Answers in a step.", 1, 9),
	}
	m.registry.MustRegister(m.requests, m.prompt, m.cached, m.generated, m.waiting, m.running, m.held, m.first, m.token, m.size,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}
