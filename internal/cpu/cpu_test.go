package cpu

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// GODEBUG disables an instruction set, and Go's runtime accepts the name without a warning.
func TestGODEBUG(t *testing.T) {
	if os.Getenv("PRINT_LEVEL") != "" {
		os.Stdout.WriteString("level " + Best.String() + "\n")
		return
	}
	for debug, highest := range map[string]Level{"": Best, "cpu.avx512f=off": min(Best, AVX2), "cpu.avx2=off": Generic, "cpu.fma=off": Generic} {
		if Best == Generic {
			highest = Generic
		}
		self := exec.Command(os.Args[0], "-test.run=^TestGODEBUG$")
		self.Env = append(os.Environ(), "PRINT_LEVEL=1")
		if debug != "" {
			self.Env = append(self.Env, "GODEBUG="+debug)
		}
		var complaints strings.Builder
		self.Stderr = &complaints
		got, err := self.Output()
		if err != nil {
			t.Fatal(err)
		}
		if level, _, _ := strings.Cut(string(got), "\n"); level != "level "+highest.String() || complaints.Len() > 0 {
			t.Errorf("GODEBUG=%s: %q, %q, want level %s and no complaints", debug, level, complaints.String(), highest)
		}
	}
}
