package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gomamba/mamba/examples/internal/exampletest"
	"github.com/gomamba/mamba/train"
)

// tiny are settings with which a run takes a moment.
var tiny = []string{"-steps", "4", "-layers", "1", "-dmodel", "8", "-length", "16", "-batch", "2", "-generate", "20"}

// call runs the program and returns its exit code and what it wrote.
func call(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, problems bytes.Buffer
	code = run(ctx, args, &out, &problems)
	return code, out.String(), problems.String()
}

// writeText makes a file of a few kilobytes of lines.
func writeText(t *testing.T) string {
	t.Helper()
	var text bytes.Buffer
	for i := range 100 {
		fmt.Fprintf(&text, "line %d of a text that repeats itself, a little\n", i)
	}
	path := filepath.Join(t.TempDir(), "lines.txt")
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRun(t *testing.T) {
	text := writeText(t)
	curve := filepath.Join(t.TempDir(), "curve.png")
	args := append([]string{"-text", text, "-out", curve, "-prompt", "line"}, tiny...)
	code, stdout, stderr := call(context.Background(), args...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{
		`text      .*lines\.txt: 4\.8 kB, files: 1\n`,
		`model     Mamba, parameters: \d+, layers: 1, d_model: 8\n`,
		`step 4 of 4  training \d+\.\d+  held out \d+\.\d+ bits per byte  .*/s  0s left\n`,
		`held out  bits per byte: Mamba \d+\.\d{3}, bigram \d+\.\d{3}: `,
		`prompt    "line", continued by 20 bytes at temperature 0\.7:\n\nline`,
		`curve     .*curve\.png\n`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("no match for %q in:\n%s", want, stdout)
		}
	}
	exampletest.PNG(t, curve)

	_, again, _ := call(context.Background(), args...)
	timing := regexp.MustCompile(`  [^ ]+ [^ ]+/s  .* left\n`)
	if a, b := timing.ReplaceAllString(stdout, "\n"), timing.ReplaceAllString(again, "\n"); a != b {
		t.Errorf("the same flags gave\n%s\nand then\n%s", a, b)
	}
}

func TestRunGoSource(t *testing.T) {
	code, stdout, stderr := call(context.Background(), append([]string{"-out", ""}, tiny...)...)
	if code != 0 || !strings.Contains(stdout, `prompt    "func ", continued`) || strings.Contains(stdout, "curve") {
		t.Errorf("exit code %d, %s\n%s", code, stderr, stdout)
	}
}

// TestInterrupted ends the context before the first step: what Ctrl-C does.
func TestInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	stop()
	curve := filepath.Join(t.TempDir(), "curve.png")
	code, stdout, stderr := call(ctx, append([]string{"-text", writeText(t), "-out", curve}, tiny...)...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{"stopped   after step 1 of 4\n", "held out  bits per byte: Mamba ", "prompt    \"", "curve     "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in:\n%s", want, stdout)
		}
	}
	exampletest.PNG(t, curve)
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	text := writeText(t)
	empty := filepath.Join(dir, "empty.txt")
	short := filepath.Join(dir, "short.txt")
	for path, data := range map[string]string{empty: "", short: "only a few bytes, fewer than fifty"} {
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	none := filepath.Join(dir, "none")
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-text", none}, none + ": "},
		{[]string{"-text", empty}, empty + ": the file is empty"},
		{[]string{"-text", dir + "/short.txt/x"}, "short.txt"},
		{[]string{"-text", short, "-length", "64"}, short + ": task: sampler: text has 30 bytes, should have at least 65"},
		{[]string{"-steps", "0"}, `invalid value "0" for flag -steps: should be a whole number, at least 1`},
		{[]string{"-layers", "two"}, `invalid value "two" for flag -layers: should be a whole number, at least 1`},
		{[]string{"-dmodel", "-3"}, `invalid value "-3" for flag -dmodel: should be`},
		{[]string{"-length", "0"}, `invalid value "0" for flag -length: should be`},
		{[]string{"-batch", "1.5"}, `invalid value "1.5" for flag -batch: should be`},
		{[]string{"-lr", "0"}, `invalid value "0" for flag -lr: should be a number above 0`},
		{[]string{"-lr", "NaN"}, `invalid value "NaN" for flag -lr: should be a number above 0`},
		{[]string{"-temperature", "-1"}, `invalid value "-1" for flag -temperature: should be a number, at least 0`},
		{[]string{"-generate", "-1"}, `invalid value "-1" for flag -generate: should be a whole number, at least 0`},
		{[]string{"-seed", "x"}, `invalid value "x" for flag -seed: should be a whole number, at least 0`},
		{[]string{"-nothing"}, "flag provided but not defined: -nothing"},
		{[]string{"book.txt"}, `unexpected argument "book.txt": name the text with -text`},
		{[]string{"-out", "curve.jpg"}, `invalid value "curve.jpg" for flag -out: should end in .png`},
		{[]string{"-out", filepath.Join(none, "curve.png")}, "-out is "},
	} {
		// The last -text and -out win: nothing is written where the test did not mean to.
		args := append([]string{"-text", text, "-out", filepath.Join(dir, "curve.png")}, test.args...)
		code, stdout, stderr := call(context.Background(), args...)
		if code != 1 || stdout != "" {
			t.Errorf("%q: exit code %d, output %q", test.args, code, stdout)
		}
		if !strings.HasPrefix(stderr, "bytelm: ") || !strings.Contains(stderr, test.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: %q should be one line with %q", test.args, stderr, test.want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("failed runs left %v behind, %v", left, err)
	}
}

func TestDiverged(t *testing.T) {
	args := append([]string{"-text", writeText(t), "-out", "", "-lr", "1e30"}, tiny...)
	code, _, stderr := call(context.Background(), args...)
	if code != 1 || !strings.Contains(stderr, "-lr is 1e+30, should be lower") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func TestUsage(t *testing.T) {
	code, stdout, stderr := call(context.Background(), "-h")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	exampletest.Usage(t, stdout, "steps", "layers", "dmodel", "length", "batch", "lr", "seed", "prompt", "text", "out", "device", "precision")
}

func TestLearnRate(t *testing.T) {
	for _, steps := range []int{1, 2, 10, 1000} {
		set := settings{steps: steps, lr: 0.5, layers: 1, dmodel: 4, length: 2, batch: 1}
		lm, err := newModel(set, nil)
		if err != nil {
			t.Fatal(err)
		}
		solver, err := train.NewAdamW(lm.Params(), adamW(set))
		if err != nil {
			t.Fatal(err)
		}
		highest := 0.0
		for step := 1; step <= steps; step++ {
			rate := solver.LearnRate(step)
			if !(rate > 0 && rate <= set.lr) {
				t.Fatalf("%d steps: the rate at step %d is %v", steps, step, rate)
			}
			highest = max(highest, rate)
		}
		if steps >= 10 && highest != set.lr {
			t.Errorf("%d steps: the highest rate is %v, want %v", steps, highest, set.lr)
		}
	}
}

func TestDevice(t *testing.T) {
	exampletest.Device(t, "bytelm", "step 4 of 4", func(args ...string) (int, string, string) { return call(context.Background(), args...) },
		append([]string{"-text", writeText(t), "-out", ""}, tiny...)...)
}
