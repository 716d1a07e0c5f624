package options

import (
	"flag"
	"fmt"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/nn"
)

// Device is where and how a model computes, as flags.
type Device struct {
	name      string
	precision string
}

// Flags adds -device and -precision.
func (d *Device) Flags(flags *flag.FlagSet) {
	flags.StringVar(&d.name, "device", "cpu", "`cpu or cuda`, an NVIDIA GPU")
	flags.StringVar(&d.precision, "precision", "float32", "`float32, tf32 or bf16` on a GPU")
}

// GPU reports whether the model is to compute on one.
func (d *Device) GPU() bool { return d.name == "cuda" }

// String is the flags as they are.
func (d *Device) String() string { return d.name + ", " + d.precision }

// Check returns what is wrong with the flags.
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
	return 0, fmt.Errorf("-precision is %q, should be float32, tf32 or bf16", d.precision)
}

// Open opens the device: it returns the options of a model there, what it is called, and what closes it. For the CPU, none, "" and
// a function that does nothing.
func (d *Device) Open() (model []nn.Option, name string, close func(), err error) {
	if !d.GPU() {
		return nil, "", func() {}, nil
	}
	p, err := d.parsed()
	if err != nil {
		return nil, "", nil, err
	}
	device, err := cuda.Open(0)
	if err != nil {
		return nil, "", nil, err
	}
	return []nn.Option{nn.OnDevice(device), nn.WithPrecision(p)}, fmt.Sprintf("%s, %v", device.Name(), p), func() { device.Close() }, nil
}
