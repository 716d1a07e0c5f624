package tokens

import (
	"container/heap"
	"fmt"
	"unicode/utf8"
)

// bpe is byte-pair encoding over bytes (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", section 3.2):
// a word is split into the tokens of its bytes, and neighbours are merged, the pair of the lowest rank first.
//
// The library's own takes time that grows with the square of a word's length, and leaves out bytes that have no token.
type bpe struct {
	bytes   [256]int // the token of a byte, or -1
	merges  map[[2]int]merged
	unknown int // the token for a byte without one, or -1
	fuse    bool
}

// merged is what a pair of tokens becomes.
type merged struct{ rank, token int }

// symbol is a token of a word, in a list of neighbours. A symbol that was merged into its left neighbour has token -1.
type symbol struct{ token, left, right int }

// candidate is a pair that can be merged: the symbol at index at and its right neighbour.
type candidate struct {
	merged
	at int
}

// candidates is a heap: the lowest rank first, and of equal ranks the leftmost.
type candidates []candidate

func (c candidates) Len() int { return len(c) }
func (c candidates) Less(i, j int) bool {
	return c[i].rank < c[j].rank || c[i].rank == c[j].rank && c[i].at < c[j].at
}
func (c candidates) Swap(i, j int) { c[i], c[j] = c[j], c[i] }
func (c *candidates) Push(x any)   { *c = append(*c, x.(candidate)) }
func (c *candidates) Pop() any {
	last := (*c)[len(*c)-1]
	*c = (*c)[:len(*c)-1]
	return last
}

// encode appends the tokens of a word. The time is O(n log n) for n bytes.
func (b *bpe) encode(tokens []int, word string) ([]int, error) {
	symbols := make([]symbol, 0, len(word))
	for i := range len(word) {
		token := b.bytes[word[i]]
		if token < 0 {
			if b.unknown < 0 {
				return nil, fmt.Errorf("the character %q has no token: tokenizer.json lacks its byte %#02x, and names no unk_token", character(word, i), word[i])
			}
			if token = b.unknown; b.fuse && i > 0 && b.bytes[word[i-1]] < 0 {
				continue
			}
		}
		symbols = append(symbols, symbol{token, len(symbols) - 1, len(symbols) + 1})
	}
	var queue candidates
	find := func(at int) (m merged, ok bool) {
		if at < 0 || symbols[at].right == len(symbols) {
			return m, false
		}
		m, ok = b.merges[[2]int{symbols[at].token, symbols[symbols[at].right].token}]
		return m, ok
	}
	for i := range symbols {
		if m, ok := find(i); ok {
			queue = append(queue, candidate{m, i})
		}
	}
	heap.Init(&queue)
	for len(queue) > 0 {
		c := heap.Pop(&queue).(candidate)
		if symbols[c.at].token < 0 {
			continue
		}
		// The neighbours may have changed since. Hugging Face's program asks, as this does, whether the pair there becomes the same token.
		if m, ok := find(c.at); !ok || m.token != c.token {
			continue
		}
		left := &symbols[c.at]
		right := &symbols[left.right]
		left.token, left.right, right.token = c.token, right.right, -1
		if left.right < len(symbols) {
			symbols[left.right].left = c.at
		}
		for _, at := range []int{left.left, c.at} {
			if m, ok := find(at); ok {
				heap.Push(&queue, candidate{m, at})
			}
		}
	}
	for _, s := range symbols {
		if s.token >= 0 {
			tokens = append(tokens, s.token)
		}
	}
	return tokens, nil
}

// character returns the character of text that the byte at index i belongs to, or that byte.
func character(text string, i int) string {
	start := i
	for start > max(0, i-utf8.UTFMax+1) && !utf8.RuneStart(text[start]) {
		start--
	}
	if r, size := utf8.DecodeRuneInString(text[start:]); r != utf8.RuneError && start+size > i {
		return text[start : start+size]
	}
	return text[i : i+1]
}
