// Package disttest has groups of ranks for tests: Run makes them of goroutines, and Library.Start of processes under the mpirun of an MPI library.
package disttest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
)

// memory is the messages under way between the goroutines of a process.
type memory struct {
	mu      sync.Mutex
	changed *sync.Cond
	waiting map[way][][]byte
}

type way struct {
	from, to int
	tag      dist.Tag
}

// engine is a dist.Engine between goroutines.
type engine struct {
	*memory
	rank, size int
}

func (e engine) Rank() int { return e.rank }
func (e engine) Size() int { return e.size }

func (e engine) Move(tag dist.Tag, messages []dist.Message) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range messages {
		if !m.Receive {
			w := way{e.rank, m.Peer, tag}
			e.waiting[w] = append(e.waiting[w], bytes.Clone(m.Bytes))
		}
	}
	e.changed.Broadcast()
	for _, m := range messages {
		if !m.Receive {
			continue
		}
		w := way{m.Peer, e.rank, tag}
		for len(e.waiting[w]) == 0 {
			e.changed.Wait()
		}
		got := e.waiting[w][0]
		if e.waiting[w] = e.waiting[w][1:]; len(got) != len(m.Bytes) {
			return fmt.Errorf("rank %d sends %d bytes, and rank %d receives %d", m.Peer, len(got), e.rank, len(m.Bytes))
		}
		copy(m.Bytes, got)
	}
	return nil
}

func (engine) Watch(time.Duration, func() (uint64, string)) {}
func (engine) Close() error                                 { return nil }

// Run calls f for each rank of a group in a goroutine of its own, and returns their errors. It closes the groups.
func Run(size int, f func(g *dist.Group) error) []error {
	m := &memory{waiting: map[way][][]byte{}}
	m.changed = sync.NewCond(&m.mu)
	errs := make([]error, size)
	var wait sync.WaitGroup
	for rank := range size {
		wait.Go(func() {
			g, err := dist.New(engine{m, rank, size})
			if err == nil {
				if err = g.Fail(f(g)); err == nil {
					err = g.Close()
				}
			}
			errs[rank] = err
		})
	}
	wait.Wait()
	return errs
}

// Library is an MPI library with its launcher.
type Library struct {
	Name, File string
	launcher   []string
}

// Libraries are those that are tested, by the names of Debian's packages.
var Libraries = []Library{
	{"Open MPI", "libmpi.so.40", []string{"mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"}},
	{"MPICH", "libmpich.so.12", []string{"mpirun.mpich"}},
}

// NCCL starts the ranks without MPI, with the variables of torchrun. It needs a GPU for each, or the stand-in.
var NCCL = Library{"NCCL", "", []string{"sh", "-c", `n=$2; shift 2; all=
for r in $(seq 0 $((n-1))); do RANK=$r LOCAL_RANK=$r WORLD_SIZE=$n "$@" & all="$all $!"; done
code=0; for p in $all; do wait $p || { code=1; sleep 0.2; kill -9 $all; }; done 2>/dev/null; exit $code`, "start"}}

// NeedGPUs skips a test of ranks with a GPU each if the machine has fewer. The stand-in has as many as are needed.
func NeedGPUs(t *testing.T, size int) {
	t.Helper()
	if os.Getenv("MAMBA_TEST_DEVICE") == "standin" {
		return
	}
	d, err := cuda.Open(size - 1)
	if err != nil {
		t.Skipf("%d ranks need a GPU each: %v", size, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// Start returns the command that runs this test's binary as so many ranks with arguments, and with an environment variable that tells TestMain what they do. It
// skips the test if the library's launcher is not there.
func (l Library) Start(t *testing.T, size int, variable, value string, arguments ...string) *exec.Cmd {
	t.Helper()
	launcher, err := exec.LookPath(l.launcher[0])
	if err != nil {
		t.Skipf("%s is not installed: no %s", l.Name, l.launcher[0])
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, launcher, slices.Concat(l.launcher[1:], []string{"-n", fmt.Sprint(size), os.Args[0]}, arguments)...)
	users := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NCCL_DEBUG") }) // it prints to standard output
	cmd.Env = append(users, variable+"="+value, "MAMBA_MPI="+l.File, "GOMAXPROCS=2", fmt.Sprint("GPUSTANDIN_GPUS=", size))
	if l.File == "" {
		NeedGPUs(t, size)
		cmd.Env = append(cmd.Env, "MASTER_ADDR=127.0.0.1", fmt.Sprint("MASTER_PORT=", freePort()))
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

var ports atomic.Int64 // that were tried

// freePort returns a port that no process listens at, and that the system gives to none: those that it chooses are above 32767.
func freePort() int {
	for {
		port := 10000 + (os.Getpid()*37+int(ports.Add(1)))%20000
		if l, err := net.Listen("tcp", fmt.Sprint(":", port)); err == nil {
			l.Close()
			return port
		}
	}
}

// Output runs a command of Start and returns what the ranks print to standard output, line by line.
func Output(t *testing.T, cmd *exec.Cmd) []string {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd, err, out, stderr.String())
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
