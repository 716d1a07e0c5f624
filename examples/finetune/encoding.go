package main

import "github.com/gomamba/mamba/tokens"

// encoding turns documents into tokens.
type encoding struct{ *tokens.Tokenizer }

// byBytes is the encoding in which each byte is a token.
var byBytes = encoding{tokens.Bytes()}

// end returns the tokens that mark the end of a document. For bytes this is the byte 0, which no text has.
func (e encoding) end() []int {
	if e.IsBytes() {
		return []int{0}
	}
	return e.End()[:min(len(e.End()), 1)]
}

// unit returns the word for a token in the output.
func (e encoding) unit() string {
	if e.IsBytes() {
		return "byte"
	}
	return "token"
}
