package tensorfile

import (
	"bytes"
	"fmt"
	"unicode/utf8"
)

// scanHeader checks a header against the grammar of the format, without allocating. It returns how many tensors and how many entries
// of metadata the header has:
//
//	{"__metadata__": {"key": "value", …}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}
//
// "__metadata__" may be missing, and the three keys of a tensor may come in any order.
func scanHeader(header []byte) (tensors, entries int, err error) {
	if !utf8.Valid(header) {
		return 0, 0, fmt.Errorf("not UTF-8")
	}
	s := &scanner{text: header}
	metadata := false
	err = s.list('{', '}', func() error {
		name, err := s.key()
		if err != nil {
			return err
		}
		if len(name) > MaxName {
			return fmt.Errorf("a name has %d bytes, want at most %d", len(name), MaxName)
		}
		if string(name) == "__metadata__" {
			if metadata {
				return fmt.Errorf("__metadata__ is there twice")
			}
			metadata = true
			entries, err = s.metadata()
			return err
		}
		if tensors++; tensors > maxTensors {
			return fmt.Errorf("more than %d tensors", maxTensors)
		}
		return s.tensor()
	})
	if err == nil {
		if s.space(); s.at < len(s.text) {
			err = s.unexpected()
		}
	}
	return tensors, entries, err
}

type scanner struct {
	text []byte
	at   int
}

func (s *scanner) space() {
	for s.at < len(s.text) && (s.text[s.at] == ' ' || s.text[s.at] == '\n' || s.text[s.at] == '\r' || s.text[s.at] == '\t') {
		s.at++
	}
}

func (s *scanner) unexpected() error {
	if s.at >= len(s.text) {
		return fmt.Errorf("it ends too early")
	}
	return fmt.Errorf("unexpected %q at byte %d", s.text[s.at], s.at)
}

// skip skips space and the byte c, if it comes next.
func (s *scanner) skip(c byte) bool {
	s.space()
	if s.at < len(s.text) && s.text[s.at] == c {
		s.at++
		return true
	}
	return false
}

func (s *scanner) want(c byte) error {
	if !s.skip(c) {
		return s.unexpected()
	}
	return nil
}

// list reads items between brackets, with commas between them.
func (s *scanner) list(open, closing byte, item func() error) error {
	if err := s.want(open); err != nil {
		return err
	}
	if s.skip(closing) {
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		if s.skip(closing) {
			return nil
		}
		if err := s.want(','); err != nil {
			return err
		}
	}
}

// quoted returns the bytes between quotes. It does not replace escapes.
func (s *scanner) quoted() ([]byte, error) {
	if err := s.want('"'); err != nil {
		return nil, err
	}
	start := s.at
	for s.at < len(s.text) {
		switch c := s.text[s.at]; {
		case c == '"':
			s.at++
			return s.text[start : s.at-1], nil
		case c < ' ':
			return nil, s.unexpected()
		case c == '\\':
			s.at++
		}
		s.at++
	}
	return nil, s.unexpected()
}

func (s *scanner) key() ([]byte, error) {
	k, err := s.quoted()
	if err != nil {
		return nil, err
	}
	return k, s.want(':')
}

func (s *scanner) metadata() (n int, err error) {
	err = s.list('{', '}', func() error {
		if n++; n > maxTensors {
			return fmt.Errorf("__metadata__ has more than %d entries", maxTensors)
		}
		if _, err := s.key(); err != nil {
			return err
		}
		_, err := s.quoted()
		return err
	})
	return n, err
}

var tensorKeys = [][]byte{[]byte("dtype"), []byte("shape"), []byte("data_offsets")}

func (s *scanner) tensor() error {
	var seen [3]bool
	err := s.list('{', '}', func() error {
		k, err := s.key()
		if err != nil {
			return err
		}
		which := -1
		for i, known := range tensorKeys {
			if bytes.Equal(k, known) {
				which = i
			}
		}
		if which < 0 || seen[which] {
			return fmt.Errorf("a key at byte %d is not one of dtype, shape and data_offsets, once each", s.at)
		}
		seen[which] = true
		if which == 0 {
			_, err = s.quoted()
			return err
		}
		return s.numbers()
	})
	if err == nil && seen != [3]bool{true, true, true} {
		err = fmt.Errorf("a tensor that ends at byte %d lacks one of dtype, shape and data_offsets", s.at)
	}
	return err
}

func (s *scanner) numbers() error {
	n := 0
	return s.list('[', ']', func() error {
		if n++; n > MaxRank {
			return fmt.Errorf("a shape of more than %d dimensions", MaxRank)
		}
		s.space()
		start := s.at
		for s.at < len(s.text) && '0' <= s.text[s.at] && s.text[s.at] <= '9' {
			s.at++
		}
		if s.at == start || s.at-start > 19 {
			return fmt.Errorf("no number of at most 19 digits at byte %d", start)
		}
		return nil
	})
}
