package op

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
)

// at returns the use with its operands on a device and its results on the host.
func (u use) at(p Place) use {
	f := u.f
	u.f = func(in G.Nodes) (G.Nodes, error) {
		there := make(G.Nodes, len(in))
		for i, n := range in {
			if there[i] = n; u.in[i].Constant || n.Dtype() == tensor.Int {
				continue
			}
			var err error
			if there[i], err = p.Upload(n); err != nil {
				return nil, err
			}
		}
		out, err := f(there)
		if err != nil {
			return nil, err
		}
		for i, n := range out {
			if n == nil || PlaceOf(n).OnHost() {
				continue
			}
			if out[i], err = Download(n); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return u
}

// Every operator gives the same results and gradients on a device as on the host, in each precision, and the same bits in a second run.
func TestOperatorsOnDevice(t *testing.T) {
	device := gputest.Open(t, cuda.Open)
	for _, c := range []struct {
		precision cuda.Precision
		scale     int
		tol       float64
	}{{cuda.Strict, 1, 2e-4}, {cuda.Strict, 3, 2e-4}, {cuda.Strict, 8, 2e-4}, {cuda.FP16x3, 3, 2e-4}, {cuda.TF32, 3, 5e-3}, {cuda.BF16, 3, 5e-2}} {
		p, err := On(device, c.precision)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range uses(c.scale) {
			t.Run(fmt.Sprintf("%s/%v/%d", u.name, c.precision, c.scale), func(t *testing.T) {
				want, err := u.run(tensor.Float64, false, nil)
				if err != nil {
					t.Fatal(err)
				}
				got, err := u.at(p).run(tensor.Float32, false, nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := sameResults(got, want, c.tol); err != nil {
					t.Error(err)
				}
				again, err := u.at(p).run(tensor.Float32, false, nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := sameResults(again, got, 0); err != nil {
					t.Errorf("the second run: %v", err)
				}
			})
		}
	}
}

// Operands in two places, and an operator that has no function on a device, are errors that name the operator and the operand.
func TestPlaces(t *testing.T) {
	p, err := On(gputest.Open(t, cuda.Open), cuda.Strict)
	if err != nil {
		t.Fatal(err)
	}
	half, err := On(p.Device(), cuda.BF16)
	if err != nil {
		t.Fatal(err)
	}
	g := G.NewGraph()
	node := unbound(g)
	x, w := node(f32, 2, 3, 4), node(f32, 4)
	up, err := p.Upload(x)
	if err != nil {
		t.Fatal(err)
	}
	wide, err := p.Upload(node(f32, 1, 2, 258))
	if err != nil {
		t.Fatal(err)
	}
	there, err := p.Upload(node(f32, 2, 3))
	if err != nil {
		t.Fatal(err)
	}
	many, err := p.Upload(node(f32, 1, 257)) // as A, DtProj… of one channel and a state of 257
	if err != nil {
		t.Fatal(err)
	}
	line, err := p.Upload(node(f32, 1, 3, 1))
	if err != nil {
		t.Fatal(err)
	}
	states, err := p.Upload(node(f32, 1, 3, 257))
	if err != nil {
		t.Fatal(err)
	}
	wHalf, err := half.Upload(w)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{second2(RMSNorm(up, w, 1e-5)), "op: RMS norm: weight is on the host, want " + p.String() + " like x"},
		{second2(RMSNorm(x, wHalf, 1e-5)), "op: RMS norm: weight is on " + half.String() + ", want the host like x"},
		{second2(RMSNorm(up, wHalf, 1e-5)), "want " + p.String() + " like x"},
		{second2(p.Upload(up)), "op: upload: x is on " + p.String() + ", want a node on the host"},
		{second2(p.Upload(node(tensor.Int, 2, 3))), "op: upload: x is int of shape (2, 3), want a tensor of float32"},
		{second2(Download(x)), "on the host, want a node on a device"},
		{second2(Place{}.Upload(x)), "op: the device is missing, want a place that On returned"},
		{second2(p.NewWeight(dense(f64, tensor.Shape{2}, []float64{1, 2}))), "op: weight: a tensor of float64 (2), want a row-major tensor of float32"},
		{second2(Attention(AttentionInputs{Q: wide, K: wide, V: wide}, AttentionConfig{Heads: 1})),
			"cuda: attention: Channels/Heads is 258, want at most 256"},
		{second2(GridScan(GridScanInputs{U: line, Delta: line, A: many, B: states, C: states}, GridScanConfig{Orders: []Order{Rows(3)}})),
			"the state is 257, want at most 256 on a device"},
		{second2(Reverse(x, there)), "op: reverse: Start is on " + p.String() + ", want a node on the host"},
		{second2(Reverse(up, there)), "op: reverse: Start is on " + p.String() + ", want a node on the host"},
		{second2(On(nil, cuda.Strict)), "op: the device is missing, want one that cuda.Open returned"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("the error is %v, want one that contains %q", c.err, c.want)
		}
	}
}

func second2[T any](_ T, err error) error { return err }

// A result on a device that several operators read, or that is differentiated several times, has the same gradients as on the host.
func TestGradientsOfOneResult(t *testing.T) {
	p, err := On(gputest.Open(t, cuda.Open), cuda.Strict)
	if err != nil {
		t.Fatal(err)
	}
	sum := func(x *G.Node) *G.Node {
		if !PlaceOf(x).OnHost() {
			x = G.Must(Download(x))
		}
		return G.Must(G.Sum(G.Must(G.Square(x))))
	}
	for name, cost := range map[string]func(x, w, head, targets *G.Node) *G.Node{
		"two readers": func(x, w, head, _ *G.Node) *G.Node {
			y := G.Must(RMSNorm(x, w, 1e-5))
			return G.Must(G.Add(sum(G.Must(Linear(y, head, nil))), sum(G.Must(RMSNorm(y, w, 1e-5)))))
		},
		"three readers, one of them on the host": func(x, w, head, targets *G.Node) *G.Node {
			y := G.Must(RMSNorm(x, w, 1e-5))
			return G.Must(G.Add(G.Must(G.Add(sum(G.Must(Linear(y, head, nil))), sum(y))), G.Must(LinearCrossEntropy(y, head, targets, -1))))
		},
		"two downloads": func(x, w, head, _ *G.Node) *G.Node {
			y := G.Must(Linear(G.Must(RMSNorm(x, w, 1e-5)), head, nil))
			return G.Must(G.Add(sum(y), G.Must(G.Mul(sum(y), G.NewConstant(float32(0.5))))))
		},
		"a loss read twice": func(x, w, head, targets *G.Node) *G.Node {
			y := G.Must(LinearCrossEntropy(G.Must(RMSNorm(x, w, 1e-5)), head, targets, -1))
			return G.Must(G.Add(G.Must(G.Square(y)), y))
		},
		"a residual connection": func(x, w, head, _ *G.Node) *G.Node {
			y := G.Must(Add(x, G.Must(RMSNorm(x, w, 1e-5))))
			y = G.Must(Add(y, G.Must(RMSNorm(y, w, 1e-5))))
			return sum(G.Must(Linear(G.Must(Add(y, y)), head, nil)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var results [2][]float64
			for i, on := range []bool{false, true} {
				g := G.NewGraph()
				var in, inputs G.Nodes
				for k, shape := range []tensor.Shape{{2, 3, 4}, {4}, {5, 4}} {
					v := make([]float64, shape.TotalSize())
					for j := range v {
						v[j] = math.Sin(float64(j + 7*k))
					}
					n := leaf(g, []string{"x", "w", "head"}[k], f32, shape, v)
					if inputs = append(inputs, n); on {
						n = G.Must(p.Upload(n))
					}
					in = append(in, n)
				}
				loss := cost(in[0], in[1], in[2], leaf(g, "targets", tensor.Int, tensor.Shape{2, 3}, []float64{0, 1, 2, 3, 4, 0}))
				read, err := G.Grad(loss, inputs...)
				if err != nil {
					t.Fatal(err)
				}
				read = append(read, loss)
				values := make([]G.Value, len(read))
				for j, n := range read {
					G.Read(n, &values[j])
				}
				vm := G.NewTapeMachine(g)
				defer vm.Close()
				for range 2 { // the second run reuses the memory of the first
					vm.Reset()
					if err := vm.RunAll(); err != nil {
						t.Fatal(err)
					}
				}
				for _, v := range values {
					results[i] = append(results[i], elements(v)...)
				}
			}
			for j, want := range results[0] {
				if got := results[1][j]; !(math.Abs(got-want) <= 1e-4*max(1, math.Abs(want))) {
					t.Fatalf("number %d is %v on the device, %v on the host", j, got, want)
				}
			}
		})
	}
}

// gorgonia.Read gives the numbers of a result and of a weight on a device, in every run.
func TestReadOnDevice(t *testing.T) {
	p, err := On(gputest.Open(t, cuda.Open), cuda.Strict)
	if err != nil {
		t.Fatal(err)
	}
	g := G.NewGraph()
	host := dense(f32, tensor.Shape{3}, []float64{1, 2, 3})
	w, err := p.NewWeight(host)
	if err != nil {
		t.Fatal(err)
	}
	n := G.NodeFromAny(g, w, G.WithName("w"))
	var weight, sum G.Value
	G.Read(n, &weight)
	G.Read(G.Must(Add(n, n)), &sum)
	m := G.NewTapeMachine(g)
	defer m.Close()
	for run := range 3 {
		host.Data().([]float32)[1] = float32(run)
		w.HostChanged()
		m.Reset()
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		want := []float32{1, float32(run), 3}
		if got := weight.Data().([]float32); !slices.Equal(got, want) {
			t.Errorf("run %d: the weight is %v, want %v", run, got, want)
		}
		for i, got := range sum.Data().([]float32) {
			if got != 2*want[i] {
				t.Errorf("run %d: element %d of the sum is %v, want %v", run, i, got, 2*want[i])
			}
		}
	}
}

// Integers that no int32 holds mean the same on a device as on the host.
func TestLargeIntegersOnDevice(t *testing.T) {
	p, err := On(gputest.Open(t, cuda.Open), cuda.Strict)
	if err != nil {
		t.Fatal(err)
	}
	for _, sign := range []int64{1, -1} {
		ignore := int(sign << 32)
		var results [2][]float64
		for i, on := range []bool{false, true} {
			g := G.NewGraph()
			x := leaf(g, "x", f32, []int{1, 3, 4}, []float64{1, 2, 3, 4, 5, 6, 8, 7, 9, 11, 10, 12})
			head := leaf(g, "head", f32, []int{3, 4}, []float64{0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1, 0.2, 0.3, 0.1, 0.4})
			if on {
				x, head = G.Must(p.Upload(x)), G.Must(p.Upload(head))
			}
			y := G.Must(Dropout(x, leaf(g, "step", tensor.Int, []int{1}, []float64{-1 << 32}), DropoutConfig{Rate: 0.5}))
			targets := leaf(g, "targets", tensor.Int, []int{1, 3}, []float64{0, float64(ignore), 2})
			values := make([]G.Value, 2)
			G.Read(G.Must(CrossEntropy(y, targets, ignore)), &values[0])
			G.Read(G.Must(LinearCrossEntropy(y, head, targets, ignore)), &values[1])
			m := G.NewTapeMachine(g)
			defer m.Close()
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
			for _, v := range values {
				results[i] = append(results[i], elements(v)...)
			}
		}
		for j, want := range results[0] {
			if got := results[1][j]; !(math.Abs(got-want) <= 1e-5) {
				t.Errorf("ignore %d: loss %d is %v on the device, %v on the host", ignore, j, got, want)
			}
		}
	}
}
