//go:build race

package op

// The race detector makes sync.Pool drop values at random.
func init() { poolsForget = true }
