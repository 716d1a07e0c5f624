package train

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/dist/disttest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// A gradient that is said to be there does not change any more, and those of later layers are there before the backward pass of earlier ones.
func TestArrivals(t *testing.T) {
	collectNothing(t) // as in a group
	for name, subject := range subjects() {
		t.Run(name, func(t *testing.T) {
			tr, params, err := subject(groupConfig(nil, 1))
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			a, err := watch(tr.train.grads)
			if err != nil {
				t.Fatal(err)
			}
			if sorted := slices.Sorted(slices.Values(a.order)); len(sorted) != len(tr.params) || len(slices.Compact(sorted)) != len(sorted) {
				t.Fatalf("the order of %d weights is %v", len(tr.params), a.order)
			}
			grad := func(i int) []float64 { // of all runs
				g, err := tr.nodes[i].Grad()
				if err != nil {
					t.Fatal(err)
				}
				return values(layer.Params{layer.NewParam("", g.(*tensor.Dense), false)})[0]
			}
			then := make([][]float64, len(a.order))
			times, there := 0, 0
			a.tell = func(n int) {
				times++
				for _, i := range a.order[there:n] {
					then[i] = slices.Clone(grad(i))
				}
				there = n
			}
			b, err := tr.source.Next()
			for range 2 {
				times, there = 0, 0
				if err := errors.Join(err, tr.train.run(b, 1, 0)); err != nil {
					t.Fatal(err)
				}
			}
			for _, i := range a.order[:there] {
				if !reflect.DeepEqual(grad(i), then[i]) {
					t.Errorf("the gradient of %s changed after it was there", tr.params[i].Name)
				}
			}
			if name == "all kinds" && (times < len(params)/20 || there < len(params)*3/4) {
				t.Errorf("%d of %d gradients were there in %d pieces before the end", there, len(params), times)
			}
		})
	}
}

// collectNothing makes the machine add gradients.
func collectNothing(t *testing.T) {
	most := mostCollected
	mostCollected = 0
	t.Cleanup(func() { mostCollected = most })
}

// Gradients that our operator adds, or finds where they lie, give the bits of gradients that the machine adds.
func TestCollect(t *testing.T) {
	for name, subject := range subjects() {
		for _, accumulate := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/accumulate %d", name, accumulate), func(t *testing.T) {
				train := func(collected bool) []outcome {
					got, err := trainOn(1, func(g *dist.Group) (*Trainer, layer.Params, error) {
						tr, params, err := subject(groupConfig(nil, accumulate))
						if err == nil {
							if _, is := tr.train.values[0].(gradient); is != collected || stays(tr.train.values[0]) != (collected && accumulate == 1) {
								t.Errorf("gradients are collected: %v, want %v", is, collected)
							}
						}
						return tr, params, err
					})
					if err != nil {
						t.Fatal(err)
					}
					return got
				}
				got := train(true)
				collectNothing(t)
				if want := train(false); !reflect.DeepEqual(got, want) {
					t.Error("the bits differ")
				}
			})
		}
	}
}

// Gradients that travel during the backward pass have the bits of gradients that travel after it.
func TestOverlap(t *testing.T) {
	smallBuckets(t)
	for name, subject := range subjects() {
		t.Run(name, func(t *testing.T) {
			var want []outcome
			for _, late := range []bool{true, false} {
				got, err := trainOn(2, func(g *dist.Group) (*Trainer, layer.Params, error) {
					cfg := groupConfig(g, 2)
					cfg.Steps = 2
					tr, params, err := subject(cfg)
					if err == nil && late {
						tr.train.arrivals = &arrivals{order: tr.train.arrivals.order} // that nobody tells
					}
					return tr, params, err
				})
				if err != nil {
					t.Fatal(err)
				}
				if late {
					want = got
				} else if !reflect.DeepEqual(got, want) {
					t.Error("the bits differ")
				}
			}
		})
	}
}

// A group of one trains as no group does, without any of this.
func TestGroupOfOne(t *testing.T) {
	var all []outcome
	for _, size := range []int{0, 1} {
		got, err := trainOn(1, func(g *dist.Group) (*Trainer, layer.Params, error) {
			if size == 0 {
				g = nil
			}
			cfg := groupConfig(g, 2)
			cfg.Shard = true
			tr, params, err := subjects()["LoRA"](cfg)
			if err == nil && (tr.exchange != nil || tr.train.arrivals != nil) {
				err = errors.New("it exchanges gradients")
			}
			return tr, params, err
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, got...)
	}
	if !reflect.DeepEqual(all[0], all[1]) {
		t.Error("the bits differ")
	}
}

// A rank whose backward pass fails ends the sums of all ranks, whatever has travelled before.
func TestSumsFail(t *testing.T) {
	smallBuckets(t)
	const weights = 9
	for rank, err := range disttest.Run(3, func(g *dist.Group) error {
		var params layer.Params
		var order []int
		for i := range weights {
			params = append(params, layer.NewParam(fmt.Sprint(i), tensor.New(tensor.Of(tensor.Float64), tensor.WithShape(100)), false))
			order = append(order, weights-1-i)
		}
		s := newExchange(g, params, &arrivals{order: order}, false).begin(func(i int) (any, error) { return params[i].Value.Data(), nil })
		s.arrived(4)
		if g.Rank() == 1 {
			return s.end(errors.New("an operator fails"))
		}
		s.arrived(weights)
		return s.end(nil)
	}) {
		if err == nil || !strings.Contains(err.Error(), "an operator fails") || rank != 1 && !strings.HasPrefix(err.Error(), "rank 1: ") {
			t.Errorf("the error of rank %d is %v", rank, err)
		}
	}
}

// failingMachine fails in its second run, in the backward pass, when all but one of the gradients are there.
type failingMachine struct {
	G.VM
	of   *lossGraph
	runs int
}

func (m *failingMachine) RunAll() error {
	if m.runs++; m.runs < 2 {
		return m.VM.RunAll()
	}
	m.of.arrivals.tell(len(m.of.arrivals.order) - 1)
	return errors.New("an operator fails")
}

// With segments, a rank whose backward pass fails ends the run of all, although its sum waits for a rank that waits for the gradient of a state.
func TestSegmentsFail(t *testing.T) {
	smallBuckets(t)
	for _, size := range []int{2, 3} {
		for rank, err := range disttest.Run(size, func(g *dist.Group) error {
			lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2, DState: 2}, Vocab: vocab}, nn.WithSeed(3))
			cfg := config()
			cfg.Group, cfg.Segments, cfg.Steps, cfg.EvalEvery = g, true, 3, 0
			tr, err := New(lm, cfg)
			if err != nil {
				return err
			}
			defer tr.Close()
			if g.Rank() == size-1 {
				tr.train.vm = &failingMachine{VM: tr.train.vm, of: tr.train}
			}
			return tr.Run(context.Background())
		}) {
			if err == nil || !strings.Contains(err.Error(), "an operator fails") {
				t.Errorf("the error of rank %d of %d is %v", rank, size, err)
			}
		}
	}
}
