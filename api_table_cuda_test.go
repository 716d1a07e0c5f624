package mamba_test

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/op"
)

// gpu is what the calls of cuda and of places on a device are made with: an open device, or without one zero values, for which each call that can
// return an error does so and the driver is not called.
type gpu struct {
	t      *testing.T // nil without a device
	device *cuda.Device
	stream *cuda.Stream
	place  op.Place
}

func noGPU() *gpu {
	return &gpu{device: new(cuda.Device), stream: new(cuda.Stream)}
}

// The calls of cuda and of places with a device, or the stand-in for one.
func TestNothingPanicsOrHangsOnADevice(t *testing.T) {
	if _, err := exported(); errors.Is(err, exec.ErrNotFound) {
		t.Skip("the go command, which lists the exported names, is not on this machine")
	}
	g := &gpu{t: t, device: gputest.Open(t, cuda.Open)}
	g.stream, g.place = must(g.device.NewStream()), must(op.On(g.device, cuda.Strict))
	for _, c := range slices.Concat(cudaCalls(g), placeCalls(g), otherCalls(g)) {
		if strings.HasPrefix(c.name, "layer.") { // it needs no device
			continue
		}
		t.Run(c.name, func(t *testing.T) { c.test(t) })
		check(g.stream.Trim())
	}
}

// withoutDevice are the calls that need no device.
var withoutDevice = []string{"cuda.GorgoniaPTX", "cuda.Attention.Fits", "cuda.Block.Fits", "cuda.Step.Fits", "cuda.ConvShape.Fits", "cuda.GridConv.Fits", "cuda.Precision.Err", "op.Place.Precision"}

// without marks calls that return an error without a device.
func (g *gpu) without(calls []call) []call {
	here, _ := cuda.Count()
	for i := range calls {
		opens := calls[i].name == "cuda.Open" && here > 0
		calls[i].broken = calls[i].broken || g.t == nil && !slices.Contains(withoutDevice, calls[i].name) && !opens
	}
	return calls
}

// array returns an array of zeros. Without a device it is somewhere in no memory.
func array[T cuda.Element](g *gpu, n int) cuda.Array[T] {
	if g.t == nil {
		return cuda.ArrayAt[T](g.stream, 1<<20, n)
	}
	a := must(cuda.NewArray[T](g.stream, n))
	check(a.Fill(g.stream, 0))
	return a
}

func (g *gpu) floats(n int) cuda.Array[float32] { return array[float32](g, n) }

// absent returns the exceptions of operands that may be absent.
func absent(prefix string, names ...string) (fine []string) {
	for _, n := range names {
		fine = append(fine, prefix+n+"=zero")
	}
	return fine
}

func cudaCalls(g *gpu) []call {
	f, bytes := g.floats, func(n int) cuda.Array[uint8] { return array[uint8](g, n) }
	ints := func(n int) cuda.Array[int32] { return array[int32](g, n) }
	s := g.stream
	device := func() *cuda.Device {
		if g.t == nil {
			return g.device
		}
		d := must(cuda.Open(0))
		g.t.Cleanup(func() { check(d.Close()) })
		return d
	}
	event := func() *cuda.Event {
		if g.t == nil {
			return new(cuda.Event)
		}
		e := must(g.device.NewEvent())
		check(s.Record(e))
		return e
	}
	capture := func() *cuda.Capture {
		if g.t == nil {
			return new(cuda.Capture)
		}
		a := f(4)
		check(cuda.Add(s, a, a, a)) // loads the kernel
		return must(s.Capture(func() error { return cuda.Add(s, a, a, a) }))
	}
	states := func() *cuda.StateSizes {
		if g.t == nil {
			return new(cuda.StateSizes)
		}
		return must(cuda.NewStateSizes(s, []int{4, 2}))
	}
	outbox := func() *cuda.Outbox[float32] {
		if g.t == nil {
			return new(cuda.Outbox[float32])
		}
		return must(cuda.NewOutbox[float32](s, 4))
	}
	block := func() *cuda.Block[float32] {
		return &cuda.Block[float32]{
			Batch: 2, Length: 3, Model: 4, Channels: 8, State: 2, Width: 3, Rank: 1, Eps: 1e-5, Precision: cuda.Strict,
			X: f(24), Norm: f(4), InProj: f(64), Conv: f(24), XProj: f(40), DtProj: f(8), DtBias: f(8), ALog: f(16), D: f(8), OutProj: f(32),
			InBias: f(16), ConvBias: f(8), OutBias: f(4), Context: f(32), Initial: f(32), Start: bytes(6),
		}
	}
	kept := func() *cuda.BlockKept[float32] {
		if g.t == nil {
			return new(cuda.BlockKept[float32])
		}
		return must(block().Forward(s, f(24), f(32), f(32), true))
	}
	conv := func() *cuda.Conv[float32] {
		return &cuda.Conv[float32]{Batch: 2, Length: 3, Channels: 4, Width: 3, X: f(24), XStride: 4, Weight: f(12), Bias: f(4), Context: f(16), Start: bytes(6)}
	}
	grid := func() *cuda.GridConv {
		return &cuda.GridConv{
			ConvShape: cuda.ConvShape{Batch: 2, Channels: 4, Filters: 6, Groups: 2, In: [3]int{1, 3, 3}, Out: [3]int{1, 3, 3}, Kernel: [3]int{1, 3, 3},
				Stride: [3]int{1, 1, 1}, Padding: [3]int{0, 1, 1}, Dilation: [3]int{1, 1, 1}},
			X: f(72), Weight: f(108), Bias: f(6),
		}
	}
	weights := func() *cuda.Weights { // (2, 3)
		if g.t == nil {
			return nil
		}
		return must(cuda.NewWeights(s, cuda.WeightF16, 2, 3, make([]byte, 12)))
	}
	linear := func() *cuda.Linear {
		return &cuda.Linear{Rows: 2, In: 3, Out: 4, X: f(6), Weight: f(12), Half: array[cuda.BFloat16](g, 12), Bias: f(4)}
	}
	head := func() *cuda.Head[float32] {
		return &cuda.Head[float32]{Rows: 2, In: 3, Vocabulary: 4, Ignore: -1, X: f(6), Weight: f(12), Targets: ints(2)}
	}
	headGradients := func() *cuda.HeadGradients {
		if g.t == nil {
			return new(cuda.HeadGradients)
		}
		return must(head().Forward(s, f(1), true))
	}
	lstm := func() *cuda.LSTM {
		return &cuda.LSTM{Batch: 2, Length: 3, Channels: 4, Z: f(96), R: f(64), H: f(8), C: f(8), Start: bytes(6)}
	}
	lstmKept := func() *cuda.LSTMKept {
		if g.t == nil {
			return new(cuda.LSTMKept)
		}
		return must(lstm().Forward(s, f(24), f(8), f(8), true))
	}
	attention := func() *cuda.Attention {
		return &cuda.Attention{Batch: 2, Length: 3, Channels: 8, Heads: 2, Window: 3, Base: 10, Precision: cuda.TF32, Q: f(48), K: f(48), V: f(48), Context: f(68),
			Start: bytes(6)}
	}
	attentionKept := func() *cuda.AttentionKept {
		if g.t == nil {
			return new(cuda.AttentionKept)
		}
		return must(attention().Forward(s, f(48), f(68), true))
	}
	scan := func() *cuda.Scan[float32] {
		return &cuda.Scan[float32]{
			Batch: 2, Length: 3, Channels: 4, State: 2, U: f(24), Delta: f(24), A: f(8), B: cuda.Projection[float32]{Data: f(12), Groups: 1, Stride: 2},
			C: cuda.Projection[float32]{Data: f(12), Groups: 1, Stride: 2}, D: f(4), Z: f(24), ZStride: 4, DeltaBias: f(4), Initial: f(16), Start: bytes(6),
		}
	}
	gridScan := func() *cuda.GridScan[float32] {
		return &cuda.GridScan[float32]{
			Batch: 2, Cells: 4, Channels: 3, State: 2, Directions: 2, Order: ints(8), U: f(24), OneU: true, Merge: true, Delta: f(48), A: f(12),
			B: cuda.GridProjection[float32]{Data: f(32), Step: 2}, C: cuda.GridProjection[float32]{Data: f(32), Step: 2}, D: f(6), DeltaBias: f(6),
		}
	}
	ss2d := func() *cuda.SS2D[float32] {
		return &cuda.SS2D[float32]{
			Batch: 2, Cells: 4, Channels: 3, State: 2, Rank: 1, Directions: 2, Order: ints(8), X: f(24), XProj: f(30), DtProj: f(6), DtBias: f(6),
			ALog: f(12), D: f(6),
		}
	}
	ss2dKept := func() *cuda.SS2DKept[float32] {
		if g.t == nil {
			return new(cuda.SS2DKept[float32])
		}
		return must(ss2d().Forward(s, f(24), true))
	}
	mlp := func() *cuda.MLP[float32] {
		return &cuda.MLP[float32]{Rows: 2, In: 3, Hidden: 5, Out: 4, F: cuda.GELU, X: f(6), W1: f(15), W2: f(20), B1: f(5), B2: f(4)}
	}
	mlpKept := func() *cuda.MLPKept[float32] {
		if g.t == nil {
			return new(cuda.MLPKept[float32])
		}
		return must(mlp().Forward(s, f(8), true))
	}
	mlpFine := append(absent("0.", "B1", "B2"), "0.Rows=0", "0.Precision=0", "0.F=0")
	gridFine := append(absent("0.", "D", "DeltaBias"), "0.Batch=0", "0.Cells=0")
	step := func() *cuda.Step[float32] {
		return &cuda.Step[float32]{
			Batch: 2, Model: 4, Channels: 8, State: 2, Width: 3, Rank: 1, Eps: 1e-5, X: f(8), Norm: f(4), Conv: f(24), DtBias: f(8), ALog: f(16), D: f(8),
			InProj: f(64), XProj: f(40), DtProj: f(8), OutProj: f(32), InBias: f(16), ConvBias: f(8), OutBias: f(4), Context: f(32), Scan: f(32),
		}
	}
	s4 := func() *cuda.S4 {
		return &cuda.S4{Batch: 2, Length: 3, Channels: 4, Modes: 2, U: f(24), LogDelta: f(4), LogDecay: f(8), Frequency: f(8), C: f(16), D: f(4), Initial: f(32), Start: bytes(6)}
	}
	connected := func() *cuda.Stream {
		if g.t == nil {
			return s
		}
		c := must(g.device.NewStream())
		check(c.Connect(must(g.device.NewConnectionID()), 0, 1))
		return c
	}
	matrix := func(rows, columns int) cuda.Matrix[float32] {
		return cuda.Matrix[float32]{Data: f(rows * columns), Stride: columns}
	}
	row := func(name string, f any, args func() []any, fine ...string) call {
		return call{name: "cuda." + name, f: f, args: args, fine: fine}
	}
	adam := cuda.AdamW{Scale: 1, Beta1: 0.9, Rest1: 0.1, Beta2: 0.9, Rest2: 0.1, Rate: 0.1, Root: 1, Eps: 1e-8, Keep: 1}
	products := func(more ...any) func() []any {
		return func() []any {
			return append(append([]any{s, cuda.Strict, 2, 3, 4}, more...), matrix(2, 4), matrix(4, 3), float32(1), matrix(2, 3))
		}
	}
	blockFine := append(absent("0.", "InBias", "ConvBias", "OutBias", "Context", "Initial", "Start"), "0.Eps=0", "0.Precision=0", "0.InNarrow=nil", "0.XNarrow=nil", "0.OutNarrow=nil")
	scanFine := []string{"0.*.Groups=0", "0.*.Stride=0", "0.ZStride=0", "0.Batch=0", "0.Length=0", "0.Channels=0", "0.Start=zero"}
	linearFine := append(absent("0.", "Half", "Bias"), "0.Rows=0", "0.Precision=0", "0.Narrow=nil")
	lstmFine := append(absent("0.", "H", "C", "Start"), "0.Batch=0", "0.Length=0", "0.Precision=0")
	s4Fine := append(absent("0.", "Frequency", "D", "Initial", "Start"), "0.Batch=0", "0.Length=0", "0.Channels=0")
	attentionFine := append(absent("0.", "Context", "Start"), "0.Base=0", "0.Precision=0")
	convFine := append(absent("0.", "Bias", "Context", "Start"), "0.Batch=0", "0.Length=0", "0.Channels=0")
	return g.without(slices.Concat(
		methods("cuda.AdamW", func() any { return adam }, map[string]call{"Step": {args: func() []any {
			return []any{s, []cuda.AdamWeight{{Weight: f(4), Grad: f(4), M: f(4), V: f(4), Half: array[cuda.BFloat16](g, 4)}}, 1.0, 0.0}
		}, fine: []string{"0*", "2=nil: nothing is done", "2[0]=zero: it has no elements", "2[0].Half=zero", "3=*", "4=*"}},
			"StepAmong": {args: func() []any {
				ranks := &cuda.AdamWRanks{Own: []cuda.Array[float32]{f(4)}, Size: 1, Gather: func(all, own cuda.Array[float64]) error { return nil }}
				return []any{s, []cuda.AdamWeight{{Weight: f(4), Grad: f(4), M: f(4), V: f(4)}}, 1.0, 0.0, ranks, func() {}}
			}, fine: []string{"0*", "2=nil: only the norm is computed", "2[0]=zero: it has no elements", "2[0].Half=zero", "3=*", "4=*", "5=nil: this device alone", "5.Own=nil: the norm is that of the given squares", "5.Own[0]=zero: it has no elements", "5.Rank=0", "6=nil: nothing is called"}},
			"Queue": {args: func() []any {
				ranks := &cuda.AdamWRanks{Own: []cuda.Array[float32]{f(4)}, Size: 1, Gather: func(all, own cuda.Array[float64]) error { return nil }}
				return []any{s, []cuda.AdamWeight{{Weight: f(4), Grad: f(4), M: f(4), V: f(4)}}, 1.0, 0.0, ranks}
			}, fine: []string{"0*", "2=nil: only the norm is computed", "2[0]=zero: it has no elements", "2[0].Half=zero", "3=*", "4=*", "5=nil: this device alone", "5.Own=nil: the norm is that of the given squares", "5.Own[0]=zero: it has no elements", "5.Rank=0"}}}),
		methods("cuda.Norm", func() any {
			if g.t == nil {
				return new(cuda.Norm)
			}
			return must(adam.Queue(s, nil, 0, 0, nil))
		}, nil),
		methods("cuda.Array", func() any { return f(4) }, map[string]call{
			"CopyFrom":      {args: func() []any { return []any{s, make([]float32, 4)} }, fine: []string{"2[0]=*"}},
			"CopyPartsFrom": {args: func() []any { return []any{s, make([]float32, 2), make([]float32, 2)} }, fine: []string{"2[0][0]=*"}},
			"CopyTo":        {args: func() []any { return []any{s, make([]float32, 4)} }, fine: []string{"2[0]=*"}},
			"CopyOf":        {args: func() []any { return []any{s, f(4)} }},
			"Fill":          {args: func() []any { return []any{s, byte(1)} }, fine: []string{"0=zero: nothing is filled"}},
			"Slice":         {args: with(1, 2), panics: []string{"*=*: like a slice of Go's"}},
		}),
		methods("cuda.Attention", func() any { return attention() }, map[string]call{
			"Fits":    {fine: []string{"0.*=zero", "0.Batch=*", "0.Base=0", "0.Precision=0", "0.Window=0"}},
			"Forward": {args: func() []any { return []any{s, f(48), f(68), true} }, fine: append(absent("", "3"), attentionFine...)},
			"Backward": {args: func() []any {
				return []any{s, attentionKept(), f(48), f(68), &cuda.AttentionGrad{Q: f(48), K: f(48), V: f(48), Context: f(68)}}
			}, fine: append(absent("", "3", "4", "5", "5.Q", "5.K", "5.V", "5.Context"), "0.Base=0", "0.Precision=0", "0.Start=zero")},
		}),
		methods("cuda.AttentionKept", func() any { return attentionKept() }, nil),
		methods("cuda.BFloat16", func() any { return cuda.ToBFloat16(1) }, nil),
		methods("cuda.Precision", func() any { return cuda.TF32 }, map[string]call{"Err": {fine: []string{"0=0"}}}),
		methods("cuda.Error", func() any { return &cuda.Error{Call: "cuInit", Code: 1, Name: "a", Text: "b"} }, nil),
		methods("cuda.OutOfMemory", func() any { return &cuda.OutOfMemory{Asked: 1, InUse: 2, Free: 3} }, nil),
		methods("cuda.Block", func() any { return block() }, map[string]call{
			"Fits":    {fine: []string{"0.*=zero", "0.Batch=*", "0.Length=*", "0.Channels=*", "0.Model=*", "0.Rank=*", "0.Eps=0", "0.Precision=0", "0.InNarrow=nil", "0.XNarrow=nil", "0.OutNarrow=nil"}},
			"Forward": {args: func() []any { return []any{s, f(24), f(32), f(32), true} }, fine: append(absent("", "3", "4"), blockFine...)},
			"Keep":    {args: func() []any { return []any{s} }, fine: blockFine},
			"Backward": {args: func() []any {
				return []any{s, kept(), f(24), f(32), f(32), &cuda.BlockGrad{X: f(24), Norm: f(4), InProj: f(64), Conv: f(24), XProj: f(40), DtProj: f(8), DtBias: f(8), ALog: f(16),
					D: f(8), OutProj: f(32), InBias: f(16), ConvBias: f(8), OutBias: f(4), Context: f(32), Initial: f(32)}}
			}, fine: append(absent("", "4", "5"), slices.DeleteFunc(slices.Clone(blockFine), func(s string) bool { return s == "0.Initial=zero" })...)},
		}),
		methods("cuda.BlockKept", func() any { return kept() }, map[string]call{"Again": {args: func() []any { return []any{s} }, fine: []string{"0=zero: it keeps nothing"}}}),
		methods("cuda.Head", func() any { return head() }, map[string]call{
			"Forward": {args: func() []any { return []any{s, f(1), true} }, fine: []string{"0.Rows=0", "0.Ignore=*", "0.Precision=0"}},
		}),
		methods("cuda.HeadGradients", func() any { return headGradients() }, map[string]call{"Scale": {args: func() []any { return []any{s, f(1), f(6), f(12)} }}}),
		methods("cuda.Capture", func() any { return capture() }, map[string]call{"Launch": {args: func() []any { return []any{s} }}}),
		methods("cuda.ConvShape", func() any { return grid().ConvShape }, map[string]call{"Fits": {fine: []string{"0.Batch=*"}}}),
		methods("cuda.GridConv", func() any { return grid() }, map[string]call{
			"Forward": {args: func() []any { return []any{s, f(108)} }, fine: append(absent("0.", "Bias"), "0.ConvShape.Batch=0", "0.Precision=0")},
			"Backward": {args: func() []any { return []any{s, f(108), f(72), f(108), f(6)} },
				fine: append(absent("0.", "Bias"), "0.ConvShape.Batch=0", "0.Precision=0", "3=zero", "4=zero", "5=zero")},
			"Fits": {fine: []string{"0.Bias=*", "0.X=*", "0.Weight=*", "0.Precision=*", "0.ConvShape.Batch=*"}},
		}),
		methods("cuda.Conv", func() any { return conv() }, map[string]call{
			"Forward":  {args: func() []any { return []any{s, f(24), f(16)} }, fine: append(absent("", "3"), convFine...)},
			"Backward": {args: func() []any { return []any{s, f(24), f(16), f(24), 4, f(12), f(4), f(16)} }, fine: append(absent("", "3", "7", "8"), convFine...)},
		}),
		methods("cuda.Device", func() any { return device() }, map[string]call{"OnClose": {args: func() []any { return []any{func() {}} }}}),
		methods("cuda.Dropout", func() any { return cuda.Dropout{Rate: 0.5, Seed: 1, Layer: 2, Each: 1} }, map[string]call{
			"Apply": {args: func() []any { return []any{s, f(24), ints(1), f(24)} }, fine: []string{"0.Rate=0", "0.Each=*"}},
		}),
		methods("cuda.Dice", func() any { return &cuda.Dice{Images: 2, Cells: 3, Classes: 4, Logits: f(24), Targets: ints(6)} }, map[string]call{
			"Forward":  {args: func() []any { return []any{s, array[float64](g, 12), f(1)} }, fine: []string{"0.Ignore=*"}},
			"Backward": {args: func() []any { return []any{s, array[float64](g, 12), f(1), f(24)} }, fine: []string{"0.Ignore=*"}},
			"State":    {},
		}),
		methods("cuda.Pad", func() any {
			return &cuda.Pad{Batch: 2, Channels: 2, From: [3]int{1, 1, 2}, To: [3]int{1, 1, 3}, Before: [3]int{0, 0, 1}}
		}, map[string]call{"Apply": {args: func() []any { return []any{s, f(8), f(12)} }, fine: []string{"0=zero: there is nothing to copy", "0.Batch=0", "0.Channels=0"}}}),
		methods("cuda.GridScan", func() any { return gridScan() }, map[string]call{
			"Forward": {args: func() []any { return []any{s, f(48), f(gridScan().CheckpointLen())} }, fine: append(absent("", "2", "3"), gridFine...)},
			"Backward": {args: func() []any {
				return []any{s, f(gridScan().CheckpointLen()), f(48), &cuda.GridGrad[float32]{
					U: f(48), Delta: f(48), A: f(12), B: cuda.GridProjection[float32]{Data: f(32), Step: 2}, C: cuda.GridProjection[float32]{Data: f(32), Step: 2},
					D: f(6), DeltaBias: f(6), More: func() (cuda.Array[float32], error) { return f(48), nil },
				}}
			}, fine: append(absent("", "2", "4.D", "4.DeltaBias"), append(gridFine, "4.More=nil")...)},
		}),
		methods("cuda.SS2D", func() any { return ss2d() }, map[string]call{
			"Forward": {args: func() []any { return []any{s, f(24), true} }, fine: []string{"0.Batch=0", "0.Cells=0", "0.Precision=0"}},
			"Backward": {args: func() []any {
				return []any{s, ss2dKept(), f(24), &cuda.SS2DGrad{X: f(24), XProj: f(30), DtProj: f(6), DtBias: f(6), ALog: f(12), D: f(6)}}
			}, fine: []string{"0.Batch=0", "0.Cells=0", "0.Precision=0"}},
		}),
		methods("cuda.MLP", func() any { return mlp() }, map[string]call{
			"Forward": {args: func() []any { return []any{s, f(8), true} }, fine: mlpFine},
			"Backward": {args: func() []any {
				return []any{s, mlpKept(), f(8), &cuda.MLPGrad{X: f(6), W1: f(15), W2: f(20), B1: f(5), B2: f(4)}}
			}, fine: append(absent("", "4.B1", "4.B2"), mlpFine...)},
		}),
		methods("cuda.MLPKept", func() any { return mlpKept() }, nil),
		methods("cuda.SS2DKept", func() any { return ss2dKept() }, nil),
		methods("cuda.MeanPool", func() any { return &cuda.MeanPool{Batch: 2, Length: 3, Channels: 4, Mask: bytes(6)} }, map[string]call{
			"Forward":  {args: func() []any { return []any{s, f(24), f(8)} }, fine: []string{"0=zero: there is nothing to compute", "0.Batch=0", "0.Length=0", "0.Channels=0", "0.Mask=zero"}},
			"Backward": {args: func() []any { return []any{s, f(8), f(24)} }, fine: []string{"0=zero: there is nothing to compute", "0.Batch=0", "0.Length=0", "0.Channels=0", "0.Mask=zero"}},
		}),
		methods("cuda.Event", func() any { return event() }, map[string]call{"Since": {args: func() []any { return []any{event()} }}}),
		methods("cuda.Linear", func() any { return linear() }, map[string]call{
			"Forward":  {args: func() []any { return []any{s, f(8)} }, fine: linearFine},
			"Backward": {args: func() []any { return []any{s, f(8), f(6), f(12), f(4)} }, fine: append(absent("", "3", "4", "5"), linearFine...)},
		}),
		methods("cuda.LSTM", func() any { return lstm() }, map[string]call{
			"Forward":  {args: func() []any { return []any{s, f(24), f(8), f(8), false} }, fine: append(absent("", "3", "4"), lstmFine...)},
			"Backward": {args: func() []any { return []any{s, lstmKept(), f(24), f(8), f(8), f(96), f(64), f(8), f(8)} }, fine: append(absent("", "3", "4", "5", "8", "9"), lstmFine...)},
		}),
		methods("cuda.LSTMKept", func() any { return lstmKept() }, nil),
		methods("cuda.Outbox", func() any { return outbox() }, map[string]call{"Send": {args: func() []any { return []any{f(4)} }}}),
		methods("cuda.S4", func() any { return s4() }, map[string]call{
			"Forward": {args: func() []any { return []any{s, f(24), f(32)} }, fine: append(absent("", "3"), s4Fine...)},
			"Backward": {args: func() []any {
				return []any{s, f(24), f(32), &cuda.S4Grad{U: f(24), LogDelta: f(4), LogDecay: f(8), Frequency: f(8), C: f(16), D: f(4), Initial: f(32)}}
			}, fine: append(absent("", "2", "3"), "0.Batch=0", "0.Length=0", "0.Channels=0", "0.Start=zero")},
		}),
		methods("cuda.Scan", func() any { return scan() }, map[string]call{
			"Forward": {args: func() []any { return []any{s, f(24), f(16), f(scan().CheckpointLen())} }, fine: append(absent("", "3", "4"), slices.Concat(scanFine, absent("0.", "D", "Z", "DeltaBias", "Initial"))...)},
			"Backward": {args: func() []any {
				c := f(scan().CheckpointLen())
				if g.t != nil {
					check(scan().Forward(s, f(24), f(16), c))
				}
				return []any{s, c, f(24), f(16), &cuda.ScanGrad[float32]{U: f(24), Delta: f(24), B: f(12), C: f(12), Z: f(24), A: f(8), D: f(4), DeltaBias: f(4), Initial: f(16)}}
			}, fine: append(absent("", "4"), scanFine...)},
		}),
		methods("cuda.StateSizes", func() any { return states() }, map[string]call{
			"Len": {args: func() []any { return []any{2} }}, "State": {args: func() []any { return []any{f(512), 2, 1} }},
		}),
		methods("cuda.Step", func() any { return step() }, map[string]call{
			"Fits":    {fine: []string{"0.*=zero", "0.Batch=*", "0.State=*", "0.Rank=*", "0.Eps=0", "0.Precision=0"}},
			"Forward": {args: func() []any { return []any{s, f(8), f(32), f(32)} }, fine: append(absent("0.", "ConvBias", "InBias", "OutBias"), "0.Batch=0", "0.Eps=0", "0.Precision=0")},
		}),
		methods("cuda.Weights", func() any { return weights() }, nil),
		methods("cuda.WeightType", func() any { return cuda.WeightF16 }, nil),
		methods("cuda.WeightsStep", func() any { return &cuda.WeightsStep{Step: step(), In: weights(), X: weights(), Out: weights()} }, map[string]call{
			"Forward": {args: func() []any { return []any{s, cuda.StepResult{Y: f(8), Context: f(32), Scan: f(32)}, true} }, broken: true},
			"Runs":    {args: func() []any { return []any{s} }},
		}),
		methods("cuda.Stream", func() any {
			if g.t == nil {
				return s
			}
			return must(g.device.NewStream())
		}, map[string]call{
			"Connect": {args: func() []any {
				if g.t == nil {
					return []any{cuda.ConnectionID{}, 0, 1}
				}
				return []any{must(g.device.NewConnectionID()), 0, 1}
			}, fine: []string{"2=0"}},
			"Disconnected": {broken: true}, "Exchange": {broken: true},
			"Capture": {args: func() []any { return []any{func() error { return nil }} }}, "Record": {args: func() []any { return []any{event()} }}, "Lasting": {}, "Since": {args: func() []any { return []any{cuda.Passage{}} }},
			"Follows": {args: func() []any { return []any{cuda.Passage{}} }}, "Skip": {args: func() []any { return []any{cuda.Passage{}} }}, "Repeat": {args: func() []any { return []any{new(cuda.Allocations)} }}, "Wait": {args: func() []any { return []any{event()} }},
		}),
		[]call{
			row("AllGather", cuda.AllGather[float32], func() []any { return []any{connected(), f(4), f(4)} }),
			row("AllReduce", cuda.AllReduce[float32], func() []any { return []any{connected(), f(4)} }, "1=zero: it has no elements"),
			row("Broadcast", cuda.Broadcast[float32], func() []any { return []any{connected(), f(4), 0} }, "1=zero: it has no elements", "2=0"),
			row("ReduceScatter", cuda.ReduceScatter[float32], func() []any { return []any{connected(), f(4), f(4)} }),
			row("Add", cuda.Add, func() []any { return []any{s, f(4), f(4), f(4)} }),
			row("AddBias", cuda.AddBias[float32], func() []any { return []any{s, 2, 3, f(6), 3, f(3)} }, "1=0", "2=0"),
			row("ColumnSums", cuda.ColumnSums[float32], func() []any { return []any{s, 2, 3, f(6), 3, f(3)} }, "1=0", "2=0"),
			row("Convert", cuda.Convert[float32, cuda.BFloat16], func() []any { return []any{s, f(4), array[cuda.BFloat16](g, 4)} }),
			row("CopyAllTo", cuda.CopyAllTo[float32], func() []any { return []any{s, []cuda.Array[float32]{f(4)}, [][]float32{make([]float32, 4)}} }, "2[0][0]=*"),
			row("Reverse", cuda.Reverse, func() []any { return []any{s, 2, 3, 4, f(24), f(24), bytes(6)} }, "1=0", "2=0", "3=0", "6=zero"),
			row("GridOrders", cuda.GridOrders, func() []any { return []any{s, [][]int32{{1, 0}, {0, 1}}} }, "1=nil: no order has no memory"),
			row("Gather", cuda.Gather, func() []any { return []any{s, 2, 4, 3, ints(4), f(24), f(24)} }, "1=0", "2=0", "3=0"),
			row("Scatter", cuda.Scatter, func() []any { return []any{s, 2, 4, 3, ints(4), f(24), f(24)} }, "1=0", "2=0", "3=0"),
			row("CopyColumns", cuda.CopyColumns, func() []any { return []any{s, 2, 5, 1, 3, f(10), f(6)} }, "1=0", "3=0", "4=0"),
			row("ScatterColumns", cuda.ScatterColumns, func() []any { return []any{s, 2, 5, 1, 3, f(6), f(10)} }, "1=0", "3=0", "4=0"),
			row("CrossEntropyForward", cuda.CrossEntropyForward[float32], func() []any { return []any{s, 2, 3, 3, int32(0), f(6), ints(2), f(5), f(1)} }, "1=0", "4=*"),
			row("CrossEntropyBackward", cuda.CrossEntropyBackward[float32], func() []any { return []any{s, 2, 3, 3, int32(0), f(6), ints(2), f(5), f(1)} }, "1=0", "4=*"),
			row("BinaryCrossEntropyForward", cuda.BinaryCrossEntropyForward, func() []any { return []any{s, 2, int32(0), f(2), ints(2), array[float64](g, 1), f(1)} }, "1=0", "2=*"),
			row("BinaryCrossEntropyBackward", cuda.BinaryCrossEntropyBackward, func() []any { return []any{s, 2, int32(0), f(2), ints(2), array[float64](g, 1), f(1), f(2)} }, "1=0", "2=*"),
			row("NearestTargets", cuda.NearestTargets, func() []any { return []any{s, 2, [3]int{1, 4, 4}, [3]int{1, 2, 2}, ints(32), ints(8)} }, "1=0"),
			row("CrossEntropyState", cuda.CrossEntropyState, with(3)),
			row("EmbeddingForward", cuda.EmbeddingForward, func() []any { return []any{s, 2, 3, 4, f(12), ints(2), f(6)} }, "1=0", "2=0", "3=0"),
			row("EmbeddingBackward", cuda.EmbeddingBackward, func() []any { return []any{s, 2, 3, 4, ints(2), []int{1, 2}, f(6), f(12)} }, "1=0", "5[0]=0"),
			row("EmbeddingPacked", cuda.EmbeddingPacked, func() []any { return []any{2, 3} }),
			row("EmbeddingPack", cuda.EmbeddingPack, func() []any { return []any{s, 2, 3, 4, []int{1, 2}, f(6), f(12), f(64)} }, "1=0", "4[0]=0"),
			row("EmbeddingAdd", cuda.EmbeddingAdd, func() []any { return []any{s, 2, 3, 4, f(64), f(12)} }, "1=0"),
			row("Gate", cuda.Gate, func() []any { return []any{s, cuda.GELU, f(4), f(4), f(4)} }, "1=0", "3=zero"),
			row("GateBackward", cuda.GateBackward, func() []any { return []any{s, cuda.GELU, f(4), f(4), f(4), f(4), f(4)} }, "1=0", "3=zero"),
			row("Scale", cuda.Scale, func() []any { return []any{s, float32(2), f(6), f(3), f(6)} }, "1=*", "3=zero"),
			row("ScaleBackward", cuda.ScaleBackward, func() []any { return []any{s, float32(2), f(6), f(3), f(6), f(6), f(3)} }, "1=*", "3=zero"),
			row("GorgoniaPTX", cuda.GorgoniaPTX, nil),
			row("Largest", cuda.Largest, func() []any { return []any{s, 2, 3, f(6), ints(2)} }, "1=0", "2=0"),
			row("Multiply", cuda.Multiply[float32, float32], func() []any { return []any{s, cuda.Strict, 2, 3, 4, f(6), f(12), f(8), 4} }, "1=0", "2=0", "4=0"),
			row("MultiplyBackward", cuda.MultiplyBackward[float32], func() []any { return []any{s, cuda.Strict, 2, 3, 4, f(6), f(12), f(8), 4, f(6), f(12)} }, "1=0", "9=zero", "10=zero"),
			row("MatrixVector", cuda.MatrixVector, func() []any { return []any{s, 2, f(8), f(4), f(4)} }),
			row("NegExp", cuda.NegExp, func() []any { return []any{s, f(4), f(4)} }),
			row("NegExpBackward", cuda.NegExpBackward, func() []any { return []any{s, f(4), f(4), f(4)} }),
			row("Set", cuda.Set, func() []any { return []any{s, f(4), float32(1)} }, "2=*"),
			row("OuterProduct", cuda.OuterProduct, func() []any { return []any{s, 2, f(4), f(4), f(8)} }),
			row("VectorMatrix", cuda.VectorMatrix, func() []any { return []any{s, 2, f(4), f(8), f(4)} }),
			row("MatMul", cuda.MatMul[float32, float32], products(), "1=0", "2=0", "3=0", "7=*"),
			row("MatMulScaled", cuda.MatMulScaled[float32, float32], products(float32(1)), "1=0", "2=0", "3=0", "5=*", "8=*"),
			row("RMSNormForward", cuda.RMSNormForward[float32], func() []any { return []any{s, 2, 3, float32(1e-5), f(6), f(3), f(6)} }, "1=0", "2=0", "3=0"),
			row("RMSNormBackward", cuda.RMSNormBackward[float32], func() []any { return []any{s, 2, 3, float32(1e-5), f(6), f(3), f(6), f(6), f(6), f(3)} }, "1=0", "2=0", "3=0", "7=zero"),
			row("NewWeights", func(s *cuda.Stream, t cuda.WeightType, out, in int, data []byte) error {
				w, err := cuda.NewWeights(s, t, out, in, data)
				w.Free()
				return err
			}, func() []any { return []any{s, cuda.WeightF16, 2, 3, make([]byte, 12)} }),
			row("Widen", cuda.Widen[float32], func() []any { return []any{s, weights(), f(6)} }),
			row("WeightRows", cuda.WeightRows, func() []any { return []any{s, weights(), ints(2), f(6)} }, "2=zero: no rows"),
			row("StepChain", cuda.StepChain[float32], func() []any {
				return []any{s, []*cuda.Step[float32]{step(), step()}, []cuda.StepResult{{Y: f(8), Context: f(32), Scan: f(32)}, {Y: f(8), Context: f(32), Scan: f(32)}}}
			}, append(absent("1[0].", "ConvBias", "InBias", "OutBias"), "1[0].Eps=0", "1[0].Precision=0")...),
			row("StepProduct", cuda.StepProduct[float32], func() []any { return []any{s, 2, 3, 4, f(6), f(3), float32(1e-5), f(12), f(4), f(8), f(8)} }, "1=0", "2=0", "3=0", "5=zero", "6=0", "8=zero", "9=zero"),
			row("ArrayAt", cuda.ArrayAt[float32], func() []any { return []any{s, uintptr(1 << 20), 4} }),
			row("CopyStates", cuda.CopyStates, func() []any { return []any{s, states(), f(512), 2, 0, f(512), 2, 1, 1} }, "4=0", "5=zero", "7=0", "8=0"),
			row("NewStateSizes", func(s *cuda.Stream, sizes []int) error {
				l, err := cuda.NewStateSizes(s, sizes)
				if err == nil {
					l.Free()
				}
				return err
			}, func() []any { return []any{s, []int{4, 2}} }, "1=nil", "1[0]=0"),
			row("NewOutbox", func(s *cuda.Stream, n int) error {
				o, err := cuda.NewOutbox[float32](s, n)
				if err == nil {
					err = o.Close()
				}
				return err
			}, func() []any { return []any{s, 4} }),
			row("NewArray", func(s *cuda.Stream, n int) error {
				a, err := cuda.NewArray[float32](s, n)
				a.Free()
				return err
			}, func() []any { return []any{s, 4} }, "1=0"),
			row("Upload", cuda.Upload[float32], func() []any { return []any{s, []float32{1, 2}} }, "1=nil", "1[0]=*"),
			row("ToBFloat16", cuda.ToBFloat16, with(float32(1))),
			row("Open", func(n int) error {
				d, err := cuda.Open(n)
				if err != nil {
					return err
				}
				return d.Close()
			}, with(0), "0=0"),
			{name: "cuda.Count", f: func() { _, _ = cuda.Count() }}, // whether there is a driver is the machine's matter
			{name: "cuda.Current", f: func() { // whether this thread has a context is the driver's matter
				if d, err := cuda.Current(); err == nil {
					check(d.Close())
				}
			}},
		},
	))
}

func placeCalls(g *gpu) []call {
	c := g.place
	host := func(shape ...int) *tensor.Dense {
		return tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(shape...))
	}
	weight := func(shape ...int) *op.DeviceWeight {
		if g.t == nil {
			return new(op.DeviceWeight)
		}
		return must(c.NewWeight(host(shape...)))
	}
	up := func() *G.Node {
		e := G.NewGraph()
		return must(c.Upload(G.NewMatrix(e, tensor.Float32, G.WithShape(2, 3), G.WithName("x"), G.WithInit(G.Ones()))))
	}
	// A tensor on the device comes of a run.
	value := func() any {
		if g.t == nil {
			return new(op.DeviceTensor)
		}
		n := up()
		check(G.NewTapeMachine(n.Graph()).RunAll())
		return n.Value()
	}
	download := call{name: "op.Download", f: op.Download, args: nodesOf(shape{2, 3}), broken: true}
	if g.t != nil {
		download = call{name: "op.Download", f: op.Download, args: func() []any { return []any{up()} }}
	}
	// A size that is too large for the device alone is the run's error: a *cuda.OutOfMemory, which says how much was asked for.
	big := []string{"*=axis * of 1099511627776"}
	of := func(args func() []any, fine ...string) call {
		return call{args: args, fine: append(slices.Concat(another, big), fine...)}
	}
	return g.without(slices.Concat(
		methods("op.Place", func() any { return c }, map[string]call{
			"Do":        {args: func() []any { return []any{func(*cuda.Stream) error { return nil }} }},
			"Upload":    of(nodesOf(shape{2, 3, 4}), "1=of more axes"),
			"NewWeight": {args: func() []any { return []any{host(2, 3)} }},
			"Zeros":     {args: func() []any { return []any{tensor.Shape{2, 3}} }},
			"Precision": {fine: []string{"0=zero"}},
		}),
		methods("op.DeviceWeight", func() any { return weight(2, 3) }, map[string]call{
			"Format":  {args: func() []any { return []any{state{io.Discard}, 'v'} }, panics: []string{"1=nil*: fmt calls it"}},
			"CopyTo":  {args: with(nil), broken: true}, // for gorgonia.Read
			"HalfFor": {args: func() []any { return []any{true} }},
			"Average": {args: func() []any { return []any{host(2, 3), 0.9, 0.1} }, fine: []string{"2=*", "3=*"}},
		}),
		methods("op.DeviceTensor", value, map[string]call{
			"FromHost": {args: with(make([]float32, 6)), fine: []string{"1[0]=*"}},
			"Eq":       {args: with(1)}, "Format": {args: func() []any { return []any{state{io.Discard}, 'v'} }, panics: []string{"1=nil*: fmt calls it"}},
			// What a tensor on a device cannot do.
			"Apply": {args: with(nil), broken: true}, "At": {broken: true}, "GobDecode": {args: with([]byte{1}), broken: true}, "GobEncode": {broken: true},
			"Memset": {args: with(1), broken: true}, "ReadNpy": {args: with(nil), broken: true}, "Reshape": {broken: true}, "SetAt": {args: with(1, 0), broken: true},
			"Slice": {broken: true}, "T": {broken: true}, "Transpose": {broken: true}, "WriteNpy": {args: with(io.Discard), broken: true},
		}),
		[]call{download, {name: "op.On", f: op.On, args: func() []any { return []any{g.device, cuda.Strict} }, fine: []string{"1=0"}},
			{name: "op.PlaceOf", f: op.PlaceOf, args: nodesOf(shape{2, 3})}},
	))
}

// state is what a Formatter writes to.
type state struct{ io.Writer }

func (state) Width() (int, bool)     { return 0, false }
func (state) Precision() (int, bool) { return 0, false }
func (state) Flag(int) bool          { return false }

var _ fmt.State = state{}
