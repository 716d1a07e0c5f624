package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/examples/internal/exampletest"
	"github.com/gomamba/mamba/examples/internal/experiment"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/task"
)

// tiny are settings with which a run takes a moment.
var tiny = []string{"-steps", "4", "-length", "32", "-dmodel", "4", "-heads", "1", "-batch", "1", "-layers", "1", "-sequences", "2"}

// call runs the program and returns its exit code and its output.
func call(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, problems bytes.Buffer
	code = run(ctx, args, &out, &problems)
	return code, out.String(), problems.String()
}

func TestRun(t *testing.T) {
	curves := filepath.Join(t.TempDir(), "curves.png")
	args := append([]string{"-out", curves, "-longest", "4096"}, tiny...)
	code, stdout, stderr := call(context.Background(), args...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{
		`task      induction heads: one of 15 tokens; a guess is right in 6\.7%\n`, `model     attention, learn rate: 0\.002\n`, `model     Mamba, learn rate: 0\.008\n`,
		`trained   1 steps at length 16: \d+\.\d% right\n`, `trained   4 steps at length 32: \d+\.\d% right\n`,
		`test      lstm at length 4096: \d+\.\d% right of 2, \d+\.\d s\n`,
		`\n  length      Mamba         S4  attention       LSTM   right, %\n      64 `, `\n    4096 ( +\d+\.\d){4}\n`, `curves    .*curves\.png\n`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("no match for %q in:\n%s", want, stdout)
		}
	}
	exampletest.PNG(t, curves)
}

// A sequence that is read in pieces, with the state carried on, gets the same answer as a whole one.
func TestPiecesAreWhole(t *testing.T) {
	set, err := parse(append(slices.Clone(tiny), "-sequences", "6"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []model{models[0], models[1], models[3]} {
		lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4, NLayer: 1, Pattern: []nn.Kind{m.kind}}, Vocab: set.vocab})
		const length = wholeLength + 77
		pieces, err := ask(context.Background(), set, m, lm, length)
		if err != nil {
			t.Fatal(err)
		}
		problem, err := task.NewInductionHeads(length, set.vocab)
		if err != nil {
			t.Fatal(err)
		}
		s, err := experiment.NewScorer(lm, 1, length)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := s.Score(problem, 6)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if pieces.Accuracy != whole {
			t.Errorf("%s: %+v in pieces, %+v whole", m.name, pieces.Accuracy, whole)
		}
	}
}

// TestInterrupted ends the context before the first model.
func TestInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	stop()
	code, stdout, stderr := call(ctx, append([]string{"-out", filepath.Join(t.TempDir(), "curves.png")}, tiny...)...)
	if code != 0 || stderr != "" || !strings.HasSuffix(stdout, "stopped   before the first model\n") {
		t.Errorf("exit code %d, %s\n%s", code, stderr, stdout)
	}
	set, err := parse(tiny, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r, err := learn(ctx, set, models[0], nil, &out)
	if err != nil || len(r.answers) != 0 || !strings.Contains(out.String(), "stopped   before length 64") {
		t.Errorf("%+v, %v\n%s", r, err, out.String())
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-length", "2"}, `invalid value "2" for flag -length: should be a whole number, at least 3`},
		{[]string{"-longest", "63"}, `invalid value "63" for flag -longest: should be a whole number, at least 64`},
		{[]string{"-vocab", "2"}, `invalid value "2" for flag -vocab: should be a whole number, at least 3`},
		{[]string{"-lr", "0"}, `invalid value "0" for flag -lr: should be a number above 0`},
		{[]string{"-only", "mamba,h3"}, `invalid value "mamba,h3" for flag -only: should be some of mamba,s4,attention,lstm`},
		{[]string{"-nothing"}, "flag provided but not defined: -nothing"},
		{[]string{"long"}, `unexpected argument "long": there are only flags`},
		{[]string{"-out", filepath.Join(dir, "curves.jpg")}, "should end in .png"},
		{[]string{"-out", filepath.Join(dir, "none", "curves.png")}, "-out is "},
	} {
		code, stdout, stderr := call(context.Background(), append(append([]string{"-out", ""}, tiny...), test.args...)...)
		if code != 1 || stdout != "" {
			t.Errorf("%q: exit code %d, output %q", test.args, code, stdout)
		}
		if !strings.HasPrefix(stderr, "inductionheads: ") || !strings.Contains(stderr, test.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: %q should be one line with %q", test.args, stderr, test.want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("failed runs left %v behind, %v", left, err)
	}
	code, _, stderr := call(context.Background(), append([]string{"-out", "", "-only", "mamba", "-lr", "1e30"}, tiny...)...)
	if code != 1 || !strings.Contains(stderr, "-lr is 1e+30, should be lower") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func TestDevice(t *testing.T) {
	exampletest.Device(t, "inductionheads", "step 4 of 4", func(args ...string) (int, string, string) { return call(context.Background(), args...) },
		append([]string{"-out", "", "-longest", "64"}, tiny...)...)
}

func TestUsage(t *testing.T) {
	code, stdout, stderr := call(context.Background(), "-h")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	exampletest.Usage(t, stdout, "length", "longest", "lr", "only", "out", "device", "precision")
}
