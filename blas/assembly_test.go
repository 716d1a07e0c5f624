package blas

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Without VZEROUPPER before every return, SSE instructions would be slow ever after (asm.Func.Return says how slow).
func TestReturnsClearUpperHalves(t *testing.T) {
	files, err := filepath.Glob("*_amd64.s")
	if err != nil || len(files) != 4 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		last, returns, functions := "", 0, 0
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "TEXT ") {
				functions++
			}
			if line == "RET" {
				returns++
				if last != "VZEROUPPER" {
					t.Errorf("%s: a RET after %q", name, last)
				}
			}
			if line != "" {
				last = line
			}
		}
		if returns == 0 || returns < functions {
			t.Errorf("%s: %d functions, %d returns", name, functions, returns)
		}
	}
}
