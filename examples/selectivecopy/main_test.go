package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/examples/internal/exampletest"
	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/nn"
)

// tiny are settings with which a run takes a moment.
var tiny = []string{"-steps", "4", "-length", "8", "-memory", "2", "-dmodel", "4", "-batch", "2", "-held", "4"}

// call runs the program and returns its exit code and its output.
func call(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, problems bytes.Buffer
	code = run(ctx, args, &out, &problems)
	return code, out.String(), problems.String()
}

func TestRun(t *testing.T) {
	curves := filepath.Join(t.TempDir(), "curves.png")
	args := slices.Concat(tiny, []string{"-out", curves})
	code, stdout, stderr := call(context.Background(), args...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{
		`^task      selective copying: 2 of 14 tokens at 8 places\n          a guess is right in 7\.1%\n`,
		`training  steps: 4, batch: 2, learn rate: 0\.002, seed: 1\nmodels    layers: 2, d_model: 4\n`,
		`model     s4: no gate with S4\n`,
		`model     mamba: Mamba with S6\n`,
		`step 4 of 4  loss \d\.\d{3}  right \d+\.\d%  \d+ tokens/s  0s left\n`,
		`\n +inside +tokens right +sequences right +paper\n`,
		`no gate +S4 +[\d.]+% +[\d.]+% +18\.3%\n` +
			`no gate +S6 +[\d.]+% +[\d.]+% +97\.0%\n` +
			`H3 +S4 +[\d.]+% +[\d.]+% +57\.0%\n` +
			`H3 +S6 +[\d.]+% +[\d.]+% +99\.7%\n` +
			`Mamba +S4 +[\d.]+% +[\d.]+% +56\.4%\n` +
			`Mamba +S6 +[\d.]+% +[\d.]+% +99\.8%\n`,
		`curves    .*curves\.png\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("no match for %q in:\n%s", want, stdout)
		}
	}
	if n := strings.Count(stdout, "\nmodel  "); n != 6 || strings.Contains(stdout, "stopped") {
		t.Errorf("%d models, want 6, and none stopped:\n%s", n, stdout)
	}
	exampletest.PNG(t, curves)

	_, again, _ := call(context.Background(), args...)
	timing := regexp.MustCompile(`  \d+ tokens/s  .* left\n`)
	if a, b := timing.ReplaceAllString(stdout, "\n"), timing.ReplaceAllString(again, "\n"); a != b {
		t.Errorf("the same flags gave\n%s\nand then\n%s", a, b)
	}
}

func TestOnly(t *testing.T) {
	code, stdout, stderr := call(context.Background(), append(tiny, "-out", "", "-only", "mamba, s4")...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	models := regexp.MustCompile(`(?m)^model     (\w+):`).FindAllStringSubmatch(stdout, -1)
	if len(models) != 2 || models[0][1] != "mamba" || models[1][1] != "s4" || strings.Contains(stdout, "curves") {
		t.Errorf("the models are %v:\n%s", models, stdout)
	}
}

// TestInterrupted ends the context before the first step: what Ctrl-C does.
func TestInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	stop()
	curves := filepath.Join(t.TempDir(), "curves.png")
	code, stdout, stderr := call(ctx, append(tiny, "-out", curves)...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{"stopped   after step 1 of 4\n", "tokens right", "\nno gate    S4 ", "curves    "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in:\n%s", want, stdout)
		}
	}
	if n := strings.Count(stdout, "\nmodel  "); n != 1 {
		t.Errorf("%d models were begun, want 1:\n%s", n, stdout)
	}
	exampletest.PNG(t, curves)
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-length", "0"}, `invalid value "0" for flag -length: should be a whole number, at least 1`},
		{[]string{"-memory", "0"}, `invalid value "0" for flag -memory: should be a whole number, at least 1`},
		{[]string{"-memory", "9"}, `invalid value "9" for flag -memory: should be at most -length, 8`},
		{[]string{"-vocab", "3"}, `invalid value "3" for flag -vocab: should be a whole number, at least 4`},
		{[]string{"-steps", "0"}, `invalid value "0" for flag -steps: should be`},
		{[]string{"-batch", "1.5"}, `invalid value "1.5" for flag -batch: should be`},
		{[]string{"-layers", "two"}, `invalid value "two" for flag -layers: should be`},
		{[]string{"-dmodel", "-3"}, `invalid value "-3" for flag -dmodel: should be`},
		{[]string{"-lr", "0"}, `invalid value "0" for flag -lr: should be a number above 0`},
		{[]string{"-lr", "NaN"}, `invalid value "NaN" for flag -lr: should be a number above 0`},
		{[]string{"-seed", "-1"}, `invalid value "-1" for flag -seed: should be a whole number, at least 0`},
		{[]string{"-held", "0"}, `invalid value "0" for flag -held: should be`},
		{[]string{"-only", "s4,lstm"}, `invalid value "s4,lstm" for flag -only: should be some of s4,s6,h3`},
		{[]string{"-only", ","}, `invalid value "," for flag -only: should be some of`},
		{[]string{"-paper=perhaps"}, `invalid boolean value "perhaps" for -paper`},
		{[]string{"-nothing"}, "flag provided but not defined: -nothing"},
		{[]string{"mamba"}, `unexpected argument "mamba": there are only flags`},
		{[]string{"-out", "curves.jpg"}, `invalid value "curves.jpg" for flag -out: should end in .png`},
		{[]string{"-out", filepath.Join(dir, "none", "curves.png")}, "-out is "},
	} {
		// The last -out wins: nothing is written where the test did not mean to.
		code, stdout, stderr := call(context.Background(), slices.Concat(tiny, []string{"-out", filepath.Join(dir, "curves.png")}, test.args)...)
		if code != 1 || stdout != "" {
			t.Errorf("%q: exit code %d, output %q", test.args, code, stdout)
		}
		if !strings.HasPrefix(stderr, "selectivecopy: ") || !strings.Contains(stderr, test.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: %q should be one line with %q", test.args, stderr, test.want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("failed runs left %v behind, %v", left, err)
	}
}

func TestDiverged(t *testing.T) {
	dir := t.TempDir()
	code, _, stderr := call(context.Background(), append(tiny, "-lr", "1e30", "-out", filepath.Join(dir, "curves.png"))...)
	if code != 1 || !strings.HasPrefix(stderr, "selectivecopy: s4: ") || !strings.Contains(stderr, "-lr is 1e+30, should be lower") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("the failed run left %v behind, %v", left, err)
	}
}

func TestDevice(t *testing.T) {
	exampletest.Device(t, "selectivecopy", "step 4 of 4", func(args ...string) (int, string, string) { return call(context.Background(), args...) },
		append([]string{"-out", ""}, tiny...)...)
}

func TestUsage(t *testing.T) {
	code, stdout, stderr := call(context.Background(), "-h")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	exampletest.Usage(t, stdout, "length", "memory", "vocab", "steps", "batch", "layers", "dmodel", "lr", "seed", "held", "out", "only", "paper", "device", "precision")
}

func TestPaper(t *testing.T) {
	paper := settings{length: 4096, memory: 16, vocab: 16, steps: 400000, batch: 64, layers: 2, dmodel: 64, lr: 1e-4, seed: 1, held: 512,
		out: "selectivecopy.png", only: combinations}
	shorter := paper
	shorter.length, shorter.lr, shorter.seed = 256, 1e-3, 7
	for _, test := range []struct {
		args []string
		want settings
	}{
		{[]string{"-paper"}, paper},
		{[]string{"-length", "256", "-paper", "-lr", "1e-3", "-seed", "7"}, shorter},
	} {
		got, err := parse(test.args, io.Discard)
		if got.device.GPU() {
			t.Errorf("%q: a GPU", test.args)
		}
		got.device = options.Device{}
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: %+v, %v, want %+v", test.args, got, err, test.want)
		}
	}
	if _, err := parse([]string{"-paper", "-length", "8"}, io.Discard); err == nil || !strings.Contains(err.Error(), "-memory: should be at most -length, 8") {
		t.Errorf("more of the paper's tokens than places: %v", err)
	}
}

// The rows are the architectures with a time-invariant and a selective state space in turn, and every kind is one that nn makes.
func TestCombinations(t *testing.T) {
	for i, c := range combinations {
		if want := []string{"S4", "S6"}[i%2]; c.inner != want || c.architecture != combinations[i/2*2].architecture {
			t.Errorf("row %d is %s with %s", i, c.architecture, c.inner)
		}
		if err := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4, Pattern: []nn.Kind{c.kind}}, Vocab: 4}).Err(); err != nil {
			t.Errorf("%s: %v", c.kind, err)
		}
	}
}
