package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/work"
	"gonum.org/v1/gonum/blas/gonum"
)

// blockCase is a block with random operands, and the gradients of its results.
type blockCase struct {
	Block[float32]
	dy, dcontext, dfinal []float32
}

func newBlockCase(seed uint64, batch, length, model, channels, state, width, rank int) *blockCase {
	r := rand.New(rand.NewPCG(seed, 1))
	v := func(sizes ...int) []float32 {
		n := 1
		for _, size := range sizes {
			n *= size
		}
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return x
	}
	c := &blockCase{Block: Block[float32]{
		Batch: batch, Length: length, Model: model, Channels: channels, State: state, Width: width, Rank: rank, Eps: 0.1,
		X: v(batch, length, model), BlockWeights: BlockWeights[[]float32]{
			Norm: v(model), InProj: v(2*channels, model), Conv: v(channels, width),
			XProj: v(rank+2*state, channels), DtProj: v(channels, rank), DtBias: v(channels), ALog: v(channels, state), D: v(channels),
			OutProj: v(model, channels), InBias: v(2 * channels), ConvBias: v(channels), OutBias: v(model),
		},
		Context: v(batch, width-1, channels), Initial: v(batch, channels, state), Start: make([]bool, batch*length),
		Gemm: gonum.Implementation{}.Sgemm,
	}}
	for i := range c.Start {
		c.Start[i] = r.IntN(5) == 0
	}
	c.dy, c.dcontext, c.dfinal = v(batch, length, model), v(batch, width-1, channels), v(batch, channels, state)
	return c
}

// run returns results and gradients by name. The forward pass keeps the values that are not nil in keep.
func (c *blockCase) run(keep BlockValues[float32]) map[string][]float32 {
	return c.runBy(c.Forward, c.Backward, keep)
}

func (c *blockCase) runBy(
	forward func(y, context, final []float32, keep BlockValues[float32]),
	backward func(dy, dcontext, dfinal []float32, kept BlockValues[float32], grad *BlockGrad[float32]), keep BlockValues[float32],
) map[string][]float32 {
	y, context, final := like(c.X), like(c.Context), like(c.Initial)
	forward(y, context, final, keep)
	g := &BlockGrad[float32]{
		X: like(c.X), Context: like(c.Context), Initial: like(c.Initial),
		BlockWeights: MapBlock(c.BlockWeights, func(_ BlockWeight, w []float32) []float32 { return like(w) }),
	}
	backward(c.dy, c.dcontext, c.dfinal, keep, g)
	return map[string][]float32{
		"y": y, "context": context, "final": final,
		"X": g.X, "Norm": g.Norm, "InProj": g.InProj, "Conv": g.Conv, "XProj": g.XProj, "DtProj": g.DtProj, "DtBias": g.DtBias,
		"ALog": g.ALog, "D": g.D, "OutProj": g.OutProj, "InBias": g.InBias, "ConvBias": g.ConvBias, "OutBias": g.OutBias,
		"Context": g.Context, "Initial": g.Initial,
	}
}

// keepings returns all sets of values that a block can keep, filled with NaN.
func (c *blockCase) keepings() (all []BlockValues[float32]) {
	nan := func(width int) []float32 {
		v := make([]float32, c.rows()*width)
		for i := range v {
			v[i] = float32(math.NaN())
		}
		return v
	}
	for set := range 64 {
		var k BlockValues[float32]
		if n := c.scan(&BlockValues[float32]{VZ: nan(2 * c.Channels), RBC: nan(c.columns())}).KeptStates(); set>>5 == 1 && n > 0 {
			k.States = slices.Repeat([]float32{float32(math.NaN())}, n)
		}
		for i, s := range []struct {
			values *[]float32
			width  int
		}{{&k.Normed, c.Model}, {&k.VZ, 2 * c.Channels}, {&k.U, c.Channels}, {&k.RBC, c.columns()}, {&k.Delta, c.Channels}} {
			if set>>i&1 == 1 {
				*s.values = nan(s.width)
			}
		}
		all = append(all, k)
	}
	return all
}

// spoil fills borrowed workspaces of the given sizes with NaN and returns them.
func spoil(sizes ...int) {
	var all []work.Space[float32]
	for _, n := range sizes {
		for range 16 {
			s := work.Borrow[float32](n)
			for i := range s.Data {
				s.Data[i] = float32(math.NaN())
			}
			all = append(all, s)
		}
	}
	for _, s := range all {
		s.Return()
	}
}

// Results and gradients are the same bit for bit for any set of kept values and any contents of borrowed memory.
func TestBlockKeeping(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for i, c := range []*blockCase{
			newBlockCase(1, 2, 70, 9, 35, 5, 4, 3), newBlockCase(2, 1, 1, 16, 32, 16, 4, 1), newBlockCase(3, 3, 5, 1, 1, 1, 1, 1),
		} {
			want := c.run(BlockValues[float32]{})
			for name, v := range want {
				if slices.ContainsFunc(v, func(x float32) bool { return x != x }) {
					t.Fatalf("case %d: %s has a NaN", i, name)
				}
			}
			rows := c.rows()
			for set, keep := range c.keepings() {
				spoil(rows*c.Model, rows*c.Channels, rows*2*c.Channels, rows*c.columns(), c.Channels*c.State, c.Channels*c.Width)
				for name, v := range c.run(keep) {
					if !slices.Equal(v, want[name]) {
						t.Errorf("case %d, set %05b of kept values: %s differs", i, set, name)
					}
				}
			}
		}
	})
}

// A batch that is cut into groups gives the results of one that is not, and its gradients bit for bit but for those of the weights, with any number of
// processors.
func TestBlockGroups(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, g := range []struct{ batch, length, model, channels, rank, want int }{
		{3, 40, 16, 32, 2, 3}, {19, 33, 9, 17, 1, 16}, {8, 128, 64, 128, 4, 8}, // the last is bytelm's
		{3, 31, 16, 32, 2, 1}, {3, 2 * minChunk, 16, 32, 2, 1}, {8, 512, 768, 1536, 48, 1}, {8, 40, 256, 512, 16, 1},
	} {
		b := &Block[float32]{Batch: g.batch, Length: g.length, Model: g.model, Channels: g.channels, State: 16, Rank: g.rank}
		if got := b.groups(); got != g.want {
			t.Errorf("%+v: %d groups", g, got)
		}
	}
	for i, c := range []*blockCase{newBlockCase(6, 3, 40, 16, 32, 16, 4, 2), newBlockCase(7, 19, 33, 9, 17, 5, 3, 1)} {
		c.Gemm = blas.Implementation{}.Sgemm
		want := c.runBy(func(y, context, final []float32, keep BlockValues[float32]) {
			defer c.share().Return()
			c.strips, c.taps = nil, nil
			c.forward(y, context, final, keep)
		}, func(dy, dcontext, dfinal []float32, kept BlockValues[float32], grad *BlockGrad[float32]) {
			defer c.share().Return()
			c.strips, c.taps = nil, nil
			c.backward(dy, dcontext, dfinal, kept, grad)
		}, BlockValues[float32]{})
		var first map[string][]float32
		for _, processors := range []int{1, 2, 5} {
			runtime.GOMAXPROCS(processors)
			got := c.run(BlockValues[float32]{})
			if first == nil {
				first = got
			}
			for name, v := range got {
				if !slices.Equal(v, first[name]) {
					t.Errorf("case %d: %s differs with %d processors", i, name, processors)
				}
				tol := 1e-5
				if slices.Contains([]string{"y", "context", "final", "X", "Context", "Initial"}, name) {
					tol = 0
				}
				if err := within(v, want[name], tol); err != nil {
					t.Errorf("case %d: %s: %v", i, name, err)
				}
			}
		}
	}
}

// A scan in chunks gives the same gradients with the states that the forward pass has kept.
func TestBlockKeepingChunks(t *testing.T) {
	c := newBlockCase(5, 1, 2*minChunk+70, 1, 3, 4, 2, 1)
	want, keepings := c.run(BlockValues[float32]{}), c.keepings()
	for name, v := range c.run(keepings[len(keepings)-1]) {
		if !slices.Equal(v, want[name]) {
			t.Errorf("%s differs", name)
		}
	}
}

// A block without optional operands gives the same results as one whose optional operands are zero.
func TestBlockOptional(t *testing.T) {
	c := newBlockCase(4, 2, 9, 5, 7, 3, 3, 2)
	for _, v := range [][]float32{c.InBias, c.ConvBias, c.OutBias, c.Context, c.Initial, c.dcontext, c.dfinal} {
		clear(v)
	}
	clear(c.Start)
	want := c.run(BlockValues[float32]{})
	y, grad := like(c.X), &BlockGrad[float32]{
		X: like(c.X), BlockWeights: MapBlock(c.BlockWeights, func(about BlockWeight, w []float32) []float32 {
			if about.Optional {
				return nil
			}
			return like(w)
		}),
	}
	c.InBias, c.ConvBias, c.OutBias, c.Context, c.Initial, c.Start = nil, nil, nil, nil, nil, nil
	c.Forward(y, nil, nil, BlockValues[float32]{})
	c.Backward(c.dy, nil, nil, BlockValues[float32]{}, grad)
	for name, v := range map[string][]float32{
		"y": y, "X": grad.X, "Norm": grad.Norm, "InProj": grad.InProj, "Conv": grad.Conv, "XProj": grad.XProj,
		"DtProj": grad.DtProj, "DtBias": grad.DtBias, "ALog": grad.ALog, "D": grad.D, "OutProj": grad.OutProj,
	} {
		if err := within(v, want[name], 1e-5); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// within returns an error that names the first element of v whose distance from want exceeds tol times the largest magnitude of want.
func within(v, want []float32, tol float64) error {
	var scale float64
	for _, x := range want {
		scale = max(scale, math.Abs(float64(x)))
	}
	for i, x := range want {
		if d := math.Abs(float64(v[i] - x)); !(d <= tol*scale) {
			return fmt.Errorf("element %d is %v, want %v", i, v[i], x)
		}
	}
	return nil
}
