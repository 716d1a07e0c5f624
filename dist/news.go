package dist

import (
	"bytes"
	"fmt"
	"sync"
	"unicode/utf8"
)

// news is what the ranks of a group tell each other outside of their calls: that one has failed, or that they close the group. A rank that waits in a call of Devices, on the
// host or on the GPU, learns by it that another rank will never make that call.
//
// A rank hears the ranks 1, 2, 4, 8… before it, and tells those as far after it, once: what it hears first, or has to say itself. So news reach N ranks in ⌈log₂ N⌉ steps, and
// nobody waits for a message that does not come.
type news struct {
	group *Group
	hears sync.WaitGroup // one for each rank that has not told
	told  sync.Once

	mu      sync.Mutex
	failed  error // the first one; nil if no rank has failed
	devices map[*Devices]struct{}
}

// rankError is the error of a rank.
type rankError struct {
	rank int
	text string
}

func (e *rankError) Error() string { return fmt.Sprintf("rank %d: %s", e.rank, e.text) }

// newsBytes is the length of all news: a header and the text of an error, of which the end may be missing.
const newsBytes = 1 << 10

// listen makes the group hear news until it is closed. All ranks call it before they make calls of the same Devices.
func (g *Group) listen() *news {
	if n := g.news.Load(); n != nil {
		return n
	}
	n := &news{group: g, devices: map[*Devices]struct{}{}}
	for d := 1; d < g.Size(); d *= 2 {
		n.hears.Add(1)
		go n.hear((g.Rank() - d + g.Size()) % g.Size())
	}
	g.news.Store(n)
	return n
}

// hear waits for the news of a rank.
func (n *news) hear(from int) {
	defer n.hears.Done()
	b := make([]byte, newsBytes)
	if n.group.engine.Move(tagNews, []Message{{from, true, b}}) != nil {
		return // the next call of the group says why
	}
	if h := readHeader(b); h.call == callFail {
		n.fail(&rankError{int(h.root), string(bytes.TrimRight(b[headerBytes:], " \x00"))})
	}
	n.tell(b)
}

// tell tells the ranks after this one, if they have not been told.
func (n *news) tell(b []byte) {
	n.told.Do(func() {
		var messages []Message
		for d := 1; d < n.group.Size(); d *= 2 {
			messages = append(messages, Message{(n.group.Rank() + d) % n.group.Size(), false, b})
		}
		_ = n.group.engine.Move(tagNews, messages)
	})
}

// whole returns the first n bytes of a text, or all if there are fewer, without a part of a character at their end.
func whole(text []byte, n int) []byte {
	for 0 < n && n < len(text) && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:min(n, len(text))]
}

// announce tells the ranks what this one does: it fails, or it closes the group.
func (g *Group) announce(h header, text []byte) {
	if n := g.news.Load(); n != nil {
		b := make([]byte, newsBytes)
		h.write(b)
		copy(b[headerBytes:], whole(text, newsBytes-headerBytes))
		n.tell(b)
	}
}

// fail ends the connections of all devices.
func (n *news) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.failed != nil {
		return
	}
	n.failed = err
	for x := range n.devices {
		x.disconnect()
	}
}

// lost returns the error of a rank that has failed, nil if none is known.
func (g *Group) lost() error {
	if g == nil {
		return nil
	}
	n := g.news.Load()
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.failed
}

// add makes fail end the connection of x too.
func (n *news) add(x *Devices) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.devices[x] = struct{}{}
	if n.failed != nil {
		x.disconnect()
	}
}

func (n *news) remove(x *Devices) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.devices, x)
}
