package mamba_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/gonum"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/grad"
)

// attentionWidth is the usual width of one head of attention.
const attentionWidth = 64

// attentionLengths are the lengths of BenchmarkAttention and BenchmarkMamba.
func attentionLengths() []int {
	if testing.Short() {
		return []int{256, 512}
	}
	return []int{256, 512, 1024, 2048, 4096, 8192, 16384}
}

// matrixProducts are the BLAS with which Gorgonia computes attention. gonum's is its default.
var matrixProducts = []struct {
	name string
	blas G.BLAS
}{{"gonum", gonum.Implementation{}}}

// BenchmarkAttention measures a layer of causal attention with one head, built from Gorgonia's own operators, at batch 1. Its time and memory
// grow with the square of the length. Compare BenchmarkMamba, a block of the same width whose time and memory grow linearly.
func BenchmarkAttention(b *testing.B) {
	before := G.WhichBLAS()
	defer G.Use(before)
	for _, p := range matrixProducts {
		G.Use(p.blas)
		for _, pass := range passes {
			for _, length := range attentionLengths() {
				name := fmt.Sprintf("blas=%s/pass=%s/M=%d/L=%d/B=1", p.name, pass.name, attentionWidth, length)
				if pass.backward && length > 8192 {
					leftOut(b, name, "it takes more than a minute and about 11 GB")
					continue
				}
				measureAttention(b, name, length, pass.runs, pass.backward)
			}
		}
	}
}

func measureAttention(b *testing.B, name string, length, runs int, backward bool) {
	b.Helper()
	const width = attentionWidth
	// Four projections, and two products with scores. Gorgonia also computes the scores above the diagonal.
	products := 2 * float64(length) * width * float64(4*width+2*length)
	measure(b, name, work{tokens: length, flop: products}.times(runs), func() program {
		g := G.NewGraph()
		in := G.Nodes{input(g, "x", length, width)}
		for _, name := range []string{"query", "key", "value", "out"} {
			in = append(in, input(g, name, width, width))
		}
		y, err := attention(in)
		if err != nil {
			return failed(err)
		}
		if !backward {
			in = nil
		}
		return newProgram(y, tensor.Shape{length, width}, in...)
	})
}

// BenchmarkMamba measures one block at the sizes of BenchmarkAttention.
func BenchmarkMamba(b *testing.B) {
	for _, pass := range passes {
		for _, length := range attentionLengths() {
			measureBlock(b, fmt.Sprintf("pass=%s/M=%d/L=%d/B=1", pass.name, attentionWidth, length),
				1, length, attentionWidth, pass.runs, pass.backward, newProgram)
		}
	}
}

// attention returns x + softmax(q kᵀ/√width + mask) v out, with q = x query, k = x key and v = x value: x is (length, width), and the weights
// query, key, value and out are (width, width).
func attention(in G.Nodes) (*G.Node, error) {
	x, query, key, value, out := in[0], in[1], in[2], in[3], in[4]
	length, width := x.Shape()[0], x.Shape()[1]
	mask, scale := maskAndScale(x.Dtype(), length, width)
	// Scale the queries, since they have fewer elements than the scores.
	q := G.Must(G.Mul(G.Must(G.Mul(x, query)), G.NewConstant(scale, G.WithName("scale"))))
	k := G.Must(G.Mul(x, key))
	v := G.Must(G.Mul(x, value))
	scores := G.Must(G.Mul(q, G.Must(G.Transpose(k))))
	shares, err := G.SoftMax(G.Must(G.Add(scores, G.NodeFromAny(x.Graph(), mask, G.WithName("mask")))))
	if err != nil {
		return nil, err
	}
	return G.Add(x, G.Must(G.Mul(G.Must(G.Mul(shares, v)), out)))
}

// maskAndScale returns the mask that hides later steps, and the factor 1/√width.
func maskAndScale(dt tensor.Dtype, length, width int) (mask *tensor.Dense, scale any) {
	mask = tensor.New(tensor.WithShape(length, length), tensor.Of(dt))
	if s := 1 / math.Sqrt(float64(width)); dt == tensor.Float32 {
		fillMask(mask.Data().([]float32), length)
		scale = float32(s)
	} else {
		fillMask(mask.Data().([]float64), length)
		scale = s
	}
	return mask, scale
}

func fillMask[T float32 | float64](mask []T, length int) {
	for i := range length {
		for j := i + 1; j < length; j++ {
			mask[i*length+j] = -1e9
		}
	}
}

// The attention that BenchmarkAttention measures agrees with its definition, and its gradients agree with finite differences.
func TestAttention(t *testing.T) {
	const length, width = 7, 4
	r := rand.New(rand.NewPCG(1, 1))
	var inputs []grad.Input
	values := map[string][]float64{}
	for _, name := range []string{"x", "query", "key", "value", "out"} {
		rows := width
		if name == "x" {
			rows = length
		}
		v := make([]float64, rows*width)
		for i := range v {
			v[i] = r.NormFloat64()
		}
		values[name] = slices.Clone(v)
		inputs = append(inputs, grad.Input{Name: name, Value: tensor.New(tensor.WithShape(rows, width), tensor.WithBacking(v))})
	}
	// On the tape machine only, as in the benchmark.
	grad.MustCheck(t, grad.Single(attention), inputs, grad.Machines(grad.Tape))

	g := G.NewGraph()
	var in G.Nodes
	for _, i := range inputs {
		in = append(in, G.NodeFromAny(g, i.Value, G.WithName(i.Name)))
	}
	var got G.Value
	G.Read(G.Must(attention(in)), &got)
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	want := plainAttention(values, length, width)
	for i, v := range got.Data().([]float64) {
		if d := math.Abs(v - want[i]); !(d < 1e-12) {
			t.Fatalf("element %d is %v, want %v", i, v, want[i])
		}
	}
}

// plainAttention computes attention by its definition, query by query.
func plainAttention(in map[string][]float64, length, width int) []float64 {
	times := func(x, w []float64) []float64 { // x (any, width) times w (width, width)
		y := make([]float64, len(x))
		for i := range y {
			for k := range width {
				y[i] += x[i/width*width+k] * w[k*width+i%width]
			}
		}
		return y
	}
	q, k, v := times(in["x"], in["query"]), times(in["x"], in["key"]), times(in["x"], in["value"])
	mixed := make([]float64, length*width)
	for i := range length {
		shares, sum := make([]float64, i+1), 0.0
		for j := range shares {
			var score float64
			for c := range width {
				score += q[i*width+c] * k[j*width+c]
			}
			shares[j] = math.Exp(score / math.Sqrt(float64(width)))
			sum += shares[j]
		}
		for j, s := range shares {
			for c := range width {
				mixed[i*width+c] += s / sum * v[j*width+c]
			}
		}
	}
	y := times(mixed, in["out"])
	for i, x := range in["x"] {
		y[i] += x
	}
	return y
}
