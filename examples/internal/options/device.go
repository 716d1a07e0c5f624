package options

import (
	"flag"
	"fmt"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/nn"
)

// Device is the flags that say where and how a model computes.
type Device struct {
	name      string
	precision string
}

// Flags adds -device and -precision.
func (d *Device) Flags(flags *flag.FlagSet) {
	flags.StringVar(&d.name, "device", "cpu", "where to compute: cpu, or cuda for an NVIDIA GPU")
	flags.StringVar(&d.precision, "precision", "float32", "precision of matrix products on a GPU: float32, fp16x3, tf32 or bf16")
}

// GPU reports whether the model computes on a GPU.
func (d *Device) GPU() bool { return d.name == "cuda" }

// String returns the values of the flags.
func (d *Device) String() string { return d.name + ", " + d.precision }

// Check returns an error if the flags are wrong.
func (d *Device) Check() error {
	if d.name != "cpu" && d.name != "cuda" {
		return fmt.Errorf("-device is %q, should be cpu or cuda", d.name)
	}
	p, err := d.parsed()
	if err == nil && p != cuda.Strict && d.name != "cuda" {
		err = fmt.Errorf("-precision is %q, should be float32 without -device cuda", d.precision)
	}
	return err
}

func (d *Device) parsed() (cuda.Precision, error) {
	for p := cuda.Strict; p <= cuda.BF16; p++ {
		if p.String() == d.precision {
			return p, nil
		}
	}
	return 0, fmt.Errorf("-precision is %q, should be float32, fp16x3, tf32 or bf16", d.precision)
}

// Open opens the device. It returns the options that put a model there, the device's name, and a function that closes it. For the
// CPU these are no options, "" and a function that does nothing.
func (d *Device) Open() (model []nn.Option, name string, close func(), err error) {
	return d.OpenAt(func() int { return 0 })
}

// OpenAt is Open for the GPU whose number a function returns. It is not called for the CPU.
func (d *Device) OpenAt(ordinal func() int) (model []nn.Option, name string, close func(), err error) {
	if !d.GPU() {
		return nil, "", func() {}, nil
	}
	p, err := d.parsed()
	if err != nil {
		return nil, "", nil, err
	}
	device, err := cuda.Open(ordinal())
	if err != nil {
		return nil, "", nil, err
	}
	return []nn.Option{nn.OnDevice(device), nn.WithPrecision(p)}, fmt.Sprintf("%s, %v", device.Name(), p), func() { device.Close() }, nil
}
