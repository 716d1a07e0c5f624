package cuda

import (
	"fmt"
	"unsafe"
)

// ConvShape has the sizes of a convolution over a grid of three axes. Grids of fewer axes have the size 1 along the first axes.
type ConvShape struct {
	Batch, Channels, Filters, Groups int
	In, Out                          [3]int // cells of the grids with Channels and with Filters numbers a cell
	Kernel, Stride                   [3]int
	Padding                          [3]int // cells of zeros before the first of In
	Dilation                         [3]int
}

// GridConv is a convolution over a grid. op.Conv and op.ConvTranspose define it: Transposed exchanges the grids. With BF16 the products have
// operands of bfloat16; depthwise convolutions compute in float32.
type GridConv struct {
	ConvShape
	Transposed bool
	SiLU       bool // the sum goes through SiLU
	Precision  Precision

	X      Array[float32] // (batch, in…, channels); of a transposed convolution (batch, out…, filters)
	Weight Array[float32] // (filters, channels/groups, kernel…)
	Bias   Array[float32] // optional: (filters); of a transposed convolution (channels)
}

// gridConvArgs has the same fields as the kernels' struct GridConv (kernels/gridconv.cu).
type gridConvArgs struct {
	batch                                      int64
	channels, filters, groups, width, ones     int32
	in, out, kernel, stride, padding, dilation [3]int32
}

func (c *ConvShape) taps() int { return c.Kernel[0] * c.Kernel[1] * c.Kernel[2] }

func (c *ConvShape) depthwise() bool { return c.Groups == c.Channels && c.Groups == c.Filters }

// linear reports whether each cell of the result is the same linear map of one cell.
func (c *ConvShape) linear() bool {
	return c.taps() == 1 && c.Groups == 1 && c.In == c.Out && c.Stride == [3]int{1, 1, 1} && c.Padding == [3]int{}
}

// asLinear returns the convolution, which linear reports, of x.
func (c *GridConv) asLinear(x, bias Array[float32]) *Linear {
	return &Linear{Rows: c.cells(c.Out), In: c.Channels, Out: c.Filters, Precision: c.Precision, X: x, Weight: c.Weight, Bias: bias}
}

// cells returns the number of cells of grids of the sizes n.
func (c *ConvShape) cells(n [3]int) int { return count(c.Batch, n[0], n[1], n[2]) }

// biasColumns is the number of columns of ones for a bias. A product adds it so in less time than a kernel after the product.
const biasColumns = 3

// width returns the length of a row of columns, with some columns of ones: a multiple of eight, since cuBLAS has slow kernels for others.
func (c *ConvShape) width(ones int) int { return (c.taps()*c.Channels/c.Groups + ones + 7) / 8 * 8 }

// onesFor returns the number of columns of ones for a bias, which may be absent.
func onesFor(bias Array[float32]) int {
	if bias.Absent() {
		return 0
	}
	return biasColumns
}

// biases returns the number of numbers of a bias.
func (c *GridConv) biases() int {
	if c.Transposed {
		return c.Channels
	}
	return c.Filters
}

// lengths returns the lengths of x and y.
func (c *GridConv) lengths() (x, y int) {
	x, y = count(c.cells(c.In), c.Channels), count(c.cells(c.Out), c.Filters)
	if c.Transposed {
		return y, x
	}
	return x, y
}

// Fits returns an error that names a size that the kernels do not support.
func (c ConvShape) Fits() error {
	const most = 1 << 30
	if err := firstError(
		atLeast(0, "convolution", "Batch", c.Batch), atLeast(1, "convolution", "Channels", c.Channels, "Filters", c.Filters, "Groups", c.Groups),
	); err != nil {
		return err
	}
	if max(c.Channels, c.Filters) > most || c.Channels%c.Groups != 0 || c.Filters%c.Groups != 0 {
		return fmt.Errorf("cuda: convolution: Groups is %d, want a number that divides Channels, %d, and Filters, %d, which are at most 2^30", c.Groups, c.Channels, c.Filters)
	}
	for i := range 3 {
		if err := firstError(
			atLeast(1, "convolution", "In", c.In[i], "Out", c.Out[i], "Kernel", c.Kernel[i], "Stride", c.Stride[i], "Dilation", c.Dilation[i]),
			atLeast(0, "convolution", "Padding", c.Padding[i]),
		); err != nil {
			return err
		}
		if max(c.In[i], c.Padding[i], count(c.Out[i], c.Stride[i]), count(c.Kernel[i], c.Dilation[i])) > most {
			return fmt.Errorf("cuda: convolution: axis %d has In %d, Padding %d, Out %d with Stride %d and Kernel %d with Dilation %d, want at most 2^30 cells",
				i, c.In[i], c.Padding[i], c.Out[i], c.Stride[i], c.Kernel[i], c.Dilation[i])
		}
	}
	if n := count(c.Channels/c.Groups, c.Kernel[0], c.Kernel[1], c.Kernel[2]); n > most {
		return fmt.Errorf("cuda: convolution: a filter has %d weights, want at most 2^30", n)
	}
	return nil
}

// Fits is that of the ConvShape.
func (c *GridConv) Fits() error {
	if c == nil {
		return missing("convolution")
	}
	return c.ConvShape.Fits()
}

func (c *GridConv) check() error {
	if err := c.Fits(); err != nil {
		return err
	}
	if err := c.Precision.Err(); err != nil {
		return fmt.Errorf("cuda: convolution: %w", err)
	}
	x, _ := c.lengths()
	return firstError(
		expect("convolution", "X", c.X.n, x, "Weight", c.Weight.n, count(c.Filters, c.Channels/c.Groups, c.taps())),
		optional("convolution", "Bias", c.Bias, c.biases()),
	)
}

func (c *ConvShape) args(ones int) *gridConvArgs {
	a := &gridConvArgs{batch: int64(c.Batch), channels: int32(c.Channels), filters: int32(c.Filters), groups: int32(c.Groups), width: int32(c.width(ones)),
		ones: int32(ones)}
	for i := range 3 {
		a.in[i], a.out[i], a.kernel[i] = int32(c.In[i]), int32(c.Out[i]), int32(c.Kernel[i])
		a.stride[i], a.padding[i], a.dilation[i] = int32(c.Stride[i]), int32(c.Padding[i]), int32(c.Dilation[i])
	}
	return a
}

// Forward queues y, in the grid and with the channels that x does not have.
func (c *GridConv) Forward(s *Stream, y Array[float32]) error {
	if err := c.check(); err != nil {
		return err
	}
	_, n := c.lengths()
	if err := firstError(expect("convolution", "y", y.n, n), s.usable()); err != nil || n == 0 {
		return err
	}
	if c.SiLU && c.planes(c.X.address, c.Bias.address, y.address) {
		return c.depthwisePlanes(s, "silu", c.X, c.Bias, Array[float32]{}, y)
	}
	if err := c.sums(s, y); err != nil || !c.SiLU {
		return err
	}
	y = y.Slice(0, n)
	return Gate(s, SiLU, y, Array[float32]{}, y)
}

// sums queues y before SiLU.
func (c *GridConv) sums(s *Stream, y Array[float32]) error {
	if c.Transposed {
		return c.spread(s, c.X, c.Bias, y)
	}
	return c.correlate(s, c.X, c.Bias, y)
}

// Backward queues the gradients that are not absent, in the shapes of the operands, from the gradient dy of y. It computes the sums before SiLU
// again. Sums are added in a fixed order.
func (c *GridConv) Backward(s *Stream, dy, dx, dweight, dbias Array[float32]) (err error) {
	if err := c.check(); err != nil {
		return err
	}
	x, n := c.lengths()
	if err := firstError(
		expect("convolution", "dy", dy.n, n), s.usable(),
		optional("convolution", "dx", dx, x, "dweight", dweight, count(c.Filters, c.Channels/c.Groups, c.taps()), "dbias", dbias, c.biases()),
	); err != nil {
		return err
	}
	if n == 0 {
		for _, a := range []Array[float32]{dweight, dbias} {
			if err == nil && !a.Absent() {
				err = a.Fill(s, 0)
			}
		}
		return err
	}
	var work temporaries
	defer work.free()
	if c.SiLU {
		sum := take[float32](s, &work, n, &err)
		if err != nil {
			return err
		}
		if c.planes(c.X.address, c.Bias.address, dy.address) {
			err = c.depthwisePlanes(s, "slope", c.X, c.Bias, dy, sum)
		} else if err = c.sums(s, sum); err == nil {
			err = GateBackward(s, SiLU, sum, Array[float32]{}, dy, sum, Array[float32]{})
		}
		if err != nil {
			return err
		}
		dy = sum
	}
	if !dx.Absent() && !dweight.Absent() && c.planes(c.X.address, dy.address, dx.address) {
		return c.planesBackward(s, dy, dx, dweight, dbias)
	}
	if c.linear() && !c.Transposed {
		return c.asLinear(c.X, c.Bias).Backward(s, dy, dx, dweight, dbias)
	}
	in, out, toX := c.X, dy, c.spread
	if c.Transposed {
		in, out, toX = dy, c.X, c.correlate
	}
	sums := dbias // which a product for dweight computes too, if y is on Out
	if !dbias.Absent() && (c.Transposed || dweight.Absent()) {
		sums = Array[float32]{}
		err = ColumnSums(s, n/c.biases(), c.biases(), dy, c.biases(), dbias)
	}
	if err == nil && !dweight.Absent() {
		err = c.weightSums(s, in, out, dweight, sums)
	}
	if err == nil && !dx.Absent() {
		err = toX(s, dy, Array[float32]{}, dx)
	}
	return err
}

// kernel returns the name of the kernel of four channels at a time if it fits channels and addresses, else of one.
func (c *ConvShape) kernel(name string, channels int, addresses ...uintptr) string {
	together := uintptr(channels)
	for _, a := range addresses {
		together |= a / 4
	}
	if together%4 == 0 {
		return name + "_four"
	}
	return name + "_any"
}

// convThreads returns the grid of one thread for each channel, or each four channels, of some cells.
func convThreads(kernel string, cells, channels int) grid {
	if kernel[len(kernel)-4:] == "four" {
		channels /= 4
	}
	return blocksOf(cells*channels, 256)
}

// correlate queues y (batch, out…, filters) from x (batch, in…, channels).
func (c *GridConv) correlate(s *Stream, x, bias, y Array[float32]) error {
	switch {
	case c.depthwise() && c.planes(x.address, bias.address, y.address):
		return c.depthwisePlanes(s, "forward", x, bias, Array[float32]{}, y)
	case c.depthwise():
		return c.depthwiseMap(s, "forward", c.Out, x, bias, y)
	case c.linear():
		return c.asLinear(x, bias).Forward(s, y)
	case c.Precision == BF16:
		return correlate[BFloat16](c, s, x, bias, y)
	}
	return correlate[float32](c, s, x, bias, y)
}

func correlate[T Activation](c *GridConv, s *Stream, x, bias, y Array[float32]) (err error) {
	var work temporaries
	defer work.free()
	ones := onesFor(bias)
	width, filters := c.width(ones), c.Filters/c.Groups
	w, col := orderedWeight[T](c, s, &work, bias, &err), take[T](s, &work, c.piece(width)*width, &err)
	if err != nil {
		return err
	}
	return c.eachPiece(width, func(first, n, group int) error {
		if err := gather(c, s, x, col, first, n, group, ones); err != nil {
			return err
		}
		return Multiply(s, c.Precision, n, width, filters, col, part(w, group*filters*width), part(y, first*c.Filters+group*filters), c.Filters)
	})
}

// spread queues x (batch, in…, channels), the transpose of correlate applied to y, plus bias in each cell.
func (c *GridConv) spread(s *Stream, y, bias, x Array[float32]) error {
	switch {
	case c.depthwise():
		return c.depthwiseMap(s, "backward", c.In, y, bias, x)
	case c.Precision == BF16:
		return spread[BFloat16](c, s, y, bias, x)
	}
	return spread[float32](c, s, y, bias, x)
}

func spread[T Activation](c *GridConv, s *Stream, y, bias, x Array[float32]) (err error) {
	var work temporaries
	defer work.free()
	width, filters, size := c.width(0), c.Filters/c.Groups, c.Channels/c.Groups
	w, col := orderedWeight[T](c, s, &work, Array[float32]{}, &err), take[T](s, &work, c.piece(width)*width, &err)
	if err != nil {
		return err
	}
	a := c.args(0)
	name := c.kernel("conv_spread_"+typeName[T](), size, x.address, bias.address)
	axis := 1 // slabs of x are lines, or planes of a volume
	if max(c.In[0], c.Out[0]) > 1 {
		axis = 0
	}
	slab, cells := c.In[2], c.Out[2] // cells of a slab of In and of Out
	if axis == 0 {
		slab, cells = c.In[1]*c.In[2], c.Out[1]*c.Out[2]
	}
	written := 0 // slabs, by pieces before
	return c.eachPiece(width, func(first, n, group int) error {
		var temporary temporaries
		defer temporary.free()
		d := as[T](s, &temporary, y.Slice(first*c.Filters, n*c.Filters), &err)
		if err != nil {
			return err
		}
		if err := MatMul(s, c.Precision, n, width, filters, matrix(part(d, group*filters), c.Filters), matrix(part(w, group*filters*width), width), 0,
			matrix(col, width)); err != nil {
			return err
		}
		// The piece adds to the slabs that its cells read. Pieces before may have written the first of them; the others it writes.
		begin, last := first/cells, (first+n-1)/cells // slabs of Out
		reach := func(o, taps int) int {              // the slab of In, in its image, that a slab of Out reads with a tap
			return min(max(o%c.Out[axis]*c.Stride[axis]-c.Padding[axis]+taps*c.Dilation[axis], 0), c.In[axis])
		}
		from := min(begin/c.Out[axis]*c.In[axis]+reach(begin, 0), written)
		to := last/c.Out[axis]*c.In[axis] + min(reach(last, c.Kernel[axis]-1)+1, c.In[axis])
		if (first+n)%(cells*c.Out[axis]) == 0 { // the end of an image
			to = (last/c.Out[axis] + 1) * c.In[axis]
		}
		to = max(to, written)
		for add, slabs := range [][2]int{{written, to}, {from, written}} {
			if wide := (slabs[1] - slabs[0]) * slab; wide > 0 {
				if err := s.run("gridconv", name, convThreads(name, wide, size), unsafe.Pointer(a), col.address, bias.address, x.address,
					slabs[0]*slab, wide, first, n, int32(group), int32(add)); err != nil {
					return err
				}
			}
		}
		if group == c.Groups-1 {
			written = to
		}
		return nil
	})
}

// weightSums queues the gradient of the weight, from x (batch, in…, channels) and y (batch, out…, filters), of which one is a gradient, and the sums of the columns
// of y, unless they are absent.
func (c *GridConv) weightSums(s *Stream, x, y, dweight, sums Array[float32]) error {
	switch {
	case c.depthwise():
		return c.depthwiseWeight(s, x, y, dweight, sums)
	case c.Precision == BF16:
		return weightSums[BFloat16](c, s, x, y, dweight, sums)
	}
	return weightSums[float32](c, s, x, y, dweight, sums)
}

func weightSums[T Activation](c *GridConv, s *Stream, x, y, dweight, sums Array[float32]) (err error) {
	var work temporaries
	defer work.free()
	ones := onesFor(sums)
	width, filters, size := c.width(ones), c.Filters/c.Groups, c.Channels/c.Groups
	sum, col := take[float32](s, &work, c.Filters*width, &err), take[T](s, &work, c.piece(width)*width, &err)
	if err != nil {
		return err
	}
	if err := c.eachPiece(width, func(first, n, group int) error {
		var temporary temporaries
		defer temporary.free()
		d := as[T](s, &temporary, y.Slice(first*c.Filters, n*c.Filters), &err)
		if err != nil {
			return err
		}
		if err := gather(c, s, x, col, first, n, group, ones); err != nil {
			return err
		}
		return MatMul(s, c.Precision, filters, width, n, transposed(part(d, group*filters), c.Filters), matrix(col, width), float32(min(first, 1)),
			matrix(part(sum, group*filters*width), width))
	}); err != nil {
		return err
	}
	none := Array[float32]{}
	if err := convOrder(s, sum, none, dweight, c.Filters, c.taps(), size, width, c.taps()*size); err != nil || sums.Absent() {
		return err
	}
	return convOrder(s, part(sum, c.taps()*size), none, sums, c.Filters, 1, 1, width, 1)
}

// orderedWeight returns the weight as (filters, width), in the order of the columns, with a bias for the columns of ones unless it is absent.
func orderedWeight[T Activation](c *GridConv, s *Stream, work *temporaries, bias Array[float32], err *error) Array[T] {
	width, size := c.width(onesFor(bias)), c.Channels/c.Groups
	w := take[T](s, work, c.Filters*width, err)
	if *err == nil {
		*err = convOrder(s, c.Weight, bias, w, c.Filters, size, c.taps(), size*c.taps(), width)
	}
	return w
}

// convOrder queues y (n, ystride), the transposes of the matrices (rows, columns) of x (n, xstride), and after each of them the parts of a number of bias.
func convOrder[T Activation](s *Stream, x, bias Array[float32], y Array[T], n, rows, columns, xstride, ystride int) error {
	return s.run("gridconv", "conv_order_"+typeName[T](), blocksOf(n*ystride, 256), x.address, bias.address, y.address, n, rows, columns, xstride, ystride)
}

// columnsLimit is the largest number of elements of a matrix of columns, unless 64 rows have more. A test lowers it.
var columnsLimit = 64 << 20

// piece returns the number of cells of Out whose columns are gathered at a time.
func (c *ConvShape) piece(width int) int {
	return min(max(columnsLimit/width, 64), c.cells(c.Out))
}

// eachPiece calls do for consecutive pieces of the cells of Out, and for each group.
func (c *ConvShape) eachPiece(width int, do func(first, n, group int) error) error {
	cells, most := c.cells(c.Out), c.piece(width)
	for first := 0; first < cells; first += most {
		for group := range c.Groups {
			if err := do(first, min(most, cells-first), group); err != nil {
				return err
			}
		}
	}
	return nil
}

// gather queues the matrix of columns of n cells of Out from first on.
func gather[T Activation](c *GridConv, s *Stream, x Array[float32], col Array[T], first, n, group, ones int) error {
	width := c.width(ones)
	across := min(width/4, 256)
	rows := 8 // of a thread
	g := grid{x: int64((n + 256/across*rows - 1) / (256 / across * rows)), y: int64((width/4 + across - 1) / across), threads: 256 / across * across}
	name := c.kernel("conv_columns_"+typeName[T](), c.Channels/c.Groups, x.address)
	return s.run("gridconv", name, g, unsafe.Pointer(c.args(ones)), x.address, col.address, first, n, int32(group), int32(across), int32(rows))
}

// planes reports whether the kernels of depthwise.cu fit: a depthwise convolution of planes that keeps their size, with a kernel of 3 by 3, and arrays at the
// addresses that begin at multiples of four numbers.
func (c *GridConv) planes(addresses ...uintptr) bool {
	usual := ConvShape{
		Batch: c.Batch, Channels: c.Channels, Filters: c.Channels, Groups: c.Channels, In: c.In, Out: c.In,
		Kernel: [3]int{1, 3, 3}, Stride: [3]int{1, 1, 1}, Padding: [3]int{0, 1, 1}, Dilation: [3]int{c.Dilation[0], 1, 1},
	}
	return c.ConvShape == usual && !c.Transposed && count(c.In[2], c.Channels) < 1<<30 && c.kernel("", c.Channels, addresses...) == "_four"
}

// planeTile is how the kernels of depthwise.cu and depthwiseasync.cu cut planes into tiles: rows of a tile, threads across the channels and along the columns of a
// block, and blocks across the channels, across the columns and along the rows.
type planeTile struct{ rows, across, columns, chunks, groups, tiles int }

// tile returns tiles for threads of some channels, in blocks of at most 256 threads, of which at most lanes are across the channels. Of tiles that the device has
// room for some of at a time it takes those that take the least time: a tile's time is that of its columns and rows, with three more rows to begin with.
func (c *ConvShape) tile(vector, lanes, room int) (best planeTile) {
	all := c.Channels / vector
	t := planeTile{chunks: (all + lanes - 1) / lanes}
	t.across = (all + t.chunks - 1) / t.chunks
	least := 0
	for _, t.rows = range []int{56, 28, 14} {
		t.rows = min(max(t.rows, (c.In[1]+65534)/65535), c.In[1])
		t.tiles = (c.In[1] + t.rows - 1) / t.rows
		most := 256 / t.across
		for n := most; n > most/2; n-- {
			t.columns = max(min(n, c.In[2]), 2)
			t.groups = (c.In[2] + t.columns - 1) / t.columns
			blocks := count(c.Batch, c.In[0], t.tiles, t.groups, t.chunks)
			if time := count((blocks+room-1)/room, t.rows+3, t.columns); best.rows == 0 || time < least {
				least, best = time, t
			}
		}
	}
	return best
}

// The rows that the kernels of depthwiseasync.cu have in shared memory.
const forwardStages, backwardStages = 6, 4

// depthwisePlanes queues a kernel of depthwise.cu or depthwiseasync.cu: "forward" and "silu" write y, and "slope" the gradient of the sum before SiLU, from the
// gradient dy of y.
func (c *GridConv) depthwisePlanes(s *Stream, kernel string, x, bias, dy, y Array[float32]) (err error) {
	var work temporaries
	defer work.free()
	taps := c.depthwiseTaps(s, &work, &err)
	if err != nil {
		return err
	}
	t := c.tile(4, 32, 4*s.device.multiprocessors)
	planes := int64(c.Batch * c.In[0])
	if s.device.kernels >= 80 {
		g := grid{x: planes * int64(t.groups*t.chunks), y: int64(t.tiles), threads: t.across * t.columns, shared: 16 * forwardStages * (t.columns + 2) * t.across}
		if kernel == "slope" {
			g.shared += 16 * forwardStages * g.threads // dy
		}
		return s.run("depthwiseasync", "depthwise_async_"+kernel, g, unsafe.Pointer(c.args(0)), x.address, taps.address, bias.address, dy.address, y.address,
			int32(t.rows), int32(t.across))
	}
	g := blocksOf(c.In[2]*c.Channels/4, 128)
	g.x, g.y = g.x*planes, int64(t.tiles)
	return s.run("depthwise", "depthwise_"+kernel, g, unsafe.Pointer(c.args(0)), x.address, taps.address, bias.address, dy.address, y.address, int32(t.rows))
}

// planesBackward queues the gradients of a convolution that planes reports, from the gradient dy of its sum.
func (c *GridConv) planesBackward(s *Stream, dy, dx, dweight, dbias Array[float32]) (err error) {
	var work temporaries
	defer work.free()
	taps := c.depthwiseTaps(s, &work, &err)
	room := 2 * s.device.multiprocessors // blocks
	file, kernel, vector, t := "depthwise", "depthwise_backward", 2, c.tile(2, 48, room)
	shared := 4 * vector * t.across * t.columns
	if s.device.kernels >= 80 {
		file, kernel, vector, t = "depthwiseasync", "depthwise_async_backward", 4, c.tile(4, 32, room)
		shared = 2 * 16 * backwardStages * (t.columns + 2) * t.across
	}
	n := min(count(c.Batch, c.In[0], t.tiles, t.groups), max(room/t.chunks, 1))
	parts := take[float32](s, &work, n*10*c.Channels, &err)
	if err != nil {
		return err
	}
	g := grid{x: int64(t.chunks), y: int64(n), threads: t.columns * t.across, shared: shared}
	if err := s.run(file, kernel, g, unsafe.Pointer(c.args(0)), c.X.address, taps.address, dy.address, dx.address, parts.address, int32(t.rows),
		int32(t.across)); err != nil {
		return err
	}
	return s.sumParts(tapSums(parts, n, 9, c.Channels, dweight, dbias))
}

// depthwiseTaps returns the weight as (kernel…, channels).
func (c *GridConv) depthwiseTaps(s *Stream, work *temporaries, err *error) Array[float32] {
	taps := take[float32](s, work, c.taps()*c.Channels, err)
	if *err == nil {
		*err = convOrder(s, c.Weight, Array[float32]{}, taps, 1, c.Channels, c.taps(), taps.n, taps.n)
	}
	return taps
}

// depthwiseMap queues y, whose grid has the sizes n, with the kernel of a direction.
func (c *GridConv) depthwiseMap(s *Stream, direction string, n [3]int, x, bias, y Array[float32]) (err error) {
	var work temporaries
	defer work.free()
	taps := c.depthwiseTaps(s, &work, &err)
	if err != nil {
		return err
	}
	name := c.kernel("conv_depthwise_"+direction, c.Channels, x.address, y.address, bias.address)
	return s.run("gridconv", name, convThreads(name, c.cells(n), c.Channels), unsafe.Pointer(c.args(0)), x.address, taps.address, bias.address, y.address)
}

func (c *GridConv) depthwiseWeight(s *Stream, x, y, dweight, sums Array[float32]) (err error) {
	var work temporaries
	defer work.free()
	cells := c.cells(c.Out)
	each := max(256, (cells+255)/256) // cells of a partial sum
	n := (cells + each - 1) / each
	parts := take[float32](s, &work, n*(c.taps()+1)*c.Channels, &err)
	if err != nil {
		return err
	}
	g := grid{x: int64((c.Channels + 31) / 32), y: int64(c.taps() + 1), z: int64(n), threads: 256}
	if err := s.run("gridconv", "conv_depthwise_weight", g, unsafe.Pointer(c.args(0)), x.address, y.address, parts.address, each); err != nil {
		return err
	}
	return s.sumParts(tapSums(parts, n, c.taps(), c.Channels, dweight, sums))
}
