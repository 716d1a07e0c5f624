package kernel

import (
	"testing"

	"github.com/gomamba/mamba/internal/cpu"
)

// eachLevel runs a test at every level of instructions that this processor has.
func eachLevel(t *testing.T, test func(t *testing.T)) {
	best := level
	defer func() { level = best }()
	for l := cpu.Generic; l <= best; l++ {
		level = l
		t.Run(l.String(), test)
	}
}
