//go:build unix

package train

import (
	"errors"
	"fmt"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/dist/disttest"
)

func init() {
	happens["stops"] = func() { _ = syscall.Kill(syscall.Getpid(), syscall.SIGSTOP) }
	happens["full disk"] = func() { // files have no room from here on
		signal.Ignore(syscall.SIGXFSZ)
		_ = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1000, Max: 1000})
	}
}

// A fault of one rank ends the run on all ranks in a bounded time, with a line that says which one and why. What was saved stays: the run goes on to the bits of one without a
// fault.
func TestGroupFaults(t *testing.T) {
	const ranks = 2
	var want [ranks]string
	if err := errors.Join(disttest.Run(ranks, func(g *dist.Group) (err error) {
		want[g.Rank()], err = hashOfRun(g, filepath.Join(t.TempDir(), "run"), "")
		return err
	})...); err != nil {
		t.Fatal(err)
	}
	for i, library := range disttest.Libraries {
		for _, test := range []struct {
			fault, line string
			steps       int // that are saved
		}{
			{"full disk 0", "train: save: write ", 4},
			{"hangs 0", "dist: rank 0 of 2 ends the run: this rank has made no progress for 2s: ", 4},
			{"hangs 1", "dist: rank 1 of 2 ends the run: this rank has made no progress for 2s: ", 4},
			{"stops 0", "dist: rank 1 of 2 ends the run: rank 0 has given no sign of life for 2s", 4},
			{"stops 1", "dist: rank 0 of 2 ends the run: rank 1 has given no sign of life for 2s", 4},
			{"model 1", "train: rank 1 differs from rank 0: the weights is", 0},
			{"configuration 1", `train: rank 1 differs from rank 0: AdamW.LearnRate is "0.04" and not "0.02"`, 0},
		} {
			if !*faults && (i > 0 || test.fault != "full disk 0") {
				continue
			}
			t.Run(library.Name+" "+test.fault, func(t *testing.T) {
				t.Parallel() // they wait
				file := filepath.Join(t.TempDir(), "run")
				cmd := library.Start(t, ranks, role, file)
				name, rank := test.fault[:len(test.fault)-2], test.fault[len(test.fault)-1:]
				cmd.Env = append(cmd.Env, fmt.Sprintf("%s_FAULT=%s %s", role, name, rank))
				began := time.Now()
				out, err := cmd.CombinedOutput()
				if d := time.Since(began); err == nil || !strings.Contains(string(out), test.line) || d > time.Minute {
					t.Errorf("%v after %v; the ranks print\n%s\nwant a line with %q", err, d, out, test.line)
				}
				if steps, _, err := Saved(file); steps != test.steps || (err == nil) != (steps > 0) {
					t.Errorf("%d steps are saved, want %d; %v", steps, test.steps, err)
				}
				got := disttest.Output(t, library.Start(t, ranks, role, file))
				slices.Sort(got)
				if !slices.Equal(got, []string{"0 " + want[0], "1 " + want[1]}) {
					t.Errorf("the ranks print %q, want %q", got, want)
				}
			})
		}
		if *faults {
			t.Run(library.Name+" three ranks, then two", func(t *testing.T) {
				t.Parallel()
				file := filepath.Join(t.TempDir(), "run")
				cmd := library.Start(t, 3, role, file)
				cmd.Env = append(cmd.Env, role+"_FAULT=full disk 0")
				if out, err := cmd.CombinedOutput(); err == nil {
					t.Errorf("three ranks print\n%s", out)
				}
				if got := disttest.Output(t, library.Start(t, ranks, role, file)); len(got) != ranks {
					t.Errorf("the ranks print %q", got)
				}
				if steps, _, err := Saved(file); steps != 8 || err != nil {
					t.Errorf("%d steps are saved, %v", steps, err)
				}
			})
		}
	}
}
