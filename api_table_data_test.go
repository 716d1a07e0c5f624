package mamba_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/gomamba/mamba/images"
)

// dataCalls are the calls of package images. dir is a folder that is there.
func dataCalls(dir string) []call {
	img := func() *images.Image { im, _ := images.New([]int{4, 6}, 1); return im }
	labels := func() *images.Labels { return &images.Labels{Size: []int{4, 6}, Values: make([]int32, 24)} }
	sample := func() *images.Sample { return &images.Sample{Image: img(), Labels: labels()} }
	patches := func() images.Patches { return images.Patches{Size: []int{2, 2}} }
	batches := func() any { b, _ := images.NewBatches(images.Samples{sample()}, patches(), 1, 1); return b }
	model := images.Model(func(w []float32, n int) ([]float32, error) { return w, nil })
	windows := images.Windows{Size: []int{2, 2}, Overlap: 0.5, Batch: 1}
	png, nii := filepath.Join(dir, "images", "image", "1.png"), filepath.Join(dir, "images", "1.nii.gz")
	for _, folder := range []string{"image", "label"} {
		path := filepath.Join(dir, "images", folder, "1.png")
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			panic(err)
		}
		if err := images.WritePNG(path, img()); err != nil {
			panic(err)
		}
	}
	if err := images.WriteNIfTI(nii, img()); err != nil {
		panic(err)
	}
	decathlon := filepath.Join(dir, "decathlon")
	if err := os.MkdirAll(decathlon, 0o777); err != nil {
		panic(err)
	}
	const dataset = `{"labels": {"0": "a", "1": "b"}, "training": [{"image": "x.nii.gz", "label": "x.nii.gz"}]}`
	if err := errors.Join(os.WriteFile(filepath.Join(decathlon, "dataset.json"), []byte(dataset), 0o666), images.WriteNIfTI(filepath.Join(decathlon, "x.nii.gz"), img())); err != nil {
		panic(err)
	}
	pair := images.Pair{Image: png, Label: filepath.Join(dir, "images", "label", "1.png")}
	// What an image and labels may have: any values, no grid, no bits.
	anyImage := func(argument string) []string {
		return []string{argument + ".Pix[0]=*", argument + ".Grid*", argument + ".Bits=0"}
	}
	kept := func(argument string, values ...string) (fine []string) {
		for _, v := range values {
			fine = append(fine, argument+".Values[0]="+v)
		}
		return append(fine, argument+".Grid*")
	}
	windowed := call{args: func() []any { return []any{img(), 1, model} }, fine: append(anyImage("1"), "0.Batch=0", "0.BytesPerCell=0", "0.Overlap=0")}
	augmented := func(argument string) []string {
		return []string{argument + ".Augment*", argument + ".Background=0", argument + ".Foreground=0"}
	}
	sizeAt := func(fine ...string) call { return call{args: with([]int{4, 6}, []float64{2, 2}), fine: fine} }
	embedded := sizeAt("0*")
	embedded.panics = []string{"0=nil: a nil image has no Grid, whose method it is"}
	return slices.Concat(
		methods("images.Image", func() any { return img() }, map[string]call{
			"Color": {fine: anyImage("0")}, "Gray": {fine: anyImage("0")}, "Argmax": {fine: anyImage("0")}, "SizeAt": embedded, "Slice": {args: with(0), broken: true},
			"Resample": {args: with([]int{2, 3}), fine: anyImage("0")}, "Like": {args: func() []any { return []any{img()} }, fine: append(anyImage("0"), anyImage("1")...)},
		}),
		methods("images.Labels", func() any { return labels() }, map[string]call{
			"Picture": {args: with(2), fine: kept("0", "0")}, "Slice": {args: with(0), broken: true}, "Resample": {args: with([]int{2, 3}), fine: kept("0", "*")}, "SizeAt": embedded,
			"Like": {args: func() []any { return []any{img()} }, fine: append(kept("0", "*"), anyImage("1")...)},
		}),
		methods("images.Grid", func() any { return images.Grid{Spacing: []float64{1, 1}} }, map[string]call{
			"SizeAt": sizeAt("0=zero", "0.Spacing=nil", "0.Affine=*"),
		}),
		methods("images.Normalization", func() any { return images.Normalization{{High: 1, Deviation: 1}} }, map[string]call{
			"Apply": {args: func() []any { return []any{img()} }, fine: append(anyImage("1"), "0[0].Low=0", "0[0].Low=-1", "0[0].High=0", "0[0].Mean=0", "0[0].Mean=-1")},
		}),
		methods("images.Classes", func() any { return images.Classes{0, 1} }, map[string]call{
			"Index":  {args: func() []any { return []any{labels()} }, fine: append(kept("1", "0"), "0[0]=0")},
			"Values": {args: func() []any { return []any{labels()} }, fine: append(kept("1", "0"), "0[0]=*: any value is one of labels")},
		}),
		methods("images.Pair", func() any { return pair }, map[string]call{"Read": {fine: []string{"0.Label=\"\": there are none", "0.Name=*"}}}),
		methods("images.Patches", func() any { return patches() }, map[string]call{
			"Draw": {args: func() []any { return []any{sample(), 1} }, fine: slices.Concat(augmented("0"), anyImage("1.Image"), kept("1.Labels", "*"), []string{"1.Name=*", "1.Class=*", "1.Labels=nil"})},
		}),
		methods("images.Samples", func() any { return images.Samples{sample()} }, map[string]call{"Load": {args: with(0), fine: slices.Concat(anyImage("0[0].Image"), kept("0[0].Labels", "*"), []string{"0[0].Name=*", "0[0].Class=*", "0[0].Labels=nil", "1=0"})}}),
		methods("images.Batches", batches, map[string]call{"At": {args: with(1), fine: []string{"1=0", "1=1099511627776", "1=4611686018427387904"}}}),
		methods("images.Windows", func() any { return windows }, map[string]call{
			"Scores": windowed, "Labels": windowed,
		}),
		[]call{
			{name: "images.New", f: images.New, args: with([]int{4, 6}, 1)},
			{name: "images.Read", f: images.Read, args: with(png)},
			{name: "images.ReadLabels", f: images.ReadLabels, args: with(png)},
			{name: "images.ReadNIfTI", f: images.ReadNIfTI, args: with(nii)},
			{name: "images.ReadNIfTILabels", f: images.ReadNIfTILabels, args: with(nii)},
			{name: "images.WritePNG", f: images.WritePNG, args: func() []any { return []any{filepath.Join(dir, "w.png"), img()} }, fine: []string{"1.Pix[0]=0", "1.Pix[0]=-1", "1.Pix[0]=+Inf", "1.Pix[0]=-Inf", "1.Grid*", "1.Bits=0"}},
			{name: "images.WriteLabels", f: images.WriteLabels, args: func() []any { return []any{filepath.Join(dir, "l.png"), labels()} }, fine: kept("1", "0")},
			{name: "images.WriteNIfTI", f: images.WriteNIfTI, args: func() []any { return []any{filepath.Join(dir, "w.nii"), img()} }, fine: anyImage("1")},
			{name: "images.WriteNIfTILabels", f: images.WriteNIfTILabels, args: func() []any { return []any{filepath.Join(dir, "l.nii"), labels()} }, fine: kept("1", "*")},
			{name: "images.Color", f: images.Color, args: with(1)},
			{name: "images.Overlay", f: images.Overlay, args: func() []any { return []any{img(), labels(), 0, 0.5} }, fine: slices.Concat(anyImage("0"), kept("1", "0"), []string{"2=0", "2=-1", "3=0"})},
			{name: "images.Beside", f: images.Beside, args: func() []any { return []any{2, img(), img()} }, fine: append(anyImage("1[0]"), "0=0")},
			{name: "images.ClassesOf", f: images.ClassesOf, args: func() []any { return []any{labels()} }, fine: kept("0[0]", "*")},
			{name: "images.Pairs", f: images.Pairs, args: with(filepath.Join(dir, "images"))},
			{name: "images.ReadPairs", f: images.ReadPairs, args: func() []any { return []any{[]images.Pair{pair}, images.Classes{0}} }, fine: []string{"0[0].Name=*", "1=nil: those of the labels", "1[0]=0"}},
			{name: "images.ByClass", f: images.ByClass, args: with(filepath.Join(dir, "images"))},
			{name: "images.Decathlon", f: images.Decathlon, args: with(filepath.Join(dir, "decathlon"))},
			{name: "images.MeasureImage", f: images.MeasureImage, args: func() []any { return []any{img()} }, fine: []string{"0.Pix[0]=0", "0.Pix[0]=-1", "0.Grid*", "0.Bits=0"}},
			{name: "images.MeasureForeground", f: images.MeasureForeground, args: func() []any { return []any{images.Samples{sample()}, 1} }},
			{name: "images.NewFiles", f: images.NewFiles, args: func() []any { return []any{[]images.Pair{pair}, images.Classes{0}, 0, nil} }, fine: []string{"0[0]*: it is not read yet", "1[0]=*", "3=nil"}},
			{name: "images.NewBatches", f: images.NewBatches, args: func() []any { return []any{images.Samples{sample()}, patches(), 1, 1} }, fine: append(augmented("1"), "3=0")},
		},
	)
}
