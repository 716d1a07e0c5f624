package checkpoint

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// Weights is an option of Load: the type of the matrices of a model that generates text. A model whose matrices are narrower than float32 is
// smaller, and generates faster on a processor with AVX-512, VNNI and BF16 (on others far slower); it cannot be trained or saved.
//
//   - "float32": the default of a directory;
//   - "file": the types that the file has, the default of a GGUF file;
//   - "bfloat16", "bf16": 2 bytes a number; "float16", "f16" too;
//   - "int8": blas.Q8_0, 8.5 bits a number;
//   - "int4": blas.Q4_K, 4.5 bits a number, with the head in Q6_K.
//
// Where the rows of a matrix do not divide by 256, int4 takes Q5_0, and Q8_0 for the head; where they do not divide by 32, int8 and int4 take float16. Norms,
// biases, convolutions, A and D stay float32, and so do states and sums.
//
// On a device (nn.OnDevice) the weights take the memory of their types too. Quantized types of a GGUF file become Q8_0 there, and int4 is an error. With matrices of
// bfloat16, products are computed as nn.WithPrecision(cuda.BF16) does, unless another precision is given.
func Weights(types string) nn.Option {
	return func(o *build.Options) {
		if o.Narrow = types; types == "" {
			o.Narrow = empty
		}
	}
}

// empty is what Weights("") sets, since "" in build.Options means that the option was not given.
const empty = "\x00"

// weightTypes returns the value of the option Weights, "" for none, and the other options. Of those of a GGUF file, and of narrow weights, it returns the device
// apart: such a model is made on the host.
func weightTypes(opts []nn.Option, isGGUF bool) (types string, place op.Place, rest []nn.Option, err error) {
	var o build.Options
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	switch o.Narrow {
	case "bf16":
		o.Narrow = "bfloat16"
	case "f16":
		o.Narrow = "float16"
	case "", "float32", "file", "bfloat16", "float16", "int8", "int4":
	default:
		err = fmt.Errorf("the option Weights is %q, want float32, file, bfloat16, float16, int8 or int4", strings.TrimPrefix(o.Narrow, empty))
		return "", place, nil, err
	}
	types = o.Narrow
	isDouble := o.Dtype.Type != nil && o.Dtype != tensor.Float32
	switch narrow := types != "" && types != "float32"; {
	case isGGUF && isDouble:
		err = fmt.Errorf("dtype is %v, want float32 for a GGUF file; for another one, load it with checkpoint.Weights(\"float32\") alone, save that with checkpoint.Save, and load the directory", o.Dtype)
	case narrow && isDouble:
		err = fmt.Errorf("the option Weights is %q with a dtype of %v, want one of them", types, o.Dtype)
	case types == "int4" && o.OnDevice:
		err = fmt.Errorf("the option Weights is %q, want float32, file, bfloat16, float16 or int8 on a device", types)
	case (narrow || isGGUF) && o.OnDevice:
		place, err = op.On(o.Device, o.Precision)
	}
	return types, place, append(slices.Clone(opts), func(o *build.Options) {
		if o.Narrow = ""; !place.OnHost() {
			o.ToHost()
		}
	}), err
}

// toDevice moves a model of narrow weights to a place, unless that is the host. If a matrix is of bfloat16, so are the operands of products, where the kernels
// of bfloat16 support the model.
func toDevice(lm *nn.LM, place op.Place) (err error) {
	if place.OnHost() {
		return nil
	}
	params := lm.Params()
	if place.Precision() == cuda.Strict && lm.Config().DState <= 16 && slices.ContainsFunc(params, func(p *layer.Param) bool { n := p.Narrow(); return n != nil && n.Type() == blas.BFloat16 }) {
		if place, err = op.On(place.Device(), cuda.BF16); err != nil {
			return err
		}
	}
	return params.ToDevice(place)
}

// matrix is a tensor on file.
type matrix struct {
	shape  []int
	typ    blas.Type                                // float32 for float64 too
	read   func(first int64, to []float32) error    // elements, converted
	narrow func(outputs int) (*blas.Weights, error) // as the file has it
}

// isProduct reports whether a weight is the matrix of a product, by its name in the Hugging Face layout.
func isProduct(name string) bool {
	switch path.Base(strings.ReplaceAll(strings.TrimSuffix(name, ".weight"), ".", "/")) {
	case "embeddings", "lm_head", "in_proj", "x_proj", "dt_proj", "out_proj":
		return strings.HasSuffix(name, ".weight")
	}
	return false
}

// typeFor returns the type of a matrix with that number of inputs. The fallbacks are those of llama.cpp.
func typeFor(types string, isHead bool, inputs int, onFile blas.Type) blas.Type {
	fits := func(of ...blas.Type) blas.Type {
		for _, t := range of {
			if inputs%t.Block() == 0 {
				return t
			}
		}
		return blas.Float16
	}
	switch {
	case types == "bfloat16":
		return blas.BFloat16
	case types == "float16":
		return blas.Float16
	case types == "int8":
		return fits(blas.Q8_0)
	case types == "int4" && isHead:
		return fits(blas.Q6_K, blas.Q8_0)
	case types == "int4":
		return fits(blas.Q4_K, blas.Q5_0)
	case types == "float32":
		return blas.Float32
	}
	return onFile
}

// fill sets the weights of a model without values.
func fill(lm *nn.LM, types string, find func(name string) matrix) error {
	shapes := map[string][]int{}
	for _, w := range lmTensors(lm.Config()) {
		shapes[w.Name] = w.Shape
	}
	names := ownNames(lm)
	var need size.Bytes
	for i, p := range lm.Params() {
		shape, m := shapes[names[i]], find(names[i])
		t, rows := blas.Float32, shape[0]
		length := size.Product(shape[1:]...)
		isHead := names[i] == head || names[i] == embedding && !lm.Config().UntiedHead
		if isProduct(names[i]) {
			t = typeFor(types, isHead, length, m.typ)
		}
		if need = need.Plus(size.Of(uintptr(t.BlockBytes()), rows, length/t.Block())); need.Fits("") != nil {
			return need.Fits("the weights")
		}
		var err error
		var w *blas.Weights
		switch {
		case t == blas.Float32:
			data := make([]float32, rows*length)
			if err = m.read(0, data); err == nil {
				p.Value = tensor.New(tensor.WithShape(shape...), tensor.WithBacking(data))
			}
		case t == m.typ:
			w, err = m.narrow(rows)
		default:
			some := min(rows, max(1, (4<<20)/length)) // 16 MiB
			buffer := make([]float32, some*length)
			w, err = blas.QuantizeRows(t, rows, length, some, func(first int) ([]float32, error) {
				data := buffer[:min(some, rows-first)*length]
				return data, m.read(int64(first*length), data)
			})
		}
		if err == nil && w != nil {
			err = p.SetNarrow(w)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
	}
	return nil
}

// loadNarrow loads a model whose weights become, or are, narrow.
func (r *Reader) loadNarrow(cfg nn.LMConfig, types string, place op.Place, opts []nn.Option) (*nn.LM, error) {
	lm := nn.NewLM(cfg, append(slices.Clone(opts), withoutValues)...)
	if err := lm.Err(); err != nil {
		return nil, err
	}
	if err := r.agrees(lm); err != nil {
		return nil, r.fail(err)
	}
	err := fill(lm, types, func(name string) matrix {
		t := r.tensors[name]
		m := matrix{shape: t.Shape, read: func(first int64, to []float32) error { return tensorfile.ReadPart(t, first, to) }}
		switch t.Dtype {
		case tensorfile.Float16:
			m.typ = blas.Float16
		case tensorfile.BFloat16:
			m.typ = blas.BFloat16
		}
		m.narrow = func(outputs int) (*blas.Weights, error) {
			data := make([]byte, t.Size)
			size.HugePages(data)
			at := 0
			err := t.File.Pieces(t.Offset, t.Size, func(piece []byte) error {
				at += copy(data[at:], piece)
				return nil
			})
			if err != nil {
				return nil, err
			}
			return blas.NewWeights(m.typ, outputs, len(data)/m.typ.BlockBytes()/outputs, data)
		}
		return m
	})
	if err == nil {
		err = toDevice(lm, place)
	}
	if err != nil {
		return nil, r.fail(err)
	}
	return lm, nil
}

// withoutValues makes a model whose weights have no values.
func withoutValues(o *build.Options) { o.Empty, o.Zeros = true, true }

var _ layer.Option = withoutValues
