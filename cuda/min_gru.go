package cuda

// MinGRU is the recurrence of a minimal gated recurrent unit. op.MinGRU defines it.
type MinGRU struct {
	Batch, Length, Channels int

	Z, Candidate Array[float32] // (batch, length, channels)
	H            Array[float32] // optional: (batch, channels): the state before the first step
	Start        Array[uint8]   // optional: (batch, length): a new sequence starts where it is not 0
}

func (g *MinGRU) check() error {
	if g == nil {
		return missing("minGRU")
	}
	if err := firstError(atLeast(0, "minGRU", "Batch", g.Batch, "Length", g.Length), atLeast(1, "minGRU", "Channels", g.Channels)); err != nil {
		return err
	}
	return firstError(
		expect("minGRU", "Z", g.Z.n, g.size(), "Candidate", g.Candidate.n, g.size()),
		optional("minGRU", "H", g.H, count(g.Batch, g.Channels), "Start", g.Start, count(g.Batch, g.Length)),
	)
}

// size returns the number of elements of y.
func (g *MinGRU) size() int { return count(g.Batch, g.Length, g.Channels) }

// Forward queues h of each step, y (batch, length, channels), and unless it is absent h (batch, channels), the state after the last step.
func (g *MinGRU) Forward(s *Stream, y, h Array[float32]) error {
	if err := g.check(); err != nil {
		return err
	}
	if err := firstError(expect("minGRU", "y", y.n, g.size()), optional("minGRU", "h", h, g.Batch*g.Channels)); err != nil {
		return err
	}
	return s.run("mingru", "mingru_forward", blocksOf(g.Batch*g.Channels, 128), g.Z.address, g.Candidate.address, g.H.address,
		g.Start.address, y.address, h.address, g.Batch, g.Length, g.Channels)
}

// Backward queues the gradients dz, dcandidate and, unless it is absent, dh0 of Z, Candidate and H. dy and dh are the gradients of Forward's
// results, and may be absent. Backward computes y again.
func (g *MinGRU) Backward(s *Stream, dy, dh, dz, dcandidate, dh0 Array[float32]) error {
	if err := g.check(); err != nil {
		return err
	}
	if err := firstError(
		expect("minGRU", "dz", dz.n, g.size(), "dcandidate", dcandidate.n, g.size()),
		optional("minGRU", "dy", dy, g.size(), "dh", dh, g.Batch*g.Channels, "dh0", dh0, g.Batch*g.Channels),
	); err != nil {
		return err
	}
	y, err := NewArray[float32](s, g.size())
	if err != nil {
		return err
	}
	defer y.Free()
	if err := g.Forward(s, y, Array[float32]{}); err != nil {
		return err
	}
	return s.run("mingru", "mingru_backward", blocksOf(g.Batch*g.Channels, 128), g.Z.address, g.Candidate.address, g.H.address,
		g.Start.address, y.address, dy.address, dh.address, dz.address, dcandidate.address, dh0.address, g.Batch, g.Length, g.Channels)
}
