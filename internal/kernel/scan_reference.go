package kernel

// Reference computes what Forward does, directly by the formulas: one channel after another, one step after another. The tests compare the
// other kernels with it. It returns all states, (batch, channels, length+1, state), in the order scanned. The first is the initial state.
func (s *Scan[T]) Reference(y, final []T) (states []T) {
	states = make([]T, s.Batch*s.Channels*(s.Length+1)*s.State)
	for b := range s.Batch {
		for d := range s.Channels {
			channel := (b*s.Channels + d)
			h := states[channel*(s.Length+1)*s.State:][:(s.Length+1)*s.State]
			if s.Initial != nil {
				copy(h, s.Initial[channel*s.State:(channel+1)*s.State])
			}
			for i := range s.Length {
				t := s.step(i)
				at := (b*s.Length+t)*s.Channels + d
				delta := s.delta(at, d)
				var out T
				for n := range s.State {
					before := h[i*s.State+n]
					if s.fresh(b, i) {
						before = 0
					}
					now := exp(delta*s.A[d*s.State+n])*before + delta*s.U[at]*s.B.at(s, b, t, d, n)
					h[(i+1)*s.State+n] = now
					out += s.C.at(s, b, t, d, n) * now
				}
				if s.D != nil {
					out += s.D[d] * s.U[at]
				}
				if z := s.zAt(b, t, d); s.Z != nil {
					out *= silu(s.Z[z])
				}
				y[at] = out
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
	for _, sum := range [][]T{grad.A, grad.B, grad.C, grad.D, grad.DeltaBias} {
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
				t := s.step(i)
				at := (b*s.Length+t)*s.Channels + d
				delta, dOut := s.delta(at, d), dy[at]
				if z := s.zAt(b, t, d); s.Z != nil {
					var out T
					for n := range s.State {
						out += s.C.at(s, b, t, d, n) * h[(i+1)*s.State+n]
					}
					if s.D != nil {
						out += s.D[d] * s.U[at]
					}
					grad.Z[z] = dOut * out * siluSlope(s.Z[z])
					dOut *= silu(s.Z[z])
				}
				var du, dDelta T
				if s.D != nil {
					du = dOut * s.D[d]
					grad.D[d] += dOut * s.U[at]
				}
				for n := range s.State {
					a, bn := s.A[d*s.State+n], s.B.at(s, b, t, d, n)
					decay, before := exp(delta*a), h[i*s.State+n]
					if s.fresh(b, i) {
						before = 0
					}
					g := s.C.at(s, b, t, d, n)*dOut + carry[n]
					grad.C[s.C.index(s, b, t, d, n)] += dOut * h[(i+1)*s.State+n]
					grad.B[s.B.index(s, b, t, d, n)] += g * delta * s.U[at]
					du += g * delta * bn
					dDelta += g * (bn*s.U[at] + a*decay*before)
					grad.A[d*s.State+n] += g * delta * decay * before
					carry[n] = decay * g
					if s.fresh(b, i) { // the step before belongs to another sequence: nothing goes back to it, not even a NaN
						carry[n] = 0
					}
				}
				grad.U[at] = du
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
