package cuda

// LayerNorm is y = (x - mean) / sqrt(variance + eps) · weight + bias over rows of Width elements (Ba et al., "Layer Normalization").
type LayerNorm struct {
	Rows, Width  int
	Eps          float32
	X            Array[float32] // (rows, width)
	Weight, Bias Array[float32] // (width); optional
}

// layerNormKernel describes the kernels that keep a row of up to most numbers in the registers of a group of threads.
type layerNormKernel struct {
	most, group int
	name        string
}

// layerNormKernels are the kernels in order of their sizes.
var layerNormKernels = []layerNormKernel{{96, 8, "_8x3"}, {192, 16, "_16x3"}, {384, 32, "_32x3"}, {768, 32, "_32x6"}, {1024, 256, "_256x1"}, {3072, 256, "_256x3"}}

// few returns the kernels for the rows, or nil if none fit: rows must begin at multiples of four numbers.
func (n *LayerNorm) few(addresses ...uintptr) *layerNormKernel {
	together := uintptr(n.Width)
	for _, address := range append(addresses, n.X.address, n.Weight.address, n.Bias.address) {
		together |= address / 4
	}
	for i := range layerNormKernels {
		if k := &layerNormKernels[i]; together%4 == 0 && n.Width <= k.most {
			return k
		}
	}
	return nil
}

// Forward queues y (rows, width).
func (n *LayerNorm) Forward(s *Stream, y Array[float32]) error {
	if err := n.check(s, "y", y, "y", y); err != nil || n.Rows*n.Width == 0 {
		return err
	}
	name, group := "layer_norm_forward", 32
	if k := n.few(y.address); k != nil {
		name, group = name+k.name, k.group
	}
	return s.run("layer_norm", name, blocksOf(n.Rows*group, 256), n.X.address, n.Weight.address, n.Bias.address, y.address, n.Rows, n.Width, n.Eps)
}

// Backward queues the gradients dx (rows, width), dweight and dbias (width), from the gradient dy of y. dweight and dbias may be absent.
func (n *LayerNorm) Backward(s *Stream, dy, dx, dweight, dbias Array[float32]) error {
	if err := n.check(s, "dy", dy, "dx", dx); err != nil {
		return err
	}
	if err := optional("layer norm", "dweight", dweight, n.Width, "dbias", dbias, n.Width); err != nil {
		return err
	}
	if n.Rows*n.Width == 0 {
		for _, a := range []Array[float32]{dweight, dbias} {
			if !a.Absent() {
				if err := a.Fill(s, 0); err != nil {
					return err
				}
			}
		}
		return nil
	}
	var work temporaries
	defer func() { work.free() }()
	var parts Array[float32]
	var blocks int
	var err error
	if k := n.few(dy.address, dx.address); k != nil {
		groups, most := 256/k.group, 4*s.device.multiprocessors
		each := max((n.Rows+most-1)/most, groups) // rows per block
		blocks = (n.Rows + each - 1) / each
		g := grid{x: int64(blocks), threads: 256}
		if groups > 1 {
			g.shared = 8 * groups * n.Width
		}
		if parts = take[float32](s, &work, 2*blocks*n.Width, &err); err == nil {
			err = s.run("layer_norm", "layer_norm_backward"+k.name, g, n.X.address, n.Weight.address, dy.address, dx.address, parts.address, n.Rows,
				n.Width, n.Eps, each)
		}
	} else {
		each := max(32, (n.Rows+mostRows-1)/mostRows)
		blocks = (n.Rows + each - 1) / each
		rows := take[float32](s, &work, 3*n.Rows, &err)
		if parts = take[float32](s, &work, 2*blocks*n.Width, &err); err == nil {
			err = s.run("layer_norm", "layer_norm_backward", blocksOf(32*n.Rows, 256), n.X.address, n.Weight.address, dy.address, dx.address,
				rows.address, n.Rows, n.Width, n.Eps)
		}
		g := blocksOf(n.Width, 64)
		g.y = int64(blocks)
		if err == nil {
			err = s.run("layer_norm", "layer_norm_columns", g, n.X.address, dy.address, rows.address, parts.address, n.Rows, n.Width, each)
		}
	}
	if err != nil || dweight.Absent() && dbias.Absent() {
		return err
	}
	g := columnBlocks(n.Width)
	g.y = 2
	return s.run("layer_norm", "layer_norm_sums", g, parts.address, dweight.address, dbias.address, blocks, n.Width)
}

// check checks the operands and two arrays (rows, width).
func (n *LayerNorm) check(s *Stream, aName string, a Array[float32], bName string, b Array[float32]) error {
	if n == nil {
		return missing("layer norm")
	}
	if err := atLeast(0, "layer norm", "Rows", n.Rows, "Width", n.Width); err != nil {
		return err
	}
	size := count(n.Rows, n.Width)
	return firstError(
		checkEps("layer norm", n.Eps), expect("layer norm", "X", n.X.n, size, aName, a.n, size, bName, b.n, size),
		optional("layer norm", "Weight", n.Weight, n.Width, "Bias", n.Bias, n.Width), s.usable(),
	)
}
