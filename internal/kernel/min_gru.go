package kernel

import "github.com/gomamba/mamba/internal/work"

// MinGRU is the recurrence of a minimal gated recurrent unit (Feng et al., "Were RNNs All We Needed?", section 3.1):
//
//	u = σ(z),  h(t) = (1 - u) h(t-1) + u h̃
type MinGRU[T Float] struct {
	Batch, Length, Channels int
	Z, Candidate            []T    // (batch, length, channels): the gate before its sigmoid, and h̃
	H                       []T    // (batch, channels): h before the first step; nil for zeros
	Start                   []bool // (batch, length): where a sequence starts; nil for none
}

// Forward writes h of each step to y (batch, length, channels) and h after the last step to hn (batch, channels), which may be nil.
func (g *MinGRU[T]) Forward(y, hn []T) {
	g.parallel(func(b, from, to int) {
		for t := range g.Length {
			h := g.before(y, b, t)
			for d := from; d < to; d++ {
				at := g.at(b, t) + d
				u := sigmoid(g.Z[at])
				y[at] = u * g.Candidate[at]
				if h != nil {
					y[at] += (1 - u) * h[d]
				}
			}
		}
		if hn != nil {
			copy(hn[b*g.Channels+from:b*g.Channels+to], y[g.at(b, g.Length-1)+from:])
		}
	})
}

// Backward writes dz, dcandidate and, unless it is nil, dh0: the gradients of Z, Candidate and H. dy and dhn are the gradients of Forward's
// results. Backward computes h again.
func (g *MinGRU[T]) Backward(dy, dhn, dz, dcandidate, dh0 []T) {
	y := work.Borrow[T](len(dy))
	defer y.Return()
	g.Forward(y.Data, nil)
	g.parallel(func(b, from, to int) {
		dh := append([]T(nil), dhn[b*g.Channels:][:g.Channels]...)
		for t := g.Length - 1; t >= 0; t-- {
			h := g.before(y.Data, b, t)
			for d := from; d < to; d++ {
				at := g.at(b, t) + d
				u, e, change := sigmoid(g.Z[at]), dh[d]+dy[at], g.Candidate[at]
				if h != nil {
					change -= h[d]
				}
				dz[at], dcandidate[at], dh[d] = e*change*u*(1-u), e*u, e*(1-u)
			}
			if h == nil {
				clear(dh)
			}
		}
		if dh0 != nil {
			copy(dh0[b*g.Channels+from:b*g.Channels+to], dh[from:])
		}
	})
}

// parallel runs a task for each sequence and range of channels.
func (g *MinGRU[T]) parallel(task func(b, from, to int)) {
	const size = 64 // channels, a few cache lines of a step
	ranges := (g.Channels + size - 1) / size
	work.Parallel(g.Batch*ranges, func(i int) {
		from := i % ranges * size
		task(i/ranges, from, min(from+size, g.Channels))
	})
}

// at returns the index of the first channel of a step.
func (g *MinGRU[T]) at(b, t int) int { return (b*g.Length + t) * g.Channels }

// before returns h(t-1), or nil if it is zero. The caller leaves out the product with zero, since NaN times zero is NaN.
func (g *MinGRU[T]) before(y []T, b, t int) []T {
	switch {
	case g.Start != nil && g.Start[b*g.Length+t]:
		return nil
	case t > 0:
		return y[g.at(b, t-1):][:g.Channels]
	case g.H != nil:
		return g.H[b*g.Channels:][:g.Channels]
	}
	return nil
}
