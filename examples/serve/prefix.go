package main

import (
	"container/list"
	"slices"

	"github.com/gomamba/mamba/nn"
)

// prefixes keeps the states after the beginnings of prompts, so that a beginning that many prompts share is read once. A state has a fixed size,
// whatever the length. Only the engine's goroutine uses it.
//
// States are kept after whole pieces only. A prompt is then cut into pieces as without them, so that its answer is the same bit for bit. One
// state is kept of a prompt: after the longest beginning that an earlier prompt had too, or else after its last whole piece. So the first prompt
// with a shared beginning reads it, the second reads it too if its own last piece is of another text, and all others begin after it.
type prefixes struct {
	piece       int
	most, bytes int64
	known       map[uint64]bool // hashes of the beginnings of earlier prompts
	kept        map[uint64]*list.Element
	used        *list.List // of *prefix, the last one used first
}

// prefix is the state after a beginning.
type prefix struct {
	hash   uint64
	tokens []int32
	state  *nn.Sequence
	bytes  int64
}

// mostKnown bounds the table of hashes, which takes some tens of bytes for each.
const mostKnown = 1 << 16

func newPrefixes(piece int, most int64) *prefixes {
	return &prefixes{piece: piece, most: most, known: map[uint64]bool{}, kept: map[uint64]*list.Element{}, used: list.New()}
}

// hashes returns the hash (FNV-1a) of the beginnings of one, two, … whole pieces of a prompt, without its last token, which is left to a step.
func (p *prefixes) hashes(tokens []int) (h []uint64) {
	x := uint64(14695981039346656037)
	for i, token := range tokens[:len(tokens)-1] {
		for shift := 0; shift < 32; shift += 8 {
			x = (x ^ uint64(byte(token>>shift))) * 1099511628211
		}
		if (i+1)%p.piece == 0 {
			h = append(h, x)
		}
	}
	return h
}

// awaits reports whether a prompt has to wait for one of others, which is about to leave the state after a beginning that both share.
func (p *prefixes) awaits(q *prompt, others []*prompt) bool {
	return q.sequence == nil && slices.ContainsFunc(others, func(x *prompt) bool {
		at := x.keepAt
		return x.sequence != nil && at > 0 && x.read() < at*p.piece && at <= len(q.hashes) && q.hashes[at-1] == x.hashes[at-1] && p.kept[q.hashes[at-1]] == nil
	})
}

// read returns the number of tokens that a prompt has read, or found read.
func (q *prompt) read() int { return len(q.tokens) - 1 - q.unread }

// begin makes the sequence of a prompt, after the longest beginning whose state is kept.
func (p *prefixes) begin(q *prompt) {
	q.sequence, q.unread = nn.NewSequence(0, q.tokens...), len(q.tokens)-1
	if p.most == 0 {
		return
	}
	h := q.hashes
	q.keepAt = len(h)
	for q.keepAt > 0 && !p.known[h[q.keepAt-1]] {
		q.keepAt--
	}
	if q.keepAt == 0 {
		q.keepAt = len(h)
	}
	if len(p.known)+len(h) > mostKnown {
		clear(p.known)
	}
	for _, x := range h {
		p.known[x] = true
	}
	for n := len(h); n > 0; n-- {
		e := p.kept[h[n-1]]
		if e == nil {
			continue
		}
		at := n * p.piece
		x := e.Value.(*prefix)
		if slices.EqualFunc(x.tokens, q.tokens[:at], func(a int32, b int) bool { return int(a) == b }) && q.sequence.Skip(at, x.state) == nil {
			p.used.MoveToFront(e)
			q.cached, q.unread = at, q.unread-at
			return
		}
	}
}

// after keeps the state of a prompt of which a piece has been read, if this is where its state is kept. It lets go of the states that were not
// used for the longest time.
func (p *prefixes) after(q *prompt) error {
	read := q.read()
	if read == 0 || read != q.keepAt*p.piece {
		return nil
	}
	hash := q.hashes[q.keepAt-1]
	if p.kept[hash] != nil {
		return nil
	}
	x := &prefix{hash: hash, bytes: int64(q.sequence.StateBytes() + 4*read), state: nn.NewSequence(0)}
	if x.bytes > p.most {
		return nil
	}
	for _, token := range q.tokens[:read] {
		x.tokens = append(x.tokens, int32(token))
	}
	p.kept[x.hash] = p.used.PushFront(x)
	for p.bytes += x.bytes; p.bytes > p.most; {
		old := p.used.Remove(p.used.Back()).(*prefix)
		delete(p.kept, old.hash)
		forget(old.state)
		p.bytes -= old.bytes
	}
	return x.state.Skip(0, q.sequence)
}

// forget lets go of all states.
func (p *prefixes) forget() {
	for e := p.used.Front(); e != nil; e = e.Next() {
		forget(e.Value.(*prefix).state)
	}
}
