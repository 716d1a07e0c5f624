package cuda

import "errors"

// Head is the mean cross-entropy of the logits X·Weightᵀ, with activations of type T. It computes the logits in chunks of rows of at most 2 GiB, so a long text does not need
// memory for all of them. With a vocabulary of at most 2,048, all rows are one chunk.
type Head[T Activation] struct {
	Rows, In, Vocabulary int
	Ignore               int32     // the target of rows that do not count
	Precision            Precision // of the products

	X       Array[T]     // (rows, in)
	Weight  Array[T]     // (vocabulary, in)
	Targets Array[int32] // (rows)
}

// HeadKept holds the values of a Head's forward pass that its backward pass needs. Free it once.
type HeadKept[T Activation] struct {
	logits Array[T] // of all rows, if they are one chunk
	state  Array[float32]
}

// Free frees the arrays.
func (k *HeadKept[T]) Free() {
	k.logits.Free()
	k.state.Free()
	*k = HeadKept[T]{}
}

// headBytes is the size of a chunk's logits. It is a variable for tests.
var headBytes = 2 << 30

// padded returns the row stride of the logits, in elements. It makes a row a multiple of 16 bytes; tensor cores read other rows slowly.
func (h *Head[T]) padded() int { return (h.Vocabulary + 7) / 8 * 8 }

// chunk returns the number of rows of a chunk: all, or a multiple of 64.
func (h *Head[T]) chunk() int {
	if h.Vocabulary <= smallVocabulary {
		return h.Rows
	}
	return min(h.Rows, max(1, headBytes/int(size[T]())/h.padded()/64)*64)
}

func (h *Head[T]) check() error {
	if h == nil {
		return missing("head")
	}
	return firstError(
		h.Precision.Err(), atLeast(0, "head", "Rows", h.Rows), atLeast(1, "head", "In", h.In, "Vocabulary", h.Vocabulary),
		expect("head", "X", h.X.n, count(h.Rows, h.In), "Weight", h.Weight.n, count(h.Vocabulary, h.In), "Targets", h.Targets.n, h.Rows),
	)
}

// each calls f with each chunk of the rows: its first row, the number of its rows, and their part of X.
func (h *Head[T]) each(f func(from, n int, x Array[T]) error) error {
	for from, chunk := 0, h.chunk(); from < h.Rows; from += chunk {
		n := min(chunk, h.Rows-from)
		if err := f(from, n, h.X.Slice(from*h.In, n*h.In)); err != nil {
			return err
		}
	}
	return nil
}

// Forward queues loss (1), the mean over the rows that count. With keep, it returns the values that Backward needs: the logits, or if there are several chunks, which Backward then computes
// again, sums over them.
func (h *Head[T]) Forward(s *Stream, loss Array[float32], keep bool) (_ *HeadKept[T], err error) {
	if err := firstError(h.check(), expect("head", "loss", loss.n, 1), s.usable()); err != nil {
		return nil, err
	}
	k := new(HeadKept[T])
	defer func() {
		if err != nil || !keep {
			k.Free()
		}
	}()
	if k.logits, err = NewArray[T](s, h.chunk()*h.padded()); err != nil {
		return nil, err
	}
	if k.state, err = NewArray[float32](s, CrossEntropyState(h.Rows)); err != nil {
		return nil, err
	}
	if err = h.each(func(from, n int, x Array[T]) error {
		if err := Multiply(s, h.Precision, n, h.In, h.Vocabulary, x, h.Weight, k.logits, h.padded()); err != nil {
			return err
		}
		return entropyForward(s, from, n, h.Rows, h.Vocabulary, h.padded(), h.Ignore, k.logits, h.Targets, k.state)
	}); err == nil {
		err = entropyMean(s, h.Rows, h.Ignore, h.Targets, k.state, loss)
	}
	if err != nil || !keep {
		return nil, err
	}
	if h.chunk() < h.Rows {
		k.logits.Free()
		k.logits = Array[T]{}
	}
	return k, nil
}

// Backward queues the gradients dx (rows, in) and dweight (vocabulary, in), from the gradient dloss (1) of the loss and the values that Forward kept. It overwrites
// them, so it can be called once.
func (h *Head[T]) Backward(s *Stream, k *HeadKept[T], dloss, dx, dweight Array[float32]) error {
	if k == nil {
		return errors.New("cuda: head: the kept values are missing, want what Forward kept")
	}
	if err := h.check(); err != nil {
		return err
	}
	if err := firstError(
		expect("head", "the kept state", k.state.n, CrossEntropyState(h.Rows), "dloss", dloss.n, 1, "dx", dx.n, count(h.Rows, h.In), "dweight", dweight.n, count(h.Vocabulary, h.In)),
		optional("head", "the kept logits", k.logits, h.chunk()*h.padded()), s.usable(),
	); err != nil {
		return err
	}
	if h.Rows == 0 {
		return dweight.Fill(s, 0)
	}
	logits := k.logits
	if logits.Absent() {
		var err error
		if logits, err = NewArray[T](s, h.chunk()*h.padded()); err != nil {
			return err
		}
		defer logits.Free()
	}
	return h.each(func(from, n int, x Array[T]) error {
		if k.logits.Absent() {
			if err := Multiply(s, h.Precision, n, h.In, h.Vocabulary, x, h.Weight, logits, h.padded()); err != nil {
				return err
			}
		}
		if err := entropyBackward(s, from, n, h.Rows, h.Vocabulary, h.padded(), h.Ignore, logits, h.Targets, k.state, dloss); err != nil {
			return err
		}
		return multiplyBackward(s, h.Precision, n, h.In, h.Vocabulary, x, h.Weight, logits, h.padded(), dx.Slice(from*h.In, n*h.In), dweight, float32(min(from, 1)))
	})
}
