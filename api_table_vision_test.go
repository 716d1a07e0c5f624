package mamba_test

import (
	"slices"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/vision"
)

// visionCalls are the calls of package vision. Any integer is a label.
func visionCalls() []call {
	labels := func() []int { return []int{0, 1, 1, 0, 1, 1} }
	confusion := func() any {
		c, _ := vision.NewConfusion(2)
		_ = c.Add(labels(), labels(), -1)
		return c
	}
	return slices.Concat(
		methods("vision.Confusion", confusion, map[string]call{
			"Add":      {args: func() []any { return []any{labels(), labels(), -1} }, fine: []string{"1[0]=0", "2[0]=0", "2[0]=-1: it is ignored", "3=*"}},
			"Accuracy": {}, "MeanDice": {}, "MeanIoU": {}, "Dice": {args: with(1)}, "IoU": {args: with(1)}, "Count": {args: with(1, 1)},
		}),
		visionModelCalls(),
		[]call{
			{name: "vision.NewConfusion", f: vision.NewConfusion, args: with(3)},
			{name: "vision.Labels", f: vision.Labels[float32], args: func() []any { return []any{make([]float32, 6), 3} }, fine: []string{"0=nil: there are no rows", "0[0]=+Inf", "0[0]=-Inf", "0[0]=-1", "0[0]=0"}},
			{name: "vision.TopK", f: vision.TopK[float32], args: func() []any { return []any{make([]float32, 6), 3, []int{0, 2}, 1} }, fine: []string{"0[0]=*", "2[0]=0"}},
			{name: "vision.PixelAccuracy", f: vision.PixelAccuracy, args: func() []any { return []any{labels(), labels()} }, fine: []string{"0[0]=*", "1[0]=*"}},
			{name: "vision.Dice", f: vision.Dice, args: func() []any { return []any{labels(), labels(), 1} }, fine: []string{"0[0]=*", "1[0]=*", "2=*"}},
			{name: "vision.IoU", f: vision.IoU, args: func() []any { return []any{labels(), labels(), 1} }, fine: []string{"0[0]=*", "1[0]=*", "2=*"}},
			{name: "vision.Hausdorff95", f: vision.Hausdorff95, args: func() []any { return []any{labels(), labels(), 1, []int{2, 3}, []float64{1, 2}} },
				fine: []string{"0[0]=*", "1[0]=*", "2=*", "4=nil"}},
		},
	)
}

// visionModelCalls are the calls of the models of package vision.
func visionModelCalls() []call {
	vmamba := vision.VMambaConfig{Classes: 2, Channels: 3, Depths: []int{1}, Dims: []int{4}, State: 1, Expand: 1, Rank: 1, Conv: 3, MLPRatio: 2, DropPath: 0.1, Orders: op.VMambaOrders}
	vim := vision.VimConfig{Classes: 2, Channels: 3, Height: 8, Width: 8, Patch: 4, Stride: 4, Dim: 4, Depth: 1, State: 2, Conv: 3, Inner: 4, Rank: 1, Eps: 1e-5, LayerScale: 1}
	unet := vision.MambaUNetConfig{Classes: 2, Axes: 2, Channels: 3, Dims: []int{4}, Depths: []int{1}, State: 1, DecoderDepths: []int{1}, DropPath: 0.1, Stem: []int{2},
		DeepSupervision: true, Orders: op.VMambaOrders}
	stage := vision.SegMambaStageConfig{Channels: 4, Axes: 3, Depth: 1, State: 2, Conv: 3, Inner: 4, Slices: 2, Hidden: 4}
	mamba := layer.MambaConfig{Channels: 4, Inner: 6, State: 2, Width: 3, Rank: 1, DtMin: 0.1, DtMax: 0.2, DtFloor: 0.1, DtScale: 1, Depth: 2}
	img, grid := shape{2, 8, 8, 3}, shape{2, 2, 3, 2, 4}
	model := func(more ...string) map[string]call {
		apply := call{args: nodesOf(img), fine: another}
		rows := map[string]call{"Apply": apply, "Fwd": apply, "Features": apply}
		for _, name := range more {
			rows[name] = apply
		}
		return rows
	}
	plain := map[string]call{"Apply": {args: nodesOf(grid), fine: another}, "Fwd": {args: nodesOf(grid), fine: another}}
	of := func(fields ...string) (fine []string) {
		for _, f := range fields {
			fine = append(fine, "0."+f)
		}
		return fine
	}
	return slices.Concat(
		methods("vision.VMamba", func() any { return vision.NewVMamba(vmamba) }, model()),
		methods("vision.Vim", func() any { return vision.NewVim(vim) }, model()),
		methods("vision.MambaUNet", func() any { return vision.NewMambaUNet(unet) }, model("Deep")),
		methods("vision.SegMambaStage", func() any { return vision.NewSegMambaStage(stage) }, plain),
		methods("vision.UMambaLayer", func() any { return vision.NewUMambaLayer(mamba) }, plain),
		[]call{
			{name: "vision.NewVMamba", f: vision.NewVMamba, args: with(vmamba),
				fine: of("Channels=0", "Depths=nil", "Dims=nil", "State=0", "Expand=0", "Rank=0", "Conv=0", "MLPRatio=0", "DropPath=0", "Orders=nil")},
			{name: "vision.NewVim", f: vision.NewVim, args: with(vim), fine: of("Channels=0", "Height=0", "Width=0", "Stride=0", "Dim=0", "Depth=0", "Token=0",
				"State=0", "Conv=0", "Inner=0", "Rank=0", "LayerScale=0", "LayerScale=-1", "Eps=0", "DropPath=0")},
			{name: "vision.NewMambaUNet", f: vision.NewMambaUNet, args: with(unet), fine: of("Axes=0", "Channels=0", "Dims=nil", "State=0", "DecoderDepths=nil", "DropPath=0", "Orders=nil", "Hidden=0", "Stem=nil")},
			{name: "vision.NewSegMambaStage", f: vision.NewSegMambaStage, args: with(stage), fine: of("Axes=0", "Depth=0", "State=0", "Conv=0", "Inner=0", "Slices=*", "Hidden=0")},
			{name: "vision.NewUMambaLayer", f: vision.NewUMambaLayer, args: with(mamba), fine: of("Inner=0", "State=0", "Width=0", "Rank=0", "DtFloor=0", "DtScale=0", "Depth=0", "Depth=1*", "Depth=4*", "Slices=0", "LayerScale=0", "LayerScale=-1")},
			{name: "vision.VMambaTiny", f: vision.VMambaTiny}, {name: "vision.VMambaSmall", f: vision.VMambaSmall}, {name: "vision.VMambaBase", f: vision.VMambaBase},
			{name: "vision.VMambaFirstTiny", f: vision.VMambaFirstTiny}, {name: "vision.VMambaFirstSmall", f: vision.VMambaFirstSmall}, {name: "vision.VMambaFirstBase", f: vision.VMambaFirstBase},
			{name: "vision.VimTiny", f: vision.VimTiny}, {name: "vision.VimSmall", f: vision.VimSmall}, {name: "vision.VimBase", f: vision.VimBase},
			{name: "vision.MambaUNetTiny", f: func(n int) *vision.MambaUNet {
				c := vision.MambaUNetTiny(n)
				c.Dims, c.Depths, c.DecoderDepths = []int{4}, []int{1}, []int{1}
				return vision.NewMambaUNet(c)
			}, args: with(2)},
			{name: "vision.MambaUNetSmall", f: func(n int) *vision.MambaUNet {
				c := vision.MambaUNetSmall(n)
				c.Dims, c.Depths, c.DecoderDepths = []int{4}, []int{1}, []int{1}
				return vision.NewMambaUNet(c)
			}, args: with(2)},
			{name: "vision.MambaUNetBase", f: func(n int) *vision.MambaUNet {
				c := vision.MambaUNetBase(n)
				c.Dims, c.Depths, c.DecoderDepths = []int{4}, []int{1}, []int{1}
				return vision.NewMambaUNet(c)
			}, args: with(2)},
			{name: "vision.MambaUNet3DTiny", f: func(n int) *vision.MambaUNet {
				c := vision.MambaUNet3DTiny(n)
				c.Dims, c.Depths = []int{4}, []int{1}
				return vision.NewMambaUNet(c)
			}, args: with(2)},
			{name: "vision.MambaUNet3DSmall", f: func(n int) *vision.MambaUNet {
				c := vision.MambaUNet3DSmall(n)
				c.Dims, c.Depths = []int{4}, []int{1}
				return vision.NewMambaUNet(c)
			}, args: with(2)},
			{name: "vision.MambaUNet3DBase", f: func(n int) *vision.MambaUNet {
				c := vision.MambaUNet3DBase(n)
				c.Dims, c.Depths = []int{4}, []int{1}
				return vision.NewMambaUNet(c)
			}, args: with(2)},
		},
	)
}
