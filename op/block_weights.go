package op

// BlockWeights holds the weights of a Mamba block in any form: nodes, parameters, slices, arrays on a device. The comments give the name
// of each in the Hugging Face layout, and its shape. The names of the weights of the mixer alone have no "mixer.".
type BlockWeights[W any] struct {
	Norm       W // "norm.weight" (model)
	ALog       W // "mixer.A_log" (channels, state); A = -exp(ALog)
	D          W // "mixer.D" (channels)
	InProj     W // "mixer.in_proj.weight" (2·channels, model)
	InBias     W // optional: "mixer.in_proj.bias" (2·channels)
	ConvWeight W // "mixer.conv1d.weight" (channels, 1, width); the last tap is for the step itself
	ConvBias   W // optional: "mixer.conv1d.bias" (channels)
	XProj      W // "mixer.x_proj.weight" (rank + 2·state, channels)
	DtProj     W // "mixer.dt_proj.weight" (channels, rank)
	DtBias     W // "mixer.dt_proj.bias" (channels)
	OutProj    W // "mixer.out_proj.weight" (model, channels)
	OutBias    W // optional: "mixer.out_proj.bias" (model)
}

// BlockWeight describes a weight of a Mamba block.
type BlockWeight struct {
	Name     string // in the Hugging Face layout
	Product  bool   // the matrix of a product
	Optional bool
}

// Each calls f for each weight, in the order of the fields. f may change the weight.
func (b *BlockWeights[W]) Each(f func(about BlockWeight, w *W)) {
	for _, x := range []struct {
		about BlockWeight
		w     *W
	}{
		{BlockWeight{Name: "norm.weight"}, &b.Norm},
		{BlockWeight{Name: "mixer.A_log"}, &b.ALog},
		{BlockWeight{Name: "mixer.D"}, &b.D},
		{BlockWeight{Name: "mixer.in_proj.weight", Product: true}, &b.InProj},
		{BlockWeight{Name: "mixer.in_proj.bias", Optional: true}, &b.InBias},
		{BlockWeight{Name: "mixer.conv1d.weight"}, &b.ConvWeight},
		{BlockWeight{Name: "mixer.conv1d.bias", Optional: true}, &b.ConvBias},
		{BlockWeight{Name: "mixer.x_proj.weight", Product: true}, &b.XProj},
		{BlockWeight{Name: "mixer.dt_proj.weight", Product: true}, &b.DtProj},
		{BlockWeight{Name: "mixer.dt_proj.bias"}, &b.DtBias},
		{BlockWeight{Name: "mixer.out_proj.weight", Product: true}, &b.OutProj},
		{BlockWeight{Name: "mixer.out_proj.bias", Optional: true}, &b.OutBias},
	} {
		f(x.about, x.w)
	}
}

// MapBlock returns the weights in another form: f of each, in the order of the fields.
func MapBlock[V, W any](from BlockWeights[V], f func(about BlockWeight, v V) W) (to BlockWeights[W]) {
	var all []W
	from.Each(func(about BlockWeight, v *V) { all = append(all, f(about, *v)) })
	to.Each(func(_ BlockWeight, w *W) { *w, all = all[0], all[1:] })
	return to
}
