package cuda

import "fmt"

// Pad copies a grid of three axes into another one, whose cell 0 is cell -Before of the first: From and To are their sizes. Cells of the second that the
// first does not have are zero.
type Pad struct {
	Batch, Channels int
	From, To        [3]int
	Before          [3]int // may be negative
}

// Apply queues y (batch, to…, channels) from x (batch, from…, channels).
func (p *Pad) Apply(s *Stream, x, y Array[float32]) error {
	if p == nil {
		return missing("pad")
	}
	if err := atLeast(0, "pad", "Batch", p.Batch, "Channels", p.Channels, "From[0]", p.From[0], "From[1]", p.From[1], "From[2]", p.From[2],
		"To[0]", p.To[0], "To[1]", p.To[1], "To[2]", p.To[2]); err != nil {
		return err
	}
	for i, n := range p.Before {
		if n := int64(n); n < -1<<31 || n > 1<<31 {
			return fmt.Errorf("cuda: pad: Before[%d] is %d, want -2^31 to 2^31", i, n)
		}
	}
	size := count(p.Batch, p.To[0], p.To[1], p.To[2], p.Channels)
	if err := expect("pad", "x", x.n, count(p.Batch, p.From[0], p.From[1], p.From[2], p.Channels), "y", y.n, size); err != nil {
		return err
	}
	return s.run("pad", "pad", blocksOf(size, 256), x.address, y.address, size, p.From[0], p.From[1], p.From[2], p.To[0], p.To[1], p.To[2],
		p.Before[0], p.Before[1], p.Before[2], p.Channels)
}
