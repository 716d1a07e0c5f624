package grad_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
)

func apply(o G.Op) grad.Func {
	return grad.Single(func(in G.Nodes) (*G.Node, error) { return G.ApplyOp(o, in...) })
}

// The check passes for functions of Gorgonia's own operators whose gradients are right on both machines.
func TestCheckPasses(t *testing.T) {
	x := grad.Input{Name: "x", Value: dense([]int{2, 3}, wave(6, 1)...)}
	w := grad.Input{Name: "w", Value: dense([]int{3, 4}, wave(12, 2)...)}
	scalar := func(name string, v float64) grad.Input {
		return grad.Input{Name: name, Value: tensor.New(tensor.FromScalar(v))}
	}
	multiply := &automatic{symbolic{forward: forward{name: "multiply", operands: 2}}}
	for _, test := range []struct {
		name     string
		f        grad.Func
		inputs   []grad.Input
		opts     []grad.Option
		elements int
	}{
		{"identity", func(in G.Nodes) (G.Nodes, error) { return in, nil }, []grad.Input{x, w}, nil, 18},
		{"layer", func(in G.Nodes) (G.Nodes, error) {
			return G.Nodes{G.Must(G.Tanh(G.Must(G.Sigmoid(G.Must(G.Mul(in[0], in[1]))))))}, nil
		}, []grad.Input{x, w}, nil, 18},
		{"softmax", func(in G.Nodes) (G.Nodes, error) { return G.Nodes{G.Must(G.SoftMax(in[0]))}, nil }, []grad.Input{x},
			[]grad.Option{grad.Machines(grad.Tape)}, 6},
		{"scalars", func(in G.Nodes) (G.Nodes, error) {
			return G.Nodes{G.Must(G.Mul(G.Must(G.Exp(in[0])), in[1]))}, nil
		}, []grad.Input{scalar("a", 0.3), scalar("b", -2)}, nil, 2},
		{"sum", func(in G.Nodes) (G.Nodes, error) { return G.Nodes{G.Must(G.Sum(in[0]))}, nil }, []grad.Input{x}, nil, 6},
		{"one element", func(in G.Nodes) (G.Nodes, error) {
			return G.Nodes{G.Must(G.Square(in[0])), G.Must(G.Sin(in[1]))}, nil
		}, []grad.Input{{Name: "a", Value: dense([]int{1}, 2)}, {Name: "b", Value: dense([]int{1, 1, 1}, 3)}}, nil, 2},
		{"several outputs", func(in G.Nodes) (G.Nodes, error) {
			y := G.Must(G.HadamardProd(in[0], in[1]))
			return G.Nodes{y, G.Must(G.Sum(y)), G.Must(G.Cube(in[0])), y}, nil
		}, []grad.Input{x, {Name: "z", Value: dense([]int{2, 3}, wave(6, 3)...)}}, nil, 12},
		{"operator used twice", func(in G.Nodes) (G.Nodes, error) {
			y := G.Must(G.ApplyOp(multiply, in[0], in[0]))
			return G.Nodes{G.Must(G.ApplyOp(multiply, y, in[0]))}, nil
		}, []grad.Input{x}, nil, 6},
		{"sampled", func(in G.Nodes) (G.Nodes, error) { return G.Nodes{G.Must(G.Mul(in[0], in[1]))}, nil },
			[]grad.Input{x, w}, []grad.Option{grad.Sample(7, 1)}, 6 + 7},
		{"one machine", func(in G.Nodes) (G.Nodes, error) { return G.Nodes{G.Must(G.Square(in[0]))}, nil },
			[]grad.Input{x}, []grad.Option{grad.Machines(grad.Lisp)}, 6},
		{"steep", grad.Single(root), []grad.Input{{Name: "x", Value: dense([]int{4}, 0.001, 0.05, 1e6, 1e-4)}}, nil, 4},
		{"kink beside", grad.Single(func(in G.Nodes) (*G.Node, error) { return G.Abs(in[0]) }),
			[]grad.Input{{Name: "x", Value: dense([]int{4}, 1e-5, -1e-5, 3, -1e-4)}}, nil, 4},
		{"unused parts", func(in G.Nodes) (G.Nodes, error) {
			// The lisp machine would start at each of these unused nodes with a gradient of one.
			for _, n := range []*G.Node{G.Must(G.Exp(in[0])), G.Must(G.Sum(in[0]))} {
				var v G.Value
				if !n.IsScalar() {
					G.Read(n, &v)
				}
			}
			return G.Nodes{G.Must(G.Square(in[0]))}, nil
		}, []grad.Input{x}, nil, 6},
		{"unused constant", func(in G.Nodes) (G.Nodes, error) { return G.Nodes{G.Must(G.Square(in[0]))}, nil },
			[]grad.Input{x, {Name: "ids", Value: tensor.New(tensor.WithBacking([]int{3, 1, 2})), Constant: true}}, nil, 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			var before [][]float64
			for _, in := range test.inputs {
				if d, ok := in.Value.Data().([]float64); ok {
					before = append(before, slices.Clone(d))
				}
			}
			report := grad.MustCheck(t, test.f, test.inputs, test.opts...)
			if report.Elements != test.elements {
				t.Errorf("%d elements checked, want %d", report.Elements, test.elements)
			}
			for _, e := range report.Worst {
				if e.Relative() > 1e-6 && e.Absolute() > 1e-8 {
					t.Errorf("passed with %v", e)
				}
			}
			for _, in := range test.inputs {
				if d, ok := in.Value.Data().([]float64); ok {
					if !slices.Equal(d, before[0]) {
						t.Errorf("%s was %v, is %v", in.Name, before[0], d)
					}
					before = before[1:]
				}
			}
		})
	}
}

// The check fails for functions whose gradients are wrong in one way each, and the error names the fault. Without its fault each function is the
// product multiply of TestCheckPasses, which passes.
func TestCheckFails(t *testing.T) {
	x := grad.Input{Name: "x", Value: dense([]int{2, 3}, wave(6, 1)...)}
	w := grad.Input{Name: "w", Value: dense([]int{2, 3}, wave(6, 2)...)}
	product := func(change func(*symbolic)) *automatic {
		o := &automatic{symbolic{forward: forward{name: "product", operands: 2}}}
		change(&o.symbolic)
		return o
	}
	calls := 0
	for _, test := range []struct {
		name string
		f    grad.Func
		want []string // parts of the error
		not  []string // texts that the error must not have
	}{
		{"wrong factor", apply(product(func(o *symbolic) {
			o.fault = func(operand int, _ [][]float64, d []float64) {
				for k := range d {
					if operand == 1 {
						d[k] *= 2
					}
				}
			}
		})), []string{
			"grad: tape machine: w: 6 of 6 elements checked are wrong, the worst at",
			"grad: lisp machine: w: 6 of 6 elements checked are wrong, the worst at",
		}, []string{": x:"}},
		{"wrong element", apply(product(func(o *symbolic) {
			o.fault = func(operand int, _ [][]float64, d []float64) {
				if operand == 0 {
					d[4] += 1e-4
				}
			}
		})), []string{
			"tape machine: x: 1 of 6 elements checked are wrong, the worst at [1 1]: the gradient is ",
			"lisp machine: x: 1 of 6 elements checked are wrong, the worst at [1 1]: the gradient is ",
		}, []string{": w:"}},
		{"NaN", apply(product(func(o *symbolic) {
			o.fault = func(operand int, _ [][]float64, d []float64) {
				if operand == 0 {
					d[2] = math.NaN()
				}
			}
		})), []string{"tape machine: x: 1 of 6 elements checked are wrong, the worst at [0 2]: the gradient is NaN, finite differences give"}, nil},
		{"infinite", apply(product(func(o *symbolic) {
			o.fault = func(operand int, _ [][]float64, d []float64) {
				if operand == 1 {
					d[5] = math.Inf(-1)
				}
			}
		})), []string{"lisp machine: w: 1 of 6 elements checked are wrong, the worst at [1 2]: the gradient is -Inf"}, nil},
		{"no DoDiff", apply(&symbolic{forward: forward{name: "product without DoDiff", operands: 2}}), []string{
			"lisp machine: x: the gradient is zero in all 6 elements checked, but finite differences give ",
			"lisp machine: w: the gradient is zero",
			"; without DoDiff (gorgonia.ADOp): product without DoDiff",
		}, []string{"tape"}},
		{"no SymDiff", apply(&forward{name: "product without gradient", operands: 2}),
			[]string{"tape machine: gorgonia.Grad: ", "; without SymDiff (gorgonia.SDOp): product without gradient", "lisp machine: w: the gradient is zero"}, nil},
		{"not by one operand", apply(product(func(o *symbolic) { o.without = 2 })), []string{
			"tape machine: w: there is no gradient (gorgonia.Grad: Non Differentiable WRTs: ",
			", but finite differences give ",
			"lisp machine: w: the gradient is zero in all 6 elements checked",
		}, []string{": x:"}},
		{"nil gradient", apply(product(func(o *symbolic) {
			o.symDiff = func(grads G.Nodes) G.Nodes { return G.Nodes{grads[0], nil} }
		})), []string{"tape machine: gorgonia.Grad: panic: ", "does an operator's SymDiff return no gradient"}, []string{"lisp"}},
		{"too few gradients", apply(product(func(o *symbolic) {
			o.symDiff = func(grads G.Nodes) G.Nodes { return grads[:1] }
		})), []string{"tape machine: gorgonia.Grad: panic: "}, []string{"lisp"}},
		{"gradients swapped", apply(product(func(o *symbolic) {
			o.symDiff = func(grads G.Nodes) G.Nodes { return G.Nodes{grads[1], grads[0]} }
		})), []string{"tape machine: x: 6 of 6", "tape machine: w: 6 of 6"}, []string{"lisp"}},
		{"elements swapped", apply(product(func(o *symbolic) {
			// A loss that is a plain sum would not distinguish the outputs of a symmetric function.
			o.fault = func(operand int, in [][]float64, d []float64) {
				if operand == 0 {
					d[0], d[1] = d[1]/in[1][1]*in[1][0], d[0]/in[1][0]*in[1][1]
				}
			}
		})), []string{"tape machine: x: 2 of 6", "lisp machine: x: 2 of 6"}, []string{": w:"}},
		{"gradient of another shape", apply(product(func(o *symbolic) {
			o.symDiff = func(grads G.Nodes) G.Nodes { return G.Nodes{G.Must(G.Sum(grads[0])), grads[1]} }
		})), []string{"tape machine: the gradient by x is of float64 and shape (), want float64 and shape (2, 3)"}, []string{"lisp"}},
		{"other outputs beside the gradients", apply(product(func(o *symbolic) {
			runs := 0
			o.do = func(in [][]float64) {
				if runs++; runs > 2 { // after the two forward runs
					in[0] = wave(6, 5)
				}
			}
		})), []string{"tape machine: the outputs' weighted sum is ", " beside the gradients, ", "lisp machine: the outputs' weighted sum is "}, nil},
		{"does not depend", func(in G.Nodes) (G.Nodes, error) { return G.Nodes{G.Must(G.Square(in[0]))}, nil },
			[]string{"tape machine: w: there is no gradient (", "finite differences give 0 too, so the function does not depend on it: make it Constant"}, []string{": x:"}},
		{"overwrites an input", apply(product(func(o *symbolic) {
			o.do = func(in [][]float64) { in[1][3] = 7 }
		})), []string{"grad: forward: the run overwrites input w: at [1 0], ", " became 7"}, nil},
		{"overwrites an input backward", apply(product(func(o *symbolic) {
			o.fault = func(_ int, in [][]float64, _ []float64) { in[0][1] = -7 }
		})), []string{
			"tape machine: the run overwrites input x: at [0 1], ", " became -7",
			"lisp machine: the run overwrites input x: at [0 1], ",
		}, nil},
		{"changes with the run", apply(product(func(o *symbolic) {
			o.fault = func(operand int, _ [][]float64, d []float64) {
				if operand == 0 {
					calls++
					d[5] += 1e-12 * float64(calls) // far below the tolerance
				}
			}
		})), []string{
			"tape machine: x: the gradient at [1 2] is ", " in the first run, and ", " in the second run of the machine",
			" in the dual values that solvers read",
			"lisp machine: x: the gradient at [1 2] is ", " in the run of a second machine on the graph",
		}, []string{": w:"}},
		{"outputs change with the run", apply(product(func(o *symbolic) {
			o.do = func(in [][]float64) { calls++; in[0] = wave(6, float64(calls)) }
		})), []string{"forward: output 0 at [0 0] is ", " in the first run, and ", " in the second"}, nil},
		{"not finite", grad.Single(func(in G.Nodes) (*G.Node, error) { return G.Log(in[0]) }),
			[]string{"grad: forward: output 0 is NaN at [0 2], so there is no gradient to check"}, nil},
		// A fault of Gorgonia's: DoDiff makes the gradients of the output and the input share memory.
		{"softmax", grad.Single(func(in G.Nodes) (*G.Node, error) { return G.SoftMax(G.Must(G.HadamardProd(in[0], in[1]))) }),
			[]string{"lisp machine: x: the gradient at ", " in the run of a second machine"}, []string{"tape"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			report, err := grad.Check(test.f, []grad.Input{x, w})
			if err == nil {
				t.Fatalf("passed; %v", report)
			}
			t.Log(err)
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error is\n%v\nwhich lacks\n%s", err, want)
				}
			}
			for _, not := range test.not {
				if strings.Contains(err.Error(), not) {
					t.Errorf("the error is\n%v\nwhich should not have\n%s", err, not)
				}
			}
		})
	}
}
