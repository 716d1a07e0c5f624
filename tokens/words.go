package tokens

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// nextWord returns the first word of text, and what comes after it. Merges never cross the border of a word. The words are those of
// GPT-2's tokenizer, the matches of
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// which looks ahead, as Go's regular expressions cannot. Put together, the words are the text.
func nextWord(text string) (word, rest string) {
	for _, ending := range []string{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"} {
		if rest, ok := strings.CutPrefix(text, ending); ok {
			return ending, rest
		}
	}
	body := strings.TrimPrefix(text, " ")
	first, _ := utf8.DecodeRuneInString(body)
	for _, kind := range []func(rune) bool{unicode.IsLetter, unicode.IsNumber, other} {
		if body != "" && kind(first) {
			n := len(text) - len(strings.TrimLeftFunc(body, kind))
			return text[:n], text[n:]
		}
	}
	// White space. Its last character belongs to the next word, unless it is the only one or ends the text.
	rest = strings.TrimLeftFunc(text, unicode.IsSpace)
	n := len(text) - len(rest)
	if _, last := utf8.DecodeLastRuneInString(text[:n]); rest != "" && n > last {
		n -= last
	}
	return text[:n], text[n:]
}

func other(r rune) bool { return !unicode.IsSpace(r) && !unicode.IsLetter(r) && !unicode.IsNumber(r) }

// letters are the characters that a byte-level tokenizer.json writes for the 256 bytes, so that each can be printed: the
// character of Latin-1 where it is printable, and otherwise one from U+0100 on.
var letters = func() (l [256]rune) {
	next := rune(0x100)
	for b := range rune(256) {
		if '!' <= b && b <= '~' || '¡' <= b && b <= '¬' || '®' <= b && b <= 'ÿ' {
			l[b] = b
			continue
		}
		l[b] = next
		next++
	}
	return l
}()

// byteOf is the inverse of letters.
var byteOf = func() map[rune]byte {
	m := map[rune]byte{}
	for b, r := range letters {
		m[r] = byte(b)
	}
	return m
}()

// unspell returns the bytes that a token of a tokenizer.json stands for. As in Hugging Face's program, a token that has a
// character outside of letters stands for itself.
func unspell(token string) string {
	bytes := make([]byte, 0, len(token))
	for _, r := range token {
		b, ok := byteOf[r]
		if !ok {
			return token
		}
		bytes = append(bytes, b)
	}
	return string(bytes)
}
