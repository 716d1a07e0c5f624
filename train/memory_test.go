package train_test

import (
	"runtime"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// heap returns the bytes in use after all garbage has been collected, objects with finalizers and what they reference included.
func heap() int64 {
	for range 3 {
		ran := make(chan struct{})
		runtime.SetFinalizer(new([16]byte), func(*[16]byte) { close(ran) })
		runtime.GC()
		<-ran // finalizers run one after another
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestNothingIsLeft builds, uses and drops 1,000 of each object that holds a graph and a machine, with and without Close, while the model stays in
// use. The heap after 1,000 objects must have at most 1 MiB more than after 100.
func TestNothingIsLeft(t *testing.T) {
	count := 1000
	if testing.Short() {
		count = 300
	}
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4, NLayer: 1, DState: 2}, Vocab: 5})
	block := nn.NewMambaBlock(nn.Config{DModel: 4, DState: 2})
	docs := []train.Document{{Tokens: []int{1, 2, 3, 4}}}
	for _, c := range []struct {
		name string
		use  func() (closer func() error, err error)
	}{
		{"stepper", func() (func() error, error) {
			s, err := nn.NewStepper(lm, 1)
			if err != nil {
				return nil, err
			}
			_, err = s.Step([]int{1})
			return s.Close, err
		}},
		{"generator", func() (func() error, error) {
			g, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 1})
			if err != nil {
				return nil, err
			}
			_, err = g.Generate(t.Context(), [][]int{{1, 2, 3}}, nil)
			return g.Close, err
		}},
		{"trainer", func() (func() error, error) {
			tr, err := train.New(lm, train.Config{Batch: 1, Length: 4, Steps: 1, Data: docs, HeldOut: docs, AdamW: train.AdamWConfig{LearnRate: 0.01}})
			if err != nil {
				return nil, err
			}
			return tr.Close, tr.Run(t.Context())
		}},
		{"trainer of a problem", func() (func() error, error) {
			batch, err := train.NewTokenBatch(4, []int{1, 2, 3, 4}, []int{2, 3, 4, 0}, nil)
			if err != nil {
				return nil, err
			}
			tr, err := train.NewTrainer(train.Problem{
				Params: lm.Params(), Data: train.NewSource(func(int) (train.Batch, error) { return batch, nil }), HeldOut: []train.Batch{batch},
				Loss: func(c *train.Call) (*G.Node, error) {
					loss, err := train.LMLoss(lm)(c)
					if !c.Training {
						c.Metric("again", loss)
					}
					return loss, err
				},
			}, train.RunConfig{Steps: 1, AdamW: train.AdamWConfig{LearnRate: 0.01}})
			if err != nil {
				return nil, err
			}
			return tr.Close, tr.Run(t.Context())
		}},
		{"block", func() (func() error, error) {
			g := G.NewGraph()
			x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 3, 4), G.WithName("x"), G.WithInit(G.Ones()))
			y, err := block.Apply(x)
			if err != nil {
				return nil, err
			}
			m := G.NewTapeMachine(g)
			if err := m.RunAll(); err != nil {
				return nil, err
			}
			if len(y.Value().Data().([]float32)) != 12 || len(block.Model()) == 0 {
				t.Error("the block has no result")
			}
			return m.Close, nil
		}},
	} {
		for _, closed := range []bool{true, false} {
			var early int64
			for i := range count {
				closer, err := c.use()
				if err == nil && closed {
					err = closer()
				}
				if err != nil {
					t.Fatalf("%s %d: %v", c.name, i, err)
				}
				if i == 99 {
					early = heap()
				}
			}
			late := heap()
			t.Logf("%s, closed %t: %d bytes after 100, %d after %d", c.name, closed, early, late, count)
			if late > early+1<<20 {
				t.Errorf("%s, closed %t: the heap has %d bytes after 100 and %d after %d, want at most 1 MiB more", c.name, closed, early, late, count)
			}
		}
	}
	runtime.KeepAlive(lm)
	runtime.KeepAlive(block)
}
