package kernel

// Reference computes what Forward does, directly by the formulas: one channel after another, one step after another. The tests compare the
// other kernels with it. It returns all states, (batch, channels, length+1, state), in the order scanned. The first is the initial state.
func (s *Scan[T]) Reference(y, final []T) (states []T) {
	states = make([]T, s.Batch*s.Channels*(s.Length+1)*s.State)
	clear(y)
	for b := range s.Batch {
		for d := range s.Channels {
			channel := (b*s.Channels + d)
			h := states[channel*(s.Length+1)*s.State:][:(s.Length+1)*s.State]
			if s.Initial != nil {
				copy(h, s.Initial[channel*s.State:(channel+1)*s.State])
			}
			for i := range s.Length {
				t := s.visited(d, i)
				at, u := (b*s.Length+t)*s.Channels+d, s.U[s.shared(s.OneU, b, t, d)]
				delta := s.delta(at, d)
				var out T
				for n := range s.State {
					before := h[i*s.State+n]
					if s.fresh(b, i) {
						before = 0
					}
					now := exp(delta*s.A[d*s.State+n])*before + delta*u*s.B.at(s, b, t, d, n)
					h[(i+1)*s.State+n] = now
					out += s.C.at(s, b, t, d, n) * now
				}
				if s.D != nil {
					out += s.D[d] * u
				}
				if z := s.zAt(b, t, d); s.Z != nil {
					out *= silu(s.Z[z])
				}
				y[s.shared(s.Merge, b, t, d)] += out
			}
			if final != nil {
				copy(final[channel*s.State:(channel+1)*s.State], h[s.Length*s.State:])
			}
		}
	}
	return states
}

// ReferenceBackward computes what Backward does, from the states that Reference returned.
func (s *Scan[T]) ReferenceBackward(states, dy, dfinal []T, grad *ScanGrad[T]) {
	for _, sum := range [][]T{grad.U, grad.A, grad.B, grad.C, grad.D, grad.DeltaBias} {
		clear(sum)
	}
	for b := range s.Batch {
		for d := range s.Channels {
			channel := (b*s.Channels + d)
			h := states[channel*(s.Length+1)*s.State:][:(s.Length+1)*s.State]
			carry := make([]T, s.State) // a_{t+1} g_{t+1}
			if dfinal != nil {
				copy(carry, dfinal[channel*s.State:(channel+1)*s.State])
			}
			for i := s.Length - 1; i >= 0; i-- {
				t := s.visited(d, i)
				at, uAt := (b*s.Length+t)*s.Channels+d, s.shared(s.OneU, b, t, d)
				delta, u, dOut := s.delta(at, d), s.U[uAt], dy[s.shared(s.Merge, b, t, d)]
				if z := s.zAt(b, t, d); s.Z != nil {
					var out T
					for n := range s.State {
						out += s.C.at(s, b, t, d, n) * h[(i+1)*s.State+n]
					}
					if s.D != nil {
						out += s.D[d] * u
					}
					grad.Z[z] = dOut * out * siluSlope(s.Z[z])
					dOut *= silu(s.Z[z])
				}
				var du, dDelta T
				if s.D != nil {
					du = dOut * s.D[d]
					grad.D[d] += dOut * u
				}
				for n := range s.State {
					a, bn := s.A[d*s.State+n], s.B.at(s, b, t, d, n)
					decay, before := exp(delta*a), h[i*s.State+n]
					if s.fresh(b, i) {
						before = 0
					}
					g := s.C.at(s, b, t, d, n)*dOut + carry[n]
					grad.C[s.C.index(s, b, t, d, n)] += dOut * h[(i+1)*s.State+n]
					grad.B[s.B.index(s, b, t, d, n)] += g * delta * u
					du += g * delta * bn
					dDelta += g * (bn*u + a*decay*before)
					grad.A[d*s.State+n] += g * delta * decay * before
					carry[n] = decay * g
					if s.fresh(b, i) { // the step before belongs to another sequence: nothing goes back to it, not even a NaN
						carry[n] = 0
					}
				}
				grad.U[uAt] += du
				if s.Softplus {
					raw := s.Delta[at]
					if s.DeltaBias != nil {
						raw += s.DeltaBias[d]
					}
					dDelta *= softplusSlope(raw)
				}
				grad.Delta[at] = dDelta
				if s.DeltaBias != nil {
					grad.DeltaBias[d] += dDelta
				}
			}
			if s.Initial != nil {
				copy(grad.Initial[channel*s.State:(channel+1)*s.State], carry)
			}
		}
	}
}

// visited returns the time, or the cell, of the i-th step that channel d scans.
func (s *Scan[T]) visited(d, i int) int {
	if s.Orders == nil {
		return s.step(i)
	}
	return int(s.Orders[d*len(s.Orders)/s.Channels][i])
}

// shared returns the index of channel d at time t of batch b in (batch, length, channels), or in (batch, length, channels/directions) if all
// directions share the array.
func (s *Scan[T]) shared(all bool, b, t, d int) int {
	channels := s.Channels
	if all {
		channels /= max(len(s.Orders), 1)
	}
	return (b*s.Length+t)*channels + d%channels
}

// delta returns Δ at an offset into (batch, length, channels) that belongs to channel d.
func (s *Scan[T]) delta(at, d int) T {
	v := s.Delta[at]
	if s.DeltaBias != nil {
		v += s.DeltaBias[d]
	}
	if s.Softplus {
		v = softplus(v)
	}
	return v
}

// zAt returns the index of an element of Z.
func (s *Scan[T]) zAt(b, t, d int) int {
	if s.ZStride > 0 {
		return (b*s.Length+t)*s.ZStride + d
	}
	return (b*s.Length+t)*s.Channels + d
}

// at returns the element of p that channel d reads at time t of batch b for state n.
func (p Projection[T]) at(s *Scan[T], b, t, d, n int) T { return p.Data[p.index(s, b, t, d, n)] }

func (p Projection[T]) index(s *Scan[T], b, t, d, n int) int {
	if p.Groups == 0 {
		return d*s.State + n
	}
	return (b*s.Length+t)*p.stride(s.State) + p.groupOf(d, s.Channels)*s.State + n
}
