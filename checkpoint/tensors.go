package checkpoint

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/nn"
)

const (
	embedding = "backbone.embeddings.weight"
	head      = "lm_head.weight"
)

// canonical returns the name that a tensor of the original layout has in the Hugging Face one; the others are the same.
func canonical(name string) string {
	if name == "backbone.embedding.weight" {
		return embedding
	}
	return name
}

// want is a tensor that a model needs.
type want struct {
	name  string
	shape []int
}

// lmTensors returns what a language model consists of, without making it.
func lmTensors(c nn.LMConfig) []want {
	model, inner := c.DModel, inner(c.Config)
	wants := []want{{embedding, []int{c.Vocab, model}}}
	for i := range c.NLayer {
		add := func(name string, shape ...int) {
			wants = append(wants, want{fmt.Sprintf("backbone.layers.%d.%s", i, name), shape})
		}
		add("norm.weight", model)
		add("mixer.A_log", inner, c.DState)
		add("mixer.D", inner)
		add("mixer.in_proj.weight", 2*inner, model)
		if c.Bias {
			add("mixer.in_proj.bias", 2*inner)
		}
		add("mixer.conv1d.weight", inner, 1, c.DConv)
		if !c.NoConvBias {
			add("mixer.conv1d.bias", inner)
		}
		add("mixer.x_proj.weight", c.DtRank+2*c.DState, inner)
		add("mixer.dt_proj.weight", inner, c.DtRank)
		add("mixer.dt_proj.bias", inner)
		add("mixer.out_proj.weight", model, inner)
		if c.Bias {
			add("mixer.out_proj.bias", model)
		}
	}
	wants = append(wants, want{"backbone.norm_f.weight", []int{model}})
	if c.UntiedHead {
		wants = append(wants, want{head, []int{c.Vocab, model}})
	}
	return wants
}

// misfit is what is wrong between a model and the files.
type misfit struct{ missing, superfluous, misshapen []string }

// compare holds tensors against what is wanted. Superfluous are those that no want names and that superfluous says are.
func compare(tensors map[string]*entry, wants []want, superfluous func(name string) bool) error {
	var m misfit
	wanted := make(map[string]bool, len(wants))
	for _, w := range wants {
		wanted[w.name] = true
		e := tensors[w.name]
		switch {
		case e == nil:
			m.missing = append(m.missing, w.name+" "+shapeString(w.shape))
		case !slices.Equal(e.shape, w.shape):
			m.misshapen = append(m.misshapen, fmt.Sprintf("%s is %s, want %s", w.name, shapeString(e.shape), shapeString(w.shape)))
		case e.dtype.size() == 0:
			m.misshapen = append(m.misshapen, fmt.Sprintf("%s is of %s, want F32, F16, BF16 or F64", w.name, e.dtype))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		if !wanted[name] && superfluous(name) {
			m.superfluous = append(m.superfluous, name+" "+shapeString(tensors[name].shape))
		}
	}
	return m.err()
}

func (m misfit) err() error {
	n := len(m.missing) + len(m.superfluous) + len(m.misshapen)
	if n == 0 {
		return nil
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%d tensors do not fit:", n)
	for _, part := range []struct {
		what  string
		lines []string
	}{{"missing", m.missing}, {"superfluous", m.superfluous}, {"misshapen", m.misshapen}} {
		for _, line := range part.lines {
			fmt.Fprintf(&s, "\n\t%s: %s", part.what, line)
		}
	}
	return fmt.Errorf("%s", s.String())
}

func shapeString(shape []int) string {
	return strings.ReplaceAll(fmt.Sprint(tensor.Shape(shape)), ",)", ")")
}

// job is a tensor on file and where it is to go.
type job struct {
	from *entry
	to   *tensor.Dense
}

// fill reads tensors, on all processors.
func fill(jobs []job) error {
	type task struct {
		job
		first, n int64 // elements
	}
	const chunk = 4 << 20 // elements: enough to be worth a task, and a large embedding is many of them
	var tasks []task
	for _, j := range jobs {
		total := j.from.size / j.from.dtype.size()
		for first := int64(0); first < total; first += chunk {
			tasks = append(tasks, task{j, first, min(chunk, total-first)})
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
				if errs[i] = tasks[i].read(tasks[i].to, tasks[i].first, tasks[i].n); errs[i] != nil {
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
func (j job) read(to *tensor.Dense, first, n int64) error {
	switch data := to.Data().(type) {
	case []float32:
		return readElements(j.from, data, first, n)
	case []float64:
		return readElements(j.from, data, first, n)
	}
	return fmt.Errorf("%s: the weight is of %v, want float32 or float64", j.from.name, to.Dtype())
}

func readElements[T float32 | float64](e *entry, data []T, first, n int64) error {
	width := e.dtype.size()
	at := first
	err := e.file.pieces(e.offset+first*width, n*width, func(piece []byte) error {
		count := int64(len(piece)) / width
		if i, err := decode(data[at:at+count], piece, e.dtype); err != nil {
			return fmt.Errorf("element %d %w", at+int64(i), err)
		}
		at += count
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", e.name, err)
	}
	return nil
}

// equal reports whether two tensors are the same, bit for bit.
func equal(a, b *entry) (bool, error) {
	if a.dtype != b.dtype || !slices.Equal(a.shape, b.shape) {
		return false, nil
	}
	same := true
	at := b.offset
	buffer := make([]byte, min(pieceSize, b.size))
	err := a.file.pieces(a.offset, a.size, func(piece []byte) error {
		other := buffer[:len(piece)]
		if _, err := b.file.ReadAt(other, at); err != nil {
			return err
		}
		same = same && bytes.Equal(piece, other)
		at += int64(len(piece))
		return nil
	})
	return same, err
}
