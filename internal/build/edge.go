package build

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/internal/operator"
)

// Edge is where values go from the host to a device and back: at the first layer that has its weights on a device.
type Edge struct {
	at   operator.Place // of the weights
	both bool           // x came from the host, and so the results go back there
}

// EdgeOf returns the edge of a layer with its weights at a place, applied to x.
func EdgeOf(at operator.Place, x *G.Node) Edge {
	return Edge{at, !at.OnHost() && operator.PlaceOf(x).OnHost()}
}

// In uploads a node that is on the host, if the weights are on a device. A nil node stays nil.
func (e Edge) In(n *G.Node) (*G.Node, error) {
	if n == nil || e.at.OnHost() || !operator.PlaceOf(n).OnHost() {
		return n, nil
	}
	return e.at.Upload(n)
}

// Out downloads a result if x came from the host. A nil node stays nil.
func (e Edge) Out(n *G.Node) (*G.Node, error) {
	if n == nil || !e.both || operator.PlaceOf(n).OnHost() {
		return n, nil
	}
	return operator.Download(n)
}
