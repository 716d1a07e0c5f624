// Package cuda runs the selective scan on an NVIDIA GPU. It finds the driver when a device is opened, so that a program built
// with a plain go build, without cgo, headers or a toolkit, uses the GPU if one is there; where none is, [Open] says why.
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
