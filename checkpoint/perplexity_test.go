package checkpoint

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	G "gorgonia.org/gorgonia"
)

// TestPerplexity prints the perplexity of the model in the folder MAMBA_PERPLEXITY, a model of bytes, on Go source code of this module, by type of weights.
func TestPerplexity(t *testing.T) {
	dir := os.Getenv("MAMBA_PERPLEXITY")
	if dir == "" {
		t.Skip("MAMBA_PERPLEXITY is not set: it names a folder that examples/finetune wrote")
	}
	var ids, targets []int
	const batch, length = 16, 1024
	files, err := filepath.Glob("../*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range text {
			ids = append(ids, int(b))
		}
	}
	if len(ids) < batch*length+1 {
		t.Fatalf("%d bytes of text", len(ids))
	}
	ids, targets = ids[:batch*length], ids[1:batch*length+1]
	var first float64
	for _, types := range []string{"float32", "bfloat16", "int8", "int4"} {
		lm, err := Load(dir, Weights(types))
		if err != nil {
			t.Fatal(err)
		}
		g := G.NewGraph()
		loss, err := lm.Loss(intLeaf(g, "ids", ids, batch, length), intLeaf(g, "targets", targets, batch, length))
		if err != nil {
			t.Fatal(err)
		}
		var v G.Value
		G.Read(loss, &v)
		m := G.NewTapeMachine(g)
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		m.Close()
		p := math.Exp(float64(v.Data().(float32)))
		if types == "float32" {
			first = p
		}
		fmt.Printf("%s: perplexity %.5f, %+.3f%%\n", types, p, 100*(p/first-1))
		for name, most := range map[string]float64{"bfloat16": 0.001, "int8": 0.005, "int4": 0.03} {
			if types == name && !(p/first-1 <= most) {
				t.Errorf("%s: the perplexity is %.3f%% larger, want at most %g%%", types, 100*(p/first-1), 100*most)
			}
		}
	}
}
