package op

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

// lossUses returns uses of the losses of segmentation. The sizes grow with scale.
func lossUses(scale int, input func(name string, shape ...int) grad.Input, integers func(name string, below int, shape ...int) grad.Input) []use {
	batch, height, width, classes := 2, 3, 1+2*scale, 4
	logits, targets := []int{batch, height, width, classes}, []int{batch, height, width}
	binary := []int{batch, height, width, 1}
	of := func(loss func(logits, targets *G.Node, ignore int) (*G.Node, error), ignore int) grad.Func {
		return func(in G.Nodes) (G.Nodes, error) { return one(loss(in[0], in[1], ignore)) }
	}
	both := func(logits, targets *G.Node, ignore int) (*G.Node, error) {
		return SegmentationLoss(logits, targets, ignore, SegmentationWeights{0.7, 1.5})
	}
	return []use{
		{"binary cross-entropy", of(BinaryCrossEntropy, 2), []grad.Input{input("logits", binary...), integers("targets", 3, targets...)}},
		{"binary cross-entropy of several channels", of(BinaryCrossEntropy, -1), []grad.Input{input("logits", logits...), integers("targets", 2, logits...)}},
		{"Dice loss", of(Dice, 3), []grad.Input{input("logits", logits...), integers("targets", 4, targets...)}},
		{"Dice loss of one class", of(Dice, 2), []grad.Input{input("logits", binary...), integers("targets", 3, targets...)}},
		{"segmentation loss", of(both, -1), []grad.Input{input("logits", logits...), integers("targets", 4, targets...)}},
		{"segmentation loss of one class", of(both, -1), []grad.Input{input("logits", binary...), integers("targets", 2, binary...)}},
		{"deep supervision", func(in G.Nodes) (G.Nodes, error) {
			return one(DeepSupervision(in[:3], in[3], 3, nil, SegmentationWeights{1, 1}))
		}, []grad.Input{input("full", logits...), input("half", batch, 2, 1+scale, classes), input("quarter", batch, 1, scale, classes),
			integers("targets", 4, targets...)}},
		{"deep supervision of one class", func(in G.Nodes) (G.Nodes, error) {
			return one(DeepSupervision(in[:2], in[2], -1, []float64{1, 0.25}, SegmentationWeights{CrossEntropy: 1}))
		}, []grad.Input{input("full", binary...), input("half", batch, 2, scale, 1), integers("targets", 2, targets...)}},
	}
}

// segmentation is a problem whose losses are computed from their definitions.
type segmentation struct {
	batch, cells, classes, ignore int
	logits, targets               []float64
}

func drawSegmentation(t *rapid.T, classes int) *segmentation {
	p := &segmentation{
		batch: size(t, "batch", 3), cells: rapid.SampledFrom([]int{1, 2, 7, 40}).Draw(t, "cells"), classes: classes,
		ignore: rapid.SampledFrom([]int{-1, 0, 255}).Draw(t, "ignore"),
	}
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 14))
	p.logits = normal(r, p.batch*p.cells*classes)
	for range p.batch * p.cells {
		target := r.IntN(max(classes, 2))
		if r.IntN(4) == 0 {
			target = p.ignore
		}
		p.targets = append(p.targets, float64(target))
	}
	return p
}

// probability returns the probability of a class in a row.
func (p *segmentation) probability(row, class int) float64 {
	x := p.logits[row*p.classes:][:p.classes]
	if p.classes == 1 {
		return 1 / (1 + math.Exp(-x[0]))
	}
	var sum float64
	for _, v := range x {
		sum += math.Exp(v)
	}
	return math.Exp(x[class]) / sum
}

func (p *segmentation) entropy() float64 {
	var sum, n float64
	for row, target := range p.targets {
		switch {
		case target == float64(p.ignore):
			continue
		case p.classes > 1:
			sum -= math.Log(p.probability(row, int(target)))
		default:
			sum -= math.Log(target*p.probability(row, 0) + (1-target)*(1-p.probability(row, 0)))
		}
		n++
	}
	return sum / max(n, 1)
}

func (p *segmentation) dice() float64 {
	var sum float64
	groups := p.batch
	if p.classes > 1 {
		groups = p.classes
	}
	for g := range groups {
		both, below, smooth := 0., 0., 1e-5
		for row, target := range p.targets {
			if target == float64(p.ignore) || p.classes == 1 && row/p.cells != g {
				continue
			}
			if p.classes == 1 {
				v := p.probability(row, 0)
				both, below, smooth = both+v*target, below+v+target, 1
			} else {
				v, is := p.probability(row, g), 0.
				if int(target) == g {
					is = 1
				}
				both, below = both+v*is, below+v*v+is
			}
		}
		if p.classes == 1 {
			smooth = 1
		}
		sum += (2*both + smooth) / (below + smooth)
	}
	return 1 - sum/float64(groups)
}

func TestSegmentationLosses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawSegmentation(t, rapid.SampledFrom([]int{1, 2, 3, 9}).Draw(t, "classes"))
		in := []grad.Input{
			{Name: "logits", Value: dense(tensor.Float64, []int{p.batch, p.cells, p.classes}, p.logits)},
			{Name: "targets", Value: dense(tensor.Int, []int{p.batch, p.cells}, p.targets), Constant: true},
		}
		w := SegmentationWeights{CrossEntropy: 0.5, Dice: 2}
		use{"Dice", func(in G.Nodes) (G.Nodes, error) { return one(Dice(in[0], in[1], p.ignore)) }, in}.holds(t, []float64{p.dice()})
		use{"both", func(in G.Nodes) (G.Nodes, error) { return one(SegmentationLoss(in[0], in[1], p.ignore, w)) }, in}.
			holds(t, []float64{0.5*p.entropy() + 2*p.dice()})
	})
}

// The losses and gradients of extreme logits are finite and right.
func TestSegmentationExtremes(t *testing.T) {
	for _, dt := range everyDtype {
		for _, c := range []struct {
			name      string
			loss      func(logits, targets *G.Node, ignore int) (*G.Node, error)
			shape     []int
			logits    []float64
			targets   []float64
			want      float64
			gradients []float64
		}{
			{"right", BinaryCrossEntropy, []int{1, 2, 1}, []float64{1e4, -1e4}, []float64{1, 0}, 0, []float64{0, 0}},
			{"wrong", BinaryCrossEntropy, []int{1, 2, 1}, []float64{1e4, -1e4}, []float64{0, 1}, 1e4, []float64{0.5, -0.5}},
			{"ignored", BinaryCrossEntropy, []int{1, 2, 1}, []float64{1e4, -1e4}, []float64{9, 9}, 0, []float64{0, 0}},
			{"right", Dice, []int{1, 2, 1}, []float64{1e4, -1e4}, []float64{1, 0}, 0, []float64{0, 0}},
			{"wrong", Dice, []int{1, 2, 1}, []float64{1e4, -1e4}, []float64{0, 1}, 2. / 3, []float64{0, 0}},
			{"nothing there", Dice, []int{1, 2, 1}, []float64{-1e4, -1e4}, []float64{0, 0}, 0, []float64{0, 0}},
			{"ignored", Dice, []int{1, 2, 1}, []float64{1e4, -1e4}, []float64{9, 9}, 0, []float64{0, 0}},
			{"right", Dice, []int{1, 2, 2}, []float64{1e4, -1e4, -1e4, 1e4}, []float64{0, 1}, 0, []float64{0, 0, 0, 0}},
			{"wrong", Dice, []int{1, 2, 2}, []float64{1e4, -1e4, -1e4, 1e4}, []float64{1, 0}, 1 - 1e-5/2, []float64{0, 0, 0, 0}},
		} {
			g := G.NewGraph()
			logits, targets := leaf(g, "logits", dt, c.shape, c.logits), leaf(g, "targets", tensor.Int, c.shape[:2], c.targets)
			loss, err := c.loss(logits, targets, 9)
			if err != nil {
				t.Fatal(err)
			}
			var value G.Value
			G.Read(loss, &value)
			got := map[string]G.Value{}
			if err := runGradients(g, loss, map[string]*G.Node{"logits": logits}, false, got); err != nil {
				t.Fatal(err)
			}
			if v := elements(value)[0]; math.Abs(v-c.want) > 1e-6 || !slices.Equal(elements(got["logits"]), c.gradients) {
				t.Errorf("%s, %v %v: loss %v, want %v; gradient %v, want %v", c.name, dt, c.shape, v, c.want, elements(got["logits"]), c.gradients)
			}
		}
	}
}

// Deep supervision of outputs is the weighted sum of the losses with targets that were resized before.
func TestDeepSupervisionResizes(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 14))
	p := &segmentation{batch: 2, cells: 6, classes: 3, ignore: -1, logits: normal(r, 2*6*3)}
	var targets []float64 // (2, 5, 7), of which the output of (2, 3) cells takes rows 0 and 2, and columns 0, 2 and 4
	for b := range 2 {
		for y := range 5 {
			for x := range 7 {
				v := float64((b + y*3 + x*x) % 3)
				if targets = append(targets, v); (y == 0 || y == 2) && (x == 0 || x == 2 || x == 4) {
					p.targets = append(p.targets, v)
				}
			}
		}
	}
	g := G.NewGraph()
	loss, err := DeepSupervision(G.Nodes{leaf(g, "logits", f64, []int{2, 2, 3, 3}, p.logits)}, leaf(g, "targets", tensor.Int, []int{2, 5, 7}, targets), -1,
		[]float64{3}, SegmentationWeights{1, 0.5})
	if err != nil {
		t.Fatal(err)
	}
	var value G.Value
	G.Read(loss, &value)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	if got, want := elements(value)[0], 3*(p.entropy()+0.5*p.dice()); math.Abs(got-want) > 1e-14 {
		t.Errorf("loss %v, want %v", got, want)
	}
}

func TestSegmentationErrors(t *testing.T) {
	g := G.NewGraph()
	node := func(dt tensor.Dtype, shape ...int) *G.Node {
		return G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprint(dt, shape)))
	}
	x, ids := node(f32, 2, 4, 5, 3), node(tensor.Int, 2, 4, 5)
	ones := SegmentationWeights{1, 1}
	for i, c := range []struct {
		err  error
		want string
	}{
		{second2(Dice(nil, ids, 0)), "op: Dice loss: logits is missing"},
		{second2(Dice(x, nil, 0)), "op: Dice loss: targets is missing, want a node of int of shape (batch, …)"},
		{second2(Dice(x, node(tensor.Int, 2, 4, 6), 0)), "op: Dice loss: targets has shape (2, 4, 6), want (batch, …) = (2, 4, 5)"},
		{second2(Dice(x, node(tensor.Int, 2, 4, 5, 3), 0)), "op: Dice loss: targets has shape (2, 4, 5, 3), want (batch, …) = (2, 4, 5)"},
		{second2(Dice(x, node(f32, 2, 4, 5), 0)), "op: Dice loss: targets is of float32, want int"},
		{second2(DeepSupervision(G.Nodes{node(f32, 1, 1, 1, 1, 1, 2)}, node(tensor.Int, 1, 1, 1, 1, 1), 0, nil, ones)),
			"output 0: op: segmentation loss: logits has a grid of 4 axes, want 1 to 3"},
		{second2(CrossEntropy(x, node(tensor.Int, 2, 4), 0)), "op: cross-entropy: targets has shape (2, 4), want (batch, …) = (2, 4, 5)"},
		{second2(BinaryCrossEntropy(x, ids, 0)), "op: binary cross-entropy: targets has shape (2, 4, 5), want that of logits, (2, 4, 5, 3)"},
		{second2(BinaryCrossEntropy(x, nil, 0)), "op: binary cross-entropy: targets is missing"},
		{second2(BinaryCrossEntropy(nil, ids, 0)), "op: binary cross-entropy: logits is missing"},
		{second2(SegmentationLoss(x, ids, 0, SegmentationWeights{})), "op: segmentation loss: both weights are 0"},
		{second2(SegmentationLoss(x, ids, 0, SegmentationWeights{-1, 1})), "op: segmentation loss: weights.CrossEntropy is -1, want a finite number"},
		{second2(SegmentationLoss(x, ids, 0, SegmentationWeights{1, math.NaN()})), "op: segmentation loss: weights.Dice is NaN, want a finite number"},
		{second2(DeepSupervision(nil, ids, 0, nil, ones)), "op: deep supervision: outputs is empty"},
		{second2(DeepSupervision(G.Nodes{nil}, ids, 0, nil, ones)), "op: deep supervision: outputs[0] is missing"},
		{second2(DeepSupervision(G.Nodes{x, x}, ids, 0, []float64{1}, ones)), "op: deep supervision: weights has 1 numbers, want one for each of 2 outputs"},
		{second2(DeepSupervision(G.Nodes{x, x}, ids, 0, []float64{1, -1}, ones)), "op: deep supervision: weights[1] is -1, want a finite number"},
		{second2(DeepSupervision(G.Nodes{x}, ids, 0, []float64{0}, ones)), "op: deep supervision: all weights are 0"},
		{second2(DeepSupervision(G.Nodes{x, nil}, ids, 0, nil, ones)), "output 1: op: segmentation loss: logits is missing"},
		{second2(DeepSupervision(G.Nodes{x}, node(tensor.Int, 3, 4, 5), 0, nil, ones)),
			"output 0: op: segmentation loss: targets has shape (3, 4, 5), want (batch, …) = (2, any, any)"},
	} {
		if c.err == nil || !strings.HasPrefix(c.err.Error(), c.want) {
			t.Errorf("%d: error %v, want %s", i, c.err, c.want)
		}
	}
	for _, loss := range []func(logits, targets *G.Node, ignore int) (*G.Node, error){BinaryCrossEntropy, Dice} {
		g := G.NewGraph()
		n, err := loss(leaf(g, "logits", f64, []int{1, 2, 2, 1}, make([]float64, 4)), leaf(g, "targets", tensor.Int, []int{1, 2, 2}, []float64{0, 1, 2, 1}), -1)
		if err != nil {
			t.Fatal(err)
		}
		m := G.NewTapeMachine(g)
		if err := m.RunAll(); err == nil || !strings.Contains(err.Error(), "targets[0, 1, 0] is 2, want 0 to 1, the classes, or -1, which is ignored") {
			t.Errorf("%v: error %v", n, err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
