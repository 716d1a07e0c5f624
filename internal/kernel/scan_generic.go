//go:build !amd64 || noasm

package kernel

// scanAsm is the scan's assembly, of which there is none here: a scan's asm is always nil.
type scanAsm struct{ states []states }

func newScanAsm[T Float](*scanRun[T], int) *scanAsm { return nil }

func (*scanAsm) begin(strip, width int)                             {}
func (*scanAsm) newBack(back any)                                   {}
func (*scanAsm) prepare(strip, from, to int)                        {}
func (*scanAsm) scan(scanPass, int, states, int, segment)           {}
func (*scanAsm) finish(strip, from, to int)                         {}
func (*scanAsm) ungate(strip, from, to int)                         {}
func (*scanAsm) scanBack(strip int, ns states, from int, s segment) {}
func (*scanAsm) finishBack(strip, from, to int)                     {}
