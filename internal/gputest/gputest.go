// Package gputest opens a GPU for tests and benchmarks, and makes the stand-in for a GPU (tools/gpustandin) fail on purpose.
package gputest

import (
	"os"
	"strings"
	"testing"
)

// expected returns the value of the environment variable MAMBA_TEST_DEVICE:
//
//	(not set)   a test that needs a GPU is skipped if there is none
//	required    a test that needs a GPU fails if there is none
//	standin     the same, and a test that needs the stand-in fails on a GPU; tools/gpustandin.sh sets it
func expected(t testing.TB) string {
	t.Helper()
	const name = "MAMBA_TEST_DEVICE"
	v := os.Getenv(name)
	if v != "" && v != "required" && v != "standin" {
		t.Fatalf("%s is %q, want required, standin, or nothing", name, v)
	}
	return v
}

// Open opens the first GPU with cuda.Open, and closes it when the test ends. Without a GPU it skips the test, or ends it as failed
// if MAMBA_TEST_DEVICE says that there is one. On the stand-in, whatever is alive after the last device was closed fails the test.
func Open[D interface{ Close() error }](t testing.TB, open func(ordinal int) (D, error)) D {
	t.Helper()
	d, err := open(0)
	switch {
	case err != nil && expected(t) != "":
		t.Fatalf("MAMBA_TEST_DEVICE is %s, but there is no GPU: %v", expected(t), err)
	case err != nil:
		t.Skipf("no GPU: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
		if left := alive(); left != "" && !strings.Contains(left, "context") {
			t.Errorf("every device is closed, but still alive: %s", left)
		}
	})
	return d
}

// OnStandin reports whether what Open has opened is the stand-in. A test may do there less often what only takes long on the host.
func OnStandin() bool { return standin() }

// needStandin skips a test that needs the stand-in, or fails it where the stand-in is expected.
func needStandin(t testing.TB) {
	t.Helper()
	const why = "it needs the stand-in for a GPU: run it by tools/gpustandin.sh"
	if expected(t) == "standin" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// Limit sets how many more calls of a kind succeed before one fails. A negative number is no limit. It returns how many calls have
// failed since it was last called.
type Limit func(n int) (failed int)

// Allocations returns the limit on allocations of the device's memory and of pinned memory. After the limit every allocation fails
// as out of memory, until the limit is set again. It needs the stand-in.
func Allocations(t testing.TB) Limit { return limit(t, "standinAllocations") }

// Copies returns the limit on copies between host and device. After the limit one copy fails; the copies after that one succeed.
// It needs the stand-in.
func Copies(t testing.TB) Limit { return limit(t, "standinCopies") }

// Cooperative returns the limit on cooperative launches. After the limit every such launch fails as too large, and a device that is opened
// reports that it has none. It needs the stand-in.
func Cooperative(t testing.TB) Limit { return limit(t, "standinCooperative") }

// Alive lists what was created on the stand-in and not yet destroyed, as "1 context, 2 streams". It needs the stand-in.
func Alive(t testing.TB) string {
	t.Helper()
	if !standin() {
		needStandin(t)
	}
	return alive()
}
