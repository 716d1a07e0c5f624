//go:build !linux || !(amd64 || arm64)

package gputest

import "testing"

// Grant skips the test: there is no stand-in for a GPU on this platform.
func Grant(t *testing.T) func(allocations int) {
	t.Skip("no stand-in for a GPU on this platform")
	return nil
}
