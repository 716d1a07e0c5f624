package op

import (
	"fmt"
	"math"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// ConvConfig are the options of a convolution over a grid. A list has one number for each axis of the grid, or one number for all axes. A nil
// list stands for the default.
type ConvConfig struct {
	Stride     []int // cells of x from one cell of the result to the next; default 1
	Padding    []int // cells of zeros before the first cell of x; default 0
	PaddingEnd []int // cells of zeros after the last cell of x; default Padding
	Dilation   []int // cells of x from one cell of the kernel to the next; default 1
	Groups     int   // parts of the channels that are convolved separately; default 1
	SiLU       bool  // apply silu(x) = x·sigmoid(x) to the result
}

// Conv returns the convolution of x with a kernel over a grid of one, two or three axes. x is (batch, cells…, channels), such as an image (batch,
// height, width, channels) or a volume (batch, depth, height, width, channels). The weight has the layout of PyTorch: (out, channels/groups,
// kernel…), with one size of the kernel for each axis of the grid. The bias is (out) or nil. For each cell o of the result and each k:
//
//	y_ok = Σ_j Σ_c weight_kcj · x_{o·Stride - Padding + j·Dilation, c} + bias_k, and silu of this sum if cfg.SiLU is set
//
// The sum is over the cells j of the kernel that lie inside of the grid, and over the channels c of the group of k. The result is (batch, cells…,
// out), with (cells + Padding + PaddingEnd - Dilation·(kernel-1) - 1) / Stride + 1 cells along each axis, rounded down.
//
// A convolution whose groups, channels and out are equal (depthwise) reads each number once from memory. All others are matrix products in the
// precision of the place. Their operand gathers the inputs of some cells at a time, so that it takes at most 2 MiB on the host and 256 MiB on a
// device whatever the size of the grid, or the inputs of 64 cells if these take more. A kernel of one cell with a stride of 1 gathers nothing.
// The backward pass gathers again, and recomputes the sums before silu.
//
// Errors: an operand that is missing, or of another type or shape; a list with another number of numbers, or a number out of range; groups that
// do not divide channels and out; a kernel that is larger than the grid with its padding.
func Conv(x, weight, bias *G.Node, cfg ConvConfig) (*G.Node, error) {
	c := newChecker("grid convolution", "x", x)
	s, axes := c.convGrid(x)
	f := gridConv[float32]{ConvShape: kernel.ConvShape{Batch: s[0], Channels: s[axes+1]}, SiLU: cfg.SiLU}
	end := cfg.set(c, &f.ConvShape, axes)
	if f.Channels%f.Groups != 0 {
		c.errorf("Groups is %d, want a number that divides the channels of x, %d", f.Groups, f.Channels)
	}
	w := c.kernel(weight, "(out, channels/groups, kernel…)", 0, f.Channels/f.Groups, axes)
	if f.Filters = w[0]; f.Filters%f.Groups != 0 {
		c.errorf("Groups is %d, want a number that divides the size of the first axis of weight, %d", f.Groups, f.Filters)
	}
	c.optional("bias", bias, "(out)", f.Filters)
	f.In, f.Kernel = threeAxes(s[1:axes+1], 1), threeAxes(w[2:], 1)
	for i := range f.Out {
		span, room := cells(f.Dilation[i], f.Kernel[i]-1), cells(f.In[i], 1)+f.Padding[i]+end[i]
		if span >= room {
			c.errorf("weight has %d cells along axis %d of the grid, which span %d, want at most the %d cells of x with their padding",
				f.Kernel[i], i+axes-3, span+1, room)
		}
		f.Out[i] = max(room-span-1, 0)/f.Stride[i] + 1
	}
	return c.apply1(f, gridConv[float64](f), gridShape(s[0], f.Out, axes, f.Filters))
}

// ConvTransposeConfig are the options of a transposed convolution. Its lists are those of a ConvConfig.
type ConvTransposeConfig struct {
	Stride        []int // cells of the result from one cell of x to the next; default 1
	Padding       []int // cells that are cut off at both ends of the result; default 0
	OutputPadding []int // cells that are added at the end of the result, less than Stride or Dilation; default 0
	Dilation      []int // cells of the result from one cell of the kernel to the next; default 1
	Groups        int   // parts of the channels that are convolved separately; default 1
}

// ConvTranspose returns the transpose of a convolution, as a map from the result of Conv to its x: each cell of x adds its multiple of the kernel
// to the cells of the result that lie Stride apart. The weight has the layout of PyTorch: (channels, out/groups, kernel…). The bias is (out) or
// nil. x is (batch, cells…, channels), with one to three axes of cells, and the result (batch, cells…, out), with
//
//	(cells - 1)·Stride - 2·Padding + Dilation·(kernel-1) + OutputPadding + 1
//
// cells along each axis. Memory and errors are those of Conv; and it is an error if the result has no cells along an axis.
func ConvTranspose(x, weight, bias *G.Node, cfg ConvTransposeConfig) (*G.Node, error) {
	c := newChecker("transposed convolution", "x", x)
	s, axes := c.convGrid(x)
	f := gridConv[float32]{ConvShape: kernel.ConvShape{Batch: s[0], Filters: s[axes+1]}, Transposed: true}
	added := cfg.set(c, &f.ConvShape, axes)
	if f.Filters%f.Groups != 0 {
		c.errorf("Groups is %d, want a number that divides the channels of x, %d", f.Groups, f.Filters)
	}
	w := c.kernel(weight, "(channels, out/groups, kernel…)", f.Filters, 0, axes)
	f.Channels = cells(w[1], f.Groups)
	c.optional("bias", bias, "(out)", f.Channels)
	f.Out, f.Kernel = threeAxes(s[1:axes+1], 1), threeAxes(w[2:], 1)
	for i := range f.In {
		n := cells(f.Out[i]-1, f.Stride[i]) - 2*f.Padding[i] + cells(f.Dilation[i], f.Kernel[i]-1) + added[i] + 1
		if n < 1 {
			c.errorf("Padding is %v, which leaves %d cells of the result along axis %d of the grid, want at least 1", cfg.Padding, n, i+axes-3)
		}
		f.In[i] = max(n, 1)
	}
	return c.apply1(f, gridConv[float64](f), gridShape(s[0], f.In, axes, f.Channels))
}

// convGrid checks an x that is a grid, and returns its shape and the number of its axes.
func (c *checker) convGrid(x *G.Node) (tensor.Shape, int) {
	axes := 2
	if c.err == nil {
		axes = min(max(len(x.Shape())-2, 1), 3)
	}
	return c.required("x", x, "(batch, cells…, channels) with one to three axes of cells", make([]int, axes+2)...), axes
}

// Err returns what is wrong with the options for grids of a number of axes, or nil.
func (cfg ConvConfig) Err(axes int) error {
	return convErr(axes, func(c *checker) { cfg.set(c, &kernel.ConvShape{}, axes) })
}

// set checks the options and copies them to a shape. It returns PaddingEnd.
func (cfg ConvConfig) set(c *checker, s *kernel.ConvShape, axes int) (end [3]int) {
	c.options(s, axes, cfg.Stride, cfg.Padding, cfg.Dilation, cfg.Groups)
	if cfg.PaddingEnd == nil {
		return s.Padding
	}
	return c.perAxis("PaddingEnd", cfg.PaddingEnd, axes, 0, 0)
}

// Err returns what is wrong with the options for grids of a number of axes, or nil.
func (cfg ConvTransposeConfig) Err(axes int) error {
	return convErr(axes, func(c *checker) { cfg.set(c, &kernel.ConvShape{}, axes) })
}

// set checks the options and copies them to a shape. It returns OutputPadding.
func (cfg ConvTransposeConfig) set(c *checker, s *kernel.ConvShape, axes int) (added [3]int) {
	c.options(s, axes, cfg.Stride, cfg.Padding, cfg.Dilation, cfg.Groups)
	added = c.perAxis("OutputPadding", cfg.OutputPadding, axes, 0, 0)
	for i, n := range added {
		if n > 0 && n >= max(s.Stride[i], s.Dilation[i]) {
			c.errorf("OutputPadding is %v, want less than Stride or Dilation", cfg.OutputPadding)
		}
	}
	return added
}

// convErr returns the error of a check of options.
func convErr(axes int, set func(c *checker)) error {
	if axes < 1 || axes > 3 {
		return fmt.Errorf("op: grid convolution: the grid has %d axes, want 1 to 3", axes)
	}
	c := &checker{op: "grid convolution"}
	set(c)
	return c.err
}

// options checks the options that all convolutions have, and copies them to a shape.
func (c *checker) options(s *kernel.ConvShape, axes int, stride, padding, dilation []int, groups int) {
	s.Stride, s.Padding, s.Dilation = c.perAxis("Stride", stride, axes, 1, 1), c.perAxis("Padding", padding, axes, 0, 0), c.perAxis("Dilation", dilation, axes, 1, 1)
	if groups < 0 || groups > mostConv {
		c.errorf("Groups is %d, want 1 to %d, or 0 for the default", groups, mostConv)
	}
	s.Groups = max(groups, 1)
}

// kernel checks the weight of a convolution, whose first two axes have the given sizes.
func (c *checker) kernel(weight *G.Node, names string, first, second, axes int) tensor.Shape {
	return c.required("weight", weight, names, append([]int{first, second}, make([]int, axes)...)...)
}

// mostConv is the largest number of an option, so that sums of some of them do not overflow.
const mostConv = min(1<<30, math.MaxInt/8)

// perAxis returns an option with one number for each of three axes. The numbers of the axes that the grid does not have are the default.
func (c *checker) perAxis(name string, list []int, axes, byDefault, least int) [3]int {
	switch len(list) {
	case 0:
		list = []int{byDefault}
		fallthrough
	case 1:
		list = []int{list[0], list[0], list[0]}[:axes]
	case axes:
	default:
		c.errorf("%s is %v, want one number, or one for each of the %d axes of the grid", name, list, axes)
		list = nil
	}
	for _, n := range list {
		if n < least || n > mostConv {
			c.errorf("%s is %v, want numbers from %d to %d", name, list, least, mostConv)
			list = nil
			break
		}
	}
	return threeAxes(list, byDefault)
}

// cells returns a product, or 2^50 if it is larger, or a quarter of the largest int. No machine has memory for as many cells, and sums of such numbers do not overflow.
func cells(n, each int) int {
	const most = min(1<<50, math.MaxInt/4)
	if each > 0 && n > most/each {
		return most
	}
	return n * each
}

// threeAxes returns the sizes of the last of three axes, and the others with the size n.
func threeAxes(sizes []int, n int) [3]int {
	three := [3]int{n, n, n}
	copy(three[3-len(sizes):], sizes)
	return three
}

func gridShape(batch int, cells [3]int, axes, channels int) tensor.Shape {
	return append(append(tensor.Shape{batch}, cells[3-axes:]...), channels)
}

// gridConv is the function of Conv and ConvTranspose.
type gridConv[T kernel.Float] struct {
	kernel.ConvShape
	Transposed, SiLU bool
}

func (f gridConv[T]) kernel(in []value[T]) *kernel.GridConv[T] {
	return &kernel.GridConv[T]{
		ConvShape: f.ConvShape, Transposed: f.Transposed, SiLU: f.SiLU, X: in[0].Data, Weight: in[1].Data, Bias: in[2].Data, Gemm: gemm[T](),
	}
}

func (f gridConv[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0]) }

func (f gridConv[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], grad[0], grad[1], grad[2])
}

func (f gridConv[T]) onDevice(p cuda.Precision, in []onDevice) *cuda.GridConv {
	return &cuda.GridConv{
		ConvShape: cuda.ConvShape(f.ConvShape), Transposed: f.Transposed, SiLU: f.SiLU, Precision: p,
		X: in[0].Array, Weight: in[1].Array, Bias: in[2].Array,
	}
}

// Fits implements operator.Limited.
func (f gridConv[T]) Fits(cuda.Precision) error {
	return cuda.ConvShape(f.ConvShape).Fits()
}

// Repeatable reports whether the convolution is depthwise.
func (f gridConv[T]) Repeatable() bool { return f.Groups == f.Channels && f.Groups == f.Filters }

func (f gridConv[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, _ bool) (kept, error) {
	return nil, f.onDevice(p, in).Forward(s, out[0])
}

func (f gridConv[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	return f.onDevice(p, in).Backward(s, dout[0], grad[0], grad[1], grad[2])
}
