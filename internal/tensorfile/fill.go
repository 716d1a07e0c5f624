package tensorfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
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
	type task struct {
		Job
		first, n int64 // elements
	}
	const chunk = 4 << 20 // elements: enough to be worth a task, and a large embedding is many of them
	var tasks []task
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
		switch data := j.To.(type) {
		case []float32:
			hugePages(data)
		case []float64:
			hugePages(data)
		}
		for first := int64(0); first < int64(n); first += chunk {
			tasks = append(tasks, task{j, first, min(chunk, int64(n)-first)})
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
				if errs[i] = tasks[i].read(tasks[i].first, tasks[i].n, exact); errs[i] != nil {
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

// read reads n elements from the given one on.
func (j Job) read(first, n int64, exact bool) error {
	switch data := j.To.(type) {
	case []float32:
		return readElements(j.From, data[first:first+n], first, floats[float32](exact))
	case []float64:
		return readElements(j.From, data[first:first+n], first, floats[float64](exact))
	case []int64:
		return readElements(j.From, data[first:first+n], first, bits)
	}
	panic("tensorfile: " + j.From.Name + " is of a type that was not checked")
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
