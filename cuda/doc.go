// Package cuda computes on an NVIDIA GPU. It has devices, streams, arrays in the device's memory, and the kernels of a Mamba model as
// functions of arrays. A plain go build suffices, without cgo, headers or a toolkit: [Open] loads the driver and cuBLAS at run time. If there
// is no usable GPU, Open returns an error that says why. The package does not use Gorgonia. Package op joins the two, and nn.OnDevice
// builds models with it.
//
//	device, err := cuda.Open(0)
//	stream, err := device.NewStream()
//	u, err := cuda.Upload(stream, host)     // an Array in the device's memory
//	err = scan.Forward(stream, y, final, checkpoints)
//	err = y.CopyTo(stream, host)            // waits until the numbers are there
//
// Functions queue work on a [Stream], which runs it in order. Copies to the host and Synchronize wait until the results are there. A stream can
// hold back work that repeats, to queue it as a CUDA graph ([Device.Launches]). Before another library reads an array at its address, call
// Synchronize, or wait for an [Event]. Several
// goroutines may use a Device at the same time. Only one at a time may use a Stream and the arrays made on it. Close of the Device frees
// everything.
package cuda
