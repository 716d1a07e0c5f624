package layer

import (
	"fmt"
	"math"
	"slices"
	"strings"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/op"
)

// LoRA is an update of low rank of a weight W (out, in), which the model uses as W + Scale·B·A (Hu et al., "LoRA: Low-Rank
// Adaptation of Large Language Models", section 4.1).
type LoRA struct {
	A     *Param // "lora_A.weight" (rank, in); starts uniform within ±1/√in
	B     *Param // "lora_B.weight" (out, rank); starts at zero, so that the model starts as it was
	Scale float64
}

// LoRAConfig says which weights get an update, and of what rank. The names are those of the peft library.
type LoRAConfig struct {
	Rank    int      // required
	Alpha   float64  // Scale is Alpha/Rank; Rank by default
	Targets []string // names of layers, the last part before ".weight"; by default LoRATargets
	Seed    uint64   // of A
}

// LoRATargets are the projections of a Mamba block.
var LoRATargets = []string{"in_proj", "x_proj", "dt_proj", "out_proj"}

// AddLoRA gives an update to each of the weights that belongs to a target, freezes all of the weights, and returns the
// updates' own weights, A and B in turn, which Trainable returns as well. Graphs that are built from then on use the updated
// weights wherever they used the weights; those built before do not change.
//
// It is an error, and nothing changes, if the rank is not positive, if no weight belongs to a target, or if one of those has
// an update already or is no matrix.
func (p Params) AddLoRA(cfg LoRAConfig) (Params, error) {
	if cfg.Rank < 1 {
		return nil, fmt.Errorf("layer: LoRA: Rank is %d, want at least 1", cfg.Rank)
	}
	if cfg.Alpha == 0 {
		cfg.Alpha = float64(cfg.Rank)
	}
	if !(cfg.Alpha > 0) || math.IsInf(cfg.Alpha, 1) {
		return nil, fmt.Errorf("layer: LoRA: Alpha is %v, want a positive number", cfg.Alpha)
	}
	if cfg.Targets == nil {
		cfg.Targets = LoRATargets
	}
	var targets Params
	for _, w := range p {
		if !slices.Contains(cfg.Targets, target(w.Name)) {
			continue
		}
		if w.lora != nil {
			return nil, fmt.Errorf("layer: LoRA: %s has an update already", w.Name)
		}
		if s := w.Value.Shape(); len(s) != 2 {
			return nil, fmt.Errorf("layer: LoRA: %s has shape %v, want (out, in)", w.Name, s)
		}
		targets = append(targets, w)
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("layer: LoRA: none of %d weights belongs to a layer of the names %s", len(p), strings.Join(cfg.Targets, ", "))
	}
	var added Params
	updates := make([]*LoRA, len(targets))
	for i, w := range targets {
		l := newLoRA(w, cfg)
		both := Params{l.A, l.B}
		if w.device != nil {
			if err := both.ToDevice(w.device.Context()); err != nil {
				return nil, err
			}
		}
		updates[i], added = l, append(added, both...)
	}
	for i, w := range targets {
		w.lora = updates[i]
	}
	p.Freeze()
	return added, nil
}

// target returns the last part of the name of a weight's layer, "in_proj" for "layers.0.mixer.in_proj.weight".
func target(name string) string {
	l, ok := strings.CutSuffix(name, ".weight")
	if !ok {
		return ""
	}
	return l[strings.LastIndex(l, ".")+1:]
}

func newLoRA(w *Param, cfg LoRAConfig) *LoRA {
	l, s := strings.TrimSuffix(w.Name, ".weight"), w.Value.Shape()
	a, b := Join(l, "lora_A.weight"), Join(l, "lora_B.weight")
	o := Options{Dtype: w.Value.Dtype(), Seed: cfg.Seed}
	return &LoRA{
		A:     NewParam(a, o.New(Uniform(o.Rand(a), 1/math.Sqrt(float64(s[1]))), cfg.Rank, s[1]), true),
		B:     NewParam(b, o.New(Constant(0), s[0], cfg.Rank), true),
		Scale: cfg.Alpha / float64(cfg.Rank),
	}
}

// LoRA returns the weight's update, nil if it has none.
func (p *Param) LoRA() *LoRA { return p.lora }

// Effective returns the node of the weight as a layer is to use it: the weight's own, or that of its sum with its update.
// Layers ask for this one; solvers, for those of Trainable. On a device a weight that has an update and is Frozen by now gets no
// gradient.
func (p *Param) Effective(g *G.ExprGraph) (*G.Node, error) {
	w, l := p.Node(g), p.lora
	switch {
	case l == nil:
		return w, nil
	case p.device != nil:
		return p.device.Context().LowRank(w, l.A.Node(g), l.B.Node(g), l.Scale, p.Frozen)
	}
	return op.LowRank(w, l.A.Node(g), l.B.Node(g), l.Scale)
}

// MergeLoRA adds the updates to their weights, and removes them: the model computes the same as before, bit for bit, without
// the updates' cost, and can be saved like any other. The weights stay frozen. It returns how many there were. Graphs built
// before go on as they are, their updates zero.
func (p Params) MergeLoRA() (merged int, err error) {
	for _, w := range p {
		if w.lora == nil {
			continue
		}
		if err := w.merge(); err != nil {
			return merged, fmt.Errorf("layer: LoRA: %s: %w", w.Name, err)
		}
		merged++
	}
	return merged, nil
}

// RemoveLoRA removes the updates without a trace: the weights are what they were, and not frozen any more.
func (p Params) RemoveLoRA() {
	for _, w := range p {
		w.lora, w.Frozen = nil, false
	}
}

// merge runs the operator that the model would: so the sums are the same.
func (p *Param) merge() error {
	g := G.NewGraph()
	n, err := p.Effective(g)
	if err == nil && p.device != nil {
		n, err = p.device.Context().Download(n)
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
