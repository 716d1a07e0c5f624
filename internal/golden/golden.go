// Package golden reads files of expected numbers that other implementations made, and compares results with them.
package golden

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"

	"github.com/nlpodyssey/safetensors"
)

// Tensor is a tensor of a file, widened to float64.
type Tensor struct {
	Shape []int
	Data  []float64
}

// File is a safetensors file in memory.
type File struct {
	Tensors  map[string]Tensor
	Metadata map[string]string
}

// Read reads a safetensors file of float64, float32 and int64. It returns an error for other types.
func Read(path string) (*File, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	st, err := safetensors.Deserialize(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	_, meta, err := safetensors.ReadMetadata(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f := &File{Tensors: map[string]Tensor{}, Metadata: meta.Metadata()}
	for _, t := range st.Tensors() {
		view := t.TensorView
		x := Tensor{}
		for _, n := range view.Shape() {
			x.Shape = append(x.Shape, int(n))
		}
		data := view.Data()
		switch view.DType() {
		case safetensors.F64:
			for ; len(data) > 0; data = data[8:] {
				x.Data = append(x.Data, math.Float64frombits(binary.LittleEndian.Uint64(data)))
			}
		case safetensors.F32:
			for ; len(data) > 0; data = data[4:] {
				x.Data = append(x.Data, float64(math.Float32frombits(binary.LittleEndian.Uint32(data))))
			}
		case safetensors.I64:
			for ; len(data) > 0; data = data[8:] {
				x.Data = append(x.Data, float64(int64(binary.LittleEndian.Uint64(data))))
			}
		default:
			return nil, fmt.Errorf("%s: tensor %s is of %v, want F64, F32 or I64", path, t.Name, view.DType())
		}
		f.Tensors[t.Name] = x
	}
	return f, nil
}

// Transpose returns t with its axes in the given order.
func (t Tensor) Transpose(axes ...int) Tensor {
	out := Tensor{Data: make([]float64, len(t.Data))}
	strides := make([]int, len(t.Shape))
	stride := 1
	for i := len(t.Shape) - 1; i >= 0; i-- {
		strides[i] = stride
		stride *= t.Shape[i]
	}
	for _, a := range axes {
		out.Shape = append(out.Shape, t.Shape[a])
	}
	for i := range out.Data {
		from, rest := 0, i
		for a := len(axes) - 1; a >= 0; a-- {
			from += rest % out.Shape[a] * strides[axes[a]]
			rest /= out.Shape[a]
		}
		out.Data[i] = t.Data[from]
	}
	return out
}
