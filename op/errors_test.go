package op

import (
	"fmt"
	"math"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

var f32, f64 = tensor.Float32, tensor.Float64

var everyDtype = []tensor.Dtype{f32, f64}

// The errors of CausalConv and CrossEntropy are tested in files of their own.

func TestSelectiveScanErrors(t *testing.T) {
	g := G.NewGraph()
	node := unbound(g)
	for _, test := range []struct {
		change func(in *ScanInputs)
		want   string
	}{
		{func(in *ScanInputs) { in.U = nil }, "U is missing"},
		{func(in *ScanInputs) { in.U = node(tensor.Int, 2, 5, 6) }, "U is of int, want float32 or float64"},
		{func(in *ScanInputs) { in.U = node(f64, 5, 6) }, "U has shape (5, 6), want (batch, length, channels)"},
		{func(in *ScanInputs) { in.U = node(f64, 2, 5, 6, 1) }, "U has shape (2, 5, 6, 1), want (batch, length, channels)"},
		{func(in *ScanInputs) { in.U = node(f32, 2, 5, 6) }, "Delta is of float64, want float32 like the other operands"},
		{func(in *ScanInputs) { in.Delta = nil }, "Delta is missing, want a node of shape (batch, length, channels)"},
		{func(in *ScanInputs) { in.Delta = node(f64, 2, 5, 7) },
			"Delta has shape (2, 5, 7), want (batch, length, channels) = (2, 5, 6)"},
		{func(in *ScanInputs) { in.A = nil }, "A is missing, want a node of shape (channels, state)"},
		{func(in *ScanInputs) { in.A = node(f64, 6) }, "A has shape (6), want (channels, state) = (6, any)"},
		{func(in *ScanInputs) { in.A = node(f64, 3, 6) }, "A has shape (3, 6), want (channels, state) = (6, any)"},
		{func(in *ScanInputs) { in.B = nil },
			"B is missing, want a node of shape (batch, length, state), (batch, length, groups, state) or (channels, state)"},
		{func(in *ScanInputs) { in.B = node(f64, 3) },
			"B has shape (3), want (batch, length, state), (batch, length, groups, state) or (channels, state)"},
		{func(in *ScanInputs) { in.B = node(f64, 2, 5, 4) }, "B has shape (2, 5, 4), want (batch, length, state) = (2, 5, 3)"},
		{func(in *ScanInputs) { in.B = node(f64, 3, 6) }, "B has shape (3, 6), want (channels, state) = (6, 3)"},
		{func(in *ScanInputs) { in.B = node(f64, 2, 5, 4, 3) }, "B has 4 groups, which does not divide 6 channels"},
		{func(in *ScanInputs) { in.B = node(f64, 2, 5, 12, 3) }, "B has 12 groups, which does not divide 6 channels"},
		{func(in *ScanInputs) { in.B = node(f64, 2, 4, 2, 3) },
			"B has shape (2, 4, 2, 3), want (batch, length, groups, state) = (2, 5, any, 3)"},
		{func(in *ScanInputs) { in.B = node(f32, 2, 5, 3) }, "B is of float32, want float64 like the other operands"},
		{func(in *ScanInputs) { in.C = nil },
			"C is missing, want a node of shape (batch, length, state), (batch, length, groups, state) or (channels, state)"},
		{func(in *ScanInputs) { in.C = node(f64, 2, 5, 4, 3) }, "C has 4 groups, which does not divide 6 channels"},
		{func(in *ScanInputs) { in.C = node(tensor.Int, 2, 5, 3) }, "C is of int, want float64 like the other operands"},
		{func(in *ScanInputs) { in.D = node(f64, 5) }, "D has shape (5), want (channels) = (6)"},
		{func(in *ScanInputs) { in.D = node(f64, 6, 1) }, "D has shape (6, 1), want (channels) = (6)"},
		{func(in *ScanInputs) { in.Z = node(f64, 2, 4, 6) }, "Z has shape (2, 4, 6), want (batch, length, channels) = (2, 5, 6)"},
		{func(in *ScanInputs) { in.Z = node(f32, 2, 5, 6) }, "Z is of float32, want float64 like the other operands"},
		{func(in *ScanInputs) { in.DeltaBias = node(f64, 3) }, "DeltaBias has shape (3), want (channels) = (6)"},
		{func(in *ScanInputs) { in.InitialState = node(f64, 2, 3, 6) },
			"InitialState has shape (2, 3, 6), want (batch, channels, state) = (2, 6, 3)"},
		{func(in *ScanInputs) { in.InitialState = node(f64, 6, 3) },
			"InitialState has shape (6, 3), want (batch, channels, state) = (2, 6, 3)"},
		{func(in *ScanInputs) { in.Start = node(f64, 2, 6) }, "Start has shape (2, 6), want (batch, length) = (2, 5)"},
		{func(in *ScanInputs) { in.Start = node(tensor.Bool, 2, 5) }, "Start is of bool, want float32, float64 or int"},
		{func(in *ScanInputs) { in.Start = unbound(G.NewGraph())(f64, 2, 5) }, "Start belongs to another graph than the other operands"},
		{func(in *ScanInputs) { in.D = unbound(G.NewGraph())(f64, 6) }, "D belongs to another graph than the other operands"},
	} {
		in := ScanInputs{U: node(f64, 2, 5, 6), Delta: node(f64, 2, 5, 6), A: node(f64, 6, 3), B: node(f64, 2, 5, 3), C: node(f64, 2, 5, 2, 3)}
		if _, err := SelectiveScan(in, ScanConfig{}); err != nil {
			t.Fatal(err)
		}
		test.change(&in)
		y, err := SelectiveScan(in, ScanConfig{})
		if want := "op: selective scan: " + test.want; y != nil || err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		y, final, again := SelectiveScanWithState(in, ScanConfig{})
		if y != nil || final != nil || again == nil || again.Error() != err.Error() {
			t.Errorf("with state: error %v, want %v", again, err)
		}
	}
}

func TestMambaBlockErrors(t *testing.T) {
	g := G.NewGraph()
	node := unbound(g)
	for _, test := range []struct {
		change func(in *BlockInputs, cfg *BlockConfig)
		want   string
	}{
		{func(in *BlockInputs, _ *BlockConfig) { in.X = nil }, "X is missing"},
		{func(in *BlockInputs, _ *BlockConfig) { in.X = node(tensor.Int, 2, 5, 3) }, "X is of int, want float32 or float64"},
		{func(in *BlockInputs, _ *BlockConfig) { in.X = node(f64, 5, 3) }, "X has shape (5, 3), want (batch, length, model)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.Norm = nil }, "Norm is missing, want a node of shape (model)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.Norm = node(f64, 4) }, "Norm has shape (4), want (model) = (3)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.ALog = nil }, "ALog is missing, want a node of shape (channels, state)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.ALog = node(f64, 6) }, "ALog has shape (6), want (channels, state)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.InProj = nil },
			"InProj is missing, want a node of shape (2·channels, model)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.InProj = node(f64, 6, 3) },
			"InProj has shape (6, 3), want (2·channels, model) = (12, 3)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.Conv = nil },
			"Conv is missing, want a node of shape (channels, 1, width)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.Conv = node(f64, 6, 4) },
			"Conv has shape (6, 4), want (channels, 1, width) = (6, 1, any)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.DtProj = nil }, "DtProj is missing, want a node of shape (channels, rank)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.DtProj = node(f64, 7, 2) },
			"DtProj has shape (7, 2), want (channels, rank) = (6, any)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.XProj = nil },
			"XProj is missing, want a node of shape (rank + 2·state, channels)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.XProj = node(f64, 9, 6) },
			"XProj has shape (9, 6), want (rank + 2·state, channels) = (10, 6)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.DtBias = nil }, "DtBias is missing, want a node of shape (channels)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.D = node(f64, 6, 1) }, "D has shape (6, 1), want (channels) = (6)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.D = node(f32, 6) }, "D is of float32, want float64 like the other operands"},
		{func(in *BlockInputs, _ *BlockConfig) { in.OutProj = node(f64, 6, 3) },
			"OutProj has shape (6, 3), want (model, channels) = (3, 6)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.InBias = node(f64, 6) }, "InBias has shape (6), want (2·channels) = (12)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.ConvBias = node(f64, 3) }, "ConvBias has shape (3), want (channels) = (6)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.OutBias = node(f64, 6) }, "OutBias has shape (6), want (model) = (3)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.Context = node(f64, 2, 4, 6) },
			"Context has shape (2, 4, 6), want (batch, width-1, channels) = (2, 3, 6)"},
		{func(in *BlockInputs, _ *BlockConfig) {
			in.Conv, in.Context = node(f64, 6, 1, 1), node(f64, 2, 3, 6)
		},
			"Context has shape (2, 3, 6), want none: a width of 1 reads no earlier step"},
		{func(in *BlockInputs, _ *BlockConfig) { in.InitialState = node(f64, 6, 4) },
			"InitialState has shape (6, 4), want (batch, channels, state) = (2, 6, 4)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.Start = node(f64, 2, 6) }, "Start has shape (2, 6), want (batch, length) = (2, 5)"},
		{func(in *BlockInputs, _ *BlockConfig) { in.Start = node(tensor.Bool, 2, 5) }, "Start is of bool, want float32, float64 or int"},
		{func(in *BlockInputs, _ *BlockConfig) { in.D = unbound(G.NewGraph())(f64, 6) }, "D belongs to another graph than the other operands"},
		{func(_ *BlockInputs, cfg *BlockConfig) { cfg.Eps = -1 }, "Eps is -1, want a finite number that is not negative"},
		{func(_ *BlockInputs, cfg *BlockConfig) { cfg.Eps = math.NaN() }, "Eps is NaN, want a finite number that is not negative"},
		{func(_ *BlockInputs, cfg *BlockConfig) { cfg.Recompute = 3 },
			"Recompute is 3, want RecomputeCheap, RecomputeNone or RecomputeAll"},
		{func(_ *BlockInputs, cfg *BlockConfig) { cfg.Recompute = -1 },
			"Recompute is -1, want RecomputeCheap, RecomputeNone or RecomputeAll"},
	} {
		in := BlockInputs{
			X: node(f64, 2, 5, 3), BlockWeights: BlockWeights[*G.Node]{
				Norm: node(f64, 3), InProj: node(f64, 12, 3), Conv: node(f64, 6, 1, 4), XProj: node(f64, 10, 6), DtProj: node(f64, 6, 2),
				DtBias: node(f64, 6), ALog: node(f64, 6, 4), D: node(f64, 6), OutProj: node(f64, 3, 6),
			},
		}
		cfg := BlockConfig{Eps: 1e-5}
		if _, err := MambaBlock(in, cfg); err != nil {
			t.Fatal(err)
		}
		test.change(&in, &cfg)
		y, err := MambaBlock(in, cfg)
		if want := "op: Mamba block: " + test.want; y != nil || err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		y, context, final, again := MambaBlockWithState(in, cfg)
		if y != nil || context != nil || final != nil || again == nil || again.Error() != err.Error() {
			t.Errorf("with state: error %v, want %v", again, err)
		}
	}
}

// unbound makes input nodes without a value.
func unbound(g *G.ExprGraph) func(dt tensor.Dtype, shape ...int) *G.Node {
	return func(dt tensor.Dtype, shape ...int) *G.Node {
		return G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprint(dt, shape)))
	}
}

func TestErrors(t *testing.T) {
	g := G.NewGraph()
	node, elsewhere := unbound(g), unbound(G.NewGraph())
	x, weight, vector := node(f64, 2, 5, 6), node(f64, 4, 6), node(f64, 6)
	ids := node(tensor.Int, 2, 5)
	scalar := G.NewScalar(g, f64, G.WithName("scalar"))
	for _, test := range []struct {
		nodes G.Nodes
		err   error
		want  string
	}{
		failure(Linear(nil, weight, nil))("linear: x is missing"),
		failure(Linear(ids, weight, nil))("linear: x is of int, want float32 or float64"),
		failure(Linear(vector, weight, nil))("linear: x has shape (6), want (batch, …, in)"),
		failure(Linear(node(f64, 1, 2, 0, 6), weight, nil))("linear: x has shape (1, 2, 0, 6), want (batch, …, in)"),
		failure(Linear(scalar, weight, nil))("linear: x has shape (), want (batch, …, in)"),
		failure(Linear(x, nil, nil))("linear: weight is missing, want a node of shape (out, in)"),
		failure(Linear(x, node(f64, 6, 4), nil))("linear: weight has shape (6, 4), want (out, in) = (any, 6)"),
		failure(Linear(x, vector, nil))("linear: weight has shape (6), want (out, in) = (any, 6)"),
		failure(Linear(x, node(f32, 4, 6), nil))("linear: weight is of float32, want float64 like the other operands"),
		failure(Linear(x, elsewhere(f64, 4, 6), nil))("linear: weight belongs to another graph than the other operands"),
		failure(Linear(x, weight, vector))("linear: bias has shape (6), want (out) = (4)"),
		failure(Linear(x, weight, node(f32, 4)))("linear: bias is of float32, want float64 like the other operands"),

		failure(Reshape(nil, 6))("reshape: x is missing"),
		failure(Reshape(x))("reshape: the shape is [], want one of 60 elements, those of x (2, 5, 6)"),
		failure(Reshape(x, 10, 7))("reshape: the shape is [10 7], want one of 60 elements, those of x (2, 5, 6)"),
		failure(Reshape(x, 10, -6))("reshape: axis 1 of the shape is -6, want at least 1"),
		failure(Pad(nil, nil, nil))("pad: x is missing"),
		failure(Pad(x, []int{1}, nil))("pad: before is [1] and after [], want 1 numbers each, one for each axis of the grid"),
		failure(Pad(x, []int{-3}, []int{-2}))("pad: before[0] is -3 and after[0] -2, want numbers from -2^31 to 2^31 that leave at least one of the 5 cells of axis 0"),
		failure(Scale(nil, vector, 1))("scale: x is missing"),
		failure(Scale(x, node(f64, 5), 1))("scale: weight has shape (5), want (channels) = (6)"),
		failure(Scale(x, vector, math.NaN()))("scale: by is NaN, want a finite number"),

		failure(RMSNorm(nil, vector, 0))("RMS norm: x is missing"),
		failure(RMSNorm(ids, vector, 0))("RMS norm: x is of int, want float32 or float64"),
		failure(RMSNorm(vector, vector, 0))("RMS norm: x has shape (6), want (batch, …, channels)"),
		failure(RMSNorm(x, nil, 0))("RMS norm: weight is missing, want a node of shape (channels)"),
		failure(RMSNorm(x, node(f64, 5), 0))("RMS norm: weight has shape (5), want (channels) = (6)"),
		failure(RMSNorm(x, node(f32, 6), 0))("RMS norm: weight is of float32, want float64 like the other operands"),
		failure(RMSNorm(x, elsewhere(f64, 6), 0))("RMS norm: weight belongs to another graph than the other operands"),
		failure(RMSNorm(x, vector, -1e-5))("RMS norm: eps is -1e-05, want a finite number that is not negative"),
		failure(RMSNorm(x, vector, math.NaN()))("RMS norm: eps is NaN, want a finite number that is not negative"),
		failure(RMSNorm(x, vector, math.Inf(1)))("RMS norm: eps is +Inf, want a finite number that is not negative"),

		failure(Embedding(nil, ids))("embedding: weight is missing"),
		failure(Embedding(ids, ids))("embedding: weight is of int, want float32 or float64"),
		failure(Embedding(x, ids))("embedding: weight has shape (2, 5, 6), want (vocabulary, channels)"),
		failure(Embedding(weight, nil))("embedding: ids is missing, want a node of int of shape (batch, length)"),
		failure(Embedding(weight, node(f64, 2, 5)))("embedding: ids is of float64, want int"),
		failure(Embedding(weight, node(tensor.Int, 5)))("embedding: ids has shape (5), want (batch, length)"),
		failure(Embedding(weight, elsewhere(tensor.Int, 2, 5)))("embedding: ids belongs to another graph than the other operands"),

		failures(Split(nil, 6))("split: x is missing"),
		failures(Split(ids, 5))("split: x is of int, want float32 or float64"),
		failures(Split(vector, 6))("split: x has shape (6), want (batch, …, channels)"),
		failures(SplitAxis(x, 3, 6))("split: the axis is 3, want one of the 3 axes of x, counted from 0"),
		failures(SplitAxis(x, 1, 3, 3))("split: sizes [3 3] add up to 6, want the size of the axis, 5"),
		failures(Split(x))("split: sizes [] add up to 0, want the channels, 6"),
		failures(Split(x, 3, 2))("split: sizes [3 2] add up to 5, want the channels, 6"),
		failures(Split(x, 3, 4))("split: sizes [3 4] add up to 7, want the channels, 6"),
		failures(Split(x, 0, 6))("split: size 0 is 0, want 1 to 6, the channels"),
		failures(Split(x, 7, -1))("split: size 0 is 7, want 1 to 6, the channels"),
		failures(Split(x, math.MaxInt, math.MaxInt, 8))(fmt.Sprintf("split: size 0 is %d, want 1 to 6, the channels", math.MaxInt)),

		failure(Add(nil, x))("add: a is missing"),
		failure(Add(ids, ids))("add: a is of int, want float32 or float64"),
		failure(Add(x, nil))("add: b is missing, want a node of shape (2, 5, 6) like a"),
		failure(LayerNorm(x, node(f64, 5), nil, 0))("layer norm: weight has shape (5), want (channels) = (6)"),
		failure(LayerNorm(x, vector, node(f32, 6), 0))("layer norm: bias is of float32, want float64 like the other operands"),
		failure(LayerNorm(x, nil, nil, math.Inf(1)))("layer norm: eps is +Inf, want a finite number that is not negative"),
		failure(InstanceNorm(vector, nil, nil, 0))("instance norm: x has shape (6), want (batch, …, channels)"),
		failure(ActivatedNorm(x, nil, nil, vector, ActivatedNormConfig{}))("activated norm: residual has shape (6), want (batch, grid…, channels) = (2, 5, 6)"),
		failure(ActivatedNorm(x, nil, nil, nil, ActivatedNormConfig{NormResidual: true}))("activated norm: NormResidual is true and the residual is missing, want both or neither"),
		failure(ActivatedNorm(x, nil, nil, nil, ActivatedNormConfig{Activation: -1}))("activated norm: the activation is -1, want SiLU, GELU, ReLU, Sigmoid or LeakyReLU"),
		failure(BatchNormWith(x, nil, nil, vector, nil, 0))("batch norm: variance is missing, want a node of shape (channels)"),
		failure(SpaceToDepth(x, BlocksConfig{}))("space to depth: Block has 0 axes, want 1 to 3, those of the grid"),
		failure(SpaceToDepth(x, BlocksConfig{Block: []int{2, 2}}))("space to depth: x has shape (2, 5, 6), want (batch, size, size, channels) with the 2 axes of Block"),
		failure(SpaceToDepth(x, BlocksConfig{Block: []int{0}}))("space to depth: Block is [0], want sizes of 1 to 1048576"),
		failure(SpaceToDepth(x, BlocksConfig{Block: []int{6}, Cut: true}))("space to depth: axis 0 of the grid is 5, want at least the 6 of Block, or no Cut"),
		failure(DepthToSpace(x, BlocksConfig{Block: []int{4}}))("depth to space: x has 6 channels, want a multiple of 4, the cells of a block of [4]"),
		failure(Concat(0))("concatenation: value 0 is missing"),
		failure(Concat(3, x, x))("concatenation: the axis is 3, want one of the 3 axes of value 0, counted from 0"),
		failure(Concat(1, x, node(f64, 2, 5, 7)))("concatenation: value 1 has shape (2, 5, 7), want like value 0 but for the axis = (2, any, 6)"),
		failure(Concat(1, x, nil))("concatenation: value 1 is missing, want a node of shape like value 0 but for the axis"),
		failure(Add(x, node(f64, 2, 5, 1)))("add: b has shape (2, 5, 1), want (2, 5, 6) like a, or the last sizes of it"),
		failure(Add(x, node(f64, 5)))("add: b has shape (5), want (2, 5, 6) like a, or the last sizes of it"),
		failure(Add(x, scalar))("add: b has shape (), want (2, 5, 6) like a, or the last sizes of it"),
		failure(Add(scalar, x))("add: b has shape (2, 5, 6), want () like a, or the last sizes of it"),
		failure(Add(x, node(f32, 2, 5, 6)))("add: b is of float32, want float64 like the other operands"),
		failure(Add(x, elsewhere(f64, 2, 5, 6)))("add: b belongs to another graph than the other operands"),

		failure(OuterProduct(nil, x, 2))("outer product: k is missing"),
		failure(OuterProduct(ids, x, 2))("outer product: k is of int, want float32 or float64"),
		failure(OuterProduct(weight, x, 2))("outer product: k has shape (4, 6), want (batch, length, channels)"),
		failure(OuterProduct(x, nil, 2))("outer product: v is missing, want a node of shape (batch, length, channels)"),
		failure(OuterProduct(x, node(f64, 2, 5, 4), 2))("outer product: v has shape (2, 5, 4), want (batch, length, channels) = (2, 5, 6)"),
		failure(OuterProduct(x, node(f32, 2, 5, 6), 2))("outer product: v is of float32, want float64 like the other operands"),
		failure(OuterProduct(x, elsewhere(f64, 2, 5, 6), 2))("outer product: v belongs to another graph than the other operands"),
		failure(OuterProduct(x, x, 0))("outer product: heads is 0, want a number that divides the channels, 6"),
		failure(OuterProduct(x, x, -2))("outer product: heads is -2, want a number that divides the channels, 6"),
		failure(OuterProduct(x, x, 4))("outer product: heads is 4, want a number that divides the channels, 6"),
		failure(OuterProduct(x, x, 12))("outer product: heads is 12, want a number that divides the channels, 6"),

		failure(Contract(nil, x, 6))("contraction: q is missing"),
		failure(Contract(x, nil, 6))("contraction: s is missing, want a node of shape (batch, length, heads·size·size)"),
		failure(Contract(x, x, 5))("contraction: heads is 5, want a number that divides the channels, 6"),
		failure(Contract(x, x, 3))("contraction: s has shape (2, 5, 6), want (batch, length, heads·size·size) = (2, 5, 12)"),
		failure(Contract(x, node(f32, 2, 5, 6), 6))("contraction: s is of float32, want float64 like the other operands"),

		failure(NegExp(nil))("negative exponential: x is missing"),
		failure(NegExp(ids))("negative exponential: x is of int, want float32 or float64"),
		failure(NegExp(G.NewConstant(2.0)))("negative exponential: x belongs to no graph"),
		failure(Add(scalar, G.NewConstant(2.0)))("add: b belongs to no graph, want that of the other operands"),
	} {
		if want := "op: " + test.want; test.err == nil || test.err.Error() != want || test.nodes != nil {
			t.Errorf("error %v, want %s", test.err, want)
		}
	}
}

type failed = struct {
	nodes G.Nodes
	err   error
	want  string
}

func failures(nodes G.Nodes, err error) func(string) failed {
	return func(want string) failed { return failed{nodes, err, want} }
}

func failure(n *G.Node, err error) func(string) failed {
	if n == nil {
		return failures(nil, err)
	}
	return failures(G.Nodes{n}, err)
}

// A value that is missing, or whose shape has changed since the graph was made, is an error of the run. The error names the operand.
func TestValueErrors(t *testing.T) {
	for _, u := range uses(1) {
		for _, in := range u.in {
			for _, lisp := range []bool{false, true} {
				g := G.NewGraph()
				if _, _, _, err := u.build(g, f64, nil); err != nil {
					t.Fatal(err)
				}
				n := g.ByName(in.Name)[0]
				for _, v := range []*tensor.Dense{
					tensor.New(tensor.Of(tensor.Bool), tensor.WithShape(n.Shape()...)),
					tensor.New(tensor.Of(n.Dtype()), tensor.WithShape(append(n.Shape(), 2)...)),
				} {
					if err := G.Let(n, v); err == nil {
						t.Errorf("%s: %s takes a value of %v and shape %v", u.name, in.Name, v.Dtype(), v.Shape())
					}
				}
				if n.Shape().TotalSize() == 1 {
					continue // a single number may have any shape
				}
				// Let refuses a wrong shape, but the tensor itself can be reshaped without the graph's knowledge.
				if err := n.Value().(*tensor.Dense).Reshape(n.Shape().TotalSize(), 1, 1, 1, 1); err != nil {
					t.Fatal(err)
				}
				err := runForward(g, lisp)
				name := in.Name
				if strings.HasPrefix(u.name, "deep supervision") && name != "targets" {
					name = "logits" // of the losses that it adds
				}
				want := fmt.Sprintf("%s has a value of %v and shape %v; it should be %[2]v of shape %[4]v",
					name, n.Dtype(), n.Value().Shape(), in.Value.Shape())
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s, lisp machine %t: error %v, want %s", u.name, lisp, err, want)
				}
			}
		}
	}
}

func TestNoValue(t *testing.T) {
	for _, u := range uses(1) {
		g := G.NewGraph()
		var in G.Nodes
		for _, i := range u.in {
			in = append(in, G.NewTensor(g, i.Value.Dtype(), i.Value.Dims(), G.WithShape(i.Value.Shape()...), G.WithName(i.Name)))
		}
		if _, err := u.f(in); err != nil {
			t.Fatal(err)
		}
		if err := runForward(g, false); err == nil {
			t.Errorf("%s: runs without operands", u.name)
		}
	}
}
