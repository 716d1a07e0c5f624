package tokens

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// Stream decodes tokens that come one at a time. Several tokens can make one character: the Stream holds them back until the character
// is complete.
type Stream struct {
	tokenizer *Tokenizer
	rest      []byte // the beginning of a character
}

// NewStream returns a Stream at the beginning of a text. Every text needs a Stream of its own.
func (t *Tokenizer) NewStream() *Stream { return &Stream{tokenizer: t} }

// Decode returns the characters that token completes. The result is valid UTF-8 and can be empty. Put together, the results for all
// tokens and that of Flush are the result of Tokenizer.Decode.
//
// It is an error if token is not in the model's vocabulary; the Stream then stays as it was.
func (s *Stream) Decode(token int) (string, error) {
	if s == nil || s.tokenizer == nil {
		return "", errors.New("tokens: decode: the Stream has no tokenizer, should be made by NewStream of an open Tokenizer")
	}
	piece, err := s.tokenizer.piece(token)
	if err != nil {
		return "", err
	}
	s.rest = append(s.rest, piece...)
	var whole strings.Builder
	n := 0
	for n < len(s.rest) && utf8.FullRune(s.rest[n:]) {
		r, size := utf8.DecodeRune(s.rest[n:])
		whole.WriteRune(r)
		n += size
	}
	s.rest = append(s.rest[:0], s.rest[n:]...)
	return whole.String(), nil
}

// Flush ends the text. It returns U+FFFD for each byte of a character that is still incomplete.
func (s *Stream) Flush() string {
	if s == nil {
		return ""
	}
	rest := strings.Repeat(string(utf8.RuneError), len(s.rest))
	s.rest = nil
	return rest
}
