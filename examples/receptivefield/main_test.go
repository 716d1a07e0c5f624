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
)

func call(args ...string) (code int, stdout, stderr string) {
	var out, problems bytes.Buffer
	code = run(context.Background(), args, &out, &problems)
	return code, out.String(), problems.String()
}

func TestRun(t *testing.T) {
	out, directions := filepath.Join(t.TempDir(), "field.png"), filepath.Join(t.TempDir(), "directions.png")
	code, stdout, stderr := call("-side", "16", "-steps", "2", "-batch", "1", "-images", "2", "-out", out, "-directions", directions)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{
		`VM-UNet      \d+ weights\n`, `convolutions before  Dice of the discs \d\.\d{3}, \d+\.\d% of the gradient`, `VM-UNet      step     2  loss \d\.\d{4}\n`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("no match for %q in:\n%s", want, stdout)
		}
	}
	exampletest.PNG(t, out)
	exampletest.PNG(t, directions)
}

// Every order in the picture visits each cell once, and the classes of an image follow from its frame.
func TestExamples(t *testing.T) {
	for _, row := range directions() {
		for _, d := range row {
			cells := d.order.Cells()
			slices.Sort(cells)
			for i, c := range cells {
				if i != c || len(cells) != d.slices*d.height*d.width {
					t.Fatalf("%s: cell %d at %d of %d", d.name, c, i, len(cells))
				}
			}
		}
	}
	for seed := range uint64(20) {
		const side = 32
		pixels, labels := example(seed, side)
		class := labels[side/2*side+side/2]
		bright := pixels[0] > 0
		if bright != (class == 1) || slices.Min(labels) != 0 || slices.Max(labels) != class {
			t.Errorf("seed %d: the classes are up to %d, the centre's is %d, the frame is bright: %t", seed, slices.Max(labels), class, bright)
		}
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-side", "20"}, `invalid value "20" for flag -side: should be a multiple of 8`},
		{[]string{"-steps", "0"}, `invalid value "0" for flag -steps: should be a whole number, at least 1`},
		{[]string{"-out", filepath.Join(dir, "field.jpg")}, "should end in .png"},
		{[]string{"long"}, `unexpected argument "long": there are only flags`},
	} {
		code, stdout, stderr := call(test.args...)
		if code != 1 || stdout != "" || !strings.HasPrefix(stderr, "receptivefield: ") || !strings.Contains(stderr, test.want) {
			t.Errorf("%q: exit code %d, %s%s, want 1 and %q", test.args, code, stdout, stderr, test.want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("failed runs left %v behind, %v", left, err)
	}
}

func TestUsage(t *testing.T) {
	code, stdout, stderr := call("-h")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	exampletest.Usage(t, stdout, "side", "steps", "batch", "images", "seed", "out", "directions")
}
