package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// The long form: go test ./examples/finetune -run Kill -count 1 -kills 20
var (
	kills    = flag.Int("kills", 3, "how often TestKill kills the program, in each of its settings")
	killSeed = flag.Uint64("killseed", uint64(time.Now().UnixNano()), "seed of the moments at which TestKill kills")
)

// asProgram makes this test's binary the program itself.
const asProgram = "FINETUNE_TEST_IS_THE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	return cmd
}

// A run that is killed at any moments, with no chance to do anything about it, and resumed ends with the same files, bit for
// bit, as one that was not; and at no moment is there a file that cannot be read.
func TestKill(t *testing.T) {
	data := writeLines(t, 60)
	small := []string{"-data", data, "-steps", "10", "-accumulate", "2", "-batch", "2", "-length", "32", "-save", "1", "-eval", "4", "-evaltokens", "200"}
	model := filepath.Join(t.TempDir(), "model")
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 16, NLayer: 2}, Vocab: 256}, nn.WithSeed(2))
	if err := checkpoint.Save(model, lm); err != nil {
		t.Fatal(err)
	}
	t.Logf("-killseed %d", *killSeed)
	for _, c := range []struct {
		name string
		args []string
	}{
		{"all weights, and those of the small model", append([]string{"-basesteps", "6", "-layers", "1", "-dmodel", "16"}, small...)},
		{"LoRA of a checkpoint", append([]string{"-model", model, "-lora", "2"}, small...)},
		{"LoRA of a checkpoint, merged", append([]string{"-model", model, "-lora", "2", "-merge"}, small...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			whole := filepath.Join(t.TempDir(), "whole")
			if text, err := program(t, append(c.args, "-out", whole)...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			want := contents(t, whole)
			r := rand.New(rand.NewPCG(*killSeed, 0))
			for killed := 0; killed < *kills; {
				out := filepath.Join(t.TempDir(), fmt.Sprint("killed", killed))
				for done := false; !done; {
					moment := never
					if killed < *kills {
						moment = r.IntN(5) // lines of progress
					}
					done = runAndKill(t, append(c.args, "-out", out, "-resume"), moment, time.Duration(r.IntN(40))*time.Millisecond)
					if !done {
						killed++
						readable(t, out)
					}
				}
				got := contents(t, out)
				for name, data := range want {
					if !bytes.Equal(got[name], data) {
						t.Errorf("%s differs after kills from that of a run without", name)
					}
				}
			}
		})
	}
}

const never = -1

// runAndKill runs the program, kills it some time after so many lines of progress, and reports whether it was done before.
func runAndKill(t *testing.T, args []string, lines int, later time.Duration) bool {
	t.Helper()
	cmd := program(t, args...)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scanner, seen := bufio.NewScanner(out), 0
	for (lines == never || seen < lines) && scanner.Scan() {
		if strings.HasPrefix(scanner.Text(), "step ") {
			seen++
		}
	}
	if err := scanner.Err(); err != nil {
		t.Error(err)
	}
	if lines != never {
		time.Sleep(later)
		_ = cmd.Process.Kill() // it may be done
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true
	case errors.As(err, &exit) && !exit.Exited(): // killed
		return false
	}
	t.Fatalf("%v\n%s", err, problems.String())
	return false
}

// A second run in one directory ends at once, with an error that names the process of the first, and disturbs nothing.
func TestTwoRuns(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	args := []string{"-data", writeLines(t, 60), "-basesteps", "1000000", "-layers", "1", "-dmodel", "4", "-batch", "1", "-length", "16", "-out", out}
	first := program(t, args...)
	pipe, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Wait() }() // it is killed
	defer first.Process.Kill()
	if line, err := bufio.NewReader(pipe).ReadString('\n'); err != nil {
		t.Fatalf("the first run says %q, %v", line, err)
	}
	for _, more := range [][]string{nil, {"-resume"}} {
		text, err := program(t, append(args, more...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(text), "which another run is using") || !strings.Contains(string(text), fmt.Sprint("process ", first.Process.Pid)) {
			t.Errorf("%v: %v, %q, want an error with process %d", more, err, text, first.Process.Pid)
		}
	}
}

// readable fails if there is a file that the program, or a user, cannot read.
func readable(t *testing.T, out string) {
	t.Helper()
	for _, dir := range []string{out, filepath.Join(out, "base")} {
		if _, _, err := train.Saved(filepath.Join(dir, "train.safetensors")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after a kill: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
			if _, err := checkpoint.Load(dir); err != nil {
				t.Errorf("after a kill: %v", err)
			}
		}
	}
}

// contents returns the files that a run leaves behind.
func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, name := range []string{"train.safetensors", "model.safetensors", "config.json", "adapter_model.safetensors", "adapter_config.json",
		"base/train.safetensors", "base/model.safetensors", "loss.png"} {
		data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(name, "adapter_config") {
			data = bytes.ReplaceAll(data, []byte(dir), nil) // it names the small model by its directory
		}
		all[name] = data
	}
	if len(all) < 4 {
		t.Fatalf("%s holds only %d files", dir, len(all))
	}
	return all
}
