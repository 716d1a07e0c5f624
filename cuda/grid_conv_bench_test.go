package cuda

import "testing"

// plane returns the sizes of a convolution of images, with padding that keeps their size if the stride is 1.
func plane(batch, side, channels, filters, kernel, stride, groups int) ConvShape {
	out := (side-1)/stride + 1
	padding := kernel / 2
	if kernel == stride { // patches
		out, padding = side/stride, 0
	}
	return ConvShape{
		Batch: batch, Channels: channels, Filters: filters, Groups: groups, In: [3]int{1, side, side}, Out: [3]int{1, out, out},
		Kernel: [3]int{1, kernel, kernel}, Stride: [3]int{1, stride, stride}, Padding: [3]int{0, padding, padding}, Dilation: [3]int{1, 1, 1},
	}
}

// BenchmarkGridConv measures the convolutions of VMamba-T and Vim at 224², batch 128, and of a U-Net, and compares them with copies of as many bytes as
// x and y have.
func BenchmarkGridConv(b *testing.B) {
	s := open(b)
	volume := plane(1, 64, 48, 48, 3, 1, 1)
	volume.In[0], volume.Out[0], volume.Kernel[0], volume.Padding[0] = 64, 64, 3, 1
	for _, c := range []struct {
		name  string
		shape ConvShape
	}{
		{"depthwise 3x3, 56², 96", plane(128, 56, 96, 96, 3, 1, 96)},
		{"depthwise 3x3, 28², 192", plane(128, 28, 192, 192, 3, 1, 192)},
		{"depthwise 3x3, 14², 384", plane(128, 14, 384, 384, 3, 1, 384)},
		{"depthwise 3x3, 7², 768", plane(128, 7, 768, 768, 3, 1, 768)},
		{"depthwise 3x3, 256², 96", plane(8, 256, 96, 96, 3, 1, 96)},
		{"stem 3x3 stride 2, 224², 3 to 48", plane(128, 224, 3, 48, 3, 2, 1)},
		{"stem 3x3 stride 2, 112², 48 to 96", plane(128, 112, 48, 96, 3, 2, 1)},
		{"down 3x3 stride 2, 56², 96 to 192", plane(128, 56, 96, 192, 3, 2, 1)},
		{"down 3x3 stride 2, 14², 384 to 768", plane(128, 14, 384, 768, 3, 2, 1)},
		{"patches 16x16, 224², 3 to 192", plane(128, 224, 3, 192, 16, 16, 1)},
		{"dense 3x3, 512², 32", plane(4, 512, 32, 32, 3, 1, 1)},
		{"dense 3x3, 128², 128", plane(4, 128, 128, 128, 3, 1, 1)},
		{"dense 3x3x3, 64³, 48", volume},
	} {
		in, out := c.shape.cells(c.shape.In)*c.shape.Channels, c.shape.cells(c.shape.Out)*c.shape.Filters
		weights := c.shape.Filters * c.shape.Channels / c.shape.Groups * c.shape.taps()
		precisions := []Precision{TF32, BF16}
		if c.shape.depthwise() {
			precisions = precisions[:1]
		}
		for _, p := range precisions {
			b.Run(c.name+"/"+p.String(), func(b *testing.B) {
				x, y, dx, w, dw, bias := zeros[float32](b, s, in), zeros[float32](b, s, out), zeros[float32](b, s, in), zeros[float32](b, s, weights),
					zeros[float32](b, s, weights), zeros[float32](b, s, c.shape.Filters)
				for _, silu := range []bool{false, true} {
					name := ""
					if silu {
						if name = " with SiLU"; !c.shape.depthwise() {
							break
						}
					}
					g := &GridConv{ConvShape: c.shape, SiLU: silu, Precision: p, X: x, Weight: w, Bias: bias}
					b.Run("forward"+name, func(b *testing.B) {
						measure(b, s, 4*(in+out), func() error { return g.Forward(s, y) })
					})
					b.Run("backward"+name, func(b *testing.B) {
						measure(b, s, 4*(2*in+out), func() error { return g.Backward(s, y, dx, dw, bias) })
					})
				}
			})
		}
	}
}
