package mamba_test

import (
	"fmt"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// productFlop returns the floating-point operations of a block's matrix products for one token: in_proj, x_proj, dt_proj and out_proj. All
// benchmarks but those of the scan count only matrix products in GFLOP/s, so compare this number with the processor's rate for them.
func productFlop(c nn.Config) float64 {
	inner := c.Expand * c.DModel
	return 2 * float64(c.DModel*2*inner+inner*(c.DtRank+2*c.DState)+c.DtRank*inner+inner*c.DModel)
}

// BenchmarkBlock measures one block: the block of a 130M model at batch 1, and a small block at batch 8. The gradients are those of the weights
// and of the input, as in the middle of a model. A row with results=reused keeps the memory of results and gradients from run to run and reads them where
// they are, as train.Trainer does; the other rows allocate them for each run, and gorgonia.Read copies them, on one processor.
func BenchmarkBlock(b *testing.B) {
	for _, pass := range passes {
		for _, c := range []struct{ width, length, batch int }{{768, 512, 1}, {64, 256, 8}} {
			name := fmt.Sprintf("pass=%s/M=%d/L=%d/B=%d", pass.name, c.width, c.length, c.batch)
			measureBlock(b, name, c.batch, c.length, c.width, pass.runs, pass.backward, newProgram)
			measureBlock(b, name+"/results=reused", c.batch, c.length, c.width, pass.runs, pass.backward, newReusingProgram)
		}
	}
}

func measureBlock(b *testing.B, name string, batch, length, width, runs int, backward bool, programOf func(*G.Node, tensor.Shape, ...*G.Node) program) {
	b.Helper()
	block := nn.NewMambaBlock(nn.Config{DModel: width})
	tokens := batch * length
	w := work{tokens: tokens, flop: float64(tokens) * productFlop(block.Config())}.times(runs)
	measure(b, name, w, func() program {
		g := G.NewGraph()
		x := input(g, "x", batch, length, width)
		y := G.Must(block.Apply(x))
		var by G.Nodes
		if backward {
			by = append(block.Params().Nodes(g), x)
		}
		return programOf(y, x.Shape(), by...)
	})
}

// BenchmarkStack measures a training step, AdamW's step included, of a stack and of examples/bytelm's language model.
func BenchmarkStack(b *testing.B) {
	{
		const batch, length, width, layers = 8, 256, 64, 4
		stack := nn.NewMambaStack(nn.Config{DModel: width, NLayer: layers})
		w := work{tokens: batch * length, flop: batch * length * layers * productFlop(stack.Config())}.times(3)
		measure(b, fmt.Sprintf("model=stack/M=%d/L=%d/B=%d/layers=%d", width, length, batch, layers), w, func() program {
			g := G.NewGraph()
			y := G.Must(stack.Apply(input(g, "x", batch, length, width)))
			loss := G.Must(G.Mean(G.Must(G.Square(G.Must(G.Sub(y, input(g, "want", batch, length, width)))))))
			return newTraining(loss, stack.Params())
		})
	}
	const batch, length, width, layers, vocab = 8, 128, 64, 2, 256
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: width, NLayer: layers}, Vocab: vocab})
	w := work{tokens: batch * length, flop: batch * length * (layers*productFlop(lm.Config().Config) + 2*width*vocab)}.times(3)
	measure(b, fmt.Sprintf("model=lm/M=%d/L=%d/B=%d/layers=%d", width, length, batch, layers), w, func() program {
		tokens := make([]int, batch*length)
		for i := range tokens {
			tokens[i] = i * i % vocab
		}
		g := G.NewGraph()
		ids := func(name string) *G.Node {
			return G.NodeFromAny(g, tensor.New(tensor.WithShape(batch, length), tensor.WithBacking(tokens)), G.WithName(name))
		}
		return newTraining(G.Must(lm.Loss(ids("ids"), ids("targets"))), lm.Params())
	})
}

// newTraining returns a program that makes training steps with train.AdamW. Its check wants a finite loss, and that the first step has changed every
// weight.
func newTraining(loss *G.Node, params layer.Params) program {
	g := loss.Graph()
	var value G.Value
	G.Read(loss, &value)
	weights := params.Nodes(g)
	if _, err := G.Grad(loss, weights...); err != nil {
		return failed(err)
	}
	var before [][]float32
	for _, p := range params {
		before = append(before, slices.Clone(p.Value.Data().([]float32)))
	}
	solver, err := train.NewAdamW(params, train.AdamWConfig{LearnRate: 1e-3})
	if err != nil {
		return failed(err)
	}
	m := G.NewTapeMachine(g, G.BindDualValues(weights...))
	return program{
		run: func() error {
			defer m.Reset()
			if err := m.RunAll(); err != nil {
				return err
			}
			return solver.Step(G.NodesToValueGrads(weights))
		},
		check: func() error {
			if l, ok := value.Data().(float32); !ok || !(l > 0 && l < 1e6) {
				return fmt.Errorf("the loss is %v", value)
			}
			for i, p := range params {
				after := p.Value.Data().([]float32)
				if _, _, err := bounds(after); err != nil {
					return fmt.Errorf("%s: %w", p.Name, err)
				}
				if slices.Equal(before[i], after) {
					return fmt.Errorf("%s has not changed", p.Name)
				}
			}
			return nil
		},
		close: m.Close,
	}
}
