package op

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/grad"
	"github.com/gomamba/mamba/internal/gputest"
)

// ss2dSizes are the sizes of an SS2D with random operands.
type ss2dSizes struct {
	grid                  []int
	channels, rank, state int
	orders                []Order
}

func (z ss2dSizes) inputs(seed uint64) (in []grad.Input) {
	r := rand.New(rand.NewPCG(seed, 26))
	k := len(z.orders)
	for _, o := range []struct {
		name  string
		scale float64
		shape []int
	}{
		{"X", 1, slices.Concat([]int{2}, z.grid, []int{z.channels})}, {"XProj", 0.5, []int{k, z.rank + 2*z.state, z.channels}},
		{"DtProj", 0.5, []int{k, z.channels, z.rank}}, {"DtBias", 0.5, []int{k, z.channels}}, {"ALog", 0.5, []int{k * z.channels, z.state}},
		{"D", 1, []int{k * z.channels}},
	} {
		v := normal(r, tensor.Shape(o.shape).TotalSize())
		for i := range v {
			v[i] *= o.scale
		}
		in = append(in, grad.Input{Name: o.name, Value: dense(tensor.Float64, o.shape, v)})
	}
	return in
}

func (z ss2dSizes) f(in G.Nodes) (G.Nodes, error) {
	return one(SS2D(SS2DInputs{X: in[0], XProj: in[1], DtProj: in[2], DtBias: in[3], ALog: in[4], D: in[5]}, SS2DConfig{Orders: z.orders}))
}

func ss2dUses(scale int) (all []use) {
	for _, z := range []ss2dSizes{
		{[]int{3, scale + 1}, 2 * scale, 2, 1, VMambaOrders(3, scale+1)},
		{[]int{2, 1, scale}, 3, 1, 3, SegMambaOrders(2, 2, 1, scale)},
	} {
		all = append(all, use{fmt.Sprintf("SS2D over %v", z.grid), z.f, z.inputs(uint64(len(all)))})
	}
	return all
}

// SS2D is the sum over its directions of a GridScan whose operands Linear makes.
func TestSS2DIsGridScans(t *testing.T) {
	z := ss2dSizes{[]int{4, 3}, 5, 2, 3, VMambaOrders(4, 3)}
	in := z.inputs(3)
	part := z.rank + 2*z.state
	composed := func(x G.Nodes) (G.Nodes, error) {
		var y *G.Node
		for k, o := range z.orders {
			leafOf := func(name string, operand, from, count int, shape ...int) *G.Node { // a part of an operand
				all := elements(in[operand].Value)
				return leaf(x[0].Graph(), fmt.Sprint(name, k), tensor.Float64, shape, all[from:from+count])
			}
			rows := func(name string, from, count int) *G.Node {
				return G.Must(Linear(x[0], leafOf(name, 1, (k*part+from)*z.channels, count*z.channels, count, z.channels), nil))
			}
			c := z.channels
			n, err := GridScan(GridScanInputs{
				U: x[0], Delta: G.Must(Linear(rows("r", 0, z.rank), leafOf("dt", 2, k*c*z.rank, c*z.rank, c, z.rank), nil)),
				A: G.Must(NegExp(leafOf("a", 4, k*c*z.state, c*z.state, c, z.state))), B: rows("b", z.rank, z.state), C: rows("c", z.rank+z.state, z.state),
				D: leafOf("d", 5, k*c, c, c), DeltaBias: leafOf("bias", 3, k*c, c, c),
			}, GridScanConfig{Orders: []Order{o}, DeltaSoftplus: true})
			if err != nil {
				return nil, err
			}
			if y == nil {
				y = n
			} else {
				y = G.Must(Add(y, n))
			}
		}
		return G.Nodes{y}, nil
	}
	got, err := use{"SS2D", z.f, in}.run(tensor.Float64, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	want, err := use{"composed", composed, in[:1]}.run(tensor.Float64, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name := range got {
		if _, common := want[name]; !common {
			delete(got, name)
		}
	}
	if err := sameResults(got, want, 1e-12); err != nil {
		t.Error(err)
	}
}

// On a device, an image of many cells is cut into chunks that are scanned at the same time. The forward pass keeps the states that enter them.
func TestSS2DInChunksOnDevice(t *testing.T) {
	device := gputest.Open(t, cuda.Open)
	for _, c := range []struct {
		precision cuda.Precision
		state     int
		tol       float64
	}{{cuda.Strict, 1, 1e-4}, {cuda.Strict, 3, 1e-4}, {cuda.Strict, 16, 1e-4}, {cuda.BF16, 16, 5e-2}, {cuda.Strict, 17, 1e-4}} {
		z := ss2dSizes{[]int{12, 17}, 3, 1, c.state, VMambaOrders(12, 17)}
		u := use{"SS2D", z.f, z.inputs(7)}
		p, err := On(device, c.precision)
		if err != nil {
			t.Fatal(err)
		}
		want, err := u.run(tensor.Float64, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := u.at(p).run(tensor.Float32, false, nil)
		if err == nil {
			err = sameResults(got, want, c.tol)
		}
		if err != nil {
			t.Errorf("%v, %d states: %v", c.precision, c.state, err)
		}
	}
}
