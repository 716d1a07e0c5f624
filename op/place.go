//go:build !cuda

package op

import G "gorgonia.org/gorgonia"

// place returns the operator to add to a graph: o itself. Under the build tag cuda, place_cuda.go returns an operator for the device if it
// has one.
func place(o *operator) G.Op { return o }

func placeGradients(o *gradients) G.Op { return o }
