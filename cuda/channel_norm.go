package cuda

import (
	"fmt"
	"unsafe"
)

// ChannelNorm is y = (x - mean) / sqrt(variance + eps) · weight + bias, where each channel of each group of rows has a mean and a variance: of its
// numbers in x, or those that are given. With a group for each sequence it is instance norm, with one group for all it is batch norm.
type ChannelNorm struct {
	Groups, Rows, Channels int // rows of each group
	Eps                    float32
	X                      Array[float32] // (groups, rows, channels)
	Weight, Bias           Array[float32] // (channels); optional
	Mean, Variance         Array[float32] // (channels), with one group; both or neither
}

// ChannelNormGrad are the gradients of the operands of a ChannelNorm. All but X are optional.
type ChannelNormGrad struct{ X, Weight, Bias, Mean, Variance Array[float32] }

// ChannelNormKept is what Forward keeps for Backward. Free frees its memory.
type ChannelNormKept struct {
	high, low, scale Array[float32] // (groups, channels): the mean is high + low
}

// Free frees the memory.
func (k *ChannelNormKept) Free() {
	if k != nil {
		for _, a := range []Array[float32]{k.high, k.low, k.scale} {
			a.Free()
		}
	}
}

// channelTask is the argument of the kernels over x; channel_norm.cu has the same struct.
type channelTask struct {
	x, dy, weight, bias, high, low, scale, constant, slope, to, parts uintptr
	groups, rows, channels, each                                      int64
	tiles, columns                                                    int32
}

// task returns the task, the grid, and the suffix of the names of its kernels.
func (n *ChannelNorm) task(s *Stream, addresses ...uintptr) (t channelTask, g grid, name string) {
	vector := 4
	together := uintptr(n.Channels)
	for _, a := range append(addresses, n.X.address, n.Weight.address, n.Bias.address) {
		together |= a / 4
	}
	if together%4 != 0 {
		vector = 1
	}
	columns := min(n.Channels/vector, 256)
	tiles := (n.Channels/vector + columns - 1) / columns
	down := 256 / columns
	// Eight blocks a multiprocessor, and at least eight rows a thread.
	parts := min(max(8*s.device.multiprocessors/(n.Groups*tiles), 1), (n.Rows+8*down-1)/(8*down))
	each := (n.Rows + parts - 1) / parts
	t = channelTask{
		x: n.X.address, weight: n.Weight.address, bias: n.Bias.address, groups: int64(n.Groups), rows: int64(n.Rows), channels: int64(n.Channels),
		each: int64(each), tiles: int32(tiles), columns: int32(columns),
	}
	return t, grid{x: int64(n.Groups * tiles), y: int64((n.Rows + each - 1) / each), threads: 256}, fmt.Sprint("_", vector)
}

// Forward queues y (groups, rows, channels), and the mean and the variance (groups, channels), which may both be absent. If keep is true it
// returns what Backward needs.
func (n *ChannelNorm) Forward(s *Stream, y, mean, variance Array[float32], keep bool) (*ChannelNormKept, error) {
	if err := n.check(s, "y", y); err != nil {
		return nil, err
	}
	all := n.Groups * n.Channels
	if err := optional("channel norm", "mean", mean, all, "variance", variance, all); err != nil {
		return nil, err
	}
	if mean.Absent() != variance.Absent() {
		return nil, fmt.Errorf("cuda: channel norm: one of mean and variance is absent, want both or neither")
	}
	var work, statistics temporaries
	defer func() { work.free() }()
	var err error
	k := &ChannelNormKept{take[float32](s, &statistics, all, &err), take[float32](s, &statistics, all, &err), take[float32](s, &statistics, all, &err)}
	defer func() {
		if err != nil || !keep {
			statistics.free()
		}
	}()
	t, g, name := n.task(s, y.address)
	t.high, t.low, t.scale, t.to = k.high.address, k.low.address, k.scale.address, y.address
	if n.Mean.Absent() {
		parts := take[float64](s, &work, 2*n.Groups*int(g.y)*n.Channels, &err)
		if t.parts = parts.address; err == nil {
			err = s.run("channel_norm", "channel_norm_statistics"+name, g, unsafe.Pointer(&t))
		}
	}
	if err == nil {
		err = s.run("channel_norm", "channel_norm_finish", blocksOf(32*all, 128), t.x, t.parts, n.Mean.address, n.Variance.address, t.high, t.low,
			t.scale, mean.address, variance.address, n.Groups, int(g.y), n.Rows, n.Channels, n.Eps)
	}
	if err == nil {
		err = s.run("channel_norm", "channel_norm_apply"+name, g, unsafe.Pointer(&t))
	}
	if err != nil || !keep {
		return nil, err
	}
	return k, nil
}

// Backward queues the gradients of the operands from dy, the gradient of y, and dmean and dvariance, those of the other results, which may be absent.
// kept is what Forward returned.
func (n *ChannelNorm) Backward(s *Stream, kept *ChannelNormKept, dy, dmean, dvariance Array[float32], grad *ChannelNormGrad) error {
	if grad == nil || kept == nil {
		return missing("channel norm: gradients")
	}
	if err := firstError(n.check(s, "dy", dy), n.check(s, "the gradient of X", grad.X)); err != nil {
		return err
	}
	all := n.Groups * n.Channels
	if err := firstError(
		expect("channel norm", "kept", kept.scale.n, all), optional("channel norm", "dmean", dmean, all, "dvariance", dvariance, all),
		optional("channel norm", "the gradient of Weight", grad.Weight, n.Channels, "the gradient of Bias", grad.Bias, n.Channels,
			"the gradient of Mean", grad.Mean, n.Channels, "the gradient of Variance", grad.Variance, n.Channels),
	); err != nil {
		return err
	}
	var work temporaries
	defer func() { work.free() }()
	var err error
	t, g, name := n.task(s, dy.address, grad.X.address)
	parts := take[float64](s, &work, 2*n.Groups*int(g.y)*n.Channels, &err)
	constant, slope := take[float32](s, &work, all, &err), take[float32](s, &work, all, &err)
	terms := take[float64](s, &work, 2*all, &err)
	if err != nil {
		return err
	}
	t.dy, t.high, t.low, t.scale = dy.address, kept.high.address, kept.low.address, kept.scale.address
	t.to, t.parts = grad.X.address, parts.address
	if n.Mean.Absent() {
		t.constant, t.slope = constant.address, slope.address
	}
	return firstError(
		s.run("channel_norm", "channel_norm_sums"+name, g, unsafe.Pointer(&t)),
		s.run("channel_norm", "channel_norm_coefficients", blocksOf(32*all, 128), t.parts, t.scale, t.weight, dmean.address, dvariance.address,
			constant.address, slope.address, terms.address, n.Groups, int(g.y), n.Rows, n.Channels),
		s.run("channel_norm", "channel_norm_gradients", blocksOf(n.Channels, 128), terms.address, t.scale, t.weight, grad.Weight.address,
			grad.Bias.address, grad.Mean.address, grad.Variance.address, n.Groups, n.Channels),
		s.run("channel_norm", "channel_norm_backward"+name, g, unsafe.Pointer(&t)),
	)
}

// check checks the operands and an array (groups, rows, channels).
func (n *ChannelNorm) check(s *Stream, name string, a Array[float32]) error {
	if n == nil {
		return missing("channel norm")
	}
	if err := atLeast(1, "channel norm", "Groups", n.Groups, "Rows", n.Rows, "Channels", n.Channels); err != nil {
		return err
	}
	if n.Mean.Absent() != n.Variance.Absent() || !n.Mean.Absent() && n.Groups != 1 {
		return fmt.Errorf("cuda: channel norm: Mean and Variance: want both or neither, and both only with one group; there are %d groups", n.Groups)
	}
	size := count(n.Groups, n.Rows, n.Channels)
	return firstError(
		checkEps("channel norm", n.Eps), expect("channel norm", "X", n.X.n, size, name, a.n, size),
		optional("channel norm", "Weight", n.Weight, n.Channels, "Bias", n.Bias, n.Channels, "Mean", n.Mean, n.Channels, "Variance", n.Variance, n.Channels),
		s.usable(),
	)
}
