package nn

import (
	"context"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
)

// visitor is a sequence that comes to a batch, and what a Generator gives it alone.
type visitor struct {
	*Sequence
	how   Sampling
	want  []int
	after *Sequence
	got   []int
}

// visitors returns sequences of random prompts, samplings and lengths.
func visitors(t *testing.T, lm *LM, r *rand.Rand, n, piece int) (all []*visitor) {
	t.Helper()
	names := slices.Sorted(maps.Keys(samplings))
	for i := range n {
		prompt := make([]int, 1+r.IntN(3*piece))
		for j := range prompt {
			prompt[j] = r.IntN(smallVocab)
		}
		v := &visitor{Sequence: NewSequence(uint64(i), prompt...), how: samplings[names[r.IntN(len(names))]]}
		v.after = v.Clone()
		g := newGenerator(t, lm, GenerateConfig{Sampling: v.how, MaxTokens: 1 + r.IntN(4*piece), Piece: piece})
		v.want = must(g.Continue(t.Context(), []*Sequence{v.after}, nil))[0]
		all = append(all, v)
	}
	return all
}

// visit lets sequences come and go at random until all have left. Most are in the batch at a time.
func visit(t *testing.T, b *Batch, r *rand.Rand, all []*visitor, most int) {
	t.Helper()
	waiting, inside, widest := slices.Clone(all), map[*Sequence]*visitor{}, 0
	for len(waiting)+len(inside) > 0 {
		for n := r.IntN(most); n > 0 && len(waiting) > 0 && len(inside) < most; n-- {
			together := make([]*Sequence, 0, 8) // pieces of all lengths are read together
			for _, v := range waiting[:min(1+r.IntN(8), len(waiting), most-len(inside))] {
				together = append(together, v.Sequence)
			}
			left, err := b.Read(together...)
			if err != nil {
				t.Fatal(err)
			}
			for _, left := range left {
				v := waiting[0]
				waiting = waiting[1:]
				if left > 0 {
					waiting = append(waiting, v) // its other pieces are read after later steps
				} else if err := b.Join(v.Sequence, v.how); err != nil {
					t.Fatal(err)
				} else {
					inside[v.Sequence] = v
				}
			}
		}
		if widest = max(widest, b.Len()); b.Len() != len(inside) {
			t.Fatalf("%d sequences in the batch, want %d", b.Len(), len(inside))
		}
		var over []*visitor
		err := b.Step(func(s *Sequence, next Next) {
			v := inside[s]
			if next.Err != nil {
				t.Fatal(next.Err)
			}
			if v.got = append(v.got, next.Token); len(v.got) == len(v.want) {
				over = append(over, v)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range over {
			if err := b.Leave(v.Sequence); err != nil {
				t.Fatal(err)
			}
			delete(inside, v.Sequence)
		}
		for _, v := range inside { // one that leaves in the middle and comes again
			if r.IntN(20) == 0 {
				if err := b.Leave(v.Sequence); err != nil {
					t.Fatal(err)
				}
				delete(inside, v.Sequence)
				waiting = append(waiting, v)
				break
			}
		}
	}
	if widest < most/2 {
		t.Fatalf("at most %d sequences were in the batch, want about %d", widest, most)
	}
}

// Sequences that come and go get the tokens and the states that a Generator gives them alone, bit for bit, in both types.
func TestBatchIsGenerator(t *testing.T) {
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		lm, r := smallLM(dt, 4), rand.New(rand.NewPCG(3, 1))
		b := must(NewBatch(lm, BatchConfig{Piece: 5}))
		for _, most := range []int{12, 60} { // 60 are three groups
			if most == 60 && dt == tensor.Float64 {
				continue // the products of float64 are cut by rows
			}
			all := visitors(t, lm, r, most+most/4, 5)
			visit(t, b, r, all, most)
			for i, v := range all {
				if !slices.Equal(v.got, v.want) {
					t.Errorf("%v, of %d sequences, %d: %v, want %v", dt, most, i, v.got, v.want)
				} else if err := differ(v.Sequence, v.after); err != nil {
					t.Errorf("%v, of %d sequences, %d: %v", dt, most, i, err)
				}
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The same on a device, where the states are equal up to rounding, and there is one group.
func TestDeviceBatch(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	cfg := LMConfig{Config: Config{DModel: 6, NLayer: 2, DState: 3}, Vocab: smallVocab, UntiedHead: true}
	host, lm := NewLM(cfg), NewLM(cfg, OnDevice(d))
	for _, m := range []*LM{host, lm} {
		scramble(m.Params(), rand.New(rand.NewPCG(7, 8)))
		m.Params().ValuesChanged()
	}
	deviceBatch(t, host, lm, 30, 5, 1e-4)
}

// In bfloat16 with 16 states, up to eight sequences in the batch have the tokens of a Generator alone on the device: its kernels compute a sequence without the others.
func TestDeviceBatchBFloat16(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	lm := NewLM(LMConfig{Config: Config{DModel: 16, NLayer: 1, DState: 16}, Vocab: smallVocab}, OnDevice(d), WithPrecision(cuda.BF16))
	scramble(lm.Params(), rand.New(rand.NewPCG(7, 8)))
	lm.Params().ValuesChanged()
	deviceBatch(t, lm, lm, 8, 2, 1.0/128)
}

// deviceBatch compares sequences in a batch of a model, at most most at a time, with those that a Generator of alone continues one by one.
func deviceBatch(t *testing.T, alone, lm *LM, most, piece int, tolerance float64) {
	r := rand.New(rand.NewPCG(3, 1))
	all := visitors(t, alone, r, most+most/3, piece)
	b := must(NewBatch(lm, BatchConfig{Piece: piece}))
	visit(t, b, r, all, most)
	for i, v := range all {
		if !slices.Equal(v.got, v.want) {
			t.Errorf("sequence %d: %v, want %v", i, v.got, v.want)
		} else if err := values(v.Sequence).near(values(v.after), tolerance); err != nil {
			t.Errorf("sequence %d: %v", i, err)
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// Sequences of any lengths that a device reads together, in models of each kind, have the states that the host gives them, from their beginning and from later. So have their
// copies, and a sequence that goes on from another one. A model on the host takes them too.
func TestDeviceBatchReads(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	patterns := [][]Kind{Kinds()}
	for _, k := range Kinds() {
		patterns = append(patterns, []Kind{k})
	}
	for _, pattern := range patterns {
		cfg := LMConfig{Config: Config{DModel: 8, DState: 4, Pattern: pattern, NHead: 2, Window: 6, DHidden: 5}, Vocab: smallVocab}
		var batches [2]*Batch
		for i, lm := range []*LM{NewLM(cfg), NewLM(cfg, OnDevice(d))} {
			batches[i] = must(NewBatch(lm, BatchConfig{Piece: 20}))
		}
		lengths := []int{1, 2, 3, 6, 6, 17, 18, 20, 21, 30, 30, 47}
		if testing.Short() {
			lengths = []int{2, 6, 21, 30, 30}
		}
		var all [2][]*Sequence
		for i := range all {
			r := rand.New(rand.NewPCG(1, 2))
			for _, n := range lengths {
				s := NewSequence(0)
				for range n {
					s.Append(r.IntN(smallVocab))
				}
				all[i] = append(all[i], s)
			}
		}
		same := func(what string) {
			t.Helper()
			for i, s := range all[1] {
				if n := all[0][i].StateBytes(); n > 0 && s.StateBytes() < n {
					t.Errorf("%v: sequence %d, %s: a state of %d bytes, want at least %d", pattern, i, what, s.StateBytes(), n)
				}
				c := s.Clone()
				if err := c.bring(); err != nil {
					t.Fatal(err)
				}
				if err := values(c).near(values(all[0][i]), 1e-4); err != nil || !slices.Equal(c.pending, all[0][i].pending) {
					t.Errorf("%v: sequence %d of %d tokens, %s: %v", pattern, i, lengths[i], what, err)
				}
			}
		}
		for what := range strings.SplitSeq("a first piece,a second one,a third one", ",") {
			left := [2][]int{must(batches[0].Read(all[0]...)), must(batches[1].Read(all[1]...))}
			if same(what); !slices.Equal(left[0], left[1]) {
				t.Errorf("%v: %v tokens are left, want %v", pattern, left[1], left[0])
			}
		}
		last := len(lengths) - 1
		for i, b := range batches {
			s := NewSequence(0, 1, 2)
			if err := s.Skip(1, all[i][last]); err != nil {
				t.Fatal(err)
			}
			s.Append(3, 4)
			all[i] = append(all[i], s)
			must(b.Read(s))
		}
		lengths = append(lengths, 4)
		same("after another one's beginning")
		all[1][0].Append(5)
		all[0][0].Append(5)
		must(batches[0].Read(all[0][0]))
		must(batches[0].Read(all[1][0]))
		same("read on by the host")
		for _, b := range batches {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// What a device cannot allocate or copy while it reads is an error, and the next call reads on. Nothing of a sequence stays there that is dropped.
func TestDeviceBatchReadFailures(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	lm := NewLM(LMConfig{Config: Config{DModel: 8, NLayer: 1, DState: 3}, Vocab: smallVocab}, OnDevice(d))
	read := func(limit gputest.Limit, n int) (failed int, after []*Sequence) {
		if err := lm.Params().Place().Do((*cuda.Stream).Trim); err != nil {
			t.Fatal(err)
		}
		b := must(NewBatch(lm, BatchConfig{Piece: 4}))
		all := []*Sequence{NewSequence(1, 1, 2, 3), NewSequence(1, 3, 4), NewSequence(1, 1, 2, 3, 4, 5, 6, 7)}
		limit(n)
		_, err := b.Read(all...)
		if failed = limit(-1); failed == 0 && err != nil {
			t.Fatal(err)
		}
		for range 2 {
			must(b.Read(all...))
		}
		for _, s := range all {
			c := s.Clone()
			if err := c.bring(); err != nil {
				t.Fatal(err)
			}
			after = append(after, c)
			if err := errors.Join(b.Join(s, Sampling{}), b.Drop(s)); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		return failed, after
	}
	for _, limit := range []gputest.Limit{gputest.Allocations(t), gputest.Copies(t)} {
		_, want := read(limit, 1<<30)
		before, _ := d.Memory()
		n := 0
		for failed := 1; failed > 0; n++ {
			var got []*Sequence
			failed, got = read(limit, n)
			for i := range want {
				if err := values(got[i]).near(values(want[i]), 1e-5); err != nil {
					t.Errorf("call %d failed: sequence %d: %v", n, i, err)
				}
			}
			if after, _ := d.Memory(); after != before {
				t.Fatalf("call %d failed: %d bytes are in use, %d before", n, after, before)
			}
		}
		if n < 4 {
			t.Errorf("only %d calls", n)
		}
	}
}

// A sequence that leaves and another one that joins do not change the size of a group on a device, whatever their number is.
func TestDeviceBatchSize(t *testing.T) {
	d := gputest.Open(t, cuda.Open)
	b := must(NewBatch(NewLM(LMConfig{Config: Config{DModel: 6, NLayer: 1, DState: 3}, Vocab: smallVocab}, OnDevice(d)), BatchConfig{}))
	var in []*Sequence
	join := func() {
		t.Helper()
		in = append(in, NewSequence(0, 1))
		if err := b.Join(in[len(in)-1], Sampling{}); err != nil {
			t.Fatal(err)
		}
	}
	leave := func() {
		t.Helper()
		if err := b.Leave(in[len(in)-1]); err != nil {
			t.Fatal(err)
		}
		in = in[:len(in)-1]
	}
	for n := 1; n <= 9; n++ {
		join()
		r := b.groups[0]
		if n > 1 {
			leave()
			join()
		}
		if b.groups[0] != r || r.batch() < n {
			t.Errorf("%d sequences: the group has %d rows, and after a change %d, want the same", n, r.batch(), b.groups[0].batch())
		}
	}
	for len(in) > 5 {
		leave()
	}
	if n := b.groups[0].batch(); n != 8 {
		t.Errorf("5 sequences of 9 are left in %d rows, want 8", n)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// The logits of a step are those of the sequence so far, for greedy choice too.
func TestNextLogits(t *testing.T) {
	lm := smallLM(tensor.Float64, 4)
	b := must(NewBatch(lm, BatchConfig{}))
	defer b.Close()
	s, tokens := NewSequence(1, 3), []int{3}
	for _, how := range []Sampling{{}, {Temperature: 1}} {
		if err := b.Join(s, how); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := b.Step(func(_ *Sequence, next Next) {
				got := results{"logits": must(next.Logits())}
				if err := got.near(results{"logits": lastLogits(t, lm, tokens)}, 1e-12); err != nil {
					t.Error(err)
				}
				tokens = append(tokens, next.Token)
			}); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Leave(s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := (Next{}).Logits(); err == nil {
		t.Error("logits of no step are no error")
	}
}

// A sequence whose logits are not numbers leaves the batch with an error. The others go on.
func TestBatchNotANumber(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	weights := lm.embed.Weight.Value.Data().([]float32)
	for i := range 6 {
		weights[5*6+i] = float32(math.NaN())
	}
	b := must(NewBatch(lm, BatchConfig{}))
	defer b.Close()
	bad, good := NewSequence(0, 5), NewSequence(0, 4)
	for _, s := range []*Sequence{bad, good} {
		if err := b.Join(s, Sampling{}); err != nil {
			t.Fatal(err)
		}
	}
	for step := range 2 {
		calls := 0
		if err := b.Step(func(s *Sequence, next Next) {
			if calls++; (next.Err != nil) != (s == bad) {
				t.Errorf("step %d: the bad sequence %t has error %v", step, s == bad, next.Err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if calls != 2-step || b.Len() != 1 {
			t.Errorf("step %d: %d sequences, then %d, want %d and 1", step, calls, b.Len(), 2-step)
		}
	}
	if _, err := b.Read(bad); err == nil || !strings.Contains(err.Error(), "has no token to read") {
		t.Errorf("the bad sequence is continued: %v", err)
	}
}

// Wrong calls are errors, and change nothing.
func TestBatchErrors(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	if _, err := NewBatch(lm, BatchConfig{Piece: -1}); err == nil || err.Error() != "nn: Piece is -1, want at least 1, or 0 for the default" {
		t.Errorf("Piece -1: %v", err)
	}
	if _, err := NewBatch(nil, BatchConfig{}); err == nil {
		t.Error("no error without a model")
	}
	b := must(NewBatch(lm, BatchConfig{}))
	in := NewSequence(0, 1)
	if err := b.Join(in, Sampling{}); err != nil {
		t.Fatal(err)
	}
	g := newGenerator(t, lm, GenerateConfig{MaxTokens: 1})
	for name, c := range map[string]struct {
		err  func() error
		want string
	}{
		"join nil":       {func() error { return b.Join(nil, Sampling{}) }, "nn: join: the sequence is missing"},
		"join twice":     {func() error { return b.Join(in, Sampling{}) }, "nn: join: the sequence is in use"},
		"join a prompt":  {func() error { return b.Join(NewSequence(0, 1, 2), Sampling{}) }, "nn: join: the sequence has 2 pending tokens, want 1"},
		"join nothing":   {func() error { return b.Join(NewSequence(0), Sampling{}) }, "nn: join: the sequence has no token to read"},
		"join a token":   {func() error { return b.Join(NewSequence(0, smallVocab), Sampling{}) }, "nn: join: the sequence has token 19 at 0, want 0 to 18"},
		"join an option": {func() error { return b.Join(NewSequence(0, 1), Sampling{TopK: -1}) }, "nn: TopK is -1"},
		"penalty": {func() error { return b.Join(NewSequence(0, 1), Sampling{FrequencyPenalty: math.Inf(1)}) },
			"nn: FrequencyPenalty is +Inf, want a finite number"},
		"read nil":    {func() error { _, err := b.Read(nil); return err }, "nn: read: the sequence is missing"},
		"read joined": {func() error { _, err := b.Read(in); return err }, "nn: read: the sequence is in use"},
		"leave":       {func() error { return b.Leave(NewSequence(0, 1)) }, "nn: leave: the sequence is not in the batch"},
		"drop nil":    {func() error { return b.Drop(nil) }, "nn: drop: the sequence is not in the batch"},
		"generate":    {func() error { _, err := g.Continue(context.Background(), []*Sequence{in}, nil); return err }, "in use"},
		"from each": {func() (err error) {
			return errors.Join(b.Step(func(*Sequence, Next) { err = b.Leave(in) }), err)
		}, "nn: leave: the batch is in use"},
	} {
		if err := c.err(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if err := b.Drop(in); err != nil || b.Len() != 0 {
		t.Errorf("drop: %v, %d sequences left", err, b.Len())
	}
	if err := b.Step(nil); err != nil {
		t.Errorf("a step of no sequence: %v", err)
	}
	again := NewSequence(0, 1)
	if err := b.Join(again, Sampling{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := b.Step(nil); !errors.Is(err, errClosed) {
		t.Errorf("a step after Close: %v", err)
	}
	if err := b.Close(); !errors.Is(err, errClosed) {
		t.Errorf("a second Close: %v", err)
	}
	if err := again.using.TryLock(); !err {
		t.Error("a sequence is still locked after Close")
	}
}

// A sequence that skips a beginning continues as one that has read it, with only its own tokens seen.
func TestSkip(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	b := must(NewBatch(lm, BatchConfig{Piece: 3}))
	defer b.Close()
	shared := []int{1, 2, 3, 4, 5, 6}
	first := NewSequence(0, append(slices.Clone(shared), 7, 8)...)
	for range 2 {
		must(b.Read(first))
	}
	kept := NewSequence(0)
	if err := kept.Skip(0, first); err != nil {
		t.Fatal(err)
	}
	must(b.Read(first))
	if kept.StateBytes() == 0 || kept.StateBytes() != first.StateBytes() || NewSequence(0).StateBytes() != 0 {
		t.Errorf("a state has %d bytes and %d", kept.StateBytes(), first.StateBytes())
	}
	whole, skips := NewSequence(9, append(slices.Clone(shared), 9, 10, 11)...), NewSequence(9, append(slices.Clone(shared), 9, 10, 11)...)
	for range 3 {
		must(b.Read(whole))
	}
	if err := skips.Skip(len(shared), kept); err != nil {
		t.Fatal(err)
	}
	if left := must(b.Read(skips)); left[0] != 0 {
		t.Errorf("%d tokens are left", left)
	}
	if err := differ(skips, whole); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"n is 2, want 0 to 1":  skips.Skip(2, kept),
		"n is -1, want 0 to 1": skips.Skip(-1, kept),
		"from is missing":      skips.Skip(0, nil),
		"want another":         skips.Skip(0, skips),
	} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
	if err := b.Join(whole, Sampling{}); err != nil {
		t.Fatal(err)
	}
	if err := skips.Skip(0, whole); !errors.Is(err, errInUse) {
		t.Errorf("from a sequence in a batch: %v", err)
	}
}
