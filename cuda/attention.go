package cuda

import (
	"errors"
	"fmt"
	"math"
	"unsafe"
)

// Attention is causal attention with several heads. op.Attention defines it. Only the scores of one tile of queries with one tile of keys
// exist at a time, so memory is linear in the length. With a window, so is the time. What a step does not see never affects its result, not
// even a NaN.
type Attention struct {
	Batch, Length, Channels, Heads int     // Channels is that of all heads together; a head has at most 256 elements
	Window                         int     // number of steps that a step sees, itself included; 0 for all
	Base                           float64 // base of the rotary positions' frequencies; 0 for none
	// Precision is that of the products of whole tiles; FP16x3 computes them in float32. On a device without the tensor cores for it, for a head of more than 128 elements, and
	// for a single step, they are computed in float32. Scores, probabilities and sums are float32 in any case.
	Precision Precision

	Q, K, V Array[float32] // (batch, length, channels); the heads are side by side along the channels
	Context Array[float32] // optional, for a Window of at least 2: (batch, window-1, 2·channels + 1); rows of a key, a value, and 1 or 0
	Start   Array[uint8]   // optional: (batch, length): a new sequence starts where it is not 0
}

// AttentionGrad has the arrays for the gradients of an Attention's operands, in their shapes. A gradient that is not wanted is absent.
type AttentionGrad struct{ Q, K, V, Context Array[float32] }

// attentionArgs has the same fields as the kernels' struct Attention (kernels/attention.cuh).
type attentionArgs struct {
	batch, length, heads, dim, window, before, vector int64
	q, k, v, first, y, lse, dy, inner, dq, dk, dv     uintptr
	scale, scale2                                     float32
	bad                                               uintptr
}

// aroundArgs has the same fields as the kernels' struct Around (kernels/attention.cu).
type aroundArgs struct {
	batch, length, heads, dim, window, before                               int64
	base                                                                    float64
	q, k, v, context, start, first, angles, y, lse, next, dy, dnext, dk, dv uintptr
	inner, gradK, gradV, gradContext, parts                                 uintptr
	splits                                                                  int64
	scale2                                                                  float32
	_                                                                       uint32
}

// attentionTile has the sizes of the kernels of one head dimension. The sources have the same numbers.
type attentionTile struct {
	name                             string // of the file, and the end of the kernels' names
	dim, perThread, columns, threads int
}

// attentionTiles are tried in order. The first that fits the head dimension and the device's shared memory is used.
var attentionTiles = []attentionTile{
	{"32", 32, 8, 64, 128}, {"64", 64, 8, 64, 128}, {"128", 128, 8, 32, 128}, {"128small", 128, 4, 16, 128}, {"256", 256, 4, 16, 64},
}

// mmaTile has the sizes of the kernels on tensor cores of one precision and head dimension. A block has 4 warps. Each has rows of 16 times
// tiles in the forward pass, and 16 in the backward pass.
type mmaTile struct {
	name                          string
	precision                     Precision
	dim, tiles, columns, backward int // columns of a tile in either pass
}

var mmaTiles = []mmaTile{
	{"bf16_32", BF16, 32, 2, 64, 64}, {"bf16_64", BF16, 64, 2, 64, 64}, {"bf16_128", BF16, 128, 2, 32, 32},
	{"tf32_32", TF32, 32, 2, 32, 32}, {"tf32_64", TF32, 64, 2, 32, 32}, {"tf32_128", TF32, 128, 1, 32, 16},
}

// shared returns the bytes of shared memory of a kernel that holds so many rows, and two times two matrices of columns.
func (t *mmaTile) shared(rows, columns int) int {
	row := 4 * t.dim
	if t.precision == BF16 {
		row = 2 * t.dim
	}
	return (rows+4*columns)*(row+16) + 16*columns
}

// maxHead is the largest head dimension.
const maxHead = 256

func (t *attentionTile) rows() int { return t.perThread * t.threads / 16 }

// shared returns the bytes of shared memory of a kernel that holds so many matrices of rows, two of columns, and a tile of scores.
func (t *attentionTile) shared(own int) int {
	return 4 * ((own*t.rows()+2*t.columns)*(t.dim+4) + t.rows()*(t.columns+4))
}

func (a *Attention) dim() int { return a.Channels / a.Heads }

// before returns the number of steps in the context.
func (a *Attention) before() int {
	if a.Context.Absent() {
		return 0
	}
	return a.Window - 1
}

func (a *Attention) steps() int { return a.before() + a.Length }

func (a *Attention) contextLen() int { return count(a.Batch, a.Window-1, count(2, a.Channels)+1) }

// AttentionKept holds the values of a forward pass that the backward pass needs: a copy of y, and log2 of what the softmax of each row of each
// head divides by. Free it once.
type AttentionKept struct{ y, sums Array[float32] }

// Free frees the arrays.
func (k *AttentionKept) Free() {
	k.y.Free()
	k.sums.Free()
	*k = AttentionKept{}
}

// keptLen returns the number of rows of all heads.
func (a *Attention) keptLen() int { return count(a.Batch, a.Heads, a.Length) }

// Fits returns an error that names the first size or option that no kernel supports.
func (a *Attention) Fits() error {
	const what = "attention"
	if a == nil {
		return missing(what)
	}
	if err := a.Precision.Err(); err != nil {
		return fmt.Errorf("cuda: attention: %w", err)
	}
	if err := atLeast(1, what, "Batch", a.Batch, "Length", a.Length, "Channels", a.Channels, "Heads", a.Heads); err != nil {
		return err
	}
	switch dim := a.dim(); {
	case a.Channels%a.Heads != 0:
		return fmt.Errorf("cuda: attention: Heads is %d, want a number that divides the channels, %d", a.Heads, a.Channels)
	case dim > maxHead:
		return fmt.Errorf("cuda: attention: Channels/Heads is %d, want at most %d", dim, maxHead)
	case a.Window < 0:
		return fmt.Errorf("cuda: attention: Window is %d, want at least 1, or 0 for all steps", a.Window)
	case !(a.Base == 0 || a.Base > 1 && !math.IsInf(a.Base, 1)):
		return fmt.Errorf("cuda: attention: Base is %v, want above 1, or 0 for none", a.Base)
	case a.Base > 0 && dim%2 != 0:
		return fmt.Errorf("cuda: attention: Base needs an even head dimension, and Channels/Heads is %d", dim)
	case max(a.Length, a.Window) > 1<<29:
		return fmt.Errorf("cuda: attention: Length is %d and Window %d, want at most 2^29", a.Length, a.Window)
	}
	return nil
}

func (a *Attention) check() error {
	const what = "attention"
	if err := a.Fits(); err != nil {
		return err
	}
	if !a.Context.Absent() && a.Window < 2 {
		return fmt.Errorf("cuda: attention: there is a Context, and Window is %d, want at least 2", a.Window)
	}
	n := a.len()
	return firstError(
		expect(what, "Q", a.Q.n, n, "K", a.K.n, n, "V", a.V.n, n),
		optional(what, "Context", a.Context, a.contextLen(), "Start", a.Start, count(a.Batch, a.Length)),
	)
}

func (a *Attention) len() int { return count(a.Batch, a.Length, a.Channels) }

// checkNext returns an error if the context after the last step, or its gradient, does not fit.
func (a *Attention) checkNext(name string, next Array[float32]) error {
	if !next.Absent() && a.Window < 2 {
		return fmt.Errorf("cuda: attention: there is a %s, and Window is %d, want at least 2", name, a.Window)
	}
	return optional("attention", name, next, a.contextLen())
}

// attending is a call of Forward or Backward.
type attending struct {
	*Attention
	stream *Stream
	work   temporaries
	tiles  attentionArgs
	around aroundArgs
	mma    *mmaTile // for the kernels on tensor cores, or nil
}

// begin takes memory for the first visible steps and the angles, if any are needed, and queues their computation.
func (a *Attention) begin(s *Stream) (*attending, error) {
	scale := 1 / math.Sqrt(float64(a.dim()))
	c := &attending{Attention: a, stream: s}
	c.tiles = attentionArgs{
		batch: int64(a.Batch), length: int64(a.Length), heads: int64(a.Heads), dim: int64(a.dim()), window: int64(a.Window), before: int64(a.before()),
		scale: float32(scale), scale2: float32(scale * math.Log2E),
	}
	c.around = aroundArgs{
		batch: int64(a.Batch), length: int64(a.Length), heads: int64(a.Heads), dim: int64(a.dim()), window: int64(a.Window), before: int64(a.before()),
		base: a.Base, q: a.Q.address, k: a.K.address, v: a.V.address, context: a.Context.address, start: a.Start.address, scale2: float32(scale * math.Log2E),
	}
	const threads = 1024
	var err error
	g := grid{threads: threads}
	if !a.Context.Absent() || !a.Start.Absent() {
		c.around.first = take[int32](s, &c.work, a.Batch*a.Length, &err).address
		g.x = int64(a.Batch)
	}
	if a.Base != 0 {
		n := a.steps() * (a.dim() / 2)
		c.around.angles = take[float32](s, &c.work, 2*n, &err).address
		g.x += blocksOf(n, threads).x
	}
	c.tiles.first = c.around.first
	if err == nil {
		err = c.run("prepare", g)
	}
	for i := range mmaTiles {
		t := &mmaTiles[i]
		if t.precision == a.Precision && a.dim() <= t.dim && a.Length > 1 && s.device.kernels >= 80 &&
			max(t.shared(64*t.tiles, t.columns), t.shared(128, t.backward)) <= s.device.shared {
			c.mma = t
			break
		}
	}
	if c.mma == nil || err != nil {
		return c, err
	}
	bad := take[int32](s, &c.work, a.Batch*a.Heads, &err)
	if err != nil {
		return c, err
	}
	c.tiles.bad = bad.address
	return c, bad.Fill(s, 0)
}

// run queues a kernel of kernels/attention.cu, which may have arguments of its own. It does nothing for a grid without blocks.
func (c *attending) run(name string, g grid, args ...any) error {
	if g.x == 0 {
		return nil
	}
	return c.stream.run("attention", "attention_"+name, g, append([]any{unsafe.Pointer(&c.around)}, args...)...)
}

// rowGrid returns a grid with a block for each row.
func rowGrid(rows int) grid { return grid{x: int64(rows), threads: 256} }

// tile queues a kernel of tiles. over is the number of rows, and own the number of matrices of rows that the kernel holds.
func (c *attending) tile(name string, over, own int) error {
	if t := c.mma; t != nil {
		rows, columns := 64*t.tiles, t.columns
		if own == 2 {
			rows, columns = 64, t.backward
		}
		g := grid{x: int64(c.Batch * c.Heads), y: int64((over + rows - 1) / rows), threads: 128, shared: t.shared(own*rows, columns)}
		return c.stream.run("attention"+t.name+"mma", "attention_"+name+"_"+t.name, g, unsafe.Pointer(&c.tiles))
	}
	for _, t := range attentionTiles {
		if c.dim() <= t.dim && t.shared(own) <= c.stream.device.shared {
			g := grid{x: int64(c.Batch * c.Heads), y: int64((over + t.rows() - 1) / t.rows()), threads: t.threads, shared: t.shared(own)}
			return c.stream.run("attention"+t.name, "attention_"+name+"_"+t.name, g, unsafe.Pointer(&c.tiles))
		}
	}
	return fmt.Errorf("cuda: attention: a head of %d elements needs %d bytes of shared memory for a block, and the device has %d",
		c.dim(), attentionTiles[len(attentionTiles)-1].shared(own), c.stream.device.shared)
}

// gather returns the address of x as the tiles take it: (batch, steps, width), after the rows of the context from element offset of a row on,
// rotated if turn is not 0. That is x itself if there is nothing to do. For tensor cores the result is packed, times factor.
func (c *attending) gather(x Array[float32], context bool, offset, turn int, factor float32) (uintptr, error) {
	context = context && !c.Context.Absent()
	if c.Base == 0 {
		turn = 0
	}
	if c.mma == nil && !context && turn == 0 {
		return x.address, nil
	}
	steps, with := c.Length, 0
	if context {
		steps, with = c.steps(), 1
	}
	rows := c.Batch * steps
	var err error
	if c.mma == nil {
		to := take[float32](c.stream, &c.work, rows*c.Channels, &err)
		if err != nil {
			return 0, err
		}
		return to.address, c.run("gather", rowGrid(rows), x.address, with, offset, turn, to.address)
	}
	var to uintptr
	if n := rows * c.Heads * c.mma.dim; c.mma.precision == BF16 {
		to = take[BFloat16](c.stream, &c.work, n, &err).address
	} else {
		to = take[float32](c.stream, &c.work, n, &err).address
	}
	if err != nil {
		return 0, err
	}
	return to, c.run("pack_"+c.mma.precision.String(), rowGrid(rows), x.address, with, offset, turn, to, c.mma.dim, factor, c.tiles.bad)
}

// gatherAll sets the operands of the tiles. dy may be absent.
func (c *attending) gatherAll(dy Array[float32]) (err error) {
	for _, o := range []struct {
		to      *uintptr
		x       Array[float32]
		context bool
		offset  int
		turn    int
		factor  float32
	}{
		{&c.tiles.q, c.Q, false, 0, 1, c.tiles.scale2}, {&c.tiles.k, c.K, true, 0, 1, 1}, {&c.tiles.v, c.V, true, c.Channels, 0, 1}, {&c.tiles.dy, dy, false, 0, 0, 1},
	} {
		if o.x.Absent() {
			continue
		}
		if *o.to, err = c.gather(o.x, o.context, o.offset, o.turn, o.factor); err != nil {
			return err
		}
	}
	return nil
}

// align tells the tiles whether all rows begin at multiples of 16 bytes.
func (c *attending) align() {
	t := &c.tiles
	if t.dim%4 == 0 && (t.q|t.k|t.v|t.y|t.dy|t.dq|t.dk|t.dv)%16 == 0 {
		t.vector = 1
	}
}

// Forward queues y (batch, length, channels) and, unless it is absent, next (batch, window-1, 2·channels + 1), the Context of the steps after the
// last. With keep, it returns the values that Backward needs.
func (a *Attention) Forward(s *Stream, y, next Array[float32], keep bool) (*AttentionKept, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	if err := firstError(expect("attention", "y", y.n, a.len()), a.checkNext("next", next), s.usable()); err != nil {
		return nil, err
	}
	var work temporaries
	var err error
	k := new(AttentionKept)
	if keep {
		k.sums, k.y = take[float32](s, &work, a.keptLen(), &err), take[float32](s, &work, a.len(), &err)
	}
	if err == nil {
		err = a.forward(s, y, next, k.sums)
	}
	if err == nil && keep {
		err = k.y.copy(s, y.Slice(0, a.len()))
	}
	if err != nil || !keep {
		work.free()
		return nil, err
	}
	return k, nil
}

func (a *Attention) forward(s *Stream, y, next, sums Array[float32]) error {
	c, err := a.begin(s)
	defer c.work.free()
	if err != nil {
		return err
	}
	c.tiles.y, c.tiles.lse = y.address, sums.address
	c.around.y, c.around.lse, c.around.next = y.address, sums.address, next.address
	if a.Length == 1 {
		err = c.step()
	} else if err = c.gatherAll(Array[float32]{}); err == nil {
		c.align()
		err = c.tile("forward", a.Length, 1)
	}
	if err != nil || next.Absent() {
		return err
	}
	return c.run("next", rowGrid(a.Batch*(a.Window-1)))
}

// step queues y for a length of 1. The keys of a head are shared by several blocks if there are few heads.
func (c *attending) step() error {
	const perBlock = 128 // keys; 16 for each warp
	keys, heads := c.steps(), c.Batch*c.Heads
	splits := max(1, min((keys+perBlock-1)/perBlock, 4*c.stream.device.multiprocessors/heads))
	c.around.splits = int64(splits)
	if splits > 1 {
		var err error
		c.around.parts = take[float32](c.stream, &c.work, splits*heads*(c.dim()+2), &err).address
		if err != nil {
			return err
		}
	}
	name := "step_8"
	switch {
	case c.dim() <= 64:
		name = "step_2"
	case c.dim() <= 128:
		name = "step_4"
	}
	if err := c.run(name, grid{x: int64(c.Heads), y: int64(c.Batch), z: int64(splits), threads: 256}); err != nil || splits == 1 {
		return err
	}
	return c.run("join", rowGrid(heads))
}

// Backward queues the gradients of the operands. Its inputs are the values that Forward kept, and the gradients of y and of next, each of which
// may be absent. It writes every element of grad's arrays; the gradient of a mark in the Context is 0. Two runs on the same operands
// give the same gradients, bit for bit.
func (a *Attention) Backward(s *Stream, k *AttentionKept, dy, dnext Array[float32], grad *AttentionGrad) error {
	if err := a.check(); err != nil {
		return err
	}
	if k == nil {
		return errors.New("cuda: attention: the kept values are missing, want what Forward kept")
	}
	if grad == nil {
		return missing("gradients of attention")
	}
	n := a.len()
	if err := firstError(
		expect("attention", "kept y", k.y.n, n, "kept sums", k.sums.n, a.keptLen()), optional("attention", "dy", dy, n), a.checkNext("dnext", dnext),
		optional("attention", "the gradient of Q", grad.Q, n, "the gradient of K", grad.K, n, "the gradient of V", grad.V, n),
	); err != nil {
		return err
	}
	if !grad.Context.Absent() && a.Context.Absent() {
		return fmt.Errorf("cuda: attention: there is a gradient of Context, and no Context")
	}
	if err := firstError(optional("attention", "the gradient of Context", grad.Context, a.contextLen()), s.usable()); err != nil {
		return err
	}
	c, err := a.begin(s)
	defer c.work.free()
	if err != nil {
		return err
	}
	context, turned := !a.Context.Absent(), a.Base != 0
	result := func(separate bool, grad Array[float32]) Array[float32] {
		if separate {
			return take[float32](s, &c.work, a.Batch*a.steps()*a.Channels, &err)
		}
		return grad
	}
	dk, dv := result(context || turned, grad.K), result(context, grad.V)
	dq := grad.Q
	if turned && !dq.Absent() {
		dq = take[float32](s, &c.work, n, &err)
	}
	inner := take[float32](s, &c.work, a.keptLen(), &err)
	if err != nil {
		return err
	}
	c.tiles.lse, c.tiles.inner = k.sums.address, inner.address
	c.tiles.dq, c.tiles.dk, c.tiles.dv = dq.address, dk.address, dv.address
	c.around.y, c.around.dy, c.around.inner, c.around.dnext = k.y.address, dy.address, inner.address, dnext.address
	c.around.dk, c.around.dv = dk.address, dv.address
	c.around.gradK, c.around.gradV, c.around.gradContext = grad.K.address, grad.V.address, grad.Context.address
	if dy.Absent() {
		for _, d := range []Array[float32]{grad.Q, dk, dv} {
			if err := d.Fill(s, 0); err != nil {
				return err
			}
		}
	} else if err := c.tilesBackward(dy, dq, grad); err != nil {
		return err
	}
	if !context && !turned && dnext.Absent() {
		return nil
	}
	return c.run("finish", rowGrid(a.Batch*a.steps()))
}

// tilesBackward queues the gradients of the tiles' operands. dq is absent if it is not wanted, and else the gradient of Q, or room for it
// before it is rotated back.
func (c *attending) tilesBackward(dy, dq Array[float32], grad *AttentionGrad) error {
	bits := 32 // of the gradient in the products, so that dy·y cancels where it should
	if c.mma != nil {
		bits = map[Precision]int{BF16: 16, TF32: 19}[c.mma.precision]
	}
	if err := c.run("inner", grid{x: blocksOf(c.keptLen(), 8).x, threads: 256}, bits); err != nil {
		return err
	}
	if err := c.gatherAll(dy); err != nil {
		return err
	}
	c.align()
	if c.tiles.dk|c.tiles.dv != 0 {
		if err := c.tile("keys", c.steps(), 2); err != nil {
			return err
		}
	}
	if dq.Absent() {
		return nil
	}
	if err := c.tile("queries", c.Length, 2); err != nil || c.Base == 0 {
		return err
	}
	return c.run("gather", rowGrid(c.Batch*c.Length), dq.address, 0, 0, -1, grad.Q.address)
}
