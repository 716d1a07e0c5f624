package text

import (
	"io"
	"unicode/utf8"

	"github.com/gomamba/mamba/task"
)

// Stream writes the text of tokens that come one at a time. A character of several tokens is written when it is whole.
type Stream struct {
	tokenizer *Tokenizer
	out       io.Writer
	rest      []byte // the beginning of a character
}

// NewStream returns a Stream that writes to out what is safe for a terminal.
func NewStream(t *Tokenizer, out io.Writer) *Stream { return &Stream{tokenizer: t, out: out} }

// Write writes what the tokens have made whole.
func (s *Stream) Write(tokens ...int) error {
	for _, token := range tokens {
		s.rest = append(s.rest, s.tokenizer.bytes(token)...)
	}
	n := len(s.rest)
	for back := 1; back < utf8.UTFMax && back <= len(s.rest); back++ {
		if i := len(s.rest) - back; utf8.RuneStart(s.rest[i]) {
			if !utf8.FullRune(s.rest[i:]) {
				n = i
			}
			break
		}
	}
	return s.write(n)
}

// Flush writes what is left.
func (s *Stream) Flush() error { return s.write(len(s.rest)) }

func (s *Stream) write(n int) error {
	if n == 0 {
		return nil
	}
	_, err := io.WriteString(s.out, task.Printable(s.rest[:n]))
	s.rest = append(s.rest[:0], s.rest[n:]...)
	return err
}
