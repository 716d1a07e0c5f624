package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/work"
)

// ChannelNorm is y = (x - mean) / sqrt(variance + eps) · weight + bias, where each channel of each group of rows has a mean and a variance: of
// its numbers in x, or those that are given. With a group for each sequence it is instance norm (Ulyanov et al., "Instance Normalization"), with
// one group for all it is batch norm (Ioffe and Szegedy, "Batch Normalization").
type ChannelNorm[T Float] struct {
	Groups, Rows, Channels int // rows of each group
	Eps                    float64
	X                      []T // (groups, rows, channels)
	Weight, Bias           []T // (channels), or nil for ones and for zeros
	Mean, Variance         []T // (channels), with one group; or nil to compute them
}

// ChannelNormGrad are the gradients of the operands of a ChannelNorm. Those of absent operands are nil.
type ChannelNormGrad[T Float] struct{ X, Weight, Bias, Mean, Variance []T }

// channelPiece is the number of elements of a task of ChannelNorm. tile is the number of neighbouring elements that the loops process together: as
// many whole rows as fit, so that few channels do not make short loops.
const (
	channelPiece = 65536
	channelTile  = 512
)

// layout returns the rows of a task, the tasks of a group, and the rows of a tile.
func (n *ChannelNorm[T]) layout() (each, tasks, tile int) {
	tile = max(channelTile/n.Channels, 1)
	each = max(channelPiece/(n.Channels*tile), 1) * tile
	return each, (n.Rows + each - 1) / each, tile
}

// tiles calls f for each tile of a task: with its offset in x and its length.
func (n *ChannelNorm[T]) tiles(task int, f func(at, size int)) {
	each, tasks, tile := n.layout()
	group, part := task/tasks, task%tasks
	from := (group*n.Rows + part*each) * n.Channels
	to := (group*n.Rows + min((part+1)*each, n.Rows)) * n.Channels
	for ; from < to; from += tile * n.Channels {
		f(from, min(tile*n.Channels, to-from))
	}
}

// sums returns sums (groups, channels) over the rows, in float64. Each task adds to its own sums, of a tile, with add. They are added in order.
func (n *ChannelNorm[T]) sums(count int, add func(task int, sums [][]float64)) [][]float64 {
	_, tasks, tile := n.layout()
	wide := tile * n.Channels
	parts := work.Borrow[float64](n.Groups * tasks * count * wide)
	defer parts.Return()
	work.Parallel(n.Groups*tasks, func(task int) {
		p := parts.Data[task*count*wide:][:count*wide]
		clear(p)
		of := make([][]float64, count)
		for i := range of {
			of[i] = p[i*wide : (i+1)*wide]
		}
		add(task, of)
	})
	all := make([][]float64, count)
	for i := range all {
		all[i] = make([]float64, n.Groups*n.Channels)
		for task := range n.Groups * tasks {
			sum := all[i][task/tasks*n.Channels:][:n.Channels]
			part := parts.Data[(task*count+i)*wide:][:wide]
			for at := 0; at < wide; at += n.Channels {
				for d, v := range part[at : at+n.Channels] {
					sum[d] += v
				}
			}
		}
	}
	return all
}

// tiled returns a vector of channels as often as a tile has rows.
func (n *ChannelNorm[T]) tiled(f func(d int) T) []T {
	_, _, tile := n.layout()
	v := make([]T, tile*n.Channels)
	for i := range v {
		v[i] = f(i % n.Channels)
	}
	return v
}

// centring subtracts the means of a group from a tile.
type centring[T Float] struct{ high, low []T }

func (n *ChannelNorm[T]) centring(mean []float64) centring[T] {
	high := n.tiled(func(d int) T { return -T(mean[d]) })
	low := n.tiled(func(d int) T {
		if l := -T(mean[d] + float64(-T(mean[d]))); l == l { // not of ∞ - ∞
			return l
		}
		return 0
	})
	return centring[T]{high, low}
}

func (c centring[T]) of(to, x []T) {
	sumOf(to, x, c.high[:len(x)])
	sumOf(to, to, c.low[:len(x)])
}

// statistics are mean, variance and 1/sqrt(variance + eps) of each group and channel, and what subtracts the means of a group.
type statistics[T Float] struct {
	mean, variance, scale []float64
	centre                []centring[T]
}

func (n *ChannelNorm[T]) statistics() (s statistics[T]) {
	if n.Mean != nil {
		s.mean, s.variance = inFloat64(n.Mean), inFloat64(n.Variance)
	} else {
		s.mean = n.sums(1, func(task int, sums [][]float64) {
			n.tiles(task, func(at, size int) { add64(sums[0][:size], n.X[at:at+size]) })
		})[0]
		for i := range s.mean {
			s.mean[i] /= float64(n.Rows)
		}
	}
	for g := range n.Groups {
		s.centre = append(s.centre, n.centring(s.mean[g*n.Channels:][:n.Channels]))
	}
	_, tasks, _ := n.layout()
	if n.Mean == nil {
		s.variance = n.sums(1, func(task int, sums [][]float64) {
			c := work.Borrow[T](len(sums[0]))
			defer c.Return()
			n.tiles(task, func(at, size int) {
				s.centre[task/tasks].of(c.Data[:size], n.X[at:at+size])
				addProduct64(sums[0][:size], c.Data[:size], c.Data[:size])
			})
		})[0]
		for i := range s.variance {
			s.variance[i] /= float64(n.Rows)
		}
	}
	s.scale = make([]float64, len(s.variance))
	for i, v := range s.variance {
		s.scale[i] = 1 / math.Sqrt(v+n.Eps)
	}
	return s
}

func inFloat64[T Float](x []T) []float64 {
	v := make([]float64, len(x))
	add64(v, x)
	return v
}

// of returns element d of an operand, or byDefault if it is absent.
func of[T Float](x []T, d int, byDefault float64) float64 {
	if x == nil {
		return byDefault
	}
	return float64(x[d])
}

// Forward writes y (groups, rows, channels), and the mean and the variance (groups, channels) unless they are nil.
func (n *ChannelNorm[T]) Forward(y, mean, variance []T) {
	s := n.statistics()
	_, tasks, _ := n.layout()
	factors := make([][]T, n.Groups)
	for g := range factors {
		factors[g] = n.tiled(func(d int) T { return T(s.scale[g*n.Channels+d] * of(n.Weight, d, 1)) })
	}
	bias := n.tiled(func(d int) T { return T(of(n.Bias, d, 0)) })
	work.Parallel(n.Groups*tasks, func(task int) {
		g := task / tasks
		n.tiles(task, func(at, size int) {
			y := y[at : at+size]
			s.centre[g].of(y, n.X[at:at+size])
			norm(y, y, factors[g][:size], 1)
			if n.Bias != nil {
				sumOf(y, y, bias[:size])
			}
		})
	})
	for i, v := range s.mean[:len(mean)] {
		mean[i], variance[i] = T(v), T(s.variance[i])
	}
}

// Backward writes the gradients of the operands, from those of y and, unless they are nil, of the mean and the variance that Forward returns.
// With c = x - mean, s = 1/sqrt(variance + eps), the sums S = Σ dy and P = Σ dy·c over the n rows of a group, and a = s·weight,
//
//	dx = a·dy - (a·S - dmean)/n - c·(a·s²·P - 2·dvariance)/n
//	dweight = Σ s·P,  dbias = Σ S  over the groups
//
// Of given statistics, dx = a·dy, dmean = -a·S, and dvariance = -a·s²·P/2.
func (n *ChannelNorm[T]) Backward(dy, dMean, dVariance []T, grad ChannelNormGrad[T]) {
	s := n.statistics()
	_, tasks, _ := n.layout()
	sums := n.sums(2, func(task int, sums [][]float64) {
		c := work.Borrow[T](len(sums[0]))
		defer c.Return()
		n.tiles(task, func(at, size int) {
			add64(sums[0][:size], dy[at:at+size])
			s.centre[task/tasks].of(c.Data[:size], n.X[at:at+size])
			addProduct64(sums[1][:size], dy[at:at+size], c.Data[:size])
		})
	})
	for d := range n.Channels {
		var weight, bias float64
		for i := d; i < len(s.mean); i += n.Channels {
			weight += s.scale[i] * sums[1][i]
			bias += sums[0][i]
		}
		a := s.scale[d] * of(n.Weight, d, 1)
		for _, g := range []struct {
			grad  []T
			value float64
		}{
			{grad.Weight, weight}, {grad.Bias, bias}, {grad.Mean, -a * sums[0][d]}, {grad.Variance, -a * s.scale[d] * s.scale[d] * sums[1][d] / 2},
		} {
			if g.grad != nil {
				g.grad[d] = T(g.value)
			}
		}
	}
	type coefficients struct{ a, constant, slope []T }
	all := make([]coefficients, n.Groups)
	for g := range all {
		at := func(f func(i, d int) float64) []T {
			return n.tiled(func(d int) T { return T(f(g*n.Channels+d, d)) })
		}
		a := func(i, d int) float64 { return s.scale[i] * of(n.Weight, d, 1) }
		all[g].a = at(a)
		if n.Mean == nil {
			all[g].constant = at(func(i, d int) float64 { return (of(dMean, i, 0) - a(i, d)*sums[0][i]) / float64(n.Rows) })
			all[g].slope = at(func(i, d int) float64 {
				return (2*of(dVariance, i, 0) - a(i, d)*s.scale[i]*s.scale[i]*sums[1][i]) / float64(n.Rows)
			})
		}
	}
	work.Parallel(n.Groups*tasks, func(task int) {
		k := all[task/tasks]
		c := work.Borrow[T](len(k.a))
		defer c.Return()
		n.tiles(task, func(at, size int) {
			dx := grad.X[at : at+size]
			norm(dx, dy[at:at+size], k.a[:size], 1)
			if n.Mean != nil {
				return
			}
			sumOf(dx, dx, k.constant[:size])
			s.centre[task/tasks].of(c.Data[:size], n.X[at:at+size])
			addProduct(dx, k.slope[:size], c.Data[:size])
		})
	})
}
