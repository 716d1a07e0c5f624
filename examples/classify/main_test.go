package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/examples/internal/exampletest"
	"github.com/gomamba/mamba/images"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/vision"
)

func call(args ...string) (code int, stdout, stderr string) {
	return exampletest.Program(run).Call(args...)
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	return exampletest.Program(run).Must(t, args...)
}

// small are flags of a run that takes no time.
var small = []string{"-size", "16", "-batch", "2", "-steps", "3"}

// writeFolder writes some images of two classes, in three sizes.
func writeFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for class, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if err := images.WritePNG(filepath.Join(dir, name, fmt.Sprintf("%d.png", i)), pattern(uint64(i), class, 10+5*i).Image); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// A folder becomes a model, pictures and metrics, and -predict names a class of it.
func TestFolder(t *testing.T) {
	dir, out := writeFolder(t), t.TempDir()
	text := must(t, append(small, "-data", dir, "-out", out)...)
	exampletest.PNG(t, filepath.Join(out, "loss.png"))
	exampletest.PNG(t, filepath.Join(out, "confusion.png"))
	var m metrics
	data, err := os.ReadFile(filepath.Join(out, "metrics.json"))
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil || !slices.Equal(m.Classes, []string{"a", "b"}) || m.HeldOut != 2 || m.Top1 != float64(m.Confusion[0][0]+m.Confusion[1][1])/2 {
		t.Fatalf("metrics.json has %s: %v", data, err)
	}
	if want := fmt.Sprintf("top-1       %.4f of 2 images held out\n", m.Top1); !strings.HasSuffix(text, want) {
		t.Errorf("the output ends in %q, want %q", text[len(text)-60:], want)
	}
	text = must(t, "-out", out, "-predict", filepath.Join(dir, "a", "2.png"), filepath.Join(dir, "b", "2.png"))
	right := 0
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if strings.Contains(line, "2.png: "+m.Classes[i]+", probability 0.") {
			right++
		}
	}
	if float64(right)/2 != m.Top1 {
		t.Errorf("-predict prints %s, and the accuracy of these two images was %v", text, m.Top1)
	}
	if text := must(t, "-batch", "2", "-steps", "1", "-data", dir, "-model", out, "-out", filepath.Join(out, "same")); !strings.Contains(text, "images: 2 x 16 x 16") {
		t.Errorf("tuned without -size, images should keep that of the model, 16: %s", text)
	}
	// The directory, and a Vim for images of another size, are models to tune.
	must(t, append(small, "-data", dir, "-model", out, "-out", filepath.Join(out, "tuned"))...)
	vim := vision.NewVim(vision.VimConfig{Classes: 7, Height: 32, Patch: 8, Dim: 8, Depth: 1, State: 2}, layer.WithSeed(1))
	if err := checkpoint.SaveVision(filepath.Join(out, "vim"), vim); err != nil {
		t.Fatal(err)
	}
	must(t, append(small, "-data", dir, "-model", filepath.Join(out, "vim"), "-out", filepath.Join(out, "tuned-vim"))...)
}

// stopper ends a context when the program has printed a line of progress.
type stopper struct {
	bytes.Buffer
	stop func()
}

func (s *stopper) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte("step 1")) {
		s.stop()
	}
	return s.Buffer.Write(p)
}

// A run that is stopped and resumed ends with the same files, bit for bit.
func TestResume(t *testing.T) {
	dir, whole, out := writeFolder(t), t.TempDir(), t.TempDir()
	args := append(small, "-data", dir, "-model", "vim", "-droppath", "0.2")
	must(t, append(args, "-out", whole)...)
	ctx, stop := context.WithCancel(t.Context())
	text := &stopper{stop: stop}
	var problems bytes.Buffer
	if code := run(ctx, append(args, "-out", out), text, &problems); code != 0 || !strings.Contains(text.String(), "-resume continues") {
		t.Fatalf("exit code %d, %s%s", code, text, &problems)
	}
	if code, _, stderr := call(append(args, "-out", out)...); code != 1 || !strings.Contains(stderr, "has not ended") {
		t.Errorf("a new run over one that has not ended: exit code %d, %s", code, stderr)
	}
	must(t, append(args, "-out", out, "-resume")...)
	for _, name := range []string{"metrics.json", "confusion.png", "model.safetensors", "train.safetensors"} {
		want, err := os.ReadFile(filepath.Join(whole, name))
		got, err2 := os.ReadFile(filepath.Join(out, name))
		if err != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs: %v, %v", name, err, err2)
		}
	}
}

func TestErrors(t *testing.T) {
	dir, one := writeFolder(t), writeFolder(t)
	for _, name := range []string{"1.png", "2.png"} {
		if err := os.Remove(filepath.Join(one, "b", name)); err != nil {
			t.Fatal(err)
		}
	}
	broken := writeFolder(t)
	if err := os.WriteFile(filepath.Join(broken, "a", "1.png"), []byte("nothing"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		want string
		args []string
	}{
		{`-data is "nowhere"`, []string{"-data", "nowhere"}},
		{"has no files", []string{"-data", filepath.Dir(dir)}},
		{"whose folder b has 1 image", []string{"-data", one}},
		{filepath.Join("a", "1.png"), append(slices.Clone(small), "-data", broken)},
		{"invalid value 17 for flag -size", []string{"-size", "17"}},
		{"invalid value 1 for flag -heldout", []string{"-heldout", "1"}},
		{`invalid value "0" for flag -heldout`, []string{"-heldout", "0"}},
		{"invalid value 2 for flag -droppath", []string{"-droppath", "2"}},
		{`-model is "resnet", should be vmamba, vim, or`, []string{"-model", "resnet"}},
		{"should be a directory that this program wrote", []string{"-predict", "a.png"}},
		{"-data has no effect with -predict", []string{"-predict", "a.png", "-data", "b"}},
		{"-resume is for training", []string{"-predict", "a.png", "-resume"}},
		{`unexpected argument "a.png"`, []string{"a.png"}},
	} {
		code, _, stderr := call(append([]string{"-out", t.TempDir()}, test.args...)...)
		if code != 1 || !strings.Contains(stderr, test.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, %s, want one line with %q", test.args, code, stderr, test.want)
		}
	}
}

// Without names, the rows of the confusion matrix are numbered from the top, as they are drawn.
func TestTicks(t *testing.T) {
	for _, tick := range topDown(100).Ticks(-0.5, 99.5) {
		if want := fmt.Sprint(99 - tick.Value); tick.Label != "" && tick.Label != want {
			t.Errorf("row %v is labelled %s, want %s", tick.Value, tick.Label, want)
		}
	}
}

func TestUsage(t *testing.T) {
	_, text, _ := call("-h")
	exampletest.Usage(t, text, "data", "out", "model", "predict", "resume", "steps", "lr", "size", "heldout", "droppath", "device", "precision")
}

func TestDevice(t *testing.T) {
	exampletest.Device(t, "classify", "top-1", call, append(small, "-data", writeFolder(t), "-out", t.TempDir())...)
}
