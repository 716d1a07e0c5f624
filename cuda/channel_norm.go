package cuda

import (
	"fmt"
	"unsafe"
)

// ChannelNorm is y = (x - mean) / sqrt(variance + eps) · weight + bias, where each channel of each group of rows has a mean and a variance: of its
// numbers in x, or those that are given. With a group for each sequence it is instance norm, with one group for all it is batch norm. With an activation, y
// is the activation of this norm, of its sum with a residual, or of its sum with the norm of a residual.
type ChannelNorm struct {
	Groups, Rows, Channels int // rows of each group
	Eps                    float32
	X                      Array[float32] // (groups, rows, channels)
	Weight, Bias           Array[float32] // (channels); optional
	Mean, Variance         Array[float32] // (channels), with one group; both or neither

	Activated    bool // the result goes through Activation
	Activation   Nonlinearity
	Residual     Array[float32] // (groups, rows, channels); optional, with Activated
	NormResidual bool           // the residual has a norm of its own, without weight and bias
}

// ChannelNormGrad are the gradients of the operands of a ChannelNorm. All but X, and Residual if there is one, are optional.
type ChannelNormGrad struct{ X, Weight, Bias, Mean, Variance, Residual Array[float32] }

// ChannelNormKept is what Forward keeps for Backward. Free frees its memory.
type ChannelNormKept struct{ x, residual channelStatistics }

// channelStatistics are (groups, channels): the mean is high + low, and scale is 1/sqrt(variance + eps).
type channelStatistics struct{ high, low, scale Array[float32] }

// Free frees the memory.
func (k *ChannelNormKept) Free() {
	if k != nil {
		for _, a := range []Array[float32]{k.x.high, k.x.low, k.x.scale, k.residual.high, k.residual.low, k.residual.scale} {
			a.Free()
		}
	}
}

// channelTerm and channelTask are arguments of the kernels over x; channel_norm.cu has the same structs.
type channelTerm struct{ x, weight, bias, high, low, scale uintptr }

type channelTask struct {
	norm, other                         channelTerm
	dy, constant, slope, to, sum, parts uintptr
	groups, rows, channels, each        int64
	tiles, columns, activation, _       int32
}

// task returns the task, the grid, and the suffixes of the names of its kernels: of those that only read x, and of the others. addresses are those of other
// arrays like x.
func (n *ChannelNorm) task(s *Stream, k *ChannelNormKept, addresses ...uintptr) (t channelTask, g grid, name, active string) {
	vector := 4
	together := uintptr(n.Channels)
	for _, a := range append(addresses, n.X.address, n.Weight.address, n.Bias.address, n.Residual.address) {
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
		norm:   channelTerm{n.X.address, n.Weight.address, n.Bias.address, k.x.high.address, k.x.low.address, k.x.scale.address},
		other:  channelTerm{x: n.Residual.address, high: k.residual.high.address, low: k.residual.low.address, scale: k.residual.scale.address},
		groups: int64(n.Groups), rows: int64(n.Rows), channels: int64(n.Channels), each: int64(each), tiles: int32(tiles), columns: int32(columns),
		activation: int32(n.Activation),
	}
	name = fmt.Sprint("_", vector)
	if active = name; n.Activated {
		active = "_active" + name
	}
	return t, grid{x: int64(n.Groups * tiles), y: int64((n.Rows + each - 1) / each), threads: 256}, name, active
}

// statistics queues those of the norm of a task, and the mean and the variance unless they are absent.
func (n *ChannelNorm) statistics(s *Stream, t channelTask, g grid, name string, givenMean, givenVariance, mean, variance Array[float32]) (err error) {
	var work temporaries
	defer func() { work.free() }()
	if givenMean.Absent() {
		parts := take[float64](s, &work, 2*n.Groups*int(g.y)*n.Channels, &err)
		if t.parts = parts.address; err == nil {
			err = s.run("channel_norm", "channel_norm_statistics"+name, g, unsafe.Pointer(&t))
		}
	}
	if err != nil {
		return err
	}
	return s.run("channel_norm", "channel_norm_finish", blocksOf(32*n.Groups*n.Channels, 128), t.norm.x, t.parts, givenMean.address, givenVariance.address,
		t.norm.high, t.norm.low, t.norm.scale, mean.address, variance.address, n.Groups, int(g.y), n.Rows, n.Channels, n.Eps)
}

// Forward queues y (groups, rows, channels), and the mean and the variance (groups, channels) of x, which may both be absent. If keep is true it
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
	var statistics temporaries
	var err error
	defer func() {
		if err != nil || !keep {
			statistics.free()
		}
	}()
	take3 := func() channelStatistics {
		return channelStatistics{take[float32](s, &statistics, all, &err), take[float32](s, &statistics, all, &err), take[float32](s, &statistics, all, &err)}
	}
	k := &ChannelNormKept{x: take3()}
	if n.NormResidual {
		k.residual = take3()
	}
	if err != nil {
		return nil, err
	}
	t, g, name, active := n.task(s, k, y.address)
	err = n.statistics(s, t, g, name, n.Mean, n.Variance, mean, variance)
	if none := (Array[float32]{}); err == nil && n.NormResidual {
		residual := t
		residual.norm = t.other
		err = n.statistics(s, residual, g, name, none, none, none, none)
	}
	if t.to = y.address; err == nil {
		err = s.run("channel_norm", "channel_norm_apply"+active, g, unsafe.Pointer(&t))
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
	all, kepts := n.Groups*n.Channels, 0
	if n.NormResidual {
		kepts = all
	}
	if err := firstError(
		expect("channel norm", "kept", kept.x.scale.n, all, "kept of the residual", kept.residual.scale.n, kepts, "the gradient of Residual", grad.Residual.n, n.Residual.n),
		optional("channel norm", "dmean", dmean, all, "dvariance", dvariance, all, "the gradient of Weight", grad.Weight, n.Channels,
			"the gradient of Bias", grad.Bias, n.Channels, "the gradient of Mean", grad.Mean, n.Channels, "the gradient of Variance", grad.Variance, n.Channels),
	); err != nil {
		return err
	}
	t, g, _, active := n.task(s, kept, dy.address, grad.X.address, grad.Residual.address)
	t.dy = dy.address
	none := Array[float32]{}
	if n.NormResidual {
		residual := t
		residual.norm, residual.other, residual.to = t.other, t.norm, grad.Residual.address
		if err := n.gradients(s, residual, g, active, none, none, &ChannelNormGrad{}); err != nil {
			return err
		}
	} else {
		t.sum = grad.Residual.address
	}
	t.to = grad.X.address
	return n.gradients(s, t, g, active, dmean, dvariance, grad)
}

// gradients queues the gradient of the norm of a task, and those of its weight, bias and given statistics.
func (n *ChannelNorm) gradients(s *Stream, t channelTask, g grid, active string, dmean, dvariance Array[float32], grad *ChannelNormGrad) (err error) {
	var work temporaries
	defer func() { work.free() }()
	all := n.Groups * n.Channels
	parts := take[float64](s, &work, 2*n.Groups*int(g.y)*n.Channels, &err)
	constant, slope := take[float32](s, &work, all, &err), take[float32](s, &work, all, &err)
	terms := take[float64](s, &work, 2*all, &err)
	if err != nil {
		return err
	}
	t.parts = parts.address
	if n.Mean.Absent() {
		t.constant, t.slope = constant.address, slope.address
	}
	return firstError(
		s.run("channel_norm", "channel_norm_sums"+active, g, unsafe.Pointer(&t)),
		s.run("channel_norm", "channel_norm_coefficients", blocksOf(32*all, 128), t.parts, t.norm.scale, t.norm.weight, dmean.address, dvariance.address,
			constant.address, slope.address, terms.address, n.Groups, int(g.y), n.Rows, n.Channels),
		s.run("channel_norm", "channel_norm_gradients", blocksOf(n.Channels, 128), terms.address, t.norm.scale, t.norm.weight, grad.Weight.address,
			grad.Bias.address, grad.Mean.address, grad.Variance.address, n.Groups, n.Channels),
		s.run("channel_norm", "channel_norm_backward"+active, g, unsafe.Pointer(&t)),
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
	if n.Activated {
		if err := n.Activation.err(); err != nil {
			return err
		}
	}
	if !n.Residual.Absent() && !n.Activated || n.NormResidual && (n.Residual.Absent() || !n.Mean.Absent()) {
		return fmt.Errorf("cuda: channel norm: Residual is absent: %t, NormResidual is %t and Activated %t: want a Residual only with Activated, and "+
			"NormResidual only with a Residual and without Mean", n.Residual.Absent(), n.NormResidual, n.Activated)
	}
	size := count(n.Groups, n.Rows, n.Channels)
	return firstError(
		checkEps("channel norm", n.Eps), optional("channel norm", "Residual", n.Residual, size), expect("channel norm", "X", n.X.n, size, name, a.n, size),
		optional("channel norm", "Weight", n.Weight, n.Channels, "Bias", n.Bias, n.Channels, "Mean", n.Mean, n.Channels, "Variance", n.Variance, n.Channels),
		s.usable(),
	)
}
