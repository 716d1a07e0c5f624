package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/task"
	"github.com/gomamba/mamba/train"
)

// document is a text, and a prompt before it that is not learned.
type document struct{ prompt, text string }

// readDocuments reads the file that -data names.
func readDocuments(path string) ([]document, error) {
	data, err := tensorfile.ReadFile(path, math.MaxInt64)
	if err != nil {
		var pathError *fs.PathError
		if errors.As(err, &pathError) {
			err = pathError.Err
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	parse := func(line []byte) (document, error) { return document{text: string(line)}, nil }
	if ext := strings.ToLower(filepath.Ext(path)); ext == ".jsonl" || ext == ".ndjson" || ext == ".json" {
		parse = parseJSON
	}
	var docs []document
	number := 0
	for line := range bytes.Lines(data) {
		number++
		if line = bytes.TrimRight(line, "\r\n"); len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		d, err := parse(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, number, err)
		}
		docs = append(docs, d)
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("%s: the file has no document", path)
	}
	return docs, nil
}

func parseJSON(line []byte) (d document, err error) {
	var fields struct{ Text, Prompt, Completion *string }
	if err := json.Unmarshal(line, &fields); err != nil {
		return d, fmt.Errorf("want a JSON object with text, or with prompt and completion: %w", err)
	}
	switch {
	case fields.Text != nil && fields.Prompt == nil && fields.Completion == nil:
		d.text = *fields.Text
	case fields.Text == nil && fields.Prompt != nil && fields.Completion != nil:
		d.prompt, d.text = *fields.Prompt, *fields.Completion
	default:
		return d, fmt.Errorf("want either text, or prompt and completion")
	}
	if d.text == "" {
		return d, fmt.Errorf("the text to learn is empty")
	}
	return d, nil
}

// goTexts returns the code of Go's standard library, a document for each declaration, and its comments. Every Go installation has them.
func goTexts() (code, comments []document, err error) {
	const limit = 6 << 20 // bytes; the default run reads only a small part of them
	source, err := task.GoSource(limit)
	if err != nil {
		return nil, nil, fmt.Errorf("%w; name a checkpoint with -model and a text with -data", err)
	}
	codeText, commentText := task.Comments(source, 80)
	for _, f := range codeText.Files {
		for _, declaration := range strings.SplitAfter(string(f.Data), "\n}\n") {
			if declaration = strings.TrimLeft(declaration, "\n"); declaration != "" {
				code = append(code, document{text: declaration})
			}
		}
	}
	for _, f := range commentText.Files {
		comments = append(comments, document{text: string(f.Data)})
	}
	return code, comments, nil
}

// corpus holds documents as tokens.
type corpus struct {
	train, heldOut []train.Document
	tokens         int    // in both parts
	sum            string // checksum of all documents
}

// newCorpus encodes documents and holds a share of them out, but at most evalTokens tokens.
//
// The held-out documents are the first in the order of a hash of their text. So they are a fair sample, the same in each run, and equal
// documents are in the same part. If all documents are equal, the end of one of them is held out.
func newCorpus(docs []document, enc encoding, share float64, evalTokens int) (*corpus, error) {
	type hashed struct {
		train.Document
		hash [sha256.Size]byte
	}
	c, all, total := new(corpus), make([]hashed, len(docs)), sha256.New()
	for i, d := range docs {
		var h hashed
		prompt, err := enc.Encode(d.prompt)
		if err != nil {
			return nil, err
		}
		learned, err := enc.Encode(d.text)
		if err != nil {
			return nil, err
		}
		h.Tokens, h.Prompt = slices.Concat(prompt, learned, enc.end()), len(prompt)
		h.hash = sha256.Sum256([]byte(d.prompt + "\x00" + d.text))
		c.tokens += len(h.Tokens)
		all[i] = h
		if err := binary.Write(total, binary.LittleEndian, h.hash[:]); err != nil {
			return nil, err
		}
	}
	c.sum = fmt.Sprintf("%x", total.Sum(nil)[:8])
	if share == 0 {
		for _, h := range all {
			c.train = append(c.train, h.Document)
		}
		return c, nil
	}
	slices.SortStableFunc(all, func(a, b hashed) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	if last := len(all) - 1; all[0].hash == all[last].hash { // a single document, or copies of it
		d := all[0].Document
		cut := len(d.Tokens) - int(math.Ceil(share*float64(len(d.Tokens))))
		if d.Prompt > 0 || cut < 2 || len(d.Tokens)-cut < 2 {
			return nil, fmt.Errorf("a single document: add another one to hold out, or set -heldout 0")
		}
		c.train = []train.Document{{Tokens: d.Tokens[:cut]}}
		c.heldOut = []train.Document{{Tokens: d.Tokens[cut:][:min(len(d.Tokens)-cut, evalTokens)]}}
		return c, nil
	}
	budget, held, at := min(int(share*float64(c.tokens)), evalTokens), 0, 0
	for at < len(all) {
		next, n := at, 0
		for ; next < len(all) && all[next].hash == all[at].hash; next++ {
			n += len(all[next].Tokens)
		}
		if at > 0 && held+n > budget || next == len(all) { // at least one for each part
			break
		}
		at, held = next, held+n
	}
	for i, h := range all {
		if i < at {
			c.heldOut = append(c.heldOut, h.Document)
		} else {
			c.train = append(c.train, h.Document)
		}
	}
	return c, nil
}
