package op

import (
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// GridScanInputs holds the operands of selective scans over the cells of a grid, in K directions at once. The grid is the one to three axes
// between batch and channels: (height, width) of an image, (depth, height, width) of a volume. Direction k has the channels from k·channels
// on, and the states from k·state on. All operands are in the order of the cells: nothing is gathered. Optional operands may be nil.
type GridScanInputs struct {
	U     *G.Node // (batch, grid…, channels), which all directions read, or (batch, grid…, K·channels)
	Delta *G.Node // (batch, grid…, K·channels)
	A     *G.Node // (K·channels, state)
	B, C  *G.Node // (batch, grid…, K·state)

	D         *G.Node // optional: (K·channels)
	DeltaBias *G.Node // optional: (K·channels)
}

// GridScanConfig are the options of scans over a grid.
type GridScanConfig struct {
	Orders        []Order // one for each of the K directions: the order in which it visits the cells
	DeltaSoftplus bool    // Δ = softplus(Delta + DeltaBias)
	Apart         bool    // the results are not added
}

// GridScan returns the sum of K selective scans over the cells of a grid, each in an order of its own: y (batch, grid…, channels). With
// cfg.Apart it returns their results beside each other, (batch, grid…, K·channels). For each batch b, direction k, channel d and state n, where
// o_i is the i-th cell that direction k visits:
//
//	Δ_i = Delta_{o_i} + DeltaBias_d, and softplus of this sum if cfg.DeltaSoftplus is set
//	h_i = exp(Δ_i A_dn) h_{i-1} + Δ_i B_{o_i,n} u_{o_i}
//	y_{o_i} = Σ_n C_{o_i,n} h_i + D_d u_{o_i}
//
// The kernels read and write the cells through the orders: no direction gets a copy of the image. The backward pass recomputes the states from
// checkpoints, as that of SelectiveScan does. Results are the same bit for bit for any GOMAXPROCS.
//
// Errors: no order; an order that is missing, has an error, or has another number of cells than the grid; channels of Delta that K does not
// divide; an operand that is missing, or of another type or shape than listed in GridScanInputs.
//
// Source: Liu et al., "VMamba: Visual State Space Model", 2024, whose SS2D it is with VMambaOrders.
func GridScan(in GridScanInputs, cfg GridScanConfig) (*G.Node, error) {
	const most = "channels or K·channels"
	c := newChecker("grid scan", "U", in.U)
	directions := len(cfg.Orders)
	if directions == 0 {
		c.errorf("Orders is empty, want an order for each direction")
		directions = 1
	}
	s := c.cells("U", in.U, most, 0)
	last := len(s) - 1
	all := c.like("Delta", in.Delta, s, "K·channels", 0)
	if all%directions != 0 {
		c.errorf("Delta has %d channels, want a multiple of the %d orders", all, directions)
	}
	f := gridScan[float32]{Batch: s[0], Cells: s[1:last].TotalSize(), Channels: all, OneU: s[last] != all,
		DeltaSoftplus: cfg.DeltaSoftplus, Merge: !cfg.Apart}
	if f.OneU && s[last] != all/directions {
		c.errorf("U has %d channels, want the %d of a direction or all %d of Delta", s[last], all/directions, all)
	}
	f.Orders = c.orders("Orders", "U", s, cfg.Orders...)
	f.State = c.required("A", in.A, "(K·channels, state)", all, 0)[1]
	c.like("B", in.B, s, "K·state", directions*f.State)
	c.like("C", in.C, s, "K·state", directions*f.State)
	c.optional("D", in.D, "(K·channels)", all)
	c.optional("DeltaBias", in.DeltaBias, "(K·channels)", all)
	y := s.Clone()
	if y[last] = all; f.Merge {
		y[last] /= directions
	}
	return c.apply1(f, gridScan[float64](f), y)
}

// like checks an operand that must be present, of the batch and grid of the shape s. size is its last axis, 0 for any. It returns the last axis.
func (c *checker) like(name string, n *G.Node, s tensor.Shape, last string, size int) int {
	want := s.Clone()
	want[len(want)-1] = size
	return c.required(name, n, "(batch, grid…, "+last+")", want...)[len(s)-1]
}

type gridScan[T kernel.Float] struct {
	Batch, Cells, Channels, State int // Channels of all directions
	OneU, DeltaSoftplus, Merge    bool
	Orders                        orders
}

// The operands are in the order of GridScanInputs.
func (f gridScan[T]) kernel(in []value[T]) *kernel.Scan[T] {
	return &kernel.Scan[T]{
		Batch: f.Batch, Length: f.Cells, Channels: f.Channels, State: f.State,
		U: in[0].Data, Delta: in[1].Data, A: in[2].Data,
		B: kernel.Projection[T]{Data: in[3].Data, Groups: f.Orders.count},
		C: kernel.Projection[T]{Data: in[4].Data, Groups: f.Orders.count},
		D: in[5].Data, DeltaBias: in[6].Data, Softplus: f.DeltaSoftplus,
		Orders: f.Orders.lists(), OneU: f.OneU, Merge: f.Merge,
	}
}

func (f gridScan[T]) Forward(in []value[T], out [][]T) { f.kernel(in).Forward(out[0], nil) }

func (f gridScan[T]) Backward(in []value[T], dout, grad [][]T) {
	f.kernel(in).Backward(dout[0], nil, &kernel.ScanGrad[T]{
		U: grad[0], Delta: grad[1], A: grad[2], B: grad[3], C: grad[4], D: grad[5], DeltaBias: grad[6],
	})
}

// On a device the operands are float32 in every precision, as those of SelectiveScan are.

func (f gridScan[T]) Fits(cuda.Precision) error { return stateFits(f.State) }

func (f gridScan[T]) onDevice(s *cuda.Stream, in []onDevice) (*cuda.GridScan[float32], error) {
	order, err := cuda.GridOrders(s, f.Orders.lists())
	return &cuda.GridScan[float32]{
		Batch: f.Batch, Cells: f.Cells, Channels: f.Channels / f.Orders.count, State: f.State, Directions: f.Orders.count, Order: order,
		U: in[0].Array, OneU: f.OneU, Merge: f.Merge, Delta: in[1].Array, A: in[2].Array,
		B: cuda.GridProjection[float32]{Data: in[3].Array, Step: f.State}, C: cuda.GridProjection[float32]{Data: in[4].Array, Step: f.State},
		D: in[5].Array, DeltaBias: in[6].Array, Softplus: f.DeltaSoftplus,
	}, err
}

func (f gridScan[T]) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	g, err := f.onDevice(s, in)
	if err != nil {
		return nil, err
	}
	return nil, g.Forward(s, out[0], array{})
}

func (f gridScan[T]) BackwardOn(s *cuda.Stream, _ cuda.Precision, in []onDevice, dout, grad []array, _ kept) error {
	g, err := f.onDevice(s, in)
	if err != nil {
		return err
	}
	return g.Backward(s, array{}, dout[0], &cuda.GridGrad[float32]{
		U: grad[0], Delta: grad[1], A: grad[2], B: cuda.GridProjection[float32]{Data: grad[3], Step: f.State},
		C: cuda.GridProjection[float32]{Data: grad[4], Step: f.State}, D: grad[5], DeltaBias: grad[6],
	})
}
