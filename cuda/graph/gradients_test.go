package graph

import (
	"math"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/op"
)

// layers builds operators on the host or on a device.
type layers struct {
	on      *Context // nil for the host
	g       *G.ExprGraph
	inputs  G.Nodes
	targets *G.Node
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// input is an input node whose gradient is computed.
func (l *layers) input(name string, shape ...int) *G.Node {
	v := make([]float32, tensor.Shape(shape).TotalSize())
	for i := range v {
		v[i] = float32(math.Sin(float64(i + 7*len(l.inputs))))
	}
	n := G.NodeFromAny(l.g, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v)), G.WithName(name))
	l.inputs = append(l.inputs, n)
	if l.on == nil {
		return n
	}
	return must(l.on.Upload(n))
}

func (l *layers) norm(x, weight *G.Node) *G.Node {
	if l.on == nil {
		return must(op.RMSNorm(x, weight, 1e-5))
	}
	return must(l.on.RMSNorm(x, weight, 1e-5))
}

func (l *layers) product(x, weight *G.Node) *G.Node {
	if l.on == nil {
		return must(op.Linear(x, weight, nil))
	}
	return must(l.on.Logits(x, weight, cuda.Strict))
}

func (l *layers) loss(x, weight *G.Node) *G.Node {
	if l.on == nil {
		return must(op.CrossEntropy(must(op.Linear(x, weight, nil)), l.targets, -1))
	}
	return must(l.on.Loss(x, weight, l.targets, -1, cuda.Strict))
}

// sum returns the sum of squares, on the host.
func (l *layers) sum(x *G.Node) *G.Node {
	if l.on != nil {
		x = must(l.on.Download(x))
	}
	return must(G.Sum(must(G.Square(x))))
}

// TestGradientsOfOneResult checks that a result on a device that several operators read, or that is differentiated several times, has the
// same gradients as on the host.
func TestGradientsOfOneResult(t *testing.T) {
	c, err := On(gputest.Open(t, cuda.Open))
	if err != nil {
		t.Fatal(err)
	}
	for name, costs := range map[string]func(l *layers, x, w, head *G.Node) *G.Node{
		"two readers": func(l *layers, x, w, head *G.Node) *G.Node {
			y := l.norm(x, w)
			return must(G.Add(l.sum(l.product(y, head)), l.sum(l.norm(y, w))))
		},
		"three readers, one of them on the host": func(l *layers, x, w, head *G.Node) *G.Node {
			y := l.norm(x, w)
			return must(G.Add(must(G.Add(l.sum(l.product(y, head)), l.sum(y))), l.loss(y, head)))
		},
		"two downloads": func(l *layers, x, w, head *G.Node) *G.Node {
			y := l.product(l.norm(x, w), head)
			return must(G.Add(l.sum(y), must(G.Mul(l.sum(y), G.NewConstant(float32(0.5))))))
		},
		"a loss read twice": func(l *layers, x, w, head *G.Node) *G.Node {
			y := l.loss(l.norm(x, w), head)
			return must(G.Add(must(G.Square(y)), y))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var results [2][]float32
			var wrong [2]error
			for i, on := range []*Context{nil, c} {
				l := &layers{on: on, g: G.NewGraph()}
				l.targets = G.NodeFromAny(l.g, tensor.New(tensor.WithShape(2, 3), tensor.WithBacking([]int{0, 1, 2, 3, 4, 0})), G.WithName("targets"))
				cost := costs(l, l.input("x", 2, 3, 4), l.input("w", 4), l.input("head", 5, 4))
				read := append(must(G.Grad(cost, l.inputs...)), cost)
				values := make([]G.Value, len(read))
				for j, n := range read {
					G.Read(n, &values[j])
				}
				vm := G.NewTapeMachine(l.g)
				defer vm.Close()
				for range 2 { // the second run reuses the memory of the first
					vm.Reset()
					if wrong[i] = vm.RunAll(); wrong[i] != nil {
						break
					}
				}
				for _, v := range values {
					if v == nil {
						continue
					}
					if x, ok := v.Data().(float32); ok {
						results[i] = append(results[i], x)
					} else {
						results[i] = append(results[i], v.Data().([]float32)...)
					}
				}
			}
			if wrong[0] != nil || wrong[1] != nil {
				t.Fatal(wrong)
			}
			for j, want := range results[0] {
				if got := results[1][j]; !(math.Abs(float64(got-want)) <= 1e-4*max(1, math.Abs(float64(want)))) {
					t.Fatalf("number %d is %v on the device, %v on the host", j, got, want)
				}
			}
		})
	}
}

// TestDifferentiatedTwice calls SymDiff twice for one operator. Either both gradients are right, or the second call returns an error.
func TestDifferentiatedTwice(t *testing.T) {
	c, err := On(gputest.Open(t, cuda.Open))
	if err != nil {
		t.Fatal(err)
	}
	for name, apply := range map[string]func(l *layers) (y *G.Node, in G.Nodes){
		"norm": func(l *layers) (*G.Node, G.Nodes) {
			in := G.Nodes{l.input("x", 2, 3, 4), l.input("w", 4)}
			return l.norm(in[0], in[1]), in
		},
		"logits": func(l *layers) (*G.Node, G.Nodes) {
			in := G.Nodes{l.input("x", 2, 3, 4), l.input("head", 5, 4)}
			return l.product(in[0], in[1]), in
		},
		"loss": func(l *layers) (*G.Node, G.Nodes) {
			in := operands{{"x", onDevice, l.input("x", 2, 3, 4)}, {"weight", onDevice, l.input("head", 5, 4)}, {"targets", onHost, l.targets}}
			f := must(newHead("loss", in, cuda.Strict))
			return must(c.apply(&loss{f, -1}, in, tensor.Shape{1}))[0], G.Nodes{in[0].node, in[1].node, in[2].node}
		},
		"block": func(l *layers) (*G.Node, G.Nodes) {
			in := op.BlockInputs{
				X: l.input("x", 2, 3, 8), NormWeight: l.input("norm", 8), InProj: l.input("in", 32, 8), ConvWeight: l.input("conv", 16, 1, 4),
				XProj: l.input("xp", 9, 16), DtProj: l.input("dt", 16, 1), DtBias: l.input("bias", 16), ALog: l.input("a", 16, 4),
				D: l.input("d", 16), OutProj: l.input("out", 8, 16),
			}
			y, _, _, err := c.MambaBlock(in, BlockConfig{Eps: 1e-5}, false)
			return must(y, err), G.Nodes{in.X, in.NormWeight, in.InProj, in.ConvWeight, in.XProj, in.DtProj, in.DtBias, in.ALog, in.D, in.OutProj}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var all [2][]G.Value
			for i, times := range []int{1, 2} {
				l := &layers{on: c, g: G.NewGraph()}
				l.targets = G.NodeFromAny(l.g, tensor.New(tensor.WithShape(2, 3), tensor.WithBacking([]int{0, 1, 2, 3, 4, 0})), G.WithName("targets"))
				y, in := apply(l)
				var read G.Nodes
				for k := range times {
					by := tensor.New(tensor.WithShape(y.Shape()...), tensor.Of(tensor.Float32))
					if err := by.Memset(float32(1 + k)); err != nil {
						t.Fatal(err)
					}
					grad := must(c.Upload(G.NodeFromAny(l.g, by, G.WithName([]string{"one", "two"}[k]))))
					grads, err := y.Op().(G.SDOp).SymDiff(in, y, grad)
					if err != nil {
						if k == 1 && name == "loss" && strings.Contains(err.Error(), "computed twice, want once") {
							return
						}
						t.Fatal(err)
					}
					if k == 1 && name == "loss" {
						t.Fatal("the second SymDiff of an operator whose backward pass overwrites kept values: no error")
					}
					for _, n := range grads {
						if n != nil {
							read = append(read, must(c.Download(n)))
						}
					}
				}
				all[i] = make([]G.Value, len(read))
				for j, n := range read {
					G.Read(n, &all[i][j])
				}
				vm := G.NewTapeMachine(l.g)
				defer vm.Close()
				for range 2 {
					vm.Reset()
					if err := vm.RunAll(); err != nil {
						t.Fatal(err)
					}
				}
			}
			once, twice := all[0], all[1]
			for j, v := range twice {
				for k, want := range once[j%len(once)].Data().([]float32) {
					want *= float32(1 + j/len(once))
					if got := v.Data().([]float32)[k]; !(math.Abs(float64(got-want)) <= 1e-5*max(1, math.Abs(float64(want)))) {
						t.Fatalf("gradient %d of %d: number %d is %v, want %v", j, len(twice), k, got, want)
					}
				}
			}
		})
	}
}
