package nn

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nlpodyssey/safetensors"
	"gorgonia.org/tensor"
)

// sequenceFormat is what a file of a sequence says that it is.
const sequenceFormat = "gomamba sequence 1"

// Save writes the sequence to a file, for LoadSequence: beside it first, and renamed when it is complete. The file is in the
// safetensors format. It holds the state of the layers as layers.i.conv (d_conv-1, d_inner) and layers.i.scan (d_inner,
// d_state), the tokens pending and seen, and in its metadata the format and the random source.
func (s *Sequence) Save(path string) error {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("nn: save sequence: %w", err)
	}
	if err = s.write(file); err == nil {
		err = file.Chmod(0o644) // as any other file that a user makes
	}
	if err == nil {
		err = file.Sync() // a name must not be on the disk before what it names
	}
	if wrong := file.Close(); err == nil {
		err = wrong
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
		return fmt.Errorf("nn: save sequence: %w", err)
	}
	return nil
}

func (s *Sequence) write(w io.Writer) error {
	views := map[string]safetensors.TensorView{}
	add := func(name string, dt safetensors.DType, data []byte, shape ...int) error {
		sizes := make([]uint64, len(shape))
		for i, n := range shape {
			sizes[i] = uint64(n)
		}
		view, err := safetensors.NewTensorView(dt, sizes, data)
		views[name] = view
		return err
	}
	for name, v := range s.state {
		dt := safetensors.F32
		if v.Dtype() == tensor.Float64 {
			dt = safetensors.F64
		}
		data, err := binary.Append(nil, binary.LittleEndian, v.Data())
		if err == nil {
			err = add(name, dt, data, v.Shape()...)
		}
		if err != nil {
			return err
		}
	}
	for name, tokens := range map[string][]int{"pending": s.pending, "seen": s.seen.tokens()} {
		var data []byte
		for _, token := range tokens {
			data = binary.LittleEndian.AppendUint64(data, uint64(token))
		}
		if err := add(name, safetensors.I64, data, len(tokens)); err != nil {
			return err
		}
	}
	random, err := s.random.MarshalBinary()
	if err != nil {
		return err
	}
	return safetensors.SerializeToWriter(views, map[string]string{"format": sequenceFormat, "random": hex.EncodeToString(random)}, w)
}

// LoadSequence reads what Save has written, bit for bit. A file that is something else, or not whole, is an error; whether
// the sequence fits a model is found out when a Generator goes on with it.
func LoadSequence(path string) (*Sequence, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("nn: load sequence: %w", err)
	}
	s := new(Sequence)
	if err := s.parse(data); err != nil {
		return nil, fmt.Errorf("nn: load sequence: %s: %w", path, err)
	}
	return s, nil
}

func (s *Sequence) parse(data []byte) error {
	_, header, err := safetensors.ReadMetadata(data)
	if err != nil {
		return err
	}
	file, err := safetensors.Deserialize(data)
	if err != nil {
		return err
	}
	meta := header.Metadata()
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
	for _, t := range file.Tensors() {
		switch t.Name {
		case "pending":
			if s.pending, err = parseTokens(t.Name, t.TensorView); err != nil {
				return err
			}
		case "seen":
			tokens, err := parseTokens(t.Name, t.TensorView)
			if err != nil {
				return err
			}
			for _, token := range tokens {
				s.seen.add(token)
			}
		default:
			if err := s.parseState(t.Name, t.TensorView); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxVocab bounds the set of tokens that are seen, whose size is that of the largest.
const maxVocab = 1 << 28

func parseTokens(name string, t safetensors.TensorView) (tokens []int, err error) {
	if t.DType() != safetensors.I64 || len(t.Shape()) != 1 {
		return nil, fmt.Errorf("%s is of %v %v, want a vector of int64", name, t.DType(), t.Shape())
	}
	for data := t.Data(); len(data) > 0; data = data[8:] {
		token := binary.LittleEndian.Uint64(data)
		if token >= maxVocab {
			return nil, fmt.Errorf("%s[%d] is %d, want 0 to %d", name, len(tokens), int64(token), maxVocab-1)
		}
		tokens = append(tokens, int(token))
	}
	return tokens, nil
}

func (s *Sequence) parseState(name string, t safetensors.TensorView) error {
	if n := len(t.Shape()); n < 1 || n > 2 || len(t.Data()) == 0 {
		return fmt.Errorf("%s has shape %v, want one axis or two", name, t.Shape())
	}
	var shape tensor.Shape
	for _, size := range t.Shape() {
		shape = append(shape, int(size))
	}
	var backing any
	switch t.DType() {
	case safetensors.F32:
		backing = make([]float32, shape.TotalSize())
	case safetensors.F64:
		backing = make([]float64, shape.TotalSize())
	default:
		return fmt.Errorf("%s is of %v, want float32 or float64", name, t.DType())
	}
	if _, err := binary.Decode(t.Data(), binary.LittleEndian, backing); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if s.state == nil {
		s.state = map[string]*tensor.Dense{}
	}
	s.state[name] = tensor.New(tensor.WithShape(shape...), tensor.WithBacking(backing))
	return nil
}
