package tokens_test

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/gomamba/mamba/tokens"
)

const dir = "../testdata/neox-tokenizer-tiny" // the folder of a model

// From text to tokens, and back.
func Example() {
	tokenizer, err := tokens.Open(dir, 464)
	if err != nil {
		log.Fatal(err)
	}
	ids, err := tokenizer.Encode("The selective scan<|endoftext|>")
	if err != nil {
		log.Fatal(err)
	}
	text, err := tokenizer.Decode(ids)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ids, "ends with", tokenizer.End())
	fmt.Println(text)
	// Output:
	// [53 342 272 424 272 451 0] ends with [0]
	// The selective scan
}

// Tokens that come one at a time. An emoji needs several tokens, and is returned with the last one.
func ExampleTokenizer_NewStream() {
	tokenizer, err := tokens.Open(dir, 464)
	if err != nil {
		log.Fatal(err)
	}
	ids, err := tokenizer.Encode("ok 🙂")
	if err != nil {
		log.Fatal(err)
	}
	stream := tokenizer.NewStream()
	for _, id := range ids {
		part, err := stream.Decode(id)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%q ", part)
	}
	fmt.Printf("%q\n", stream.Flush()) // what is left of an incomplete character
	// Output:
	// "o" "k" " " "" "" "" "🙂" ""
}

// A model of 256 tokens needs no file: its tokens are bytes.
func ExampleBytes() {
	ids, err := tokens.Bytes().Encode("né")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ids)
	// Output:
	// [110 195 169]
}

// A file that cannot be right is an error that names the part.
func ExampleOpen() {
	_, err := tokens.Open(dir, 400) // the model has 400 tokens
	fmt.Println(strings.TrimPrefix(err.Error(), "tokens: open: "+dir+"/"))
	// Output:
	// tokenizer.json: token "ph" is 400, the model's are 0 to 399
}

// A model of the hub, downloaded unless the cache has it.
func ExampleDownload() {
	dir, err := tokens.Download(context.Background(), "state-spaces/mamba-130m-hf", tokens.DownloadConfig{
		Progress: func(p tokens.Progress) { fmt.Printf("\r%s: %d of %d bytes", p.File, p.Done, p.Total) },
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("\nfor checkpoint.Load and tokens.Open:", dir)
}
