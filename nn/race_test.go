//go:build race

package nn

// The race detector makes pools forget at random.
func init() { poolsForget = true }
