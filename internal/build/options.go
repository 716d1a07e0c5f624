// Package build has what layers are made of, apart from their weights: options, initial values, the memory that weights need, the
// common part of every layer (Base), and Steps, which applies operators one after another and keeps the first error.
//
// Packages layer and nn build their layers with it. Users of layers see only the aliases in package layer.
package build

import (
	"fmt"
	"sync/atomic"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/internal/size"
)

// Option is an option that every layer has.
type Option func(*Options)

// Options holds the values of options.
type Options struct {
	Name   string
	Dtype  tensor.Dtype
	Seed   uint64
	Seeded bool // the seed was given
	Zeros  bool // the weights are zero instead of drawn
	Empty  bool // the weights have no values; whoever makes the layer sets them

	Narrow string // the types of weights that checkpoint.Load shall use; it removes the option

	Place     operator.Place // of the weights; Collect sets it
	Device    *cuda.Device
	OnDevice  bool // Device was given
	Precision cuda.Precision

	number uint64 // of a layer that has neither a name nor a seed; 0 for all others

	count   *size.Bytes // New adds to it instead of drawing weights; nil while weights are drawn
	times   int         // how many times New adds
	counted bool        // the weights fit into memory
}

var numbers atomic.Uint64

// Collect applies options to the defaults. It returns an error if one of them is nil or invalid.
func Collect(opts []Option) (Options, error) {
	o := Options{Dtype: tensor.Float32, times: 1}
	for i, opt := range opts {
		if opt == nil {
			return o, fmt.Errorf("option %d is nil", i)
		}
		opt(&o)
	}
	if o.OnDevice {
		var err error
		if o.Place, err = operator.On(o.Device, o.Precision); err != nil {
			return o, err
		}
	}
	switch {
	case o.Narrow != "":
		return o, fmt.Errorf("the option Weights is %q, want none: checkpoint.Load alone has it", o.Narrow)
	case o.Dtype.Type == nil: // printing it panics
		return o, fmt.Errorf("dtype is missing, want float32 or float64")
	case o.Dtype != tensor.Float32 && o.Dtype != tensor.Float64:
		return o, fmt.Errorf("dtype is %v, want float32 or float64", o.Dtype)
	case o.Precision.Err() != nil:
		return o, o.Precision.Err()
	case o.Precision != cuda.Strict && o.Place.OnHost():
		return o, fmt.Errorf("precision is %v, which wants a device: OnDevice", o.Precision)
	case !o.Place.OnHost() && o.Dtype != tensor.Float32:
		return o, fmt.Errorf("dtype is %v, want float32 on a device", o.Dtype)
	}
	if o.Name == "" && !o.Seeded {
		o.number = numbers.Add(1)
	}
	return o, nil
}

// Part returns the options of a part of the layer. The part's name comes after the layer's. A part is made on the host: the layer moves all
// of its weights together.
func (o Options) Part(name string) []Option {
	return []Option{func(part *Options) {
		*part = o
		part.Name = Join(o.Name, name)
		part.ToHost()
	}}
}

// ToHost removes the device and the precision.
func (o *Options) ToHost() {
	o.Place, o.Device, o.OnDevice, o.Precision = operator.Place{}, nil, false, 0
}

// Join returns the name of a part: name, a dot and part, or only the one that is not empty.
func Join(name, part string) string {
	if name == "" || part == "" {
		return name + part
	}
	return name + "." + part
}
