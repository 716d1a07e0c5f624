package nn_test

import (
	"fmt"
	"math"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// lossAndGradients runs a language model's loss on packed sequences, and returns it and the gradients of the weights that train.
func lossAndGradients(t rapid.TB, lm *nn.LM, batch, length int, bound bool, calls ...nn.CallOption) (float64, [][]float32) {
	t.Helper()
	g := G.NewGraph()
	ints := func(name string, f func(i int) int) *G.Node {
		v := make([]int, batch*length)
		for i := range v {
			v[i] = f(i)
		}
		return G.NodeFromAny(g, tensor.New(tensor.WithShape(batch, length), tensor.WithBacking(v)), G.WithName(name))
	}
	vocab := lm.Config().Vocab
	ids := ints("ids", func(i int) int { return i * 7 % vocab })
	targets := ints("targets", func(i int) int {
		if i%5 == 0 {
			return nn.Ignore
		}
		return i * 3 % vocab
	})
	start := ints("start", func(i int) int { return i % 11 / 10 })
	loss, err := lm.Loss(ids, targets, append(calls, nn.WithStart(start))...)
	if err != nil {
		t.Fatal(err)
	}
	nodes := lm.Params().Trainable().Nodes(g)
	grads, err := G.Grad(loss, nodes...)
	if err != nil {
		t.Fatal(err)
	}
	var value G.Value
	G.Read(loss, &value)
	values := make([]G.Value, len(grads))
	var opts []G.VMOpt
	if bound {
		opts = append(opts, G.BindDualValues(nodes...))
	} else {
		for i, n := range grads {
			G.Read(n, &values[i])
		}
	}
	m := G.NewTapeMachine(g, opts...)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	all := make([][]float32, len(nodes))
	for i, n := range nodes {
		v := values[i]
		if bound {
			if v, err = n.Grad(); err != nil {
				t.Fatal(err)
			}
		}
		all[i] = v.Data().([]float32)
	}
	return float64(value.Data().(float32)), all
}

// relative returns the largest error of got, relative to the largest magnitude of want.
func relative(got, want []float32) float64 { return relativeTo(1e-30, got, want) }

// relativeTo returns the largest error of got, relative to the largest magnitude of want or to least, whichever is larger.
func relativeTo(least float64, got, want []float32) float64 {
	far := 0.0
	for i, w := range want {
		far = max(far, math.Abs(float64(got[i]-w))) // max keeps a NaN
	}
	if math.IsNaN(far) {
		return math.Inf(1)
	}
	return far / max(least, largest(want))
}

func largest(v []float32) (most float64) {
	for _, x := range v {
		most = max(most, math.Abs(float64(x)))
	}
	return most
}

// TestDeviceIsHost checks that the loss and all gradients of a model on a device agree with those on the host.
func TestDeviceIsHost(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	for _, untied := range []bool{false, true} {
		for _, p := range []struct {
			cuda.Precision
			loss, grad float64
		}{{cuda.Strict, 1e-5, 1e-4}, {cuda.FP16x3, 1e-5, 1e-4}, {cuda.TF32, 2e-3, 0.02}, {cuda.BF16, 0.02, 0.1}} {
			t.Run(fmt.Sprintf("untied %v, %v", untied, p.Precision), func(t *testing.T) {
				cfg := nn.LMConfig{Config: nn.Config{DModel: 32, NLayer: 2, Bias: true}, Vocab: 50, UntiedHead: untied}
				loss, grads := lossAndGradients(t, nn.NewLM(cfg, nn.WithSeed(1)), 3, 37, false)
				lm := nn.NewLM(cfg, nn.WithSeed(1), nn.OnDevice(d), nn.WithPrecision(p.Precision))
				for _, bound := range []bool{false, true} {
					got, there := lossAndGradients(t, lm, 3, 37, bound)
					if math.Abs(got-loss) > p.loss*loss {
						t.Errorf("the loss is %v, want %v", got, loss)
					}
					for i, w := range lm.Params() {
						if far := relative(there[i], grads[i]); !(far <= p.grad) {
							t.Errorf("bound %v: the gradient of %s is %.2g off, want at most %.2g", bound, w.Name, far, p.grad)
						}
					}
				}
			})
		}
	}
}

// stackRun returns a stack's results and gradients on a device or the host, computed as a whole or in two pieces. The loss is the sum of all
// results with fixed weights.
func stackRun(t *testing.T, s *nn.MambaStack, pieces []int) (y, dx, dw []float32) {
	t.Helper()
	const batch, width = 2, 24
	g := G.NewGraph()
	var state nn.State
	var cost *G.Node
	var results []*G.Node
	var inputs G.Nodes
	at := 0
	for _, length := range pieces {
		v, c := make([]float32, batch*length*width), make([]float32, batch*length*width)
		for b := range batch {
			for i := range length * width {
				k := float64((b*100+at)*width + i)
				v[b*length*width+i], c[b*length*width+i] = float32(math.Sin(k*0.7)), float32(math.Cos(k*1.3))
			}
		}
		at += length
		node := func(v []float32, name string) *G.Node {
			return G.NodeFromAny(g, tensor.New(tensor.WithShape(batch, length, width), tensor.WithBacking(v)), G.WithName(fmt.Sprint(name, at)))
		}
		x := node(v, "x")
		inputs = append(inputs, x)
		out, next, err := s.ApplyWithState(x, state)
		if err != nil {
			t.Fatal(err)
		}
		state = next
		results = append(results, out)
		part := G.Must(G.Sum(G.Must(G.HadamardProd(out, node(c, "c")))))
		if cost == nil {
			cost = part
		} else {
			cost = G.Must(G.Add(cost, part))
		}
	}
	for _, n := range state.Nodes() {
		cost = G.Must(G.Add(cost, G.Must(G.Sum(n))))
	}
	nodes := append(inputs, s.Params().Nodes(g)...)
	grads, err := G.Grad(cost, nodes...)
	if err != nil {
		t.Fatal(err)
	}
	read := append(append(G.Nodes{}, results...), grads...)
	values := make([]G.Value, len(read))
	for i, n := range read {
		G.Read(n, &values[i])
	}
	m := G.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	// By row of the batch, so that joined pieces have the order of the whole.
	join := func(values []G.Value) (all []float32) {
		for b := range batch {
			for _, v := range values {
				d := v.Data().([]float32)
				n := len(d) / batch
				all = append(all, d[b*n:(b+1)*n]...)
			}
		}
		return all
	}
	n := len(pieces)
	for _, v := range values[2*n:] {
		dw = append(dw, v.Data().([]float32)...)
	}
	return join(values[:n]), join(values[n : 2*n]), dw
}

// TestDeviceStates checks that whole sequences and pieces on a device agree with the host, states and their gradients included.
func TestDeviceStates(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	cfg := nn.Config{DModel: 24, NLayer: 2}
	y, dx, dw := stackRun(t, nn.NewMambaStack(cfg, nn.WithSeed(3)), []int{29})
	on := nn.NewMambaStack(cfg, nn.WithSeed(3), nn.OnDevice(d))
	for _, pieces := range [][]int{{29}, {13, 16}, {28, 1}} {
		gy, gdx, gdw := stackRun(t, on, pieces)
		for name, v := range map[string][2][]float32{"y": {gy, y}, "dx": {gdx, dx}, "dw": {gdw, dw}} {
			if far := relative(v[0], v[1]); !(far <= 2e-5) {
				t.Errorf("pieces %v: %s is %.2g off", pieces, name, far)
			}
		}
	}
}

func TestDeviceErrors(t *testing.T) {
	if err := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8}, Vocab: 3}, nn.OnDevice(nil)).Err(); err == nil {
		t.Error("no device: no error")
	}
	if err := nn.NewMambaStack(nn.Config{DModel: 8}, nn.WithPrecision(cuda.BF16)).Err(); err == nil {
		t.Error("a precision without a device: no error")
	}
	d := gputest.Open(t, cuda.Open)
	for what, err := range map[string]error{
		"float64":   nn.NewMambaStack(nn.Config{DModel: 8}, nn.OnDevice(d), nn.WithDtype(tensor.Float64)).Err(),
		"precision": nn.NewMambaStack(nn.Config{DModel: 8}, nn.OnDevice(d), nn.WithPrecision(7)).Err(),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	s := nn.NewMambaStack(nn.Config{DModel: 8}, nn.OnDevice(d))
	g := G.NewGraph()
	x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 2, 8), G.WithName("x"), G.WithInit(G.Ones()))
	y, err := s.Apply(x)
	if err != nil {
		t.Fatal(err)
	}
	cost := G.Must(G.Sum(y))
	if err := G.NewLispMachine(g).RunAll(); err == nil {
		t.Errorf("the lisp machine: no error for the gradients of %v", cost)
	}
}

// TestDeviceWeights checks that a weight's value is on the device, and is copied to the host on request.
func TestDeviceWeights(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	c, err := op.On(d, cuda.Strict)
	if err != nil {
		t.Fatal(err)
	}
	host := tensor.New(tensor.WithShape(2, 2), tensor.WithBacking([]float32{1, 2, 3, 4}))
	w, err := c.NewWeight(host)
	if err != nil {
		t.Fatal(err)
	}
	double := func(s *cuda.Stream) error {
		a, err := w.Array()
		if err != nil {
			return err
		}
		if err := cuda.Add(s, a, a, a); err != nil {
			return err
		}
		w.Written()
		return nil
	}
	if err := c.Do(double); err != nil {
		t.Fatal(err)
	}
	if got := w.Data().([]float32); got[3] != 8 {
		t.Errorf("the host has %v, want the values that were written on the device", got)
	}
	host.Data().([]float32)[0] = 7
	w.HostChanged()
	if err := c.Do(func(s *cuda.Stream) error {
		a, err := w.Array()
		if err != nil {
			return err
		}
		got := make([]float32, 4)
		if err := a.CopyTo(s, got); err == nil && got[0] != 7 {
			t.Errorf("the device has %v, want the values that were written on the host", got)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.Do(double); err != nil {
		t.Fatal(err)
	}
	if err := w.Free(); err != nil {
		t.Fatal(err)
	}
	if got := w.Data().([]float32); got[0] != 14 {
		t.Errorf("after Free the host has %v, want the values that were written on the device", got)
	}
	if _, err := c.NewWeight(tensor.New(tensor.WithShape(2), tensor.Of(tensor.Float64))); err == nil {
		t.Error("a weight of float64: no error")
	}
}
