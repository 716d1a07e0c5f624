package cuda

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// lengths makes the arrays of a function. They have no memory and there is no device, so a missing check leads to a panic.
type lengths struct {
	stream *Stream
	named  []string // names of all arrays
	n      map[string]int
	short  string // the array that has one element too few
	empty  bool   // all arrays are empty
	make   func(name string, n int) Array[float32]
}

func (l *lengths) array(name string, n int) Array[float32] {
	if _, seen := l.n[name]; !seen {
		l.named = append(l.named, name)
		l.n[name] = n
	}
	switch {
	case l.empty:
		n = 0
	case name == l.short:
		n--
	}
	if l.make != nil {
		return l.make(name, n)
	}
	return Array[float32]{stream: l.stream, n: n}
}

// given is array for one whose length is right by itself.
func (l *lengths) given(n int) Array[float32] {
	if l.make != nil {
		return l.make("", n)
	}
	return Array[float32]{stream: l.stream, n: n}
}

func of[T Element](a Array[float32]) Array[T] {
	return Array[T](a)
}

// TestLengths calls each function of the device with each of its arrays one element too short. An error must name the array before anything
// is computed. The test needs no device.
func TestLengths(t *testing.T) {
	s := &Stream{device: &Device{multiprocessors: 132}}
	for name, call := range functions(s, usual) {
		t.Run(name, func(t *testing.T) {
			all := &lengths{stream: s, n: map[string]int{}, empty: true}
			if err := refused(func() error { return call(all) }); err != nil {
				t.Errorf("with empty arrays: %v", err)
			}
			for _, short := range all.named {
				l := &lengths{stream: s, n: map[string]int{}, short: short}
				if err := refused(func() error { return call(l) }, short+" has ", fmt.Sprint(all.n[short]-1), fmt.Sprint(all.n[short])); err != nil {
					t.Errorf("%s: %v", short, err)
				}
			}
		})
	}
}

// sizes are those of the arrays of functions.
type sizes struct{ batch, length, channels, state, width, rank, model int }

var usual = sizes{2, 3, 4, 5, 4, 2, 6}

// functions returns a call of each function of the device that has arrays.
func functions(s *Stream, z sizes) map[string]func(l *lengths) error {
	batch, length, channels, state, width, rank, model := z.batch, z.length, z.channels, z.state, z.width, z.rank, z.model
	rows, columns := batch*length, rank+2*state
	scan := func(l *lengths) *Scan[float32] {
		return &Scan[float32]{
			Batch: batch, Length: length, Channels: channels, State: state,
			U: l.array("U", rows*channels), Delta: l.array("Delta", rows*channels), A: l.array("A", channels*state),
			B: Projection[float32]{Data: l.array("B", strided(rows, 12, 2*state)), Groups: 2, Stride: 12},
			C: Projection[float32]{Data: l.array("C", channels*state)},
			D: l.array("D", channels), Z: l.array("Z", strided(rows, 7, channels)), ZStride: 7, DeltaBias: l.array("DeltaBias", channels),
			Initial: l.array("Initial", batch*channels*state), Start: of[uint8](l.array("Start", rows)),
		}
	}
	conv := func(l *lengths) *Conv[float32] {
		return &Conv[float32]{
			Batch: batch, Length: length, Channels: channels, Width: width, X: l.array("X", strided(rows, 7, channels)), XStride: 7,
			Weight: l.array("Weight", channels*width), Bias: l.array("Bias", channels),
			Context: l.array("Context", batch*(width-1)*channels), Start: of[uint8](l.array("Start", rows)),
		}
	}
	block := func(l *lengths) *Block[float32] {
		return &Block[float32]{
			Batch: batch, Length: length, Model: model, Channels: channels, State: state, Width: width, Rank: rank,
			X: l.array("X", rows*model), Norm: l.array("Norm", model), InProj: l.array("InProj", 2*channels*model),
			Conv: l.array("Conv", channels*width), XProj: l.array("XProj", columns*channels), DtProj: l.array("DtProj", channels*rank),
			DtBias: l.array("DtBias", channels), ALog: l.array("ALog", channels*state), D: l.array("D", channels),
			OutProj: l.array("OutProj", model*channels), InBias: l.array("InBias", 2*channels), ConvBias: l.array("ConvBias", channels),
			OutBias: l.array("OutBias", model), Context: l.array("Context", batch*(width-1)*channels),
			Initial: l.array("Initial", batch*channels*state), Start: of[uint8](l.array("Start", rows)),
		}
	}
	attention := func(l *lengths) *Attention {
		return &Attention{
			Batch: batch, Length: length, Channels: model, Heads: 2, Window: width,
			Q: l.array("Q", rows*model), K: l.array("K", rows*model), V: l.array("V", rows*model),
			Context: l.array("Context", batch*(width-1)*(2*model+1)), Start: of[uint8](l.array("Start", rows)),
		}
	}
	linear := func(l *lengths) *Linear {
		return &Linear{Rows: rows, In: model, Out: channels, X: l.array("X", rows*model), Weight: l.array("Weight", channels*model),
			Half: of[BFloat16](l.array("Half", channels*model)), Bias: l.array("Bias", channels)}
	}
	head := func(l *lengths) *Head[float32] {
		return &Head[float32]{Rows: rows, In: model, Vocabulary: channels, X: l.array("X", rows*model), Weight: l.array("Weight", channels*model), Targets: of[int32](l.array("Targets", rows))}
	}
	lstm := func(l *lengths) *LSTM {
		return &LSTM{Batch: batch, Length: length, Channels: width, Z: l.array("Z", rows*4*width), R: l.array("R", 4*width*width),
			H: l.array("H", batch*width), C: l.array("C", batch*width), Start: of[uint8](l.array("Start", rows))}
	}
	matrix := func(l *lengths, name string, rows, width int, transposed bool) Matrix[float32] {
		m := Matrix[float32]{Transposed: transposed}
		rows, width = m.rowsAndWidth(rows, width)
		m.Stride = width + 3
		m.Data = l.array(name, strided(rows, m.Stride, width))
		return m
	}
	s4 := func(l *lengths) *S4 {
		return &S4{
			Batch: batch, Length: length, Channels: channels, Modes: state, U: l.array("U", rows*channels), LogDelta: l.array("LogDelta", channels),
			LogDecay: l.array("LogDecay", channels*state), Frequency: l.array("Frequency", channels*state), C: l.array("C", channels*2*state),
			D: l.array("D", channels), Initial: l.array("Initial", batch*channels*2*state), Start: of[uint8](l.array("Start", rows)),
		}
	}
	return map[string]func(l *lengths) error{
		"S4.Forward": func(l *lengths) error {
			return s4(l).Forward(s, l.array("y", rows*channels), l.array("final", batch*channels*2*state))
		},
		"S4.Backward": func(l *lengths) error {
			return s4(l).Backward(s, l.array("dy", rows*channels), l.array("dfinal", batch*channels*2*state), &S4Grad{
				U: l.array("the gradient of U", rows*channels), LogDelta: l.array("the gradient of LogDelta", channels),
				LogDecay: l.array("the gradient of LogDecay", channels*state), Frequency: l.array("the gradient of Frequency", channels*state),
				C: l.array("the gradient of C", channels*2*state), D: l.array("the gradient of D", channels),
				Initial: l.array("the gradient of Initial", batch*channels*2*state),
			})
		},
		"Scan.Forward": func(l *lengths) error {
			p := scan(l)
			return p.Forward(s, l.array("y", rows*channels), l.array("final", batch*channels*state), l.array("checkpoints", batch*channels*state))
		},
		"Scan.Backward": func(l *lengths) error {
			p := scan(l)
			return p.Backward(s, l.array("checkpoints", batch*channels*state), l.array("dy", rows*channels), l.array("dfinal", batch*channels*state),
				&ScanGrad[float32]{
					U: l.array("the gradient of U", rows*channels), Delta: l.array("the gradient of Delta", rows*channels),
					A: l.array("the gradient of A", channels*state), B: l.array("the gradient of B", strided(rows, 12, 2*state)),
					C: l.array("the gradient of C", channels*state), D: l.array("the gradient of D", channels),
					Z: l.array("the gradient of Z", strided(rows, 7, channels)), DeltaBias: l.array("the gradient of DeltaBias", channels),
					Initial: l.array("the gradient of Initial", batch*channels*state),
				})
		},
		"Conv.Forward": func(l *lengths) error {
			c := conv(l)
			return c.Forward(s, l.array("y", rows*channels), l.array("next", batch*(width-1)*channels))
		},
		"Conv.Backward": func(l *lengths) error {
			c := conv(l)
			return c.Backward(s, l.array("dy", rows*channels), l.array("dnext", batch*(width-1)*channels), l.array("dx", strided(rows, 9, channels)), 9,
				l.array("dweight", channels*width), l.array("dbias", channels), l.array("dcontext", batch*(width-1)*channels))
		},
		"Block.Forward": func(l *lengths) error {
			b := block(l)
			_, err := b.Forward(s, l.array("y", rows*model), l.array("context", batch*(width-1)*channels), l.array("final", batch*channels*state), true)
			return err
		},
		"Block.Backward": func(l *lengths) error {
			b := block(l)
			kept := &BlockKept[float32]{vz: l.array("kept vz", rows*2*channels), u: l.array("kept u", rows*channels), rbc: l.array("kept rbc", rows*columns),
				delta: l.array("kept delta", rows*channels), y: l.array("kept y", rows*channels), checkpoints: l.array("checkpoints", batch*channels*state)}
			return b.Backward(s, kept, l.array("dy", rows*model), l.array("dcontext", batch*(width-1)*channels), l.array("dfinal", batch*channels*state),
				&BlockGrad{
					X: l.array("the gradient of X", rows*model), Norm: l.array("the gradient of Norm", model),
					InProj: l.array("the gradient of InProj", 2*channels*model), Conv: l.array("the gradient of Conv", channels*width),
					XProj: l.array("the gradient of XProj", columns*channels), DtProj: l.array("the gradient of DtProj", channels*rank),
					DtBias: l.array("the gradient of DtBias", channels), ALog: l.array("the gradient of ALog", channels*state),
					D: l.array("the gradient of D", channels), OutProj: l.array("the gradient of OutProj", model*channels),
					InBias: l.array("the gradient of InBias", 2*channels), ConvBias: l.array("the gradient of ConvBias", channels),
					OutBias: l.array("the gradient of OutBias", model), Context: l.array("the gradient of Context", batch*(width-1)*channels),
					Initial: l.array("the gradient of Initial", batch*channels*state),
				})
		},
		"Attention.Forward": func(l *lengths) error {
			_, err := attention(l).Forward(s, l.array("y", rows*model), l.array("next", batch*(width-1)*(2*model+1)), true)
			return err
		},
		"Attention.Backward": func(l *lengths) error {
			kept := &AttentionKept{y: l.array("kept y", rows*model), sums: l.array("kept sums", 2*rows)}
			return attention(l).Backward(s, kept, l.array("dy", rows*model), l.array("dnext", batch*(width-1)*(2*model+1)), &AttentionGrad{
				Q: l.array("the gradient of Q", rows*model), K: l.array("the gradient of K", rows*model),
				V: l.array("the gradient of V", rows*model), Context: l.array("the gradient of Context", batch*(width-1)*(2*model+1)),
			})
		},
		"Step.Forward": func(l *lengths) error {
			p := &Step[float32]{
				Batch: batch, Model: model, Channels: channels, State: state, Width: width, Rank: rank,
				X: l.array("X", batch*model), Norm: l.array("Norm", model), InProj: l.array("InProj", 2*channels*model), Conv: l.array("Conv", channels*width),
				XProj: l.array("XProj", columns*channels), DtProj: l.array("DtProj", channels*rank), DtBias: l.array("DtBias", channels),
				ALog: l.array("ALog", channels*state), D: l.array("D", channels), OutProj: l.array("OutProj", model*channels),
				InBias: l.array("InBias", 2*channels), ConvBias: l.array("ConvBias", channels), OutBias: l.array("OutBias", model),
				Context: l.array("Context", batch*(width-1)*channels), Scan: l.array("Scan", batch*channels*state),
			}
			return p.Forward(s, l.array("y", batch*model), l.array("context", batch*(width-1)*channels), l.array("scan", batch*channels*state))
		},
		"StepProduct": func(l *lengths) error {
			return StepProduct(s, batch, model, channels, l.array("x", batch*model), l.array("norm", model), 0, l.array("weight", channels*model),
				l.array("bias", channels), l.array("residual", batch*channels), l.array("y", batch*channels))
		},
		"MatMul": func(l *lengths) error {
			return MatMul(s, Strict, 3, 4, 5, matrix(l, "a", 3, 5, false), matrix(l, "b", 5, 4, false), 0, matrix(l, "c", 3, 4, false))
		},
		"MatMul of transposes": func(l *lengths) error {
			return MatMul(s, Strict, 3, 4, 5, matrix(l, "a", 3, 5, true), matrix(l, "b", 5, 4, true), 0, matrix(l, "c", 3, 4, false))
		},
		"RMSNormForward": func(l *lengths) error {
			return RMSNormForward(s, rows, model, 0, l.array("x", rows*model), l.array("w", model), l.array("y", rows*model))
		},
		"RMSNormBackward": func(l *lengths) error {
			return RMSNormBackward(s, rows, model, 0, l.array("x", rows*model), l.array("w", model), l.array("dy", rows*model),
				l.array("residual", rows*model), l.array("dx", rows*model), l.array("dw", model))
		},
		"EmbeddingForward": func(l *lengths) error {
			return EmbeddingForward(s, rows, model, 3, l.array("w", 3*model), of[int32](l.array("ids", rows)), l.array("x", rows*model))
		},
		"EmbeddingBackward": func(l *lengths) error {
			return EmbeddingBackward(s, rows, model, 3, of[int32](l.array("ids", rows)), make([]int, l.array("host", rows).n), l.array("dx", rows*model), l.array("dw", 3*model))
		},
		"EmbeddingPack": func(l *lengths) error {
			return EmbeddingPack(s, rows, model, 3, make([]int, l.array("host", rows).n), l.array("dx", rows*model), l.array("dw", 3*model), l.array("to", EmbeddingPacked(rows, model)))
		},
		"EmbeddingAdd": func(l *lengths) error {
			return EmbeddingAdd(s, rows, model, 3, l.array("from", EmbeddingPacked(rows, model)), l.array("dw", 3*model))
		},
		"Block.Keep": func(l *lengths) error {
			_, err := block(l).Keep(s)
			return err
		},
		"Head.Forward": func(l *lengths) error {
			_, err := head(l).Forward(s, l.array("loss", 1), true)
			return err
		},
		"HeadGradients.Scale": func(l *lengths) error {
			g := &HeadGradients{rows: rows, n: rows * model, m: channels * model, both: l.array("the gradients", (rows+channels)*model), state: l.given(2*rows + 1)}
			return g.Scale(s, l.array("dloss", 1), l.array("dx", rows*model), l.array("dweight", channels*model))
		},
		"CrossEntropyForward": func(l *lengths) error {
			return CrossEntropyForward(s, rows, 10, 12, 0, l.array("logits", strided(rows, 12, 10)), of[int32](l.array("targets", rows)),
				l.array("state", 2*rows+1), l.array("loss", 1))
		},
		"CrossEntropyBackward": func(l *lengths) error {
			return CrossEntropyBackward(s, rows, 10, 12, 0, l.array("logits", strided(rows, 12, 10)), of[int32](l.array("targets", rows)),
				l.array("state", 2*rows+1), l.array("dloss", 1))
		},
		"Add": func(l *lengths) error {
			return Add(s, l.given(9), l.array("b", 9), l.array("sum", 9))
		},
		"NegExp": func(l *lengths) error { return NegExp(s, l.given(9), l.array("y", 9)) },
		"NegExpBackward": func(l *lengths) error {
			return NegExpBackward(s, l.given(9), l.array("dy", 9), l.array("dx", 9))
		},
		"Reverse": func(l *lengths) error {
			return Reverse(s, batch, length, channels, l.array("x", rows*channels), l.array("y", rows*channels), of[uint8](l.array("start", rows)))
		},
		"Gather": func(l *lengths) error {
			return Gather(s, batch, length, channels, of[int32](l.array("order", length)), l.array("x", rows*channels), l.array("y", rows*channels))
		},
		"Scatter": func(l *lengths) error {
			return Scatter(s, batch, length, channels, of[int32](l.array("order", length)), l.array("x", rows*channels), l.array("y", rows*channels))
		},
		"CopyColumns": func(l *lengths) error {
			return CopyColumns(s, rows, 9, 2, 5, l.array("x", rows*9), l.array("y", rows*5))
		},
		"ScatterColumns": func(l *lengths) error {
			return ScatterColumns(s, rows, 9, 2, 5, l.array("y", rows*5), l.array("x", rows*9))
		},
		"Gate": func(l *lengths) error {
			return Gate(s, GELU, l.given(9), l.array("x", 9), l.array("y", 9))
		},
		"GateBackward": func(l *lengths) error {
			return GateBackward(s, SiLU, l.given(9), l.array("x", 9), l.array("dy", 9), l.array("dgate", 9), l.array("dx", 9))
		},
		"Pad": func(l *lengths) error {
			p := Pad{Batch: 2, Channels: 3, From: [3]int{1, 2, 4}, To: [3]int{1, 3, 2}, Before: [3]int{0, 1, -1}}
			return p.Apply(s, l.array("x", 2*2*4*3), l.array("y", 2*3*2*3))
		},
		"Scale": func(l *lengths) error {
			return Scale(s, 2, l.given(9), l.given(3), l.array("y", 9))
		},
		"ScaleBackward": func(l *lengths) error {
			x, w := l.given(9), l.given(3)
			return ScaleBackward(s, 2, x, w, l.array("dy", 9), l.array("dx", 9), l.array("dweight", 3))
		},
		"OuterProduct": func(l *lengths) error {
			return OuterProduct(s, 3, l.given(9), l.array("v", 9), l.array("product", 27))
		},
		"VectorMatrix": func(l *lengths) error {
			return VectorMatrix(s, 3, l.given(9), l.array("m", 27), l.array("y", 9))
		},
		"MatrixVector": func(l *lengths) error {
			return MatrixVector(s, 3, l.array("m", 27), l.given(9), l.array("y", 9))
		},
		"Linear.Forward": func(l *lengths) error { return linear(l).Forward(s, l.array("y", rows*channels)) },
		"Linear.Backward": func(l *lengths) error {
			return linear(l).Backward(s, l.array("dy", rows*channels), l.array("dx", rows*model), l.array("dweight", channels*model), l.array("dbias", channels))
		},
		"LSTM.Forward": func(l *lengths) error {
			_, err := lstm(l).Forward(s, l.array("y", rows*width), l.array("nextH", batch*width), l.array("nextC", batch*width), true)
			return err
		},
		"LSTM.Backward": func(l *lengths) error {
			kept := &LSTMKept{gates: l.array("kept gates", rows*4*width), cells: l.array("kept cells", rows*width)}
			return lstm(l).Backward(s, kept, l.array("dy", rows*width), l.array("dnextH", batch*width), l.array("dnextC", batch*width), l.array("dz", rows*4*width),
				l.array("dr", 4*width*width), l.array("dh", batch*width), l.array("dc", batch*width))
		},
		"Convert": func(l *lengths) error { return Convert(s, of[BFloat16](l.given(9)), l.array("to", 9)) },
		"AddBias": func(l *lengths) error {
			return AddBias(s, rows, model, l.array("x", strided(rows, 8, model)), 8, l.array("bias", model))
		},
		"Largest": func(l *lengths) error {
			return Largest(s, rows, model, l.array("x", rows*model), of[int32](l.array("index", rows)))
		},
		"ColumnSums": func(l *lengths) error {
			return ColumnSums(s, rows, model, l.array("x", strided(rows, 8, model)), 8, l.array("sums", model))
		},
	}
}

// refused returns an error unless call returns an error that contains all words of want. A panic counts as a failure too: the call has reached
// the missing device.
func refused(call func() error, want ...string) (wrong error) {
	defer func() {
		if p := recover(); p != nil {
			wrong = fmt.Errorf("the call was not refused and panicked: %v", p)
		}
	}()
	err := call()
	if err == nil {
		return fmt.Errorf("no error, want one with %q", want)
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			return fmt.Errorf("the error is %v, want one with %q", err, want)
		}
	}
	return nil
}

// TestSizes calls each function with negative sizes, sizes whose product overflows, and strides that are smaller than a row.
func TestSizes(t *testing.T) {
	s := &Stream{device: &Device{multiprocessors: 132}}
	some := Array[float32]{stream: s, n: 100}
	ints := Array[int32]{stream: s, n: 100}
	const huge = 1 << 40
	scan := func(change func(p *Scan[float32])) error {
		p := &Scan[float32]{Batch: 1, Length: 2, Channels: 3, State: 4, U: some, Delta: some, A: some,
			B: Projection[float32]{Data: some, Groups: 1}, C: Projection[float32]{Data: some, Groups: 1}}
		change(p)
		return p.Forward(s, some, Array[float32]{}, Array[float32]{})
	}
	conv := func(batch, length, channels, stride int) error {
		c := &Conv[float32]{Batch: batch, Length: length, Channels: channels, Width: 4, X: some, XStride: stride, Weight: some}
		return c.Forward(s, some, Array[float32]{})
	}
	for want, call := range map[string]func() error{
		"scan: Batch is -1, want at least 0":                 func() error { return scan(func(p *Scan[float32]) { p.Batch = -1 }) },
		"scan: U has 100 elements, want 9223372036854775807": func() error { return scan(func(p *Scan[float32]) { p.Batch, p.Length = huge, huge }) },
		"scan: there is a gradient of D, and no D": func() error {
			p := Scan[float32]{Batch: 1, Length: 2, Channels: 3, State: 4, U: some, Delta: some, A: some,
				B: Projection[float32]{Data: some, Groups: 1}, C: Projection[float32]{Data: some, Groups: 1}}
			return p.Backward(s, some, some, Array[float32]{}, &ScanGrad[float32]{U: some, Delta: some, A: some, B: some, C: some, D: some})
		},
		"convolution: Batch is -1, want at least 0":      func() error { return conv(-1, 2, 3, 3) },
		"convolution: Length is -2, want at least 0":     func() error { return conv(1, -2, 3, 3) },
		"convolution: Channels is -3, want at least 0":   func() error { return conv(1, 2, -3, 3) },
		"convolution: XStride is 2, want at least the 3": func() error { return conv(1, 2, 3, 2) },
		"convolution: Width is 65537, want 1 to 65536": func() error {
			c := &Conv[float32]{Batch: 1, Length: 2, Channels: 3, Width: 65537, X: some, XStride: 3, Weight: some}
			return c.Forward(s, some, Array[float32]{})
		},
		"convolution: Width is 17, want 1 to 16": func() error {
			c := &Conv[BFloat16]{Batch: 1, Length: 2, Channels: 3, Width: 17, X: of[BFloat16](some), XStride: 3, Weight: some}
			return c.Forward(s, of[BFloat16](some), Array[float32]{})
		},
		"columns: from is 3 and width 8, want columns of the 10":                   func() error { return CopyColumns(s, 2, 10, 3, 8, some, some) },
		"columns: from is -1, want at least 0":                                     func() error { return ScatterColumns(s, 2, 10, -1, 3, some, some) },
		"gate: the nonlinearity is 5, want SiLU, GELU, ReLU, Sigmoid or LeakyReLU": func() error { return Gate(s, 5, some, some, some) },
		"outer product: size is 3, want a number that divides the 100":             func() error { return OuterProduct(s, 3, some, some, some) },
		"matrix and vector: size is 0, want a number":                              func() error { return MatrixVector(s, 0, some, some, some) },
		"linear: In is 0, want at least 1": func() error {
			return (&Linear{Rows: 1, Out: 1, X: some, Weight: some}).Forward(s, some)
		},
		"linear: precision is 7, want": func() error {
			return (&Linear{Rows: 1, In: 1, Out: 1, Precision: 7, X: some, Weight: some}).Forward(s, some)
		},
		"linear: the operands are nil": func() error { return (*Linear)(nil).Backward(s, some, some, some, some) },
		"LSTM: Channels is 0, want at least 1": func() error {
			_, err := (&LSTM{Batch: 1, Length: 1, Z: some, R: some}).Forward(s, some, some, some, false)
			return err
		},
		"LSTM: Z has 100 elements, want 9223372036854775807": func() error {
			return (&LSTM{Batch: huge, Length: huge, Channels: 4, Z: some, R: some}).Backward(s, new(LSTMKept), some, some, some, some, some, some, some)
		},
		"LSTM: the kept values are missing": func() error {
			return (&LSTM{Batch: 1, Length: 1, Channels: 1, Z: some, R: some}).Backward(s, nil, some, some, some, some, some, some, some)
		},
		"product: (-1, 2) by (2, 3)": func() error {
			return MatMul(s, Strict, -1, 3, 2, Matrix[float32]{some, 5, false}, Matrix[float32]{some, 5, false}, 0, Matrix[float32]{some, 5, false})
		},
		"product: (1, -2) by (-2, 3)": func() error {
			return MatMul(s, Strict, 1, 3, -2, Matrix[float32]{some, 5, false}, Matrix[float32]{some, 5, false}, 0, Matrix[float32]{some, 5, false})
		},
		"product: (1, 2) by (2, -3)": func() error {
			return MatMul(s, Strict, 1, -3, 2, Matrix[float32]{some, 5, false}, Matrix[float32]{some, 5, false}, 0, Matrix[float32]{some, 5, false})
		},
		"product: (2147483648, 2)": func() error {
			return MatMul(s, Strict, 1<<31, 3, 2, Matrix[float32]{some, 5, false}, Matrix[float32]{some, 5, false}, 0, Matrix[float32]{some, 5, false})
		},
		"product: k is 0, want at least 1": func() error {
			return MatMul(s, Strict, 1, 3, 0, Matrix[float32]{some, 5, false}, Matrix[float32]{some, 5, false}, 0, Matrix[float32]{some, 5, false})
		},
		"product: a has a stride of 1, want 2": func() error {
			return MatMul(s, Strict, 1, 3, 2, Matrix[float32]{some, 1, false}, Matrix[float32]{some, 5, false}, 0, Matrix[float32]{some, 5, false})
		},
		"product: c is transposed": func() error {
			return MatMul(s, Strict, 1, 3, 2, Matrix[float32]{some, 5, false}, Matrix[float32]{some, 5, false}, 0, Matrix[float32]{some, 5, true})
		},
		"RMS norm: rows is -1, want at least 0":                  func() error { return RMSNormForward(s, -1, -1, 0, some, some, some) },
		"RMS norm: width is -1, want at least 0":                 func() error { return RMSNormBackward(s, 1, -1, 0, some, some, some, some, some, some) },
		"RMS norm: x has 100 elements, want 9223372036854775807": func() error { return RMSNormForward(s, huge, huge, 0, some, some, some) },
		"embedding: rows is -1, want at least 0":                 func() error { return EmbeddingForward(s, -1, 2, 3, some, ints, some) },
		"embedding: vocabulary is -1, want at least 0":           func() error { return EmbeddingBackward(s, 0, 2, -1, ints, nil, some, some) },
		"embedding: dw has 100 elements, want 92233":             func() error { return EmbeddingBackward(s, 0, huge, huge, ints, nil, some, some) },
		"cross-entropy: rows is -1, want at least 0":             func() error { return CrossEntropyForward(s, -1, 5, 5, 0, some, ints, some, some) },
		"cross-entropy: vocabulary is 0, want at least 1":        func() error { return CrossEntropyBackward(s, 1, 0, 5, 0, some, ints, some, some) },
		"cross-entropy: stride is 4, want at least the 5":        func() error { return CrossEntropyForward(s, 2, 5, 4, 0, some, ints, some, some) },
		"cross-entropy: stride is -4, want at least the 5":       func() error { return CrossEntropyBackward(s, 2, 5, -4, 0, some, ints, some, some) },
		"bias: stride is 4, want at least the 5":                 func() error { return AddBias(s, 2, 5, some, 4, some) },
		"bias: width is -5, want at least 0":                     func() error { return AddBias(s, 2, -5, some, 4, some) },
		"column sums: stride is 4, want at least the 5":          func() error { return ColumnSums(s, 2, 5, some, 4, some) },
		"column sums: rows is -2, want at least 0":               func() error { return ColumnSums(s, -2, 5, some, 5, some) },
		"largest: rows is -2, want at least 0":                   func() error { return Largest(s, -2, -5, some, ints) },
		"S4: Modes is 257, want 1 to 256":                        func() error { return (&S4{Modes: 257}).Forward(s, some, some) },
		"S4: Length is -1, want at least 0":                      func() error { return (&S4{Length: -1, Modes: 1}).Forward(s, some, some) },
		"S4: U has 100 elements, want 92233": func() error {
			return (&S4{Batch: huge, Length: huge, Channels: huge, Modes: 1, U: some}).Forward(s, some, some)
		},
		"S4: there is a gradient of D, and no D": func() error {
			p := S4{Batch: 1, Length: 2, Channels: 3, Modes: 4, U: some, LogDelta: some, LogDecay: some, C: some}
			return p.Backward(s, some, some, &S4Grad{U: some, LogDelta: some, LogDecay: some, C: some, D: some})
		},
		"step: batch is -1, want at least 0": func() error {
			return StepProduct(s, -1, 4, 4, some, Array[float32]{}, 0, some, Array[float32]{}, Array[float32]{}, some)
		},
		"step: out is -4, want at least 0": func() error {
			return StepProduct(s, 1, 4, -4, some, Array[float32]{}, 0, some, Array[float32]{}, Array[float32]{}, some)
		},
		"array of 4611686018427387904 elements of 4 bytes": func() error {
			_, err := NewArray[float32](s, 1<<62)
			return err
		},
	} {
		if err := refused(call, want); err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestAdamWLengths calls Step with each array one element too long or too short.
func TestAdamWLengths(t *testing.T) {
	s := &Stream{handle: 1}
	array := func(n int) Array[float32] { return Array[float32]{stream: s, n: n} }
	for _, n := range []int{8, 10} {
		for name, change := range map[string]func(w *AdamWeight){
			"Grad": func(w *AdamWeight) { w.Grad = array(n) }, "M": func(w *AdamWeight) { w.M = array(n) },
			"V": func(w *AdamWeight) { w.V = array(n) }, "Half": func(w *AdamWeight) { w.Half = of[BFloat16](array(n)) },
		} {
			w := AdamWeight{Weight: array(9), Grad: array(9), M: array(9), V: array(9), Half: of[BFloat16](array(9))}
			change(&w)
			want := fmt.Sprintf("weight 0 has 9 elements, and its %s %d, want as many", name, n)
			if err := refused(func() error { _, err := AdamW{}.Step(s, []AdamWeight{w}, 0, 0); return err }, want); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestSliceBounds checks that a slice beyond the array panics, as in Go, also if its end overflows.
func TestSliceBounds(t *testing.T) {
	a := Array[float32]{stream: new(Stream), address: 64, n: 10}
	for _, fine := range [][2]int{{0, 0}, {0, 10}, {10, 0}, {3, 7}} {
		if got := a.Slice(fine[0], fine[1]); got.n != fine[1] || got.address != 64+4*uintptr(fine[0]) {
			t.Errorf("Slice(%d, %d) has %d elements at %d", fine[0], fine[1], got.n, got.address)
		}
	}
	for _, bad := range [][2]int{{-1, 1}, {0, -1}, {0, 11}, {11, 0}, {4, 7}, {1 << 62, 1 << 62}, {math.MaxInt, 1}, {1, math.MaxInt}, {math.MinInt, math.MinInt}} {
		func() {
			defer func() {
				if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "of an array of 10") {
					t.Errorf("Slice(%d, %d): panic %v, want one that names the array's 10 elements", bad[0], bad[1], p)
				}
			}()
			a.Slice(bad[0], bad[1])
		}()
	}
}

// TestScanWithoutSteps checks a scan of length 0. The final state is the initial state, and the gradient of the initial state is that of the
// final state. Operands that are longer than needed are not copied beyond the end.
func TestScanWithoutSteps(t *testing.T) {
	s := open(t)
	const states, more = 6, 10
	long := make([]float64, states+more)
	for i := range long {
		long[i] = float64(i + 1)
	}
	some := Array[float32]{stream: s}
	p := &Scan[float32]{Batch: 1, Channels: 3, State: 2, U: some, Delta: some, A: blank[float32](t, s, states),
		B: Projection[float32]{Data: some, Groups: 1}, C: Projection[float32]{Data: some, Groups: 1}, Initial: put[float32](t, s, long)}
	for name, run := range map[string]func(result Array[float32]) error{
		"forward": func(final Array[float32]) error { return p.Forward(s, some, final, some) },
		"backward": func(initial Array[float32]) error {
			p := *p
			p.Initial = p.Initial.Slice(0, states)
			return p.Backward(s, some, some, put[float32](t, s, long), &ScanGrad[float32]{A: blank[float32](t, s, states), Initial: initial})
		},
	} {
		room := put[float32](t, s, make([]float64, states+more))
		do(t, run(room.Slice(0, states)))
		for i, got := range get(t, s, room) {
			if want := float64(i + 1); i < states && got != want || i >= states && got != 0 {
				t.Errorf("%s: element %d is %v", name, i, got)
			}
		}
	}
}

// TestSizesOfNothing calls each function with each size 0. None panics: a function computes what is left, or returns an error.
func TestSizesOfNothing(t *testing.T) {
	s := open(t)
	l := &lengths{n: map[string]int{}, make: func(_ string, n int) Array[float32] {
		a, err := NewArray[float32](s, max(n, 0))
		do(t, err, a.Fill(s, 0))
		return a
	}}
	for name, change := range map[string]func(z *sizes){
		"batch": func(z *sizes) { z.batch = 0 }, "length": func(z *sizes) { z.length = 0 }, "channels": func(z *sizes) { z.channels = 0 },
		"state": func(z *sizes) { z.state = 0 }, "width": func(z *sizes) { z.width = 0 }, "rank": func(z *sizes) { z.rank = 0 },
		"model": func(z *sizes) { z.model = 0 }, "all but width": func(z *sizes) { *z = sizes{width: 4} },
	} {
		z := usual
		change(&z)
		for function, call := range functions(s, z) {
			func() {
				defer func() {
					if p := recover(); p != nil {
						t.Errorf("%s of %s 0: panic: %v", function, name, p)
					}
				}()
				_ = call(l)
				do(t, s.Synchronize())
			}()
		}
	}
}
