package tensorfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gomamba/mamba/internal/size"
)

// Job is a tensor on file and the slice to read it into, which has as many elements.
type Job struct {
	From *Tensor
	To   any
}

// Fill reads tensors into weights, on all processors. To is a []float32 or []float64, and the elements are converted to its type. An
// element that is not a number, or is too large for the type, is an error; then some slices may be filled and others not.
func Fill(jobs []Job) error { return run(jobs, false) }

// Copy is like Fill, but the types must be the same, []int64 among them, and any bits are copied.
func Copy(jobs []Job) error { return run(jobs, true) }

func run(jobs []Job, exact bool) error {
	var tasks []func() error
	for _, j := range jobs {
		d, n, ok := dtypeOf(j.To)
		switch {
		case !ok || !exact && d == Int64:
			return fmt.Errorf("%s: cannot read into a %T", j.From.Name, j.To)
		case exact && d != j.From.Dtype || !exact && !j.From.Dtype.Float():
			return fmt.Errorf("%s is of %s, want %s", j.From.Name, j.From.Dtype, d)
		case int64(n)*j.From.Dtype.Size() != j.From.Size:
			return fmt.Errorf("%s has %d elements, want %d", j.From.Name, j.From.Size/j.From.Dtype.Size(), n)
		}
		switch to := j.To.(type) {
		case []float32:
			size.HugePages(to)
			tasks = split(tasks, j.From, to, floats[float32](exact))
		case []float64:
			size.HugePages(to)
			tasks = split(tasks, j.From, to, floats[float64](exact))
		case []int64:
			tasks = split(tasks, j.From, to, bits)
		}
	}
	errs := make([]error, len(tasks)) // the first in order is returned: the same for any number of processors
	var next atomic.Int64
	var failed atomic.Bool
	var done sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(tasks)) {
		done.Go(func() {
			for !failed.Load() {
				i := int(next.Add(1)) - 1
				if i >= len(tasks) {
					return
				}
				if errs[i] = tasks[i](); errs[i] != nil {
					failed.Store(true)
				}
			}
		})
	}
	done.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// split appends tasks that read a tensor in parts.
func split[T any](tasks []func() error, from *Tensor, to []T, decode func([]T, []byte, Dtype) (int, error)) []func() error {
	const chunk = 4 << 20 // elements: worth the cost of a task, and a fraction of a large embedding
	for first := 0; first < len(to); first += chunk {
		part := to[first:min(first+chunk, len(to))]
		tasks = append(tasks, func() error { return readElements(from, part, int64(first), decode) })
	}
	return tasks
}

// floats returns how floating-point elements are decoded.
func floats[T float32 | float64](exact bool) func(to []T, from []byte, d Dtype) (int, error) {
	if exact {
		return bits
	}
	return decode
}

// bits decodes elements of the same type.
func bits[T float32 | float64 | int64](to []T, from []byte, _ Dtype) (int, error) {
	_, err := binary.Decode(from, binary.LittleEndian, to)
	return 0, err
}

func readElements[T any](t *Tensor, data []T, first int64, decode func([]T, []byte, Dtype) (int, error)) error {
	width := t.Dtype.Size()
	at := 0
	err := t.File.Pieces(t.Offset+first*width, int64(len(data))*width, func(piece []byte) error {
		count := len(piece) / int(width)
		if i, err := decode(data[at:at+count], piece, t.Dtype); err != nil {
			return fmt.Errorf("element %d %w", first+int64(at+i), err)
		}
		at += count
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	return nil
}

// ReadPart reads len(to) elements of a tensor, from element first on, and converts them to float32. An element that is not a number is an error.
func ReadPart(t *Tensor, first int64, to []float32) error {
	if !t.Dtype.Float() {
		return fmt.Errorf("%s is of %s, want F32, F16, BF16 or F64", t.Name, t.Dtype)
	}
	return readElements(t, to, first, decode[float32])
}

// Bytes returns n bytes of a file from off on: a part of the mapping, which must not be closed then, if the file is mapped; otherwise a copy.
func Bytes(c Contents, off, n int64) (data []byte, isMapped bool, err error) {
	if data, ok := mappedBytes(c, off, n); ok {
		return data, true, nil
	}
	data = make([]byte, n)
	if got, err := c.ReadAt(data, off); got < len(data) {
		return nil, false, fmt.Errorf("cannot read %d bytes at %d: %w", n, off, err)
	}
	return data, false, nil
}

// Equal reports whether two tensors are the same, bit for bit.
func Equal(a, b *Tensor) (bool, error) {
	if a.Dtype != b.Dtype || !slices.Equal(a.Shape, b.Shape) {
		return false, nil
	}
	same := true
	at := b.Offset
	buffer := make([]byte, min(pieceSize, b.Size))
	err := a.File.Pieces(a.Offset, a.Size, func(piece []byte) error {
		other := buffer[:len(piece)]
		if _, err := b.File.ReadAt(other, at); err != nil {
			return err
		}
		same = same && bytes.Equal(piece, other)
		at += int64(len(piece))
		return nil
	})
	return same, err
}
