//go:build cuda

package op

import (
	"fmt"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/cudamachine"
	"github.com/gomamba/mamba/internal/operator"
)

// Gorgonia's CUDA machine runs the scan of float32 on its device. The other functions are not tested there.
func init() {
	cudamachine.Use(func(f any) bool {
		s, ok := f.(*scan[float32])
		return ok && s.Fits(cuda.Strict) == nil
	})
}

var _ G.CUDADoer = (*SelectiveScanOp)(nil)

// CUDADo runs the scan of float32 on Gorgonia's CUDA machine. A state above cuda.MaxState is an error there.
func (o *SelectiveScanOp) CUDADo(extern G.External, dev G.Device, prealloc G.Value, inputs ...G.Value) (G.Value, error) {
	on, ok := operator.Replace(o.operator()).(G.CUDADoer)
	if !ok {
		return nil, fmt.Errorf("op: %v does not run on a CUDA machine, want float32 and a state of at most %d", o, cuda.MaxState)
	}
	return on.CUDADo(extern, dev, prealloc, inputs...)
}
