package main

import (
	"fmt"
	"math/rand/v2"

	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/task"
	"github.com/gomamba/mamba/train"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// model is a language model over bytes. One graph trains its weights; another, without gradients, evaluates them. Both graphs and
// the stepper use the same weights.
type model struct {
	lm            *nn.LM
	train, scorer *lossGraph
	weightNodes   G.Nodes
	solver        *train.AdamW
}

// lossGraph computes the loss of one batch.
type lossGraph struct {
	ids, targets *G.Node
	loss         *G.Value // apart from the machine, whose finalizer would keep a cycle alive
	vm           G.VM
}

func newModel(set settings, where []nn.Option) (*model, error) {
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: set.dmodel, NLayer: set.layers}, Vocab: 256},
		append(where, nn.WithSeed(uint64(set.seed)))...)
	if err := lm.Err(); err != nil {
		return nil, err
	}
	// The learn rate rises over the first steps and falls along half a cosine to a tenth.
	solver, err := train.NewAdamW(lm.Params(), train.AdamWConfig{
		LearnRate: set.lr, Schedule: train.WarmupCosine(min(50, set.steps/10), set.steps, 0.1),
	})
	if err != nil {
		return nil, err
	}
	m := &model{lm: lm, solver: solver}

	graph, loss, trained, err := newLossGraph(lm, set)
	if err != nil {
		return nil, err
	}
	m.train = trained
	m.weightNodes = lm.Params().Nodes(graph)
	if _, err := G.Grad(loss, m.weightNodes...); err != nil {
		return nil, err
	}
	trained.vm = G.NewTapeMachine(graph, G.BindDualValues(m.weightNodes...))

	graph, _, m.scorer, err = newLossGraph(lm, set)
	if err != nil {
		return nil, err
	}
	m.scorer.vm = G.NewTapeMachine(graph)
	return m, nil
}

func newLossGraph(lm *nn.LM, set settings) (*G.ExprGraph, *G.Node, *lossGraph, error) {
	graph := G.NewGraph()
	l := &lossGraph{
		ids:     G.NewMatrix(graph, tensor.Int, G.WithShape(set.batch, set.length), G.WithName("ids")),
		targets: G.NewMatrix(graph, tensor.Int, G.WithShape(set.batch, set.length), G.WithName("targets")),
	}
	loss, err := lm.Loss(l.ids, l.targets)
	if err != nil {
		return nil, nil, nil, err
	}
	l.loss = new(G.Value)
	G.Read(loss, l.loss)
	return graph, loss, l, nil
}

// run computes the loss of a batch in nats per byte.
func (l *lossGraph) run(batch task.Batch) (float64, error) {
	shape := l.ids.Shape()
	for node, data := range map[*G.Node][]int{l.ids: batch.IDs, l.targets: batch.Targets} {
		if err := G.Let(node, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(data))); err != nil {
			return 0, err
		}
	}
	l.vm.Reset()
	if err := l.vm.RunAll(); err != nil {
		return 0, err
	}
	switch nats := (*l.loss).Data().(type) {
	case float32:
		return float64(nats), nil
	case float64:
		return nats, nil
	}
	return 0, fmt.Errorf("the loss is a %T, should be a float32 or float64", (*l.loss).Data())
}

// step trains on one batch and returns its loss in nats per byte, as it was before the step.
func (m *model) step(batch task.Batch) (float64, error) {
	loss, err := m.train.run(batch)
	if err != nil {
		return 0, err
	}
	return loss, m.solver.Step(G.NodesToValueGrads(m.weightNodes))
}

// evaluate returns the mean loss over all targets.
func (m *model) evaluate(batches []task.Batch) (float64, error) {
	sum, targets := 0.0, 0
	for _, batch := range batches {
		loss, err := m.scorer.run(batch)
		if err != nil {
			return 0, err
		}
		// The loss of a batch is the mean over its targets, and the last batch may have fewer.
		sum += loss * float64(batch.Count())
		targets += batch.Count()
	}
	return sum / float64(targets), nil
}

// write reads the prompt byte by byte, and then feeds the model what it draws itself.
func (m *model) write(prompt []byte, bytes int, temperature float64, random *rand.Rand) ([]byte, error) {
	stepper, err := nn.NewStepper(m.lm, 1)
	if err != nil {
		return nil, err
	}
	defer stepper.Close()
	var logits [][]float64
	for _, b := range prompt {
		if logits, err = stepper.Step([]int{int(b)}); err != nil {
			return nil, err
		}
	}
	var text []byte
	for len(text) < bytes {
		next, err := task.Draw(logits[0], temperature, random)
		if err != nil {
			return nil, err
		}
		text = append(text, byte(next))
		if logits, err = stepper.Step([]int{next}); err != nil {
			return nil, err
		}
	}
	return text, nil
}

func (m *model) parameters() int { return m.lm.Params().Count() }

func (m *model) close() {
	m.train.vm.Close()
	m.scorer.vm.Close()
}
