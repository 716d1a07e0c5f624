package checkpoint

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

// TestPerplexity prints the perplexity of the model in the folder MAMBA_PERPLEXITY, a model of bytes, on Go source code of this module, by type of weights.
func TestPerplexity(t *testing.T) { perplexities(t, []string{"float32", "bfloat16", "int8", "int4"}) }

// TestPerplexityOnDevice is the same on a device.
func TestPerplexityOnDevice(t *testing.T) {
	perplexityModel(t)
	perplexities(t, []string{"float32", "bfloat16", "float16", "int8"}, nn.OnDevice(gputest.Open(t, cuda.Open)))
}

func perplexityModel(t *testing.T) string {
	dir := os.Getenv("MAMBA_PERPLEXITY")
	if dir == "" {
		t.Skip("MAMBA_PERPLEXITY is not set: it names a folder that examples/finetune wrote")
	}
	return dir
}

// perplexities compares the perplexity by type of weights, read as whole sequences, as a prompt is, and step by step, as generation reads.
func perplexities(t *testing.T, types []string, opts ...nn.Option) {
	batch, length := 16, 1024
	if testing.Short() { // the stand-in is slow
		batch, length = 2, 80
	}
	dir := perplexityModel(t)
	ids, targets := sourceCode(t, batch*length)
	var first [2]float64
	for _, typ := range types {
		lm, err := Load(dir, append([]nn.Option{Weights(typ)}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range [2]float64{wholePerplexity(t, lm, ids, targets, batch, length), stepPerplexity(t, lm, ids, targets, batch, length)} {
			if typ == "float32" {
				first[i] = p
			}
			fmt.Printf("%s, %s: perplexity %.5f, %+.3f%%\n", typ, [2]string{"whole sequences", "step by step"}[i], p, 100*(p/first[i]-1))
			for name, most := range map[string]float64{"float16": 0.001, "bfloat16": 0.001, "int8": 0.005, "int4": 0.03} {
				if typ == name && !(p/first[i]-1 <= most) {
					t.Errorf("%s: the perplexity is %.3f%% larger, want at most %g%%", typ, 100*(p/first[i]-1), 100*most)
				}
			}
		}
	}
}

// sourceCode returns n bytes of source code, and the bytes after them.
func sourceCode(t *testing.T, n int) (ids, targets []int) {
	t.Helper()
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
	if len(ids) < n+1 {
		t.Fatalf("%d bytes of text", len(ids))
	}
	return ids[:n], ids[1 : n+1]
}

func wholePerplexity(t *testing.T, lm *nn.LM, ids, targets []int, batch, length int) float64 {
	t.Helper()
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
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	return math.Exp(float64(v.Data().(float32)))
}

func stepPerplexity(t *testing.T, lm *nn.LM, ids, targets []int, batch, length int) float64 {
	t.Helper()
	s, err := nn.NewStepper(lm, batch)
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	tokens := make([]int, batch)
	for i := range length {
		for row := range tokens {
			tokens[row] = ids[row*length+i]
		}
		logits, err := s.Step(tokens)
		if err != nil {
			t.Fatal(err)
		}
		for row, v := range logits {
			var exps float64
			for _, x := range v {
				exps += math.Exp(x)
			}
			sum += math.Log(exps) - v[targets[row*length+i]]
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return math.Exp(sum / float64(batch*length))
}
