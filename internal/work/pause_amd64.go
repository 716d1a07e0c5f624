//go:build amd64 && !noasm

package work

// pause tells the processor that the goroutine spins, so that the other thread of its core gets the core's units. On a server with two threads a core, a step
// of generation on 16 threads took 1.8 times as long without it.
//
//go:noescape
func pause()
