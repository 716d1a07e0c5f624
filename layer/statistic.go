package layer

import (
	"fmt"
	"sync"
	"weak"

	G "gorgonia.org/gorgonia"
)

// observation is a value that each run of a graph computes, and of which a weight is a running average. The graph holds it, and the weight does not
// hold the graph.
type observation struct {
	value    G.Value // of the last run, nil after an update
	momentum float64
	factor   float64 // of the value
}

// observations are those of a weight, in the order in which they were added.
type observations struct {
	mu  sync.Mutex
	all []weak.Pointer[observation]
}

// observe makes each run of the graph of n move the weight at the next UpdateStatistics: to (1 - momentum)·weight + momentum·factor·n.
func (p *Param) observe(n *G.Node, momentum, factor float64) {
	o := &observation{momentum: momentum, factor: factor}
	G.Read(n, &o.value)
	p.observed.mu.Lock()
	defer p.observed.mu.Unlock()
	p.observed.all = append(p.observed.all, weak.Make(o))
}

// Statistics returns the weights that are running statistics, in order.
func (p Params) Statistics() (statistics Params) {
	for _, w := range p {
		if w != nil && w.Statistic {
			statistics = append(statistics, w)
		}
	}
	return statistics
}

// UpdateStatistics moves the running statistics by what the graphs of training (WithTraining) have computed in their last runs. Call it after each
// run whose results count; train.Trainer does. A run counts once, and the last run of a graph replaces those before it that no call has counted.
// Frozen statistics stay as they are. Results are the same in every run of a program.
func (p Params) UpdateStatistics() error {
	if err := p.check(); err != nil {
		return err
	}
	for _, w := range p.Statistics() {
		if err := w.update(); err != nil {
			return fmt.Errorf("layer: %s: %w", w.Name, err)
		}
	}
	return nil
}

// ForgetStatistics makes the last runs of the graphs of training not count: the next UpdateStatistics does not see them. Call it after a run that failed,
// for example one whose loss is not finite; train.Trainer does.
func (p Params) ForgetStatistics() {
	for _, w := range p {
		if w == nil {
			continue
		}
		w.observed.mu.Lock()
		for _, at := range w.observed.all {
			if o := at.Value(); o != nil {
				o.value = nil
			}
		}
		w.observed.mu.Unlock()
	}
}

func (p *Param) update() error {
	p.observed.mu.Lock()
	defer p.observed.mu.Unlock()
	alive := p.observed.all[:0]
	for _, at := range p.observed.all {
		o := at.Value()
		if o == nil {
			continue // the graph is gone
		}
		alive = append(alive, at)
		v := o.value
		if o.value = nil; v == nil || p.Frozen {
			continue
		}
		if err := p.move(v, 1-o.momentum, o.momentum*o.factor); err != nil {
			return err
		}
	}
	clear(p.observed.all[len(alive):])
	p.observed.all = alive
	return nil
}

// move writes keep·weight + by·v to the weight, where it is used.
func (p *Param) move(v G.Value, keep, by float64) error {
	if p.home != nil {
		return p.home.Average(v, keep, by)
	}
	switch w := p.Value.Data().(type) {
	case []float32:
		return average(w, v, keep, by)
	case []float64:
		return average(w, v, keep, by)
	}
	return fmt.Errorf("the weight is of %v, want float32 or float64", p.Value.Dtype())
}

func average[T float32 | float64](w []T, v G.Value, keep, by float64) error {
	x, ok := v.Data().([]T)
	if !ok || len(x) != len(w) {
		return fmt.Errorf("the value of the last run is a %T of %d elements, want %d elements of the weight's type", v.Data(), len(x), len(w))
	}
	for i, x := range x {
		w[i] = T(keep*float64(w[i]) + by*float64(x))
	}
	return nil
}
