//go:build amd64 && !noasm

package work

// pause tells the processor that the goroutine spins, so that the other thread of its core gets the core's units. On a server with two threads a core, a step
// of generation on 16 threads took 1.8 times as long without it.
//
//go:noescape
func pause()

// processor returns the number of the processor that the goroutine runs on now, or 0 if it cannot be read. It is a hint: the goroutine may change the
// processor at any time, and systems other than Linux may number them otherwise.
func processor() int {
	if !numbered {
		return 0
	}
	return int(processorID() & 0xfff) // above it is the number of the memory's node
}

var numbered = hasRDTSCP()

// hasRDTSCP reports whether the processor has the instruction RDTSCP.
//
//go:noescape
func hasRDTSCP() bool

// processorID returns what the operating system has written to the processor's register TSC_AUX.
//
//go:noescape
func processorID() uint32
