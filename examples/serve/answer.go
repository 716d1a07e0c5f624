package main

import (
	"context"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/tokens"
)

// call is a request: prompts with several answers each.
type call struct {
	ctx     context.Context
	prompts []*prompt
	answers []*answer // of all prompts, by index
	out     mailbox
	likely  int // probabilities that the answers can have

	tokens, cached int // of the events that the handler has taken
}

// prompt is a text to continue.
type prompt struct {
	call     *call
	text     string
	tokens   []int
	answers  []*answer
	accepted time.Time

	// The engine's.
	sequence *nn.Sequence
	unread   int      // tokens that are left to read
	cached   int      // tokens that were not read, since the state after them was kept
	hashes   []uint64 // of the beginnings of one, two, … whole pieces
	keepAt   int      // whole pieces after which the state is kept
}

// answer is a continuation of a prompt. The engine calls take with each token; the handler reads events from the call's mailbox.
type answer struct {
	call   *call
	prompt *prompt
	index  int
	seed   uint64
	how    nn.Sampling
	most   int      // tokens
	stops  []string // the answer ends before any of these
	ends   []int    // and at any of these tokens
	top    int      // alternatives of each token to report; -1 for no probabilities

	stream *tokens.Stream
	tokens int
	read   int    // characters of decoded text, those held back included
	held   string // decoded text that may be the beginning of a stop string
	likely []likelihood
	counts event // tokens and cached of the next event
}

// event is a part of an answer, or the error that ended its call.
type event struct {
	answer *answer
	text   string
	likely []likelihood
	finish string // "stop" or "length" with the last part, else ""
	tokens int    // that were generated since the last event
	cached int    // tokens of the prompt that were not read, in one event of a prompt
	err    error
}

// likelihood is the logarithm of a token's probability, and of the most probable tokens in its place.
type likelihood struct {
	token  int
	log    float64
	offset int // of the token's text in the answer, in characters
	top    []likelihood
}

// take adds the token that a step has chosen, and reports whether it was the last.
func (a *answer) take(next nn.Next) (done bool, err error) {
	if next.Err != nil {
		return true, next.Err
	}
	if a.tokens++; a.tokens == 1 && a == a.prompt.answers[0] {
		a.counts.cached = a.prompt.cached
	}
	a.counts.tokens++
	end := slices.Contains(a.ends, next.Token)
	if a.top >= 0 && !end {
		logits, err := next.Logits()
		if err != nil {
			return true, err
		}
		l := newLikelihood(logits, next.Token, a.top)
		l.offset = a.read
		a.likely = append(a.likely, l)
	}
	text := ""
	if !end {
		if text, err = a.stream.Decode(next.Token); err != nil {
			return true, err
		}
	}
	e := event{answer: a}
	switch last := end || a.tokens == a.most; {
	case last:
		text += a.stream.Flush()
		e.finish = "length"
		if end {
			e.finish = "stop"
		}
	case text == "" && a.held == "":
		return false, nil // a part of a character
	}
	a.read += utf8.RuneCountInString(text)
	a.held += text
	if i := firstOf(a.held, a.stops); i >= 0 {
		cut := a.read - utf8.RuneCountInString(a.held[i:])
		a.likely = slices.DeleteFunc(a.likely, func(l likelihood) bool { return l.offset >= cut })
		a.held, e.finish = a.held[:i], "stop"
	}
	n := len(a.held)
	if e.finish == "" {
		n -= heldBack(a.held, a.stops)
	}
	e.text, a.held = a.held[:n], a.held[n:]
	shown := a.read - utf8.RuneCountInString(a.held)
	for len(a.likely) > 0 && (e.finish != "" || a.likely[0].offset < shown) {
		e.likely, a.likely = append(e.likely, a.likely[0]), a.likely[1:]
	}
	if e.text != "" || e.finish != "" || e.likely != nil {
		e.tokens, e.cached, a.counts = a.counts.tokens, a.counts.cached, event{}
		a.call.out.put(e)
	}
	return e.finish != "", nil
}

// firstOf returns the index in text where the first of the stop strings begins, or -1.
func firstOf(text string, stops []string) int {
	first := -1
	for _, s := range stops {
		if i := strings.Index(text, s); i >= 0 && (first < 0 || i < first) {
			first = i
		}
	}
	return first
}

// heldBack returns the length of the longest end of text that is the beginning of a stop string.
func heldBack(text string, stops []string) (most int) {
	for _, s := range stops {
		for n := min(len(s)-1, len(text)); n > most; n-- {
			if strings.HasSuffix(text, s[:n]) {
				most = n
			}
		}
	}
	return most
}

// newLikelihood returns the logarithm of the probability of a token, at temperature 1 and without penalties, and those of the most probable
// tokens.
func newLikelihood(logits []float64, token, top int) likelihood {
	most, sum := slices.Max(logits), 0.0
	for _, v := range logits {
		sum += math.Exp(v - most)
	}
	all := most + math.Log(sum)
	l := likelihood{token: token, log: logits[token] - all}
	if top == 0 {
		return l
	}
	l.top = make([]likelihood, 0, top) // the largest logits so far; of equal ones the first token comes first
	for i, v := range logits {
		switch n := len(l.top); {
		case n < top:
			l.top = append(l.top, likelihood{token: i, log: v})
		case v > l.top[n-1].log:
			l.top[n-1] = likelihood{token: i, log: v}
		default:
			continue
		}
		for j := len(l.top) - 1; j > 0 && v > l.top[j-1].log; j-- {
			l.top[j-1], l.top[j] = l.top[j], l.top[j-1]
		}
	}
	for i := range l.top {
		l.top[i].log -= all
	}
	return l
}

// mailbox holds events until the handler takes them. Putting never waits, so that a slow client does not stop the engine; an answer has a bounded
// number of tokens, and so of events.
type mailbox struct {
	mu     sync.Mutex
	events []event
	filled chan struct{} // of capacity 1
}

func (m *mailbox) put(e event) {
	m.mu.Lock()
	m.events = append(m.events, e)
	m.mu.Unlock()
	select {
	case m.filled <- struct{}{}:
	default:
	}
}

// take waits for events.
func (m *mailbox) take(ctx context.Context) ([]event, error) {
	select {
	case <-m.filled:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	events := m.events
	m.events = nil
	return events, nil
}
