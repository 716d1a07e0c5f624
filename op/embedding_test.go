package op

import (
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/grad"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/internal/operator"
)

func embeddingUse(weight grad.Input, batch, length int, ids []float64) use {
	return use{
		f:  func(in G.Nodes) (G.Nodes, error) { return one(Embedding(in[0], in[1])) },
		in: []grad.Input{weight, {Name: "ids", Value: dense(tensor.Int, []int{batch, length}, ids), Constant: true}},
	}
}

func TestEmbedding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batch, length := size(t, "batch", 3), size(t, "length", 4)
		vocabulary, width := size(t, "vocabulary", 5), size(t, "width", 4)
		weight := drawInput(t, "weight", vocabulary, width)
		var ids, want []float64
		for range batch * length {
			id := rapid.IntRange(0, vocabulary-1).Draw(t, "id")
			ids = append(ids, float64(id))
			want = append(want, elements(weight.Value)[id*width:(id+1)*width]...)
		}
		embeddingUse(weight, batch, length, ids).holds(t, want)
	})
}

// The gradient of a row is the sum of the gradients at the positions whose id it is, and zero if there is none.
func TestEmbeddingRepeats(t *testing.T) {
	for _, lisp := range []bool{false, true} {
		g := G.NewGraph()
		weight := leaf(g, "weight", tensor.Float64, []int{3, 2}, make([]float64, 6))
		y := G.Must(Embedding(weight, leaf(g, "ids", tensor.Int, []int{2, 2}, []float64{2, 0, 2, 2})))
		got := map[string]G.Value{}
		loss := dot(y, []float64{1, 2, 3, 4, 5, 6, 7, 8})
		if err := runGradients(g, loss, map[string]*G.Node{"weight": weight}, lisp, got); err != nil {
			t.Fatal(err)
		}
		if err := near(got["weight"], []float64{3, 4, 0, 0, 13, 16}, tensor.Float64); err != nil {
			t.Errorf("lisp machine %t: %v", lisp, err)
		}
	}
}

func TestEmbeddingOutOfVocabulary(t *testing.T) {
	weight := grad.Input{Name: "weight", Value: dense(tensor.Float64, []int{5, 2}, make([]float64, 10))}
	for _, test := range []struct {
		ids  []float64
		want string
	}{
		{[]float64{0, 4, 3, 2, 1, 0}, ""},
		{[]float64{0, 1, 2, 3, 5, 4}, "op: embedding: ids[1, 1] is 5, want 0 to 4"},
		{[]float64{0, 1, -1, 3, 9, 4}, "op: embedding: ids[0, 2] is -1, want 0 to 4"},
	} {
		for _, lisp := range []bool{false, true} {
			g := G.NewGraph()
			if _, _, _, err := embeddingUse(weight, 2, 3, test.ids).build(g, tensor.Float64, nil); err != nil {
				t.Fatal(err)
			}
			err := runForward(g, lisp)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("ids %v, lisp machine %t: error %v, want %q", test.ids, lisp, err, test.want)
			}
		}
	}
}

// The rows of a tied embedding's gradient travel apart from the head's gradient only if an operator writes that. One that is passed on stands in the memory of another one.
func TestEmbeddingRowsApart(t *testing.T) {
	p, err := On(gputest.Open(t, cuda.Open), cuda.Strict)
	if err != nil {
		t.Fatal(err)
	}
	for _, passed := range []bool{false, true} {
		g := G.NewGraph()
		node := unbound(g)
		w, err := p.NewWeight(dense(f32, []int{9, 2}, make([]float64, 18)))
		if err != nil {
			t.Fatal(err)
		}
		weight := G.NodeFromAny(g, w)
		x, tied, err := TiedEmbedding(weight, node(tensor.Int, 1, 3))
		if err != nil {
			t.Fatal(err)
		}
		if passed {
			tied = G.Must(Add(tied, G.Must(p.Upload(node(f32, 2)))))
		}
		loss := G.Must(G.Sum(G.Must(Download(G.Must(Linear(x, tied, nil))))))
		grads, err := G.Grad(loss, weight)
		if err != nil {
			t.Fatal(err)
		}
		if split := operator.Split(grads[0]); (split != nil) == passed {
			t.Errorf("the head's gradient is passed on: %v, and apart from the rows: %v", passed, split != nil)
		}
	}
}
