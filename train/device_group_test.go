package train

import (
	"reflect"
	"testing"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
)

// Ranks whose weights are on a GPU exchange gradients through the memory of the host, and train as one process that accumulates.
func TestDeviceGroup(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	config := func(g *dist.Group, accumulate int) Config {
		c := config()
		c.Steps, c.Accumulate, c.Batch, c.EvalEvery, c.Group = 2, accumulate, 1, 0, g
		return c
	}
	whole := deviceLM(d, cuda.Strict)
	one := newTrainer(t, whole, config(nil, 2))
	if err := one.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, err := trainOn(2, func(g *dist.Group) (*Trainer, layer.Params, error) {
		lm := deviceLM(d, cuda.Strict)
		tr, err := New(lm, config(g, 1))
		return tr, lm.Params(), err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(all[0], all[1]) {
		t.Error("the ranks have other bits")
	}
	within(t, "losses", losses(all[0].curve.Training), losses(one.Curve().Training), 1e-3)
}
