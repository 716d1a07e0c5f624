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
	if err := firstError(checkLogits(rows, vocabulary, stride, logits.n), checkMean(rows, targets, state, "loss", loss)); err != nil {
		return err
	}
	if err := entropyForward(s, 0, rows, rows, vocabulary, stride, ignore, logits, targets, state); err != nil {
		return err
	}
	return entropyMean(s, rows, ignore, targets, state, loss)
}

// CrossEntropyBackward queues the gradient of the logits, which overwrites the logits. dloss (1) is the gradient of the loss. state is that
// of CrossEntropyForward. The other arguments are the same.
func CrossEntropyBackward[T Activation](s *Stream, rows, vocabulary, stride int, ignore int32, logits Array[T], targets Array[int32], state, dloss Array[float32]) error {
	if err := firstError(checkLogits(rows, vocabulary, stride, logits.n), checkMean(rows, targets, state, "dloss", dloss)); err != nil {
		return err
	}
	if vocabulary <= smallVocabulary {
		return s.run("cross_entropy", "entropy_backward_small_"+typeName[T](), blocksOf(rows*vocabulary, 256).wait(s), logits.address,
			targets.address, state.address, dloss.address, rows, vocabulary, stride, ignore)
	}
	name, each := "entropy_backward_"+typeName[T](), 4096 // logits of a block of 256 threads
	if wholeRows(logits, stride) {
		name, each = name+"_vectors", 256*4*16/int(size[T]())
	}
	blocks := (vocabulary + each - 1) / each // per row
	return s.run("cross_entropy", name, grid{x: int64(rows) * int64(blocks), threads: 256}.wait(s), logits.address,
		targets.address, state.address, dloss.address, rows, vocabulary, stride, ignore, blocks)
}

func checkMean(rows int, targets Array[int32], state Array[float32], name string, number Array[float32]) error {
	return expect("cross-entropy", "targets", targets.n, rows, "state", state.n, CrossEntropyState(rows), name, number.n, 1)
}

// entropyForward queues the part of CrossEntropyForward that belongs to n of the rows, from row from on. logits has these rows alone.
func entropyForward[T Activation](s *Stream, from, n, rows, vocabulary, stride int, ignore int32, logits Array[T], targets Array[int32], state Array[float32]) error {
	name, g := "entropy_forward_"+typeName[T]()+"_512", grid{x: int64(n), threads: 512}
	switch {
	case vocabulary <= 32:
		name, g = "entropy_forward_"+typeName[T]()+"_4", blocksOf(n*4, 256)
	case vocabulary <= smallVocabulary:
		name, g = "entropy_forward_"+typeName[T]()+"_32", blocksOf(n*32, 256)
	case wholeRows(logits, stride):
		name = "entropy_forward_" + typeName[T]() + "_vectors"
	}
	return s.run("cross_entropy", name, g.early(s), logits.address, part(targets, from).address, part(state, from).address, part(state, rows+from).address, n, vocabulary, stride, ignore)
}

// entropyMean queues the mean of the losses of all rows.
func entropyMean(s *Stream, rows int, ignore int32, targets Array[int32], state, loss Array[float32]) error {
	return s.run("cross_entropy", "entropy_mean", grid{x: 1, threads: 1024}.early(s), targets.address, state.address, loss.address, rows, ignore)
}

// smallVocabulary is the largest vocabulary whose kernels process several rows in a block of threads.
const smallVocabulary = 2048

// entropyGradient is entropyForward that replaces the logits by the gradient of the sum of the losses. The rows begin at multiples of 16 bytes.
func entropyGradient[T Activation](s *Stream, from, n, rows, vocabulary, stride int, ignore int32, logits Array[T], targets Array[int32], state Array[float32]) error {
	name, g := "entropy_gradient_"+typeName[T](), grid{x: int64(n), threads: 512}
	switch {
	case vocabulary <= 32:
		name, g = name+"_4", blocksOf(n*4, 256)
	case vocabulary <= smallVocabulary:
		name, g = name+"_32", blocksOf(n*32, 256)
	default:
		name += "_vectors"
	}
	return s.run("cross_entropy", name, g.early(s), logits.address, part(targets, from).address, part(state, rows+from).address, n, vocabulary, stride, ignore)
}

// wholeRows reports whether every row begins at a multiple of 16 bytes. Kernels then read 16 bytes at a time.
func wholeRows[T Activation](logits Array[T], stride int) bool {
	return (logits.address|uintptr(int64(stride)*size[T]()))%16 == 0
}
