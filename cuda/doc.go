// Package cuda computes on an NVIDIA GPU: devices, streams, memory, and the kernels of a Mamba model as calls on arrays. It finds
// driver and cuBLAS when a device is opened, so that a program built with a plain go build, without cgo, headers or a toolkit, uses
// the GPU if one is there; where none is, [Open] says why. It knows nothing of Gorgonia: package cuda/graph does, and nn.OnDevice
// builds models of that.
//
//	device, err := cuda.Open(0)
//	stream, err := device.NewStream()
//	u, err := cuda.Upload(stream, host)     // an Array in the device's memory
//	err = scan.Forward(stream, y, final, checkpoints)
//	err = y.CopyTo(stream, host)            // waits until the numbers are there
//
// Work is queued on a [Stream] and done in order; only copies to the host and Synchronize wait. A Device may be used by any
// number of goroutines, a Stream and what was made on it by one at a time. Close frees everything.
package cuda
