package text

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// words splits text as GPT-2's tokenizer does, and all that are shaped like it: merges never cross the border of a word. Put
// together, the words are the text. They are the matches of
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// which looks ahead, as Go's regular expressions cannot.
func words(text string) (w []string) {
	for text != "" {
		n := word(text)
		w, text = append(w, text[:n]), text[n:]
	}
	return w
}

// word returns the length of the first word.
func word(text string) int {
	for _, ending := range []string{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"} {
		if strings.HasPrefix(text, ending) {
			return len(ending)
		}
	}
	body := strings.TrimPrefix(text, " ")
	first, _ := utf8.DecodeRuneInString(body)
	for _, kind := range []func(rune) bool{unicode.IsLetter, unicode.IsNumber, other} {
		if body != "" && kind(first) {
			return len(text) - len(strings.TrimLeftFunc(body, kind))
		}
	}
	// Space: the last one before something else is left to what comes, unless it is the only one.
	rest := strings.TrimLeftFunc(text, unicode.IsSpace)
	n := len(text) - len(rest)
	if _, last := utf8.DecodeLastRuneInString(text[:n]); rest != "" && n > last {
		n -= last
	}
	return n
}

func other(r rune) bool { return !unicode.IsSpace(r) && !unicode.IsLetter(r) && !unicode.IsNumber(r) }

// letters are the characters that byte-level tokenizers write for bytes, so that none is space or unprintable: itself where
// a byte of Latin-1 is neither, and the others from U+0100 on.
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

// spell writes text in letters.
func spell(text string) string {
	var s strings.Builder
	for i := range len(text) {
		s.WriteRune(letters[text[i]])
	}
	return s.String()
}
