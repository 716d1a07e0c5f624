package work

import "testing"

// The race detector does not report that Fetch reads what another goroutine writes: the processor that waits in Step.ahead may fetch the states of a task that another one has taken.
func TestFetchWhatIsWritten(t *testing.T) {
	v, done := make([]float32, 1<<12), make(chan bool)
	go func() {
		for i := range v {
			v[i] = 1
		}
		close(done)
	}()
	for part := range FetchParts(v) {
		Fetch(v, part)
	}
	<-done
}
