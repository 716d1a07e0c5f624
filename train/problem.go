package train

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/node"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// Problem is what a Trainer trains: weights, a loss that depends on them, and data.
type Problem struct {
	Params layer.Params // the weights. Frozen ones are not trained, but compared when a run is resumed

	// Loss returns the loss of a batch, a scalar of float32 or float64: the mean over the examples of the batch, whose number is
	// Batch.Weight. It is called twice, to build the graph that trains and the graph that evaluates. On a GPU the values of both are freed after their
	// last use (op.FreeAfterUse); Call.Metric reads one that is a number. On the host their memory may be used again in the next step: gorgonia.Read copies a value.
	Loss func(*Call) (*G.Node, error)

	Data    Source  // the batches to train on
	HeldOut []Batch // the batches to evaluate on; none by default
}

// Call is one call of Problem.Loss: the inputs to build the loss over, and what the loss is for.
type Call struct {
	Training bool // whether the graph trains. If false, it evaluates: add metrics, and leave out what is for training alone

	graph   *G.ExprGraph
	inputs  map[string]*G.Node
	step    *G.Node
	metrics map[string]*G.Node
	err     error // of the first wrong use
}

func (c *Call) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("train: "+format, args...)
	}
}

// Graph returns the graph that the loss is built in.
func (c *Call) Graph() *G.ExprGraph {
	if c.graph == nil {
		c.graph = G.NewGraph()
	}
	return c.graph
}

// Input returns the node of a value that each batch has (Batch.Values), with the value's shape and type. For another name it
// returns a node without meaning, and NewTrainer returns an error.
func (c *Call) Input(name string) *G.Node {
	if n := c.inputs[name]; n != nil {
		return n
	}
	c.fail("the loss asks for the input %q, want one of %q, which the first batch has", name, slices.Sorted(maps.Keys(c.inputs)))
	return G.NewScalar(c.Graph(), tensor.Float32, G.WithName(fmt.Sprintf("missing input %q", name)))
}

// Step returns a vector with one element, of tensor.Int: the number of batches that the run has trained on before this one. So no two batches
// of a run have the same number, and a resumed run continues to count. In the graph that evaluates it is -1. It is the step of op.Dropout
// and of other operators that draw something else for each batch of training and nothing in evaluation.
func (c *Call) Step() *G.Node {
	if c.step == nil {
		c.step = G.NewVector(c.Graph(), tensor.Int, G.WithShape(1), G.WithName("train: step"))
	}
	return c.step
}

// Metric adds a scalar to what the trainer measures on held-out data beside the loss, such as an accuracy. The trainer takes the mean
// over batches, by their weights (Curve.Metrics, Trainer.Measure). There are metrics in evaluation only: it is an error, which
// NewTrainer returns, if Training is true, if the name is empty or there already, or if the value is no such scalar of the graph.
func (c *Call) Metric(name string, value *G.Node) {
	switch {
	case c.Training:
		c.fail("the loss adds the metric %q to the graph that trains, want it only if Call.Training is false", name)
	case name == "" || c.metrics[name] != nil:
		c.fail("the metric %q has no name or one that is there already, want another", name)
	case !isNumber(value) || value.Graph() != c.Graph():
		c.fail("the metric %q is %s, want a scalar of float32 or float64 in Call.Graph", name, describe(value))
	default:
		if c.metrics == nil {
			c.metrics = map[string]*G.Node{}
		}
		c.metrics[name] = value
	}
}

func isNumber(n *G.Node) bool {
	return n != nil && n.IsScalar() && (n.Dtype() == tensor.Float32 || n.Dtype() == tensor.Float64)
}

func describe(n *G.Node) string {
	if n == nil {
		return "missing"
	}
	return fmt.Sprintf("%v %v", n.Type(), n.Shape())
}

// check returns an error unless NewTrainer can use the problem, apart from its batches.
func (p Problem) check(saved bool) error {
	named := map[string]bool{}
	for i, w := range p.Params {
		if w != nil && w.Narrow() != nil {
			return fmt.Errorf("train: %w", p.Params.CheckWide())
		}
		if w == nil || w.Value == nil {
			return fmt.Errorf("train: weight %d of %d is missing or has no value, want one that layer.NewParam or a layer made", i, len(p.Params))
		}
		if saved && named[w.Name] {
			return fmt.Errorf("train: two weights have the name %q, want different names (layer.WithName), since File has the weights by name", w.Name)
		}
		named[w.Name] = true
	}
	switch {
	case len(p.Params) == 0:
		return fmt.Errorf("train: Params is empty, want the weights to train")
	case len(p.Params.Trainable()) == 0:
		return fmt.Errorf("train: all of the model's weights are frozen")
	case p.Loss == nil:
		return fmt.Errorf("train: Loss is nil, want a function that builds the loss")
	case p.Data == nil || reflect.ValueOf(p.Data).Kind() == reflect.Pointer && reflect.ValueOf(p.Data).IsNil():
		return fmt.Errorf("train: Data is nil, want a source of batches")
	}
	return nil
}

// lossGraph computes the loss of a batch, and the metrics.
type lossGraph struct {
	inputs      map[string]*G.Node
	step, share *G.Node // step is nil if the loss does not ask for it
	results     map[string]func() G.Value
	grads       G.Nodes         // the gradients of the weights, if the graph trains
	values      []G.ValueGrad   // the weights with their gradients after a run
	arrivals    *arrivals       // tells when they are there; nil for one process
	onDevice    operator.Inputs // those of inputs that are copied to a device
	vm          G.VM
}

// mostReused is the most memory, in bytes, for which all results of a graph on the host stay where they are from step to step. Then Gorgonia allocates and
// clears none of it, and there is little garbage to collect: a twelfth of a small model's step. In a large graph results that are not needed at the same time
// share memory instead.
const mostReused = 64 << 20

// theLoss is the name of the loss in lossGraph.results; no metric has it.
const theLoss = ""

// newLossGraph builds a graph of the loss times share, the weight of a batch in the mean over several batches. The nodes of params have
// gradients if the graph trains. If runs is not 0, nobody reads a gradient before all are there, and a step has that many runs.
func newLossGraph(p Problem, inputs []input, training bool, runs int) (l *lossGraph, weights G.Nodes, err error) {
	c := &Call{graph: G.NewGraph(), Training: training, inputs: map[string]*G.Node{}}
	for _, in := range inputs {
		c.inputs[in.name] = G.NewTensor(c.graph, in.dtype, in.shape.Dims(), G.WithShape(in.shape...), G.WithName(in.name))
	}
	loss, err := p.Loss(c)
	if err := errors.Join(c.err, err); err != nil {
		return nil, nil, err
	}
	if !isNumber(loss) || loss.Graph() != c.graph {
		return nil, nil, fmt.Errorf("train: the loss is %s, want a scalar of float32 or float64 in Call.Graph", describe(loss))
	}
	l = &lossGraph{inputs: c.inputs, step: c.step, results: map[string]func() G.Value{}}
	l.share = G.NewScalar(c.graph, loss.Dtype(), G.WithName("train: share"))
	if loss, err = G.Mul(loss, l.share); err != nil {
		return nil, nil, err
	}
	var options []G.VMOpt
	if training {
		trained := p.Params.Trainable()
		weights = trained.Nodes(c.graph)
		reached, err := differentiable(loss)
		if err != nil {
			return nil, nil, err
		}
		for i, w := range weights {
			if !reached[w] {
				return nil, nil, fmt.Errorf("train: the loss does not depend on the weight %q, want it to, or the weight frozen", trained[i].Name)
			}
		}
		if l.grads, err = G.Grad(loss, weights...); err != nil {
			return nil, nil, err
		}
		if runs > 0 {
			if l.values, err = collect(weights, l.grads, runs == 1); err != nil {
				return nil, nil, err
			}
		}
		if l.values == nil {
			l.values = G.NodesToValueGrads(weights)
			options = append(options, G.BindDualValues(weights...))
		}
	}
	if few := operator.ReuseResults(c.graph, mostReused); few && options == nil {
		l.vm = operator.NewProgram(c.graph)
	}
	results := map[string]*G.Node{theLoss: loss}
	maps.Copy(results, c.metrics)
	for _, name := range slices.Sorted(maps.Keys(results)) {
		l.results[name] = results[name].Value
		if l.vm == nil { // a tape machine may overwrite values
			v := new(G.Value) // not of lossGraph: Go never collects a cycle with a finalizer in it, which a machine has
			G.Read(results[name], v)
			l.results[name] = func() G.Value { return *v }
		}
	}
	if err := op.CheckGraph(c.graph); err != nil {
		return nil, nil, err
	}
	op.FreeAfterUse(c.graph)
	l.onDevice = operator.InputsOf(c.graph)
	if l.vm == nil {
		l.vm = G.NewTapeMachine(c.graph, options...)
	}
	return l, weights, nil
}

// differentiable returns the nodes that the loss has a derivative for. It is an error if an operator on the way has none: gorgonia.Grad would
// panic.
func differentiable(loss *G.Node) (map[*G.Node]bool, error) {
	reached, open := map[*G.Node]bool{loss: true}, G.Nodes{loss}
	for len(open) > 0 {
		n := open[len(open)-1]
		open = open[:len(open)-1]
		operands := node.Operands(n)
		if len(operands) == 0 {
			continue
		}
		o, ok := n.Op().(G.SDOp)
		if !ok {
			return nil, fmt.Errorf("train: the operator %v of the loss has no derivative, want one that implements gorgonia.SDOp", n.Op())
		}
		for i, d := range o.DiffWRT(len(operands)) {
			if d && !reached[operands[i]] {
				reached[operands[i]] = true
				open = append(open, operands[i])
			}
		}
	}
	return reached, nil
}

// set gives the inputs the values of a batch.
func (l *lossGraph) set(b Batch, share float64, step int) error {
	for name, n := range l.inputs {
		// A clone, since a machine writes its engine into the tensors of its graph.
		if err := G.Let(n, b.Values[name].ShallowClone()); err != nil {
			return err
		}
	}
	if l.step != nil {
		if err := G.Let(l.step, tensor.New(tensor.WithShape(1), tensor.WithBacking([]int{step}))); err != nil {
			return err
		}
	}
	var v any = share
	if l.share.Dtype() == tensor.Float32 {
		v = float32(share)
	}
	return G.Let(l.share, v)
}

// run computes the loss of a batch times its share, and the metrics. step is the value of Call.Step.
func (l *lossGraph) run(b Batch, share float64, step int) error {
	if err := l.set(b, share, step); err != nil {
		return err
	}
	l.vm.Reset()
	return l.vm.RunAll()
}

// result returns the loss or a metric of the last run.
func (l *lossGraph) result(name string) float64 {
	v := l.results[name]().Data()
	if v, ok := v.(float32); ok {
		return float64(v)
	}
	return v.(float64)
}

// metrics returns the names of the metrics, sorted.
func (l *lossGraph) metrics() []string {
	return slices.Sorted(maps.Keys(l.results))[1:] // the first one is the loss
}

// measure returns the means of the loss and of the metrics over batches, by name. Each rank runs every Size-th batch, and all ranks add up the results in the
// order of the batches, as one process does. With segments each rank runs its part of every batch.
func (l *lossGraph) measure(batches []Batch, inputs []input, g *dist.Group, segments bool) (map[string]float64, error) {
	for i, b := range batches {
		if err := b.check(inputs); err != nil {
			return nil, fmt.Errorf("train: evaluate: batch %d: %w", i, err)
		}
	}
	// Row i of own and all has the weight and the results of batch i, zeros if another rank runs it.
	names := slices.Sorted(maps.Keys(l.results))
	width := 1 + len(names)
	own := make([]float64, len(batches)*width)
	for i, b := range batches {
		if !segments && i%g.Size() != g.Rank() {
			continue
		}
		if err := l.run(b, 1, -1); err != nil {
			return nil, err
		}
		own[i*width] = b.Weight
		for j, name := range names {
			own[i*width+1+j] = l.result(name)
		}
	}
	all := make([]float64, g.Size()*len(own))
	if err := dist.AllGather(g, all, own); err != nil {
		return nil, err
	}
	means, sum := map[string]float64{}, 0.0
	for i := range batches {
		for rank := range g.Size() {
			row := all[rank*len(own)+i*width:][:width]
			if row[0] == 0 && !segments && i%g.Size() != rank {
				continue
			}
			sum += row[0]
			for j, name := range names {
				means[name] += row[1+j] * row[0]
			}
		}
	}
	if sum <= 0 {
		return nil, fmt.Errorf("train: evaluate: the weights of %d batches add up to 0, want more: Batch.Weight is the number of examples that the loss is the mean of", len(batches))
	}
	for name := range means {
		means[name] /= sum
	}
	return means, nil
}
