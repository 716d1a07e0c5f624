//go:build !amd64 || noasm

package kernel

// scanAsm has no assembly in this build: newScanAsm returns nil, and the methods are never called.
type scanAsm struct{ back *scanBack[float32] }

func newScanAsm[T Float](*scanRun[T]) *scanAsm { return nil }

func (*scanAsm) cut([]states) []states                    { return nil }
func (*scanAsm) lay(layout any, steps int)                {}
func (*scanAsm) begin(strip, width int)                   {}
func (*scanAsm) advance(scanPass, int, int, int) bool     { return false }
func (*scanAsm) prepare(strip, from, to int)              {}
func (*scanAsm) scan(scanPass, int, states, int, segment) {}
func (*scanAsm) finish(strip, from, to int)               {}
func (*scanAsm) prepareBack(strip, from, to int)          {}
func (*scanAsm) wholeTiles() bool                         { return false }
func (*scanAsm) both(strip, from int, s segment)          {}
func (*scanAsm) scanBack(int, states, int, segment)       {}
func (*scanAsm) finishBack(strip, from, to int)           {}
