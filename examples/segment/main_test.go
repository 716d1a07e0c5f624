package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/dist/disttest"
	"github.com/gomamba/mamba/examples/internal/exampletest"
	"github.com/gomamba/mamba/images"
)

func call(args ...string) (code int, stdout, stderr string) {
	return exampletest.Program(run).Call(args...)
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	return exampletest.Program(run).Must(t, args...)
}

// small are flags of a run that takes no time.
var small = []string{"-width", "2", "-crop", "16", "-batch", "2", "-steps", "4", "-heldout", "1", "-overlap", "0"}

// folder writes some images of 20 by 24 pixels with the labels 7 and 200.
func writeFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for i := range 3 {
		s := microscope(uint64(i))
		im, labels := image.NewGray(image.Rect(0, 0, 24, 20)), image.NewGray(image.Rect(0, 0, 24, 20))
		for y := range 20 {
			for x := range 24 {
				im.SetGray(x, y, color.Gray{Y: uint8(255 * s.Image.Pix[y*side+x])})
				labels.SetGray(x, y, color.Gray{Y: []uint8{200, 7, 200}[s.Labels.Values[y*side+x]]})
			}
		}
		writePNG(t, filepath.Join(dir, "image", fmt.Sprintf("%d.png", i)), im)
		writePNG(t, filepath.Join(dir, "label", fmt.Sprintf("%d.png", i)), labels)
	}
	return dir
}

func writePNG(t *testing.T, path string, im image.Image) {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, im); err != nil {
		t.Fatal(err)
	}
	write(t, path, b.Bytes())
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
}

// A folder becomes two models and what the documentation names; -predict writes masks with the labels' own values, those of the run's own metrics.
func TestFolder(t *testing.T) {
	dir, out := writeFolder(t), t.TempDir()
	text := must(t, append(small, "-data", dir, "-out", out)...)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, label := range []string{"7", "7", "200", "200"} {
		if line := lines[len(lines)-4+i]; !strings.Contains(line, "label "+label) || !strings.Contains(line, " Dice ") {
			t.Errorf("the line %q should have the label %s and its Dice", line, label)
		}
	}
	exampletest.PNG(t, filepath.Join(out, "unet", "loss.png"))
	var m metrics
	data, err := os.ReadFile(filepath.Join(out, "metrics.json"))
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil || !slices.Equal(m.HeldOut, []string{"2"}) || len(m.Models) != 2 || len(m.Models[0].Classes) != 2 || m.Models[1].Model != "unet" {
		t.Fatalf("metrics.json has %s: %v", data, err)
	}
	a, b := m.Models[0].Parameters, m.Models[1].Parameters
	if a < b*8/10 || a > b*12/10 {
		t.Errorf("the models have %d and %d parameters, want about the same", a, b)
	}
	picture, err := images.Read(filepath.Join(out, "segmented.png"))
	if err != nil || !slices.Equal(picture.Size, []int{19 * 20, 4*19*24 + 3*8}) {
		t.Errorf("the picture: %v, %v", picture, err)
	}
	for i, kind := range kinds {
		file := filepath.Join(dir, "image", "2.png")
		must(t, "-model", filepath.Join(out, kind), "-predict", file, filepath.Join(dir, "image", "1.png"), "-out", filepath.Join(out, "p"), "-overlap", "0")
		mask, err := images.ReadLabels(filepath.Join(out, "p", "2_mask.png"))
		truth, err2 := images.ReadLabels(filepath.Join(dir, "label", "2.png"))
		if err != nil || err2 != nil || !slices.Equal(mask.Size, truth.Size) {
			t.Fatalf("%v: %v, %v", mask, err, err2)
		}
		right := 0
		for i, v := range mask.Values {
			if v != 7 && v != 200 {
				t.Fatalf("the mask has the value %d, want 7 and 200", v)
			}
			if v == truth.Values[i] {
				right++
			}
		}
		if got, want := float64(right)/float64(len(mask.Values)), m.Models[i].Accuracy; got != want {
			t.Errorf("%s: the mask has an accuracy of %v, and metrics.json says %v", kind, got, want)
		}
		for _, name := range []string{"2_overlay.png", "1_mask.png"} {
			if im, err := images.Read(filepath.Join(out, "p", name)); err != nil || !slices.Equal(im.Size, []int{20, 24}) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	must(t, "-predict", filepath.Join(dir, "image", "0.png"), "-out", out, "-flips") // the model of the directory
	must(t, append(small, "-data", dir, "-model", filepath.Join(out, "unet"), "-out", filepath.Join(out, "further"))...)
}

// stopper ends a context when the program has printed so many lines of progress.
type stopper struct {
	bytes.Buffer
	lines int
	stop  func()
}

func (s *stopper) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte("step ")) {
		if s.lines--; s.lines == 0 {
			s.stop()
		}
	}
	return s.Buffer.Write(p)
}

// A run that is stopped at any step and resumed ends with the same files, bit for bit. A run that has not ended is not begun again.
func TestResume(t *testing.T) {
	dir, whole := writeFolder(t), t.TempDir()
	args := append(small, "-data", dir, "-save", "2")
	must(t, append(args, "-out", whole)...)
	for _, lines := range []int{6} { // in the second model
		out := t.TempDir()
		ctx, stop := context.WithCancel(t.Context())
		text := &stopper{lines: lines, stop: stop}
		var problems bytes.Buffer
		if code := run(ctx, append(args, "-out", out), text, &problems); code != 0 || !strings.Contains(text.String(), "-resume continues") {
			t.Fatalf("exit code %d, %s%s", code, text, &problems)
		}
		if code, _, stderr := call(append(args, "-out", out)...); code != 1 || !strings.Contains(stderr, "has not ended") {
			t.Errorf("a new run over one that has not ended: exit code %d, %s", code, stderr)
		}
		for _, flag := range []string{"-lr", "-seed", "-width"} {
			if code, _, stderr := call(append(args, "-out", out, "-resume", flag, "5")...); code != 1 || !strings.Contains(stderr, flag) || strings.Contains(stderr, "-model") {
				t.Errorf("resumed with another %s: exit code %d, %s", flag, code, stderr)
			}
		}
		must(t, append(args, "-out", out, "-resume")...)
		for _, name := range []string{"metrics.json", "segmented.png", "unet/model.safetensors", "mambaunet/model.safetensors", "mambaunet/train.safetensors"} {
			want, err := os.ReadFile(filepath.Join(whole, name))
			got, err2 := os.ReadFile(filepath.Join(out, name))
			if err != nil || err2 != nil || !bytes.Equal(got, want) {
				t.Errorf("after a stop at line %d, %s differs: %v, %v", lines, name, err, err2)
			}
		}
	}
}

// asProgram makes this test's binary the program itself.
const asProgram = "SEGMENT_TEST_IS_THE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// A run that is killed, with no chance to do anything about it, and resumed ends with the same weights, bit for bit.
func TestKill(t *testing.T) {
	dir, whole, out := writeFolder(t), t.TempDir(), t.TempDir()
	args := append(small, "-data", dir, "-save", "1", "-steps", "8", "-model", "mambaunet")
	must(t, append(args, "-out", whole)...)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, append(args, "-out", out)...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	lines, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for scanner := bufio.NewScanner(lines); scanner.Scan() && !strings.HasPrefix(scanner.Text(), "step 3"); {
	}
	_ = cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		t.Error("the program ended before it was killed")
	}
	must(t, append(args, "-out", out, "-resume")...)
	for _, name := range []string{"metrics.json", "mambaunet/model.safetensors", "mambaunet/train.safetensors"} {
		want, err := os.ReadFile(filepath.Join(whole, name))
		got, err2 := os.ReadFile(filepath.Join(out, name))
		if err != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Errorf("after a kill, %s differs: %v, %v", name, err, err2)
		}
	}
}

// Two processes print once, and leave what one process does.
func TestDistributed(t *testing.T) {
	out := t.TempDir()
	args := append(small, "-data", writeFolder(t), "-out", out, "-steps", "2", "-model", "unet", "-distributed", "-trace")
	text := strings.Join(disttest.Output(t, disttest.Libraries[0].Start(t, 2, asProgram, "1", args...)), "\n")
	if strings.Count(text, "model       unet") != 1 || strings.Count(text, "label 7     Dice") != 1 || !strings.Contains(text, "\n2 steps ") || !strings.Contains(text, "\n   1 ") {
		t.Errorf("two processes print\n%s", text)
	}
	must(t, "-out", out, "-predict", filepath.Join(args[slices.Index(args, "-data")+1], "image", "0.png"))
}

// Volumes in the layout of the Decathlon, with two spacings, become masks on their own grids.
func TestVolumes(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	var training []map[string]string
	for i := range 3 {
		size := []int{16, 17 + i, 16}
		im, err := images.New(size, 1)
		if err != nil {
			t.Fatal(err)
		}
		labels := &images.Labels{Size: size, Values: make([]int32, len(im.Pix))}
		for k := range im.Pix {
			if im.Pix[k] = float32(k % 7); k%16 > 8 {
				im.Pix[k], labels.Values[k] = im.Pix[k]+40, 1
			}
		}
		im.Spacing = []float64{1 + float64(i/2), 1, 1}
		labels.Grid = im.Grid
		pair := map[string]string{"image": fmt.Sprintf("imagesTr/v%d.nii.gz", i), "label": fmt.Sprintf("labelsTr/v%d.nii.gz", i)}
		for _, name := range pair {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o777); err != nil {
				t.Fatal(err)
			}
		}
		if err := images.WriteNIfTI(filepath.Join(dir, pair["image"]), im); err != nil {
			t.Fatal(err)
		}
		if err := images.WriteLabels(filepath.Join(dir, pair["label"]), labels); err != nil {
			t.Fatal(err)
		}
		training = append(training, pair)
	}
	text, err := json.Marshal(map[string]any{"name": "halves", "modality": map[string]string{"0": "CT"}, "labels": map[string]string{"0": "background", "1": "half"}, "training": training})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "dataset.json"), text)
	printed := must(t, append(small, "-data", dir, "-out", out, "-steps", "1", "-batch", "1")...)
	if !strings.Contains(printed, "label 1     Dice ") {
		t.Errorf("the output has no Dice of label 1: %s", printed)
	}
	file := filepath.Join(dir, "imagesTr", "v2.nii.gz")
	must(t, "-out", out, "-predict", file)
	im, err := images.Read(file)
	mask, err2 := images.ReadLabels(filepath.Join(out, "v2_mask.nii.gz"))
	if err != nil || err2 != nil || !slices.Equal(mask.Size, im.Size) || !slices.Equal(mask.Spacing, im.Spacing) {
		t.Errorf("the mask %v, %v is not on the grid of the image: %v", mask, err2, err)
	}
}

func TestErrors(t *testing.T) {
	good, out := writeFolder(t), t.TempDir()
	sizes, thousand, single, one := writeFolder(t), writeFolder(t), writeFolder(t), t.TempDir()
	writePNG(t, filepath.Join(sizes, "label", "1.png"), image.NewGray(image.Rect(0, 0, 24, 21)))
	many := image.NewGray16(image.Rect(0, 0, 24, 20))
	for i := range 480 {
		many.SetGray16(i%24, i/24, color.Gray16{Y: uint16(i)})
	}
	writePNG(t, filepath.Join(thousand, "label", "1.png"), many)
	for i := range 3 {
		writePNG(t, filepath.Join(single, "label", fmt.Sprintf("%d.png", i)), image.NewGray(image.Rect(0, 0, 24, 20)))
	}
	writePNG(t, filepath.Join(one, "image", "0.png"), image.NewGray(image.Rect(0, 0, 1, 1)))
	writePNG(t, filepath.Join(one, "label", "0.png"), image.NewGray(image.Rect(0, 0, 1, 1)))
	broken := filepath.Join(t.TempDir(), "broken.png")
	write(t, broken, []byte("\x89PNG\r\n\x1a\nnothing"))
	other := t.TempDir()
	write(t, filepath.Join(other, "model.safetensors"), append([]byte{2, 0, 0, 0, 0, 0, 0, 0}, "{}"...))
	for _, test := range []struct {
		want string
		args []string
	}{
		{`-data is "nowhere": should be a directory with image/ and label/, or with dataset.json`, []string{"-data", "nowhere"}},
		{"image: no such file", []string{"-data", filepath.Dir(good)}},
		{"1.png", []string{"-data", sizes}},
		{"more than 256 different values", []string{"-data", thousand}},
		{"the labels have the values [0], want at least two", []string{"-data", single}},
		{"1 × 1 cells, want more than one", []string{"-data", one}},
		{"it has 3 images, and -heldout is 3, should be fewer", []string{"-data", good, "-heldout", "3"}},
		{`invalid value 0.95 for flag -overlap`, []string{"-overlap", "0.95"}},
		{`invalid value 17 for flag -crop`, []string{"-crop", "17"}},
		{`invalid value "-1" for flag -steps`, []string{"-steps", "-1"}},
		{`-model is "resnet", should be mambaunet, unet, both, or the directory of a checkpoint`, []string{"-model", "resnet"}},
		{"it is no checkpoint of this program", []string{"-model", other}},
		{"has no trained model", []string{"-predict", "a.png"}},
		{"needs an argument: -predict", []string{"-predict"}},
		{`unexpected argument "a.png": name a folder`, []string{"a.png"}},
		{"should have image/ and label/, or dataset.json", []string{"-data", filepath.Dir(good)}},
		{`invalid value "0" for flag -lr`, []string{"-lr", "0"}},
		{`invalid value "0" for flag -batch`, []string{"-batch", "0"}},
		{"-crop has no effect with -predict", []string{"-predict", "a.png", "-crop", "32"}},
		{"-resume and -distributed are for training", []string{"-predict", "a.png", "-resume"}},
	} {
		code, stdout, stderr := call(append([]string{"-out", out}, test.args...)...)
		if code != 1 || !strings.Contains(stderr, test.want) || strings.Count(stderr, "\n") != 1 || strings.Contains(stdout, "step") {
			t.Errorf("%v: exit code %d, %s, want one line with %q", test.args, code, stderr, test.want)
		}
	}
	must(t, append(small, "-data", good, "-out", out, "-model", "unet", "-steps", "1")...)
	for _, file := range []string{broken, filepath.Join(good, "none.png")} {
		if code, _, stderr := call("-out", out, "-predict", file); code != 1 || !strings.Contains(stderr, filepath.Base(file)) {
			t.Errorf("%s: exit code %d, %s", file, code, stderr)
		}
	}
	a, b := filepath.Join(good, "image", "0.png"), filepath.Join(one, "image", "0.png")
	own := filepath.Join(out, "x_mask.png") // what x.png would be written to
	if code, stdout, stderr := call("-out", out, "-predict", "x.png", own); code != 1 || !strings.Contains(stderr, own+", which a result of x.png would replace") || stdout != "" {
		t.Errorf("an image where a mask goes: exit code %d, %s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := call("-out", out, "-predict", a, b); code != 1 || !strings.Contains(stderr, a+" and "+b) || stdout != "" {
		t.Errorf("two files of one name: exit code %d, %s%s", code, stdout, stderr)
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	n, err := load(filepath.Join(out, "unet"), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.predictor()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.segment(ended, microscope(0).Image, settings{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a stop inside of an image: error %v", err)
	}
	bad := t.TempDir() // for the picture
	if err := os.Mkdir(filepath.Join(bad, "segmented.png"), 0o777); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := call(append(small, "-data", good, "-out", bad, "-model", "unet", "-steps", "1")...)
	if _, err := os.Stat(filepath.Join(bad, "metrics.json")); code != 1 || stderr == "" || err != nil || !strings.Contains(stdout, "label 200   Dice") {
		t.Errorf("without a picture, the metrics should stay: exit code %d, %v, %s%s", code, err, stdout, stderr)
	}
	if code, _, stderr := call("-out", out, "-predict", broken, b); code != 1 || !strings.Contains(stderr, "broken.png") { // goes on
		t.Errorf("a broken file before a good one: exit code %d, %s", code, stderr)
	}
	if l, err := images.ReadLabels(filepath.Join(out, "0_mask.png")); err != nil || len(l.Values) != 1 { // an image of one pixel has a mask of one
		t.Errorf("the mask of a good file after a broken one: %v, %v", l, err)
	}
}

// The description in a checkpoint is checked before the model is made. Channels are colours only in pictures.
func TestDescription(t *testing.T) {
	good := description{Kind: "unet", Axes: 3, Channels: 2, Width: 2, Crop: 16, Classes: images.Classes{0, 9}, Prepare: preparation{Channels: 2, Spacing: []float64{1, 1, 1}}}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(d *description){
		"increasing":        func(d *description) { d.Classes = images.Classes{9, 0} },
		"has 1 classes":     func(d *description) { d.Classes = d.Classes[:1] },
		"background":        func(d *description) { d.Background = 2 },
		"prepares 1":        func(d *description) { d.Prepare.Channels = 1 },
		"has 2 axes":        func(d *description) { d.Prepare.Spacing = []float64{1, 1} },
		"numbers above 0":   func(d *description) { d.Prepare.Spacing = []float64{1, 0, 1} },
		"has 1 channels":    func(d *description) { d.Prepare.Clip = images.Normalization{{High: 1, Deviation: 1}} },
		"-width is":         func(d *description) { d.Width = 1 << 11 },
		"more than this ma": func(d *description) { d.Crop = math.MaxInt / 2 &^ 15 },
	} {
		d := good
		change(&d)
		err := d.check()
		if err == nil {
			_, err = d.make(nil)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	steps, err := images.New([]int{4, 4, 4}, 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (preparation{Channels: 1}).apply(steps); err == nil || !strings.Contains(err.Error(), "it has 3 channels, want 1") {
		t.Errorf("three steps of a volume for a model of one channel: error %v", err)
	}
}

func TestUsage(t *testing.T) {
	_, text, _ := call("-h")
	exampletest.Usage(t, text, "data", "out", "model", "predict", "resume", "steps", "lr", "crop", "width", "heldout", "flips", "overlap", "distributed", "device", "precision")
}

func TestDevice(t *testing.T) {
	exampletest.Device(t, "segment", "Dice", call, append(small, "-data", writeFolder(t), "-out", t.TempDir(), "-steps", "1")...)
}

// The images that the program makes have all classes, and are the same for the same seed.
func TestMicroscope(t *testing.T) {
	a, b := microscope(3), microscope(3)
	if !slices.Equal(a.Image.Pix, b.Image.Pix) || !slices.Equal(a.Labels.Values, b.Labels.Values) || slices.Equal(a.Image.Pix, microscope(4).Image.Pix) {
		t.Error("images of one seed should be equal, and of two seeds not")
	}
	count := make([]int, 3)
	for _, v := range a.Labels.Values {
		count[v]++
	}
	if count[inside] < side*side/2 || count[membrane] < side*side/20 || count[organelle] < side*side/200 {
		t.Errorf("there are %v pixels of the classes", count)
	}
}
