package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/examples/internal/exampletest"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// call runs the program and returns its exit code and its output.
func call(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, problems bytes.Buffer
	code = run(ctx, args, &out, &problems)
	return code, out.String(), problems.String()
}

// writeLines makes a file of documents, one per line.
func writeLines(t *testing.T, n int) string {
	t.Helper()
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "document %d says the same %s\n", i, strings.Repeat("again and ", i%7))
	}
	return writeFile(t, "lines.txt", text.String())
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeModel makes a checkpoint of a model of bytes.
func writeModel(t *testing.T, vocab int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := checkpoint.Save(dir, nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 16}, Vocab: vocab}, nn.WithSeed(2))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tiny are settings with which a run takes a moment.
var tiny = []string{"-steps", "4", "-batch", "2", "-length", "32", "-evaltokens", "200"}

// Without a model it makes its own, and the result is one to start from again.
func TestOwnModel(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	args := append([]string{"-basesteps", "3", "-layers", "1", "-dmodel", "16", "-out", out}, tiny...)
	code, stdout, stderr := call(context.Background(), args...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	for _, want := range []string{
		`model       a small one: Mamba, parameters: \d+\n            layers: 1, d_model: 16, vocabulary: 256\n`,
		`base        Go's code: documents: \d+, bytes: \d+, held out: \d+\n            steps: 3, batch: 1 x 2, length: 32, learn rate: 0\.005\n`,
		`data        Go's comments: documents: \d+, bytes: \d+, held out: \d+\n`,
		`finetune    all weights: (\d+) of \d+ parameters\n            steps: 4, batch: 1 x 2, length: 32, learn rate: 0\.003\n`,
		`step 4 of 4  loss \d\.\d{3}  perplexity \d+\.\d{3}  held out \d+\.\d{3}  \d+ tokens/s  0s left\n`,
		`perplexity per byte, held out  +before +after\n  Go's code +\d+\.\d{3} +\d+\.\d{3}\n  Go's comments +\d+\.\d{3} +\d+\.\d{3}\n`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("no match for %q in:\n%s", want, stdout)
		}
	}
	exampletest.PNG(t, filepath.Join(out, "loss.png"))
	if code, _, stderr := call(context.Background(), args...); code != 0 { // the run is at its end: all starts anew
		t.Errorf("the second run: exit code %d, %s", code, stderr)
	}
	again := append([]string{"-model", out, "-data", writeLines(t, 20), "-out", filepath.Join(t.TempDir(), "again")}, tiny...)
	if code, stdout, stderr := call(context.Background(), again...); code != 0 || !strings.Contains(stdout, "lines.txt: documents: 20") {
		t.Errorf("exit code %d, %s\n%s", code, stderr, stdout)
	}
}

// With -data and without -model the small model is trained on that data: a computer that has no Go installation needs no more.
func TestOwnModelOfData(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	cmd := program(t, append([]string{"-data", writeLines(t, 30), "-basesteps", "3", "-layers", "1", "-dmodel", "16", "-out", out}, tiny...)...)
	cmd.Env = append(cmd.Env, "GOROOT="+t.TempDir(), "PATH=") // the last value counts
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stdout)
	}
	for _, want := range []string{
		`base        .*lines\.txt: documents: 30, bytes: \d+, held out: \d+\n            steps: 3, batch: 1 x 2, length: 32, learn rate: 0\.005\n`,
		`data        .*lines\.txt: documents: 30, bytes: \d+, held out: \d+\n`,
		`perplexity per byte, held out  +before +after\n  .*lines\.txt +\d+\.\d{3} +\d+\.\d{3}\n\n`,
	} {
		if !regexp.MustCompile(want).Match(stdout) {
			t.Errorf("no match for %q in:\n%s", want, stdout)
		}
	}
	exampletest.PNG(t, filepath.Join(out, "loss.png"))
}

// A short text is not learned by heart by the small model, unless -basesteps asks for it.
func TestBaseSteps(t *testing.T) {
	for text, want := range map[int]int{1: 1, 100: 7, 12800: 800, 1 << 20: 800} {
		c := &corpus{train: []train.Document{{Tokens: make([]int, text)}}}
		if got := baseSteps(c, 64); got != want {
			t.Errorf("a text of %d tokens: %d steps of 64, want %d", text, got, want)
		}
	}
	args := append([]string{"-data", writeLines(t, 30), "-layers", "1", "-dmodel", "16", "-out", filepath.Join(t.TempDir(), "out")}, tiny...)
	code, stdout, stderr := call(context.Background(), args...)
	steps := regexp.MustCompile(`base .* bytes: (\d+), .*\n +steps: (\d+), `).FindStringSubmatch(stdout)
	if code != 0 || steps == nil {
		t.Fatalf("exit code %d, %s\n%s", code, stderr, stdout)
	}
	size, _ := strconv.Atoi(steps[1])
	if n, _ := strconv.Atoi(steps[2]); n < 1 || n > 4*size/64+1 {
		t.Errorf("%d steps of 64 bytes for a text of %d bytes, want at most four passes", n, size)
	}
}

// A run after which the held-out text is predicted worse says so, and what to do.
func TestWorse(t *testing.T) {
	model, data := writeModel(t, 256), writeLines(t, 30)
	for lr, worse := range map[string]bool{"0.01": false, "1": true} {
		args := append([]string{"-model", model, "-data", data, "-lr", lr, "-out", filepath.Join(t.TempDir(), "out")}, tiny...)
		code, stdout, stderr := call(context.Background(), args...)
		if code != 0 || strings.Contains(stdout, "The held-out part is predicted worse than before") != worse {
			t.Errorf("-lr %s: exit code %d, %s\n%s", lr, code, stderr, stdout)
		}
	}
}

// What is merged computes what the LoRA did.
func TestLoRA(t *testing.T) {
	model, data := writeModel(t, 256), writeLines(t, 30)
	losses := map[string]float64{}
	for _, merge := range []bool{false, true} {
		out := filepath.Join(t.TempDir(), "out")
		args := append([]string{"-model", model, "-data", data, "-lora", "3", "-alpha", "6", "-lr", "0.05", "-out", out}, tiny...)
		if merge {
			args = append(args, "-merge")
		}
		code, stdout, stderr := call(context.Background(), args...)
		if code != 0 || !strings.Contains(stdout, "finetune    LoRA of rank 3: ") {
			t.Fatalf("exit code %d, %s\n%s", code, stderr, stdout)
		}
		from := model
		if merge {
			from = out
		}
		lm, err := checkpoint.Load(from)
		if err != nil {
			t.Fatal(err)
		}
		if !merge {
			if err := train.LoadLoRA(out, lm.Params()); err != nil {
				t.Fatal(err)
			}
		}
		docs := []train.Document{{Tokens: []int{1, 50, 60, 70, 80}}}
		lm.Params().Unfreeze()
		tr, err := train.New(lm, train.Config{Batch: 1, Length: 8, Steps: 1, Data: docs, AdamW: train.AdamWConfig{LearnRate: 1}})
		if err != nil {
			t.Fatal(err)
		}
		batches, err := train.Pack(docs, 1, 8)
		if err != nil {
			t.Fatal(err)
		}
		if losses[fmt.Sprint(merge)], err = tr.Evaluate(batches); err != nil {
			t.Fatal(err)
		}
		tr.Close()
	}
	if losses["true"] != losses["false"] {
		t.Errorf("the loss is %v merged and %v not", losses["true"], losses["false"])
	}
}

// A result in -out is the last run's and only that; a model that no run has written is not overwritten.
func TestSameOut(t *testing.T) {
	model, data, out := writeModel(t, 256), writeLines(t, 20), filepath.Join(t.TempDir(), "out")
	args := append([]string{"-model", model, "-data", data, "-out", out}, tiny...)
	for _, lora := range []bool{true, false, true} {
		all, want, gone := slices.Clone(args), modelFiles, loraFiles
		if lora {
			all, want, gone = append(all, "-lora", "2"), loraFiles, modelFiles
		}
		if code, _, stderr := call(context.Background(), all...); code != 0 {
			t.Fatalf("exit code %d, %s", code, stderr)
		}
		for i := range want {
			if _, err := os.Stat(filepath.Join(out, want[i])); err != nil {
				t.Errorf("LoRA %t: %v", lora, err)
			}
			if _, err := os.Stat(filepath.Join(out, gone[i])); err == nil {
				t.Errorf("LoRA %t: there is still the %s of the run before", lora, gone[i])
			}
		}
	}
	other := writeModel(t, 256)
	before, err := os.ReadFile(filepath.Join(other, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	for _, more := range [][]string{nil, {"-resume"}} {
		code, _, stderr := call(context.Background(), slices.Concat(args, []string{"-out", other}, more)...)
		if code != 1 || !strings.Contains(stderr, "which holds a config.json that no run has written: should be a new directory") {
			t.Errorf("exit code %d, %s", code, stderr)
		}
	}
	if after, err := os.ReadFile(filepath.Join(other, "model.safetensors")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the other model was changed, %v", err)
	}
}

// A run that fails before it has saved anything, in the directory of one that has ended, leaves the results there, and the next one can replace them.
func TestFailsInResults(t *testing.T) {
	model, data, out := writeModel(t, 256), writeLines(t, 20), filepath.Join(t.TempDir(), "out")
	args := append([]string{"-model", model, "-data", data, "-out", out}, tiny...)
	for i, test := range []struct {
		data string
		code int
	}{{data, 0}, {data + ".none", 1}, {data, 0}} {
		if code, stdout, stderr := call(context.Background(), append(args, "-data", test.data)...); code != test.code {
			t.Fatalf("run %d: exit code %d, %s\n%s", i, code, stderr, stdout)
		}
		if _, err := os.Stat(filepath.Join(out, "model.safetensors")); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(out, replacing)); err == nil {
		t.Errorf("the file %q is left", replacing)
	}
}

// Ctrl-C stops after the step, saves, and says how to go on.
func TestInterrupted(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	args := append([]string{"-model", writeModel(t, 256), "-data", writeLines(t, 20), "-out", out}, tiny...)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	code, stdout, stderr := call(ctx, args...)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "the same command with -resume continues") {
		t.Fatalf("exit code %d, %s\n%s", code, stderr, stdout)
	}
	if code, _, stderr := call(context.Background(), args...); code != 1 || !strings.Contains(stderr, "continue it with -resume") {
		t.Errorf("exit code %d, %s, want that a run would be lost", code, stderr)
	}
	if code, _, stderr := call(context.Background(), append(args, "-resume", "-lr", "0.5")...); code != 1 || !strings.Contains(stderr, `was saved with -lr "0.0002", want the same to go on, not "0.5"`) {
		t.Errorf("exit code %d, %s, want that -lr was another", code, stderr)
	}
	for flag, other := range map[string]string{"-heldout": "0.3", "-evaltokens": "17"} { // they choose the documents that are trained on
		if code, _, stderr := call(context.Background(), append(args, "-resume", flag, other)...); code != 1 || !strings.Contains(stderr, "was saved with "+flag+" ") {
			t.Errorf("%s %s: exit %d, %q, want an error that names the flag", flag, other, code, stderr)
		}
	}
	if code, stdout, stderr := call(context.Background(), append(args, "-resume")...); code != 0 || !strings.Contains(stdout, "resumed     after step 0 of 4\n") {
		t.Errorf("exit code %d, %s\n%s", code, stderr, stdout)
	}
}

// A checkpoint with a tokenizer is trained on its tokens, and the result has the tokenizer as well.
func TestTokenizer(t *testing.T) {
	file, err := os.ReadFile("../../testdata/neox-tokenizer-tiny/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	model := writeModel(t, 600)
	if err := os.WriteFile(filepath.Join(model, "tokenizer.json"), file, 0o666); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	code, stdout, stderr := call(context.Background(), append([]string{"-model", model, "-data", writeLines(t, 20), "-out", out}, tiny...)...)
	if code != 0 || !regexp.MustCompile(`documents: 20, tokens: \d+, held out`).MatchString(stdout) || !strings.Contains(stdout, "perplexity per token, held out") {
		t.Errorf("exit code %d, %s\n%s", code, stderr, stdout)
	}
	if copied, err := os.ReadFile(filepath.Join(out, "tokenizer.json")); err != nil || !bytes.Equal(copied, file) {
		t.Errorf("the result has no tokenizer: %v", err)
	}
	enc := encoding{}
	if _, enc, err = load(model, nil); err != nil {
		t.Fatal(err)
	}
	c, err := newCorpus([]document{{prompt: "one two ", text: "three"}, {text: "four"}}, enc, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	first := c.train[0]
	want, err := enc.Encode("one two ")
	if err != nil {
		t.Fatal(err)
	}
	if first.Prompt != len(want) || !slices.Equal(first.Tokens[:first.Prompt], want) || first.Tokens[len(first.Tokens)-1] != enc.End()[0] {
		t.Errorf("the document is %v, want the prompt's tokens %v first, and %v at the end", first, want, enc.End())
	}
}

// Prompts are not learned, and what is held out is not trained on.
func TestCorpus(t *testing.T) {
	docs, err := readDocuments(writeFile(t, "data.jsonl", `{"prompt": "2+2=", "completion": "4", "id": 7}

{"text": "ab"}
`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCorpus(docs, byBytes, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	want := []train.Document{{Tokens: []int{'2', '+', '2', '=', '4', 0}, Prompt: 4}, {Tokens: []int{'a', 'b', 0}}}
	if !reflect.DeepEqual(c.train, want) || c.heldOut != nil || c.tokens != 9 {
		t.Errorf("the documents are %v, want %v", c.train, want)
	}

	docs = nil
	for i := range 100 {
		docs = append(docs, document{text: fmt.Sprint("text ", i%50)}) // each twice
	}
	for _, c := range []struct {
		share      float64
		evalTokens int
		least      int
		most       int
	}{{0.2, 1000, 16, 20}, {0.5, 1000, 44, 50}, {0.5, 60, 2, 8}, {0.001, 1000, 2, 2}, {0.999, 10000, 96, 98}} {
		got, err := newCorpus(docs, byBytes, c.share, c.evalTokens)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(got.heldOut); n < c.least || n > c.most || n+len(got.train) != 100 {
			t.Errorf("share %v: %d held out and %d trained on, want %d to %d and the rest", c.share, n, len(got.train), c.least, c.most)
		}
		for _, held := range got.heldOut {
			if slices.ContainsFunc(got.train, func(d train.Document) bool { return reflect.DeepEqual(d, held) }) {
				t.Errorf("share %v: %v is held out and trained on", c.share, held)
			}
		}
	}
	one, err := newCorpus([]document{{text: "0123456789"}}, byBytes, 0.3, 100)
	if err != nil || len(one.train[0].Tokens) != 7 || len(one.heldOut[0].Tokens) != 4 {
		t.Errorf("a single document is divided into %v and %v, %v", one.train, one.heldOut, err)
	}
}

// Whatever is wrong is one clear line.
func TestErrors(t *testing.T) {
	lines, model := writeLines(t, 20), writeModel(t, 256)
	jsonl := func(text string) []string {
		return []string{"-model", model, "-data", writeFile(t, "data.jsonl", text)}
	}
	file := writeFile(t, "file", "")
	none := filepath.Join(t.TempDir(), "none")
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-steps", "0"}, `invalid value "0" for flag -steps: should be a whole number, at least 1`},
		{[]string{"-lora", "-1"}, `invalid value "-1" for flag -lora: should be a whole number, at least 0`},
		{[]string{"-lr", "fast"}, `invalid value "fast" for flag -lr: should be a number, at least 0`},
		{[]string{"-clip", "NaN"}, `invalid value "NaN" for flag -clip`},
		{[]string{"-heldout", "1"}, `invalid value 1 for flag -heldout: should be below 1`},
		{[]string{"-out", ""}, `invalid value "" for flag -out: should be a directory`},
		{[]string{"-merge"}, `-merge and -alpha need -lora`},
		{[]string{"-speed", "9"}, `flag provided but not defined: -speed`},
		{[]string{"text.txt"}, `unexpected argument "text.txt": name the checkpoint with -model and the text with -data`},
		{[]string{"-model", none, "-data", lines}, none},
		{[]string{"-model", model, "-data", none}, none + ": "},
		{[]string{"-model", model, "-data", writeFile(t, "empty.txt", "\n \n")}, "empty.txt: the file has no document"},
		{[]string{"-model", writeModel(t, 300), "-data", lines}, "tokenizer.json: no such file or directory, and a vocabulary of 300 is not one of bytes, which has 256"},
		{[]string{"-model", model, "-data", lines, "-out", file}, "-out is \"" + file + "\", should be a directory that can be written"},
		{[]string{"-model", model, "-data", lines, "-out", model}, "the directory of -model: should be another"},
		{jsonl("{\"text\": \"a\"}\n\n{\"text\": \"b\""), "data.jsonl:3: want a JSON object with text, or with prompt and completion: unexpected end of JSON input"},
		{jsonl("[1]"), "data.jsonl:1: want a JSON object"},
		{jsonl(`{"text": 5}`), "data.jsonl:1: want a JSON object"},
		{jsonl(`{"text": "a"}` + "\n" + `{"prompt": "a"}`), "data.jsonl:2: want either text, or prompt and completion"},
		{jsonl(`{"text": "a", "prompt": "a", "completion": "b"}`), "data.jsonl:1: want either text, or prompt and completion"},
		{jsonl(`{"prompt": "a", "completion": ""}`), "data.jsonl:1: the text to learn is empty"},
		{jsonl(`{"prompt": "a", "completion": "b"}`), "data.jsonl: a single document: add another one to hold out, or set -heldout 0"},
		{[]string{"-model", model, "-data", lines, "-lr", "1e38"}, "at step "},
	} {
		args := append(slices.Clone(tiny), "-out", filepath.Join(t.TempDir(), "out"))
		code, _, stderr := call(context.Background(), append(args, test.args...)...)
		if code != 1 || !strings.HasPrefix(stderr, "finetune: ") || !strings.Contains(stderr, test.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, %q, want a line with %q", test.args, code, stderr, test.want)
		}
	}
}

func TestUsage(t *testing.T) {
	code, stdout, stderr := call(context.Background(), "-h")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	exampletest.Usage(t, stdout, "model", "data", "out", "resume", "lora", "alpha", "merge", "lr", "device")
}
