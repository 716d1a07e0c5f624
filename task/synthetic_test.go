package task

import (
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func must(t *testing.T) func(Task, error) Task {
	return func(task Task, err error) Task {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return task
	}
}

// all returns the tasks at odd sizes.
func all(t *testing.T) []Task {
	m := must(t)
	return []Task{
		m(NewSelectiveCopying(37, 5, 7)), m(NewSelectiveCopying(5, 5, 4)), m(NewCopying(37, 5, 7)), m(NewCopying(3, 3, 4)),
		m(NewInductionHeads(3, 3)), m(NewInductionHeads(65, 16)), m(NewAssociativeRecall(1, 4)), m(NewAssociativeRecall(6, 13)),
	}
}

// Every place of every sequence is written, with tokens of the vocabulary, and something is asked.
func TestTasksFill(t *testing.T) {
	for _, task := range all(t) {
		const unwritten = -7
		for k := range 200 {
			ids, targets := make([]int, task.Length()), make([]int, task.Length())
			for i := range ids {
				ids[i], targets[i] = unwritten, unwritten
			}
			b := draw(t, NewStream(task, uint64(k)), 1)
			task.Fill(random(uint64(k)), ids, targets)
			if !slices.Equal(ids, b.IDs) || !slices.Equal(targets, b.Targets) {
				t.Fatalf("%s: a stream's first sequence is not that of its seed", task.Name())
			}
			for i, id := range ids {
				if id < 0 || id >= task.Vocab() {
					t.Fatalf("%s: token %d is %d of %d", task.Name(), i, id, task.Vocab())
				}
				if want := targets[i]; want != ignore && (want < 0 || want >= task.Vocab()) {
					t.Fatalf("%s: target %d is %d of %d", task.Name(), i, want, task.Vocab())
				}
			}
			if b.Count() == 0 {
				t.Fatalf("%s asks for nothing", task.Name())
			}
		}
	}
}

// A stream is the same for a seed however it is cut into batches, and another for another seed.
func TestStream(t *testing.T) {
	for _, task := range all(t) {
		whole, pieces, other := draw(t, NewStream(task, 3), 64), NewStream(task, 3), draw(t, NewStream(task, 4), 64)
		var got Batch
		for _, n := range []int{1, 20, 43} {
			b := draw(t, pieces, n)
			got.IDs, got.Targets = append(got.IDs, b.IDs...), append(got.Targets, b.Targets...)
		}
		if !reflect.DeepEqual(got, whole) {
			t.Errorf("%s: batches of 1, 20 and 43 differ from one of 64", task.Name())
		}
		if slices.Equal(other.IDs, whole.IDs) {
			t.Errorf("%s: seeds 3 and 4 give the same", task.Name())
		}
	}
}

// The targets are the tokens that are not noise, in order, each at a mark.
func TestCopying(t *testing.T) {
	const length, memory, vocab, n = 40, 6, 8, 20000
	for _, fixed := range []bool{false, true} {
		task := must(t)(NewSelectiveCopying(length, memory, vocab))
		if fixed {
			task = must(t)(NewCopying(length, memory, vocab))
		}
		places := make([]int, length)
		b := draw(t, NewStream(task, 1), n)
		for row := range n {
			ids := b.IDs[row*task.Length():][:task.Length()]
			var said []int
			for i, id := range ids[:length] {
				if id != 0 {
					said = append(said, id)
					places[i]++
				}
			}
			if got := b.Targets[row*task.Length()+length:][:memory]; !slices.Equal(got, said) {
				t.Fatalf("%s: targets are %v, want %v", task.Name(), got, said)
			}
			if slices.ContainsFunc(ids[length:], func(id int) bool { return id != vocab-1 }) {
				t.Fatalf("%s: %v, want marks alone at the end", task.Name(), ids[length:])
			}
		}
		for i, got := range places {
			want, within := float64(n)*memory/length, 6*math.Sqrt(n*memory/length)
			if fixed {
				want, within = 0, 0
				if i%(length/memory) == 0 && i/(length/memory) < memory {
					want = n
				}
			}
			if math.Abs(float64(got)-want) > within {
				t.Errorf("%s: place %d has a token %d times of %d, want %v ± %.0f", task.Name(), i, got, n, want, within)
			}
		}
	}
}

func TestInductionHeads(t *testing.T) {
	const length, vocab, n = 20, 5, 20000
	task := must(t)(NewInductionHeads(length, vocab))
	b := draw(t, NewStream(task, 1), n)
	places := make([]int, length)
	for row := range n {
		ids, targets := b.IDs[row*length:][:length], b.Targets[row*length:][:length]
		at := slices.Index(ids, vocab-1)
		places[at]++
		if ids[length-1] != vocab-1 || slices.Contains(ids[at+1:length-1], vocab-1) {
			t.Fatalf("%v: want the special token once and at the end", ids)
		}
		want := slices.Repeat([]int{ignore}, length)
		want[length-1] = ids[at+1]
		if !slices.Equal(targets, want) {
			t.Fatalf("targets of %v are %v, want %v", ids, targets, want)
		}
	}
	for at, got := range places {
		want := float64(n) / (length - 2)
		if at >= length-2 {
			want = 0
		}
		if math.Abs(float64(got)-want) > 6*math.Sqrt(want) {
			t.Errorf("the special token is at %d %d times, want about %.0f", at, got, want)
		}
	}
}

func TestAssociativeRecall(t *testing.T) {
	task := must(t)(NewAssociativeRecall(6, 13))
	b := draw(t, NewStream(task, 1), 1000)
	for row := range 1000 {
		ids, targets := b.IDs[row*13:][:13], b.Targets[row*13:][:13]
		values := map[int]int{}
		for i := 0; i < 12; i += 2 {
			if _, twice := values[ids[i]]; twice || ids[i] >= 6 || ids[i+1] < 6 {
				t.Fatalf("%v: want keys below 6, none twice, and values from 6", ids)
			}
			values[ids[i]] = ids[i+1]
		}
		if want, ok := values[ids[12]]; !ok || targets[12] != want {
			t.Fatalf("%v asks for %d, want %d", ids, targets[12], want)
		}
		if slices.ContainsFunc(targets[:12], func(x int) bool { return x != ignore }) {
			t.Fatalf("targets are %v, want one at the end", targets)
		}
	}
}

func TestTaskErrors(t *testing.T) {
	for want, got := range map[string]func() (Task, error){
		"memory is 0":                       func() (Task, error) { return NewSelectiveCopying(10, 0, 16) },
		"length is 3, want at least 4":      func() (Task, error) { return NewSelectiveCopying(3, 4, 16) },
		"copying: vocab is 3":               func() (Task, error) { return NewCopying(10, 4, 3) },
		"length is 2, want at least 3":      func() (Task, error) { return NewInductionHeads(2, 16) },
		"induction heads: vocab is 2":       func() (Task, error) { return NewInductionHeads(64, 2) },
		"pairs is 0":                        func() (Task, error) { return NewAssociativeRecall(0, 16) },
		"recall: vocab is 9, want at least": func() (Task, error) { return NewAssociativeRecall(5, 9) },
	} {
		if task, err := got(); err == nil || !strings.Contains(err.Error(), want) || task != nil {
			t.Errorf("%v, %v: want an error with %q", task, err, want)
		}
	}
}

func TestAccuracy(t *testing.T) {
	var a Accuracy
	if a.OfTokens() != 0 || a.OfSequences() != 0 {
		t.Error("nothing is right before anything is asked")
	}
	if err := a.Add([]int{1, 2, 3, 4, 5, 6, 0, 0, 0}, []int{1, ignore, 3, 9, 5, ignore, ignore, ignore, ignore}, 3); err != nil {
		t.Error(err)
	}
	if want := (Accuracy{Tokens: 4, RightTokens: 3, Sequences: 2, RightSequences: 1}); a != want {
		t.Errorf("%+v, want %+v", a, want)
	}
	if a.OfTokens() != 0.75 || a.OfSequences() != 0.5 {
		t.Errorf("%v of the tokens and %v of the sequences, want 0.75 and 0.5", a.OfTokens(), a.OfSequences())
	}
	if got, err := Best([]float32{1, 3, 2, -1, -2, -1, 4, 4, 5}, 3); err != nil || !slices.Equal(got, []int{1, 0, 2}) { // of two, the first
		t.Errorf("the best are %v, want 1, 0 and 2", got)
	}
	if got, err := Best([]float64{-3, -2}, 1); err != nil || !slices.Equal(got, []int{0, 0}) {
		t.Errorf("of one token the best are %v, want 0 and 0", got)
	}
}

func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func draw(t *testing.T, s *Stream, batch int) Batch {
	t.Helper()
	b, err := s.Next(batch)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
