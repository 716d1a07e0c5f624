package loop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/dist/disttest"
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

// broken is an engine of the last of two ranks, the other of which does the same. Its Close fails, and from call number fails on its Move too.
type broken struct{ calls, fails int }

func (*broken) Rank() int                                    { return 1 }
func (*broken) Size() int                                    { return 2 }
func (*broken) Watch(time.Duration, func() (uint64, string)) {}
func (*broken) Close() error                                 { return errors.New("no way out") }

func (e *broken) Move(_ dist.Tag, messages []dist.Message) error {
	if e.calls++; e.fails > 0 && e.calls >= e.fails {
		return errors.New("the network is down")
	}
	if len(messages) == 2 {
		copy(messages[0].Bytes, messages[1].Bytes)
	}
	return nil
}

// Only what is nothing but the end of a context is a success, and only what Run returns then is saved. A rank above 0 prints what rank 0 has not heard.
func TestExit(t *testing.T) {
	stop, errSave := saved{fmt.Errorf("train: rank 1 was told to stop: %w", context.Canceled)}, errors.New("the disk is full")
	exit := func(err error) func(stdout, stderr io.Writer) int {
		return func(stdout, stderr io.Writer) int { return Exit("x", err, stdout, stderr) }
	}
	in := func(e dist.Engine, err error) func(stdout, stderr io.Writer) int {
		return func(stdout, stderr io.Writer) int {
			g, failed := dist.New(e)
			if failed != nil {
				t.Fatal(failed)
			}
			return workIn(g, "x", stdout, stderr, func(*dist.Group, io.Writer) error { return err })
		}
	}
	for what, test := range map[string]struct {
		call           func(stdout, stderr io.Writer) int
		code           int
		stdout, stderr string // what is in them; "" for nothing
	}{
		"nothing":        {exit(nil), 0, "", ""},
		"stopped":        {exit(errors.Join(nil, stop)), 0, "stopped     and saved: the same command with -resume continues", ""},
		"not yet":        {exit(fmt.Errorf("dist: join: %w", context.Canceled)), 0, "stopped     outside of training: dist: join: context canceled", ""},
		"a failed save":  {exit(errors.Join(fmt.Errorf("train: save: %w", errSave), context.Canceled)), 1, "", "x: train: save: the disk is full"},
		"a failed lock":  {exit(errors.Join(stop, errSave)), 1, "", "the disk is full"},
		"a failed close": {in(&broken{}, nil), 1, "", "x: no way out"},
		"stop, no close": {in(&broken{}, stop), 1, "", "x: no way out"},
		"cannot tell":    {in(&broken{fails: 1}, errSave), 1, "", "x: the disk is full\ndist: rank 1: the network is down"},
		"not distributed": {func(stdout, stderr io.Writer) int {
			return Work(t.Context(), "x", false, stdout, stderr, func(*dist.Group, io.Writer) error { return errSave })
		}, 1, "", "x: the disk is full"},
	} {
		var stdout, stderr strings.Builder
		code := test.call(&stdout, &stderr)
		if code != test.code || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) ||
			(test.stdout == "") != (stdout.Len() == 0) || (test.stderr == "") != (stderr.Len() == 0) {
			t.Errorf("%s: exit code %d, %q and %q, want %d, %q and %q", what, code, &stdout, &stderr, test.code, test.stdout, test.stderr)
		}
	}
	// What all ranks have heard, rank 0 prints.
	for rank, err := range disttest.Run(2, func(g *dist.Group) error {
		var stderr strings.Builder
		code := workIn(g, "x", io.Discard, &stderr, func(g *dist.Group, _ io.Writer) error {
			if g.Rank() == 1 {
				return errSave
			}
			return g.Barrier()
		})
		if want := []string{"x: rank 1: the disk is full\n", ""}[g.Rank()]; code != 1 || stderr.String() != want {
			t.Errorf("rank %d: exit code %d, %q, want 1 and %q", g.Rank(), code, stderr.String(), want)
		}
		return nil
	}) {
		if err != nil && !strings.Contains(err.Error(), "the group is closed already") { // disttest.Run closes it as well
			t.Errorf("rank %d: %v", rank, err)
		}
	}
}

// -resume on one rank alone is an error on all.
func TestSameResume(t *testing.T) {
	for last, want := range map[int]string{0: "-resume is false on rank 0 and true on rank 1, should be the same on all ranks", 3: ""} {
		for rank, err := range disttest.Run(3, func(g *dist.Group) error { return SameResume(g, g.Rank() > last) }) {
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("rank %d: %v, want %q", rank, err, want)
			}
		}
	}
}
