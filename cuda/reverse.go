package cuda

// Reverse queues y, each sequence of x (batch, length, channels) in reverse order over time. A sequence begins at step 0, and where start
// (batch, length) is not 0; start may be absent. It is its own derivative.
func Reverse(s *Stream, batch, length, channels int, x, y Array[float32], start Array[uint8]) error {
	size := count(batch, length, channels)
	if err := firstError(
		atLeast(0, "reverse", "batch", batch, "length", length, "channels", channels),
		expect("reverse", "x", x.n, size, "y", y.n, size),
		optional("reverse", "start", start, count(batch, length)), s.usable(),
	); err != nil {
		return err
	}
	if size == 0 {
		return nil
	}
	g := grid{x: int64(batch * length), threads: min(256, (channels+31)/32*32)}
	return s.run("reverse", "reverse", g, x.address, start.address, y.address, length, channels)
}
