package layer

import (
	"fmt"
	"math"
	"slices"
	"strings"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/size"
	"github.com/gomamba/mamba/op"
)

// LoRA is a low-rank update of a weight W (out, in). The model uses W + Scale·B·A in place of W (Hu et al., "LoRA: Low-Rank
// Adaptation of Large Language Models", section 4.1).
type LoRA struct {
	A     *Param // "lora_A.weight" (rank, in); starts uniform between -1/√in and 1/√in
	B     *Param // "lora_B.weight" (out, rank); starts at zero, so the model starts as it was
	Scale float64
}

// LoRAConfig says which weights get an update, and its rank. The names of the fields are those of the peft library.
type LoRAConfig struct {
	Rank    int      // required
	Alpha   float64  // Scale is Alpha/Rank; by default Rank
	Targets []string // full names of layers, or the ends of them, such as "in_proj" or "mixer.in_proj"; by default LoRATargets
	Seed    uint64   // of A

	// Start, if it is not nil, sets the initial values of the A and B of all updates, which it gets as A, B, A, B, …. If Start
	// returns an error, AddLoRA returns it and adds nothing.
	Start func(added Params) error
}

// LoRATargets are the projections of a Mamba block.
var LoRATargets = []string{"in_proj", "x_proj", "dt_proj", "out_proj"}

// AddLoRA adds an update to each weight that Targets names, and freezes all other weights. It returns the weights of the updates
// as A, B, A, B, …. Trainable returns them too. Graphs that are built afterwards use the updated weights. Graphs that were built
// before do not change.
//
// It is an error, and nothing changes, if the rank or alpha is not positive, if alpha/rank exceeds the type of the weights, if Targets
// names no weight, or if a weight that it names has an update already or is not a matrix.
func (p Params) AddLoRA(cfg LoRAConfig) (Params, error) {
	targets, err := p.TargetsOf(cfg)
	if err != nil {
		return nil, err
	}
	var need size.Bytes
	for _, w := range targets {
		s := w.Value.Shape()
		need = need.Plus(size.Of(w.Value.Dtype().Size(), cfg.Rank, s[0]+s[1]))
	}
	if err := need.Fits("its weights"); err != nil {
		return nil, fmt.Errorf("layer: LoRA: Rank is %d: %w", cfg.Rank, err)
	}
	if cfg.Alpha == 0 {
		cfg.Alpha = float64(cfg.Rank)
	}
	var added Params
	updates := make([]*LoRA, len(targets))
	for i, w := range targets {
		updates[i] = newLoRA(w, cfg)
		added = append(added, updates[i].A, updates[i].B)
	}
	if cfg.Start != nil {
		if err := cfg.Start(added); err != nil {
			return nil, err
		}
	}
	for i, w := range targets {
		if w.home != nil {
			if err := added[2*i : 2*i+2].ToDevice(w.home.Place()); err != nil {
				return nil, err
			}
		}
	}
	for i, w := range targets {
		w.lora = updates[i]
	}
	p.Freeze()
	return added, nil
}

// TargetsOf returns the weights that AddLoRA would give an update to, or the error that it would return, except for a rank that exceeds
// the machine's memory. It changes nothing.
func (p Params) TargetsOf(cfg LoRAConfig) (targets Params, err error) {
	if err := p.CheckWide(); err != nil {
		return nil, err
	}
	if cfg.Rank < 1 {
		return nil, fmt.Errorf("layer: LoRA: Rank is %d, want at least 1", cfg.Rank)
	}
	if !(cfg.Alpha >= 0) || math.IsInf(cfg.Alpha, 1) {
		return nil, fmt.Errorf("layer: LoRA: Alpha is %v, want a positive number", cfg.Alpha)
	}
	if cfg.Targets == nil {
		cfg.Targets = LoRATargets
	}
	for _, w := range p {
		l, ok := strings.CutSuffix(w.Name, ".weight")
		if !ok || !slices.ContainsFunc(cfg.Targets, func(t string) bool { return l == t || strings.HasSuffix(l, "."+t) }) {
			continue
		}
		if w.lora != nil {
			return nil, fmt.Errorf("layer: LoRA: %s has an update already", w.Name)
		}
		if s := w.Value.Shape(); len(s) != 2 {
			return nil, fmt.Errorf("layer: LoRA: %s has shape %v, want (out, in)", w.Name, s)
		}
		if scale := cfg.Alpha / float64(cfg.Rank); scale > math.MaxFloat32 && w.Value.Dtype() == tensor.Float32 {
			return nil, fmt.Errorf("layer: LoRA: Alpha is %v, which makes the scale %v, want a scale of at most %v for %s in float32",
				cfg.Alpha, scale, float32(math.MaxFloat32), w.Name)
		}
		targets = append(targets, w)
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("layer: LoRA: Targets is %q, which names no layer of the %d weights; want names such as in_proj", cfg.Targets, len(p))
	}
	return targets, nil
}

// LoRAShapes returns the names and shapes of the A and B that a weight (out, in) gets from AddLoRA with a rank.
func (p *Param) LoRAShapes(rank int) (names [2]string, shapes [2]tensor.Shape) {
	l, s := strings.TrimSuffix(p.Name, ".weight"), p.Shape()
	return [2]string{build.Join(l, "lora_A.weight"), build.Join(l, "lora_B.weight")}, [2]tensor.Shape{{rank, s[1]}, {s[0], rank}}
}

func newLoRA(w *Param, cfg LoRAConfig) *LoRA {
	names, shapes := w.LoRAShapes(cfg.Rank)
	o := build.Options{Dtype: w.Value.Dtype(), Seed: cfg.Seed}
	return &LoRA{
		A:     NewParam(names[0], o.New(build.Uniform(o.Rand(names[0]), 1/math.Sqrt(float64(shapes[0][1]))), shapes[0]...), true),
		B:     NewParam(names[1], o.New(build.Constant(0), shapes[1]...), true),
		Scale: cfg.Alpha / float64(cfg.Rank),
	}
}

// LoRA returns the weight's update, nil if it has none.
func (p *Param) LoRA() *LoRA { return p.lora }

// Effective returns the node of the weight as layers use it: the weight itself, or its sum with its update. Solvers use the weights of
// Trainable instead.
func (p *Param) Effective(g *G.ExprGraph) (*G.Node, error) {
	if err := (Params{p}).check(); err != nil {
		return nil, err
	}
	if g == nil {
		return nil, fmt.Errorf("layer: %s: the graph is missing", p.Name)
	}
	w, l := p.Node(g), p.lora
	if l == nil {
		return w, nil
	}
	return op.LowRank(w, l.A.Node(g), l.B.Node(g), l.Scale)
}

// MergeLoRA adds the updates to their weights and removes them. The model computes the same as before, bit for bit, without the cost
// of the updates, and can be saved like any other model. The weights stay frozen. MergeLoRA returns the number of merged updates.
// Graphs that were built before compute the same too: their updates are zero.
//
// After an error each weight is as before the call or merged, as merged says in the order of the weights, and the model computes the
// same as before. Call MergeLoRA again for the rest.
func (p Params) MergeLoRA() (merged int, err error) {
	if err := p.check(); err != nil {
		return 0, err
	}
	for _, w := range p {
		if w.lora != nil {
			if err := w.merge(); err != nil {
				return merged, fmt.Errorf("layer: LoRA: %s: %w", w.Name, err)
			}
			merged++
		}
	}
	return merged, nil
}

// RemoveLoRA removes the updates and unfreezes all weights. The weights have the values that they had before AddLoRA.
func (p Params) RemoveLoRA() {
	for _, w := range p {
		w.lora, w.Frozen = nil, false
	}
}

// merge runs the operator that the model would run, so that the sums are the same.
func (p *Param) merge() error {
	g := G.NewGraph()
	n, err := p.Effective(g)
	if err == nil && p.home != nil {
		n, err = op.Download(n)
	}
	if err != nil {
		return err
	}
	var sum G.Value
	G.Read(n, &sum)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		return err
	}
	if err := tensor.Copy(p.Value, sum.(tensor.Tensor)); err != nil {
		return err
	}
	b := p.lora.B
	b.Value.Zero() // for the graphs that have it
	p.lora = nil
	Params{p, b}.ValuesChanged()
	return nil
}
