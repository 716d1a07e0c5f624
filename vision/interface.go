package vision

import (
	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/layer"
)

// Model is a model of this package: a *VMamba, *Vim or *MambaUNet.
type Model interface {
	Name() string
	Params() layer.Params
	Err() error
	Apply(x *G.Node, opts ...CallOption) (*G.Node, error)
	Features(x *G.Node, opts ...CallOption) (G.Nodes, error)
}

var _ = []Model{(*VMamba)(nil), (*Vim)(nil), (*MambaUNet)(nil)}
