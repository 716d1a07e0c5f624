package loop

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/train"
)

// Main runs a program that trains and that can be stopped and resumed, and ends the process with its exit code.
func Main(run func(ctx context.Context, args []string, stdout, stderr io.Writer) int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal, the next one has its usual effect.
	context.AfterFunc(ctx, stop)
	if os.Getenv("GOGC") == "" {
		// Nearly all of the heap is numbers, which the collector does not scan. So frequent collections cost little, and a large
		// model needs a quarter to a third less memory and trains faster.
		debug.SetGCPercent(20)
	}
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// saved is the end of a context after which Run has saved what it trains, on all ranks.
type saved struct{ error }

func (s saved) Unwrap() error { return s.error }

// stopped says whether an error is the end of a context and nothing else: all that are joined in it, such as that of a save, count.
func stopped(err error) bool {
	if err == nil {
		return false
	}
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(all.Unwrap(), func(err error) bool { return !stopped(err) })
	}
	if inner := errors.Unwrap(err); inner != nil {
		return stopped(inner)
	}
	return err == context.Canceled
}

// Exit prints the error that a program ends with, and returns its exit code.
func Exit(program string, err error, stdout, stderr io.Writer) int {
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case !stopped(err):
		fmt.Fprintf(stderr, "%s: %v\n", program, err)
		return 1
	case errors.As(err, new(saved)):
		fmt.Fprintf(stdout, "stopped     and saved: the same command with -resume continues\n")
	default:
		fmt.Fprintf(stdout, "stopped     outside of training: %v; -resume continues from the last save, if there is one\n", err)
	}
	return 0
}

// Work does the work of a program and returns its exit code: alone or, if it is distributed, as one of the processes that mpirun, srun or torchrun has started. Rank 0
// prints, and other ranks print the errors of which rank 0 has not heard.
func Work(ctx context.Context, program string, distributed bool, stdout, stderr io.Writer, work func(group *dist.Group, out io.Writer) error) int {
	if !distributed {
		return Exit(program, work(nil, stdout), stdout, stderr)
	}
	group, err := dist.Join(ctx)
	if err != nil {
		return Exit(program, err, stdout, stderr)
	}
	return workIn(group, program, stdout, stderr, work)
}

func workIn(group *dist.Group, program string, stdout, stderr io.Writer, work func(group *dist.Group, out io.Writer) error) int {
	quiet := stderr
	if group.Rank() > 0 { // rank 0 says what happens on all
		stdout, quiet = io.Discard, io.Discard
	}
	err := work(group, stdout)
	if err != nil && !(stopped(err) && errors.As(err, new(saved))) {
		failed := group.Fail(err)
		if failed.Error() != err.Error() { // it could not tell the others
			quiet = stderr
		}
		err = failed
	}
	code := Exit(program, err, stdout, quiet) // before Close: a launcher that was told to stop kills the process soon
	if closing := group.Close(); closing != nil {
		code = Exit(program, closing, stdout, stderr)
	}
	return code
}

// SameResume returns an error unless -resume is set on all ranks or on none.
func SameResume(group *dist.Group, resume bool) error {
	all, err := group.GatherBytes(fmt.Append(nil, resume))
	if err != nil {
		return err
	}
	for rank, other := range all {
		if string(other) != string(all[0]) {
			return fmt.Errorf("-resume is %s on rank 0 and %s on rank %d, should be the same on all ranks", all[0], other, rank)
		}
	}
	return nil
}

// Lock makes the directory that -out names, and inside, and locks it for a program.
func Lock(out, inside, program string) (*tensorfile.Lock, error) {
	if err := os.MkdirAll(filepath.Join(out, inside), 0o777); err != nil {
		return nil, options.OutDirError(out, err)
	}
	lock, err := tensorfile.Acquire(filepath.Join(out, program))
	if errors.Is(err, tensorfile.ErrLocked) {
		return nil, fmt.Errorf("-out is %q, which another run is using: should be another directory: %w", out, err)
	}
	if err != nil {
		return nil, options.OutDirError(out, err)
	}
	return lock, nil
}

// Unfinished returns an error if a file has the state of a run that has not ended. A run saves its flag -steps. there says whether there is a
// state.
func Unfinished(out, file string) (there bool, err error) {
	steps, settings, err := train.Saved(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return true, fmt.Errorf("%w; remove it to start again", err)
	case fmt.Sprint(steps) != settings["-steps"]:
		return true, Continue(out, file)
	}
	return true, nil
}

// Continue returns the error of a directory that holds the state of a run that has not ended.
func Continue(out, file string) error {
	return fmt.Errorf("-out is %q, which holds a run that has not ended: continue it with -resume, or remove %s to start again", out, file)
}

// Run trains, from the beginning or from where a resumed run stopped.
func Run(ctx context.Context, t *train.Trainer, show *report.Progress, resume bool, out io.Writer) error {
	if resume {
		resumed, err := t.Resume()
		if err != nil {
			return err
		}
		if resumed {
			fmt.Fprintf(out, "resumed     after step %d of %d\n", t.Done(), show.Steps)
		} else {
			fmt.Fprintln(out, "resumed     nothing: -out holds no run of this model, a new one begins")
		}
	}
	show.Start(t.Done())
	err := t.Run(ctx)
	show.Finish()
	if stopped(err) {
		err = saved{err}
	}
	return err
}

// Trace prints the table of a trace of Run and writes it to a file. It does nothing if the trace is nil, which means that the program has no flag -trace.
func Trace(trace *train.Trace, file string, group *dist.Group, out io.Writer) error {
	if trace == nil || group.Rank() > 0 {
		return nil
	}
	fmt.Fprintf(out, "\ntrace       %s, for ui.perfetto.dev or chrome://tracing\n%v", file, trace)
	return tensorfile.Replace(file, trace.WriteJSON)
}

// Fingerprint returns a checksum of a model's weights. A run is resumed only with the model that it started from.
func Fingerprint(params layer.Params) string {
	h := sha256.New()
	for _, p := range params {
		fmt.Fprint(h, p.Name, p.Value.Shape())
		if err := binary.Write(h, binary.LittleEndian, p.Value.Data()); err != nil {
			panic(err) // floats have a size, and a hash has no errors
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}
