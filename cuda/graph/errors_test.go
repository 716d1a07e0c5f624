package graph

import (
	"math"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/op"
)

// Graphs are built, and what is wrong with one is found, without a GPU.
func noDevice() *Context { return &Context{device: new(cuda.Device)} }

func hostNode(g *G.ExprGraph, name string, dt tensor.Dtype, shape ...int) *G.Node {
	return G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(name))
}

func TestErrorsNameTheOperand(t *testing.T) {
	c, g := noDevice(), G.NewGraph()
	f := func(name string, shape ...int) *G.Node { return hostNode(g, name, tensor.Float32, shape...) }
	ints := func(name string, shape ...int) *G.Node { return hostNode(g, name, tensor.Int, shape...) }
	x := f("x", 2, 3, 8)
	block := func(spoil func(*op.BlockInputs)) func() error {
		return func() error {
			in := op.BlockInputs{
				X: x, NormWeight: f("norm", 8), InProj: f("in", 32, 8), ConvWeight: f("conv", 16, 1, 4), XProj: f("xp", 9, 16),
				DtProj: f("dt", 16, 1), DtBias: f("bias", 16), ALog: f("a", 16, 4), D: f("d", 16), OutProj: f("out", 8, 16),
			}
			spoil(&in)
			_, _, _, err := c.MambaBlock(in, BlockConfig{Eps: 1e-5}, true)
			return err
		}
	}
	for want, do := range map[string]func() error{
		"":                                      block(func(*op.BlockInputs) {}),
		"block: DtBias is missing":              block(func(in *op.BlockInputs) { in.DtBias = nil }),
		"block: X has shape (2, 8)":             block(func(in *op.BlockInputs) { in.X = f("x2", 2, 8) }),
		"block: OutProj has shape (8, 17)":      block(func(in *op.BlockInputs) { in.OutProj = f("out2", 8, 17) }),
		"block: XProj has shape (8, 16)":        block(func(in *op.BlockInputs) { in.XProj = f("xp2", 8, 16) }),
		"block: Context has shape (2, 4, 16)":   block(func(in *op.BlockInputs) { in.Context = f("context", 2, 4, 16) }),
		"block: Start has shape (3, 2)":         block(func(in *op.BlockInputs) { in.Start = ints("start", 3, 2) }),
		"block: InitialState has shape (1, 16,": block(func(in *op.BlockInputs) { in.InitialState = f("h", 1, 16, 4) }),
		"block: Context has shape (2, 3, 16), want none": block(func(in *op.BlockInputs) {
			in.ConvWeight, in.Context = f("narrow", 16, 1, 1), f("context1", 2, 3, 16)
		}),
		"block: X is of float64": func() error {
			d := func(name string, shape ...int) *G.Node { return hostNode(g, name, tensor.Float64, shape...) }
			_, _, _, err := c.MambaBlock(op.BlockInputs{
				X: d("xd", 2, 3, 8), NormWeight: d("nd", 8), InProj: d("ind", 32, 8), ConvWeight: d("convd", 16, 1, 4), XProj: d("xpd", 9, 16),
				DtProj: d("dtd", 16, 1), DtBias: d("biasd", 16), ALog: d("ad", 16, 4), D: d("dd", 16), OutProj: d("outd", 8, 16),
			}, BlockConfig{Eps: 1e-5}, true)
			return err
		},
		"Width is 17, want at most 16": block(func(in *op.BlockInputs) { in.ConvWeight = f("wide", 16, 1, 17) }),
		"State is 257, want at most 256": block(func(in *op.BlockInputs) {
			in.XProj, in.ALog = f("xp257", 515, 16), f("a257", 16, 257)
		}),
		"State in bfloat16 is 17, want at most 16": func() error {
			_, _, _, err := c.MambaBlock(op.BlockInputs{
				X: x, NormWeight: f("n17", 8), InProj: f("in17", 32, 8), ConvWeight: f("conv17", 16, 1, 4), XProj: f("xp17", 35, 16),
				DtProj: f("dt17", 16, 1), DtBias: f("bias17", 16), ALog: f("a17", 16, 17), D: f("d17", 16), OutProj: f("out17", 8, 16),
			}, BlockConfig{Eps: 1e-5, Precision: cuda.BF16}, true)
			return err
		},
		"RMS norm: weight is missing":                          func() error { _, err := c.RMSNorm(x, nil, 0); return err },
		"RMS norm: x has shape (2, 3, 8) and weight (7)":       func() error { _, err := c.RMSNorm(x, f("w7", 7), 0); return err },
		"embedding: weight has shape (5, 8) and ids are float": func() error { _, _, err := c.Embedding(f("e", 5, 8), f("ids", 2, 3)); return err },
		"logits: x has shape (2, 3, 8) and weight (5, 7)":      func() error { _, err := c.Logits(x, f("h57", 5, 7), cuda.Strict); return err },
		"loss: targets are int (2, 4)":                         func() error { _, err := c.Loss(x, f("h58", 5, 8), ints("t", 2, 4), -100, cuda.Strict); return err },
		"loss: targets is missing":                             func() error { _, err := c.Loss(x, f("h58b", 5, 8), nil, -100, cuda.Strict); return err },
		"low rank: b is missing":                               func() error { _, err := c.LowRank(f("w1", 5, 8), f("a1", 2, 8), nil, 1, true); return err },
		"low rank: weight has shape (5, 8), a (2, 8) and b (5, 3)": func() error {
			_, err := c.LowRank(f("w2", 5, 8), f("a2", 2, 8), f("b2", 5, 3), 1, true)
			return err
		},
		"low rank: scale is NaN": func() error {
			_, err := c.LowRank(f("w3", 5, 8), f("a3", 2, 8), f("b3", 5, 2), math.NaN(), true)
			return err
		},
		"upload: int (2, 3), want a tensor of float32": func() error { _, err := c.Upload(ints("up", 2, 3)); return err },
		"download: the node is missing":                func() error { _, err := c.Download(nil); return err },
		"the device is missing":                        func() error { _, err := On(nil); return err },
		"weight: a tensor of float64 (2)": func() error {
			_, err := c.NewWeight(tensor.New(tensor.WithShape(2), tensor.Of(tensor.Float64)))
			return err
		},
		"decoder: batch is 0": func() error { _, err := c.NewDecoder(DecoderModel{Model: 8, Channels: 16}, 0, 1); return err },
		"Channels is 1048576": func() error { _, err := c.NewDecoder(DecoderModel{Model: 8, Channels: 1 << 20}, 1, 1); return err },
	} {
		switch err := do(); {
		case want == "" && err != nil:
			t.Errorf("a block with right operands: %v", err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("the error is %v, want one that contains %q", err, want)
		}
	}
}

// TestBlockOfEverything checks the shapes of the results and gradients of a block with all optional operands.
func TestBlockOfEverything(t *testing.T) {
	c, g := noDevice(), G.NewGraph()
	f := func(name string, shape ...int) *G.Node { return hostNode(g, name, tensor.Float32, shape...) }
	start, err := c.Starts(hostNode(g, "start", tensor.Int, 2, 3))
	if err != nil {
		t.Fatal(err)
	}
	in := op.BlockInputs{
		X: f("x", 2, 3, 8), NormWeight: f("norm", 8), InProj: f("in", 32, 8), ConvWeight: f("conv", 16, 1, 4), XProj: f("xp", 9, 16),
		DtProj: f("dt", 16, 1), DtBias: f("bias", 16), ALog: f("a", 16, 4), D: f("d", 16), OutProj: f("out", 8, 16),
		InBias: f("inb", 32), ConvBias: f("convb", 16), OutBias: f("outb", 8), Context: f("context", 2, 3, 16), InitialState: f("h", 2, 16, 4),
		Start: start,
	}
	y, context, final, err := c.MambaBlock(in, BlockConfig{Eps: 1e-5, Precision: cuda.BF16}, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct {
		n    *G.Node
		want tensor.Shape
	}{{y, tensor.Shape{2, 3, 8}}, {context, tensor.Shape{2, 3, 16}}, {final, tensor.Shape{2, 16, 4}}} {
		if !r.n.Shape().Eq(r.want) {
			t.Errorf("%v has shape %v, want %v", r.n, r.n.Shape(), r.want)
		}
	}
	loss, err := c.Loss(y, f("head", 5, 8), hostNode(g, "targets", tensor.Int, 2, 3), -100, cuda.BF16)
	if err != nil {
		t.Fatal(err)
	}
	wrt := G.Nodes{in.X, in.InBias, in.InitialState, in.ALog}
	grads, err := G.Grad(loss, wrt...)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range grads {
		if !n.Shape().Eq(wrt[i].Shape()) {
			t.Errorf("the gradient of %v has shape %v, want %v", wrt[i], n.Shape(), wrt[i].Shape())
		}
	}
}

// TestHostValues checks that a value on the host as an operand of an operator on the device is an error that says so.
func TestHostValues(t *testing.T) {
	c, g := noDevice(), G.NewGraph()
	x := G.NodeFromAny(g, tensor.New(tensor.WithShape(1, 2, 4), tensor.Of(tensor.Float32)), G.WithName("x"))
	w := G.NodeFromAny(g, tensor.New(tensor.WithShape(4), tensor.Of(tensor.Float32)), G.WithName("w"))
	if _, err := c.RMSNorm(x, w, 1e-5); err != nil {
		t.Fatal(err)
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err == nil || !strings.Contains(err.Error(), "x has a value *tensor.Dense") {
		t.Errorf("an operand on the host: the error is %v", err)
	}
}

// TestZeros checks that tensors of zeros have no memory, that package tensor calls the engine for sums, and that reading an overwritten value
// is an error.
func TestZeros(t *testing.T) {
	c := noDevice()
	a, b := c.newTensor(tensor.Shape{3}), c.newTensor(tensor.Shape{3})
	if !a.zero() || a.add(b) != nil || !a.zero() {
		t.Error("the sum of two tensors of zeros is not a tensor of zeros without memory")
	}
	sum, err := tensor.Add(a, b, tensor.UseUnsafe())
	if err != nil || sum != tensor.Tensor(a) {
		t.Errorf("package tensor adds %v, %v, want the engine's sum in place", sum, err)
	}
	if _, err := tensor.Mul(a, b); err == nil {
		t.Error("a product of tensors on a device: no error")
	}
	other := noDevice().newTensor(tensor.Shape{3})
	if _, err := tensor.Add(a, other); err == nil {
		t.Error("a sum over two devices: no error")
	}
	a.drop()
	if _, err := a.array(); err == nil || !strings.Contains(err.Error(), "run one machine of a graph at a time") {
		t.Errorf("the error of reading an overwritten value is %v", err)
	}
}
