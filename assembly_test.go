package mamba_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every function in assembly executes VZEROUPPER before it returns. A function that does not makes SSE instructions of Go's own code wait for the
// upper halves of the vector registers: math.Exp was up to 190 times slower. (BenchmarkExpAfter in internal/kernel measures this.)
func TestAssemblyEndsWithVZEROUPPER(t *testing.T) {
	functions := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".s" {
			return err
		}
		switch path {
		case filepath.Join("internal", "work", "processor_amd64.s"), filepath.Join("internal", "cpu", "cpu_amd64.s"):
			return nil // they have no vector registers, and run on processors that have no VZEROUPPER
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n, err := checkExits(string(text))
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		functions += n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if functions == 0 {
		t.Error("there is no assembly to check")
	}
}

// checkExits returns the number of functions in a file of Go assembly, and an error if a function has an exit that does not come directly after
// VZEROUPPER.
func checkExits(text string) (functions int, err error) {
	var function, last string // last is the last instruction or label
	end := func() error {
		if function != "" && last != "RET" && !strings.HasPrefix(last, "JMP") {
			return fmt.Errorf("%s ends with %q, not with RET", function, last)
		}
		return nil
	}
	for line := range strings.Lines(text) {
		code, _, _ := strings.Cut(line, "//")
		code = strings.TrimSpace(code)
		fields := strings.Fields(code)
		switch {
		case code == "" || strings.HasPrefix(code, "#"):
			continue
		case strings.Contains(code, ";"):
			return functions, fmt.Errorf("%q: several instructions on a line, want one, since this test reads one per line", code)
		case fields[0] == "DATA" || fields[0] == "GLOBL":
			continue
		case fields[0] == "TEXT":
			if err := end(); err != nil {
				return functions, err
			}
			functions++
			function, _, _ = strings.Cut(fields[1], "(SB)")
		case fields[0] == "RET" && last != "VZEROUPPER":
			return functions, fmt.Errorf("%s: RET comes after %q, not after VZEROUPPER", function, last)
		case fields[0][0] == 'J' && strings.Contains(code, "(SB)"):
			return functions, fmt.Errorf("%s: %q leaves the function", function, code)
		}
		last = strings.Join(fields, " ")
	}
	return functions, end()
}

// checkExits finds a missing VZEROUPPER.
func TestCheckExits(t *testing.T) {
	for text, want := range map[string]string{
		"TEXT ·f(SB), NOSPLIT, $0-8\n\tMOVQ a+0(FP), AX\n\tVZEROUPPER\n\tRET // done\n":             "",
		"TEXT ·f(SB), $0\n\tVZEROUPPER\n\tRET\n\nDATA x<>+0(SB)/4, $1\nGLOBL x<>(SB), RODATA, $4\n": "",
		"TEXT ·f(SB), $0\nback:\n\tVZEROUPPER\n\tRET\nloop:\n\tADDQ AX, BX\n\tJMP back\n":           "",
		"TEXT ·f(SB), $0\n\tRET\n":                              "·f: RET comes after \"TEXT ·f(SB), $0\", not after VZEROUPPER",
		"TEXT ·f(SB), $0\n\tVZEROUPPER\ndone:\n\tRET\n":         "·f: RET comes after \"done:\", not after VZEROUPPER",
		"TEXT ·f(SB), $0\n\tJE out\n\tVZEROUPPER\n\tJMP ·g(SB)": "·f: \"JMP ·g(SB)\" leaves the function",
		"TEXT ·f(SB), $0\n\tVZEROUPPER\n":                       "·f ends with \"VZEROUPPER\", not with RET",
		"TEXT ·f(SB), $0\n\tVZEROUPPER; RET\n":                  "\"VZEROUPPER; RET\": several instructions on a line, want one, since this test reads one per line",
	} {
		_, err := checkExits(text)
		if got := fmt.Sprint(err); got != want && !(want == "" && err == nil) {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
