//go:build !amd64 || noasm

package kernel

type scanStepAsm struct{}

func scanStepScale([]float32) {}

func (*ScanStep) advanceAsm(*ScanStepper, *ScanStepRow, int, int, int) bool { return false }
