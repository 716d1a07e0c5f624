package kernel

// BlockWeights holds the weights of a Mamba block in any form: nodes, parameters, slices, arrays on a device. The comments give the name
// of each in the Hugging Face layout, and its shape.
type BlockWeights[W any] struct {
	Norm     W // "norm.weight" (model)
	ALog     W // "mixer.A_log" (channels, state); A = -exp(ALog)
	D        W // "mixer.D" (channels)
	InProj   W // "mixer.in_proj.weight" (2·channels, model)
	InBias   W // optional: "mixer.in_proj.bias" (2·channels)
	Conv     W // "mixer.conv1d.weight" (channels, 1, width); the last tap is for the step itself
	ConvBias W // optional: "mixer.conv1d.bias" (channels)
	XProj    W // "mixer.x_proj.weight" (rank + 2·state, channels)
	DtProj   W // "mixer.dt_proj.weight" (channels, rank)
	DtBias   W // "mixer.dt_proj.bias" (channels)
	OutProj  W // "mixer.out_proj.weight" (model, channels)
	OutBias  W // optional: "mixer.out_proj.bias" (model)
}

// BlockWeight describes a weight of a Mamba block.
type BlockWeight struct {
	Field    string // of BlockWeights
	Name     string // in the Hugging Face layout
	Product  bool   // the matrix of a product
	Optional bool
}

// Each calls f for each weight, in the order of the fields. f may change the weight.
func (b *BlockWeights[W]) Each(f func(about BlockWeight, w *W)) {
	f(BlockWeight{"Norm", "norm.weight", false, false}, &b.Norm)
	f(BlockWeight{"ALog", "mixer.A_log", false, false}, &b.ALog)
	f(BlockWeight{"D", "mixer.D", false, false}, &b.D)
	f(BlockWeight{"InProj", "mixer.in_proj.weight", true, false}, &b.InProj)
	f(BlockWeight{"InBias", "mixer.in_proj.bias", false, true}, &b.InBias)
	f(BlockWeight{"Conv", "mixer.conv1d.weight", false, false}, &b.Conv)
	f(BlockWeight{"ConvBias", "mixer.conv1d.bias", false, true}, &b.ConvBias)
	f(BlockWeight{"XProj", "mixer.x_proj.weight", true, false}, &b.XProj)
	f(BlockWeight{"DtProj", "mixer.dt_proj.weight", true, false}, &b.DtProj)
	f(BlockWeight{"DtBias", "mixer.dt_proj.bias", false, false}, &b.DtBias)
	f(BlockWeight{"OutProj", "mixer.out_proj.weight", true, false}, &b.OutProj)
	f(BlockWeight{"OutBias", "mixer.out_proj.bias", false, true}, &b.OutBias)
}

// BlockShapes returns the shapes of the weights.
func BlockShapes(model, channels, state, width, rank int) BlockWeights[[]int] {
	return BlockWeights[[]int]{
		Norm: []int{model}, ALog: []int{channels, state}, D: []int{channels}, InProj: []int{2 * channels, model}, InBias: []int{2 * channels},
		Conv: []int{channels, 1, width}, ConvBias: []int{channels}, XProj: []int{rank + 2*state, channels}, DtProj: []int{channels, rank},
		DtBias: []int{channels}, OutProj: []int{model, channels}, OutBias: []int{model},
	}
}

// MapBlock returns the weights in another form: f of each, in the order of the fields.
func MapBlock[V, W any](from BlockWeights[V], f func(about BlockWeight, v V) W) (to BlockWeights[W]) {
	all := make([]W, 0, 12) // on the stack
	from.Each(func(about BlockWeight, v *V) { all = append(all, f(about, *v)) })
	to.Each(func(_ BlockWeight, w *W) { *w, all = all[0], all[1:] })
	return to
}
