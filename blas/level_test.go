package blas

import (
	"testing"

	"github.com/gomamba/mamba/internal/cpu"
)

// eachLevel runs a test at every level that this processor has. The lowest is gonum's product.
func eachLevel(t *testing.T, test func(t *testing.T)) {
	best := level
	defer func() { level = best }()
	for l := cpu.Generic; l <= best; l++ {
		level = l
		t.Run(l.String(), test)
	}
}
