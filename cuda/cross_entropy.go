package cuda

// CrossEntropyState returns the length of the state that CrossEntropyForward writes and CrossEntropyBackward reads.
func CrossEntropyState(rows int) int { return strided(3, rows, 1) }

func checkLogits(rows, vocabulary, stride, n int) error {
	return firstError(
		atLeast(0, "cross-entropy", "rows", rows), atLeast(1, "cross-entropy", "vocabulary", vocabulary),
		inRow("cross-entropy", "stride", stride, vocabulary), expect("cross-entropy", "logits", n, strided(rows, stride, vocabulary)),
	)
}

// CrossEntropyForward queues loss (1): the mean of -log softmax(logits)_target over the rows whose target is not ignore, or 0 if there is no
// such row. logits is (rows, vocabulary), with rows that are stride elements apart. targets is (rows). The results mean
// nothing if another target is outside the vocabulary. It also writes state, of CrossEntropyState(rows) elements, for CrossEntropyBackward.
func CrossEntropyForward[T Activation](s *Stream, rows, vocabulary, stride int, ignore int32, logits Array[T], targets Array[int32], state, loss Array[float32]) error {
	if err := firstError(
		checkLogits(rows, vocabulary, stride, logits.n),
		expect("cross-entropy", "targets", targets.n, rows, "state", state.n, CrossEntropyState(rows), "loss", loss.n, 1),
	); err != nil {
		return err
	}
	name, g := "entropy_forward_"+typeName[T]()+"_512", grid{x: int64(rows), threads: 512}
	switch {
	case vocabulary <= 32:
		name, g = "entropy_forward_"+typeName[T]()+"_4", blocksOf(rows*4, 256)
	case vocabulary <= 2048:
		name, g = "entropy_forward_"+typeName[T]()+"_32", blocksOf(rows*32, 256)
	case wholeRows(logits, stride):
		name, g.threads = "entropy_forward_"+typeName[T]()+"_vectors", 256
	}
	if err := s.run("cross_entropy", name, g, logits.address, targets.address, state.address, rows, vocabulary, stride, ignore); err != nil {
		return err
	}
	return s.run("cross_entropy", "entropy_mean", grid{x: 1, threads: 1024}, targets.address, state.address, loss.address, rows, ignore)
}

// CrossEntropyBackward queues the gradient of the logits, which overwrites the logits. dloss (1) is the gradient of the loss. state is that
// of CrossEntropyForward. The other arguments are the same.
func CrossEntropyBackward[T Activation](s *Stream, rows, vocabulary, stride int, ignore int32, logits Array[T], targets Array[int32], state, dloss Array[float32]) error {
	if err := firstError(
		checkLogits(rows, vocabulary, stride, logits.n),
		expect("cross-entropy", "targets", targets.n, rows, "state", state.n, CrossEntropyState(rows), "dloss", dloss.n, 1),
	); err != nil {
		return err
	}
	if vocabulary <= 2048 {
		return s.run("cross_entropy", "entropy_backward_small_"+typeName[T](), blocksOf(rows*vocabulary, 256), logits.address,
			targets.address, state.address, dloss.address, rows, vocabulary, stride, ignore)
	}
	name, each := "entropy_backward_"+typeName[T](), 4096 // logits of a block of 256 threads
	if wholeRows(logits, stride) {
		name, each = name+"_vectors", 256*4*16/int(size[T]())
	}
	blocks := (vocabulary + each - 1) / each // per row
	return s.run("cross_entropy", name, grid{x: int64(rows) * int64(blocks), threads: 256}, logits.address,
		targets.address, state.address, dloss.address, rows, vocabulary, stride, ignore, blocks)
}

// wholeRows reports whether every row begins at a multiple of 16 bytes. Kernels then read 16 bytes at a time.
func wholeRows[T Activation](logits Array[T], stride int) bool {
	return (logits.address|uintptr(int64(stride)*size[T]()))%16 == 0
}
