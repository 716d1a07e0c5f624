package operator

import (
	"fmt"
	"runtime"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/work"
)

// Narrow is a matrix in a type of blas.Weights: a Gorgonia value for weights of models that are not trained. Only some operators take it, as a
// weight, and they have no gradients then. To Gorgonia it is a matrix of float32.
type Narrow struct {
	onPlace
	weights *blas.Weights

	there *cuda.Weights // on a device
	undo  runtime.Cleanup
	wide  cuda.Array[float32]
}

// NewNarrow returns the value of weights on the host.
func NewNarrow(w *blas.Weights) *Narrow {
	return &Narrow{onPlace: onPlace{shape: tensor.Shape{w.Outputs(), w.Inputs()}}, weights: w}
}

// On returns the value at a place on a device, with a copy there. Numbers of BFloat16, Float16 and Q8_0 stay as they are, and those of Q4_0 and Q5_0 become
// Q8_0, which is exact. Other types are rounded to Q8_0.
func (n *Narrow) On(p Place) (*Narrow, error) {
	w := n.weights
	if w.Type() == blas.Float32 {
		return nil, fmt.Errorf("is of %v, want a narrower type on a device", w.Type())
	}
	to := &Narrow{onPlace: onPlace{p, n.shape}, weights: w}
	err := p.Do(func(s *cuda.Stream) (err error) {
		if to.there, err = upload(s, w); err == nil {
			to.undo = own(p.context, to, to.there.Free)
		}
		return err
	})
	return to, err
}

// Free frees the copy that On made, without the garbage collector. Call it if no graph has the value.
func (n *Narrow) Free() {
	n.place.Do(func(*cuda.Stream) error { // an error says that the device is closed, with all of its memory
		n.undo.Stop()
		n.there.Free()
		return nil
	})
}

// upload copies weights to a device, in the order of cuda.NewWeights.
func upload(s *cuda.Stream, w *blas.Weights) (*cuda.Weights, error) {
	t, scale := cuda.WeightInt8, 2 // bytes of a block's scale
	switch w.Type() {
	case blas.BFloat16:
		t, scale = cuda.WeightBF16, 0
	case blas.Float16:
		t, scale = cuda.WeightF16, 0
	default:
		var err error
		if w, err = w.Int8(); err != nil {
			return nil, err
		}
	}
	size := w.Type().BlockBytes()
	rows, blocks := w.Outputs(), w.Inputs()/w.Type().Block()
	data := make([]byte, rows*blocks*size)
	scales := data[rows*blocks*(size-scale):]
	work.ParallelRange(rows, max(1, (1<<16)/w.Inputs()), func(from, to int) {
		for i := from; i < to; i++ {
			row := w.RowBytes(i)
			if scale == 0 {
				copy(data[i*len(row):], row)
				continue
			}
			for b := range blocks {
				block := row[b*size : (b+1)*size]
				copy(scales[scale*(i*blocks+b):], block[:scale])
				copy(data[(size-scale)*(i*blocks+b):], block[scale:])
			}
		}
	})
	runtime.KeepAlive(w) // and so its rows
	return cuda.NewWeights(s, t, rows, w.Inputs(), data)
}

// OnDevice returns the copy on the device, nil on the host.
func (n *Narrow) OnDevice() *cuda.Weights { return n.there }

// Wide returns the numbers in float32 on the device. The first call makes this copy, so it must not be captured. Use it inside the context's Do.
func (n *Narrow) Wide(s *cuda.Stream) (cuda.Array[float32], error) {
	if n.wide.Absent() {
		a, err := cuda.NewArray[float32](s, n.shape.TotalSize())
		if err == nil {
			err = cuda.Widen(s, n.there, a)
		}
		if err != nil {
			a.Free()
			return cuda.Array[float32]{}, err
		}
		n.wide = a
		own(n.place.context, n, a.Free)
	}
	return n.wide, nil
}

// IsNarrow reports whether a node's value is a Narrow.
func IsNarrow(n *G.Node) bool {
	_, ok := n.Value().(*Narrow)
	return ok
}

// Weights returns the matrix.
func (n *Narrow) Weights() *blas.Weights { return n.weights }

func (n *Narrow) MemSize() uintptr    { return uintptr(n.weights.Bytes()) }
func (n *Narrow) Dtype() tensor.Dtype { return tensor.Float32 }
func (n *Narrow) Data() any           { return nil }
func (n *Narrow) Type() hm.Type       { return typeOf(tensor.Float32, n.shape) }
func (n *Narrow) String() string      { return fmt.Sprintf("%v of %v", n.shape, n.weights.Type()) }

// Format implements fmt.Formatter.
func (n *Narrow) Format(s fmt.State, _ rune) { fmt.Fprint(s, n.String()) }

// ToHost returns nothing: the matrix has no tensor.
func (n *Narrow) ToHost() (*tensor.Dense, error) { return nil, nil }

// HostChanged does nothing: the matrix does not change.
func (n *Narrow) HostChanged() {}

// Average returns an error: the matrix does not change.
func (n *Narrow) Average(G.Value, float64, float64) error {
	return fmt.Errorf("is of %v, want float32", n.weights.Type())
}

// TakesNarrow is a function that takes a Narrow as an operand.
type TakesNarrow interface {
	// TakesNarrow reports whether operand i may be a Narrow.
	TakesNarrow(i int) bool
}

// ofNarrow returns a value for operand i of the operator as a Narrow, nil if it is none.
func (o *Operator) ofNarrow(i int, v any) (*Narrow, error) {
	n, ok := v.(*Narrow)
	if !ok {
		return nil, nil
	}
	if f, ok := o.function.(TakesNarrow); !ok || !f.TakesNarrow(i) {
		return nil, fmt.Errorf("is of %v, want float32: only products and embeddings take narrow weights", n.weights.Type())
	}
	return n, nil
}

// notTrained returns the error of a gradient of operand i, which is narrow.
func (o *Operator) notTrained(i int, w *blas.Weights) error {
	return fmt.Errorf("%s is of %v, want float32: a model of narrow weights is not trained", o.in[i].name, w.Type())
}
