package op

import (
	"gonum.org/v1/gonum/blas"
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/kernel"
)

// SS2DInputs holds the operands of a two-dimensional selective scan with the projections of its parameters, in K directions. The grid is the
// one to three axes between batch and channels.
type SS2DInputs struct {
	X      *G.Node // (batch, grid…, channels): after the convolution and its activation
	XProj  *G.Node // (K, rank + 2·state, channels): r, B and C of each direction, in this order
	DtProj *G.Node // (K, channels, rank)
	DtBias *G.Node // (K, channels)
	ALog   *G.Node // (K·channels, state): A = -exp(ALog)
	D      *G.Node // (K·channels)
}

// SS2DConfig are the options of SS2D.
type SS2DConfig struct {
	Orders []Order // one for each of the K directions: the order in which it visits the cells
}

// SS2D returns the sum of K selective scans over the cells of a grid, whose Δ, B and C are made of the cells, computed by one operator. For each
// direction k and cell:
//
//	r, B, C = X·XProj_kᵀ
//	Δ       = softplus(r·DtProj_kᵀ + DtBias_k)
//
// The result y (batch, grid…, channels) is that of Linear and GridScan with these operands, but the machine holds none of the values between
// them.
//
// Errors: those of GridScan; an operand that is missing, or of another type or shape than listed in SS2DInputs.
//
// Source: Liu et al., "VMamba: Visual State Space Model", 2024, section 4.2.
func SS2D(in SS2DInputs, cfg SS2DConfig) (*G.Node, error) {
	c := newChecker("SS2D", "X", in.X)
	directions := len(cfg.Orders)
	if directions == 0 {
		c.errorf("Orders is empty, want an order for each direction")
		directions = 1
	}
	s := c.cells("X", in.X, "channels", 0)
	last := len(s) - 1
	f := ss2d[float32]{Batch: s[0], Cells: s[1:last].TotalSize(), Channels: s[last], Orders: c.orders("Orders", "X", s, cfg.Orders...)}
	f.State = c.required("ALog", in.ALog, "(K·channels, state)", directions*f.Channels, 0)[1]
	f.Rank = c.required("DtProj", in.DtProj, "(K, channels, rank)", directions, f.Channels, 0)[2]
	c.required("XProj", in.XProj, "(K, rank + 2·state, channels)", directions, f.Rank+2*f.State, f.Channels)
	c.required("DtBias", in.DtBias, "(K, channels)", directions, f.Channels)
	c.required("D", in.D, "(K·channels)", directions*f.Channels)
	return c.apply1(f, ss2d[float64](f), s)
}

// ss2d is the function of SS2D. Its operands are X, ALog, DtProj, XProj, DtBias, D.
type ss2d[T kernel.Float] struct {
	Batch, Cells, Channels, State, Rank int
	Orders                              orders
}

// On the host.

// hostSS2D is an SS2D on the host with the values between its parts.
type hostSS2D[T kernel.Float] struct {
	ss2d[T]
	in        []value[T]
	gemm      kernel.Gemm[T]
	rbc, b, c []T
	kernel    *kernel.Scan[T]
}

func (f ss2d[T]) part() int { return f.Rank + 2*f.State }

// host computes r, B, C and Δ.
func (f ss2d[T]) host(in []value[T]) *hostSS2D[T] {
	rows, k := f.Batch*f.Cells, f.Orders.count
	columns, all := k*f.part(), k*f.Channels
	h := &hostSS2D[T]{ss2d: f, in: in, gemm: gemm[T](), rbc: make([]T, rows*columns), b: make([]T, rows*k*f.State), c: make([]T, rows*k*f.State)}
	h.gemm(blas.NoTrans, blas.Trans, rows, columns, f.Channels, 1, in[0].Data, f.Channels, in[3].Data, f.Channels, 0, h.rbc, columns)
	delta := make([]T, rows*all)
	for d := range k {
		h.gemm(blas.NoTrans, blas.Trans, rows, f.Channels, f.Rank, 1, h.rbc[d*f.part():], columns, in[2].Data[d*f.Channels*f.Rank:], f.Rank, 0, delta[d*f.Channels:], all)
	}
	f.parts(h.rbc, h.b, h.c, func(at, part []T) { copy(part, at) })
	a := make([]T, all*f.State)
	kernel.NegExp(a, in[1].Data)
	h.kernel = &kernel.Scan[T]{
		Batch: f.Batch, Length: f.Cells, Channels: all, State: f.State, U: in[0].Data, Delta: delta, A: a,
		B: kernel.Projection[T]{Data: h.b, Groups: k}, C: kernel.Projection[T]{Data: h.c, Groups: k},
		D: in[5].Data, DeltaBias: in[4].Data, Softplus: true, Orders: f.Orders.lists(), OneU: true, Merge: true,
	}
	return h
}

// parts calls f for the parts of rbc that are B and C, with the parts of b and c.
func (f ss2d[T]) parts(rbc, b, c []T, do func(at, part []T)) {
	for i := range len(rbc) / f.part() {
		at := rbc[i*f.part()+f.Rank : (i+1)*f.part()]
		do(at[:f.State], b[i*f.State:(i+1)*f.State])
		do(at[f.State:], c[i*f.State:(i+1)*f.State])
	}
}

func (f ss2d[T]) Forward(in []value[T], out [][]T) { f.host(in).kernel.Forward(out[0], nil) }

func (f ss2d[T]) Backward(in []value[T], dout, grad [][]T) {
	h := f.host(in)
	k, rows := f.Orders.count, f.Batch*f.Cells
	columns, all := k*f.part(), k*f.Channels
	or := func(g []T, n int) []T { // a gradient that nobody wants is needed for others
		if g == nil {
			return make([]T, n)
		}
		return g
	}
	dx, ddelta, drbc, db, dc := or(grad[0], rows*f.Channels), make([]T, rows*all), make([]T, rows*columns), make([]T, len(h.b)), make([]T, len(h.c))
	da := or(grad[1], all*f.State)
	h.kernel.Backward(dout[0], nil, &kernel.ScanGrad[T]{U: dx, Delta: ddelta, A: da, B: db, C: dc, D: or(grad[5], all), DeltaBias: or(grad[4], all)})
	for i, a := range h.kernel.A {
		da[i] *= a
	}
	f.parts(drbc, db, dc, func(at, part []T) { copy(at, part) })
	for d := range k {
		w, r := in[2].Data[d*f.Channels*f.Rank:], d*f.part()
		h.gemm(blas.NoTrans, blas.NoTrans, rows, f.Rank, f.Channels, 1, ddelta[d*f.Channels:], all, w, f.Rank, 0, drbc[r:], columns)
		if grad[2] != nil {
			h.gemm(blas.Trans, blas.NoTrans, f.Channels, f.Rank, rows, 1, ddelta[d*f.Channels:], all, h.rbc[r:], columns, 0, grad[2][d*f.Channels*f.Rank:], f.Rank)
		}
	}
	if grad[3] != nil {
		h.gemm(blas.Trans, blas.NoTrans, columns, f.Channels, rows, 1, drbc, columns, in[0].Data, f.Channels, 0, grad[3], f.Channels)
	}
	h.gemm(blas.NoTrans, blas.NoTrans, rows, f.Channels, columns, 1, drbc, columns, in[3].Data, f.Channels, 1, dx, f.Channels)
}

// On a device.

func (f ss2d[T]) Fits(cuda.Precision) error { return stateFits(f.State) }

func ss2dOn[A cuda.Activation, T kernel.Float](f ss2d[T], s *cuda.Stream, p cuda.Precision, in []onDevice) (d *cuda.SS2D[A], free func(), err error) {
	order, err := cuda.GridOrders(s, f.Orders.lists())
	if err != nil {
		return nil, nil, err
	}
	products, free, err := as[A](s, false, in[3])
	if err != nil {
		return nil, nil, err
	}
	return &cuda.SS2D[A]{
		Batch: f.Batch, Cells: f.Cells, Channels: f.Channels, State: f.State, Rank: f.Rank, Directions: f.Orders.count, Precision: p,
		Order: order, X: in[0].Array, ALog: in[1].Array, DtProj: in[2].Array, XProj: products[0], DtBias: in[4].Array, D: in[5].Array,
	}, free, nil
}

func (f ss2d[T]) ForwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	if p == cuda.BF16 {
		return ss2dForward[cuda.BFloat16](f, s, p, in, out, keep)
	}
	return ss2dForward[float32](f, s, p, in, out, keep)
}

func ss2dForward[A cuda.Activation, T kernel.Float](f ss2d[T], s *cuda.Stream, p cuda.Precision, in []onDevice, out []array, keep bool) (kept, error) {
	d, free, err := ss2dOn[A](f, s, p, in)
	if err != nil {
		return nil, err
	}
	defer free()
	return d.Forward(s, out[0], keep)
}

func (f ss2d[T]) BackwardOn(s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values kept) error {
	if p == cuda.BF16 {
		return ss2dBackward(f, s, p, in, dout, grad, values.(*cuda.SS2DKept[cuda.BFloat16]))
	}
	return ss2dBackward(f, s, p, in, dout, grad, values.(*cuda.SS2DKept[float32]))
}

func ss2dBackward[A cuda.Activation, T kernel.Float](
	f ss2d[T], s *cuda.Stream, p cuda.Precision, in []onDevice, dout, grad []array, values *cuda.SS2DKept[A],
) error {
	d, free, err := ss2dOn[A](f, s, p, in)
	if err != nil {
		return err
	}
	defer free()
	return d.Backward(s, values, dout[0], &cuda.SS2DGrad{X: grad[0], ALog: grad[1], DtProj: grad[2], XProj: grad[3], DtBias: grad[4], D: grad[5]})
}
