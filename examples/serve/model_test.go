package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/examples/internal/exampletest"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/tokens"
)

// callEnded runs the program with a context that has ended: it loads the model, and stops when it has begun to serve.
func callEnded(args ...string) (code int, stdout, stderr string) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out, problems bytes.Buffer
	code = run(ctx, append([]string{"-addr", "127.0.0.1:0"}, args...), &out, &problems)
	return code, out.String(), problems.String()
}

// saved saves a model of bytes in a folder with a chat template.
func saved(t *testing.T, cfg nn.Config) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "saved")
	if err := checkpoint.Save(dir, testModel(cfg).lm); err != nil {
		t.Fatal(err)
	}
	config := `{"chat_template":[{"name":"other","template":"x"},{"name":"default","template":"{{ bos_token }}{{ messages[0].content }}"}],"bos_token":{"content":"<s>"}}`
	if err := os.WriteFile(filepath.Join(dir, "tokenizer_config.json"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The program loads a model in a folder or trains one, and ends without an error when it is told to. Wrong flags are one line that names them.
func TestProgram(t *testing.T) {
	dir := saved(t, tiny)
	bad := filepath.Join(t.TempDir(), "bad.jinja")
	if err := os.WriteFile(bad, []byte("{% for %}"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string // in the log, or the whole error
	}{
		{[]string{"-model", dir, "-weights", "int8"}, "msg=model name=saved parameters="},
		{[]string{"-model", dir, "-name", "mine", "-log", "json"}, `"msg":"model","name":"mine"`},
		{[]string{"-model", dir, "-chat-template", bad}, "serve: -chat-template: the chat template: "},
		{[]string{"-model", dir, "-weights", "int3"}, `serve: -weights is "int3", should be float32, bf16, int8, int4 or file`},
		{[]string{"-weights", "int8"}, "serve: -tokenizer or -weights is set without -model, should be left out"},
		{[]string{"-model", "none"}, `serve: -model is "none", should be a directory, or OWNER/NAME of the Hugging Face hub`},
		{[]string{"-addr", "nowhere:x"}, `serve: -addr is "nowhere:x": `},
		{[]string{"-timeout", "0s"}, "serve: -timeout is 0s, should be more than 0"}, {[]string{"-grace", "-1s"}, "serve: -grace is -1s, should not be negative"},
		{[]string{"-log", "xml"}, `serve: -log is "xml", should be text or json`}, {[]string{"-batch", "0"}, `serve: invalid value "0" for flag -batch: `},
		{[]string{"-key-file", "none"}, "serve: -key-file: "}, {[]string{"model"}, `serve: unexpected argument "model": name the model with -model`},
		{[]string{"-device", "tpu"}, `serve: -device is "tpu", should be cpu or cuda`},
	} {
		code, stdout, stderr := callEnded(c.args...)
		wrong := strings.HasPrefix(c.want, "serve: ")
		if (code != 0) != wrong || stdout != "" || !strings.Contains(stderr, c.want) || wrong && !strings.HasPrefix(stderr, "serve: ") && !strings.Contains(stderr, "\nserve: ") {
			t.Errorf("%v: exit code %d, %q, %q, want %q", c.args, code, stdout, stderr, c.want)
		}
	}
	_, stdout, _ := callEnded("-h")
	exampletest.Usage(t, stdout, "model", "weights", "tokenizer", "chat-template", "name", "addr", "key-file", "log", "batch", "queue", "piece", "cache", "logprobs", "max-tokens",
		"max-prompt", "max-body", "steps", "timeout", "grace", "device", "precision")
}

// The template of a folder is found, with its special tokens.
func TestOpenTemplate(t *testing.T) {
	dir := saved(t, tiny)
	chat, err := openTemplate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := chat.render([]message{{Role: "user", text: "hello"}}); text != "<s>hello" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if chat, err := openTemplate(t.TempDir()); chat != nil || err != nil {
		t.Errorf("an empty folder: %v, %v", chat, err)
	}
	for _, text := range []string{`{`, `{"chat_template":7}`, `{"chat_template":"{% if %}"}`} {
		if err := os.WriteFile(filepath.Join(dir, "tokenizer_config.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := openTemplate(dir); err == nil {
			t.Errorf("no error for %s", text)
		}
	}
}

// The template of a GGUF file is found, with its special tokens. A file without one has no chats.
func TestGGUFTemplate(t *testing.T) {
	number := func(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }
	text := func(b []byte, s string) []byte { return append(number(b, uint64(len(s))), s...) }
	kind := func(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }
	for _, c := range []struct{ template, want, problem string }{
		{"{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>hello", ""}, {"", "", ""}, {"{% if %}", "", "the chat template"},
	} {
		keys := uint64(2)
		if c.template != "" {
			keys++
		}
		b := number(number(kind([]byte("GGUF"), 3), 0), keys)
		b = kind(text(b, "tokenizer.ggml.tokens"), 9)
		b = text(text(number(kind(b, 8), 2), "x"), "<s>") // a list of texts
		b = kind(kind(text(b, "tokenizer.ggml.bos_token_id"), 4), 1)
		if c.template != "" {
			b = text(kind(text(b, "tokenizer.chat_template"), 8), c.template)
		}
		path := filepath.Join(t.TempDir(), "model.gguf")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		chat, err := openTemplate(path)
		if (err != nil) != (c.problem != "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%q: %v, want %q", c.template, err, c.problem)
			continue
		}
		if (chat != nil) != (c.want != "") {
			t.Errorf("%q: a template is there: %t", c.template, chat != nil)
		} else if chat != nil {
			if text, err := chat.render([]message{{Role: "user", text: "hello"}}); text != c.want || err != nil {
				t.Errorf("%q: %q, %v, want %q", c.template, text, err, c.want)
			}
		}
	}
}

// Answers with narrow weights, many at a time, are those of a Generator alone.
func TestNarrowWeights(t *testing.T) {
	lm, err := checkpoint.Load(saved(t, nn.Config{DModel: 64, NLayer: 1}), checkpoint.Weights("int8"))
	if err != nil {
		t.Fatal(err)
	}
	answerTogether(t, &model{lm: lm, name: "test", vocab: 256, tokenizer: tokens.Bytes()}, nil, 30)
}

// On a GPU, answers are those on the host.
func TestDeviceServer(t *testing.T) {
	host := testModel(tiny)
	answerTogether(t, onDevice(t, host, gputest.Open(t, cuda.Open)), host, 8)
}

// onDevice returns a copy of a model on a device.
func onDevice(t *testing.T, m *model, d *cuda.Device) *model {
	t.Helper()
	dir, on := t.TempDir(), *m
	err := checkpoint.Save(dir, m.lm)
	if err == nil {
		on.lm, err = checkpoint.Load(dir, nn.OnDevice(d))
	}
	if err != nil {
		t.Fatal(err)
	}
	return &on
}

// answerTogether sends random questions at once and compares the answers with those of a Generator, which is on the host if one is given.
func answerTogether(t *testing.T, m, host *model, n int) {
	t.Helper()
	if host == nil {
		host = m
	}
	s := start(t, m, "-piece", "16")
	r := rand.New(rand.NewPCG(8, 1))
	var wait sync.WaitGroup
	for range n {
		q, err := randomQuestion(host, 16, r)
		if err != nil {
			t.Fatal(err)
		}
		wait.Go(func() {
			status, _, text, err := s.post(context.Background(), "/v1/completions", q.body)
			if err == nil && status == http.StatusOK {
				err = q.check(t, text, false)
			}
			if err != nil || status != http.StatusOK {
				t.Errorf("status %d, %v", status, err)
			}
		})
	}
	wait.Wait()
}
