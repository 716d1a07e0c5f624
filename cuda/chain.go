package cuda

import (
	"errors"
	"fmt"
	"unsafe"
)

// StepResult is where a step writes: y (batch, model), and the context and scan after the step, in the shapes of the step's. Each may be
// the array that it follows: X, Context and Scan.
type StepResult struct{ Y, Context, Scan Array[float32] }

// Constants of kernels/chainmma.cu.
const (
	chainLayers  = 28 // of a launch, whose arguments take at most 4096 bytes
	chainGroup   = 8  // sequences of a launch
	chainThreads = 384
)

// chainLayer and chainArgs have the same fields as the kernels' structs ChainLayer and Chain.
type chainLayer struct {
	inProj, xProj, outProj, inBias, outBias, norm, contextNext, scanNext uintptr
	conv, convBias, dtBias, skip, alog, dtProj, context, scan            uintptr
}

type chainArgs struct {
	layers, batch, model, channels, states, width, rank int32
	channelsEach, columnsEach, modelEach                int32
	eps                                                 float32
	_                                                   int32
	x, y, boxes                                         uintptr
	layer                                               [chainLayers]chainLayer
}

// chainPlan is how steps of one size are divided among the blocks of threads of a launch.
type chainPlan struct {
	kernel                               string
	group                                int // sequences of a launch
	channelsEach, columnsEach, modelEach int // channels, rows of x_proj and rows of out_proj of a block
	blocks, shared                       int // shared: bytes of shared memory of a block
	boxes                                int // words of 64 bits in which the blocks exchange vectors
}

// planChain returns the plan for steps of a size, and false if the kernels do not support it.
func planChain[T Activation](d *Device, s *Step[T]) (p chainPlan, ok bool) {
	if d.kernels < 80 || size[T]() != 4 || s.Model%8 != 0 || s.Channels%8 != 0 { // copies of 16 bytes, for four channels
		return p, false
	}
	p.group = 1
	if s.Batch > 1 {
		p.group = chainGroup
	}
	p.kernel = fmt.Sprintf("chain_%d", p.group)
	parts := func(n, each int) int { return (n + each - 1) / each }
	up := func(n, unit int) int { return parts(n, unit) * unit }
	columns := up(s.columns(), 2)
	p.channelsEach, p.columnsEach = up(parts(s.Channels, d.multiprocessors), 4), parts(columns, d.multiprocessors)
	p.modelEach = parts(s.Model, d.multiprocessors)
	p.blocks = max(parts(s.Channels, p.channelsEach), parts(columns, p.columnsEach), parts(s.Model, p.modelEach))
	p.boxes = p.group * (s.Model + 2*s.Channels + columns)
	weights := 2*p.channelsEach*s.Model + (p.columnsEach+p.modelEach)*s.Channels
	floats := 2*s.Model + p.group*(s.Model+s.Channels+up(columns, 4)+2*p.channelsEach) + up(p.group*p.modelEach, 4) +
		2*p.channelsEach*(3+s.Width+s.State+s.Rank+p.group*(s.Width-1+s.State))
	p.shared = 4 * (weights + floats)
	return p, p.shared <= d.shared
}

// StepChain queues steps that follow each other. It sets the X of each but the first to the Y of the one before. It writes the
// contexts and scans of all, and the last Y; the Y of others may be left as they are. On devices of compute capability 8.0 and newer, a few sequences
// with weights of bfloat16 take three kernels a step that use tensor cores. With weights of float32, steps of one size run as one kernel if a
// multiprocessor's part of the weights fits into its shared memory, and if the device runs that many blocks of threads at the same time.
func StepChain[T Activation](s *Stream, steps []*Step[T], results []StepResult) error {
	if len(steps) != len(results) {
		return fmt.Errorf("cuda: step: %d results, want %d, one for each step", len(results), len(steps))
	}
	for i, step := range steps {
		if step != nil && i > 0 {
			if step.Batch != steps[0].Batch || step.Model != steps[0].Model {
				return fmt.Errorf("cuda: step: Batch and Model are %d and %d in step %d, want %d and %d, as in step 0", step.Batch, step.Model, i, steps[0].Batch, steps[0].Model)
			}
			step.X = results[i-1].Y
		}
		if err := step.check(s, results[i]); err != nil {
			return err
		}
	}
	for len(steps) > 0 {
		first, n := steps[0], 1
		for n < min(len(steps), chainLayers) && first.sameSize(steps[n]) && first.isFew(s.device) == steps[n].isFew(s.device) {
			n++
		}
		plan, ok := planChain(s.device, first)
		var err error
		switch {
		case first.Batch == 0:
		case first.Batch <= fewMost && first.isFew(s.device):
			for i, step := range steps[:n] {
				err = firstError(err, step.few(s, results[i], i == 0))
			}
		case first.Batch <= rowsMost && first.isFew(s.device):
			for i, step := range steps[:n] {
				err = firstError(err, step.rows(s, results[i], i == 0))
			}
		case ok && first.Batch <= first.exactMost() && s.device.launches.apart.Load() == nil:
			var refused bool
			if refused, err = launchChain(s, plan, steps[:n], results[:n]); refused {
				why := err.Error()
				s.device.launches.apart.Store(&why) // and now without
				err = nil
				continue
			}
		default:
			if first.Batch <= min(fewSequences, first.exactMost()) {
				for i, step := range steps[:n] {
					err = firstError(err, step.forward(s, results[i]))
				}
				break
			}
			y := results[n-1].Y // the products add to it, so the steps share it
			for i, step := range steps[:n] {
				if i > 0 {
					step.X = y
				}
				err = firstError(err, step.many(s, StepResult{y, results[i].Context, results[i].Scan}, i == 0))
			}
		}
		if err != nil {
			return err
		}
		steps, results = steps[n:], results[n:]
	}
	return nil
}

// sameSize reports whether two steps have the same sizes.
func (s *Step[T]) sameSize(o *Step[T]) bool {
	return s.Batch == o.Batch && s.Model == o.Model && s.Channels == o.Channels && s.State == o.State && s.Width == o.Width && s.Rank == o.Rank && s.Eps == o.Eps
}

// launchChain queues steps of one size, for a group of sequences after the other. It returns refused and an error, and has queued nothing, if the
// device does not run all blocks of threads at the same time, as a part of a GPU may not.
func launchChain[T Activation](s *Stream, p chainPlan, steps []*Step[T], results []StepResult) (refused bool, err error) {
	if !s.device.cooperates {
		return true, errors.New("the device has no cooperative launches")
	}
	boxes, err := NewArray[uint8](s, 8*p.boxes)
	if err != nil {
		return false, err
	}
	defer boxes.Free()
	first, last := steps[0], results[len(results)-1]
	for from := 0; from < first.Batch; from += p.group {
		at := func(a Array[float32], width int) uintptr { // the row of the group's first sequence
			if a.Absent() {
				return 0
			}
			return a.address + uintptr(4*from*width)
		}
		a := &chainArgs{
			layers: int32(len(steps)), batch: int32(min(p.group, first.Batch-from)), model: int32(first.Model), channels: int32(first.Channels),
			states: int32(first.State), width: int32(first.Width), rank: int32(first.Rank), eps: first.Eps, channelsEach: int32(p.channelsEach),
			columnsEach: int32(p.columnsEach), modelEach: int32(p.modelEach),
			x: at(first.X, first.Model), y: at(last.Y, first.Model), boxes: boxes.address,
		}
		for i, step := range steps {
			context, scan := (step.Width-1)*step.Channels, step.Channels*step.State
			a.layer[i] = chainLayer{
				inProj: step.InProj.address, xProj: step.XProj.address, outProj: step.OutProj.address, inBias: step.InBias.address,
				outBias: step.OutBias.address, norm: step.Norm.address, contextNext: at(results[i].Context, context), scanNext: at(results[i].Scan, scan),
				conv: step.Conv.address, convBias: step.ConvBias.address, dtBias: step.DtBias.address, skip: step.D.address,
				alog: step.ALog.address, dtProj: step.DtProj.address, context: at(step.Context, context), scan: at(step.Scan, scan),
			}
		}
		if err := boxes.Fill(s, 0); err != nil {
			return false, err
		}
		g := grid{x: int64(p.blocks), threads: chainThreads, shared: p.shared, mode: cooperative}
		if err := s.run("chainmma", p.kernel, g, unsafe.Pointer(a)); err != nil {
			return from == 0 && isRefused(err), err
		}
	}
	return false, nil
}
