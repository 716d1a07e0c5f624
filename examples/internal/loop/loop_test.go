package loop

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/task"
	"github.com/gomamba/mamba/train"
)

// counting returns a source of batches that have their own number as the only token, and the number of streams that it has opened.
func counting() (train.Source, *int) {
	opened := new(int)
	return Source(1, func() (func() (task.Batch, error), error) {
		*opened++
		i := 0
		return func() (task.Batch, error) {
			i++
			return task.Batch{IDs: []int{i - 1}, Targets: []int{0}}, nil
		}, nil
	}), opened
}

// A source goes to any batch, and opens its stream again only to go back.
func TestSource(t *testing.T) {
	s, opened := counting()
	for _, c := range []struct{ at, opened int }{{0, 1}, {1, 1}, {5, 1}, {5, 2}, {6, 2}, {0, 3}, {2, 3}} {
		if err := s.Go(train.Position{Row: c.at}); err != nil {
			t.Fatal(err)
		}
		b, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		if ids := b.Values["ids"].Data().([]int); !reflect.DeepEqual(ids, []int{c.at}) || *opened != c.opened {
			t.Errorf("batch %d is %v, with %d streams, want %d", c.at, ids, *opened, c.opened)
		}
	}
	errStream := errors.New("no text")
	failing := Source(1, func() (func() (task.Batch, error), error) { return nil, errStream })
	if _, err := failing.Next(); !errors.Is(err, errStream) {
		t.Errorf("error %v, want that of the stream", err)
	}
}

func TestTrain(t *testing.T) {
	try := func(ctx context.Context, steps int, rate float64, report func(*train.Trainer, bool) (bool, error)) error {
		lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4, DState: 2}, Vocab: 8})
		source, _ := counting()
		return Train(ctx, train.Problem{Params: lm.Params(), Loss: train.LMLoss(lm), Data: source},
			train.RunConfig{Steps: steps, AdamW: train.AdamWConfig{LearnRate: rate}}, report)
	}
	errReport := errors.New("no report")
	for _, c := range []struct {
		name          string
		ended         bool // the context, before the first step
		enough, fails int  // the step after which report says so
		rate          float64
		steps         int // made
		last          bool
		want          string
	}{
		{"all", false, 0, 0, 0.01, 5, true, ""},
		{"ended", true, 0, 0, 0.01, 1, true, ""},
		{"enough", false, 3, 0, 0.01, 3, false, ""},
		{"error", false, 0, 2, 0.01, 2, false, "no report"},
		{"diverged", false, 0, 0, 1e30, 1, false, "at step 2: -lr is 1e+30, should be lower"},
		{"wrong", false, 0, 0, -1, 0, false, "LearnRate is -1"},
	} {
		ctx, stop := context.WithCancel(t.Context())
		if c.ended {
			stop()
		}
		steps, last := 0, false
		err := try(ctx, 5, c.rate, func(t *train.Trainer, l bool) (bool, error) {
			if steps, last = t.Done(), l; steps == c.fails {
				return false, errReport
			}
			return steps == c.enough, nil
		})
		stop()
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) || steps != c.steps || last != c.last {
			t.Errorf("%s: %d steps, last %t, error %v, want %d, %t and %q", c.name, steps, last, err, c.steps, c.last, c.want)
		}
	}
}
