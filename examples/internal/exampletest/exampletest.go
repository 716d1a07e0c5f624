// Package exampletest has what the tests of the examples share.
package exampletest

import (
	"bytes"
	"context"
	"image/png"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gomamba/mamba/cuda"
)

// Program is the function of an example that runs it and returns its exit code.
type Program func(ctx context.Context, args []string, stdout, stderr io.Writer) int

// Call runs the program and returns what it wrote.
func (p Program) Call(args ...string) (code int, stdout, stderr string) {
	var out, problems bytes.Buffer
	code = p(context.Background(), args, &out, &problems)
	return code, out.String(), problems.String()
}

// Must runs the program, which has to succeed without a word on stderr, and returns its output.
func (p Program) Must(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := p.Call(args...)
	if code != 0 || stderr != "" {
		t.Fatalf("%v: exit code %d, %s\n%s", args, code, stderr, stdout)
	}
	return stdout
}

// PNG fails the test unless a file is a picture of at least 1000 by 500 pixels.
func PNG(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	picture, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	if size := picture.Bounds().Size(); size.X < 1000 || size.Y < 500 {
		t.Errorf("%s is %v pixels large, want at least 1000 by 500", path, size)
	}
}

// Device runs a program with -device cuda after its other arguments. With a GPU the program succeeds, names the device first, and
// prints want. Without one it prints one line that says so, and returns 1. Wrong values of -device and -precision are errors.
func Device(t *testing.T, program, want string, call func(args ...string) (code int, stdout, stderr string), args ...string) {
	t.Helper()
	code, stdout, stderr := call(append(args, "-device", "cuda")...)
	if d, err := cuda.Open(0); err == nil {
		d.Close()
		if code != 0 || !strings.HasPrefix(stdout, "device ") || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, %s%s, want 0, the device's name first, and %q", code, stdout, stderr, want)
		}
	} else if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, program+": cuda: ") {
		t.Errorf("exit code %d, output %q, error %q, want 1, nothing, and one line that begins with %s: cuda:", code, stdout, stderr, program)
	}
	for flag, want := range map[string]string{"-device": "should be cpu or cuda", "-precision": "should be float32, fp16x3, tf32 or bf16"} {
		if code, _, stderr := call(append(args, flag, "other")...); code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s other: exit code %d, %s, want 1 and %q", flag, code, stderr, want)
		}
	}
}

// flagLine is the line of a flag, with its type: a flag without one is a switch.
var flagLine = regexp.MustCompile(`^  -[a-z-]+( (int|float|string|file|directory|path|text|duration|HOST:PORT))?$`)

// Usage fails the test unless the text that a program prints with -h has lines of at most 80 columns, a named type for each flag,
// at most one default for each flag, and all of the flags.
func Usage(t *testing.T, text string, flags ...string) {
	t.Helper()
	defaults := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > 80 {
			t.Errorf("a line of the usage has %d columns, want at most 80: %q", n, line)
		}
		if strings.HasPrefix(line, "  -") {
			defaults = 0
			if !flagLine.MatchString(line) {
				t.Errorf("%q names no type that a person knows", line)
			}
		}
		if defaults += strings.Count(line, "(default"); defaults > 1 {
			t.Errorf("a flag has two defaults, the second in %q", line)
		}
	}
	for _, name := range flags {
		if !regexp.MustCompile(`(?m)^  -` + name + `( |$)`).MatchString(text) {
			t.Errorf("the usage does not tell of -%s", name)
		}
	}
}
