package tensorfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// described is what a header says about a tensor.
type described struct {
	Name        string   `json:"-"`
	Dtype       Dtype    `json:"dtype"`
	Shape       []int64  `json:"shape"`
	DataOffsets [2]int64 `json:"data_offsets"` // of its first byte and of the byte after its last one, from the end of the header
}

// parseHeader reads a header in the grammar of the format:
//
//	{"__metadata__": {"key": "value", …}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}
//
// "__metadata__" may be missing, and the three keys of a tensor may come in any order. The header is read token by token, so that
// nothing is allocated for what the grammar does not have.
func parseHeader(text []byte) (tensors []described, metadata map[string]string, err error) {
	if !utf8.Valid(text) {
		return nil, nil, errors.New("not UTF-8")
	}
	h := header{json.NewDecoder(bytes.NewReader(text))}
	h.UseNumber()
	metadata = map[string]string{}
	err = h.object(func(name string) error {
		if name == "__metadata__" {
			return h.object(func(key string) (err error) {
				if metadata[key], err = next[string](h); err == nil && len(metadata) > maxTensors {
					err = fmt.Errorf("__metadata__ has more than %d entries", maxTensors)
				}
				return err
			})
		}
		if len(tensors) == maxTensors {
			return fmt.Errorf("more than %d tensors", maxTensors)
		}
		if len(name) > MaxName {
			return fmt.Errorf("a name has %d bytes, want at most %d", len(name), MaxName)
		}
		t, err := h.tensor()
		t.Name = name
		tensors = append(tensors, t)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if _, err := h.Token(); err != io.EOF {
		return nil, nil, fmt.Errorf("unexpected text after byte %d", h.InputOffset())
	}
	return tensors, metadata, nil
}

// header reads JSON token by token.
type header struct{ *json.Decoder }

// next returns the next token, which must be of type T.
func next[T string | json.Delim | json.Number](h header) (T, error) {
	token, err := h.Token()
	t, ok := token.(T)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && !ok {
		err = fmt.Errorf("unexpected %v before byte %d", token, h.InputOffset())
	}
	return t, err
}

// list calls item before each item of an object or array that begins with open.
func (h header) list(open json.Delim, item func() error) error {
	if d, err := next[json.Delim](h); err != nil {
		return err
	} else if d != open {
		return fmt.Errorf("unexpected %v before byte %d, want %v", d, h.InputOffset(), open)
	}
	for h.More() {
		if err := item(); err != nil {
			return err
		}
	}
	_, err := next[json.Delim](h)
	return err
}

// object calls value for each key of an object.
func (h header) object(value func(key string) error) error {
	seen := map[string]bool{}
	return h.list('{', func() error {
		key, err := next[string](h)
		if err == nil && seen[key] {
			err = fmt.Errorf("%.40q is there twice", key)
		}
		if err != nil {
			return err
		}
		seen[key] = true
		return value(key)
	})
}

func (h header) tensor() (t described, err error) {
	var offsets []int64
	err = h.object(func(key string) (err error) {
		switch key {
		case "dtype":
			var name string
			name, err = next[string](h)
			t.Dtype = Dtype(name)
		case "shape":
			t.Shape, err = h.numbers()
		case "data_offsets":
			offsets, err = h.numbers()
		default:
			err = fmt.Errorf("%.40q is not one of dtype, shape and data_offsets", key)
		}
		return err
	})
	if err == nil && (t.Dtype == "" || t.Shape == nil || len(offsets) != 2) {
		err = fmt.Errorf("a tensor that ends at byte %d lacks one of dtype, shape and two data_offsets", h.InputOffset())
	}
	copy(t.DataOffsets[:], offsets)
	return t, err
}

func (h header) numbers() ([]int64, error) {
	numbers := []int64{}
	err := h.list('[', func() error {
		if len(numbers) == MaxRank {
			return fmt.Errorf("a shape of more than %d dimensions", MaxRank)
		}
		text, err := next[json.Number](h)
		if err != nil {
			return err
		}
		n, err := strconv.ParseInt(string(text), 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("%.40s is no whole number from 0 to 2^63-1", text)
		}
		numbers = append(numbers, n)
		return nil
	})
	return numbers, err
}
