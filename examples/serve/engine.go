package main

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/gomamba/mamba/nn"
)

// The errors that end a call before its answers are complete.
var (
	errBusy    = errors.New("the queue is full")
	errLikely  = errors.New("all requests together ask for too many probabilities")
	errStopped = errors.New("the server is shutting down")
	errTimeout = errors.New("the time limit of a request is over")
)

// limits are what the engine accepts and holds.
type limits struct {
	batch int   // answers that are generated together
	queue int   // answers that wait
	cache int64 // bytes of states of shared prefixes
}

// engine is the one goroutine that computes. It reads prompts in pieces, and between them makes steps that give each running answer a token.
// Answers join and leave at every step.
type engine struct {
	batch   *nn.Batch
	limits  limits
	metrics *metrics
	prefix  *prefixes

	mu      sync.Mutex
	queue   []*prompt // accepted and not begun
	waiting int       // answers of the prompts in queue
	closed  bool      // nothing is accepted any more
	rate    float64   // tokens per second, smoothed
	wake    chan struct{}

	// together is the number of tokens from which on reading more of them at once takes no less time for each. Reading few tokens takes as long as reading least.
	together, least int

	// Only run uses what follows.
	reading []*prompt // begun, the oldest first
	begun   int       // answers of the prompts in reading
	short   bool      // the last piece was of the shortest prompt, and the next one is of the oldest
	running map[*nn.Sequence]*answer
	step    time.Duration // of the last steps, smoothed
	token   time.Duration // for a token of a prompt, smoothed
	broken  error         // of a device, after which nothing can run
}

func newEngine(lm *nn.LM, piece int, l limits, m *metrics) (*engine, error) {
	batch, err := nn.NewBatch(lm, nn.BatchConfig{Piece: piece})
	if err != nil {
		return nil, err
	}
	e := &engine{batch: batch, limits: l, metrics: m, prefix: newPrefixes(batch.Piece(), l.cache),
		wake: make(chan struct{}, 1), running: map[*nn.Sequence]*answer{}, together: 256, least: 1}
	if !lm.Params().Place().OnHost() {
		e.together, e.least = 2048, 512
	}
	return e, nil
}

// submit accepts all answers of a call, or none of them: errBusy if the queue has no room for them, errStopped after stop.
func (e *engine) submit(c *call) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errStopped
	}
	n := 0
	for _, p := range c.prompts {
		n += len(p.answers)
	}
	if e.waiting > 0 && e.waiting+n > e.limits.queue {
		return errBusy
	}
	for _, p := range c.prompts {
		p.accepted, p.unread = time.Now(), len(p.tokens)
	}
	e.setQueue(append(e.queue, c.prompts...), e.waiting+n)
	select {
	case e.wake <- struct{}{}:
	default:
	}
	return nil
}

// setQueue sets the queue and the number of its answers. The caller holds mu.
func (e *engine) setQueue(queue []*prompt, waiting int) {
	e.queue, e.waiting = queue, waiting
	e.metrics.waiting.Set(float64(waiting))
}

// retryAfter returns the seconds after which a place in the queue is likely to be free.
func (e *engine) retryAfter() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	tokens := 0
	for _, p := range e.queue {
		for _, a := range p.answers {
			tokens += a.most
		}
	}
	return int(min(max(math.Ceil(float64(tokens)/max(e.rate, 1)), 1), 60))
}

// stop makes submit refuse. run then returns when all accepted answers are complete.
func (e *engine) stop() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// run computes until stop is called and all answers are complete, or until ctx ends or the device fails, which ends those that are left with
// errStopped.
func (e *engine) run(ctx context.Context) error {
	defer func() {
		e.batch.Close()
		e.prefix.forget()
	}()
	for {
		for ctx.Err() == nil && e.broken == nil && len(e.reading)+len(e.running) == 0 && !e.begin() {
			e.mu.Lock()
			over := e.closed && len(e.queue) == 0
			e.mu.Unlock()
			if over {
				return nil
			}
			e.metrics.running.Set(0)
			select {
			case <-e.wake:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil || e.broken != nil {
			e.stop()
			e.end(errStopped)
			return e.broken
		}
		start := time.Now()
		e.leave()
		for e.begin() {
		}
		e.read()
		if e.broken != nil {
			continue
		}
		if err := e.next(start); err != nil {
			e.end(err)
			e.check()
		}
	}
}

// begin moves the oldest prompt of the queue to those that are read, if the batch will have room for its answers.
func (e *engine) begin() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) > 0 {
		p := e.queue[0]
		n := len(p.answers)
		if len(e.running)+e.begun+n > e.limits.batch {
			return false
		}
		e.setQueue(e.queue[1:], e.waiting-n)
		p.hashes = e.prefix.hashes(p.tokens)
		e.begun += n
		e.reading = append(e.reading, p)
		return true
	}
	e.queue = nil // lets go of its memory
	return false
}

// leave drops what clients no longer wait for.
func (e *engine) leave() {
	without := func(prompts []*prompt, answers *int) []*prompt {
		return slices.DeleteFunc(prompts, func(p *prompt) bool {
			gone := p.call.ctx.Err() != nil
			if gone {
				*answers -= len(p.answers)
				forget(p.sequence)
			}
			return gone
		})
	}
	e.reading = without(e.reading, &e.begun)
	e.mu.Lock()
	waiting := e.waiting
	queue := without(e.queue, &waiting)
	e.setQueue(queue, waiting)
	e.mu.Unlock()
	for s, a := range e.running {
		if a.call.ctx.Err() != nil {
			e.drop(s)
		}
	}
}

// forget lets go of the memory that a sequence has on a device, which the garbage collector would let go of later.
func forget(s *nn.Sequence) {
	if s != nil {
		s.Skip(0, nn.NewSequence(0))
	}
}

// drop takes a running answer out of the batch.
func (e *engine) drop(s *nn.Sequence) {
	delete(e.running, s)
	e.fails(e.batch.Drop(s))
}

// fails sets broken to the first error that cannot be overcome.
func (e *engine) fails(err error) {
	if e.broken == nil {
		e.broken = err
	}
}

// check finds out after an error whether it would come again, because the device is lost: then not even one token of a new sequence can be read.
func (e *engine) check() {
	_, err := e.batch.Read(nn.NewSequence(0, 0, 0))
	e.fails(err)
}

// end ends all answers with an error.
func (e *engine) end(err error) {
	e.mu.Lock()
	prompts := append(e.reading, e.queue...)
	e.setQueue(nil, 0)
	e.mu.Unlock()
	e.reading, e.begun = nil, 0
	for _, p := range prompts {
		p.call.out.put(event{err: err})
		forget(p.sequence)
	}
	for s, a := range e.running {
		a.call.out.put(event{err: err})
		e.drop(s)
	}
}

// promptShare is how many times as long as a step the pieces of prompts between two steps may take. While fewer answers run than wait for their prompts, it
// is fillShare: a step costs less for each answer when the batch is full.
const (
	promptShare = 3
	fillShare   = 8
)

// read reads pieces of prompts, several at once, and others after them if these are likely to end within the time. A last small group would take nearly as
// long as a whole one, and the answers whose prompts are read wait for it.
func (e *engine) read() {
	start, share := time.Now(), time.Duration(promptShare)
	if len(e.running) < e.begun {
		share = fillShare
	}
	for len(e.reading) > 0 && e.broken == nil {
		most := e.together
		if left := share*e.step - time.Since(start); len(e.running) > 0 && e.token > 0 {
			most = min(most, int(left/e.token))
		}
		before := time.Now()
		e.pieces(e.choose(most))
		if now := time.Now(); now.Sub(start)+now.Sub(before) > share*e.step {
			return
		}
	}
}

// choose returns prompts whose next pieces have about most tokens, at least one prompt. Every other one is the oldest, and the others are the
// shortest, so that neither a long prompt nor many short ones stop the others. A prompt whose beginning another one is reading waits for its state.
func (e *engine) choose(most int) (group []*prompt) {
	left := slices.Clone(e.reading)
	for n := 0; n < most || len(group) == 0; {
		next := -1
		for i, p := range left {
			if (next < 0 || !e.short && p.unread < left[next].unread) && !e.prefix.awaits(p, e.reading) {
				next = i
			}
		}
		if next < 0 {
			return group
		}
		e.short = !e.short
		p := left[next]
		if p.sequence == nil {
			e.prefix.begin(p)
			e.metrics.cached.Add(float64(p.cached))
		}
		n += min(p.unread, e.batch.Piece())
		group = append(group, p)
		left = slices.Delete(left, next, next+1)
	}
	return group
}

// pieces reads the next piece of each prompt of a group. Prompts that are read to the end run.
func (e *engine) pieces(group []*prompt) {
	start, tokens := time.Now(), 0
	sequences := make([]*nn.Sequence, len(group))
	for i, p := range group {
		sequences[i] = p.sequence
	}
	left, err := e.batch.Read(sequences...)
	for i, p := range group {
		wrong := err
		if err == nil {
			tokens += p.unread - left[i]
			p.unread = left[i]
			wrong = e.prefix.after(p)
		}
		if wrong == nil && p.unread > 0 {
			continue
		}
		e.reading = slices.DeleteFunc(e.reading, func(q *prompt) bool { return q == p })
		e.begun -= len(p.answers)
		if wrong == nil {
			wrong = e.join(p)
		}
		if wrong != nil {
			p.call.out.put(event{err: wrong})
			if p.unread > 0 {
				forget(p.sequence)
			}
			e.check()
		}
	}
	e.metrics.prompt.Add(float64(tokens))
	if tokens > 0 {
		took := time.Since(start) / time.Duration(max(tokens, e.least))
		if e.token == 0 {
			e.token = took
		}
		e.token += (took - e.token) / 8
	}
}

// join lets the answers of a prompt that has been read run.
func (e *engine) join(p *prompt) error {
	for i, a := range p.answers {
		s := p.sequence
		if i < len(p.answers)-1 {
			s = s.Clone()
		}
		s.Reseed(a.seed)
		if err := e.batch.Join(s, a.how); err != nil {
			return err
		}
		e.running[s] = a
	}
	return nil
}

// next makes a step. The time since the last one began at loop.
func (e *engine) next(loop time.Time) error {
	n := len(e.running)
	e.metrics.running.Set(float64(n))
	e.metrics.held.Set(float64(e.prefix.bytes))
	if n == 0 {
		return nil
	}
	start := time.Now()
	var over []*nn.Sequence
	err := e.batch.Step(func(s *nn.Sequence, next nn.Next) {
		a := e.running[s]
		switch done, err := a.take(next); {
		case next.Err != nil:
			delete(e.running, s) // it has left the batch
			a.call.out.put(event{err: next.Err})
		case err != nil:
			a.call.out.put(event{err: err})
			over = append(over, s)
		case done:
			over = append(over, s)
		}
		if a.tokens == 1 {
			e.metrics.first.Observe(time.Since(a.prompt.accepted).Seconds())
		}
	})
	if err != nil {
		return err
	}
	for _, s := range over {
		e.drop(s)
	}
	now := time.Now()
	took := now.Sub(start)
	if e.step == 0 {
		e.step = took
	}
	e.step += (took - e.step) / 8
	e.mu.Lock()
	e.rate += (float64(n)/took.Seconds() - e.rate) / 8
	e.mu.Unlock()
	e.metrics.generated.Add(float64(n))
	e.metrics.size.Observe(float64(n))
	e.metrics.token.Observe(now.Sub(loop).Seconds())
	return nil
}
