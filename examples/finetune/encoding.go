package main

// encoding makes tokens of text.
type encoding interface {
	// encode returns the tokens of a text, none for an empty one.
	encode(text string) ([]int, error)
	// end is what marks the end of a document.
	end() []int
	// unit is what a token is called.
	unit() string
}

// byBytes takes bytes for tokens, and the byte 0, which is in no text, for the end of a document.
type byBytes struct{}

func (byBytes) encode(text string) ([]int, error) {
	tokens := make([]int, len(text))
	for i, b := range []byte(text) {
		tokens[i] = int(b)
	}
	return tokens, nil
}

func (byBytes) end() []int   { return []int{0} }
func (byBytes) unit() string { return "byte" }
