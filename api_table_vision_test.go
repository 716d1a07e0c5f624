package mamba_test

import (
	"slices"

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
