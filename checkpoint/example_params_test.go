package checkpoint_test

import (
	"fmt"
	"log"
	"os"
	"slices"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// A model that mixes a block with a weight for Gorgonia's own operators keeps its weights in a file.
func ExampleSaveParams() {
	model := func() layer.Params {
		block := nn.NewMambaBlock(nn.Config{DModel: 4}, nn.WithName("block"))
		gain := layer.NewParam("gain", tensor.New(tensor.WithShape(2), tensor.WithBacking([]float32{1, 1})), false)
		return append(slices.Clone(block.Params()), gain)
	}
	dir, err := os.MkdirTemp("", "params")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	trained := model()
	copy(trained.ByName("gain").Value.Float32s(), []float32{2, 3})
	if err := checkpoint.SaveParams(dir, trained, map[string]string{"task": "copying"}); err != nil {
		log.Fatal(err)
	}
	r, err := checkpoint.Open(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	loaded := model()
	if err := r.LoadParams(loaded, ""); err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.Metadata()["task"], loaded.ByName("gain").Value.Float32s())
	// Output: copying [2 3]
}
