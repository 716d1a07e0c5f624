package main

import "github.com/gomamba/mamba/tokens"

// encoding makes tokens of documents.
type encoding struct{ *tokens.Tokenizer }

// byBytes takes bytes for tokens.
var byBytes = encoding{tokens.Bytes()}

// end is what marks the end of a document: among bytes the byte 0, which is in no text.
func (e encoding) end() []int {
	if e.IsBytes() {
		return []int{0}
	}
	return e.End()[:min(len(e.End()), 1)]
}

// unit is what a token is called.
func (e encoding) unit() string {
	if e.IsBytes() {
		return "byte"
	}
	return "token"
}
