package tokens_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/tokens"
	"github.com/gomamba/mamba/train"
)

// The program that continues a prompt: model, tokenizer and generator together.
func Example_generate() {
	dir, err := trained("one two three one two three one two three")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := generate(context.Background(), dir, "three one"); err != nil {
		log.Fatal(err)
	}
	// Output:
	// three one two three one two three one
}

// generate continues a prompt with the model in a folder, and prints each token as soon as it is chosen.
func generate(ctx context.Context, dir, prompt string) error {
	lm, err := checkpoint.Load(dir)
	if err != nil {
		return err
	}
	tokenizer, err := tokens.Open(dir, lm.Config().Vocab)
	if err != nil {
		return err
	}
	ids, err := tokenizer.Encode(prompt)
	if err != nil {
		return err
	}
	generator, err := nn.NewGenerator(lm, nn.GenerateConfig{MaxTokens: 16, StopTokens: tokenizer.End()})
	if err != nil {
		return err
	}
	defer generator.Close()

	fmt.Print(prompt)
	stream := tokenizer.NewStream()
	_, err = generator.Generate(ctx, [][]int{ids}, func(_, token int) error {
		text, err := stream.Decode(token) // whole characters only
		fmt.Print(text)
		return err
	})
	fmt.Println(stream.Flush())
	return err
}

// trained returns a folder with a small model that has learned a text by heart.
func trained(text string) (to string, err error) {
	tokenizer, err := tokens.Open(dir, 464)
	if err != nil {
		return "", err
	}
	ids, err := tokenizer.Encode(text)
	if err != nil {
		return "", err
	}
	lm := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 16, NLayer: 1}, Vocab: 464})
	trainer, err := train.New(lm, train.Config{
		Batch: 1, Length: len(ids) - 1, Steps: 60, Data: []train.Document{{Tokens: ids}}, AdamW: train.AdamWConfig{LearnRate: 0.02},
	})
	if err != nil {
		return "", err
	}
	defer trainer.Close()
	if err := trainer.Run(context.Background()); err != nil {
		return "", err
	}
	if to, err = os.MkdirTemp("", "model"); err != nil {
		return "", err
	}
	file, err := os.ReadFile(filepath.Join(dir, "tokenizer.json"))
	if err == nil {
		err = os.WriteFile(filepath.Join(to, "tokenizer.json"), file, 0o600)
	}
	if err == nil {
		err = checkpoint.Save(to, lm)
	}
	return to, err
}
