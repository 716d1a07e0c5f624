//go:build race

package op

// The race detector makes pools forget at random.
func init() { poolsForget = true }
