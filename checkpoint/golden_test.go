package checkpoint

import (
	"bytes"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/golden"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

const (
	tiny     = "../testdata/hf-mamba-tiny"
	sharded  = "../testdata/hf-mamba-tiny-bf16-sharded"
	original = "../testdata/original-mamba-tiny"
)

// TestGoldenCheckpoint loads checkpoints and compares them with the results of transformers in their expected.safetensors: logits within
// 1e-4 of the largest magnitude, loss within 1e-5, each gradient within 1e-3 of its largest magnitude, and the same greedy tokens. If
// MAMBA_GOLDEN is set, the test also runs on every folder of that directory that has an expected.safetensors. TestGoldenScan in op
// tests folders that have only *_scan.safetensors.
func TestGoldenCheckpoint(t *testing.T) {
	given, err := golden.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if given.Dir != "" && len(given.Checkpoints) == 0 {
		fmt.Printf("no checkpoint: %v\n", given)
	}
	for _, dir := range slices.Concat([]string{tiny, sharded, original}, given.Checkpoints) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			lm, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			expected, err := golden.Read(filepath.Join(dir, "expected.safetensors"))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("%s: %s\n", dir, checkGolden(t, lm, expected))
		})
	}
}

// TestGoldenOnDevice is the same for models on a GPU.
func TestGoldenOnDevice(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	for _, dir := range []string{tiny, sharded, original} {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			lm, err := Load(dir, nn.OnDevice(d))
			if err != nil {
				t.Fatal(err)
			}
			expected, err := golden.Read(filepath.Join(dir, "expected.safetensors"))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("%s on %s: %s\n", dir, d.Name(), checkGolden(t, lm, expected))
		})
	}
}

// TestDeviceSaveFailure: a save whose copies from the device fail is an error, and the old checkpoint stays.
func TestDeviceSaveFailure(t *testing.T) {
	limit := gputest.Copies(t)
	d := gputest.Open(t, cuda.Open)
	lm, dir := newLM(t, someConfigs()[0], nn.OnDevice(d)), t.TempDir()
	if err := Save(dir, lm); err != nil {
		t.Fatal(err)
	}
	old := get(t, filepath.Join(dir, weightsFile))
	w := lm.Params()[0].OnDevice()
	if err := w.Place().Do(func(s *cuda.Stream) error { // it changes on the device
		a, err := w.Array()
		if err == nil {
			err = cuda.Add(s, a, a, a)
		}
		w.Written()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	limit(0)
	err := Save(dir, lm)
	if failed := limit(-1); failed != 1 || err == nil || !strings.Contains(err.Error(), "CUDA_ERROR_UNKNOWN") {
		t.Errorf("%d copies failed: error %v, want the device's", failed, err)
	}
	if !bytes.Equal(get(t, filepath.Join(dir, weightsFile)), old) {
		t.Error("the checkpoint has changed")
	}
	if err := Save(dir, lm); err != nil || bytes.Equal(get(t, filepath.Join(dir, weightsFile)), old) {
		t.Errorf("again: error %v, or the old weights", err)
	}
}

// checkGolden compares everything in the file and says what that was.
func checkGolden(t *testing.T, lm *nn.LM, expected *golden.File) string {
	t.Helper()
	inputs, gradients := 0, 0
	var worstLogits, worstLoss, worstGradient float64
	within := func(what string, got, want []float64, tol float64, worst *float64) {
		d, err := golden.Distance(got, want)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if !(d <= tol) {
			t.Errorf("%s: off by %.2g of the largest magnitude, want at most %g", what, d, tol)
		}
		*worst = max(*worst, d)
	}
	for {
		in, ok := expected.Input(inputs)
		if !ok {
			break
		}
		logits, loss, grads := evaluate(t, lm, in)
		within(fmt.Sprint("logits", inputs), logits, in.Logits, 1e-4, &worstLogits)
		if in.Length > 1 { // with one token there is nothing to predict
			d := math.Abs(loss - in.Loss)
			if !(d <= 1e-5) {
				t.Errorf("loss%d is %v, want %v", inputs, loss, in.Loss)
			}
			worstLoss = max(worstLoss, d)
		}
		for i, p := range lm.Params() {
			for _, name := range []string{p.Name, originalName(p.Name)} {
				key := fmt.Sprintf("grad%d.%s", inputs, name)
				if want, ok := expected.Tensors[key]; ok {
					within(key, grads[i], want.Data, 1e-3, &worstGradient)
					gradients++
					break
				}
			}
		}
		inputs++
	}
	if inputs == 0 {
		t.Error("no ids0 in the file")
	}
	wanted := 0
	for key := range expected.Tensors {
		if strings.HasPrefix(key, "grad") {
			wanted++
		}
	}
	if gradients != wanted {
		t.Errorf("%d of the %d gradients in the file are of weights of the model", gradients, wanted)
	}
	greedy := golden.Ints(expected.Tensors["greedy"])
	prompt := golden.Ints(expected.Tensors["prompt"])
	if len(prompt) > 0 {
		if got := generate(t, lm, prompt, len(greedy)); !slices.Equal(got, greedy) {
			t.Errorf("greedy tokens are %v, want %v", got, greedy)
		}
	}
	return fmt.Sprintf("%d inputs: logits within %.1e (of 1e-4), loss within %.1e (of 1e-5), %d gradients within %.1e (of 1e-3); %d greedy tokens equal",
		inputs, worstLogits, worstLoss, gradients, worstGradient, len(greedy)-len(prompt))
}

func originalName(name string) string { return strings.Replace(name, ".embeddings.", ".embedding.", 1) }

// evaluate returns logits, loss and the gradients of all weights.
func evaluate(t *testing.T, lm *nn.LM, in golden.Input) (logits []float64, loss float64, grads [][]float64) {
	t.Helper()
	g := G.NewGraph()
	ids, targets := intLeaf(g, "ids", in.IDs, in.Batch, in.Length), intLeaf(g, "targets", in.Targets(nn.Ignore), in.Batch, in.Length)
	logitsNode, err := lm.Apply(ids)
	if err != nil {
		t.Fatal(err)
	}
	lossNode, err := lm.Loss(ids, targets)
	if err != nil {
		t.Fatal(err)
	}
	gradNodes, err := G.Grad(lossNode, lm.Params().Nodes(g)...)
	if err != nil {
		t.Fatal(err)
	}
	var logitsValue, lossValue G.Value
	G.Read(logitsNode, &logitsValue)
	G.Read(lossNode, &lossValue)
	values := make([]G.Value, len(gradNodes))
	for i, n := range gradNodes {
		G.Read(n, &values[i])
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		grads = append(grads, golden.Elements(v.Data()))
	}
	return golden.Elements(logitsValue.Data()), golden.Elements(lossValue.Data())[0], grads
}

func intLeaf(g *G.ExprGraph, name string, v []int, shape ...int) *G.Node {
	return G.NodeFromAny(g, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(v)), G.WithName(name))
}

// generate continues a prompt with the most likely tokens, until it has n tokens.
func generate(t *testing.T, lm *nn.LM, prompt []int, n int) []int {
	t.Helper()
	s, err := nn.NewStepper(lm, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tokens := slices.Clone(prompt)
	for i := 0; i < n-1; i++ {
		logits, err := s.Step(tokens[i : i+1])
		if err != nil {
			t.Fatal(err)
		}
		if i == len(tokens)-1 {
			best := 0
			for id, v := range logits[0] {
				if v > logits[0][best] {
					best = id
				}
			}
			tokens = append(tokens, best)
		}
	}
	return tokens
}
