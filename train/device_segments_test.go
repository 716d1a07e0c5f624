package train

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/dist/disttest"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// segmentsOnDevice trains a model with layers of all kinds on sequences that the ranks of a group have parts of, on a GPU.
func segmentsOnDevice(g *dist.Group, d *cuda.Device) ([]float64, error) {
	c := nn.Config{DModel: 8, DState: 2, Pattern: nn.Kinds(), NHead: 2, Window: 4, NLayer: len(nn.Kinds())}
	lm := nn.NewLM(nn.LMConfig{Config: c, Vocab: vocab}, nn.WithSeed(3), nn.OnDevice(d))
	lm.Params()[:1].Freeze() // the embedding, so that the input of the first layer has no gradient
	cfg := config()
	cfg.Group, cfg.Segments, cfg.Steps, cfg.EvalEvery = g, true, 4, 4
	tr, err := New(lm, cfg)
	if err != nil {
		return nil, g.Fail(err)
	}
	defer tr.Close()
	if err := tr.Run(context.Background()); err != nil {
		return nil, err
	}
	if l := d.Launches(); l.Replayed == 0 && os.Getenv("MAMBA_GRAPHS") != "off" {
		return nil, fmt.Errorf("no work between the messages was replayed, and %d pieces of it were queued one by one: %s", l.Single, l.Why)
	}
	if err := lm.Params().ToHost(); err != nil {
		return nil, err
	}
	sum := 0.0
	for _, w := range values(lm.Params()) {
		for _, x := range w {
			sum += x * x
		}
	}
	return append(losses(tr.Curve().Training), append(losses(tr.Curve().HeldOut), sum)...), nil
}

// rankOfSegments is a rank of TestDeviceSegments.
func rankOfSegments() error {
	g, err := dist.Join(context.Background())
	if err != nil {
		return err
	}
	d, err := cuda.Open(g.LocalRank())
	if err != nil {
		return g.Fail(err)
	}
	got, err := segmentsOnDevice(g, d)
	if err != nil {
		return g.Fail(err)
	}
	fmt.Println(g.Rank(), got)
	return errors.Join(d.Close(), g.Close())
}

// Processes with parts of the same sequences, each with a GPU, train as one process does.
func TestDeviceSegments(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	want, err := segmentsOnDevice(nil, d)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := cuda.Open(1); err == nil {
		err = second.Close()
		if err != nil {
			t.Fatal(err)
		}
	} else if os.Getenv("MAMBA_TEST_DEVICE") != "standin" {
		t.Skipf("it needs two GPUs, or the stand-in: %v", err)
	}
	libraries := append([]disttest.Library{disttest.NCCL}, disttest.Libraries...)
	if testing.Short() {
		libraries = libraries[:1]
	}
	for _, library := range libraries {
		t.Run(library.Name, func(t *testing.T) {
			var first []float64
			for _, line := range disttest.Output(t, library.Start(t, 2, role, "segments")) {
				_, numbers, _ := strings.Cut(line, " ")
				var got []float64
				for _, text := range strings.Fields(strings.Trim(numbers, "[]")) {
					var x float64
					if _, err := fmt.Sscan(text, &x); err != nil {
						t.Fatalf("a rank prints %q: %v", line, err)
					}
					got = append(got, x)
				}
				within(t, "losses and the sum of squares of the weights", got, want, 1e-4)
				if first == nil {
					first = got
				}
				if !slices.Equal(got, first) {
					t.Errorf("the ranks have %v and %v, want the same bits", first, got)
				}
			}
		})
	}
}

var (
	longest   = flag.Int("longest", 0, "number of tokens of the longest sequence of TestLongSegments")
	shortest  = flag.Int("shortest", 1<<16, "number of tokens of the shortest one")
	recompute = flag.Bool("recompute", false, "use nn.RecomputeAll")
	width     = flag.Int("width", 768, "d_model")
	depth     = flag.Int("depth", 24, "number of Mamba blocks")
	started   = time.Now()
)

// TestLongSegments measures the loss and the gradients of sequences of doubling lengths, on the GPUs of all ranks.
func TestLongSegments(t *testing.T) {
	if *longest == 0 {
		t.Skip("it is a measurement: want -args -longest TOKENS, in one process or as the ranks of a group")
	}
	g, err := dist.Join(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := cuda.Open(g.LocalRank())
	if err != nil {
		t.Fatal(g.Fail(err))
	}
	cfg := nn.LMConfig{Config: nn.Config{DModel: *width, NLayer: *depth}, Vocab: 50280}
	lm := nn.NewLM(cfg, nn.WithSeed(1), nn.OnDevice(d), nn.WithPrecision(cuda.BF16))
	for tokens := *shortest; tokens <= *longest; tokens *= 2 {
		if err := longSegment(t, g, d, lm, tokens, tokens == *shortest); err != nil {
			t.Error(g.Fail(fmt.Errorf("%d tokens: %w", tokens, err)))
			break
		}
		runtime.GC()
		time.Sleep(20 * time.Millisecond) // Go frees arrays that are garbage
		if err := lm.Params().Place().Do((*cuda.Stream).Trim); err != nil {
			t.Fatal(g.Fail(err))
		}
	}
	if err := errors.Join(d.Close(), g.Close()); err != nil {
		t.Error(err)
	}
}

func longSegment(t *testing.T, g *dist.Group, d *cuda.Device, lm *nn.LM, tokens int, norm bool) error {
	steps := tokens / g.Size()
	ids, targets := make([]int, steps), make([]int, steps)
	for i := range ids {
		at := g.Rank()*steps + i
		ids[i], targets[i] = at*7919%50280, (at+1)*7919%50280
	}
	b, err := NewTokenBatch(steps, ids, targets, nil)
	if err != nil {
		return err
	}
	inputs, err := b.inputs()
	if err != nil {
		return err
	}
	options := []nn.CallOption{nn.WithSegments(g)}
	if *recompute {
		options = append(options, nn.WithRecompute(nn.RecomputeAll))
	}
	l, nodes, err := newLossGraph(Problem{Params: lm.Params(), Loss: LMLoss(lm, options...)}, inputs, true, 0)
	if err != nil {
		return err
	}
	defer l.vm.Close()
	for pass := 0; pass < 2; pass++ { // the first one allocates
		if err := g.Barrier(); err != nil {
			return err
		}
		began := time.Now()
		if err := l.run(b, 1/float64(g.Size()), 0); err != nil {
			return err
		}
		if err := lm.Params().Place().Do((*cuda.Stream).Synchronize); err != nil {
			return err
		}
		loss, err := sumOver(g, l.result(theLoss))
		if err != nil {
			return err
		}
		took := time.Since(began)
		used, held := d.Memory()
		t.Logf("after %.1f s: rank %d of %d: %d tokens in %.3f s, %.0f tokens/s, loss %.6f; the GPU holds %.1f GiB, %.1f in use now", time.Since(started).Seconds(), g.Rank(), g.Size(), tokens, took.Seconds(), float64(tokens)/took.Seconds(), loss, float64(held)/(1<<30), float64(used)/(1<<30))
		if norm {
			if err := normOf(t, g, lm.Params(), nodes); err != nil {
				return err
			}
		}
		for _, n := range nodes {
			if v, err := n.Grad(); err == nil {
				v.(*op.DeviceTensor).Zero()
			}
		}
		norm = false
		if seconds, err := sumOver(g, took.Seconds()); err != nil || seconds > 2*float64(g.Size()) {
			return err
		}
	}
	return nil
}

// normOf prints the norms of the gradients of some weights, added up over the ranks.
func normOf(t *testing.T, g *dist.Group, params layer.Params, nodes G.Nodes) error {
	for i, n := range nodes {
		if i != 0 && i != 1 && i != 4 && i != len(nodes)/2 && i != len(nodes)-1 {
			continue
		}
		v, err := n.Grad()
		if err != nil {
			return err
		}
		x := v.Data().([]float32)
		if err := dist.AllReduce(g, x); err != nil {
			return err
		}
		sum := 0.0
		for _, x := range x {
			sum += float64(x) * float64(x)
		}
		t.Logf("rank %d: the gradient of %s has the norm %.6g", g.Rank(), params[i].Name, math.Sqrt(sum))
	}
	return nil
}
