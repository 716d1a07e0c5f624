package cuda

// MeanPool is the mean over time of the steps that Mask marks, for each sequence and channel, or 0 for a sequence without a marked step.
type MeanPool struct {
	Batch, Length, Channels int
	Mask                    Array[uint8] // (batch, length): a step counts where it is not 0; absent if all steps count
}

// poolSteps is the number of steps that a thread adds up.
const poolSteps = 128

// Forward queues y (batch, channels) from x (batch, length, channels). What is not marked is not read.
func (p *MeanPool) Forward(s *Stream, x, y Array[float32]) error {
	if err := p.check(s, "x", x, "y", y); err != nil {
		return err
	}
	if p.Batch*p.Channels == 0 {
		return nil
	}
	var work temporaries
	defer func() { work.free() }()
	each := max(poolSteps, (p.Length+mostRows-1)/mostRows)
	count := (p.Length + each - 1) / each
	var err error
	share, parts := take[float64](s, &work, p.Batch, &err), take[float64](s, &work, p.Batch*count*p.Channels, &err)
	if err != nil {
		return err
	}
	g := blocksOf(p.Batch*p.Channels, 128)
	mean := g
	g.y = int64(count)
	if err := p.shares(s, share); err != nil {
		return err
	}
	if count > 0 {
		if err := s.run("pool", "pool_parts", g, x.address, p.Mask.address, parts.address, p.Batch, p.Length, p.Channels, each); err != nil {
			return err
		}
	}
	return s.run("pool", "pool_mean", mean, parts.address, share.address, y.address, p.Batch, count, p.Channels)
}

// Backward queues dx, the gradient of x, from dy, the gradient of y.
func (p *MeanPool) Backward(s *Stream, dy, dx Array[float32]) error {
	if err := p.check(s, "dx", dx, "dy", dy); err != nil {
		return err
	}
	share, err := NewArray[float64](s, p.Batch)
	if err != nil {
		return err
	}
	defer share.Free()
	rows := p.Batch * p.Length
	if err := p.shares(s, share); err != nil || rows == 0 {
		return err
	}
	return s.run("pool", "pool_backward", blocksOf(rows*p.Channels, 256), dy.address, share.address, p.Mask.address, dx.address, rows, p.Length, p.Channels)
}

func (p *MeanPool) shares(s *Stream, share Array[float64]) error {
	return s.run("pool", "pool_share", blocksOf(32*p.Batch, 128), p.Mask.address, share.address, p.Batch, p.Length)
}

func (p *MeanPool) check(s *Stream, xName string, x Array[float32], yName string, y Array[float32]) error {
	if p == nil {
		return missing("mean pooling")
	}
	if err := atLeast(0, "mean pooling", "Batch", p.Batch, "Length", p.Length, "Channels", p.Channels); err != nil {
		return err
	}
	return firstError(
		expect("mean pooling", xName, x.n, count(p.Batch, p.Length, p.Channels), yName, y.n, count(p.Batch, p.Channels)),
		optional("mean pooling", "Mask", p.Mask, count(p.Batch, p.Length)), s.usable(),
	)
}
