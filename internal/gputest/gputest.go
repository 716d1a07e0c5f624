// Package gputest opens a GPU for tests and benchmarks.
package gputest

import (
	"testing"

	"github.com/gomamba/mamba/cuda"
)

// Open returns a GPU, or skips the test. It is closed when the test ends.
func Open(t testing.TB) *cuda.Device {
	t.Helper()
	d, err := cuda.Open(0)
	if err != nil {
		t.Skipf("no GPU: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return d
}
