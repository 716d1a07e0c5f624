//go:build !cuda

package op

import G "gorgonia.org/gorgonia"

// place returns the operator as it runs in Gorgonia's machines; under the build tag cuda that may be on a device.
func place(o *operator) G.Op { return o }

func placeGradients(o *gradients) G.Op { return o }
