package experiment

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/task"
)

// easy is a task that a small model learns in few steps: two tokens at fixed positions.
func easy() Config {
	copying, err := task.NewCopying(4, 2, 4)
	if err != nil {
		panic(err)
	}
	return Config{
		Model: nn.Config{DModel: 16, NLayer: 1, Pattern: []nn.Kind{nn.Mamba}},
		Task:  copying, Batch: 8, Steps: 200, LearnRate: 1e-2, Clip: 1, Seed: 1, EvalEvery: 10, Held: 32,
	}
}

// trained trains a model until it has no wrong token, once for all tests. It returns the model and the run's output, or nil and an error text.
var trained = sync.OnceValues(func() (*nn.LM, string) {
	cfg := easy()
	var out bytes.Buffer
	cfg.Progress = &report.Progress{Out: &out, Rate: func(float64) string { return "" }}
	lm, points, err := Train(context.Background(), cfg)
	if err != nil {
		return nil, err.Error()
	}
	if last := points[len(points)-1]; last.Step != cfg.Steps || last.RightTokens != last.Tokens {
		return nil, fmt.Sprintf("%d tokens are right of %d at step %d:\n%s", last.RightTokens, last.Tokens, last.Step, &out)
	}
	return lm, out.String()
})

func TestTrainLearns(t *testing.T) {
	lm, out := trained()
	if lm == nil {
		t.Fatal(out)
	}
	var losses []float64
	for _, m := range regexp.MustCompile(`loss (\d+\.\d+)  right \d+\.\d% `).FindAllStringSubmatch(out, -1) {
		loss, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		losses = append(losses, loss)
	}
	if n := len(losses); n != 20 || losses[n-1] > losses[0]/10 {
		t.Errorf("the losses are %v, want 20 and the last far below the first:\n%s", losses, out)
	}
}

func TestTrainSameSeed(t *testing.T) {
	run := func(seed uint64) ([]Point, [][]float32) {
		cfg := easy()
		cfg.Steps, cfg.EvalEvery, cfg.Seed = 7, 3, seed
		lm, points, err := Train(context.Background(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		var weights [][]float32
		for _, p := range lm.Params() {
			weights = append(weights, p.Value.Data().([]float32))
		}
		return points, weights
	}
	points, weights := run(1)
	var steps []int
	for _, p := range points {
		steps = append(steps, p.Step)
		if p.Sequences != 32 || p.Tokens != 64 {
			t.Errorf("step %d: %d tokens of %d sequences, want 64 of 32", p.Step, p.Tokens, p.Sequences)
		}
	}
	if want := []int{3, 6, 7}; !reflect.DeepEqual(steps, want) {
		t.Errorf("evaluations at %v, want %v", steps, want)
	}
	points2, weights2 := run(1)
	if !reflect.DeepEqual(points, points2) || !reflect.DeepEqual(weights, weights2) {
		t.Error("the same seed gave another model")
	}
	if _, other := run(2); reflect.DeepEqual(weights, other) {
		t.Error("another seed gave the same model")
	}
}

func TestTrainEnough(t *testing.T) {
	cfg := easy()
	cfg.Enough, cfg.Constant = 3, true
	_, points, err := Train(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	perfect := 0
	for i, p := range points {
		if perfect++; p.RightTokens < p.Tokens {
			perfect = 0
		}
		if end := perfect == cfg.Enough; end != (i == len(points)-1) {
			t.Fatalf("%d evaluations without a wrong token at number %d of %d, should end at %d", perfect, i+1, len(points), cfg.Enough)
		}
	}
	if last := points[len(points)-1].Step; last >= cfg.Steps {
		t.Errorf("ended at step %d of %d", last, cfg.Steps)
	}
}

// The model From is trained further, and not from initial weights.
func TestTrainFrom(t *testing.T) {
	cfg := easy()
	lm, before, err := Train(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Model, cfg.From, cfg.Steps, cfg.LearnRate, cfg.Seed = nn.Config{}, lm, 1, 1e-6, 5
	again, after, err := Train(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if again != lm || len(after) != 1 || after[0].Accuracy != before[len(before)-1].Accuracy {
		t.Errorf("%v after %v", after, before[len(before)-1])
	}
}

func TestTrainInterrupted(t *testing.T) {
	for _, updates := range []int{0, 3} {
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		if updates == 0 {
			stop()
		}
		cfg, left := easy(), updates
		cfg.Progress = &report.Progress{Out: new(bytes.Buffer), Rate: func(float64) string {
			if left--; left == 0 {
				stop()
			}
			return ""
		}}
		lm, points, err := Train(ctx, cfg)
		if err != nil || lm == nil {
			t.Fatal(err)
		}
		if len(points) != 1 || points[0].Step != updates+1 || points[0].Sequences != cfg.Held {
			t.Errorf("stopped after step %d: %+v, want one evaluation, of the step after", updates, points)
		}
	}
}

func TestTrainErrors(t *testing.T) {
	for _, test := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.LearnRate, c.Clip = 1e30, 0 }, "-lr is 1e+30, should be lower"},
		{func(c *Config) { c.Model.DModel = -1 }, "DModel"},
		{func(c *Config) { c.Model.Pattern = []nn.Kind{"gru"} }, "gru"},
		{func(c *Config) { c.LearnRate = -1 }, "-1"},
	} {
		cfg := easy()
		test.change(&cfg)
		lm, _, err := Train(context.Background(), cfg)
		if lm != nil || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("a model: %t; %v, want an error with %q", lm != nil, err, test.want)
		}
	}
}

// spoilt is a task with some wrong targets. wrong reports whether a target is wrong, by its index among the targets that are not ignored.
type spoilt struct {
	task.Task
	wrong func(asked int) bool
}

func (s spoilt) Fill(r *rand.Rand, ids, targets []int) {
	s.Task.Fill(r, ids, targets)
	asked := 0
	for i, want := range targets {
		if want == nn.Ignore {
			continue
		}
		if s.wrong(asked) {
			targets[i] = (want + 1) % s.Vocab()
		}
		asked++
	}
}

// A model without wrong tokens is scored wrong at exactly the wrong targets.
func TestScorer(t *testing.T) {
	lm, problem := trained()
	if lm == nil {
		t.Fatal(problem)
	}
	copying := easy().Task
	s, err := NewScorer(lm, 4, copying.Length())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, test := range []struct {
		name  string
		wrong func(int) bool
		want  task.Accuracy
	}{
		{"right", func(int) bool { return false }, task.Accuracy{Tokens: 16, RightTokens: 16, Sequences: 8, RightSequences: 8}},
		{"half wrong", func(asked int) bool { return asked == 0 }, task.Accuracy{Tokens: 16, RightTokens: 8, Sequences: 8}},
		{"wrong", func(int) bool { return true }, task.Accuracy{Tokens: 16, Sequences: 8}},
	} {
		// 5 sequences are rounded up to 8, two batches of 4.
		if got, err := s.Score(spoilt{copying, test.wrong}, 5); err != nil || got != test.want {
			t.Errorf("%s: %+v, %v, want %+v", test.name, got, err, test.want)
		}
	}
}
