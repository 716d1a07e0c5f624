//go:build race

package nn

// The race detector makes sync.Pool drop values at random.
func init() { poolsForget = true }
