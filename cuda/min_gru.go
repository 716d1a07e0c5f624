package cuda

// MinGRU is the recurrence of a minimal gated recurrent unit. internal/kernel.MinGRU defines it.
type MinGRU struct {
	Batch, Length, Channels int

	Z, Candidate Array[float32] // (batch, length, channels)
	Initial      Array[float32] // optional: (batch, channels)
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
		optional("minGRU", "Initial", g.Initial, count(g.Batch, g.Channels), "Start", g.Start, count(g.Batch, g.Length)),
	)
}

// size returns the number of elements of y.
func (g *MinGRU) size() int { return count(g.Batch, g.Length, g.Channels) }

// Forward queues y (batch, length, channels) and, unless it is absent, final (batch, channels), the state after the last step.
func (g *MinGRU) Forward(s *Stream, y, final Array[float32]) error {
	if err := g.check(); err != nil {
		return err
	}
	if err := firstError(
		expect("minGRU", "y", y.n, g.size()), optional("minGRU", "final", final, g.Batch*g.Channels),
	); err != nil {
		return err
	}
	return s.run("mingru", "mingru_forward", blocksOf(g.Batch*g.Channels, 128), g.Z.address, g.Candidate.address, g.Initial.address,
		g.Start.address, y.address, final.address, g.Batch, g.Length, g.Channels)
}

// Backward queues the gradients of the operands, in their shapes, from dy and, unless it is absent, dfinal. dinitial may be absent. It
// computes y again.
func (g *MinGRU) Backward(s *Stream, dy, dfinal, dz, dcandidate, dinitial Array[float32]) error {
	if err := g.check(); err != nil {
		return err
	}
	if err := firstError(
		expect("minGRU", "dy", dy.n, g.size(), "dz", dz.n, g.size(), "dcandidate", dcandidate.n, g.size()),
		optional("minGRU", "dfinal", dfinal, g.Batch*g.Channels, "dinitial", dinitial, g.Batch*g.Channels),
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
	return s.run("mingru", "mingru_backward", blocksOf(g.Batch*g.Channels, 128), g.Z.address, g.Candidate.address, g.Initial.address,
		g.Start.address, y.address, dy.address, dfinal.address, dz.address, dcandidate.address, dinitial.address, g.Batch, g.Length, g.Channels)
}
