package op

import (
	"fmt"
	"hash"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/operator"
)

// SelectiveScanOp is the selective scan as an operator for gorgonia.ApplyOp. Its value is y; FinalState returns the state after the last
// step. It is made for operands of certain types and shapes, and can be applied to any nodes of these, several times. SelectiveScan makes
// and applies one in a single call, and SelectiveScanWithState computes y and the final state together.
type SelectiveScanOp struct {
	made  *operator.Operator
	in    ScanInputs
	cfg   ScanConfig
	nodes G.Nodes
}

var (
	_ G.Op              = (*SelectiveScanOp)(nil)
	_ G.SDOp            = (*SelectiveScanOp)(nil)
	_ G.ADOp            = (*SelectiveScanOp)(nil)
	_ G.UsePreallocDoer = (*SelectiveScanOp)(nil)
)

// NewSelectiveScanOp returns the operator for operands like these. Errors: those of SelectiveScan.
func NewSelectiveScanOp(in ScanInputs, cfg ScanConfig) (*SelectiveScanOp, error) {
	f, c := newScan(in, cfg)
	if c.err != nil {
		return nil, c.err
	}
	o, nodes, err := operator.New(operator.Definition{
		Name: c.op, Float32: f, Float64: (*scan[float64])(f), Dtype: c.dt, In: c.in, Out: []tensor.Shape{f.result()},
	})
	if err != nil {
		return nil, fmt.Errorf("op: %s: %w", c.op, err)
	}
	o.Share()
	return &SelectiveScanOp{o, in, cfg, nodes}, nil
}

// err returns an error for an operator that NewSelectiveScanOp did not make.
func (o *SelectiveScanOp) err() error {
	if o == nil || o.made == nil {
		return fmt.Errorf("op: selective scan: the operator is missing, want one that NewSelectiveScanOp returned")
	}
	return nil
}

// operator returns the operator, or one without operands if there is none.
func (o *SelectiveScanOp) operator() *operator.Operator {
	if o.err() == nil {
		return o.made
	}
	none, _, _ := operator.New(operator.Definition{Name: "selective scan", Float32: &scan[float32]{}, Dtype: tensor.Float32, Out: []tensor.Shape{{1}}})
	return none
}

// Operands returns the operands in the order in which gorgonia.ApplyOp takes them, without those that are nil: U, Delta, A, B, C, D, Z, DeltaBias,
// InitialState, Start. If they are on a GPU, Start is a copy that is there too.
func (o *SelectiveScanOp) Operands() G.Nodes {
	if o == nil {
		return nil
	}
	return o.nodes
}

// FinalState returns a node for the state after the last step scanned, (batch, channels, state), of the operands that the operator was made with. It
// scans again: use SelectiveScanWithState for y and the state in one scan.
func (o *SelectiveScanOp) FinalState() (*G.Node, error) {
	if err := o.err(); err != nil {
		return nil, err
	}
	_, final, err := SelectiveScanWithState(o.in, o.cfg)
	return final, err
}

// The methods below implement gorgonia.Op, SDOp, ADOp and UsePreallocDoer.

// InferShape returns the shape of the result, or an error if an operand has another shape than the one that the operator was made for.
func (o *SelectiveScanOp) InferShape(shapes ...G.DimSizer) (tensor.Shape, error) {
	if err := o.err(); err != nil {
		return nil, err
	}
	for i, s := range shapes {
		if s == nil {
			return nil, fmt.Errorf("op: %v: operand %d has no shape", o, i)
		}
		if got, ok := s.(tensor.Shape); ok && i < len(o.nodes) && !got.Eq(o.nodes[i].Shape()) {
			return nil, fmt.Errorf("op: %v: operand %d has shape %v, want %v", o, i, got, o.nodes[i].Shape())
		}
	}
	return o.made.InferShape(shapes...)
}

// Do returns y, or an error that names the operand whose value is wrong.
func (o *SelectiveScanOp) Do(values ...G.Value) (G.Value, error) {
	return o.UsePreallocDo(nil, values...)
}

// UsePreallocDo is Do that writes y into prealloc if that has its type, shape and layout.
func (o *SelectiveScanOp) UsePreallocDo(prealloc G.Value, values ...G.Value) (G.Value, error) {
	if err := o.err(); err != nil {
		return nil, err
	}
	return o.made.UsePreallocDo(prealloc, values...)
}

// SymDiff returns a node for the gradient of each operand, nil for Start.
func (o *SelectiveScanOp) SymDiff(in G.Nodes, output, grad *G.Node) (G.Nodes, error) {
	if err := o.err(); err != nil {
		return nil, err
	}
	return o.made.SymDiff(in, output, grad)
}

// DoDiff adds the gradients to those of the inputs, for the lisp machine.
func (o *SelectiveScanOp) DoDiff(c G.ExecutionContext, in G.Nodes, output *G.Node) error {
	if err := o.err(); err != nil {
		return err
	}
	return o.made.DoDiff(c, in, output)
}

// Type returns the types of the operands and of y.
func (o *SelectiveScanOp) Type() hm.Type {
	if o.err() != nil {
		return tensor.Float32
	}
	return o.made.Type()
}

func (o *SelectiveScanOp) Arity() int            { return o.operator().Arity() }
func (o *SelectiveScanOp) ReturnsPtr() bool      { return true }
func (o *SelectiveScanOp) CallsExtern() bool     { return o.operator().CallsExtern() }
func (o *SelectiveScanOp) OverwritesInput() int  { return -1 }
func (o *SelectiveScanOp) WriteHash(h hash.Hash) { o.operator().WriteHash(h) }
func (o *SelectiveScanOp) Hashcode() uint32      { return o.operator().Hashcode() }
func (o *SelectiveScanOp) String() string        { return o.operator().String() }
func (o *SelectiveScanOp) DiffWRT(n int) []bool  { return o.operator().DiffWRT(n) }

// Made returns the operator that does the work, for the code that looks for operators of this library in a graph.
func (o *SelectiveScanOp) Made() *operator.Operator { return o.operator() }
