package tokens

import "slices"

// maxAdded bounds the length of an added token in bytes, and with it the time for a byte of text.
const maxAdded = 256

// added are tokens that text is searched for before it is split into words.
type added struct {
	ids     map[string]int
	lengths [256][]int // of those that begin with a byte, the longest first
}

// insert adds a token.
func (a *added) insert(content string, id int) {
	if a.ids == nil {
		a.ids = map[string]int{}
	}
	a.ids[content] = id
	l := &a.lengths[content[0]]
	if i, ok := slices.BinarySearchFunc(*l, len(content), func(have, want int) int { return want - have }); !ok {
		*l = slices.Insert(*l, i, len(content))
	}
}

// split appends the added tokens in text to tokens, and calls plain for each piece between them that is not empty. Of tokens that overlap
// it takes the one that begins first, and of several that begin there the longest.
func (a *added) split(text string, tokens *[]int, plain func(string) error) error {
	begin := 0
	flush := func(end int) error {
		if begin == end {
			return nil
		}
		return plain(text[begin:end])
	}
next:
	for at := 0; at < len(text); {
		for _, n := range a.lengths[text[at]] {
			if n > len(text)-at {
				continue
			}
			if id, ok := a.ids[text[at:at+n]]; ok {
				if err := flush(at); err != nil {
					return err
				}
				*tokens = append(*tokens, id)
				at += n
				begin = at
				continue next
			}
		}
		at++
	}
	return flush(len(text))
}
