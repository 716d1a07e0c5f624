package train

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

const vocab = 7

func newLM(dt tensor.Dtype, lora bool) *nn.LM {
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2, DState: 4}, Vocab: vocab, UntiedHead: true}, nn.WithDtype(dt), nn.WithSeed(3))
	if lora {
		if _, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 2}); err != nil {
			panic(err)
		}
	}
	return lm
}

// documents returns documents that count up in steps of 1 or 2. The prompt says which.
func documents(n int) (docs []Document) {
	for i := range n {
		d := Document{Prompt: 2}
		for k := range 4 + i%9 {
			d.Tokens = append(d.Tokens, (i+k*(1+i%2))%vocab)
		}
		docs = append(docs, d)
	}
	return docs
}

func config() Config {
	return Config{
		Batch: 2, Length: 16, Steps: 12, Data: documents(40), HeldOut: documents(9), Seed: 5, EvalEvery: 5,
		AdamW: AdamWConfig{LearnRate: 0.02, Decay: 0.1, Clip: 1, Schedule: WarmupCosine(3, 12, 0.1)},
	}
}

func newTrainer(t *testing.T, lm *nn.LM, cfg Config) *Trainer {
	t.Helper()
	tr, err := New(lm, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

func weights(lm *nn.LM) [][]float64 { return values(lm.Params()) }

func values(params layer.Params) (all [][]float64) {
	for _, p := range params {
		all = append(all, numbers(p.Value))
		if l := p.LoRA(); l != nil {
			all = append(all, numbers(l.A.Value), numbers(l.B.Value))
		}
	}
	return all
}

// The loss of packed documents is that of separate documents: they do not see each other.
func TestDocumentsApart(t *testing.T) {
	lm := newLM(tensor.Float64, false)
	cfg := config()
	packed := newTrainer(t, lm, cfg)
	got, err := packed.Evaluate(packed.heldOut)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Batch = 1
	alone := newTrainer(t, lm, cfg)
	sum, learned := 0.0, 0.0
	for _, d := range cfg.HeldOut {
		batches, err := Pack([]Document{d}, 1, cfg.Length)
		if err != nil {
			t.Fatal(err)
		}
		loss, err := alone.Evaluate(batches)
		if err != nil {
			t.Fatal(err)
		}
		sum += loss * batches[0].Weight
		learned += batches[0].Weight
	}
	if want := sum / learned; math.Abs(got-want) > 1e-12 {
		t.Errorf("the loss of packed documents is %v, want %v, the loss of separate documents", got, want)
	}
}

func TestTrainerLearns(t *testing.T) {
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		cfg := config()
		cfg.Steps, cfg.AdamW.Schedule = 60, WarmupCosine(5, 60, 0.1)
		reports := 0
		cfg.Report = func(*Curve) { reports++ }
		tr := newTrainer(t, newLM(dt, false), cfg)
		if err := tr.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		c := tr.Curve()
		first, last := c.HeldOut[0], c.HeldOut[len(c.HeldOut)-1]
		if first.Step != 0 || last.Step != 60 || len(c.HeldOut) != 13 || len(c.Training) != 60 || reports != 60 {
			t.Errorf("evaluated from %v to %v, %d and %d points, %d reports", first, last, len(c.HeldOut), len(c.Training), reports)
		}
		if !(last.Loss < 0.5*first.Loss) {
			t.Errorf("%v: the held-out loss goes from %v to %v, want less than half", dt, first.Loss, last.Loss)
		}
	}
}

// The accumulated gradients of several batches are the gradient of one batch that has all of their sequences.
func TestAccumulate(t *testing.T) {
	var want [][]float64
	for _, c := range []struct{ batch, accumulate int }{{6, 1}, {3, 2}, {1, 6}} {
		cfg := config()
		cfg.Batch, cfg.Accumulate, cfg.HeldOut = c.batch, c.accumulate, nil
		lm := newLM(tensor.Float64, false)
		tr := newTrainer(t, lm, cfg)
		if err := tr.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		got := append(weights(lm), nil)
		for _, p := range tr.Curve().Training {
			got[len(got)-1] = append(got[len(got)-1], p.Loss)
		}
		if want == nil {
			want = got
			continue
		}
		for i := range got {
			for j, x := range got[i] {
				if math.Abs(x-want[i][j]) > 1e-9 {
					t.Fatalf("%d batches of %d: number %d of weight %d is %v, want %v", c.accumulate, c.batch, j, i, x, want[i][j])
				}
			}
		}
	}
}

// A run that is stopped several times, by Ctrl-C or a kill, ends with the same weights and the same curve as a run without stops.
func TestResume(t *testing.T) {
	for _, c := range []struct {
		name string
		dt   tensor.Dtype
		lora bool
	}{{"all weights", tensor.Float32, false}, {"LoRA", tensor.Float32, true}, {"float64", tensor.Float64, false}} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config()
			cfg.Accumulate = 2
			whole := newLM(c.dt, c.lora)
			one := newTrainer(t, whole, cfg)
			if err := one.Run(context.Background()); err != nil {
				t.Fatal(err)
			}

			cfg.File, cfg.SaveEvery = filepath.Join(t.TempDir(), "state"), 3
			var lm *nn.LM
			var tr *Trainer
			for _, stop := range []struct {
				after int
				kill  bool
			}{{0, false}, {4, true}, {5, false}, {8, true}, {10, false}, {99, false}} {
				lm = newLM(c.dt, c.lora)
				ctx, cancel := context.WithCancel(context.Background())
				killed := errors.New("killed")
				cfg.Report = func(curve *Curve) {
					if len(curve.Training) == stop.after {
						cancel()
						if stop.kill {
							panic(killed) // like a kill: nothing more is saved
						}
					}
				}
				tr = newTrainer(t, lm, cfg)
				if _, err := tr.Resume(); err != nil {
					t.Fatal(err)
				}
				if stop.after == 0 {
					cancel()
				}
				err := func() (err error) {
					defer func() {
						if recover() != nil {
							err = killed
						}
					}()
					return tr.Run(ctx)
				}()
				cancel()
				if want := map[bool]error{true: killed, false: context.Canceled}[stop.kill]; stop.after < 99 && !errors.Is(err, want) {
					t.Fatalf("stop after %d: error %v, want %v", stop.after, err, want)
				} else if stop.after == 99 && err != nil {
					t.Fatal(err)
				}
			}
			if !reflect.DeepEqual(weights(lm), weights(whole)) {
				t.Error("the weights differ")
			}
			if !reflect.DeepEqual(tr.Curve(), one.Curve()) {
				t.Errorf("the curve is %v, want %v", tr.Curve(), one.Curve())
			}
			if steps, _, err := Saved(cfg.File); steps != cfg.Steps || err != nil {
				t.Errorf("saved after %d steps, %v, want %d", steps, err, cfg.Steps)
			}
		})
	}
}

// A saved file that is cut off, or that has other settings or another model, is an error that names the file or the difference.
func TestResumeErrors(t *testing.T) {
	cfg := config()
	cfg.File, cfg.Steps, cfg.Settings = filepath.Join(t.TempDir(), "state"), 1, map[string]string{"-lr": "0.1"}
	tr := newTrainer(t, newLM(tensor.Float32, false), cfg)
	if err := tr.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(cfg.File)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Resume(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 5, 8, 100, len(good) - 1} {
		if err := os.WriteFile(cfg.File, good[:n], 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := tr.Resume(); err == nil || !strings.Contains(err.Error(), cfg.File) {
			t.Errorf("cut after %d bytes: error %v, want one with the file's name", n, err)
		}
	}
	if err := os.WriteFile(cfg.File, good, 0o666); err != nil {
		t.Fatal(err)
	}
	cfg.Settings = map[string]string{"-lr": "0.2"}
	other := newTrainer(t, newLM(tensor.Float32, false), cfg)
	if _, err := other.Resume(); err == nil || !strings.Contains(err.Error(), `was saved with -lr "0.1", want the same to go on, not "0.2"`) {
		t.Errorf("error %v, want one about -lr", err)
	}
	cfg.Settings = map[string]string{"-lr": "0.1"}
	for name, lm := range map[string]*nn.LM{
		"F32": newLM(tensor.Float64, false),
		"missing: backbone.layers.0.mixer.in_proj.lora_A.weight": newLM(tensor.Float32, true),
	} {
		before := weights(lm)
		other := newTrainer(t, lm, cfg)
		if _, err := other.Resume(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want one about %s", err, name)
		}
		if !reflect.DeepEqual(weights(lm), before) {
			t.Errorf("%s: the error has changed the weights", name)
		}
	}
	cfg.File = filepath.Join(t.TempDir(), "none")
	if resumed, err := newTrainer(t, newLM(tensor.Float32, false), cfg).Resume(); resumed || err != nil {
		t.Errorf("resumed %t, %v without a file", resumed, err)
	}
	if _, _, err := Saved(cfg.File); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want one that says that there is no file", err)
	}
}

func TestTrainerErrors(t *testing.T) {
	frozen := newLM(tensor.Float32, false)
	frozen.Params().Freeze()
	lm := newLM(tensor.Float32, false)
	for _, test := range []struct {
		lm     *nn.LM
		change func(*Config)
		want   string
	}{
		{nn.NewLM(nn.LMConfig{}), func(*Config) {}, "DModel is 0"},
		{frozen, func(*Config) {}, "train: all of the model's weights are frozen"},
		{lm, func(c *Config) { c.Batch = 0 }, "train: Batch is 0, want at least 1"},
		{lm, func(c *Config) { c.Length = 0 }, "train: Length is 0"},
		{lm, func(c *Config) { c.Steps = -1 }, "train: Steps is -1"},
		{lm, func(c *Config) { c.Accumulate = -1 }, "train: Accumulate is -1"},
		{lm, func(c *Config) { c.SaveEvery = -1 }, "train: SaveEvery is -1"},
		{lm, func(c *Config) { c.Data = nil }, "none of 0 documents has a token to learn (Config.Data)"},
		{lm, func(c *Config) { c.HeldOut = []Document{{}} }, "none of 1 documents has a token to learn (Config.HeldOut)"},
		{lm, func(c *Config) { c.Data = []Document{{Tokens: []int{1, 7}}} }, "token 1 of document 0 of Data is 7, want 0 to 6"},
		{lm, func(c *Config) { c.HeldOut = []Document{{Tokens: []int{-1}}} }, "token 0 of document 0 of HeldOut is -1"},
		{lm, func(c *Config) { c.AdamW.LearnRate = 0 }, "LearnRate is 0"},
	} {
		cfg := config()
		test.change(&cfg)
		if _, err := New(test.lm, cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
	}
	for range 200 { // two wrong fields: the same error every time
		cfg := config()
		cfg.Data, cfg.HeldOut = []Document{{Tokens: []int{7, 1}}}, []Document{{Tokens: []int{7, 1}}}
		if _, err := New(lm, cfg); err == nil || !strings.Contains(err.Error(), "of Data is 7") {
			t.Fatalf("error %v, want one that names Data", err)
		}
	}
	cfg := config()
	cfg.AdamW = AdamWConfig{LearnRate: 1e30}
	err := newTrainer(t, newLM(tensor.Float32, false), cfg).Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), "at step") {
		t.Errorf("error %v, want one that names the step", err)
	}
}

// A loss that is not a number ends a run: that of a step before the weights change, and that of the text held out before it is saved.
func TestLossIsNotANumber(t *testing.T) {
	for _, heldOut := range []bool{false, true} {
		lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4, DState: 2}, Vocab: vocab, UntiedHead: true})
		embedding := lm.Params().ByName("backbone.embeddings.weight").Value.Data().([]float32)
		embedding[4*5] = float32(math.NaN()) // of token 5
		cfg := Config{Batch: 1, Length: 4, Steps: 2, Data: []Document{{Tokens: []int{1, 2, 3}}}, AdamW: AdamWConfig{LearnRate: 0.02},
			File: filepath.Join(t.TempDir(), "state")}
		if heldOut {
			cfg.HeldOut = []Document{{Tokens: []int{5, 5}}}
		} else {
			cfg.Data[0].Tokens[0] = 5
		}
		before := weights(lm)
		tr := newTrainer(t, lm, cfg)
		err := tr.Run(t.Context())
		if want := "train: the loss is NaN at step 1: the learn rate of 0.02"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("held out %t: error %v, want %q", heldOut, err, want)
		}
		if tr.Done() != 0 || fmt.Sprint(weights(lm)) != fmt.Sprint(before) {
			t.Errorf("held out %t: %d steps, or other weights", heldOut, tr.Done())
		}
		if _, _, err := Saved(cfg.File); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("held out %t: the run was saved: %v", heldOut, err)
		}
	}
}
