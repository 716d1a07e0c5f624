package train

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/dist/disttest"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// outcome is what a rank has at the end of a run.
type outcome struct {
	curve   Curve
	weights [][]float64
}

// subjects are trainers of many kinds: problem and configuration are made anew for each rank.
func subjects() map[string]func(cfg RunConfig) (*Trainer, layer.Params, error) {
	lm := func(change func(*nn.LMConfig), prepare func(*nn.LM)) func(cfg RunConfig) (*Trainer, layer.Params, error) {
		return func(run RunConfig) (*Trainer, layer.Params, error) {
			c := nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 1, DState: 2}, Vocab: vocab}
			change(&c)
			lm := nn.NewLM(c, nn.WithSeed(3), nn.WithDtype(tensor.Float64))
			prepare(lm)
			tr, err := New(lm, Config{Batch: 1, Length: 12, Steps: run.Steps, Accumulate: run.Accumulate, Data: documents(40), HeldOut: documents(9), Seed: 5,
				EvalEvery: 3, AdamW: run.AdamW, File: run.File, SaveEvery: run.SaveEvery, Group: run.Group, Shard: run.Shard, Report: run.Report, Settings: run.Settings})
			return tr, lm.Params(), err
		}
	}
	none := func(*nn.LM) {}
	problem := func(f func() Problem) func(cfg RunConfig) (*Trainer, layer.Params, error) {
		return func(run RunConfig) (*Trainer, layer.Params, error) {
			p := f()
			tr, err := NewTrainer(p, run)
			return tr, p.Params, err
		}
	}
	return map[string]func(cfg RunConfig) (*Trainer, layer.Params, error){
		"all kinds": lm(func(c *nn.LMConfig) {
			c.Pattern, c.NHead, c.Window = nn.Kinds(), 2, 4
			c.NLayer = len(c.Pattern)
		}, none),
		"dropout": lm(func(c *nn.LMConfig) { c.Dropout = 0.2 }, none),
		"LoRA": lm(func(*nn.LMConfig) {}, func(lm *nn.LM) {
			if _, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 2, Seed: 4}); err != nil {
				panic(err)
			}
		}),
		"frozen":         lm(func(*nn.LMConfig) {}, func(lm *nn.LM) { lm.Params()[:3].Freeze() }),
		"any loss":       problem(func() Problem { return regression(new([]int)) }),
		"single numbers": problem(classification),
	}
}

func groupConfig(g *dist.Group, accumulate int) RunConfig {
	return RunConfig{Steps: 4, Accumulate: accumulate, EvalEvery: 3, AdamW: AdamWConfig{LearnRate: 0.02, Decay: 0.1, Clip: 0.5}, Group: g}
}

// trainOn trains on the ranks of a group and returns what each has then.
func trainOn(size int, f func(g *dist.Group) (*Trainer, layer.Params, error)) ([]outcome, error) {
	all := make([]outcome, size)
	errs := disttest.Run(size, func(g *dist.Group) error {
		tr, params, err := f(g)
		if err != nil {
			return err
		}
		defer tr.Close()
		if err := tr.Run(context.Background()); err != nil {
			return err
		}
		if err := params.ToHost(); err != nil {
			return err
		}
		all[g.Rank()] = outcome{*tr.Curve(), values(params)}
		return nil
	})
	return all, errors.Join(errs...)
}

// N ranks train as one process that accumulates the batches of all: losses and weights are the same within rounding. All ranks have the same bits, in every
// run, with shards and without.
func TestGroupTraining(t *testing.T) {
	smallBuckets(t)
	for name, subject := range subjects() {
		t.Run(name, func(t *testing.T) {
			sizes := []int{3}
			if name == "all kinds" {
				sizes = []int{2}
			}
			for _, size := range sizes {
				const accumulate = 2
				one, params, err := subject(groupConfig(nil, size*accumulate))
				if err != nil {
					t.Fatal(err)
				}
				defer one.Close()
				if err := one.Run(t.Context()); err != nil {
					t.Fatal(err)
				}
				bound := 1e-9
				if params[0].Value.Dtype() == tensor.Float32 {
					bound = 1e-3
				}
				var first outcome
				for run, shard := range []bool{false, true} {
					all, err := trainOn(size, func(g *dist.Group) (*Trainer, layer.Params, error) {
						cfg := groupConfig(g, accumulate)
						cfg.Shard = shard
						return subject(cfg)
					})
					if err != nil {
						t.Fatal(err)
					}
					if run == 0 {
						first = all[0]
						within(t, "training losses", losses(first.curve.Training), losses(one.Curve().Training), bound)
						within(t, "held-out losses", losses(first.curve.HeldOut), losses(one.Curve().HeldOut), bound)
						for i, w := range values(params) {
							within(t, "a weight", first.weights[i], w, 100*bound)
						}
					}
					for rank := range all {
						if !reflect.DeepEqual(all[rank], first) {
							t.Errorf("shard %v: rank %d has other bits than rank 0 without shards", shard, rank)
						}
					}
				}
			}
		})
	}
}

// Ranks that have parts of the same sequences train as one process does, for layers of every kind, also if the input of the first layer has no gradient.
func TestGroupSegments(t *testing.T) {
	smallBuckets(t)
	for _, frozen := range []int{0, 1} { // the embedding
		train := func(g *dist.Group) (*Trainer, layer.Params, error) {
			c := nn.Config{DModel: 8, DState: 2, Pattern: nn.Kinds(), NHead: 2, Window: 4, NLayer: len(nn.Kinds())}
			lm := nn.NewLM(nn.LMConfig{Config: c, Vocab: vocab}, nn.WithSeed(3), nn.WithDtype(tensor.Float64))
			lm.Params()[:frozen].Freeze()
			cfg := config()
			cfg.Group, cfg.Segments, cfg.Shard, cfg.Steps, cfg.Accumulate = g, true, true, 3, 2
			tr, err := New(lm, cfg)
			return tr, lm.Params(), err
		}
		one, params, err := train(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer one.Close()
		if err := one.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{2, 3} {
			all, err := trainOn(size, train)
			if err != nil {
				t.Fatal(err)
			}
			for rank := range all {
				if !reflect.DeepEqual(all[rank], all[0]) {
					t.Errorf("rank %d has other bits than rank 0", rank)
				}
			}
			within(t, "training losses", losses(all[0].curve.Training), losses(one.Curve().Training), 1e-9)
			within(t, "held-out losses", losses(all[0].curve.HeldOut), losses(one.Curve().HeldOut), 1e-9)
			for i, w := range values(params) {
				within(t, "a weight", all[0].weights[i], w, 1e-7)
			}
		}
	}
	for rank, err := range disttest.Run(2, func(g *dist.Group) error {
		cfg := config()
		cfg.Group, cfg.Segments, cfg.Length = g, true, 1
		_, err := New(newLM(tensor.Float64, false), cfg)
		return err
	}) {
		if err == nil || !strings.Contains(err.Error(), "train: Length is 1 and the group has 2 ranks, want at least a step for each") {
			t.Errorf("the error of rank %d is %v", rank, err)
		}
	}
}

func losses(points []Point) (all []float64) {
	for _, p := range points {
		all = append(all, p.Loss)
	}
	return all
}

func within(t *testing.T, what string, got, want []float64, bound float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d %s, want %d", len(got), what, len(want))
	}
	for i := range got {
		if !(math.Abs(got[i]-want[i]) <= bound*(1+math.Abs(want[i]))) {
			t.Errorf("%s: number %d of %d is %v, want %v", what, i, len(got), got[i], want[i])
			return
		}
	}
}

// smallBuckets makes a model of some hundred numbers fill several buckets.
func smallBuckets(t *testing.T) {
	before := bucketBytes
	bucketBytes = 1024
	t.Cleanup(func() { bucketBytes = before })
}

// A run that is stopped on one rank ends on all after the step, saved by rank 0 alone. It goes on with the same number of ranks to the same bits, and with another number to
// the same losses within rounding if Accumulate makes up for it. Files of runs with shards are those without.
func TestGroupResume(t *testing.T) {
	smallBuckets(t)
	subject := subjects()["LoRA"]
	type run struct {
		size, accumulate int
		shard            bool
	}
	dir := t.TempDir()
	var batches atomic.Int64 // that rank 1 counts after a resume
	train := func(r run, file string, stopAfter int) ([]outcome, error) {
		return trainOn(r.size, func(g *dist.Group) (*Trainer, layer.Params, error) {
			cfg := groupConfig(g, r.accumulate)
			cfg.Shard, cfg.Steps, cfg.File = r.shard, 6, file
			if g.Rank() > 0 && stopAfter == 0 {
				cfg.File = filepath.Join(filepath.Dir(file), "none", "of", "my", "business") // rank 0 alone reads
			}
			ctx, stop := context.WithCancel(t.Context())
			cfg.Report = func(c *Curve) {
				if len(c.Training) == stopAfter {
					stop()
				}
			}
			tr, params, err := subject(cfg)
			if err != nil {
				return nil, nil, err
			}
			if _, err := os.Stat(file); err == nil {
				if resumed, err := tr.Resume(); !resumed || err != nil {
					return nil, nil, errors.Join(err, tr.Close(), fmt.Errorf("resumed is %v", resumed))
				}
				if g.Rank() == 1 {
					batches.Store(int64(tr.batches))
				}
			}
			if stopAfter > 0 {
				err := tr.Run(ctx)
				if !errors.Is(err, context.Canceled) || g.Rank() > 0 && !strings.Contains(err.Error(), "train: rank 0 was told to stop") {
					return nil, nil, errors.Join(tr.Close(), fmt.Errorf("the error of a run that is stopped is %w", err))
				}
				return nil, nil, errors.Join(tr.Close(), errStopped)
			}
			return tr, params, nil
		})
	}
	whole, err := train(run{2, 3, false}, filepath.Join(dir, "whole"), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name          string
		before, after run
		bound         float64
	}{
		{"the same", run{2, 3, false}, run{2, 3, false}, 0},
		{"shards from here on", run{2, 3, false}, run{2, 3, true}, 0},
		{"no shards from here on", run{2, 3, true}, run{2, 3, false}, 0},
		{"three ranks", run{2, 3, true}, run{3, 2, true}, 1e-9},
		{"one rank", run{2, 3, true}, run{1, 6, false}, 1e-9},
		{"from one rank", run{1, 6, false}, run{3, 2, false}, 1e-9},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "run")
			if _, err := train(test.before, file, 3); !errors.Is(err, errStopped) || strings.Contains(err.Error(), "the error of") {
				t.Fatal(err)
			}
			got, err := train(test.after, file, 0)
			if err != nil {
				t.Fatal(err)
			}
			for rank := range got {
				within(t, "losses", losses(got[rank].curve.Training), losses(whole[0].curve.Training), test.bound)
				for i, w := range whole[0].weights {
					within(t, "a weight", got[rank].weights[i], w, 100*test.bound)
				}
			}
			if a, b := read(t, file), read(t, filepath.Join(dir, "whole")); test.bound == 0 && !bytes.Equal(a, b) {
				t.Error("the files differ")
			}
		})
	}
	t.Run("fewer batches", func(t *testing.T) { // the order of the data goes on
		file := filepath.Join(t.TempDir(), "run")
		if _, err := train(run{3, 1, true}, file, 3); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		got, err := train(run{2, 1, false}, file, 0)
		if err != nil || len(got[1].curve.Training) != 6 {
			t.Errorf("%d steps, %v", len(got[1].curve.Training), err)
		}
		if n := batches.Load(); n != 9 { // so that no two batches of the run drop the same elements
			t.Errorf("the run has trained on %d batches before it is resumed, want 3 of each of 3 ranks", n)
		}
	})
}

var errStopped = errors.New("stopped")

func read(t *testing.T, file string) []byte {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A rank without a token to learn takes part, and a rank that differs or fails ends the run on all ranks with an error that says which one and why.
func TestGroupErrors(t *testing.T) {
	at := func(rank int, change func(p *Problem, cfg *RunConfig)) func(g *dist.Group, p *Problem, cfg *RunConfig) {
		return func(g *dist.Group, p *Problem, cfg *RunConfig) {
			if g.Rank() == rank {
				change(p, cfg)
			}
		}
	}
	fails := func(i int) (Batch, error) { return Batch{}, errors.New("the file is gone") }
	for what, test := range map[string]struct {
		change func(g *dist.Group, p *Problem, cfg *RunConfig)
		want   string // in the error of every rank; "" for none
	}{
		"no tokens on one rank": {func(g *dist.Group, p *Problem, cfg *RunConfig) {
			source := p.Data
			p.Data = NewSource(func(i int) (Batch, error) {
				b, err := source.Next()
				b.Weight = float64(i % 3 * 5)
				return b, errors.Join(err, source.Go(Position{Row: i + 1}))
			})
		}, ""},
		"no tokens at all": {func(g *dist.Group, p *Problem, cfg *RunConfig) {
			source := p.Data
			p.Data = NewSource(func(i int) (Batch, error) {
				b, err := source.Next()
				b.Weight = 0
				return b, err
			})
		}, "the weights of 6 batches add up to 0"},
		"other weights": {at(1, func(p *Problem, _ *RunConfig) { p.Params[0].Value.Data().([]float64)[3]++ }), "train: rank 1 differs from rank 0: the weights is"},
		"other frozen":  {at(2, func(p *Problem, _ *RunConfig) { p.Params[3].Value.Data().([]float64)[1]++ }), "train: rank 2 differs from rank 0: frozen weights is"},
		"other steps":   {at(2, func(_ *Problem, cfg *RunConfig) { cfg.Steps++ }), `train: rank 2 differs from rank 0: AdamW.Schedule is "5 steps`},
		"other shards":  {at(0, func(_ *Problem, cfg *RunConfig) { cfg.Shard = true }), `train: rank 1 differs from rank 0: Shard is "false" and not "true"`},
		"other setting": {at(1, func(_ *Problem, cfg *RunConfig) { cfg.Settings = map[string]string{"-lr": "1"} }), `train: rank 1 differs from rank 0: Settings.-lr is "1" and not ""`},
		"other data":    {at(1, func(p *Problem, _ *RunConfig) { p.HeldOut[0].Weight++ }), "train: rank 1 differs from rank 0: HeldOut is"},
		"no data": {at(1, func(p *Problem, _ *RunConfig) {
			s := *p.Data.(*numbered)
			p.Data = &failing{&s, 3, func(*Batch) error { return errors.New("the file is gone") }}
		}), "the file is gone"},
		"full disk":       {at(0, func(_ *Problem, cfg *RunConfig) { cfg.File = "/dev/full/run" }), "train: "},
		"diverges":        {func(_ *dist.Group, _ *Problem, cfg *RunConfig) { cfg.AdamW.LearnRate = 1e300; cfg.Steps = 9 }, "train: the loss is"},
		"the first batch": {at(1, func(p *Problem, _ *RunConfig) { p.Data = NewSource(fails) }), "the file is gone"},
	} {
		t.Run(what, func(t *testing.T) {
			for rank, err := range disttest.Run(3, func(g *dist.Group) error {
				p, cfg := regression(nil), groupConfig(g, 2)
				if test.want == "train: " {
					cfg.File = filepath.Join(t.TempDir(), "unused")
				}
				test.change(g, &p, &cfg)
				tr, err := NewTrainer(p, cfg)
				if err != nil {
					return g.Fail(err)
				}
				return errors.Join(tr.Run(t.Context()), tr.Close())
			}) {
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "train: train: ")) {
					t.Errorf("the error of rank %d is %v, want %q", rank, err, test.want)
				}
			}
		})
	}
}

// Ranks whose gradients travel in different ways end with an error that says which rank and how.
func TestGroupWays(t *testing.T) {
	smallBuckets(t)
	for what, test := range map[string]struct {
		change func(e *exchange)
		want   string
	}{
		"rows":    {func(e *exchange) { e.rows = &rows{param: 1} }, `train: rank 1 differs from rank 0: the gradient that travels as rows is "b" and not "none"`},
		"buckets": {func(e *exchange) { e.buckets = e.buckets[1:] }, "train: rank 1 differs from rank 0: the buckets of the gradients is"},
	} {
		for rank, err := range disttest.Run(2, func(g *dist.Group) error {
			tr, _, err := subjects()["any loss"](groupConfig(g, 1))
			if err != nil {
				return err
			}
			defer tr.Close()
			if g.Rank() == 1 {
				test.change(tr.exchange)
			}
			return tr.Run(t.Context())
		}) {
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: the error of rank %d is %v, want %q", what, rank, err, test.want)
			}
		}
	}
}

// lateContext ends after the first time that it is asked.
type lateContext struct {
	context.Context
	asked int
}

func (c *lateContext) Err() error {
	if c.asked++; c.asked > 1 {
		return context.Canceled
	}
	return nil
}

// A context that ends while its rank waits for the others stops all ranks together, after the next step.
func TestGroupStop(t *testing.T) {
	for rank, err := range disttest.Run(2, func(g *dist.Group) error {
		tr, _, err := subjects()["any loss"](groupConfig(g, 1))
		if err != nil {
			return err
		}
		defer tr.Close()
		ctx := t.Context()
		if g.Rank() == 0 {
			ctx = &lateContext{Context: ctx}
		}
		if err := tr.Run(ctx); !errors.Is(err, context.Canceled) || tr.Done() != 1 {
			return fmt.Errorf("after step %d the error is %v", tr.Done(), err)
		}
		return g.Barrier()
	}) {
		if err != nil {
			t.Errorf("rank %d: %v", rank, err)
		}
	}
}

// What keeps a rank from beginning to run is an error on all ranks. Without Fail, the others would wait until that rank ends.
func TestGroupBegin(t *testing.T) {
	for what, test := range map[string]struct {
		file, want string
		ctx        context.Context
	}{
		"no folder":  {filepath.Join(t.TempDir(), "missing", "run"), "no such file or directory", t.Context()},
		"no context": {"", "train: run: the context is missing", nil},
	} {
		var all sync.WaitGroup // ranks leave together, since disttest.Run calls Fail too
		all.Add(2)
		for rank, err := range disttest.Run(2, func(g *dist.Group) error {
			cfg, ctx := groupConfig(g, 1), t.Context()
			if cfg.File = test.file; g.Rank() == 0 {
				ctx = test.ctx
			}
			tr, _, err := subjects()["any loss"](cfg)
			if err != nil {
				return err
			}
			defer tr.Close()
			err = tr.Run(ctx)
			all.Done()
			all.Wait()
			return err
		}) {
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: the error of rank %d is %v, want %q", what, rank, err, test.want)
			}
		}
	}
}

// Under mpirun. A process that has this variable is a rank of TestGroupMPI; its value is the file of the run.
const role = "MAMBA_TRAIN_TEST"

var (
	kills  = flag.Int("groupkills", 0, "number of times that TestGroupMPI kills each rank at a random moment")
	faults = flag.Bool("groupfaults", false, "all faults of TestGroupFaults, which take a minute, and not one of them")
)

func TestMain(m *testing.M) {
	file := os.Getenv(role)
	if file == "" {
		os.Exit(m.Run())
	}
	rank := func() error { return rankMPI(file) }
	switch kind, rest, _ := strings.Cut(file, " "); kind {
	case "segments":
		rank = rankOfSegments
	case "devices":
		models, dir, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(models)
		rank = func() error { return errors.Join(err, rankDevices(n, dir)) }
	case "host":
		rank = func() error { return rankHost(rest) }
	case "benchmark":
		rank = func() error { return rankBenchmark(rest) }
	}
	if err := rank(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func rankMPI(file string) error {
	fault, rank := os.Getenv(role+"_FAULT"), ""
	if at := strings.LastIndexByte(fault, ' '); at >= 0 {
		fault, rank = fault[:at], fault[at+1:]
	}
	var options []dist.Option
	if fault != "" {
		options = append(options, dist.WithTimeout(2*time.Second))
	}
	g, err := dist.Join(context.Background(), options...)
	if err != nil {
		return err
	}
	if rank != strconv.Itoa(g.Rank()) {
		fault = ""
	}
	if rank, after, kill := strings.Cut(os.Getenv(role+"_KILL"), " "); kill && rank == strconv.Itoa(g.Rank()) {
		micros, err := strconv.Atoi(after)
		if err != nil {
			return err
		}
		time.AfterFunc(time.Duration(micros)*time.Microsecond, func() {
			p, _ := os.FindProcess(os.Getpid())
			_ = p.Kill()
		})
	}
	sum, err := hashOfRun(g, file, fault)
	if err != nil {
		return errors.Join(g.Fail(err), g.Close())
	}
	fmt.Println(g.Rank(), sum)
	return g.Close()
}

// hashOfRun trains, or goes on to train, and returns a hash of all results.
func hashOfRun(g *dist.Group, file, fault string) (string, error) {
	cfg := groupConfig(g, 2)
	if fault == "configuration" {
		cfg.AdamW.LearnRate *= 2
	}
	cfg.Steps, cfg.File, cfg.SaveEvery, cfg.Shard = 8, file, 1, true
	tr, params, err := subjects()["LoRA"](cfg)
	if err != nil {
		return "", err
	}
	defer tr.Close()
	if fault == "model" {
		params.Trainable()[0].Value.Data().([]float64)[0]++
	}
	if _, err := tr.Resume(); err != nil {
		return "", err
	}
	if err := tr.Run(&faulty{Context: context.Background(), fault: fault}); err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%x %x", values(params), losses(tr.Curve().Training))
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

// Processes give the bits of goroutines, under each library, also when some of them are killed and the run goes on.
func TestGroupMPI(t *testing.T) {
	want := make([]string, 2)
	if err := errors.Join(disttest.Run(len(want), func(g *dist.Group) error {
		sum, err := hashOfRun(g, filepath.Join(t.TempDir(), "run"), "")
		want[g.Rank()] = fmt.Sprint(g.Rank(), " ", sum)
		return err
	})...); err != nil {
		t.Fatal(err)
	}
	for i, library := range append(slices.Clone(disttest.Libraries), disttest.NCCL) {
		t.Run(library.Name, func(t *testing.T) {
			if library.Name == disttest.NCCL.Name {
				gputest.Open(t, cuda.Open)
			}
			file := filepath.Join(t.TempDir(), "run")
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for kill := range *kills * len(want) {
				cmd := library.Start(t, len(want), role, file)
				cmd.Env = append(cmd.Env, fmt.Sprintf("%s_KILL=%d %d", role, kill%len(want), r.IntN(400_000)))
				began := time.Now()
				out, err := cmd.CombinedOutput()
				if d := time.Since(began); d > 20*time.Second {
					t.Errorf("after kill %d the run ended in %v", kill, d)
				}
				steps, _, saved := Saved(file)
				t.Logf("kill %d: %v; %d steps are saved (%v); %d bytes of output", kill, err, steps, saved, len(out))
				if saved != nil && !errors.Is(saved, fs.ErrNotExist) {
					t.Error(saved)
				}
				if err != nil {
					continue
				}
				if got := strings.Fields(string(out)); !slices.Contains(got, strings.Fields(want[0])[1]) {
					t.Errorf("a run that ended after kills prints %q, want %q", got, want)
				}
				if err := os.Remove(file); err != nil { // the next kill meets a new run
					t.Fatal(err)
				}
			}
			got := disttest.Output(t, library.Start(t, len(want), role, file))
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("the ranks print %q, want %q", got, want)
			}
		})
	}
}

// faulty is a context in which something happens to its process after four steps.
type faulty struct {
	context.Context
	fault string
	asked int
}

func (c *faulty) Err() error {
	if c.asked++; c.asked == 5 && happens[c.fault] != nil {
		happens[c.fault]()
	}
	return nil
}

// happens are the faults.
var happens = map[string]func(){"hangs": func() { select {} }}

// Ranks whose gradients come in different orders agree on one, and know how many of its first ones are there.
func TestArrivalsAlign(t *testing.T) {
	a := &arrivals{order: []int{2, 0, 1, 3}}
	if a.align(); !slices.Equal(a.order, []int{3, 2, 1, 0}) || !slices.Equal(a.first, []int{0, 0, 0, 0, 4}) {
		t.Errorf("the order is %v, and %v are there", a.order, a.first)
	}
	a = &arrivals{order: []int{2, 0, 1}}
	if a.align(); !slices.Equal(a.order, []int{2, 1, 0}) || !slices.Equal(a.first, []int{0, 1, 1, 3}) {
		t.Errorf("the order is %v, and %v are there", a.order, a.first)
	}
}
