package train

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// TestDeviceShared checks that goroutines that use one device at the same time, for training, generation and copies, have the same results as each
// goroutine alone. Run it under the race detector.
func TestDeviceShared(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	c, err := op.On(d, cuda.Strict)
	if err != nil {
		t.Fatal(err)
	}
	speaker := deviceLM(d, cuda.Strict) // the model of two generators
	const rounds = 4
	train := func() (v []float64, err error) {
		cfg := config()
		cfg.Steps = rounds
		lm := deviceLM(d, cuda.Strict)
		tr, err := New(lm, cfg)
		if err != nil {
			return nil, err
		}
		err = errors.Join(tr.Run(context.Background()), tr.Close(), lm.Params().ToHost())
		for _, p := range tr.Curve().Training {
			v = append(v, p.Loss)
		}
		return append(v, slices.Concat(weights(lm)...)...), err
	}
	generate := func() (v []float64, err error) {
		for range rounds {
			gen, err := nn.NewGenerator(speaker, nn.GenerateConfig{MaxTokens: 4})
			if err != nil {
				return nil, err
			}
			tokens, err := gen.Generate(context.Background(), [][]int{{1, 2, 3}}, nil)
			if err = errors.Join(err, gen.Close()); err != nil {
				return nil, err
			}
			for _, token := range tokens[0] {
				v = append(v, float64(token))
			}
		}
		return v, nil
	}
	upload := func() (v []float64, err error) {
		g := G.NewGraph()
		x := tensor.New(tensor.WithShape(3, 50), tensor.WithBacking(tensor.Range(tensor.Float32, 0, 150)))
		up, err := c.Upload(G.NodeFromAny(g, x, G.WithName("x")))
		if err != nil {
			return nil, err
		}
		down, err := op.Download(up)
		if err != nil {
			return nil, err
		}
		var out G.Value
		G.Read(down, &out)
		vm := G.NewTapeMachine(g)
		defer vm.Close()
		for range 3 * rounds {
			vm.Reset()
			if err := vm.RunAll(); err != nil {
				return nil, err
			}
			v = append(v, numbers(out.(*tensor.Dense))...)
		}
		return v, nil
	}
	weight := func() (v []float64, err error) { // copies a weight to the device and back
		w := layer.NewParam("w", tensor.New(tensor.WithShape(40), tensor.Of(tensor.Float32)), false)
		params := layer.Params{w}
		if err := params.ToDevice(c); err != nil {
			return nil, err
		}
		for range 3 * rounds {
			if err := c.Do(func(s *cuda.Stream) error {
				a, err := w.OnDevice().Array()
				if err != nil {
					return err
				}
				w.OnDevice().Written()
				return cuda.Add(s, a, a, a)
			}); err != nil {
				return nil, err
			}
			if err := params.ToHost(); err != nil {
				return nil, err
			}
			for i := range w.Value.Data().([]float32) {
				w.Value.Data().([]float32)[i] += float32(i)
			}
			params.ValuesChanged()
		}
		return numbers(w.Value), nil
	}
	all := map[string]func() ([]float64, error){"training": train, "generation": generate, "another generation": generate, "upload": upload, "weight": weight}
	alone := map[string][]float64{}
	for name, f := range all {
		v, err := f()
		if err != nil {
			t.Fatalf("%s alone: %v", name, err)
		}
		alone[name] = v
	}
	var group sync.WaitGroup
	begin := make(chan struct{})
	for name, f := range all {
		group.Go(func() {
			<-begin
			v, err := f()
			if err == nil && !slices.Equal(v, alone[name]) {
				err = fmt.Errorf("the results differ from those of the goroutine alone")
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	close(begin)
	group.Wait()
}
