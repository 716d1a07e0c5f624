package train

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// rankBenchmark is a rank of the measurement of docs/distributed.md: steps of a language model on one GPU, and of all ranks together. sizes are the numbers of layers, channels,
// tokens, sequences of a rank, steps of a sequence, and training steps; a seventh number measures one GPU and all GPUs that often, in turn. It is not a benchmark of package testing, since its ranks are processes.
func rankBenchmark(sizes string) error {
	var layers, channels, vocabulary, batch, length, steps int
	repeats := 1
	if n, err := fmt.Sscan(sizes, &layers, &channels, &vocabulary, &batch, &length, &steps, &repeats); n < 6 {
		return fmt.Errorf("the sizes are %q, want six or seven numbers: %w", sizes, err)
	}
	began := time.Now()
	g, err := dist.Join(context.Background())
	if err != nil {
		return err
	}
	d, err := cuda.Open(g.LocalRank())
	if err != nil {
		return g.Fail(err)
	}
	say := func(format string, args ...any) {
		if g.Rank() == 0 {
			fmt.Printf("%5.1f s  "+format+"\n", append([]any{time.Since(began).Seconds()}, args...)...)
		}
	}
	say("%d ranks on %s", g.Size(), d.Name())
	r := rand.New(rand.NewPCG(1, 2))
	var data []Document
	for range 4 * batch * g.Size() {
		doc := Document{}
		for range length + 1 {
			doc.Tokens = append(doc.Tokens, r.IntN(vocabulary))
		}
		data = append(data, doc)
	}
	for _, precision := range []cuda.Precision{cuda.BF16, cuda.TF32} {
		lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: channels, NLayer: layers}, Vocab: vocabulary}, nn.OnDevice(d), nn.WithPrecision(precision))
		if err := lm.Err(); err != nil {
			return g.Fail(err)
		}
		say("%v: a model of %d weights", precision, lm.Params().Count())
		at, err := op.On(d, precision)
		if err != nil {
			return g.Fail(err)
		}
		measure := func(g *dist.Group, shard, late bool) (time.Duration, string, error) {
			for range 2 { // the moments of the last trainer are freed when the collector has found them
				runtime.GC()
				time.Sleep(20 * time.Millisecond)
			}
			if err := at.Do((*cuda.Stream).Trim); err != nil {
				return 0, "", err
			}
			var times []time.Duration
			var last time.Time
			mark := func() {
				if now := time.Now(); !last.IsZero() {
					times = append(times, now.Sub(last))
				}
				last = time.Now()
			}
			tr, err := New(lm, Config{Batch: batch, Length: length, Steps: steps, Data: data, AdamW: AdamWConfig{LearnRate: 1e-4, Clip: 1, Decay: 0.1},
				Group: g, Shard: shard, Report: func(*Curve) { mark() }})
			if err != nil {
				return 0, "", err
			}
			if late && tr.exchange != nil {
				tr.train.arrivals = &arrivals{order: tr.train.arrivals.order} // that nobody tells
			}
			err = tr.Run(context.Background())
			_, held := d.Memory()
			l := tr.Curve().Training
			if err := errors.Join(err, tr.Close()); err != nil {
				return 0, "", err
			}
			if g.Rank() > 0 {
				return 0, "", nil
			}
			times = times[len(times)/2:]
			slices.Sort(times)
			median := times[len(times)/2]
			return median, fmt.Sprintf("median of %d steps %8.3f ms (%.3f to %.3f), %9.0f tokens/s, %6.2f GiB, losses %.5f to %.5f; %+v", len(times), median.Seconds()*1e3,
				times[0].Seconds()*1e3, times[len(times)-1].Seconds()*1e3, float64(g.Size()*batch*length)/median.Seconds(), float64(held)/(1<<30), l[0].Loss, l[len(l)-1].Loss, d.Launches()), nil
		}
		results := map[string]time.Duration{}
		ways := []struct {
			name               string
			alone, shard, late bool
		}{{name: "one GPU", alone: true}, {name: "all GPUs"}, {name: "all GPUs, no overlap", late: true}, {name: "all GPUs, Shard", shard: true}}
		if g.Size() == 1 || repeats > 1 {
			ways = slices.Repeat(ways[:2], repeats)
		}
		for _, m := range ways {
			group := g
			if m.alone {
				group = nil
			}
			median, text, err := measure(group, m.shard, m.late)
			if err != nil {
				return g.Fail(fmt.Errorf("%v, %s: %w", precision, m.name, err))
			}
			results[m.name] = median
			say("%-5v %-21s %s", precision, m.name, text)
			if err := g.Barrier(); err != nil {
				return err
			}
			if g.Size() > 1 && m.name == "all GPUs" {
				say("%v: %.3f times the tokens/s of one GPU", precision, float64(g.Size())*results["one GPU"].Seconds()/results["all GPUs"].Seconds())
			}
		}
		one, all, late := results["one GPU"].Seconds(), results["all GPUs"].Seconds(), results["all GPUs, no overlap"].Seconds()
		if late > 0 {
			say("%v: %.0f%% of the exchange hidden", precision, 100*(late-all)/(late-one))
		}
	}
	say("%s", strings.Repeat("-", 20))
	return errors.Join(g.Close(), d.Close())
}
