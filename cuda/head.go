package cuda

import "errors"

// Head is the mean cross-entropy of the logits X·Weightᵀ, with activations of type T. It computes the logits in chunks of rows, of at most 2^28 logits, and with the gradients it computes those
// of a chunk while it has its logits.
type Head[T Activation] struct {
	Rows, In, Vocabulary int
	Ignore               int32     // the target of rows that do not count
	Precision            Precision // of the products

	X       Array[T]     // (rows, in)
	Weight  Array[T]     // (vocabulary, in)
	Targets Array[int32] // (rows)
}

// HeadGradients holds the gradients of the sum of a Head's losses. Free it once.
type HeadGradients struct {
	rows, n, m int            // of dx and of dweight
	both       Array[float32] // dx, then dweight
	state      Array[float32]
}

// Free frees the arrays.
func (g *HeadGradients) Free() {
	g.both.Free()
	g.state.Free()
	*g = HeadGradients{}
}

// headLogits is the number of a chunk's logits: 512 MiB of bfloat16. A step of 130M parameters with 8,192 tokens takes 0.4% longer with it than with one chunk, and 1.2% with
// half of it. It is a variable for tests.
var headLogits = 1 << 28

// padded returns the row stride of the logits, in elements. It makes a row a multiple of 16 bytes; tensor cores read other rows slowly.
func (h *Head[T]) padded() int { return (h.Vocabulary + 7) / 8 * 8 }

// chunk returns the number of rows of each chunk but the last, a multiple of 128. The chunks are about equal, since products of few rows do not use all of the device.
func (h *Head[T]) chunk() int {
	most := max(1, headLogits/h.padded())
	n := max(1, (h.Rows+most-1)/most)
	return min(h.Rows, ((h.Rows+n-1)/n+127)/128*128)
}

// isFew reports whether one kernel computes the losses and the gradients: for many rows, of few columns, and a small vocabulary.
func (h *Head[T]) isFew() bool {
	return h.Rows >= leastNarrowRows && h.Vocabulary <= 16 && h.In <= 64 && h.In%4 == 0 && (h.X.address|h.Weight.address)%16 == 0
}

// few queues the losses (rows) and, unless both is absent, the gradients. isFew must be true.
func (h *Head[T]) few(s *Stream, losses, both Array[float32]) error {
	const rows = 64 // of a block at a time
	g := grid{x: int64(min((h.Rows+rows-1)/rows, 4*s.device.multiprocessors)), threads: 256}
	n, m := h.Rows*h.In, h.Vocabulary*h.In
	var parts Array[float32]
	if !both.Absent() {
		var err error
		if parts, err = NewArray[float32](s, int(g.x)*m); err != nil {
			return err
		}
	}
	if err := s.run("cross_entropy", "head_few_"+typeName[T](), g.early(s), h.X.address, h.Weight.address, h.Targets.address, losses.address, both.address, parts.address,
		h.Rows, h.Vocabulary, h.In, h.Ignore); err != nil || both.Absent() {
		parts.Free()
		return err
	}
	return s.sum(nil, []partSum{sumOf(both.Slice(n, m), parts, int(g.x))}, parts)
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

// Forward queues loss (1), the mean over the rows that count. With keep, it also computes the gradients of a chunk while it has its logits, and returns them.
func (h *Head[T]) Forward(s *Stream, loss Array[float32], keep bool) (g *HeadGradients, err error) {
	if err := firstError(h.check(), expect("head", "loss", loss.n, 1), s.usable()); err != nil {
		return nil, err
	}
	var work, own temporaries
	defer work.free()
	few, room := h.isFew(), h.chunk()*h.padded()
	if few {
		room = 0
	}
	logits, state := take[T](s, &work, room, &err), take[float32](s, &own, CrossEntropyState(h.Rows), &err)
	n, m := h.Rows*h.In, h.Vocabulary*h.In
	var both Array[float32]
	if keep {
		both = take[float32](s, &own, n+m, &err)
	}
	if few && err == nil {
		err = h.few(s, part(state, h.Rows), both)
	}
	for from := 0; from < h.Rows && err == nil && !few; from += h.chunk() {
		rows := min(h.chunk(), h.Rows-from)
		x := h.X.Slice(from*h.In, rows*h.In)
		err = Multiply(s, h.Precision, rows, h.In, h.Vocabulary, x, h.Weight, logits, h.padded())
		switch {
		case err != nil:
		case !keep:
			err = entropyForward(s, from, rows, h.Rows, h.Vocabulary, h.padded(), h.Ignore, logits, h.Targets, state)
		default:
			err = firstError(
				entropyGradient(s, from, rows, h.Rows, h.Vocabulary, h.padded(), h.Ignore, logits, h.Targets, state),
				multiplyBackward(s, h.Precision, rows, h.In, h.Vocabulary, x, h.Weight, logits, h.padded(), both.Slice(from*h.In, rows*h.In), both.Slice(n, m), float32(min(from, 1))))
		}
	}
	if err == nil {
		err = entropyMean(s, h.Rows, h.Ignore, h.Targets, state, loss)
	}
	if err != nil || !keep {
		own.free()
		return nil, err
	}
	return &HeadGradients{h.Rows, n, m, both, state}, nil
}

// Scale queues the gradients dx (rows, in) and dweight (vocabulary, in) of the loss, from its gradient dloss (1).
func (g *HeadGradients) Scale(s *Stream, dloss, dx, dweight Array[float32]) error {
	if g == nil || g.state.Absent() {
		return errors.New("cuda: head: the gradients are missing, want what Forward returned")
	}
	if err := firstError(expect("head", "the gradients", g.both.n, g.n+g.m, "dloss", dloss.n, 1, "dx", dx.n, g.n, "dweight", dweight.n, g.m), s.usable()); err != nil {
		return err
	}
	if g.rows == 0 {
		return dweight.Fill(s, 0)
	}
	return s.run("cross_entropy", "entropy_scale", blocksOf((g.n+g.m+3)/4, 256).wait(s), g.both.address, g.state.address, dloss.address, dx.address, dweight.address, g.rows, g.n, g.m)
}
