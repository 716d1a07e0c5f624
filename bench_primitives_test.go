package mamba_test

import (
	"fmt"
	"math"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/nn"
)

// BenchmarkPrimitives compares a block of Gorgonia's own operators, as a user could build it without this library, with this library's block
// of the same size. The graph of Gorgonia's operators has several nodes for each step, so the lengths are short. Its gradients grow with the
// square of the length, since the gradient of a slice is as large as the sliced value.
func BenchmarkPrimitives(b *testing.B) {
	const width = 64
	for _, pass := range passes {
		for _, length := range []int{32, 64, 128} {
			block := nn.NewMambaBlock(nn.Config{DModel: width})
			w := work{tokens: length, flop: float64(length) * productFlop(block.Config())}.times(pass.runs)
			size := fmt.Sprintf("pass=%s/M=%d/L=%d/B=1", pass.name, width, length)
			measure(b, "of=primitives/"+size, w, func() program {
				x, y, weights := primitives(block, length)
				var by G.Nodes
				if pass.backward {
					by = append(weights, x)
				}
				return newProgram(y, x.Shape(), by...)
			})
			measureBlock(b, "of=ours/"+size, 1, length, width, pass.runs, pass.backward, newProgram)
		}
	}
}

// primitives builds a block from Gorgonia's own operators only, with the weights of a block, for one sequence: x and y are (length, d_model).
// It avoids what is silently wrong in Gorgonia v0.9.18 (docs/gorgonia.md): no slice has a bound above 255, not even in the gradient of a Concat;
// a reshaped node has no other use; and it has no InverseSqrt and no OuterProd, whose gradients are wrong.
func primitives(block *nn.MambaBlock, length int) (x, y *G.Node, weights G.Nodes) {
	cfg := block.Config()
	inner := cfg.Expand * cfg.DModel
	g := G.NewGraph()
	weight := func(name string, v tensor.Tensor) *G.Node {
		n := G.NodeFromAny(g, v, G.WithName(name))
		weights = append(weights, n)
		return n
	}
	param := func(name string) *tensor.Dense { return block.Params().ByName(name).Value }
	// project returns the product of x and the rows [from, to) of a weight (out, in).
	project := func(x *G.Node, name string, from, to int) *G.Node {
		return G.Must(G.Mul(x, weight(fmt.Sprint(name, from), transposed(param(name), from, to))))
	}
	rows := func(n *G.Node) func(t int) *G.Node {
		return func(t int) *G.Node { return G.Must(G.Slice(n, G.S(t))) }
	}
	// perRow and perColumn are the axes of a matrix along which a vector is repeated.
	perRow, perColumn := []byte{1}, []byte{0}

	x = input(g, "x", length, cfg.DModel)
	square := G.Must(G.Mean(G.Must(G.Square(x)), 1))
	size := G.Must(G.Sqrt(G.Must(G.Add(square, scalar(g, "eps", cfg.NormEps)))))
	h := G.Must(G.BroadcastHadamardDiv(x, size, nil, perRow))
	h = G.Must(G.BroadcastHadamardProd(h, weight("norm", param("norm.weight")), nil, perColumn))

	// The causal convolution, as a sum of shifted copies of the padded input.
	u := project(h, "mixer.in_proj.weight", 0, inner)
	z := project(h, "mixer.in_proj.weight", inner, 2*inner)
	padding := leaf(g, "padding", func() float32 { return 0 }, cfg.DConv-1, inner)
	padded := G.Must(G.Concat(0, padding, u))
	var filtered *G.Node
	for k := range cfg.DConv {
		tap := weight(fmt.Sprint("tap", k), column(param("mixer.conv1d.weight"), inner, k))
		part := G.Must(G.BroadcastHadamardProd(G.Must(G.Slice(padded, G.S(k, k+length))), tap, nil, perColumn))
		if filtered == nil {
			filtered = part
		} else {
			filtered = G.Must(G.Add(filtered, part))
		}
	}
	u = silu(G.Must(G.BroadcastAdd(filtered, weight("conv bias", param("mixer.conv1d.bias")), nil, perColumn)))

	rank, state := cfg.DtRank, cfg.DState
	delta := G.Must(G.Mul(project(u, "mixer.x_proj.weight", 0, rank), weight("dt", transposed(param("mixer.dt_proj.weight"), 0, inner))))
	delta = G.Must(G.Softplus(G.Must(G.BroadcastAdd(delta, weight("dt bias", param("mixer.dt_proj.bias")), nil, perColumn))))
	bRow := rows(project(u, "mixer.x_proj.weight", rank, rank+state))
	cRow := rows(project(u, "mixer.x_proj.weight", rank+state, rank+2*state))
	uRow, deltaRow := rows(u), rows(delta)
	a := G.Must(G.Neg(G.Must(G.Exp(weight("A_log", param("mixer.A_log"))))))
	d := weight("D", param("mixer.D"))

	// The scan, step by step.
	var hidden *G.Node
	var outs G.Nodes
	for t := range length {
		dt, ut := deltaRow(t), uRow(t)
		in := G.Must(G.Mul(
			G.Must(G.Reshape(G.Must(G.HadamardProd(dt, ut)), tensor.Shape{inner, 1})),
			G.Must(G.Reshape(bRow(t), tensor.Shape{1, state}))))
		if t == 0 {
			hidden = in
		} else {
			decay := G.Must(G.Exp(G.Must(G.BroadcastHadamardProd(a, dt, nil, perRow))))
			hidden = G.Must(G.Add(G.Must(G.HadamardProd(decay, hidden)), in))
		}
		out := G.Must(G.Add(G.Must(G.Mul(hidden, cRow(t))), G.Must(G.HadamardProd(d, ut))))
		outs = append(outs, G.Must(G.Reshape(out, tensor.Shape{1, inner})))
	}
	out := G.Must(G.HadamardProd(G.Must(G.Concat(0, outs...)), silu(z)))
	y = G.Must(G.Add(x, project(out, "mixer.out_proj.weight", 0, cfg.DModel)))
	return x, y, weights
}

func silu(x *G.Node) *G.Node { return G.Must(G.HadamardProd(x, G.Must(G.Sigmoid(x)))) }

func scalar(g *G.ExprGraph, name string, v float64) *G.Node {
	return G.NewScalar(g, tensor.Float32, G.WithName(name), G.WithValue(float32(v)))
}

// transposed returns rows [from, to) of a matrix as columns.
func transposed(w *tensor.Dense, from, to int) *tensor.Dense {
	in, v := w.Shape()[1], w.Data().([]float32)
	t := make([]float32, in*(to-from))
	for i := range to - from {
		for j := range in {
			t[j*(to-from)+i] = v[(from+i)*in+j]
		}
	}
	return tensor.New(tensor.WithShape(in, to-from), tensor.WithBacking(t))
}

// column returns column k of a matrix with the given number of rows.
func column(w *tensor.Dense, rows, k int) *tensor.Dense {
	v := w.Data().([]float32)
	c := make([]float32, rows)
	for i := range c {
		c[i] = v[i*len(v)/rows+k]
	}
	return tensor.New(tensor.WithShape(rows), tensor.WithBacking(c))
}

// Both blocks of BenchmarkPrimitives compute the same function: they agree in their results, and in the gradient with respect to x, which flows
// through every operator.
func TestPrimitives(t *testing.T) {
	for _, c := range []struct{ width, length int }{{8, 2}, {8, 5}, {64, 128}} {
		width, length := c.width, c.length
		block := nn.NewMambaBlock(nn.Config{DModel: width})
		x, y, _ := primitives(block, length)
		got := valueAndGradient(t, x, y)

		g := G.NewGraph()
		x = G.NodeFromAny(g, tensor.New(tensor.WithShape(1, length, width), tensor.WithBacking(x.Value().Data())), G.WithName("x"))
		want := valueAndGradient(t, x, G.Must(block.Apply(x)))
		for i, what := range []string{"result", "gradient"} {
			if d := difference(got[i], want[i]); !(d < 1e-4) {
				t.Errorf("d_model %d, length %d: the %s differs by %g of its largest element", width, length, what, d)
			}
		}
	}
}

func valueAndGradient(t *testing.T, x, y *G.Node) [2][]float32 {
	t.Helper()
	var value, gradient G.Value
	G.Read(y, &value)
	// The loss is the sum of squares, so that the elements of its gradient differ.
	grads, err := G.Grad(G.Must(G.Sum(G.Must(G.Square(y)))), x)
	if err != nil {
		t.Fatal(err)
	}
	G.Read(grads[0], &gradient)
	m := G.NewTapeMachine(y.Graph())
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	return [2][]float32{value.Data().([]float32), gradient.Data().([]float32)}
}

// difference returns the largest difference, divided by the largest magnitude of want.
func difference(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	var worst, largest float64
	for i, w := range want {
		worst = max(worst, math.Abs(float64(got[i]-w)))
		largest = max(largest, math.Abs(float64(w)))
	}
	return worst / largest
}
