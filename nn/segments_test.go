package nn

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/dist/disttest"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
)

// cuts are how the steps of a sequence are divided among ranks.
var cuts = [][]int{{13}, {6, 7}, {1, 9, 3}}

// passes runs a model forwards and backwards over this rank's steps of x (2, 13, width). It returns the results and the gradients of x and of the weights.
func passes[T float32 | float64](g *dist.Group, cut []int, apply func(x *G.Node, opts ...CallOption) (*G.Node, error), params layer.Params, width int) (y, dx, dw []T, err error) {
	const batch = 2
	from, length := 0, 0
	for rank, n := range cut {
		length += n
		if rank < g.Rank() {
			from += n
		}
	}
	steps := cut[g.Rank()]
	r := rand.New(rand.NewPCG(1, 2))
	part := func(width int) *tensor.Dense {
		var own []T
		for range batch {
			for t := range length {
				for range width {
					if v := T(r.NormFloat64()); t >= from && t < from+steps {
						own = append(own, v)
					}
				}
			}
		}
		return tensor.New(tensor.WithShape(batch, steps, width), tensor.WithBacking(own))
	}
	e := G.NewGraph()
	x := G.NodeFromAny(e, part(width), G.WithName("x"))
	factor := G.NodeFromAny(e, part(width), G.WithName("factor"))
	out, err := apply(x, WithSegments(g))
	if err != nil {
		return nil, nil, nil, err
	}
	loss := G.Must(G.Sum(G.Must(G.HadamardProd(out, factor))))
	wrt := append(G.Nodes{x}, params.Trainable().Nodes(e)...)
	if _, err := G.Grad(loss, wrt...); err != nil {
		return nil, nil, nil, err
	}
	var result G.Value
	G.Read(out, &result)
	vm := G.NewTapeMachine(e, G.BindDualValues(wrt...))
	defer vm.Close()
	if err := vm.RunAll(); err != nil {
		return nil, nil, nil, err
	}
	for i, n := range wrt {
		v, err := n.Grad()
		if err != nil {
			return nil, nil, nil, err
		}
		if d := v.Data().([]T); i == 0 {
			dx = append(dx, d...)
		} else {
			dw = append(dw, d...)
		}
	}
	return append(y, result.Data().([]T)...), dx, dw, dist.AllReduce(g, dw)
}

// Sequences that are cut over ranks give the results and all gradients of one process, for layers of every kind.
func TestSegments(t *testing.T) {
	compareSegments[float64](t, 1e-10, func(int) Option { return WithDtype(tensor.Float64) })
}

// The same on a GPU for each rank. The states go through the memory of the host, since NCCL wants two GPUs; TestSegmentsNCCL runs processes.
func TestSegmentsOnDevice(t *testing.T) {
	var devices []*cuda.Device
	for range cuts[len(cuts)-1] {
		devices = append(devices, gputest.Open(t, cuda.Open))
	}
	throughHosts = true
	defer func() { throughHosts = false }()
	compareSegments[float32](t, 1e-4, func(rank int) Option { return OnDevice(devices[rank]) })
}

// segmentSubjects are what is cut over ranks, with the options.
func segmentSubjects(width int, o Option) map[string]func() (func(x *G.Node, opts ...CallOption) (*G.Node, error), layer.Params) {
	config := Config{DModel: width, DState: 4, NHead: 2, Window: 4, Pattern: Kinds(), NLayer: len(Kinds())}
	return map[string]func() (func(x *G.Node, opts ...CallOption) (*G.Node, error), layer.Params){
		"block": func() (func(x *G.Node, opts ...CallOption) (*G.Node, error), layer.Params) {
			b := NewMambaBlock(Config{DModel: width, DState: 3}, o, WithSeed(4))
			return b.Apply, b.Params()
		},
		"all kinds": func() (func(x *G.Node, opts ...CallOption) (*G.Node, error), layer.Params) {
			s := NewMambaStack(config, o, WithSeed(3))
			return s.Apply, s.Params()
		},
	}
}

func compareSegments[T float32 | float64](t *testing.T, tol float64, option func(rank int) Option) {
	const width = 8
	near := func(got, want T) bool { return math.Abs(float64(got-want)) <= tol*(1+math.Abs(float64(want))) }
	for name := range segmentSubjects(width, nil) {
		var one [3][]T
		for _, cut := range cuts {
			t.Run(fmt.Sprint(name, cut), func(t *testing.T) {
				all := make([][3][]T, len(cut))
				if err := errors.Join(disttest.Run(len(cut), func(g *dist.Group) error {
					apply, params := segmentSubjects(width, option(g.Rank()))[name]()
					y, dx, dw, err := passes[T](g, cut, apply, params, width)
					all[g.Rank()] = [3][]T{y, dx, dw}
					return err
				})...); err != nil {
					t.Fatal(err)
				}
				if len(cut) == 1 {
					one = all[0]
					return
				}
				from := 0
				for rank, n := range cut {
					for i, what := range []string{"result", "gradient of x"} {
						at := 0
						for b := range 2 {
							for k := range n * width {
								want := one[i][(b*13+from)*width+k]
								if got := all[rank][i][at]; !near(got, want) {
									t.Fatalf("rank %d: %s, sequence %d, number %d is %v, want %v", rank, what, b, k, got, want)
								}
								at++
							}
						}
					}
					for i, want := range one[2] {
						if got := all[rank][2][i]; !near(got, want) {
							t.Fatalf("rank %d: gradient %d of the weights is %v, want %v", rank, i, got, want)
						}
					}
					from += n
				}
			})
		}
	}
}

func TestSegmentsErrors(t *testing.T) {
	for what, test := range map[string]struct {
		f    func(x *G.Node, o CallOption) error
		want string
	}{
		"full attention": {func(x *G.Node, o CallOption) error {
			s := NewMambaStack(Config{DModel: 8, NHead: 2, Pattern: []Kind{Attention}}, WithDtype(tensor.Float64))
			_, err := s.Apply(x, o)
			return err
		}, "nn: layer 0"},
		"with a state": {func(x *G.Node, o CallOption) error {
			s := NewMambaStack(Config{DModel: 8}, WithDtype(tensor.Float64))
			_, _, err := s.ApplyWithState(x, nil, o)
			return err
		}, "nn: segments: the stack is applied with a state"},
		"a layer alone": {func(x *G.Node, o CallOption) error {
			_, err := layer.NewMinGRU(layer.MinGRUConfig{Channels: 8}, layer.WithDtype(tensor.Float64)).Apply(x, o)
			return err
		}, "segments are for a block, a stack or a language model"},
	} {
		for rank, err := range disttest.Run(2, func(g *dist.Group) error {
			x := G.NewTensor(G.NewGraph(), tensor.Float64, 3, G.WithShape(1, 3, 8), G.WithName("x"))
			return test.f(x, WithSegments(g))
		}) {
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: the error of rank %d is %v, want %q", what, rank, err, test.want)
			}
		}
	}
	// A rank that fails in the middle of a pass does not let the next one wait.
	for rank, err := range disttest.Run(2, func(g *dist.Group) error {
		if g.Rank() == 0 {
			if err := dist.Send(g, []float64{1}, 1); err != nil {
				return err
			}
			return errors.New("out of memory")
		}
		x := make([]float64, 1)
		if err := dist.Receive(g, x, 0); err != nil {
			return err
		}
		return dist.Receive(g, x, 0)
	}) {
		if err == nil || !strings.Contains(err.Error(), "out of memory") {
			t.Errorf("the error of rank %d is %v, want that of rank 0", rank, err)
		}
	}
}
