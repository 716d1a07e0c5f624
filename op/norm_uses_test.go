package op

import (
	"math/rand/v2"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
)

// normUses are uses of norms, and of operators that change the cells of a grid.
func normUses(batch, length, channels, scale int) []use {
	r := rand.New(rand.NewPCG(20, 14))
	input := func(name string, shape ...int) grad.Input {
		return grad.Input{Name: name, Value: dense(tensor.Float64, shape, normal(r, tensor.Shape(shape).TotalSize()))}
	}
	mask := func(shape ...int) grad.Input {
		v := make([]float64, tensor.Shape(shape).TotalSize())
		for i := range v {
			v[i] = float64(r.IntN(2))
		}
		return grad.Input{Name: "mask", Value: dense(tensor.Int, shape, v), Constant: true}
	}
	return []use{
		{"layer norm", func(in G.Nodes) (G.Nodes, error) { return one(LayerNorm(in[0], in[1], in[2], 1e-5)) },
			[]grad.Input{input("x", batch, length, channels), input("weight", channels), input("bias", channels)}},
		{"layer norm without weight and bias", func(in G.Nodes) (G.Nodes, error) { return one(LayerNorm(in[0], nil, nil, 1e-5)) },
			[]grad.Input{input("x", batch, 2, length, channels)}},
		{"layer norm of odd rows", func(in G.Nodes) (G.Nodes, error) { return one(LayerNorm(in[0], in[1], in[2], 1e-5)) },
			[]grad.Input{input("x", batch, length, channels+3), input("weight", channels+3), input("bias", channels+3)}},
		{"instance norm", func(in G.Nodes) (G.Nodes, error) { return one(InstanceNorm(in[0], in[1], in[2], 1e-5)) },
			[]grad.Input{input("x", batch, 2, 3, length, channels), input("weight", channels), input("bias", channels)}},
		{"instance norm without weight and bias", func(in G.Nodes) (G.Nodes, error) { return one(InstanceNorm(in[0], nil, nil, 1e-5)) },
			[]grad.Input{input("x", batch, length, channels+1)}},
		{"activated norm", func(in G.Nodes) (G.Nodes, error) {
			return one(ActivatedNorm(in[0], in[1], in[2], nil, ActivatedNormConfig{Eps: 1e-5, Activation: GELU}))
		}, []grad.Input{input("x", batch, 2, length, channels+1), input("weight", channels+1), input("bias", channels+1)}},
		{"activated norm with a residual", func(in G.Nodes) (G.Nodes, error) {
			return one(ActivatedNorm(in[0], in[1], in[2], in[3], ActivatedNormConfig{Eps: 1e-5, Activation: SiLU}))
		}, []grad.Input{input("x", batch, length, channels), input("weight", channels), input("bias", channels), input("residual", batch, length, channels)}},
		{"activated norms of two operands and LeakyReLU", func(in G.Nodes) (G.Nodes, error) {
			return one(ActivatedNorm(in[0], in[1], in[2], in[3], ActivatedNormConfig{Eps: 1e-5, Activation: LeakyReLU, NormResidual: true}))
		}, []grad.Input{input("x", batch, 2, 3, length, channels), input("weight", channels), input("bias", channels), input("residual", batch, 2, 3, length, channels)}},
		{"batch norm", func(in G.Nodes) (G.Nodes, error) {
			y, mean, variance, err := BatchNorm(in[0], in[1], in[2], 1e-5)
			return G.Nodes{y, mean, variance}, err
		}, []grad.Input{input("x", batch, 3, length, channels), input("weight", channels), input("bias", channels)}},
		{"batch norm with given statistics", func(in G.Nodes) (G.Nodes, error) {
			return one(BatchNormWith(in[0], in[1], in[2], in[3], in[4], 10)) // some tests draw negative variances
		}, []grad.Input{input("x", batch, 3, length, channels), input("weight", channels), input("bias", channels), input("mean", channels),
			input("variance", channels)}},
		{"merge of patches", func(in G.Nodes) (G.Nodes, error) {
			return one(SpaceToDepth(in[0], BlocksConfig{Block: []int{2, 2}, FirstFastest: true}))
		}, []grad.Input{input("x", batch, length, 3, channels)}},
		{"space to depth with a cut", func(in G.Nodes) (G.Nodes, error) {
			return one(SpaceToDepth(in[0], BlocksConfig{Block: []int{2, 1, 3}, Cut: true}))
		}, []grad.Input{input("x", batch, 3, 2, length, channels+1)}},
		{"depth to space", func(in G.Nodes) (G.Nodes, error) {
			return one(DepthToSpace(in[0], BlocksConfig{Block: []int{2, 2}}))
		}, []grad.Input{input("x", batch, 2, length, 4*channels)}},
		{"depth to space of one axis", func(in G.Nodes) (G.Nodes, error) {
			return one(DepthToSpace(in[0], BlocksConfig{Block: []int{3}, FirstFastest: true}))
		}, []grad.Input{input("x", batch, length, 3*scale)}},
		{"concatenation", func(in G.Nodes) (G.Nodes, error) { return one(Concat(2, in[0], in[1], in[2])) },
			[]grad.Input{input("value 0", batch, length, channels), input("value 1", batch, length, channels+3), input("value 2", batch, length, 1)}},
		{"insertion of a class token", func(in G.Nodes) (G.Nodes, error) {
			parts, err := SplitAxis(in[0], 1, 2, length-2)
			if err != nil {
				return nil, err
			}
			return one(Concat(1, parts[0], in[1], parts[1]))
		}, []grad.Input{input("x", batch, length, channels), input("value 1", 1, 1, channels)}},
		{"sum with a position embedding", func(in G.Nodes) (G.Nodes, error) { return one(Add(in[0], in[1])) },
			[]grad.Input{input("a", batch, length, channels), input("b", 1, length, channels)}},
		{"sum with a bias", func(in G.Nodes) (G.Nodes, error) { return one(Add(in[0], in[1])) },
			[]grad.Input{input("a", batch, 2, length, channels+1), input("b", channels+1)}},
		{"mean over a grid", func(in G.Nodes) (G.Nodes, error) { return one(MeanPool(in[0], in[1])) },
			[]grad.Input{input("x", batch, 2, length, channels), mask(batch, 2, length)}},
		{"nearest interpolation", func(in G.Nodes) (G.Nodes, error) {
			return one(Interpolate(in[0], InterpolateConfig{Size: []int{7, 2}}))
		}, []grad.Input{input("x", batch, 3, length, channels)}},
		{"linear interpolation", func(in G.Nodes) (G.Nodes, error) {
			return one(Interpolate(in[0], InterpolateConfig{Size: []int{4, 3, length + 2}, Mode: InterpolateLinear}))
		}, []grad.Input{input("x", batch, 2, 4, length, channels)}},
		{"linear interpolation with corners", func(in G.Nodes) (G.Nodes, error) {
			return one(Interpolate(in[0], InterpolateConfig{Size: []int{length + 3}, Mode: InterpolateLinear, AlignCorners: true}))
		}, []grad.Input{input("x", batch, length, channels+1)}},
		{"cubic interpolation", func(in G.Nodes) (G.Nodes, error) {
			return one(Interpolate(in[0], InterpolateConfig{Size: []int{6, length - 1}, Mode: InterpolateCubic}))
		}, []grad.Input{input("x", batch, 3, length, channels)}},
		{"cubic interpolation with corners", func(in G.Nodes) (G.Nodes, error) {
			return one(Interpolate(in[0], InterpolateConfig{Size: []int{9, 2 * length}, Mode: InterpolateCubic, AlignCorners: true}))
		}, []grad.Input{input("x", batch, 4, length, channels+1)}},
		{"max pool", func(in G.Nodes) (G.Nodes, error) {
			return one(MaxPool(in[0], PoolConfig{Kernel: []int{3, 2}, Stride: []int{2, 1}, Padding: []int{1, 1}}))
		}, []grad.Input{input("x", batch, 4, length, channels)}},
		{"average pool", func(in G.Nodes) (G.Nodes, error) {
			return one(AvgPool(in[0], PoolConfig{Kernel: []int{2, 2, 3}, Stride: []int{1, 2, 2}, Padding: []int{0, 1, 1}}))
		}, []grad.Input{input("x", batch, 2, 3, length, channels)}},
		{"average pool without padding", func(in G.Nodes) (G.Nodes, error) {
			return one(AvgPool(in[0], PoolConfig{Kernel: []int{3}, Stride: []int{2}, Padding: []int{1}, ExcludePadding: true}))
		}, []grad.Input{input("x", batch, length, channels+1)}},
		{"ReLU", func(in G.Nodes) (G.Nodes, error) { return one(Activate(in[0], ReLU)) }, []grad.Input{input("x", batch, length, channels)}},
		{"sigmoid", func(in G.Nodes) (G.Nodes, error) { return one(Activate(in[0], Sigmoid)) }, []grad.Input{input("x", batch, length, channels)}},
		{"activation LeakyReLU", func(in G.Nodes) (G.Nodes, error) { return one(Activate(in[0], LeakyReLU)) }, []grad.Input{input("x", batch, length, channels)}},
		{"gate of ReLU", func(in G.Nodes) (G.Nodes, error) { return one(Gate(in[0], in[1], ReLU)) },
			[]grad.Input{input("gate", batch, 2, length, channels), input("x", batch, 2, length, channels)}},
	}
}
