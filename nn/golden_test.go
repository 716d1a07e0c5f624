package nn

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/golden"
)

const tiny = "../testdata/hf-mamba-tiny"

// goldenLM returns the model of testdata/hf-mamba-tiny, with its weights.
func goldenLM(t *testing.T, dt tensor.Dtype) *LM {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(tiny, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		HiddenSize     int     `json:"hidden_size"`
		StateSize      int     `json:"state_size"`
		Layers         int     `json:"num_hidden_layers"`
		ConvKernel     int     `json:"conv_kernel"`
		Expand         int     `json:"expand"`
		Rank           int     `json:"time_step_rank"`
		Eps            float64 `json:"layer_norm_epsilon"`
		Vocab          int     `json:"vocab_size"`
		UseBias        bool    `json:"use_bias"`
		UseConvBias    bool    `json:"use_conv_bias"`
		TieEmbeddings  bool    `json:"tie_word_embeddings"`
		ResidualInFP32 bool    `json:"residual_in_fp32"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	lm := NewLM(LMConfig{
		Config: Config{
			DModel: c.HiddenSize, NLayer: c.Layers, DState: c.StateSize, DConv: c.ConvKernel, Expand: c.Expand,
			DtRank: c.Rank, NormEps: c.Eps, Bias: c.UseBias, NoConvBias: !c.UseConvBias,
		},
		Vocab: c.Vocab, UntiedHead: !c.TieEmbeddings,
	}, WithDtype(dt))
	if lm.Err() != nil {
		t.Fatal(lm.Err())
	}
	weights, err := golden.Read(filepath.Join(tiny, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	if len(weights.Tensors) != len(lm.Params()) {
		t.Fatalf("%d tensors in the file, %d in the model", len(weights.Tensors), len(lm.Params()))
	}
	for _, p := range lm.Params() {
		w, ok := weights.Tensors[p.Name]
		if !ok || !p.Value.Shape().Eq(tensor.Shape(w.Shape)) {
			t.Fatalf("%s: shape %v in the model, %v in the file", p.Name, p.Value.Shape(), w.Shape)
		}
		assign(p.Value, w.Data)
	}
	return lm
}

func assign(to *tensor.Dense, v []float64) {
	switch d := to.Data().(type) {
	case []float32:
		for i := range d {
			d[i] = float32(v[i])
		}
	case []float64:
		copy(d, v)
	}
}

// TestGoldenModel compares the whole model with numbers from the transformers library: logits, loss and the gradient of every weight.
func TestGoldenModel(t *testing.T) {
	expected, err := golden.Read(filepath.Join(tiny, "expected.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		for _, machine := range []string{"tape", "lisp"} {
			lm := goldenLM(t, dt)
			for input := range 3 {
				t.Run(fmt.Sprintf("%v/%s/input %d", dt, machine, input), func(t *testing.T) {
					checkGoldenInput(t, lm, expected, machine, input)
				})
			}
		}
	}
}

func checkGoldenInput(t *testing.T, lm *LM, expected *golden.File, machine string, input int) {
	in, ok := expected.Input(input)
	if !ok {
		t.Fatalf("no input %d in the file", input)
	}
	batch, length := in.Batch, in.Length
	g := G.NewGraph()
	of := g // the graph of the logits, which the loss does not read: the lisp machine wants one root
	if machine == "lisp" {
		of = G.NewGraph()
	}
	logits, err := lm.Apply(intLeaf(of, "ids", in.IDs, batch, length))
	if err != nil {
		t.Fatal(err)
	}
	x, y := intLeaf(g, "ids", in.IDs, batch, length), intLeaf(g, "targets", in.Targets(Ignore), batch, length)
	loss, err := lm.Loss(x, y)
	if err != nil {
		t.Fatal(err)
	}
	var gotLogits, gotLoss G.Value
	G.Read(logits, &gotLogits)
	G.Read(loss, &gotLoss)
	if of != g {
		m := G.NewLispMachine(of, G.ExecuteFwdOnly())
		defer m.Close()
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
	}
	nodes := lm.Params().Nodes(g)
	grads := make([]G.Value, len(nodes))
	if machine == "tape" {
		gradNodes, err := G.Grad(loss, nodes...)
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range gradNodes {
			G.Read(n, &grads[i])
		}
		m := G.NewTapeMachine(g)
		defer m.Close()
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
	} else {
		m := G.NewLispMachine(g)
		defer m.Close()
		if err := m.RunAll(); err != nil {
			t.Fatal(err)
		}
		for i, n := range nodes {
			if grads[i], err = n.Grad(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := near(gotLogits, in.Logits, 1e-4); err != nil {
		t.Errorf("logits: %v", err)
	}
	if length > 1 { // with one token there is no next token to predict
		if err := near(gotLoss, []float64{in.Loss}, 1e-4); err != nil {
			t.Errorf("loss: %v", err)
		}
	}
	if input > 0 {
		return
	}
	for i, p := range lm.Params() {
		want, ok := expected.Tensors["grad0."+p.Name]
		if !ok {
			t.Errorf("%s: no gradient in the file", p.Name)
		} else if err := near(grads[i], want.Data, 1e-4); err != nil {
			t.Errorf("gradient of %s: %v", p.Name, err)
		}
	}
}

func intLeaf(g *G.ExprGraph, name string, v []int, shape ...int) *G.Node {
	return G.NodeFromAny(g, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v)), G.WithName(name))
}

func elements(v G.Value) []float64 { return golden.Elements(v.Data()) }

// near returns an error if an element differs from want by more than tol times want's largest magnitude.
func near(v G.Value, want []float64, tol float64) error {
	return golden.Near(elements(v), want, tol)
}
