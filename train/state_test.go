package train

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// tinyConfig returns a run with a small state; tinyLM returns its model.
func tinyConfig(t *testing.T) Config {
	return Config{Batch: 1, Length: 4, Steps: 3, Data: documents(3), HeldOut: documents(2), AdamW: AdamWConfig{LearnRate: 0.02},
		File: filepath.Join(t.TempDir(), "state")}
}

func tinyLM() *nn.LM {
	return nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 1, DState: 1, DConv: 1, Expand: 1}, Vocab: vocab})
}

// tinyState trains a few steps, and returns the trainer and its saved file.
func tinyState(t *testing.T) (*Trainer, []byte) {
	t.Helper()
	tr := newTrainer(t, tinyLM(), tinyConfig(t))
	if err := tr.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	return tr, must(os.ReadFile(tr.cfg.File))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
}

// A state with one flipped bit, in any byte, is refused, and the trainer does not change.
func TestStateDamaged(t *testing.T) {
	tr, good := tinyState(t)
	before, at, curve := values(tr.all), tr.source.Position(), tr.curve
	f, err := os.OpenFile(tr.cfg.File, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	set := func(i int, b byte) {
		if _, err := f.WriteAt([]byte{b}, int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, b := range good {
		if testing.Short() && i%5 > 0 {
			continue
		}
		set(i, b^1<<(i%8))
		if _, _, err := Saved(tr.cfg.File); err == nil || !strings.Contains(err.Error(), tr.cfg.File) {
			t.Fatalf("bit %d of byte %d is turned: error %v, want one with the file's name", i%8, i, err)
		}
		if i%50 == 0 {
			if resumed, err := tr.Resume(); resumed || err == nil {
				t.Fatalf("bit %d of byte %d is turned: resumed %t, %v", i%8, i, resumed, err)
			}
		}
		set(i, b)
	}
	for n := range good {
		if n%97 == 0 {
			put(t, tr.cfg.File, good[:n])
			if _, _, err := Saved(tr.cfg.File); err == nil {
				t.Fatalf("%d of %d bytes are no error", n, len(good))
			}
		}
	}
	if !reflect.DeepEqual(values(tr.all), before) || tr.source.Position() != at || !reflect.DeepEqual(tr.curve, curve) {
		t.Error("a damaged state has changed the trainer")
	}
	put(t, tr.cfg.File, good)
	if resumed, err := tr.Resume(); !resumed || err != nil {
		t.Errorf("the state as it was: resumed %t, %v", resumed, err)
	}
}

// A state with a right checksum is refused if a Trainer could not have written its contents.
func TestStateContents(t *testing.T) {
	tr, good := tinyState(t)
	file := must(tensorfile.Read(tensorfile.Memory(good), int64(len(good))))
	note := file.Metadata["state"]
	change := func(old, replacement string) map[string]string {
		if strings.Count(note, old) != 1 {
			t.Fatalf("%s is %d times in %s", old, strings.Count(note, old), note)
		}
		return map[string]string{"format": stateFormat, "state": strings.Replace(note, old, replacement, 1)}
	}
	var arrays []tensorfile.Array
	for _, f := range file.Tensors {
		a := tensorfile.Array{Name: f.Name, Shape: f.Shape}
		switch f.Dtype {
		case tensorfile.Int64:
			a.Data = make([]int64, f.Size/8)
		case tensorfile.Float64:
			a.Data = make([]float64, f.Size/8)
		default:
			a.Data = make([]float32, f.Size/4)
		}
		if err := tensorfile.Copy([]tensorfile.Job{{From: f, To: a.Data}}); err != nil {
			t.Fatal(err)
		}
		arrays = append(arrays, a)
	}
	same := change(`"steps":3`, `"steps":3`)
	without := func(names ...string) []tensorfile.Array {
		return slices.DeleteFunc(slices.Clone(arrays), func(a tensorfile.Array) bool { return slices.Contains(names, a.Name) })
	}
	with := func(name string, data any, n int) []tensorfile.Array {
		return append(without(name), tensorfile.Array{Name: name, Shape: []int{n}, Data: data})
	}
	weight := "backbone.norm_f.weight"
	for _, c := range []struct {
		name     string
		metadata map[string]string
		arrays   []tensorfile.Array
		want     string // "" if the state is unchanged
	}{
		{"the same", same, arrays, ""},
		{"steps missing", change(`"steps":3,`, ``), arrays, "steps is missing"},
		{"position missing", change(`"position":{"epoch":0,"row":3},`, ``), arrays, "position is missing"},
		{"settings missing", change(`"settings":null,`, ``), arrays, "settings is missing"},
		{"row missing", change(`"epoch":0,"row":3`, `"epoch":0`), arrays, "not as a Trainer writes it"},
		{"a field that nobody knows", change(`"steps":3`, `"more":1,"steps":3`), arrays, `unknown field "more"`},
		{"a field within", change(`"row":3`, `"row":3,"column":1`), arrays, `unknown field "column"`},
		{"steps twice", change(`"steps":3`, `"steps":3,"steps":3`), arrays, "not as a Trainer writes it"},
		{"steps in capitals", change(`"steps":3`, `"Steps":3`), arrays, "steps is missing"},
		{"something behind", map[string]string{"format": stateFormat, "state": note + "{}"}, arrays, "after top-level value"},
		{"no note", map[string]string{"format": stateFormat}, arrays, "its note"},
		{"batches -5", change(`"batches":3`, `"batches":-5`), arrays, "batches is -5, want at least 0"},
		{"steps -5", change(`"steps":3`, `"steps":-5`), arrays, "steps is -5, want at least 0"},
		{"steps 4", change(`"steps":3`, `"steps":4`), arrays, "its curve has 3 steps, want 4"},
		{"a step too many", change(`"steps":3`, `"steps":4`), append(without("curve:training.steps", "curve:training.loss"),
			tensorfile.Array{Name: "curve:training.steps", Shape: []int{4}, Data: []int64{1, 2, 3, 4}},
			tensorfile.Array{Name: "curve:training.loss", Shape: []int{4}, Data: make([]float64, 4)}), "saved after step 4, want at most 3"},
		{"steps 1.5", change(`"steps":3`, `"steps":1.5`), arrays, "1.5"},
		{"row -1", change(`"row":3`, `"row":-1`), arrays, "row is -1, want 0"},
		{"row 9999", change(`"row":3`, `"row":9999`), arrays, "row is 9999, want 0"},
		{"another format", map[string]string{"format": "gomamba training state 1", "state": note}, arrays, `its format is "gomamba training state 1"`},
		{"a weight missing", same, without(weight), "missing: " + weight},
		{"a weight of another size", same, with(weight, make([]float32, 2), 2), weight + " is (2), want (1)"},
		{"a weight of another type", same, with(weight, make([]float64, 1), 1), weight + " is of F64, want F32"},
		{"a weight too many", same, with("more", make([]float32, 1), 1), "superfluous: more"},
		{"no curve", same, without("curve:training.steps"), "not two vectors"},
		{"half a curve", same, with("curve:heldout.loss", make([]float64, 1), 1), "not two vectors"},
		{"a curve that goes back", same, with("curve:training.steps", []int64{1, 3, 2}, 3), "curve:training.steps[2] is 2"},
		{"a curve that goes on", same, with("curve:heldout.steps", []int64{0, 4}, 2), "curve:heldout.steps[1] is 4"},
		{"a curve of other numbers", same, with("curve:training.steps", []float64{1, 2, 3}, 3), "is of F64, want I64"},
	} {
		var out bytes.Buffer
		if err := tensorfile.WriteSealed(&out, c.metadata, c.arrays); err != nil {
			t.Fatal(err)
		}
		put(t, tr.cfg.File, out.Bytes())
		before, at := values(tr.all), tr.source.Position()
		resumed, err := tr.Resume()
		if c.want == "" && err != nil || c.want != "" && (resumed || err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: resumed %t, error %v, want %q", c.name, resumed, err, c.want)
		}
		if !reflect.DeepEqual(values(tr.all), before) || tr.source.Position() != at {
			t.Errorf("%s: the trainer has changed", c.name)
		}
	}
	var old bytes.Buffer // as earlier versions wrote it
	if err := tensorfile.Write(&old, map[string]string{"mamba": `{"steps":3}`}, arrays); err != nil {
		t.Fatal(err)
	}
	put(t, tr.cfg.File, old.Bytes())
	for _, err := range []error{second(tr.Resume()), third(Saved(tr.cfg.File))} {
		if err == nil || !strings.Contains(err.Error(), "it has no checksum: it was written before checksums existed") {
			t.Errorf("a state of an earlier version: error %v", err)
		}
	}
}

func second[A any](_ A, err error) error        { return err }
func third[A, B any](_ A, _ B, err error) error { return err }

// A run is resumed only if everything that it depends on is unchanged. The error names what differs, and the trainer does not change.
func TestResumeNamesWhatDiffers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	lm := func(change func(*nn.LMConfig)) *nn.LM {
		c := nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2, DState: 4}, Vocab: vocab}
		change(&c)
		m := nn.NewLM(c, nn.WithSeed(3))
		m.Params()[1].Frozen = true
		return m
	}
	same := func(*nn.LMConfig) {}
	base := config()
	base.File, base.Steps = file, 2
	if err := newTrainer(t, lm(same), base).Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	otherModel := func(change func(layer.Params)) *nn.LM {
		m := lm(same)
		change(m.Params())
		return m
	}
	edit := func(docs []Document, change func(d *Document)) []Document {
		docs = slices.Clone(docs)
		docs[3].Tokens = slices.Clone(docs[3].Tokens)
		change(&docs[3])
		return docs
	}
	for _, c := range []struct {
		name   string
		lm     *nn.LM
		change func(*Config)
		want   string
	}{
		{"Seed", lm(same), func(c *Config) { c.Seed = 6 }, `Seed was "5" and is "6"`},
		{"Batch", lm(same), func(c *Config) { c.Batch = 3 }, `Batch was "2" and is "3"`},
		{"Length", lm(same), func(c *Config) { c.Length = 17 }, `Length was "16" and is "17"`},
		{"Steps", lm(same), func(c *Config) { c.Steps = 3 }, `Steps was "2" and is "3"`},
		{"Accumulate", lm(same), func(c *Config) { c.Accumulate = 2 }, `Accumulate was "1" and is "2"`},
		{"LearnRate", lm(same), func(c *Config) { c.AdamW.LearnRate = math.Nextafter(0.02, 1) }, `AdamW.LearnRate was "0.02" and is "0.020000000000000004"`},
		{"Beta1", lm(same), func(c *Config) { c.AdamW.Beta1 = 0.8 }, `AdamW.Beta1 was "0.9" and is "0.8"`},
		{"Beta2", lm(same), func(c *Config) { c.AdamW.Beta2 = 0.99 }, `AdamW.Beta2 was "0.999" and is "0.99"`},
		{"Eps", lm(same), func(c *Config) { c.AdamW.Eps = 1e-7 }, `AdamW.Eps was "1e-08" and is "1e-07"`},
		{"Decay", lm(same), func(c *Config) { c.AdamW.Decay = 0 }, `AdamW.Decay was "0.1" and is "0"`},
		{"Clip", lm(same), func(c *Config) { c.AdamW.Clip = 2 }, `AdamW.Clip was "1" and is "2"`},
		{"Schedule", lm(same), func(c *Config) { c.AdamW.Schedule = WarmupCosine(1, 12, 0.1) }, "AdamW.Schedule was"},
		{"one token of Data", lm(same), func(c *Config) {
			c.Data = edit(c.Data, func(d *Document) { d.Tokens[2] = (d.Tokens[2] + 1) % vocab })
		}, `Data was "40 documents of`},
		{"a prompt of Data", lm(same), func(c *Config) { c.Data = edit(c.Data, func(d *Document) { d.Prompt = 1 }) }, `Data was "40 documents of`},
		{"less Data", lm(same), func(c *Config) { c.Data = c.Data[:39] }, `and is "39 documents of`},
		{"the order of Data", lm(same), func(c *Config) { c.Data = append(slices.Clone(c.Data[1:]), c.Data[0]) }, "Data was"},
		{"HeldOut", lm(same), func(c *Config) { c.HeldOut = c.HeldOut[:5] }, `HeldOut was "9 documents of`},
		{"no HeldOut", lm(same), func(c *Config) { c.HeldOut = nil }, `and is "0 documents of 0 tokens`},
		{"Settings", lm(same), func(c *Config) { c.Settings = map[string]string{"-x": "1"} }, `it was saved with -x "", want the same to go on, not "1"`},
		{"NormEps", lm(func(c *nn.LMConfig) { c.NormEps = 1e-6 }), func(*Config) {}, `model.NormEps was "1e-05" and is "1e-06"`},
		{"DModel", lm(func(c *nn.LMConfig) { c.DModel = 4 }), func(*Config) {}, `model.DModel was "8" and is "4"`},
		{"a value of a frozen weight", otherModel(func(p layer.Params) { p[1].Value.Data().([]float32)[0]++ }), func(*Config) {}, "frozen weights was"},
		{"what is frozen", otherModel(func(p layer.Params) { p[2].Frozen = true }), func(*Config) {}, "frozen weights was"},
		{"what decays", otherModel(func(p layer.Params) { p[0].Decay = !p[0].Decay }), func(*Config) {}, "trained weights was"},
		{"a name", nn.NewLM(lm(same).Config(), nn.WithName("other")), func(*Config) {}, "trained weights was"},
		{"LoRA", otherModel(func(p layer.Params) {
			if _, err := p.AddLoRA(layer.LoRAConfig{Rank: 1}); err != nil {
				t.Fatal(err)
			}
		}), func(*Config) {}, "trained weights was"},
	} {
		cfg := base
		c.change(&cfg)
		before := weights(c.lm)
		tr := newTrainer(t, c.lm, cfg)
		resumed, err := tr.Resume()
		if resumed || err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: resumed %t, error %v, want %q", c.name, resumed, err, c.want)
		}
		if !reflect.DeepEqual(weights(c.lm), before) || tr.Done() != 0 || tr.source.Position() != (Position{}) {
			t.Errorf("%s: the error has changed the trainer", c.name)
		}
	}
	// Fields that do not change the computation may differ.
	cfg := base
	cfg.EvalEvery, cfg.SaveEvery, cfg.Report, cfg.AdamW.Beta1 = 1, 1, func(*Curve) {}, 0.9
	if resumed, err := newTrainer(t, lm(same), cfg).Resume(); !resumed || err != nil {
		t.Errorf("EvalEvery, SaveEvery and a default written out: resumed %t, %v", resumed, err)
	}
}

// The scale of LoRA, which is not a tensor, is compared as well.
func TestResumeOtherAlpha(t *testing.T) {
	cfg := tinyConfig(t)
	for i, alpha := range []float64{1, 2} {
		lm := tinyLM()
		if _, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 1, Alpha: alpha}); err != nil {
			t.Fatal(err)
		}
		tr := newTrainer(t, lm, cfg)
		if _, err := tr.Resume(); i == 1 && (err == nil || !strings.Contains(err.Error(), "trained weights was")) {
			t.Errorf("error %v, want one about the trained weights", err)
		}
		if i == 0 {
			if err := tr.Run(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

var errDisk = errors.New("the disk fails")

// onFailingDisk calls do once for each operation on the disk that do makes, with this operation failing, and once without failures.
func onFailingDisk(t *testing.T, do func() error) {
	t.Helper()
	for k := 0; ; k++ {
		n, failing := 0, ""
		restore := tensorfile.Intercept(func(op, name string) error {
			if n++; n-1 == k {
				failing = op + " " + filepath.Base(name)
				return errDisk
			}
			return nil
		})
		err := func() error {
			defer restore()
			return do()
		}()
		if failing == "" {
			if err != nil || k < 4 {
				t.Errorf("%d operations, error %v", k, err)
			}
			return
		}
		if !errors.Is(err, errDisk) {
			t.Errorf("%s fails: error %v, want the error of this operation", failing, err)
		}
	}
}

// If any operation of the disk fails while a run is saved, the file is the old one or the new one.
func TestSaveOnAFailingDisk(t *testing.T) {
	tr, old := tinyState(t)
	tr.solver.SetSteps(1)
	tr.curve = Curve{Training: tr.curve.Training[:1]}
	if err := tr.Save(); err != nil {
		t.Fatal(err)
	}
	fresh := must(os.ReadFile(tr.cfg.File))
	if bytes.Equal(old, fresh) {
		t.Fatal("the two states are equal")
	}
	onFailingDisk(t, func() error {
		put(t, tr.cfg.File, old)
		err := tr.Save()
		now := must(os.ReadFile(tr.cfg.File))
		if !bytes.Equal(now, fresh) && (err == nil || !bytes.Equal(now, old)) {
			t.Errorf("after error %v the file is neither the old one nor the new one", err)
		}
		return err
	})
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	if entries := must(os.ReadDir(filepath.Dir(tr.cfg.File))); len(entries) != 1 {
		t.Errorf("after Close the folder holds %v, want the state alone", entries)
	}
}

// A run stops with the error of a save that fails: one between steps, one because the context has ended, and the last one.
func TestRunOnAFailingDisk(t *testing.T) {
	for _, failing := range []int{1, 2, 3} { // the step after which the disk fails
		cfg := tinyConfig(t)
		cfg.SaveEvery = 1
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		cfg.Report = func(c *Curve) {
			if failing == 2 && len(c.Training) == 1 {
				stop()
			}
		}
		tr := newTrainer(t, tinyLM(), cfg)
		saves := 0
		restore := tensorfile.Intercept(func(op, name string) error {
			if op == "create" {
				if saves++; saves == failing {
					return errDisk
				}
			}
			return nil
		})
		err := tr.Run(ctx)
		restore()
		want := []int{1, 1, 3}[failing-1]
		if !errors.Is(err, errDisk) || tr.Done() != want || failing == 2 && !errors.Is(err, context.Canceled) {
			t.Errorf("save %d fails: %d steps, error %v, want %d steps and %v", failing, tr.Done(), err, want, errDisk)
		}
	}
}

// If any operation fails while a run is resumed, the weights do not change, or the trainer refuses to use a mixture.
func TestResumeOnAFailingDisk(t *testing.T) {
	_, good := tinyState(t)
	broken := 0
	onFailingDisk(t, func() error {
		cfg := tinyConfig(t)
		put(t, cfg.File, good)
		lm := tinyLM()
		before := weights(lm)
		tr := newTrainer(t, lm, cfg)
		resumed, err := tr.Resume()
		if resumed != (err == nil) {
			t.Errorf("resumed %t, error %v", resumed, err)
		}
		if err == nil || reflect.DeepEqual(weights(lm), before) && tr.Done() == 0 {
			return err
		}
		broken++
		for name, after := range map[string]error{"Run": tr.Run(context.Background()), "Save": tr.Save(), "Evaluate": second(tr.Evaluate(tr.heldOut)), "Resume": second(tr.Resume())} {
			if after == nil || !strings.Contains(after.Error(), "incomplete after a failed Resume") {
				t.Errorf("%s with incomplete weights: error %v", name, after)
			}
		}
		if !bytes.Equal(must(os.ReadFile(cfg.File)), good) {
			t.Error("the file has changed")
		}
		return err
	})
	if broken == 0 {
		t.Error("no failure came after the first weight was read, so the test has not covered this case")
	}
}

// A second process that uses a state file gets an error that names the first, also before anything is saved.
func TestTwoTrainersOfOneFile(t *testing.T) {
	if file := os.Getenv(asTrainer); file != "" { // this is the second process
		cfg := tinyConfig(t)
		cfg.File = file
		tr := newTrainer(t, tinyLM(), cfg)
		_, resume := tr.Resume()
		fmt.Printf("resume: %v\nrun: %v\nsave: %v\n", resume, tr.Run(context.Background()), tr.Save())
		fmt.Printf("steps: %d of %d\n", tr.Done(), cfg.Steps)
		_ = os.Stdout.Sync()
		os.Exit(0)
	}
	cfg := tinyConfig(t)
	tr := newTrainer(t, tinyLM(), cfg)
	if _, err := tr.Resume(); err != nil {
		t.Fatal(err)
	}
	other := func() string {
		cmd := exec.Command(must(os.Executable()), "-test.run=^TestTwoTrainersOfOneFile$")
		cmd.Env = append(os.Environ(), asTrainer+"="+cfg.File)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	said := other()
	for _, what := range []string{"resume: train: ", "run: train: ", "save: train: "} {
		line := lineOf(said, what)
		if !strings.Contains(line, cfg.File+": another process is writing it") || !strings.HasSuffix(line, fmt.Sprint("process ", os.Getpid())) {
			t.Errorf("the other process says %q, want the file and process %d", line, os.Getpid())
		}
	}
	if line := lineOf(said, "steps: "); line != "steps: 0 of 3" {
		t.Errorf("the other process says %q, want no step: Run finds the lock before it trains", line)
	}
	if _, err := os.Stat(cfg.File); err == nil {
		t.Error("the other process has saved its state")
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if said := other(); lineOf(said, "run: ") != "run: <nil>" {
		t.Errorf("after Close the other process says %q", said)
	}
}

const asTrainer = "TRAIN_TEST_USES_FILE"

func lineOf(text, start string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, start) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// A run that ends when its context does has any number of steps, and is saved all the same.
func TestSaveOfEndlessRun(t *testing.T) {
	cfg, asked := tinyConfig(t), 0
	cfg.Steps = math.MaxInt
	cfg.AdamW.Schedule = func(step int) float64 {
		if step < 1 {
			t.Fatalf("the schedule is asked for step %d", step)
		}
		asked++
		return 1
	}
	if err := newTrainer(t, tinyLM(), cfg).Save(); err != nil {
		t.Fatal(err)
	}
	if asked > 1<<17 {
		t.Errorf("the schedule was asked for %d steps, want at most %d", asked, 1<<17)
	}
}
