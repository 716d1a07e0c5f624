package nn

import (
	"math"
	"math/rand/v2"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// The loss is the mean of -log softmax of the logits at the targets that are not ignored. Starts change it as they change the logits.
func TestLoss(t *testing.T) {
	const batch, length, vocab = 2, 4, 5
	lm := NewLM(LMConfig{Config: Config{DModel: 4, NLayer: 2, DState: 2}, Vocab: vocab}, WithDtype(tensor.Float64))
	scramble(lm.Params(), rand.New(rand.NewPCG(1, 1)))
	g := G.NewGraph()
	ids := intLeaf(g, "ids", []int{0, 3, 1, 4, 2, 2, 0, 1}, batch, length)
	targets := []int{3, 1, 4, Ignore, Ignore, 0, 1, 4}
	to := intLeaf(g, "targets", targets, batch, length)
	start := WithStart(intLeaf(g, "start", []int{0, 0, 1, 0, 0, 1, 0, 0}, batch, length))

	got := forward(t, must(lm.Apply(ids)), must(lm.Apply(ids, start)), must(lm.Loss(ids, to)), must(lm.Loss(ids, to, start)))
	var want []float64
	for _, logits := range got[:2] {
		var loss float64
		for i, target := range targets {
			if target == Ignore {
				continue
			}
			row, sum := logits[i*vocab:(i+1)*vocab], 0.0
			for _, v := range row {
				sum += math.Exp(v)
			}
			loss += (math.Log(sum) - row[target]) / 6
		}
		want = append(want, loss)
	}
	for i, what := range []string{"loss", "loss with starts"} {
		if d := math.Abs(got[2+i][0] - want[i]); !(d < 1e-12) {
			t.Errorf("%s is %v, want %v", what, got[2+i][0], want[i])
		}
	}
	if math.Abs(want[0]-want[1]) < 1e-3 {
		t.Errorf("starts do not change the loss: it is %v and %v", want[0], want[1])
	}
}

// The weight of a tied head is the embedding's. An untied head has its own.
func TestHead(t *testing.T) {
	for _, untied := range []bool{false, true} {
		lm := NewLM(LMConfig{Config: Config{DModel: 3, DState: 2}, Vocab: 4, UntiedHead: untied}, WithDtype(tensor.Float64))
		params := lm.Params()
		head := params.ByName("lm_head.weight")
		if (head != nil) != untied {
			t.Fatalf("untied %t: lm_head.weight is %v", untied, head)
		}
		if !untied {
			head = params.ByName("backbone.embeddings.weight")
		}
		// The logits are the products of the head's rows and the result of the stack.
		g := G.NewGraph()
		ids := []int{1, 3}
		var rows []float64
		for _, id := range ids {
			rows = append(rows, elements(params.ByName("backbone.embeddings.weight").Value)[id*3:(id+1)*3]...)
		}
		x := leaf(g, "x", tensor.Float64, rows, 1, 2, 3)
		got := forward(t, must(lm.Apply(intLeaf(g, "ids", ids, 1, 2))), must(lm.Stack().Apply(x)))
		var want []float64
		for i := range ids {
			for token := range 4 {
				var v float64
				for j := range 3 {
					v += elements(head.Value)[token*3+j] * got[1][i*3+j]
				}
				want = append(want, v)
			}
		}
		if err := (results{"logits": got[0]}).near(results{"logits": want}, 1e-13); err != nil {
			t.Errorf("untied %t: %v", untied, err)
		}
	}
}
