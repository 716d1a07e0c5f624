package dist

import (
	"bytes"
	"fmt"
)

// Send sends data to another rank, which calls Receive with as many elements of the same type. It copies data and returns at once; an error of the engine is that of a
// later call.
func Send[T Element](g *Group, data []T, to int) error {
	if err := g.peer("Send", "to", to); err != nil {
		return err
	}
	g.paired.Store(true)
	message := make([]byte, headerBytes)
	headerOf[T](callSend, len(data)).write(message)
	return g.send(to, message, append([]byte{}, bytesOf(data)...))
}

// send starts a message, after those before it to the same rank. It waits for none to another rank, which perhaps receives that one only after this one has arrived.
func (g *Group) send(to int, header, data []byte) error {
	g.sends.Lock()
	defer g.sends.Unlock()
	before, done := g.sent[to], make(chan struct{})
	if g.sent == nil {
		g.sent = map[int]chan struct{}{}
	}
	g.sent[to] = done
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		messages := []Message{{to, false, header}, {to, false, data}}
		if err := g.pair(messages[:1+min(len(data), 1)]); err != nil {
			g.sends.Lock()
			g.unsent = err
			g.sends.Unlock()
		}
	}()
	return g.unsent
}

// Receive receives what another rank sends with Send. It is an error if that has another type or number of elements; the two ranks cannot use Send and Receive after
// it. If the other rank calls Fail, Receive returns its error.
func Receive[T Element](g *Group, data []T, from int) error {
	if err := g.peer("Receive", "from", from); err != nil {
		return err
	}
	g.takes.Lock()
	defer g.takes.Unlock()
	g.receives.Add(1)
	defer g.receives.Add(-1)
	g.paired.Store(true)
	next := func(bool) {}
	if f := g.observer.Load(); f != nil {
		next = (*f)("Receive")
		defer next(true)
	}
	h := make([]byte, headerBytes)
	if err := g.pair([]Message{{from, true, h}}); err != nil {
		return err
	}
	next(false)
	sent, want := readHeader(h), headerOf[T](callSend, len(data))
	if sent.call == callFail {
		text := make([]byte, min(max(sent.count, 1), longestError))
		if err := g.pair([]Message{{from, true, text}}); err != nil {
			return err
		}
		return fmt.Errorf("rank %d: %s", from, bytes.TrimSpace(text))
	}
	if sent != want {
		return fmt.Errorf("dist: rank %d sends %d %s, and rank %d receives %d %s, want the same", from, sent.count, kinds[sent.kind], g.Rank(), want.count, kinds[want.kind])
	}
	if len(data) == 0 {
		return nil
	}
	return g.pair([]Message{{from, true, bytesOf(data)}})
}

func (g *Group) peer(call, name string, rank int) error {
	switch {
	case rank < 0 || rank >= g.Size() || rank == g.Rank():
		return fmt.Errorf("dist: %s: %s is %d, want another rank of the %d, not %d, which is this one", call, name, rank, g.Size(), g.Rank())
	case g.closed.Load():
		return fmt.Errorf("dist: %s: the group is closed", call)
	}
	return nil
}

func (g *Group) pair(messages []Message) error {
	if err := g.engine.Move(tagPair, messages); err != nil {
		return fmt.Errorf("dist: rank %d: %w", g.Rank(), err)
	}
	return nil
}
