package mamba_test

import (
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// The norms, and what changes the cells of a grid.
func init() {
	others = append(others, func(g *gpu) []call { return slices.Concat(imageLayerCalls(), imageOpCalls(), imageCUDACalls(g)) })
}

func imageLayerCalls() []call {
	grid := shape{2, 4, 6, 4}
	of := func(s shape) map[string]call {
		apply := call{args: nodesOf(s), fine: another}
		return map[string]call{"Apply": apply, "Fwd": apply}
	}
	norm, instance := layer.LayerNormConfig{Channels: 4, Eps: 1e-5}, layer.InstanceNormConfig{Channels: 4, Eps: 1e-5, Affine: true}
	mlp := layer.MLPConfig{Channels: 4, Hidden: 8, Out: 5, Activation: op.ReLU}
	merging := layer.PatchMergingConfig{Channels: 4, Out: 6, Block: []int{2, 2}, Eps: 1e-5}
	expanding := layer.PatchExpandingConfig{Channels: 4, Out: 2, Block: []int{2, 2}, Eps: 1e-5}
	position := layer.PositionEmbeddingConfig{Grid: []int{4, 6}, Channels: 4}
	token := layer.ClassTokenConfig{Channels: 4, Middle: true}
	batch := layer.BatchNormConfig{Channels: 4, Eps: 1e-5, Momentum: 0.1}
	tokens := of(inputShape)
	tokens["Read"] = tokens["Apply"]
	return slices.Concat(
		methods("layer.LayerNorm", func() any { return layer.NewLayerNorm(norm) }, of(inputShape)),
		methods("layer.InstanceNorm", func() any { return layer.NewInstanceNorm(instance) }, of(grid)),
		methods("layer.MLP", func() any { return layer.NewMLP(mlp) }, of(grid)),
		methods("layer.PatchMerging", func() any { return layer.NewPatchMerging(merging) }, of(grid)),
		methods("layer.PatchExpanding", func() any { return layer.NewPatchExpanding(expanding) }, of(grid)),
		methods("layer.PositionEmbedding", func() any { return layer.NewPositionEmbedding(position) }, of(grid)),
		methods("layer.ClassToken", func() any { return layer.NewClassToken(token) }, tokens),
		methods("layer.BatchNorm", func() any { return layer.NewBatchNorm(batch) }, of(grid)),
		configured("BatchNorm", layer.NewBatchNorm, batch, "Eps", "Momentum"),
		[]call{
			{name: "layer.WithTraining", f: func(x, step *G.Node) (*G.Node, error) {
				return layer.NewBatchNorm(batch).Apply(x, layer.WithTraining(step))
			}, args: func() []any { f, ints := inputs(); return []any{f(grid...), ints(1)} }, fine: []string{"0=of another graph", "1=*: no dropout draws from it"}},
		},
		configured("LayerNorm", layer.NewLayerNorm, norm, "Eps"),
		configured("InstanceNorm", layer.NewInstanceNorm, instance, "Eps"),
		configured("MLP", layer.NewMLP, mlp, "Hidden", "Out", "Activation"),
		configured("PatchMerging", layer.NewPatchMerging, merging, "Out", "Block=nil", "Eps"),
		configured("PatchExpanding", layer.NewPatchExpanding, expanding, "Out", "Block=nil", "Eps"),
		configured("PositionEmbedding", layer.NewPositionEmbedding, position),
		configured("ClassToken", layer.NewClassToken, token),
	)
}

func imageOpCalls() []call {
	x, channels := shape{2, 4, 6, 4}, shape{4}
	nodes := func(rest []any, shapes ...shape) func() []any {
		return func() []any { return append(nodesOf(shapes...)(), rest...) }
	}
	pool := op.PoolConfig{Kernel: []int{2, 3}, Stride: []int{1, 2}, Padding: []int{1, 1}, ExcludePadding: true}
	blocks := op.BlocksConfig{Block: []int{2, 2}, FirstFastest: true, Cut: true}
	return append(methods("op.Interpolation", func() any { return op.InterpolateCubic }, nil), []call{
		{name: "op.LayerNorm", f: op.LayerNorm, args: nodes([]any{1e-5}, x, channels, channels), fine: []string{"1=nil", "2=nil", "3=0"}},
		{name: "op.InstanceNorm", f: op.InstanceNorm, args: nodes([]any{1e-5}, x, channels, channels), fine: []string{"1=nil", "2=nil", "3=0"}},
		{name: "op.ActivatedNorm", f: op.ActivatedNorm, args: nodes([]any{op.ActivatedNormConfig{Eps: 1e-5, Activation: op.GELU, NormResidual: true}}, x, channels, channels, x),
			fine: []string{"1=nil", "2=nil", "4=zero", "4.Eps=0", "4.Activation=0"}},
		{name: "op.BatchNorm", f: op.BatchNorm, args: nodes([]any{1e-5}, x, channels, channels), fine: []string{"1=nil", "2=nil", "3=0"}},
		{name: "op.BatchNormWith", f: op.BatchNormWith, args: nodes([]any{1e-5}, x, channels, channels, channels, channels), fine: []string{"1=nil", "2=nil", "5=0"}},
		{name: "op.SpaceToDepth", f: op.SpaceToDepth, args: nodes([]any{blocks}, x), fine: []string{"0=of another graph"}},
		{name: "op.DepthToSpace", f: op.DepthToSpace, args: nodes([]any{blocks}, x), fine: []string{"0=of another graph"}},
		{name: "op.Concat", f: op.Concat, args: func() []any { return append([]any{1}, nodesOf(x, shape{1, 3, 6, 4})()...) }},
		{name: "op.Interpolate", f: op.Interpolate, args: nodes([]any{op.InterpolateConfig{Size: []int{5, 7}, Mode: op.InterpolateCubic, AlignCorners: true}}, x),
			fine: []string{"0=of another graph", "0=axis*: the result does not grow"}},
		{name: "op.MaxPool", f: op.MaxPool, args: nodes([]any{pool}, x), fine: []string{"0=of another graph", "1.Stride=nil", "1.Padding=nil", "1.Padding[*]=0"}},
		{name: "op.AvgPool", f: op.AvgPool, args: nodes([]any{pool}, x), fine: []string{"0=of another graph", "1.Stride=nil", "1.Padding=nil", "1.Padding[*]=0"}},
		{name: "op.SplitAxis", f: op.SplitAxis, args: nodes([]any{1, 1, 3}, x), fine: []string{"0=of another graph", "0=of more axes"}},
	}...)
}

func imageCUDACalls(g *gpu) []call {
	s, f := g.stream, func(n int) cuda.Array[float32] { return array[float32](g, n) }
	norm := func() *cuda.LayerNorm {
		return &cuda.LayerNorm{Rows: 6, Width: 4, Eps: 1e-5, X: f(24), Weight: f(4), Bias: f(4)}
	}
	channelNorm := func() *cuda.ChannelNorm {
		return &cuda.ChannelNorm{Groups: 2, Rows: 3, Channels: 4, Eps: 1e-5, X: f(24), Weight: f(4), Bias: f(4),
			Activated: true, Activation: cuda.LeakyReLU, Residual: f(24), NormResidual: true}
	}
	blocks := func() *cuda.Blocks {
		return &cuda.Blocks{Batch: 1, Wide: [3]int{1, 2, 6}, Deep: [3]int{1, 1, 3}, Block: [3]int{1, 2, 2}, Channels: 2}
	}
	row := func(name string, f any, args func() []any, fine ...string) call {
		return call{name: "cuda." + name, f: f, args: args, fine: fine}
	}
	kept := func() *cuda.ChannelNormKept {
		if g.t == nil {
			return new(cuda.ChannelNormKept)
		}
		return must(channelNorm().Forward(s, f(24), f(8), f(8), true))
	}
	normFine := append(absent("0.", "Weight", "Bias"), "0.Eps=0")
	channelFine := append(absent("0.", "Weight", "Bias", "Mean", "Variance"), "0.Eps=0", "0.Activation=0")
	return g.without(slices.Concat(
		methods("cuda.LayerNorm", func() any { return norm() }, map[string]call{
			"Forward":  {args: func() []any { return []any{s, f(24)} }, fine: append([]string{"0=zero: there is nothing to compute", "0.Rows=0", "0.Width=0"}, normFine...)},
			"Backward": {args: func() []any { return []any{s, f(24), f(24), f(4), f(4)} }, fine: append([]string{"0=zero: there is nothing to compute", "0.Rows=0", "0.Width=0", "4=zero", "5=zero"}, normFine...)},
		}),
		methods("cuda.ChannelNorm", func() any { return channelNorm() }, map[string]call{
			"Forward": {args: func() []any { return []any{s, f(24), f(8), f(8), true} }, fine: channelFine},
			"Backward": {args: func() []any {
				return []any{s, kept(), f(24), f(8), f(8), &cuda.ChannelNormGrad{X: f(24), Weight: f(4), Bias: f(4), Residual: f(24)}}
			}, fine: append([]string{"4=zero", "5=zero", "6.Weight=zero", "6.Bias=zero", "6.Mean=zero", "6.Variance=zero"}, channelFine...)},
		}),
		methods("cuda.ChannelNormKept", func() any { return kept() }, nil),
		methods("cuda.Blocks", func() any { return blocks() }, map[string]call{
			"SpaceToDepth": {args: func() []any { return []any{s, f(24), f(24)} }},
			"DepthToSpace": {args: func() []any { return []any{s, f(24), f(24)} }},
		}),
		methods("cuda.Interpolate", func() any {
			return &cuda.Interpolate{Batch: 1, Channels: 2, From: [3]int{1, 2, 3}, To: [3]int{1, 4, 3}, Mode: cuda.InterpolateLinear, AlignCorners: true}
		}, map[string]call{
			"Forward":  {args: func() []any { return []any{s, f(12), f(24)} }, fine: []string{"0.Mode=0"}},
			"Backward": {args: func() []any { return []any{s, f(24), f(12)} }, fine: []string{"0.Mode=0"}},
		}),
		methods("cuda.Window", func() any {
			return &cuda.Window{Batch: 1, Channels: 2, From: [3]int{1, 2, 4}, To: [3]int{1, 1, 2}, Size: [3]int{1, 2, 2}, Stride: [3]int{1, 2, 2}, Max: true}
		}, map[string]call{
			"Forward":  {args: func() []any { return []any{s, f(16), f(4)} }},
			"Backward": {args: func() []any { return []any{s, f(16), f(4), f(16)} }},
		}),
		[]call{
			row("Average", cuda.Average, func() []any { return []any{s, float32(0.9), float32(0.1), f(4), f(4)} }, "1=*", "2=*"),
			row("AddRows", cuda.AddRows, func() []any { return []any{s, f(6), f(3), f(6)} }),
			row("CopyRows", cuda.CopyRows, func() []any { return []any{s, 2, 3, f(7), 4, f(8), 5} }, "1=0", "2=0", "4=0"),
		},
	))
}
