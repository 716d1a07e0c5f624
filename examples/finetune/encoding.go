package main

import tokens "github.com/gomamba/mamba/examples/internal/text"

// encoding makes tokens of documents.
type encoding struct{ *tokens.Tokenizer }

// byBytes takes bytes for tokens.
var byBytes = encoding{new(tokens.Tokenizer)}

// end is what marks the end of a document: among bytes the byte 0, which is in no text.
func (e encoding) end() []int {
	if e.Bytes() {
		return []int{0}
	}
	return e.End()[:min(len(e.End()), 1)]
}

// unit is what a token is called.
func (e encoding) unit() string {
	if e.Bytes() {
		return "byte"
	}
	return "token"
}
