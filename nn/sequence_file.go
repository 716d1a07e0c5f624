package nn

import (
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/tensorfile"
)

// sequenceFormat is the format's name in the metadata of a file of a sequence.
const sequenceFormat = "gomamba sequence 2"

// Save writes the sequence to a file, for LoadSequence. The file is in the safetensors format, with a checksum. It holds the state of
// the layers by the names of their slots, such as layers.i.conv (d_conv-1, d_inner) and layers.i.scan (d_inner, d_state), the tokens
// pending, seen and chosen, how many times each was chosen, and in its metadata the format and the random source.
//
// The file is replaced as a whole: a program or machine that stops at any moment leaves the old file or the new one. It is an error
// if another process is writing the file.
func (s *Sequence) Save(path string) error {
	if s == nil {
		return fmt.Errorf("nn: save sequence: the sequence is nil, want one that NewSequence or LoadSequence returned")
	}
	if err := tensorfile.Replace(path, s.write); err != nil {
		return fmt.Errorf("nn: save sequence: %w", err)
	}
	return nil
}

func (s *Sequence) write(w io.Writer) error {
	if err := s.bring(); err != nil {
		return err
	}
	var arrays []tensorfile.Array
	for _, name := range slices.Sorted(maps.Keys(s.state)) {
		v := s.state[name]
		arrays = append(arrays, tensorfile.Array{Name: name, Shape: v.Shape(), Data: v.Data()})
	}
	chosen := slices.Sorted(maps.Keys(s.chosen))
	times := make([]int, len(chosen))
	for i, token := range chosen {
		times[i] = s.chosen[token]
	}
	for _, part := range []struct {
		name   string
		tokens []int
	}{{"pending", s.pending}, {"seen", s.seen.tokens()}, {"chosen", chosen}, {"times", times}} {
		tokens := make([]int64, len(part.tokens))
		for i, token := range part.tokens {
			tokens[i] = int64(token)
		}
		arrays = append(arrays, tensorfile.Array{Name: part.name, Shape: []int{len(tokens)}, Data: tokens})
	}
	random, err := s.random.MarshalBinary()
	if err != nil {
		return err
	}
	return tensorfile.WriteSealed(w, map[string]string{"format": sequenceFormat, "random": hex.EncodeToString(random)}, arrays)
}

// LoadSequence reads a file that Save wrote, bit for bit. Any other file, or one that has changed since, is an error. Whether the
// sequence fits a model is checked when a Generator continues it.
func LoadSequence(path string) (*Sequence, error) {
	f, err := tensorfile.Open(path)
	if err != nil {
		return nil, fmt.Errorf("nn: load sequence: %w", err)
	}
	defer f.Close()
	s := new(Sequence)
	if err := s.parse(f); err != nil {
		return nil, fmt.Errorf("nn: load sequence: %s: %w", path, err)
	}
	return s, nil
}

func (s *Sequence) parse(f *tensorfile.File) error {
	if err := f.Check(); err != nil {
		return err
	}
	meta := f.Metadata
	if meta["format"] != sequenceFormat {
		return fmt.Errorf("its format is %q, want %q", meta["format"], sequenceFormat)
	}
	random, err := hex.DecodeString(meta["random"])
	if err == nil {
		err = s.random.UnmarshalBinary(random)
	}
	if err != nil {
		return fmt.Errorf("random is %q, want what a source of math/rand/v2 has written", meta["random"])
	}
	tensors := f.ByName()
	if s.pending, err = parseTokens("pending", tensors); err != nil {
		return err
	}
	seen, err := parseTokens("seen", tensors)
	if err != nil {
		return err
	}
	for _, token := range seen {
		s.seen.add(token)
	}
	if err := s.parseChosen(tensors); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		if err := s.parseState(tensors[name]); err != nil {
			return err
		}
	}
	return nil
}

// parseChosen reads how often each token was chosen. Files that were written before there was a penalty for it do not say so.
func (s *Sequence) parseChosen(tensors map[string]*tensorfile.Tensor) error {
	if tensors["chosen"] == nil {
		return nil
	}
	chosen, err := parseTokens("chosen", tensors)
	if err != nil {
		return err
	}
	times, err := parseTokens("times", tensors)
	if err != nil {
		return err
	}
	if len(times) != len(chosen) {
		return fmt.Errorf("times has %d numbers, want %d, one for each token in chosen", len(times), len(chosen))
	}
	for i, token := range chosen {
		if s.chosen == nil {
			s.chosen = map[int]int{}
		}
		s.chosen[token] = times[i]
	}
	return nil
}

// maxVocab limits the tokens in a file, since the set of seen tokens takes memory in proportion to the largest token.
const maxVocab = 1 << 28

// parseTokens returns the tokens of that name and removes them from tensors.
func parseTokens(name string, tensors map[string]*tensorfile.Tensor) ([]int, error) {
	t := tensors[name]
	if t == nil {
		return nil, fmt.Errorf("%s is missing", name)
	}
	delete(tensors, name)
	if t.Dtype != tensorfile.Int64 || len(t.Shape) != 1 {
		return nil, fmt.Errorf("%s is of %v %v, want a vector of int64", name, t.Dtype, t.Shape)
	}
	numbers := make([]int64, t.Shape[0])
	if err := tensorfile.Copy([]tensorfile.Job{{From: t, To: numbers}}); err != nil {
		return nil, err
	}
	var tokens []int
	for i, token := range numbers {
		if token < 0 || token >= maxVocab {
			return nil, fmt.Errorf("%s[%d] is %d, want 0 to %d", name, i, token, maxVocab-1)
		}
		tokens = append(tokens, int(token))
	}
	return tokens, nil
}

func (s *Sequence) parseState(t *tensorfile.Tensor) error {
	if n := len(t.Shape); n < 1 || n > 2 || t.Size == 0 {
		return fmt.Errorf("%s has shape %v, want one axis or two", t.Name, t.Shape)
	}
	dt := tensor.Float32
	switch t.Dtype {
	case tensorfile.Float32:
	case tensorfile.Float64:
		dt = tensor.Float64
	default:
		return fmt.Errorf("%s is of %v, want float32 or float64", t.Name, t.Dtype)
	}
	v := tensor.New(tensor.WithShape(t.Shape...), tensor.Of(dt))
	if err := tensorfile.Copy([]tensorfile.Job{{From: t, To: v.Data()}}); err != nil {
		return err
	}
	if s.state == nil {
		s.state = map[string]*tensor.Dense{}
	}
	s.state[t.Name] = v
	return nil
}
