package nn

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// A sequence of a hybrid model that is loaded from its file continues as without the file. A model of other layers refuses it.
func TestKindsSequenceFile(t *testing.T) {
	lm := NewLM(hybrid(), WithSeed(4))
	scramble(lm.Params(), rand.New(rand.NewPCG(9, 1)))
	g := must(NewGenerator(lm, GenerateConfig{MaxTokens: 5, Piece: 3, Sampling: Sampling{Temperature: 1}}))
	defer g.Close()
	ctx, s := context.Background(), NewSequence(1, 1, 2, 3, 4, 5, 6, 7, 8)
	if _, err := g.Continue(ctx, []*Sequence{s}, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "sequence")
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	loaded := must(LoadSequence(path))
	other := hybrid()
	other.Window = 6
	for _, c := range []struct {
		cfg  LMConfig
		want string
	}{
		{other, "has state layers.6.window of float32 (4, 17), want float32 (5, 17) as the model"},
		{LMConfig{Config: Config{DModel: 8, NLayer: 9, DState: 4}, Vocab: 11},
			"has no state layers.2.conv, which the model has"},
	} {
		if err := loaded.fits(NewLM(c.cfg)); err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	want, err := g.Continue(ctx, []*Sequence{s}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := g.Continue(ctx, []*Sequence{loaded}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got[0], want[0]) {
		t.Errorf("the sequence from the file continues with %v, want %v", got[0], want[0])
	}
}

// The steps of a Stepper of a hybrid model have the logits of the whole text, also long after the first window.
func TestKindsStepper(t *testing.T) {
	const length = 23
	lm := NewLM(hybrid(), WithDtype(tensor.Float64))
	r := rand.New(rand.NewPCG(10, 1))
	scramble(lm.Params(), r)
	text := make([]int, length)
	for i := range text {
		text[i] = r.IntN(11)
	}
	whole := logitsOf(t, lm, text)
	s := must(NewStepper(lm, 1))
	defer s.Close()
	for again := range 2 { // at first, and after Reset
		got, want := results{}, results{}
		for i, token := range text {
			row, err := s.Step([]int{token})
			if err != nil {
				t.Fatal(err)
			}
			got[fmt.Sprint("step ", i)], want[fmt.Sprint("step ", i)] = row[0], whole[i*11:(i+1)*11]
		}
		if err := got.near(want, 1e-10); err != nil {
			t.Errorf("run %d: %v", again, err)
		}
		s.Reset()
	}
}

// The loss and all gradients of a hybrid model are the same bit for bit for any number of processors, and those of float32 agree with those of
// float64 to within rounding.
func TestKindsProcessorsAndTypes(t *testing.T) {
	const batch, length = 2, 150
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	cfg := hybrid()
	cfg.Window = 40
	run := func(dt tensor.Dtype, processors int) results {
		runtime.GOMAXPROCS(processors)
		lm := NewLM(cfg, WithDtype(dt), WithSeed(6))
		ids, targets := counting(batch, length, cfg.Vocab)
		g := G.NewGraph()
		loss := must(lm.Loss(intLeaf(g, "ids", ids, batch, length), intLeaf(g, "targets", targets, batch, length)))
		var value G.Value
		G.Read(loss, &value)
		values, err := gradients(g, loss, lm.Params().Nodes(g), false)
		if err != nil {
			t.Fatal(err)
		}
		all := results{"loss": elements(value)}
		for i, p := range lm.Params() {
			all[p.Name] = elements(values[i])
		}
		return all
	}
	want := run(tensor.Float32, 1)
	for _, processors := range []int{2, 5} {
		for name, v := range run(tensor.Float32, processors) {
			if !slices.Equal(v, want[name]) {
				t.Errorf("%d processors: %s differs", processors, name)
			}
		}
	}
	if err := want.near(run(tensor.Float64, 2), 2e-3); err != nil {
		t.Errorf("float32: %v", err)
	}
}
