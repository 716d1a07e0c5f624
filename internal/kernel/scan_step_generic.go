//go:build !amd64 || noasm

package kernel

type scanStepAsm struct{}

func scanStepScale([]float32) {}

func (*ScanStep) advanceAsm(w *ScanStepper, _ *ScanStepRow, _, _, _ int) bool {
	_ = w.asm // it is empty here
	return false
}
