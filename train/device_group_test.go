package train

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/dist/disttest"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// deviceSubjects are models on a GPU: their gradients are those of one operator, sums of several, or those of a part of the weights.
var deviceSubjects = []struct {
	name      string
	precision cuda.Precision
	bound     float64 // of losses against one process
	config    func(c *nn.LMConfig)
	prepare   func(lm *nn.LM) error
	rows      bool // the embedding's gradient travels as rows
}{
	{"bfloat16, untied", cuda.BF16, 2e-2, func(c *nn.LMConfig) { c.UntiedHead = true }, unchanged, false},
	{"few rows", cuda.TF32, 1e-3, func(c *nn.LMConfig) { c.Vocab = 60 * vocab }, unchanged, true},
	{"hybrid, tied", cuda.TF32, 1e-3, func(c *nn.LMConfig) { c.Pattern, c.NHead = []nn.Kind{nn.Mamba, nn.Attention}, 2 }, unchanged, false},
	{"LoRA", cuda.Strict, 1e-3, func(*nn.LMConfig) {}, func(lm *nn.LM) error {
		_, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 2, Seed: 4})
		return err
	}, false},
	{"frozen", cuda.Strict, 1e-3, func(*nn.LMConfig) {}, func(lm *nn.LM) error { lm.Params()[:3].Freeze(); return nil }, false},
}

func unchanged(*nn.LM) error { return nil }

// way is how the ranks of rankDevices train.
type way struct {
	group      *dist.Group
	accumulate int
	shard      bool
	late       bool   // the gradients travel after the backward pass
	file       string // to resume from
	stop       int    // the step after which the run is stopped, if above 0
	fails      bool   // the second step of rank 1 has a token that is not in the vocabulary
}

// rankDevices is a rank of TestDeviceGroup. It trains in several ways, and some of the models are stopped and resumed too. It prints a hash of all losses and weights.
func rankDevices(models int, dir string) error {
	deviceBucketBytes = 2048
	g, err := dist.Join(context.Background())
	if err != nil {
		return err
	}
	d, err := cuda.Open(g.LocalRank())
	if err != nil {
		return g.Fail(err)
	}
	began := time.Now()
	h := sha256.New()
	for i, s := range deviceSubjects[:models] {
		train := func(w way) (o outcome, err error) {
			defer func() { // for a run that hangs
				fmt.Fprintf(os.Stderr, "after %.1f s, rank %d: %s: %d ranks, shard %v, late %v, stop %d, fails %v: %v\n", time.Since(began).Seconds(), g.Rank(), s.name, w.group.Size(), w.shard, w.late, w.stop, w.fails, err)
			}()
			c := nn.LMConfig{Config: nn.Config{DModel: 16, NLayer: 2, DState: 2}, Vocab: vocab}
			s.config(&c)
			lm := nn.NewLM(c, nn.WithSeed(3), nn.OnDevice(d), nn.WithPrecision(s.precision))
			if err := s.prepare(lm); err != nil {
				return o, err
			}
			ctx, stop := context.WithCancel(context.Background())
			cfg := config()
			cfg.Batch, cfg.Steps, cfg.EvalEvery, cfg.Accumulate, cfg.Group, cfg.Shard, cfg.File = 1, 3, 0, w.accumulate, w.group, w.shard, w.file
			cfg.Report = func(c *Curve) {
				if len(c.Training) == w.stop {
					stop()
				}
			}
			tr, err := New(lm, cfg)
			if err != nil {
				return o, err
			}
			if w.group != nil && (tr.exchange.rows != nil) != s.rows {
				return o, fmt.Errorf("%s: the embedding's gradient travels as rows: %v, want %v", s.name, !s.rows, s.rows)
			}
			if w.late {
				tr.train.arrivals = &arrivals{order: tr.train.arrivals.order} // that nobody tells
			}
			if w.fails && g.Rank() == 1 {
				tr.source = &failing{tr.source, 4, func(b *Batch) error { b.Values["targets"].Data().([]int)[3] = 60 * vocab; return nil }}
			}
			if w.file != "" {
				_, err = tr.Resume()
			}
			if err == nil {
				if err = tr.Run(ctx); w.stop > 0 && errors.Is(err, context.Canceled) {
					err = nil
				}
			}
			err = errors.Join(err, tr.Close(), lm.Params().ToHost())
			return outcome{*tr.Curve(), values(lm.Params())}, err
		}
		accumulate := 2
		if s.rows {
			accumulate = 1
		}
		one, err := train(way{accumulate: accumulate * g.Size()})
		if err != nil {
			return g.Fail(err)
		}
		together, err := train(way{group: g, accumulate: accumulate})
		if err != nil {
			return err
		}
		for i, p := range together.curve.Training {
			if want := one.curve.Training[i].Loss; !(math.Abs(p.Loss-want) <= s.bound) {
				return g.Fail(fmt.Errorf("%s: the loss of step %d is %v, and that of one process %v", s.name, i+1, p.Loss, want))
			}
		}
		file := filepath.Join(dir, "run")
		ways := []way{{shard: true}, {late: true}}
		if i == 0 {
			ways = append(ways, way{shard: true, file: file, stop: 1}, way{file: file, stop: 2}, way{shard: true, file: file})
		}
		for _, w := range ways {
			w.group, w.accumulate = g, accumulate
			got, err := train(w)
			if err != nil {
				return fmt.Errorf("%s: %+v: %w", s.name, w, err)
			}
			if w.stop == 0 && !reflect.DeepEqual(got, together) {
				return g.Fail(fmt.Errorf("%s: %+v: the bits differ: losses %v, want %v", s.name, w, losses(got.curve.Training), losses(together.curve.Training)))
			}
		}
		fmt.Fprint(h, together)
		if i < models-1 {
			continue
		}
		// Rank 0 has queued messages that rank 1 will never answer.
		if _, err := train(way{group: g, accumulate: 1, fails: true}); err == nil || !strings.Contains(err.Error(), "targets[0, 3] is ") || g.Rank() == 0 && !strings.HasPrefix(err.Error(), "rank 1: ") {
			return fmt.Errorf("the error of a token that is not in the vocabulary is %w", err)
		}
	}
	fmt.Printf("%d %x\n", g.Rank(), h.Sum(nil)[:8])
	return errors.Join(g.Close(), d.Close())
}

// Ranks with a GPU each train as one process that accumulates: with shards, without overlap, stopped and resumed with and without shards, to the same bits.
func TestDeviceGroup(t *testing.T) {
	gputest.Open(t, cuda.Open)
	for _, library := range []disttest.Library{disttest.NCCL, disttest.Libraries[0]} {
		models := len(deviceSubjects)
		if testing.Short() {
			models = 2
		}
		t.Run(library.Name, func(t *testing.T) {
			if testing.Short() && library.File != "" {
				t.Skip("only the messages of the host differ, and -short is set")
			}
			lines := disttest.Output(t, library.Start(t, 2, role, fmt.Sprint("devices ", models, " ", t.TempDir())))
			slices.Sort(lines)
			if len(lines) != 2 || !strings.HasPrefix(lines[0], "0 ") || "1"+lines[0][1:] != lines[1] {
				t.Errorf("the ranks print %q, want the same hash", lines)
			}
		})
	}
}
