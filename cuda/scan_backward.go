package cuda

import "fmt"

// Backward queues the gradients of every operand. Its inputs are the checkpoints that Forward wrote, the gradient dy (batch, length,
// channels) of the output and, unless it is absent, the gradient dfinal (batch, channels, state) of the final state. It writes every
// element of grad's arrays except the gaps between strided rows. Sums are added in a fixed order, so two runs on the same operands give the
// same gradients, bit for bit.
func (s *Scan[T]) Backward(stream *Stream, checkpoints Array[float32], dy Array[T], dfinal Array[float32], grad *ScanGrad[T]) error {
	if err := firstError(s.checkBackward(checkpoints, dy, dfinal, grad), stream.usable()); err != nil {
		return err
	}
	if s.Batch*s.Length*s.Channels == 0 {
		return s.emptyBackward(stream, dfinal, grad)
	}
	args := s.args()
	args.checkpoints, args.dy, args.dfinal = checkpoints.address, dy.address, dfinal.address
	args.du, args.ddelta, args.dz, args.dinitial = grad.U.address, grad.Delta.address, grad.Z.address, grad.Initial.address
	if s.Initial.Absent() {
		args.dinitial = 0
	}
	args.alsoAligned((dy.address | grad.U.address | grad.Delta.address | grad.Z.address) / uintptr(size[T]()))
	kernels := s.size()
	pass := kernels.backward
	if s.asyncBackward(&args) {
		kernels = scanSizes[0]
		pass = *kernels.asyncBackward
	}
	chunks, rows, states := s.chunks(kernels, pass), s.Batch*s.Length*s.State, s.Channels*s.State
	sections := s.Channels / s.section()

	var work temporaries
	defer work.free()
	// parts allocates the partial sums of a gradient of a parameter, which are added after the pass. A single partial sum is the gradient itself.
	var now, later []partSum
	var laterParts []Array[float32]
	queued := false
	defer func() {
		if !queued {
			for _, a := range laterParts {
				a.Free()
			}
		}
	}()
	parts := func(of Array[float32], count, n int) (uintptr, error) {
		switch {
		case of.n == 0: // the operand is absent
			return 0, nil
		case count == 1:
			return of.address, nil
		}
		a, err := NewArray[float32](stream, count*n)
		if err != nil {
			return 0, err
		}
		laterParts = append(laterParts, a)
		later = append(later, sumOf(of.Slice(0, n), a, count))
		return a.address, nil
	}
	projection := func(p Projection[T], of Array[T]) (uintptr, error) {
		if p.Groups == 0 {
			// Constant B and C are only supported in float32.
			return parts(any(of).(Array[float32]), s.Batch*chunks, states)
		}
		count, half := sections/p.Groups*s.blocks(pass), int64(0)
		if typeName[T]() == "bf16" {
			half = 1
		}
		a, err := NewArray[float32](stream, p.Groups*count*rows)
		if err != nil {
			return 0, err
		}
		work = append(work, a)
		for g := range p.Groups {
			to, from := of.address+uintptr(size[T]())*uintptr(g*s.State), a.address+uintptr(4*g*count*rows)
			now = append(now, partSum{to, from, int64(count), int64(rows), int64(rows), int64(s.State), 1, int64(p.stride(s.State)), half})
		}
		return a.address, nil
	}
	var errs [5]error
	args.dA, errs[0] = parts(grad.A, s.Batch*chunks, states)
	args.dD, errs[1] = parts(grad.D, s.Batch*chunks, s.Channels)
	args.dBias, errs[2] = parts(grad.DeltaBias, s.Batch*chunks, s.Channels)
	args.dB, errs[3] = projection(s.B, grad.B)
	args.dC, errs[4] = projection(s.C, grad.C)
	if err := firstError(errs[:]...); err != nil {
		return err
	}
	if err := s.launch(stream, pass, "backward", "carries", "scan_carries_in", kernels, &args, &work); err != nil {
		return err
	}
	queued = true
	return stream.sum(now, later, laterParts...)
}

func (s *Scan[T]) checkBackward(checkpoints Array[float32], dy Array[T], dfinal Array[float32], grad *ScanGrad[T]) error {
	if err := s.check(); err != nil {
		return err
	}
	if grad == nil {
		return fmt.Errorf("cuda: scan: the gradients are missing, want arrays for them")
	}
	if err := firstError(
		fits("scan", "checkpoints", checkpoints.n, s.CheckpointLen()), fits("scan", "dy", dy.n, s.Batch*s.Length*s.Channels),
		fitsIf("scan", "dfinal", dfinal, s.states()),
	); err != nil {
		return err
	}
	return firstError(
		gradientFits("U", s.U, grad.U), gradientFits("Delta", s.Delta, grad.Delta), gradientFits("A", s.A, grad.A),
		gradientFits("B", s.B.Data, grad.B), gradientFits("C", s.C.Data, grad.C), gradientFits("D", s.D, grad.D), gradientFits("Z", s.Z, grad.Z),
		gradientFits("DeltaBias", s.DeltaBias, grad.DeltaBias), gradientFits("Initial", s.Initial, grad.Initial),
	)
}

// gradientFits returns an error for a gradient that is shorter than its operand, or whose operand is absent.
func gradientFits[T Element](name string, of, grad Array[T]) error {
	switch {
	case of.Absent() && grad.n > 0:
		return fmt.Errorf("cuda: scan: there is a gradient of %s, and no %s", name, name)
	case grad.n < of.n:
		return fits("scan", "the gradient of "+name, grad.n, of.n)
	}
	return nil
}

// emptyBackward is Backward for a length of 0: the final state is the initial one.
func (s *Scan[T]) emptyBackward(stream *Stream, dfinal Array[float32], grad *ScanGrad[T]) error {
	if err := firstError(grad.B.Fill(stream, 0), grad.C.Fill(stream, 0)); err != nil {
		return err
	}
	for _, sum := range []Array[float32]{grad.A, grad.D, grad.DeltaBias, grad.Initial} {
		if err := sum.Fill(stream, 0); err != nil {
			return err
		}
	}
	if grad.Initial.Absent() || dfinal.Absent() {
		return nil
	}
	return grad.Initial.copy(stream, dfinal.Slice(0, s.states()))
}
