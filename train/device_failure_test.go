package train

import (
	"context"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// life is a sequence of uses of a model on a device, divided into parts. A part that fails is repeated.
type life struct {
	t            *testing.T
	device       *cuda.Device
	other        op.Place // context of another device
	lm           *nn.LM
	solver       *AdamW
	trainer      *Trainer
	copier, norm *graphRun
	param        *layer.Param // a separate weight, which moves from one device to the other
	merged       int
	results      []float32
}

// graphRun is a graph that uploads, computes, and downloads. out is a pointer, since the machine must not reference the graphRun that holds it:
// the machine's finalizer would keep such a cycle in memory.
type graphRun struct {
	vm  G.VM
	out *G.Value
}

func newGraphRun(l *life, c op.Place, compute func(x, weight *G.Node) (*G.Node, error)) *graphRun {
	g := G.NewGraph()
	node := func(name string, shape ...int) *G.Node {
		v := tensor.New(tensor.WithShape(shape...), tensor.WithBacking(tensor.Range(tensor.Float32, 1, 1+tensor.Shape(shape).TotalSize())))
		return G.NodeFromAny(g, v, G.WithName(name))
	}
	y, err := compute(node("x", 2, 3, 4), node("weight", 4))
	l.check(err)
	y, err = op.Download(y)
	l.check(err)
	r := &graphRun{out: new(G.Value)}
	G.Read(y, r.out)
	r.vm = G.NewTapeMachine(g)
	return r
}

func (r *graphRun) run() ([]float32, error) {
	r.vm.Reset()
	if err := r.vm.RunAll(); err != nil {
		return nil, err
	}
	return (*r.out).Data().([]float32), nil
}

func newLife(t *testing.T, d *cuda.Device, other op.Place) *life {
	l := &life{t: t, device: d, other: other}
	l.lm = nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 1, DState: 4}, Vocab: vocab}, nn.WithSeed(1), nn.OnDevice(d))
	c, err := op.On(d, cuda.Strict)
	l.check(err)
	l.copier = newGraphRun(l, c, func(x, _ *G.Node) (*G.Node, error) { return c.Upload(x) })
	l.norm = newGraphRun(l, c, func(x, weight *G.Node) (*G.Node, error) {
		x, err := c.Upload(x)
		l.check(err)
		weight, err = c.Upload(weight)
		l.check(err)
		return op.RMSNorm(x, weight, 1e-5)
	})
	l.param = layer.NewParam("alone", tensor.New(tensor.WithShape(2, 2), tensor.WithBacking([]float32{1, 2, 3, 4})), true)
	l.check(layer.Params{l.param}.ToDevice(c))
	return l
}

func (l *life) check(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) params() layer.Params { return l.lm.Params() }

// parts returns the parts of a life, in order. If a part has returned an error, repeating it must give the state that it gives without an
// error.
func (l *life) parts() []func() error {
	train := func() error {
		if l.solver == nil {
			var err error
			if l.solver, err = NewAdamW(l.params().Trainable(), AdamWConfig{LearnRate: 0.02, Clip: 1}); err != nil {
				return err
			}
		}
		loss, err := deviceStep(l.lm, l.solver)
		if err == nil {
			l.results = append(l.results, loss)
		}
		return err
	}
	addLoRA := func() error {
		added, err := l.params().AddLoRA(layer.LoRAConfig{Rank: 2})
		if err != nil {
			return err
		}
		write(added)
		added.ValuesChanged()
		l.solver = nil
		return nil
	}
	run := func(r *graphRun) error {
		v, err := r.run()
		l.results = append(l.results, v...)
		return err
	}
	double := func() error { // doubles the separate weight on its device
		w := l.param.OnDevice()
		return w.Place().Do(func(s *cuda.Stream) error {
			a, err := w.Array()
			if err != nil {
				return err
			}
			if err := cuda.Add(s, a, a, a); err != nil {
				return err
			}
			w.Written()
			return nil
		})
	}
	return []func() error{
		func() error { return run(l.copier) },
		func() error { return run(l.norm) },
		double,
		func() error { return layer.Params{l.param}.ToDevice(l.other) },
		double,
		func() error { return l.param.OnDevice().Free() },
		double,
		func() error { return layer.Params{l.param}.ToHost() },
		addLoRA,
		train,
		func() error { return SaveLoRA(l.t.TempDir(), "base", l.params()) },
		func() error { // merging continues after the last merged weight
			n, err := l.params().MergeLoRA()
			l.merged += n
			return err
		},
		addLoRA,
		func() error { l.params().RemoveLoRA(); l.solver = nil; return nil },
		train,
		func() error { // moments to the host and back
			l.solver.Moments()
			return l.solver.copyError()
		},
		train,
		func() error { // a trainer that accumulates gradients; its machine is used again after an error
			if l.trainer == nil {
				cfg := config()
				cfg.Batch, cfg.Accumulate, cfg.Steps, cfg.HeldOut, cfg.File = 1, 2, 2, nil, filepath.Join(l.t.TempDir(), "run")
				var err error
				if l.trainer, err = New(l.lm, cfg); err != nil {
					return err
				}
			}
			return l.trainer.Run(context.Background())
		},
		func() error { return l.trainer.Save() },
		func() error { return l.params().ToHost() },
	}
}

// live runs all parts, and repeats those that fail after limit(n). It returns the results, and the number of failed calls.
func (l *life) live(what string, limit gputest.Limit, n int) (results []float32, failed int) {
	l.t.Helper()
	limit(n)
	for i, part := range l.parts() {
		err := part()
		switch now := limit(-1); {
		case now == 0 && err != nil:
			l.t.Fatalf("part %d: %v", i, err)
		case now == 0:
			limit(n) // each part may make the same number of calls
			continue
		case err == nil:
			l.t.Fatalf("%s %d of part %d failed, and the part returned no error", what, n, i)
		case !strings.Contains(err.Error(), "out of memory") && !strings.Contains(err.Error(), "CUDA_ERROR_UNKNOWN"): // errors of a machine cannot be unwrapped
			l.t.Fatalf("%s %d of part %d failed: the error is %v", what, n, i, err)
		default:
			failed += now
			if err := part(); err != nil {
				l.t.Fatalf("part %d, after %s %d of it failed: %v", i, what, n, err)
			}
			limit(n)
		}
	}
	limit(-1)
	if l.merged != 4 {
		l.t.Errorf("%s %d: %d updates merged, want 4", what, n, l.merged)
	}
	for _, w := range l.params() {
		l.results = append(l.results, w.Value.Data().([]float32)...)
	}
	for _, m := range l.trainer.Curve().Training {
		l.results = append(l.results, float32(m.Loss))
	}
	l.results = append(l.results, l.param.Value.Data().([]float32)...)
	l.check(l.trainer.Close())
	l.check(l.copier.vm.Close())
	l.check(l.norm.vm.Close())
	return l.results, failed
}

// TestDeviceFailureAnywhere lets each allocation, and each copy between host and device, fail in each part of a model's life. The part must
// return an error. After it is repeated, all results must be the same bits as without a failure, and no memory may leak.
func TestDeviceFailureAnywhere(t *testing.T) {
	for what, limit := range map[string]gputest.Limit{"allocation": gputest.Allocations(t), "copy": gputest.Copies(t)} {
		t.Run(what, func(t *testing.T) {
			d := gputest.Open(t, cuda.Open)
			c, err := op.On(d, cuda.Strict)
			if err != nil {
				t.Fatal(err)
			}
			other, err := op.On(gputest.Open(t, cuda.Open), cuda.Strict)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := newLife(t, d, other).live(what, limit, -1)
			before := memoryWithoutValues(t, d, -1)
			stride := 1
			if testing.Short() {
				stride = 5
			}
			n, all := 0, 0
			for ; ; n += stride {
				if err := c.Do((*cuda.Stream).Trim); err != nil { // so that the next model allocates its memory anew
					t.Fatal(err)
				}
				got, failed := newLife(t, d, other).live(what, limit, n)
				if all += failed; failed == 0 {
					break
				}
				if !slices.Equal(got, want) {
					t.Errorf("after %s %d failed, the results differ", what, n)
				}
			}
			if all == 0 {
				t.Error("nothing failed")
			}
			t.Logf("each %s of at most %d in a part", what, n)
			if after := memoryWithoutValues(t, d, before); after > before {
				t.Errorf("%d bytes of the device are in use, %d before anything failed", after, before)
			}
		})
	}
}

// memoryWithoutValues returns how many bytes of a device are in use after the garbage collector has found all unreachable values. It waits no
// longer once at most want bytes are in use.
func memoryWithoutValues(t *testing.T, d *cuda.Device, want int64) int64 {
	t.Helper()
	c, err := op.On(d, cuda.Strict)
	if err != nil {
		t.Fatal(err)
	}
	var used int64
	for try := range 100 {
		runtime.GC()
		time.Sleep(time.Millisecond) // cleanups run in other goroutines
		if err := c.Do((*cuda.Stream).Synchronize); err != nil {
			t.Fatal(err)
		}
		if used, _ = d.Memory(); used <= want || want < 0 && try > 20 {
			break
		}
	}
	return used
}
