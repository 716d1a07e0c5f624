package cuda

import "errors"

// SS2D is the selective scan of images on the device, with the projections of its parameters. op.SS2D defines it. For rows of channels numbers:
//
//	r, B, C = X·XProjᵀ      of each direction: one matrix (rows, directions·(rank + 2·state))
//	Δ       = r·DtProjᵀ     one matrix (rows, directions·channels)
//	y       = GridScan(X, Δ, A, B, C, D), A = -exp(ALog), Δ through softplus with DtBias
//
// Products are in T; states, sums, y and gradients are float32, except what lies between the products.
type SS2D[T Activation] struct {
	Batch, Cells, Channels, State, Rank, Directions int
	Precision                                       Precision // of the products

	Order   Array[int32]   // (directions, cells), as that of a GridScan
	X       Array[float32] // (rows, channels)
	XProj   Array[T]       // (directions, rank + 2·state, channels)
	DtProj  Array[float32] // (directions, channels, rank)
	DtBias  Array[float32] // (directions, channels)
	ALog, D Array[float32] // (directions·channels, state), (directions·channels)
}

// SS2DKept holds the values of an SS2D's forward pass that its backward pass needs. Free it once.
type SS2DKept[T Activation] struct {
	rbc                  Array[T]
	checkpoints, entries Array[float32] // of the scan
}

// Free frees the arrays.
func (k *SS2DKept[T]) Free() {
	k.rbc.Free()
	k.checkpoints.Free()
	k.entries.Free()
	*k = SS2DKept[T]{}
}

// SS2DGrad receives the gradients of an SS2D's operands, in their shapes.
type SS2DGrad struct{ X, XProj, DtProj, DtBias, ALog, D Array[float32] }

func (f *SS2D[T]) rows() int { return count(f.Batch, f.Cells) }

// part returns the columns of r, B and C of a direction, and columns those of all.
func (f *SS2D[T]) part() int    { return f.Rank + 2*f.State }
func (f *SS2D[T]) columns() int { return count(f.Directions, f.part()) }
func (f *SS2D[T]) all() int     { return count(f.Directions, f.Channels) }

func (f *SS2D[T]) check() error {
	if f == nil {
		return missing("SS2D")
	}
	if err := firstError(atLeast(0, "SS2D", "Batch", f.Batch, "Cells", f.Cells),
		atLeast(1, "SS2D", "Channels", f.Channels, "State", f.State, "Rank", f.Rank, "Directions", f.Directions)); err != nil {
		return err
	}
	return expect("SS2D", "X", f.X.n, count(f.rows(), f.Channels), "XProj", f.XProj.n, count(f.columns(), f.Channels),
		"DtProj", f.DtProj.n, count(f.all(), f.Rank), "DtBias", f.DtBias.n, f.all(), "ALog", f.ALog.n, count(f.all(), f.State), "D", f.D.n, f.all())
}

// scan returns the scan of x, with the values that the products made, and the states that enter its chunks if they are kept.
func (f *SS2D[T]) scan(x, rbc, delta Array[T], entries Array[float32]) *GridScan[T] {
	return &GridScan[T]{
		Batch: f.Batch, Cells: f.Cells, Channels: f.Channels, State: f.State, Directions: f.Directions, Order: f.Order,
		U: x, OneU: true, Merge: true, Delta: delta, A: f.ALog, ALog: true, B: GridProjection[T]{part(rbc, f.Rank), f.part()},
		C: GridProjection[T]{part(rbc, f.Rank+f.State), f.part()}, D: f.D, DeltaBias: f.DtBias, Softplus: true, entries: entries,
	}
}

// Forward queues y (rows, channels). With keep, it returns the values that Backward needs.
func (f *SS2D[T]) Forward(s *Stream, y Array[float32], keep bool) (_ *SS2DKept[T], err error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	if err := firstError(expect("SS2D", "y", y.n, count(f.rows(), f.Channels)), s.usable()); err != nil {
		return nil, err
	}
	if f.rows() == 0 {
		return &SS2DKept[T]{}, nil
	}
	var work temporaries
	defer func() { work.free() }()
	k := &SS2DKept[T]{}
	if k.rbc, err = NewArray[T](s, f.rows()*f.columns()); err == nil && keep {
		g := f.scan(k.rbc, k.rbc, k.rbc, Array[float32]{})
		if f.State == 1 { // of more states Backward computes the checkpoints again
			k.checkpoints, err = NewArray[float32](s, g.CheckpointLen())
		} else if n := g.entriesLen(s); n > 0 {
			k.entries, err = NewArray[float32](s, n)
		}
	}
	x := as[T](s, &work, f.X.Slice(0, f.rows()*f.Channels), &err)
	delta, dt := f.delta(s, &work, &err)
	if err == nil {
		err = firstError(
			MatMul(s, f.Precision, f.rows(), f.columns(), f.Channels, matrix(x, f.Channels), transposed(f.XProj, f.Channels), 0, matrix(k.rbc, f.columns())),
			f.product(s, k.rbc, dt, delta), f.scan(x, k.rbc, delta, k.entries).Forward(s, y, k.checkpoints),
		)
	}
	if err != nil || !keep {
		k.Free()
		return nil, err
	}
	return k, nil
}

// delta allocates Δ, and makes dt (directions·channels, columns): DtProj for a product with all of r, B and C, in which the columns of B, C and
// of the other directions are zero. One product with rows that are aligned takes less time than one for each direction.
func (f *SS2D[T]) delta(s *Stream, work *temporaries, err *error) (delta, dt Array[T]) {
	delta, dt = take[T](s, work, f.rows()*f.all(), err), take[T](s, work, f.all()*f.columns(), err)
	if *err == nil {
		*err = s.run("ss2d", "ss2d_spread_"+typeName[T](), blocksOf(dt.n, 256), f.DtProj.address, dt.address, f.Directions, f.Channels, f.Rank, f.part())
	}
	return delta, dt
}

func (f *SS2D[T]) product(s *Stream, rbc, dt, delta Array[T]) error {
	return MatMul(s, f.Precision, f.rows(), f.all(), f.columns(), matrix(rbc, f.columns()), transposed(dt, f.columns()), 0, matrix(delta, f.all()))
}

// Backward queues the gradients of all operands. Its inputs are the values that Forward kept and the gradient dy of its result. Two runs on the
// same operands give the same gradients, bit for bit.
func (f *SS2D[T]) Backward(s *Stream, k *SS2DKept[T], dy Array[float32], grad *SS2DGrad) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	if k == nil || grad == nil {
		return errors.New("cuda: SS2D: the kept values or the gradients are missing, want what Forward kept, and arrays for the gradients")
	}
	rows, channels, columns, all := f.rows(), f.Channels, f.columns(), f.all()
	if err := firstError(expect("SS2D", "dy", dy.n, count(rows, channels), "kept rbc", k.rbc.n, count(rows, columns), "the gradient of X", grad.X.n, f.X.n,
		"the gradient of XProj", grad.XProj.n, f.XProj.n, "the gradient of DtProj", grad.DtProj.n, f.DtProj.n, "the gradient of DtBias", grad.DtBias.n,
		f.DtBias.n, "the gradient of ALog", grad.ALog.n, f.ALog.n, "the gradient of D", grad.D.n, f.D.n), s.usable()); err != nil {
		return err
	}
	if rows == 0 {
		return firstError(grad.XProj.Fill(s, 0), grad.DtProj.Fill(s, 0), grad.DtBias.Fill(s, 0), grad.ALog.Fill(s, 0), grad.D.Fill(s, 0))
	}
	var work temporaries
	defer func() { work.free() }()
	x, d := as[T](s, &work, f.X.Slice(0, rows*channels), &err), as[T](s, &work, dy.Slice(0, rows*channels), &err)
	delta, dt := f.delta(s, &work, &err)
	ddelta, drbc, du := take[T](s, &work, rows*all, &err), take[T](s, &work, rows*columns, &err), take[T](s, &work, rows*channels, &err)
	ddt := take[float32](s, &work, all*columns, &err)
	if err != nil {
		return err
	}
	if err := firstError(f.product(s, k.rbc, dt, delta), drbc.Fill(s, 0)); err != nil {
		return err
	}
	transposedOf := func(m Matrix[T]) Matrix[T] { m.Transposed = true; return m }
	return f.scan(x, k.rbc, delta, k.entries).Backward(s, k.checkpoints, d, &GridGrad[T]{
		U: grad.X, Delta: ddelta, B: GridProjection[T]{part(drbc, f.Rank), f.part()}, C: GridProjection[T]{part(drbc, f.Rank+f.State), f.part()},
		A: grad.ALog, D: grad.D, DeltaBias: grad.DtBias,
		More: func() (Array[T], error) {
			return du, firstError(
				MatMul(s, f.Precision, rows, columns, all, matrix(ddelta, all), matrix(dt, columns), 1, matrix(drbc, columns)),
				MatMul(s, f.Precision, all, columns, rows, transposedOf(matrix(ddelta, all)), matrix(k.rbc, columns), 0, matrix(ddt, columns)),
				s.run("ss2d", "ss2d_gather", blocksOf(grad.DtProj.n, 256), ddt.address, grad.DtProj.address, f.Directions, channels, f.Rank, f.part()),
				MatMul(s, f.Precision, columns, channels, rows, transposedOf(matrix(drbc, columns)), matrix(x, channels), 0, matrix(grad.XProj, channels)),
				MatMul(s, f.Precision, rows, channels, columns, matrix(drbc, columns), matrix(f.XProj, channels), 0, matrix(du, channels)),
			)
		},
	})
}
