package vision_test

import (
	"fmt"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/vision"
)

// A small VMamba classifies an image that is not square. Its weights are random, so only the shape of the result means something.
func ExampleVMamba() {
	m := vision.NewVMamba(vision.VMambaConfig{Classes: 10, Depths: []int{1, 1}, Dims: []int{16}}, layer.WithSeed(1))
	g := G.NewGraph()
	image := tensor.New(tensor.WithShape(1, 48, 64, 3), tensor.Of(tensor.Float32)) // (batch, height, width, channels)
	logits, err := m.Apply(G.NodeFromAny(g, image, G.WithName("image")))
	if err != nil {
		fmt.Println(err)
		return
	}
	machine := G.NewTapeMachine(g)
	defer machine.Close()
	if err := machine.RunAll(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(logits.Value().Shape(), m.Params()[0].Name)
	// Output: (1, 10) patch_embed.0.weight
}

// A MambaUNet gives each voxel of a volume logits, whatever the size of the volume.
func ExampleMambaUNet() {
	m := vision.NewMambaUNet(vision.MambaUNetConfig{Classes: 3, Axes: 3, Dims: []int{4}, Depths: []int{1, 1}}, layer.WithSeed(1))
	g := G.NewGraph()
	volume := tensor.New(tensor.WithShape(1, 6, 9, 8, 1), tensor.Of(tensor.Float32)) // (batch, depth, height, width, channels)
	logits, err := m.Apply(G.NodeFromAny(g, volume, G.WithName("volume")))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(logits.Shape())
	// Output: (1, 6, 9, 8, 3)
}
