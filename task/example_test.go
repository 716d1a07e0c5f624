package task_test

import (
	"fmt"
	"log"
	"math/rand/v2"

	"github.com/gomamba/mamba/task"
)

// Induction heads: the last token of the vocabulary comes twice, and at the end the model has to say what followed it the first time.
func ExampleNewInductionHeads() {
	induction, err := task.NewInductionHeads(10, 5)
	if err != nil {
		log.Fatal(err)
	}
	b, err := task.NewStream(induction, 1).Next(2) // the same two sequences every time
	if err != nil {
		log.Fatal(err)
	}
	for i := range 2 {
		fmt.Println("ids    ", b.IDs[10*i:][:10])
		fmt.Println("targets", b.Targets[10*i:][:10])
	}
	// Output:
	// ids     [3 2 2 4 0 0 2 0 1 4]
	// targets [-100 -100 -100 -100 -100 -100 -100 -100 -100 0]
	// ids     [0 3 0 0 1 4 2 1 3 4]
	// targets [-100 -100 -100 -100 -100 -100 -100 -100 -100 2]
}

// What a model gets right on selective copying. This one predicts by chance.
func ExampleAccuracy() {
	copying, err := task.NewSelectiveCopying(20, 4, 16)
	if err != nil {
		log.Fatal(err)
	}
	const batch = 1000
	b, err := task.NewStream(copying, 1).Next(batch)
	if err != nil {
		log.Fatal(err)
	}
	logits := make([]float64, len(b.IDs)*copying.Vocab()) // of the model: (batch, length, vocab)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range logits {
		logits[i] = random.Float64()
	}
	var right task.Accuracy
	best, err := task.Best(logits, copying.Vocab())
	if err != nil {
		log.Fatal(err)
	}
	if err := right.Add(best, b.Targets, copying.Length()); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d tokens, %.2f of them right; %.2f of %d sequences right\n", right.Tokens, right.OfTokens(), right.OfSequences(), right.Sequences)
	// Output:
	// 4000 tokens, 0.07 of them right; 0.00 of 1000 sequences right
}

// Random windows of a text for training, and what a model has to beat: a bigram, which knows only the byte before.
func ExampleBigram() {
	text := []byte("the cat sat on the mat, and the rat sat on the hat. the cat and the rat sat on the mat.")
	sampler, err := task.NewSampler(text, 2, 8, 1)
	if err != nil {
		log.Fatal(err)
	}
	batch, err := sampler.Next()
	if err != nil {
		log.Fatal(err)
	}
	next := true // each target is the byte after its id
	for i := range 7 {
		next = next && batch.Targets[i] == batch.IDs[i+1]
	}
	fmt.Println("a batch has", len(batch.IDs), "ids, with the next one as target:", next)
	bigram, err := task.NewBigram(text)
	if err != nil {
		log.Fatal(err)
	}
	windows, err := task.Windows(text, 2, 8, 0)
	if err != nil {
		log.Fatal(err)
	}
	bits, err := bigram.BitsPerByte(windows)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("after t comes h with probability %.2f; %.1f bits per byte\n", bigram.Probability('t', 'h'), bits)
	// Output:
	// a batch has 16 ids, with the next one as target: true
	// after t comes h with probability 0.41; 1.2 bits per byte
}
