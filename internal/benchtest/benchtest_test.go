package benchtest

import (
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// BenchmarkProbe is what TestProcessors runs.
func BenchmarkProbe(b *testing.B) {
	b.Run("loop", func(b *testing.B) {
		Processors(b)
		for b.Loop() {
		}
	})
	b.Run("n", func(b *testing.B) {
		Processors(b)
		for range b.N {
		}
	})
}

// Each row ran with the GOMAXPROCS that its name says, the first one too.
func TestProcessors(t *testing.T) {
	if flag.Lookup("test.bench").Value.String() != "" {
		return // this is the process below
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for list, want := range map[string]string{
		"1,3":   "1 1 3 3 1 1 3 3",
		"3,1,2": "3 3 1 1 2 2 3 3 1 1 2 2",
		"2":     "2 2 2 2",
	} {
		out, err := exec.Command(self, "-test.run=^$", "-test.bench=Probe", "-test.benchtime=1x", "-test.count=2", "-test.cpu="+list).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var got []string
		for _, row := range regexp.MustCompile(`(?m)^BenchmarkProbe/\S+.*\s(\d+)[.0]* procs`).FindAllStringSubmatch(string(out), -1) {
			got = append(got, row[1])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("-cpu %s: the rows ran with %v processors, want %s\n%s", list, got, want, out)
		}
	}
}

// Every benchmark of this module calls Processors on the line before its loop.
func TestEveryBenchmarkCallsProcessors(t *testing.T) {
	loop := regexp.MustCompile(`^\s*for .*\bb\.(Loop\(\)|N\b)`)
	loops := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		lines := strings.Split(string(text), "\n")
		for i, line := range lines {
			if !loop.MatchString(line) {
				continue
			}
			loops++
			if i == 0 || !strings.HasSuffix(lines[i-1], "Processors(b)") {
				t.Errorf("%s:%d: the line before the loop should be benchtest.Processors(b)", path, i+1)
			}
		}
		return nil
	})
	if err != nil || loops < 20 {
		t.Errorf("%d loops, %v", loops, err)
	}
}
