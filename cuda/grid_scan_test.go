package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// gridProblem is a scan over a grid on the host, in float64, and its plain definition.
type gridProblem struct {
	batch, cells, channels, state, directions int
	orders                                    [][]int32
	oneU, merge, softplus, alog               bool
	bStep, cStep                              int
	u, delta, a, b, c, d, bias, dy            []float64
}

func drawGrid[T Activation](r *rand.Rand, batch, cells, channels, state, directions int) *gridProblem {
	coin := func() bool { return r.IntN(2) == 0 }
	p := &gridProblem{batch: batch, cells: cells, channels: channels, state: state, directions: directions, oneU: coin(), merge: coin(), softplus: coin(), alog: coin(),
		bStep: state + r.IntN(3), cStep: state + r.IntN(3)}
	for range directions {
		order := make([]int32, cells)
		for i, v := range r.Perm(cells) {
			order[i] = int32(v)
		}
		p.orders = append(p.orders, order)
	}
	rows, all := batch*cells, directions*channels
	p.u, p.delta = numbers[T](r, rows*p.width(p.oneU), 1), numbers[T](r, rows*all, 0.5)
	p.b, p.c, p.dy = numbers[T](r, rows*directions*p.bStep, 1), numbers[T](r, rows*directions*p.cStep, 1), numbers[T](r, rows*p.width(p.merge), 1)
	p.a = numbers[float32](r, all*state, 0.5)
	for i, v := range p.a {
		if !p.alog {
			p.a[i] = -math.Abs(v)
		}
	}
	if !p.softplus {
		for i, v := range p.delta {
			p.delta[i] = math.Abs(v)
		}
	} else if coin() {
		p.bias = numbers[float32](r, all, 0.1)
	}
	if coin() {
		p.d = numbers[float32](r, all, 1)
	}
	return p
}

func (p *gridProblem) width(shared bool) int {
	if shared {
		return p.channels
	}
	return p.directions * p.channels
}

// run returns y and the gradients of u, delta, a, b, c, d and bias.
func (p *gridProblem) run() (y []float64, grad [7][]float64) {
	like := func(v []float64) []float64 { return make([]float64, len(v)) }
	y = like(p.dy)
	du, ddelta, da, db, dc, dd, dbias := like(p.u), like(p.delta), like(p.a), like(p.b), like(p.c), like(p.d), like(p.bias)
	all := p.directions * p.channels
	for seq := range p.batch * all {
		b, k, d := seq/all, seq%all/p.channels, seq%p.channels
		at := k*p.channels + d
		inU := func(cell int32) int { // the index in u, and inY that in y
			if p.oneU {
				return (b*p.cells+int(cell))*p.channels + d
			}
			return (b*p.cells+int(cell))*all + at
		}
		inY := func(cell int32) int {
			if p.merge {
				return (b*p.cells+int(cell))*p.channels + d
			}
			return (b*p.cells+int(cell))*all + at
		}
		D := 0.0
		if p.d != nil {
			D = p.d[at]
		}
		dt, slope := make([]float64, p.cells), make([]float64, p.cells)
		for t, cell := range p.orders[k] {
			x := p.delta[(b*p.cells+int(cell))*all+at]
			if p.bias != nil {
				x += p.bias[at]
			}
			dt[t], slope[t] = x, 1
			if p.softplus {
				dt[t], slope[t] = math.Log1p(math.Exp(x)), 1/(1+math.Exp(-x))
			}
		}
		for _, cell := range p.orders[k] {
			y[inY(cell)] += D * p.u[inU(cell)]
			du[inU(cell)] += D * p.dy[inY(cell)]
			if p.d != nil {
				dd[at] += p.dy[inY(cell)] * p.u[inU(cell)]
			}
		}
		for n := range p.state {
			rate, scale := p.a[at*p.state+n], 1.0
			if p.alog {
				rate = -math.Exp(rate)
				scale = rate
			}
			h := make([]float64, p.cells+1)
			for t, cell := range p.orders[k] {
				row := b*p.cells + int(cell)
				h[t+1] = math.Exp(dt[t]*rate)*h[t] + dt[t]*p.b[(row*p.directions+k)*p.bStep+n]*p.u[inU(cell)]
				y[inY(cell)] += p.c[(row*p.directions+k)*p.cStep+n] * h[t+1]
			}
			carry := 0.0
			for t := p.cells - 1; t >= 0; t-- {
				cell := p.orders[k][t]
				row, g, x := b*p.cells+int(cell), p.dy[inY(cell)], p.u[inU(cell)]
				ib, ic := (row*p.directions+k)*p.bStep+n, (row*p.directions+k)*p.cStep+n
				lambda, decay := p.c[ic]*g+carry, math.Exp(dt[t]*rate)
				carry = decay * lambda
				du[inU(cell)] += lambda * dt[t] * p.b[ib]
				db[ib] += lambda * dt[t] * x
				dc[ic] += g * h[t+1]
				da[at*p.state+n] += lambda * decay * h[t] * dt[t] * scale
				ddt := (lambda*p.b[ib]*x + lambda*decay*h[t]*rate) * slope[t]
				ddelta[row*all+at] += ddt
				if p.bias != nil {
					dbias[at] += ddt
				}
			}
		}
	}
	return y, [7][]float64{du, ddelta, da, db, dc, dd, dbias}
}

// on returns the scan on the device.
func gridOn[T Activation](t testing.TB, s *Stream, p *gridProblem) *GridScan[T] {
	t.Helper()
	return &GridScan[T]{
		Batch: p.batch, Cells: p.cells, Channels: p.channels, State: p.state, Directions: p.directions, Order: putInts(t, s, slices.Concat(p.orders...)),
		U: put[T](t, s, p.u), OneU: p.oneU, Merge: p.merge, Delta: put[T](t, s, p.delta), A: put[float32](t, s, p.a), ALog: p.alog,
		B: GridProjection[T]{put[T](t, s, p.b), p.bStep}, C: GridProjection[T]{put[T](t, s, p.c), p.cStep},
		D: put[float32](t, s, p.d), DeltaBias: put[float32](t, s, p.bias), Softplus: p.softplus,
	}
}

// Results and gradients of a scan over a grid are those of its definition, for random sizes, orders and options, with kept checkpoints and
// without, and the same bits in a second run.
func TestGridScan(t *testing.T) {
	t.Run("float32", testGridScan[float32])
	t.Run("bfloat16", testGridScan[BFloat16])
}

func testGridScan[T Activation](t *testing.T) {
	s := open(t)
	r := rand.New(rand.NewPCG(14, 1))
	tol := 2e-5
	if typeName[T]() == "bf16" {
		tol = 2e-2
	}
	for _, c := range []struct{ batch, cells, channels, state, directions int }{
		{2, 35, 5, 1, 4}, {1, 21, 128, 1, 2}, {1, 300, 33, 1, 3}, {1, 257, 64, 1, 1}, {2, 9, 34, 2, 2}, {1, 150, 6, 4, 2}, {1, 14, 3, 7, 4},
		{1, 141, 40, 16, 3}, {2, 10, 3, 19, 2}, {1, 1, 1, 1, 1}, {1, 5, 2, 33, 1},
	} {
		p := drawGrid[T](r, c.batch, c.cells, c.channels, c.state, c.directions)
		t.Run(fmt.Sprintf("%+v one U %v merged %v", c, p.oneU, p.merge), func(t *testing.T) {
			wantY, want := p.run()
			g := gridOn[T](t, s, p)
			run := func(keep, entries bool) (all [][]float64) {
				if g.entries = (Array[float32]{}); entries {
					g.entries = blank[float32](t, s, g.entriesLen(s))
				}
				y, checkpoints := blank[float32](t, s, len(p.dy)), Array[float32]{}
				if keep {
					checkpoints = blank[float32](t, s, g.CheckpointLen())
				}
				if err := g.Forward(s, y, checkpoints); err != nil {
					t.Fatal(err)
				}
				parts := func(n, step int) GridProjection[T] {
					zeros := make([]float64, n)
					return GridProjection[T]{put[T](t, s, zeros), step}
				}
				grad := &GridGrad[T]{
					U: blank[float32](t, s, len(p.u)), Delta: blank[T](t, s, len(p.delta)), A: blank[float32](t, s, len(p.a)),
					B: parts(len(p.b), p.bStep), C: parts(len(p.c), p.cStep),
				}
				if p.d != nil {
					grad.D = blank[float32](t, s, len(p.d))
				}
				if p.bias != nil {
					grad.DeltaBias = blank[float32](t, s, len(p.bias))
				}
				if keep {
					grad.More = func() (Array[T], error) { return g.U, nil }
				}
				if err := g.Backward(s, checkpoints, put[T](t, s, p.dy), grad); err != nil {
					t.Fatal(err)
				}
				du := get(t, s, grad.U)
				for i := range du {
					if keep {
						du[i] -= p.u[i]
					}
				}
				return [][]float64{get(t, s, y), du, get(t, s, grad.Delta), get(t, s, grad.A), get(t, s, grad.B.Data), get(t, s, grad.C.Data),
					get(t, s, grad.D), get(t, s, grad.DeltaBias)}
			}
			names := []string{"y", "du", "ddelta", "dA", "dB", "dC", "dD", "dbias"}
			got, again := run(true, false), run(false, false)
			for i, want := range append([][]float64{wantY}, want[:]...) {
				near(t, names[i], got[i], want, tol)
				near(t, names[i]+" without checkpoints", again[i], want, tol)
				if i != 1 {
					sameBits(t, names[i], again[i], got[i])
				}
			}
			if c.state > 1 && g.entriesLen(s) > 0 {
				for i, v := range run(false, true) {
					sameBits(t, names[i]+" with the states that entered the chunks", v, again[i])
				}
			}
			third := run(true, false)
			for i := range third {
				sameBits(t, names[i]+" in a second run", third[i], got[i])
			}
		})
	}
}

// Orders that are no permutations are errors.
func TestGridOrders(t *testing.T) {
	s := open(t)
	for _, orders := range [][][]int32{{{0, 1, 1}}, {{0, 3, 1}}, {{-1, 0, 1}}, {{0, 1}, {0}}, {{}}} {
		if _, err := GridOrders(s, orders); err == nil {
			t.Errorf("%v is no error", orders)
		}
	}
	a, err := GridOrders(s, [][]int32{{1, 0, 2}})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := GridOrders(s, [][]int32{{1, 0, 2}}); err != nil || a != b {
		t.Errorf("equal orders are at %v and %v: %v", a, b, err)
	}
}

// Beyond the room, the orders of the longest time ago are freed, unless a capture reads them.
func TestGridOrdersRoom(t *testing.T) {
	s := open(t)
	add := func(room int) {
		on, err := Upload(s, make([]int32, 100))
		do(t, err)
		s.keepOrders(orders{on: on, host: [][]int32{make([]int32, 100)}}, room)
	}
	add(1000)
	add(1000)
	first, second := s.orders[0], s.orders[1]
	add(800)
	if len(s.orders) != 2 || s.orders[0].on != second.on {
		t.Errorf("%d orders of 400 bytes are in 800 bytes, with the first: %t", len(s.orders), s.orders[0].on == first.on)
	}
	s.orders[0].pinned = true
	if add(400); len(s.orders) != 2 || s.orders[0].on != second.on {
		t.Errorf("%d orders are left, want the new one and the one of a capture", len(s.orders))
	}
	if add(0); len(s.orders) != 2 || s.orders[0].on != second.on {
		t.Errorf("%d orders are left without room, want the new one and the one of a capture", len(s.orders))
	}
}

func sameBits(t *testing.T, what string, got, want []float64) {
	t.Helper()
	if !slices.EqualFunc(got, want, same) {
		t.Errorf("%s differs", what)
	}
}
