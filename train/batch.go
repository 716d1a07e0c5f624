package train

import (
	"encoding/binary"
	"fmt"
	"hash"
	"maps"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/size"
)

// Batch holds the inputs of a loss for one run of its graph.
//
// The trainer reads the tensors until the step ends and does not change them. Their elements are of tensor.Float32, Float64, Int, Int32,
// Int64, Uint8 or Bool.
type Batch struct {
	Values map[string]*tensor.Dense // by the names of Call.Input. All batches of a trainer have the same names, shapes and types

	// Weight is the weight of the batch in a mean over several batches: the number of examples, tokens or pixels that its loss is
	// the mean of. It is finite and at least 0. The batches of a step must not all have weight 0.
	Weight float64
}

// input is what all batches of a trainer have in common for one name.
type input struct {
	name  string
	dtype tensor.Dtype
	shape tensor.Shape
}

var inputTypes = []tensor.Dtype{tensor.Float32, tensor.Float64, tensor.Int, tensor.Int32, tensor.Int64, tensor.Uint8, tensor.Bool}

// inputs returns what the batch has, sorted by name.
func (b Batch) inputs() (all []input, err error) {
	for _, name := range slices.Sorted(maps.Keys(b.Values)) {
		v := b.Values[name]
		switch {
		case v == nil || v.Dtype().Type == nil:
			return nil, fmt.Errorf("its %s is missing, want a tensor with elements", name)
		case !slices.Contains(inputTypes, v.Dtype()):
			return nil, fmt.Errorf("its %s is of %v, want one of %v", name, v.Dtype(), inputTypes)
		case v.Dims() == 0 || v.Size() == 0:
			return nil, fmt.Errorf("its %s has shape %v, want at least one axis and one element", name, v.Shape())
		case !plain(v):
			return nil, fmt.Errorf("its %s is a view, want its elements row by row in memory (tensor.Dense.Materialize)", name)
		}
		all = append(all, input{name, v.Dtype(), v.Shape().Clone()})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("it has no values, want those of the loss's inputs")
	}
	return all, nil
}

// check returns an error unless the batch has exactly these inputs and a weight that can be added up.
func (b Batch) check(want []input) error {
	if !(b.Weight >= 0 && b.Weight <= math.MaxFloat32) { // so that no sum is infinite
		return fmt.Errorf("its Weight is %v, want a finite number of at least 0", b.Weight)
	}
	for _, in := range want {
		if b.Values[in.name] == nil {
			return fmt.Errorf("its %s is missing, want %v of %v as in the first batch", in.name, in.shape, in.dtype)
		}
	}
	all, err := b.inputs()
	if err != nil {
		return err
	}
	for i, in := range all {
		if len(all) > len(want) && !slices.ContainsFunc(want, func(w input) bool { return w.name == in.name }) {
			return fmt.Errorf("it has a value for %q, want only %v as in the first batch", in.name, names(want))
		}
		if len(all) == len(want) && (in.dtype != want[i].dtype || !in.shape.Eq(want[i].shape)) {
			return fmt.Errorf("its %s is %v of %v, want %v of %v as in the first batch", in.name, in.shape, in.dtype, want[i].shape, want[i].dtype)
		}
	}
	return nil
}

func names(of []input) (names []string) {
	for _, in := range of {
		names = append(names, in.name)
	}
	return names
}

func bytesOf(of []input) (all size.Bytes) {
	for _, in := range of {
		all = all.Plus(size.Of(in.dtype.Size(), in.shape...))
	}
	return all
}

// total returns the sum of the batches' weights over all ranks.
func total(batches []Batch, g *dist.Group) (sum float64, err error) {
	for _, b := range batches {
		sum += b.Weight
	}
	if sum, err = sumOver(g, sum); err == nil && sum <= 0 {
		err = fmt.Errorf("the weights of %d batches add up to 0, want more: Batch.Weight is the number of examples that the loss is the mean of", len(batches)*g.Size())
	}
	return sum, err
}

// hash adds all of a batch that inputs has accepted to a hash.
func (b Batch) hash(h hash.Hash) {
	fmt.Fprintf(h, "weight %x\n", math.Float64bits(b.Weight))
	for _, name := range slices.Sorted(maps.Keys(b.Values)) {
		v := b.Values[name]
		fmt.Fprintf(h, "%q %v %v\n", name, v.Dtype(), v.Shape())
		if ints, ok := v.Data().([]int); ok {
			hashInts(h, ints)
		} else if err := binary.Write(h, binary.LittleEndian, v.Data()); err != nil {
			panic(err) // these types have a size, and a hash has no errors
		}
	}
}
