package train

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/dist/disttest"
	"github.com/gomamba/mamba/nn"
)

var memory = flag.Bool("memory", false, "measure the memory of ranks on the host, which takes two minutes")

// rankHost is a rank of the measurements of docs/distributed.md on the host: training steps of a language model, with the peak of this process's memory. sizes are the numbers of
// layers, channels, tokens, sequences of a rank, steps of a sequence, and training steps; then "shard", "segments", "late" (gradients travel after the backward pass) or nothing.
func rankHost(sizes string) error {
	var layers, channels, vocabulary, batch, length, steps int
	var way string
	if n, err := fmt.Sscan(sizes, &layers, &channels, &vocabulary, &batch, &length, &steps, &way); n < 6 {
		return fmt.Errorf("the sizes are %q, want six numbers: %w", sizes, err)
	}
	debug.SetGCPercent(20) // as in the examples
	g, err := dist.Join(context.Background())
	if err != nil {
		return err
	}
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: channels, NLayer: layers}, Vocab: vocabulary}, nn.WithSeed(1))
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]Document, 4*batch*g.Size())
	for i := range data {
		for range length + 1 {
			data[i].Tokens = append(data[i].Tokens, r.IntN(vocabulary))
		}
	}
	var times []time.Duration
	began := time.Now()
	trace := new(Trace)
	tr, err := New(lm, Config{Batch: batch, Length: length, Steps: steps, Data: data, AdamW: AdamWConfig{LearnRate: 1e-4, Clip: 1, Decay: 0.1},
		Group: g, Shard: way == "shard", Segments: way == "segments", Trace: trace, Report: func(*Curve) {
			times = append(times, time.Since(began))
			began = time.Now()
		}})
	if err != nil {
		return g.Fail(err)
	}
	if way == "late" && tr.exchange != nil {
		tr.train.arrivals = &arrivals{order: tr.train.arrivals.order} // that nobody tells
	}
	if err := errors.Join(tr.Run(context.Background()), tr.Close()); err != nil {
		return err
	}
	peak, err := peakMiB()
	if err != nil {
		return g.Fail(err)
	}
	peaks, err := g.GatherBytes([]byte(strconv.Itoa(peak)))
	if err != nil {
		return err
	}
	if g.Rank() == 0 {
		tokens := batch * length
		if way != "segments" {
			tokens *= g.Size()
		}
		times = times[min(1, len(times)-1):] // the first one allocates
		slices.Sort(times)
		best, median := times[0].Seconds(), times[len(times)/2].Seconds()
		l := tr.Curve().Training
		fmt.Printf("%d parameters, ranks: %d %s\nsteps: %d, best %.1f ms, median %.1f ms, %.0f tokens/s; loss %.4f to %.4f\npeak MiB %s\n%v", lm.Params().Count(), g.Size(), way, len(times),
			best*1e3, median*1e3, float64(tokens)/best, l[0].Loss, l[len(l)-1].Loss, peaks, trace)
	}
	return g.Close()
}

// peakMiB returns the most memory that this process has had.
func peakMiB() (int, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	found := regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(status)
	if found == nil {
		return 0, errors.New("/proc/self/status has no VmHWM")
	}
	kib, err := strconv.Atoi(string(found[1]))
	return kib >> 10, err
}

// TestGroupMemory prints the tables of docs/distributed.md: the memory of each rank falls with the number of ranks.
func TestGroupMemory(t *testing.T) {
	if !*memory {
		t.Skip("it is a measurement: want -args -memory")
	}
	for _, sizes := range []string{"8 512 8192 1 64 3", "8 512 8192 1 64 3 shard", "8 256 256 1 16384 2 segments"} {
		for _, ranks := range []int{1, 2, 4} {
			if out := disttest.Output(t, disttest.Libraries[0].Start(t, ranks, role, "host "+sizes)); len(out) > 2 {
				t.Logf("%-30s %s\n%s", sizes, out[0], strings.Join(out[1:3], "\n"))
			}
		}
	}
}
