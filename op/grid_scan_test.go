package op

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

// gridProblem is a scan over a grid. Its operands are drawn from the seed.
type gridProblem struct {
	batch, channels, state int
	grid                   []int
	cfg                    GridScanConfig
	oneU                   bool // U is the same for all directions
	plain                  bool // without D and DeltaBias
	seed                   uint64
}

func (p *gridProblem) shape(last int) []int {
	return slices.Concat([]int{p.batch}, p.grid, []int{last})
}

func (p *gridProblem) use() use {
	r := rand.New(rand.NewPCG(p.seed, 14))
	k := len(p.cfg.Orders)
	u := use{name: fmt.Sprintf("grid scan of %d directions over %v, summed", k, p.grid)}
	if p.cfg.Apart {
		u.name = fmt.Sprintf("grid scan of %d directions over %v, apart", k, p.grid)
	}
	add := func(name string, shape ...int) {
		v := normal(r, tensor.Shape(shape).TotalSize())
		for i, x := range v {
			switch {
			case name == "A":
				v[i] = -0.1 - math.Abs(x)
			case strings.HasPrefix(name, "Delta") && !p.cfg.DeltaSoftplus: // a Δ below zero would make the state grow at every step
				v[i] = 0.05 + math.Abs(x)/2
			}
		}
		u.in = append(u.in, grad.Input{Name: name, Value: dense(tensor.Float64, shape, v)})
	}
	ofU := k * p.channels
	if p.oneU {
		ofU = p.channels
	}
	add("U", p.shape(ofU)...)
	add("Delta", p.shape(k*p.channels)...)
	add("A", k*p.channels, p.state)
	add("B", p.shape(k*p.state)...)
	add("C", p.shape(k*p.state)...)
	if !p.plain {
		add("D", k*p.channels)
		add("DeltaBias", k*p.channels)
	}
	u.f = func(in G.Nodes) (G.Nodes, error) { return one(GridScan(gridInputs(in), p.cfg)) }
	return u
}

func gridInputs(in G.Nodes) GridScanInputs {
	all := GridScanInputs{U: in[0], Delta: in[1], A: in[2], B: in[3], C: in[4]}
	if len(in) > 5 {
		all.D, all.DeltaBias = in[5], in[6]
	}
	return all
}

func permutation(r *rand.Rand, n int) Order {
	o, err := NewOrder(r.Perm(n))
	if err != nil {
		panic(err)
	}
	return o
}

// gridUses returns uses of GridScan and Reorder for uses.
func gridUses(scale int) (all []use) {
	const batch, height, depth = 2, 3, 2
	width := 2 * scale
	r := rand.New(rand.NewPCG(25, 14))
	for _, p := range []*gridProblem{
		{batch: batch, grid: []int{height, width}, channels: 2, state: 3, oneU: true,
			cfg: GridScanConfig{Orders: VMambaOrders(height, width), DeltaSoftplus: true}},
		{batch: batch, grid: []int{depth, height, scale}, channels: 1 + scale, state: 2, plain: true,
			cfg: GridScanConfig{Orders: SegMambaOrders(depth, depth, height, scale)}},
		{batch: batch, grid: []int{height * width}, channels: 2 * scale, state: 1, oneU: true,
			cfg: GridScanConfig{Orders: []Order{permutation(r, height*width), Rows(height * width)}, DeltaSoftplus: true, Apart: true}},
	} {
		p.seed = uint64(len(all))
		all = append(all, p.use())
	}
	x := grad.Input{Name: "x", Value: dense(tensor.Float64, []int{batch, height, width, 4}, normal(r, batch*height*width*4))}
	order := permutation(r, height*width)
	all = append(append(all, ss2dUses(scale)...), bidirectionalUses(scale)...)
	return append(all, use{"reorder", func(in G.Nodes) (G.Nodes, error) { return one(Reorder(in[0], order)) }, []grad.Input{x}})
}

// drawGrid draws a small scan over a grid with any orders and options.
func drawGrid(t *rapid.T) *gridProblem {
	p := &gridProblem{
		batch: size(t, "batch", 2), channels: size(t, "channels", 3), state: rapid.SampledFrom([]int{1, 2, 3, 5}).Draw(t, "state"),
		grid: []int{size(t, "height", 5), size(t, "width", 5)}, oneU: rapid.Bool().Draw(t, "one U"), plain: rapid.Bool().Draw(t, "plain"),
		seed: rapid.Uint64().Draw(t, "seed"),
		cfg:  GridScanConfig{DeltaSoftplus: rapid.Bool().Draw(t, "softplus"), Apart: rapid.Bool().Draw(t, "apart")},
	}
	height, width := p.grid[0], p.grid[1]
	cells := height * width
	orders := append(LocalMambaOrders(height, width), permutation(rand.New(rand.NewPCG(p.seed, 2)), cells))
	for n := 1; n <= cells; n++ {
		if cells%n == 0 {
			orders = append(orders, Slices(n, height, width))
		}
	}
	p.cfg.Orders = rapid.SliceOfN(rapid.SampledFrom(orders), 1, 4).Draw(t, "orders")
	return p
}

// part returns the operands of direction k, as those of a scan in this direction alone.
func (u use) part(k, directions int) use {
	u.in = slices.Clone(u.in)
	for i, in := range u.in {
		shape := in.Value.Shape().Clone()
		axis := len(shape) - 1
		if in.Name == "A" {
			axis = 0
		}
		if in.Name == "U" && shape[axis] == u.in[1].Value.Shape()[axis]/directions {
			continue
		}
		shape[axis] /= directions
		u.in[i].Value = dense(tensor.Float64, shape, partOf(elements(in.Value), shape[axis:].TotalSize(), k, directions))
	}
	return u
}

// partOf returns the k-th part of each row of v, whose parts are of width numbers.
func partOf(v []float64, width, k, directions int) (part []float64) {
	for at := k * width; at < len(v); at += directions * width {
		part = append(part, v[at:at+width]...)
	}
	return part
}

// Several directions at once give what each gives alone, and the sum over them.
func TestGridScanDirections(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawGrid(t)
		p.cfg.Apart = false
		all := p.use()
		got, err := all.run(tensor.Float64, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		k := len(p.cfg.Orders)
		want := map[string][]float64{}
		for i, o := range p.cfg.Orders {
			alone := all.part(i, k)
			cfg := p.cfg
			cfg.Orders = []Order{o}
			alone.f = func(in G.Nodes) (G.Nodes, error) { return one(GridScan(gridInputs(in), cfg)) }
			r, err := alone.run(tensor.Float64, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			for name, v := range r {
				switch width := len(v) * k / len(got[name]); {
				case len(v) == len(got[name]) && k > 1: // the result, and the gradient of one U
					want[name] = sum(want[name], v)
				case width == 1:
					if want[name] == nil {
						want[name] = make([]float64, len(got[name]))
					}
					w := p.width(name)
					for j, x := range v {
						want[name][(j/w*k+i)*w+j%w] = x
					}
				}
			}
		}
		if err := sameResults(got, want, 1e-12); err != nil {
			t.Fatal(err)
		}
	})
}

// width returns the width of a direction in a gradient.
func (p *gridProblem) width(name string) int {
	switch name {
	case "gradient of A":
		return p.channels * p.state
	case "gradient of B", "gradient of C":
		return p.state
	}
	return p.channels
}

// A scan in an order is a selective scan of the operands in this order, whose result is put back.
func TestGridScanOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawGrid(t)
		o := p.cfg.Orders[0]
		p.cfg.Orders = p.cfg.Orders[:1]
		u := p.use()
		want, err := u.run(tensor.Float64, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		u.f = func(in G.Nodes) (G.Nodes, error) {
			g := gridInputs(in)
			s := ScanInputs{A: g.A, D: g.D, DeltaBias: g.DeltaBias}
			for _, x := range []struct {
				from *G.Node
				to   **G.Node
			}{{g.U, &s.U}, {g.Delta, &s.Delta}, {g.B, &s.B}, {g.C, &s.C}} {
				if *x.to, err = Reorder(x.from, o); err != nil {
					return nil, err
				}
			}
			y, err := SelectiveScan(s, ScanConfig{DeltaSoftplus: p.cfg.DeltaSoftplus})
			if err != nil {
				return nil, err
			}
			return one(Reorder(y, o.Inverse()))
		}
		if err := everywhere(func(dt tensor.Dtype, lisp bool, tol float64) error {
			got, err := u.run(dt, lisp, nil)
			if err != nil {
				return err
			}
			return sameResults(got, want, tol)
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// Forward and backward, and rows and columns, are a flip and a transposition of the image.
func TestGridScanFlipped(t *testing.T) {
	const height, width = 7, 5
	p := &gridProblem{batch: 1, grid: []int{height, width}, channels: 3, state: 2, cfg: GridScanConfig{DeltaSoftplus: true}}
	transposed := make([]int, 0, height*width) // the cells of the image, in the order of the transposed image
	for x := range width {
		for y := range height {
			transposed = append(transposed, y*width+x)
		}
	}
	flipped := make([]int, height*width)
	for i := range flipped {
		flipped[i] = height*width - 1 - i
	}
	both := make([]int, height*width)
	for i := range both {
		both[i] = transposed[height*width-1-i]
	}
	for name, c := range map[string]struct {
		order Order
		cells []int
	}{
		"reversed": {Rows(height, width).Reversed(), flipped}, "columns": {Columns(height, width), transposed},
		"columns reversed": {Columns(height, width).Reversed(), both},
	} {
		p.cfg.Orders = []Order{c.order}
		u := p.use()
		got, err := u.run(tensor.Float64, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.cfg.Orders = []Order{Rows(height, width)}
		v := p.use()
		for i, in := range v.in {
			if len(in.Value.Shape()) == 4 {
				v.in[i].Value = dense(tensor.Float64, in.Value.Shape(), rowsOf(elements(in.Value), c.cells))
			}
		}
		want, err := v.run(tensor.Float64, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, want = map[string][]float64{"y": rowsOf(got["result 0"], c.cells)}, map[string][]float64{"y": want["result 0"]}
		if err := sameResults(got, want, 1e-12); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// rowsOf returns rows of v in the given order.
func rowsOf(v []float64, rows []int) (r []float64) {
	width := len(v) / len(rows)
	for _, i := range rows {
		r = append(r, v[i*width:(i+1)*width]...)
	}
	return r
}

func TestGridScanErrors(t *testing.T) {
	g := G.NewGraph()
	node := unbound(g)
	x := func(last int) *G.Node { return node(f32, 2, 3, 5, last) }
	right := GridScanInputs{U: x(4), Delta: x(8), A: node(f32, 8, 3), B: x(6), C: x(6), D: node(f32, 8), DeltaBias: node(f32, 8)}
	two := []Order{Rows(3, 5), Columns(3, 5)}
	for _, c := range []struct {
		change func(*GridScanInputs)
		orders []Order
		want   string
	}{
		{nil, nil, "op: grid scan: Orders is empty, want an order for each direction"},
		{nil, []Order{Rows(3, 5), {}}, "op: grid scan: Orders[1]: op: order: the order is missing"},
		{nil, []Order{Rows(3, 5), Rows(3, 4)}, "op: grid scan: Orders[1] has 12 cells, want 15, those of the grid (3, 5) of U"},
		{nil, []Order{Columns(0, 5), Rows(3, 5)}, "op: grid scan: Orders[0]: op: columns: size 0 is 0, want at least 1"},
		{nil, []Order{Rows(3, 5), Rows(3, 5), Rows(3, 5)}, "op: grid scan: Delta has 8 channels, want a multiple of the 3 orders"},
		{func(in *GridScanInputs) { in.U = x(3) }, two, "op: grid scan: U has 3 channels, want the 4 of a direction or all 8 of Delta"},
		{func(in *GridScanInputs) { in.U = node(f32, 2, 4) }, two,
			"op: grid scan: U has shape (2, 4), want (batch, grid…, channels or K·channels) with a grid of one to three axes"},
		{func(in *GridScanInputs) { in.Delta = node(f32, 2, 15, 8) }, two, "op: grid scan: Delta has shape (2, 15, 8), want (batch, grid…, K·channels) = (2, 3, 5, any)"},
		{func(in *GridScanInputs) { in.A = node(f32, 4, 3) }, two, "op: grid scan: A has shape (4, 3), want (K·channels, state) = (8, any)"},
		{func(in *GridScanInputs) { in.B = x(3) }, two, "op: grid scan: B has shape (2, 3, 5, 3), want (batch, grid…, K·state) = (2, 3, 5, 6)"},
		{func(in *GridScanInputs) { in.C = nil }, two, "op: grid scan: C is missing, want a node of shape (batch, grid…, K·state)"},
		{func(in *GridScanInputs) { in.D = node(f32, 4) }, two, "op: grid scan: D has shape (4), want (K·channels) = (8)"},
	} {
		in := right
		if c.change != nil {
			c.change(&in)
		}
		wantError(t, second2(GridScan(in, GridScanConfig{Orders: c.orders})), c.want)
	}
	wantError(t, second2(Reorder(x(4), Rows(4, 4))), "op: reorder: order has 16 cells, want 15, those of the grid (3, 5) of x")
	wantError(t, second2(Reorder(x(4), Order{})), "op: reorder: order: op: order: the order is missing")
	wantError(t, second2(Reorder(node(f32, 2, 3, 4, 5, 6, 7), Rows(3))), "with a grid of one to three axes")
}
