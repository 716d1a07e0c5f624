// Package benchtest has what the benchmarks share.
package benchtest

import (
	"flag"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
)

var begun sync.Map // names of the benchmarks that have run

// Processors makes a benchmark run with the GOMAXPROCS that its row names, and adds the number to the row as "procs". Call it on the
// line before the loop, in each benchmark.
//
// Without it, -cpu with a list of values measures wrongly: package testing runs a b.Loop benchmark for the first time before it sets
// GOMAXPROCS to the first value of the list. So the first sample of that row ran with the last value.
func Processors(b *testing.B) {
	b.Helper()
	if _, again := begun.LoadOrStore(b.Name(), true); !again {
		list := flag.Lookup("test.cpu").Value.String()
		first, _, _ := strings.Cut(list, ",")
		if n, err := strconv.Atoi(strings.TrimSpace(first)); err == nil { // an empty list means the GOMAXPROCS of the process
			runtime.GOMAXPROCS(n)
		}
	}
	procs := float64(runtime.GOMAXPROCS(0))
	b.Cleanup(func() { b.ReportMetric(procs, "procs") }) // b.Loop would delete it
}
