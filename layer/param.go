package layer

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/op"
)

// Param is a weight: a tensor with a name, separate from any graph.
type Param struct {
	Name  string        // the key of the Hugging Face layout: "backbone.layers.0.mixer.in_proj.weight"; not to be changed
	Value *tensor.Dense // shared by every graph that the weight is used in; solvers update it in place, unless it is OnDevice; nil if it is Narrow
	Decay bool          // whether weight decay applies

	// Frozen weights are not trained. Params.Trainable leaves them out, so they get no gradient from gorgonia.Grad, and no
	// solver changes them.
	Frozen bool

	// Statistic weights are running averages of what a layer has seen, such as the mean of a BatchNorm. They are saved like all weights, but not
	// trained: Params.Trainable leaves them out, and Params.UpdateStatistics moves them.
	Statistic bool

	observed observations

	lora *LoRA // the weight's update, or nil
	home home  // where it is used, or nil for the host
	id   uint64
}

// home is where a weight is used if that is not its Value. op.DeviceWeight and operator.Narrow implement it; a weight with copies on several devices, or with a
// part on each, can implement it too.
type home interface {
	G.Value // of the weight's nodes
	Place() op.Place
	ToHost() (*tensor.Dense, error) // brings Param.Value up to date
	HostChanged()                   // Param.Value was written

	Average(v G.Value, keep, by float64) error // writes keep·weight + by·v to the weight
}

var params atomic.Uint64

// NewParam returns a weight with a value.
func NewParam(name string, value *tensor.Dense, decay bool) *Param {
	return &Param{Name: name, Value: value, Decay: decay, id: params.Add(1)}
}

// Node returns the weight's node in a graph. The first call adds an input to the graph; later calls return the same node. The
// node's name is the weight's name and a number, because Gorgonia merges leaves that have the same name, type and shape.
//
// The node's value is a separate tensor that shares the memory of Value. A Gorgonia machine writes its engine into the tensors of
// its graph, and several goroutines may run graphs of one weight.
func (p *Param) Node(g *G.ExprGraph) *G.Node {
	name := fmt.Sprintf("%s#%d", p.Name, p.id)
	for _, n := range g.ByName(name) {
		return n
	}
	if p.home != nil {
		return G.NodeFromAny(g, p.home, G.WithName(name))
	}
	return G.NodeFromAny(g, p.Value.ShallowClone(), G.WithName(name))
}

// OnDevice returns the copy of the weight on a device, or nil if it has none.
func (p *Param) OnDevice() *op.DeviceWeight {
	w, _ := p.home.(*op.DeviceWeight)
	return w
}

// SetNarrow makes the weight a matrix in another type, for models that generate and are not trained: products with it compute as blas.Weights does. Value is
// nil then. Call it before the weight is used in a graph. It is an error if the weight is on a device, has a LoRA, or has
// another shape, and if w has a NaN, or a scale that is not finite.
func (p *Param) SetNarrow(w *blas.Weights) error {
	if p == nil || p.id == 0 {
		return errors.New("layer: SetNarrow: the weight is missing, want one that NewParam or a layer made")
	}
	if err := w.Check(); err != nil {
		return fmt.Errorf("layer: %s: %w", p.Name, err)
	}
	shape := p.Shape() // nil in a model that is loaded just now
	switch {
	case p.home != nil && !p.home.Place().OnHost() || p.lora != nil:
		return fmt.Errorf("layer: %s: the weight is on a device or has a LoRA, want neither for a narrow weight", p.Name)
	case shape != nil && !slices.Equal(shape, tensor.Shape{w.Outputs(), w.Inputs()}): // Shape.Eq takes (n, 1) for (n)
		return fmt.Errorf("layer: %s: the matrix has shape (%d, %d), want %v", p.Name, w.Outputs(), w.Inputs(), shape)
	}
	p.Value, p.home = nil, operator.NewNarrow(w)
	return nil
}

// Narrow returns the matrix that SetNarrow has set, or nil.
func (p *Param) Narrow() *blas.Weights {
	if n, ok := p.home.(*operator.Narrow); ok {
		return n.Weights()
	}
	return nil
}

// Shape returns the shape of the weight, nil if it has neither a Value nor a narrow matrix.
func (p *Param) Shape() tensor.Shape {
	switch {
	case p.Value != nil:
		return p.Value.Shape()
	case p.home != nil:
		return p.home.Shape()
	}
	return nil
}

// ToDevice puts the weights and their LoRA on a device. Graphs that are made afterwards use them there, and solvers change them
// there; Value then has the numbers of the last ToHost. Weights that are already on that device stay as they are. Weights on
// another device are first copied to the host. A narrow weight keeps its type if that is BFloat16, Float16 or Q8_0, and becomes Q8_0 on the device if it is of
// another quantized type. After an error every weight is where it was.
func (p Params) ToDevice(at op.Place) (err error) {
	if at.OnHost() {
		return fmt.Errorf("layer: the device is missing, want a place that op.On returned")
	}
	if err := p.check(); err != nil {
		return err
	}
	all := p.withLoRA()
	homes := make([]home, len(all))
	var made []*operator.Narrow
	defer func() {
		if err != nil {
			for _, n := range made { // at once, so that a smaller type has the memory
				n.Free()
			}
		}
	}()
	for i, w := range all {
		if homes[i] = w.home; (Params{w}).Place() == at {
			continue
		}
		if err := (Params{w}).ToHost(); err != nil {
			return err
		}
		if n, ok := w.home.(*operator.Narrow); ok {
			if n, err = n.On(at); err == nil {
				homes[i], made = n, append(made, n)
			}
		} else {
			homes[i], err = at.NewWeight(w.Value)
		}
		if err != nil {
			return fmt.Errorf("layer: %s: %w", w.Name, err)
		}
	}
	for i, w := range all {
		w.home = homes[i]
	}
	return nil
}

// Place returns where the weights are used: the place of the first one, the host if there is none.
func (p Params) Place() op.Place {
	if len(p) == 0 || p[0] == nil || p[0].home == nil {
		return op.Place{}
	}
	return p[0].home.Place()
}

// ToHost copies the weights that are on a device, and their LoRA, to their Values. After an error some Values may be new and others
// old; the weights on the device are unchanged, and ToHost can be called again.
func (p Params) ToHost() error {
	if err := p.check(); err != nil {
		return err
	}
	for _, w := range p.withLoRA() {
		if w.home == nil {
			continue
		}
		if _, err := w.home.ToHost(); err != nil {
			return fmt.Errorf("layer: %s: %w", w.Name, err)
		}
	}
	return nil
}

// ValuesChanged tells the weights that their Values, or those of their LoRA, were written. Call it after you write to the Value of a
// weight on a device: the next use there copies it. Values that are older than the device's are also copied, so call ToHost before
// you write.
func (p Params) ValuesChanged() {
	for _, w := range p.withLoRA() {
		if w.home != nil {
			w.home.HostChanged()
		}
	}
}

// Params are weights in the order of the model. No element is nil, and each has a Value. If that does not hold, methods that
// return an error name the weight, and the others panic.
type Params []*Param

// check returns an error if a weight is nil or has no value.
func (p Params) check() error {
	for i, w := range p {
		if w == nil || w.Value == nil && w.Narrow() == nil {
			return fmt.Errorf("layer: weight %d of %d is missing, want one that NewParam returned with a value", i, len(p))
		}
	}
	return nil
}

// CheckWide returns an error if a weight is missing, or is narrow (see Param.SetNarrow): training and LoRA take float32 and float64 only.
func (p Params) CheckWide() error {
	if err := p.check(); err != nil {
		return err
	}
	for _, w := range p {
		if n := w.Narrow(); n != nil {
			return fmt.Errorf("layer: %s is of %v, want float32: a model of narrow weights generates, and is not trained", w.Name, n.Type())
		}
	}
	return nil
}

// Nodes returns the nodes of the weights in a graph, in order. Give them to gorgonia.Grad and to the solver.
func (p Params) Nodes(g *G.ExprGraph) G.Nodes {
	nodes := make(G.Nodes, len(p))
	for i, w := range p {
		nodes[i] = w.Node(g)
	}
	return nodes
}

// ByName returns the weight of that name, or nil.
func (p Params) ByName(name string) *Param {
	for _, w := range p {
		if w.Name == name {
			return w
		}
	}
	return nil
}

// Freeze marks the weights as frozen, so that Trainable leaves them out.
func (p Params) Freeze() { p.setFrozen(true) }

// Unfreeze undoes Freeze.
func (p Params) Unfreeze() { p.setFrozen(false) }

func (p Params) setFrozen(frozen bool) {
	for _, w := range p {
		w.Frozen = frozen
	}
}

// Trained reports whether the weight is trained: it is neither frozen nor a running statistic.
func (p *Param) Trained() bool { return !p.Frozen && !p.Statistic }

// Trainable returns the weights that are neither frozen nor running statistics, in order. The A and B of a LoRA come after their weight. Give the nodes of
// these weights to gorgonia.Grad and to the solver.
func (p Params) Trainable() (trainable Params) {
	for _, w := range p.withLoRA() {
		if w.Trained() {
			trainable = append(trainable, w)
		}
	}
	return trainable
}

// withLoRA returns the weights in order, each followed by the A and B of its LoRA if it has one.
func (p Params) withLoRA() (all Params) {
	for _, w := range p {
		all = append(all, w)
		if w.lora != nil {
			all = append(all, w.lora.A, w.lora.B)
		}
	}
	return all
}

// Count returns the number of elements of all weights.
func (p Params) Count() (n int) {
	for _, w := range p {
		n += w.Shape().TotalSize()
	}
	return n
}

// Describe writes a line for each weight, after a line with a name and the number of parameters.
func (p Params) Describe(w io.Writer, name string) {
	fmt.Fprintf(w, "%s: %d parameters\n", name, p.Count())
	for _, param := range p {
		notes := ""
		if !param.Decay {
			notes = "  no weight decay"
		}
		if param.Frozen {
			notes += "  frozen"
		}
		if param.Statistic {
			notes += "  running statistic"
		}
		if l := param.lora; l != nil {
			notes += fmt.Sprintf("  LoRA of rank %d", l.A.Value.Shape()[0])
		}
		var kind fmt.Stringer = tensor.Float32
		if m := param.Narrow(); m != nil {
			kind = m.Type()
		} else if param.Value != nil {
			kind = param.Value.Dtype()
		}
		fmt.Fprintf(w, "  %-40s %-16s %v%s\n", param.Name, fmt.Sprint(param.Shape()), kind, notes)
	}
}
