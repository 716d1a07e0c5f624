package mamba_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A program that trains, generates or reads checkpoints links no plotting library, no fonts and no progress bar: those are in report.
func TestLibraryLinksNoPictures(t *testing.T) {
	for _, pkg := range []string{"./train", "./nn", "./checkpoint", "./task", "./grad"} {
		out, err := exec.Command("go", "list", "-deps", pkg).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", pkg, err, out)
		}
		for _, name := range []string{"gonum.org/v1/plot", "progressbar", "golang.org/x/term", "fonts", "latex", "gomamba/mamba/report"} {
			if i := slices.IndexFunc(strings.Fields(string(out)), func(dep string) bool { return strings.Contains(dep, name) }); i >= 0 {
				t.Errorf("%s imports %s", pkg, strings.Fields(string(out))[i])
			}
		}
	}
}

// The packages under internal stand below those that users import: of these they import only cuda and blas, which are arithmetic.
func TestInternalImportsNothingAbove(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "./internal/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	const module = "github.com/gomamba/mamba/"
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		for _, path := range f[1:] {
			name, ours := strings.CutPrefix(path, module)
			if ours && name != "cuda" && name != "blas" && !strings.HasPrefix(name, "internal/") {
				t.Errorf("%s imports %s", strings.TrimPrefix(f[0], module), name)
			}
		}
	}
}
