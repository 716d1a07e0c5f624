package op

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/operator"
)

// Device is a GPU that cuda.Open returned, and Precision how matrix products are computed there: the types of package cuda.
type (
	Device    = cuda.Device
	Precision = cuda.Precision
)

// Place is where a value is: on the host, which is the zero Place, or on a GPU together with the precision of matrix products. Operators of this
// package run where their operands are. [Place.Upload] and [Download] copy values to a GPU and back. Each is the derivative of the other.
//
// An operator on a GPU overwrites the result of its last run. A value is valid until its operator runs again; reading it later is an error.
// Therefore run one machine of a graph at a time. The lisp machine does not run on a GPU.
type Place = operator.Place

// DeviceTensor is the value on a GPU of an operator's node: numbers of float32. Array returns them for code that uses package cuda.
type DeviceTensor = operator.Tensor

// DeviceWeight is a tensor of float32 with a copy on a GPU: the value of a weight's node. Solvers write the copy and call Written.
type DeviceWeight = operator.Weight

// On returns the place of a GPU with a precision of matrix products. Errors: a nil or closed device; an unknown precision.
func On(device *Device, p Precision) (Place, error) { return operator.On(device, p) }

// PlaceOf returns the place of a node's value.
func PlaceOf(n *G.Node) Place { return operator.PlaceOf(n) }

// Download returns a node with the value of x on the host. The value of x is on a GPU. The derivative of Download is Place.Upload. Errors: an x that
// is missing, or not on a GPU.
func Download(x *G.Node) (*G.Node, error) { return operator.Download(x) }
