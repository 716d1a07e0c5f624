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
