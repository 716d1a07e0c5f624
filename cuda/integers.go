package cuda

// IntegersOf queues to, the nearest numbers of from that 32 bits hold.
func IntegersOf(s *Stream, from Array[int], to Array[int32]) error {
	if err := firstError(present("integers", "from", from), expect("integers", "to", to.n, from.n), s.usable()); err != nil {
		return err
	}
	return s.run("integers", "integers_of", blocksOf(from.n, 256), from.address, to.address, from.n)
}

// MarksOf queues to, which is 1 where from is not 0, and 0 elsewhere.
func MarksOf(s *Stream, from Array[int], to Array[uint8]) error {
	if err := firstError(present("marks", "from", from), expect("marks", "to", to.n, from.n), s.usable()); err != nil {
		return err
	}
	return s.run("integers", "marks_of", blocksOf(from.n, 256), from.address, to.address, from.n)
}
