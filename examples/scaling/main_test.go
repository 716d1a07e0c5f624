package main

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/examples/internal/exampletest"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

// tiny are settings with which a run takes a moment.
var tiny = []string{"-shortest", "16", "-longest", "64", "-fit", "16", "-dmodel", "4", "-runs", "1"}

// call runs the program and returns its exit code and its output.
func call(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, problems bytes.Buffer
	code = run(ctx, args, &out, &problems)
	return code, out.String(), problems.String()
}

func TestRun(t *testing.T) {
	curves := filepath.Join(t.TempDir(), "curves.png")
	code, stdout, stderr := call(context.Background(), append([]string{"-out", curves}, tiny...)...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{
		`layers: 1, d_model: 4, batch: 1, float32; median of 1 runs\n`, `mamba      forward +16 +\d+\.\d\d ms +\d+\.\d{3} µs +\d+\.\d MB\n`,
		`attention  training +64 `, `exponent  mamba, forward: time -?\d+\.\d\d, memory .*, from length 16 to 64\n`, `curves    .*curves\.png\n`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("no match for %q in:\n%s", want, stdout)
		}
	}
	exampletest.PNG(t, curves)
}

func TestImages(t *testing.T) {
	curves := filepath.Join(t.TempDir(), "curves.png")
	code, stdout, stderr := call(context.Background(), "-images", "-shortest", "8", "-longest", "16", "-dmodel", "4", "-runs", "1", "-out", curves)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{`pixels of a step: 256;`, `mamba      training +8 .* B\n`, `attention  training +16 .* µs .* MB .* B\n`} {
		if !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("no match for %q in:\n%s", want, stdout)
		}
	}
	exampletest.PNG(t, curves)
	if code, _, stderr := call(context.Background(), "-images", "-kinds", "lstm"); code != 1 || !strings.Contains(stderr, "of -images should be mamba or attention") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// A kind whose run takes too long is not run at longer lengths, and the program says so.
func TestLimit(t *testing.T) {
	_, stdout, _ := call(context.Background(), append([]string{"-out", "", "-limit", "1e-9"}, tiny...)...)
	if !strings.Contains(stdout, "mamba, forward: stopped after length 16, which took longer than -limit") || strings.Contains(stdout, " 32 ") {
		t.Errorf("%s", stdout)
	}
}

// The memory of a run has at least its result and, with gradients, what is kept for them. That of a short sequence does not depend on
// a long one that was measured before.
func TestMemory(t *testing.T) {
	set := settings{dmodel: 16, layers: 1, heads: 1, runs: 1, limit: 20}
	for _, kind := range []nn.Kind{nn.Mamba, nn.Attention, nn.S4} {
		m, err := sequences(set, kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range passes {
			var bytes []float64
			for _, length := range []int{8192, 1024, 8192, 1024} {
				at, err := measure(set, m, p, length)
				if err != nil {
					t.Fatal(err)
				}
				if least := float64(4 * set.dmodel * length); at.bytes < least {
					t.Errorf("%s, %s, length %d: %.0f bytes, want at least %.0f, those of the result", kind, p.name, length, at.bytes, least)
				}
				bytes = append(bytes, at.bytes)
			}
			for i := range 2 {
				if r := bytes[i] / bytes[i+2]; r < 0.5 || r > 2 { // one or two workers may have had a workspace
					t.Errorf("%s, %s: %.0f bytes once and %.0f again", kind, p.name, bytes[i], bytes[i+2])
				}
			}
			if r := bytes[0] / bytes[1]; r < 3 || r > 12 {
				t.Errorf("%s, %s: a sequence eight times as long takes %.1f times the memory: %.0f", kind, p.name, r, bytes)
			}
		}
	}
}

// On a device as well, a run needs at least its result, and no more after a longer one. The weights' gradients are computed there.
func TestDeviceMemory(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	set := settings{dmodel: 16, layers: 1, runs: 1, limit: 20}
	m, err := sequences(set, nn.Mamba, nn.OnDevice(d))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := measure(set, m, passes[1], 16); err != nil { // allocates the workspace of cuBLAS
		t.Fatal(err)
	}
	for _, p := range passes {
		var bytes []float64
		for _, length := range []int{1024, 128, 1024, 128} {
			at, err := measure(set, m, p, length)
			if err != nil {
				t.Fatal(err)
			}
			if least := float64(4 * set.dmodel * length); at.bytes < least || at.seconds <= 0 {
				t.Errorf("%s, length %d: %.0f bytes and %v s, want at least %.0f bytes, those of the result", p.name, length, at.bytes, at.seconds, least)
			}
			bytes = append(bytes, at.bytes)
		}
		if bytes[0] != bytes[2] || bytes[1] != bytes[3] || bytes[0] < 3*bytes[1] {
			t.Errorf("%s: %.0f bytes for lengths 1024, 128, 1024, 128; want the same for the same length", p.name, bytes)
		}
	}
}

func TestDevice(t *testing.T) {
	exampletest.Device(t, "scaling", "exponent  attention, training: time ", func(args ...string) (int, string, string) { return call(context.Background(), args...) },
		append([]string{"-out", ""}, tiny...)...)
}

func TestExponent(t *testing.T) {
	var points []point
	for length := 16; length <= 4096; length *= 2 {
		seconds := 3e-6 * math.Pow(float64(length), 1.5)
		if length < 64 {
			seconds = 1 // what is below the fit does not count
		}
		points = append(points, point{length: length, seconds: seconds})
	}
	seconds := func(p point) float64 { return p.seconds }
	if got := exponent(points, 64, seconds); math.Abs(got-1.5) > 1e-9 {
		t.Errorf("the exponent is %v, want 1.5", got)
	}
	if got := exponent(points[:3], 64, seconds); !math.IsNaN(got) {
		t.Errorf("the exponent of one point is %v, want none", got)
	}
}

func TestInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	stop()
	code, stdout, stderr := call(ctx, append([]string{"-out", filepath.Join(t.TempDir(), "curves.png")}, tiny...)...)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "stopped\n") || strings.Contains(stdout, "exponent") {
		t.Errorf("exit code %d, %s\n%s", code, stderr, stdout)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-longest", "15"}, `invalid value "15" for flag -longest: should be at least -shortest, 16`},
		{[]string{"-runs", "0"}, `invalid value "0" for flag -runs: should be a whole number, at least 1`},
		{[]string{"-limit", "0"}, `invalid value "0" for flag -limit: should be a number above 0`},
		{[]string{"-kinds", "mamba,lstn"}, `invalid value "mamba,lstn" for flag -kinds: "lstn" is no kind of layer, want one of mamba, `},
		{[]string{"-kinds", "mamba,mamba"}, `invalid value "mamba,mamba" for flag -kinds: mamba is there twice`},
		{[]string{"-nothing"}, "flag provided but not defined: -nothing"},
		{[]string{"long"}, `unexpected argument "long": there are only flags`},
		{[]string{"-out", filepath.Join(dir, "curves.jpg")}, "should end in .png"},
		{[]string{"-out", filepath.Join(dir, "none", "curves.png")}, "-out is "},
	} {
		code, stdout, stderr := call(context.Background(), append(append([]string{"-out", ""}, tiny...), test.args...)...)
		if code != 1 || stdout != "" {
			t.Errorf("%q: exit code %d, output %q", test.args, code, stdout)
		}
		if !strings.HasPrefix(stderr, "scaling: ") || !strings.Contains(stderr, test.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: %q should be one line with %q", test.args, stderr, test.want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("failed runs left %v behind, %v", left, err)
	}
}

func TestUsage(t *testing.T) {
	code, stdout, stderr := call(context.Background(), "-h")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	exampletest.Usage(t, stdout, "limit", "kinds", "longest", "out", "device", "precision")
}
