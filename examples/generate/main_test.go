package main

import (
	"bytes"
	"context"
	"math"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/examples/internal/exampletest"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// call runs the program and returns its exit code and what it wrote.
func call(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, problems bytes.Buffer
	code = run(ctx, args, &out, &problems)
	return code, out.String(), problems.String()
}

// model saves a model of random weights with a tokenizer, or none for a vocabulary of bytes.
func model(t *testing.T, vocab int) string {
	t.Helper()
	dir := t.TempDir()
	if err := checkpoint.Save(dir, nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2}, Vocab: vocab})); err != nil {
		t.Fatal(err)
	}
	if vocab != 256 {
		tokenizer, err := os.ReadFile("../../testdata/neox-tokenizer-tiny/tokenizer.json")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), tokenizer, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The text continues the prompt, without control characters, the same for the same flags. The speeds come at the end.
func TestGenerate(t *testing.T) {
	for vocab, first := range map[int]string{464: "model    ", 256: "tokens   bytes: the vocabulary has 256, and there is no tokenizer.json"} {
		args := []string{"-model", model(t, vocab), "-prompt", "The selective scan\n\nis", "-max", "30", "-temperature", "1.5"}
		code, stdout, stderr := call(t.Context(), args...)
		if code != 0 || !strings.HasPrefix(stdout, "The selective scan\n\nis") || len(stdout) < 30 || !strings.HasSuffix(stdout, "\n") {
			t.Fatalf("exit code %d, %q, %s", code, stdout, stderr)
		}
		if !utf8.ValidString(stdout) || strings.ContainsFunc(stdout+stderr, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }) {
			t.Errorf("there are control characters in %q and %q", stdout, stderr)
		}
		for _, want := range []string{
			`(?m)^model    Mamba, parameters: \d+, layers: 2, d_model: 8, loaded in \d+\.\d s$`,
			`(?m)^prompt   tokens: \d+, \d+\.\d tokens/s$`, `(?m)^written  tokens: \d+, \d+\.\d tokens/s$`, `(?m)^` + first,
		} {
			if !regexp.MustCompile(want).MatchString(stderr) {
				t.Errorf("no match for %q in:\n%s", want, stderr)
			}
		}
		if _, again, _ := call(t.Context(), args...); again != stdout {
			t.Errorf("the same flags gave %q and then %q", stdout, again)
		}
		if _, other, _ := call(t.Context(), append(args, "-seed", "2")...); other == stdout {
			t.Errorf("another seed gave %q, too", other)
		}
		for _, flags := range [][]string{{"-temperature", "0"}, {"-top-k", "1"}} {
			if _, greedy, _ := call(t.Context(), append(args, flags...)...); greedy == stdout {
				t.Errorf("%v makes no difference", flags)
			}
		}
	}
}

// A text that is continued from -state is the text that was not interrupted.
func TestState(t *testing.T) {
	dir, state := model(t, 464), filepath.Join(t.TempDir(), "state")
	flags := []string{"-model", dir, "-temperature", "2"}
	_, whole, _ := call(t.Context(), append(flags, "-prompt", "one two", "-max", "20")...)
	code, first, stderr := call(t.Context(), append(flags, "-prompt", "one two", "-max", "8", "-state", state)...)
	if code != 0 {
		t.Fatal(stderr)
	}
	code, second, stderr := call(t.Context(), append(flags, "-max", "12", "-state", state)...)
	if code != 0 {
		t.Fatal(stderr)
	}
	// A character may have been cut in two.
	if got, want := strings.TrimSuffix(first, "\n")+second, whole; got != want && !strings.Contains(got, "\uFFFD") {
		t.Errorf("%q, want %q", got, want)
	}
}

// A context that ends, as it does on Ctrl-C, gives exit code 0, and the speeds up to there.
func TestInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	code, stdout, stderr := call(ctx, "-model", model(t, 464), "-prompt", "Hello")
	if code != 0 || stdout != "Hello\n" || !strings.HasSuffix(stderr, "written  nothing, stopped\n") {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
	ctx, stop = context.WithCancel(t.Context())
	defer stop()
	out := writerFunc(func(p []byte) (int, error) { stop(); return len(p), nil }) // at the prompt
	var problems bytes.Buffer
	if code := run(ctx, []string{"-model", model(t, 464), "-prompt", "Hello"}, out, &problems); code != 0 || !strings.Contains(problems.String(), ", stopped\n") {
		t.Errorf("exit code %d, %s", code, problems.String())
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// adapter saves a LoRA for model(t, 464), none of it zero.
func adapter(t *testing.T) string {
	t.Helper()
	lm, err := checkpoint.Load(model(t, 464))
	if err != nil {
		t.Fatal(err)
	}
	added, err := lm.Params().AddLoRA(layer.LoRAConfig{Rank: 2, Alpha: 40})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range added {
		for j, data := 0, p.Value.Data().([]float32); j < len(data); j++ {
			data[j] = float32(math.Sin(float64(100*i + j)))
		}
	}
	dir := t.TempDir()
	if err := train.SaveLoRA(dir, "owner/base", lm.Params()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// An adapter changes the text; merged and apart it is the same text.
func TestAdapter(t *testing.T) {
	lora := adapter(t)
	flags := []string{"-model", model(t, 464), "-prompt", "one two", "-max", "20"}
	_, plain, _ := call(t.Context(), flags...)
	code, merged, stderr := call(t.Context(), append(flags, "-adapter", lora)...)
	if code != 0 || merged == plain || !strings.Contains(stderr, "\nadapter  LoRA, weights: 8, merged\n") {
		t.Fatalf("exit code %d, %q, without the adapter %q, %s", code, merged, plain, stderr)
	}
	code, apart, stderr := call(t.Context(), append(flags, "-adapter", lora, "-merge=false")...)
	if code != 0 || apart != merged || !strings.Contains(stderr, "\nadapter  LoRA, weights: 8\n") {
		t.Errorf("exit code %d, %q, merged %q, %s", code, apart, merged, stderr)
	}
}

// On a device, merged and apart, the text is that of the host.
func TestAdapterOnDevice(t *testing.T) {
	gputest.Open(t, cuda.Open)
	flags := []string{"-model", model(t, 464), "-prompt", "one two", "-max", "20", "-adapter", adapter(t), "-temperature", "0"}
	_, host, _ := call(t.Context(), flags...)
	for flag, want := range map[string]string{"-merge": ", weights: 8, merged\n", "-merge=false": ", weights: 8\n"} {
		code, device, stderr := call(t.Context(), append(flags, "-device", "cuda", flag)...)
		if code != 0 || device != host || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %q, on the host %q, %s", flag, code, device, host, stderr)
		}
	}
}

// With narrow weights on a device, as of a GGUF file, the text is that of the host. int4 is an error there.
func TestWeightsOnDevice(t *testing.T) {
	gputest.Open(t, cuda.Open)
	dir := model(t, 464)
	for _, flags := range [][]string{{"-model", dir, "-weights", "int8"}, {"-model", "../../testdata/gguf-mamba-tiny/narrow-F16.gguf"}} {
		flags = append(flags, "-prompt", "one two", "-max", "4", "-temperature", "0")
		_, host, _ := call(t.Context(), flags...)
		if code, device, stderr := call(t.Context(), append(flags, "-device", "cuda")...); code != 0 || device != host || host == "" {
			t.Errorf("%v: exit code %d, %q, on the host %q, %s", flags, code, device, host, stderr)
		}
	}
	const want = `the option Weights is "int4", want float32, file, bfloat16, float16 or int8 on a device`
	if code, _, stderr := call(t.Context(), "-model", dir, "-weights", "int4", "-prompt", "one", "-device", "cuda"); code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("int4: exit code %d, %s", code, stderr)
	}
}

// An error is one line, and exit code 1.
func TestErrors(t *testing.T) {
	// There is no network: nobody listens at the hub's address.
	hub := httptest.NewServer(nil)
	hub.Close()
	t.Setenv("HF_ENDPOINT", hub.URL)
	t.Setenv("HF_HUB_CACHE", t.TempDir())
	dir := model(t, 464)
	bare := t.TempDir()
	if err := checkpoint.Save(bare, nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4}, Vocab: 10})); err != nil {
		t.Fatal(err)
	}
	lora := adapter(t)
	notState := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(notState, []byte("nothing of the kind"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-model", lora}, `-model is "` + lora + `", which is a LoRA adapter: give its base model ("owner/base") with -model, and this folder with -adapter`},
		{[]string{"-adapter", lora}, `-model is missing, should be the base model of the adapter ("owner/base")`},
		{[]string{"-model", dir, "-adapter", dir}, `-adapter is "` + dir + `", which has no adapter_config.json, should be the folder of a LoRA adapter`},
		{[]string{"-model", dir, "-adapter", "./none"}, `-adapter is "./none", should be a directory, or OWNER/NAME`},
		{[]string{"-model", bare, "-adapter", lora}, `-adapter is "` + lora + `", for the base model ("owner/base"): train: `},
		{nil, "-model is missing, should be a directory, or OWNER/NAME of the Hugging Face hub"},
		{[]string{"-model", "./none"}, `-model is "./none", should be a directory, or OWNER/NAME of the Hugging Face hub`},
		{[]string{"-model", "owner/name"}, `-model is "owner/name", which is no directory here: tokens: download owner/name: Get "` + hub.URL + `/api/models/owner/name/`},
		{[]string{"-model", t.TempDir(), "-prompt", "x"}, "no weights: none of model.safetensors, "},
		{[]string{"-model", bare, "-prompt", "x"}, "tokenizer.json: no such file or directory, and a vocabulary of 10 is not one of bytes, which has 256: name another directory with -tokenizer"},
		{[]string{"-model", bare, "-prompt", "x", "-tokenizer", dir}, "the model's are 0 to 9"},
		{[]string{"-model", bare, "-prompt", "x", "-tokenizer", "/none"}, `-tokenizer is "/none", should be a directory`},
		{[]string{"-model", dir}, "-prompt is empty, should be a text to continue"},
		{[]string{"-model", dir, "-prompt", "x", "-state", notState}, "nn: load sequence: " + notState},
		{[]string{"-model", dir, "-prompt", "x", "-state", filepath.Join(notState, "x")}, "nn: "},
		{[]string{"-model", dir, "Hello"}, `unexpected argument "Hello": quote the prompt`},
		{[]string{"-model", dir, "-max", "0"}, `invalid value "0" for flag -max: should be a whole number, at least 1`},
		{[]string{"-model", dir, "-temperature", "-1"}, `invalid value "-1" for flag -temperature: should be a number, at least 0`},
		{[]string{"-model", dir, "-top-p", "1.5"}, "-top-p is more than 1, should be 0 to 1"},
		{[]string{"-model", dir, "-min-p", "2"}, "-min-p is more than 1, should be 0 to 1"},
		{[]string{"-model", dir, "-repetition-penalty", "0"}, `invalid value "0" for flag -repetition-penalty: should be a number above 0`},
	} {
		code, _, stderr := call(t.Context(), c.args...)
		_, err, said := strings.Cut("\n"+stderr, "\ngenerate: ") // of more than one line where it is a list
		if code != 1 || !said || !strings.Contains(err, c.want) {
			t.Errorf("%q: exit code %d, %q, want %s", c.args, code, stderr, c.want)
		}
	}
}

func TestUsage(t *testing.T) {
	code, stdout, stderr := call(t.Context(), "-h")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	exampletest.Usage(t, stdout, "model", "weights", "adapter", "merge", "tokenizer", "prompt", "state", "max", "seed", "temperature", "top-k", "top-p", "min-p",
		"repetition-penalty", "device", "precision")
}
