package checkpoint

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// Load returns the configuration and the weights that Save wrote, bit for bit, in both types, with and without a name.
func TestSaveThenLoad(t *testing.T) {
	for i, cfg := range someConfigs() {
		for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
			for _, name := range []string{"", "model.one"} {
				opts := []nn.Option{nn.WithSeed(uint64(i)), nn.WithDtype(dt), nn.WithName(name)}
				want := newLM(t, cfg, opts...)
				dir := filepath.Join(t.TempDir(), "new", "folder")
				if err := Save(dir, want); err != nil {
					t.Fatal(err)
				}
				got, err := Load(dir, opts...)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(got.Config(), want.Config()) {
					t.Errorf("%+v, want %+v", got.Config(), want.Config())
				}
				sameWeights(t, got.Params(), want.Params())
				for j, p := range got.Params() {
					if p.Name != want.Params()[j].Name {
						t.Errorf("weight %d is called %s, want %s", j, p.Name, want.Params()[j].Name)
					}
				}
				filesAre(t, dir, configFile, weightsFile)
			}
		}
	}
}

// filesAre compares the names of the files in a directory with those that it should have.
func filesAre(t *testing.T, dir string, want ...string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, f.Name())
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s has %v, want %v", dir, got, want)
	}
}

// Save and Load keep the bits of all numbers: subnormal numbers, zeros of both signs, infinities.
func TestSaveThenLoadAnyBits(t *testing.T) {
	cfg := nn.LMConfig{Config: nn.Config{DModel: 3, DState: 2}, Vocab: 4}
	rapid.Check(t, func(rt *rapid.T) {
		want := nn.NewLM(cfg)
		for _, p := range want.Params() {
			for i := range p.Value.Data().([]float32) {
				v := math.Float32frombits(rapid.Uint32().Draw(rt, "bits"))
				if v != v {
					v = 0
				}
				p.Value.Data().([]float32)[i] = v
			}
		}
		var file bytes.Buffer
		weights, err := arrays(ownNames(want), want.Params())
		if err != nil {
			rt.Fatal(err)
		}
		if err := tensorfile.Write(&file, nil, weights); err != nil {
			rt.Fatal(err)
		}
		f, err := tensorfile.Read(tensorfile.Memory(file.Bytes()), int64(file.Len()))
		if err != nil {
			rt.Fatal(err)
		}
		r := &Reader{tensors: f.ByName()}
		got := nn.NewLM(cfg, layer.WithZeros())
		if err := r.LoadInto(got, ""); err != nil {
			rt.Fatal(err)
		}
		for i, p := range want.Params() {
			if !bytes.Equal(bits(p), bits(got.Params()[i])) {
				rt.Fatalf("%s differs", p.Name)
			}
		}
	})
}

// A checkpoint that was loaded from any layout is saved in the layout of Hugging Face. The model is the same.
func TestSaveWhatWasLoaded(t *testing.T) {
	for _, fixture := range []string{tiny, sharded, original} {
		want, err := Load(fixture)
		if err != nil {
			t.Fatal(err)
		}
		dir := copyOf(t, fixture) // over the files of its own layout
		put(t, filepath.Join(dir, "tokenizer.json"), []byte("{}"))
		if err := Save(dir, want); err != nil {
			t.Fatal(err)
		}
		got, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		sameWeights(t, got.Params(), want.Params())
		if !reflect.DeepEqual(got.Config(), want.Config()) {
			t.Errorf("%+v, want %+v", got.Config(), want.Config())
		}
		others := []string{configFile, weightsFile, "tokenizer.json"} // shards and their index are gone
		if fixture == original {
			others = append(others, "pytorch_model.bin") // it is not in the way: safetensors are preferred
		} else {
			others = append(others, "generation_config.json")
		}
		filesAre(t, dir, others...)
	}
}

// A weight that is not a number, or an invalid model, is an error, and the old checkpoint does not change.
func TestSaveRefuses(t *testing.T) {
	dir := t.TempDir()
	old := newLM(t, someConfigs()[0])
	if err := Save(dir, old); err != nil {
		t.Fatal(err)
	}
	broken := newLM(t, someConfigs()[1])
	broken.Params().ByName("backbone.norm_f.weight").Value.Data().([]float32)[2] = float32(math.NaN())
	for _, c := range []struct {
		lm   *nn.LM
		want string
	}{
		{broken, "backbone.norm_f.weight: element 2 is not a number"},
		{nn.NewLM(nn.LMConfig{}), "nn: DModel is 0, want at least 1"},
	} {
		if err := Save(dir, c.lm); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
		got, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		sameWeights(t, got.Params(), old.Params())
		filesAre(t, dir, configFile, weightsFile)
	}
	file := filepath.Join(t.TempDir(), "file")
	put(t, file, nil)
	if err := Save(file, old); err == nil {
		t.Error("a file was taken for a directory")
	}
}

// A save removes the shards of the checkpoint before it, and no other file that an index names.
func TestSaveRemovesShardsAlone(t *testing.T) {
	outer := t.TempDir()
	dir := filepath.Join(outer, "model")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(outer, "model-00001-of-00002.safetensors"), []byte("precious"))
	for _, name := range []string{"notes.safetensors", "model-00001-of-00002.safetensors", "model-1-of-1.safetensors.old"} {
		put(t, filepath.Join(dir, name), []byte("precious"))
	}
	put(t, filepath.Join(dir, indexFile), []byte(`{"weight_map": {"a": "notes.safetensors", "b": "model-00001-of-00002.safetensors",
		"c": "../model-00001-of-00002.safetensors", "d": "model-1-of-1.safetensors.old", "e": "model-00002-of-00002.safetensors"}}`))
	if err := Save(dir, newLM(t, someConfigs()[0])); err != nil {
		t.Fatal(err)
	}
	filesAre(t, dir, configFile, weightsFile, "model-1-of-1.safetensors.old", "notes.safetensors")
	filesAre(t, outer, "model", "model-00001-of-00002.safetensors")
}

// At every step that a save can stop at, the directory is read as the old checkpoint or as the new one, and another save
// gets over what was left.
func TestInterruptedSave(t *testing.T) {
	old, fresh := newLM(t, someConfigs()[0]), newLM(t, someConfigs()[1])
	oldFiles, freshFiles := t.TempDir(), t.TempDir()
	if err := errors.Join(Save(oldFiles, old), Save(freshFiles, fresh)); err != nil {
		t.Fatal(err)
	}
	in := func(parts ...string) string { return filepath.Join(parts...) }
	for _, c := range []struct {
		name  string
		files map[string]string // where in the directory, and from where
		want  *nn.LM
	}{
		{"while it is written", map[string]string{
			configFile: in(oldFiles, configFile), weightsFile: in(oldFiles, weightsFile),
			in(".checkpoint.tmp-1", configFile): in(freshFiles, configFile),
		}, old},
		{"before its commit", map[string]string{
			configFile: in(oldFiles, configFile), weightsFile: in(oldFiles, weightsFile),
			in(".checkpoint.tmp-1", configFile): in(freshFiles, configFile), in(".checkpoint.tmp-1", weightsFile): in(freshFiles, weightsFile),
		}, old},
		{"after its commit", map[string]string{
			configFile: in(oldFiles, configFile), weightsFile: in(oldFiles, weightsFile),
			in(tensorfile.Committed, configFile): in(freshFiles, configFile), in(tensorfile.Committed, weightsFile): in(freshFiles, weightsFile),
		}, fresh},
		{"after the first move", map[string]string{
			configFile: in(oldFiles, configFile), weightsFile: in(freshFiles, weightsFile),
			in(tensorfile.Committed, configFile): in(freshFiles, configFile),
		}, fresh},
		{"after the second move", map[string]string{
			configFile: in(freshFiles, configFile), weightsFile: in(freshFiles, weightsFile), tensorfile.Committed: "",
		}, fresh},
		{"the first of all", map[string]string{
			in(tensorfile.Committed, configFile): in(freshFiles, configFile), in(tensorfile.Committed, weightsFile): in(freshFiles, weightsFile),
		}, fresh},
		{"over shards", map[string]string{
			configFile: in(sharded, configFile), weightsFile + ".index.json": in(sharded, weightsFile+".index.json"),
			in(tensorfile.Committed, configFile): in(freshFiles, configFile), in(tensorfile.Committed, weightsFile): in(freshFiles, weightsFile),
		}, fresh},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for to, from := range c.files {
				if from == "" {
					if err := os.Mkdir(in(dir, to), 0o777); err != nil {
						t.Fatal(err)
					}
					continue
				}
				if err := os.MkdirAll(filepath.Dir(in(dir, to)), 0o777); err != nil {
					t.Fatal(err)
				}
				put(t, in(dir, to), get(t, from))
			}
			got, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			sameWeights(t, got.Params(), c.want.Params())
			d, err := tensorfile.OpenFolder(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(d.Finish(), d.Close()); err != nil {
				t.Fatal(err)
			}
			if got, err = Load(dir); err != nil {
				t.Fatal(err)
			}
			sameWeights(t, got.Params(), c.want.Params())
			if err := Save(dir, old); err != nil {
				t.Fatal(err)
			}
			if got, err = Load(dir); err != nil {
				t.Fatal(err)
			}
			sameWeights(t, got.Params(), old.Params())
			filesAre(t, dir, configFile, weightsFile)
		})
	}
}

// A program that is killed during a save leaves the old checkpoint or the new one. They differ in size and options.
func TestKilledSave(t *testing.T) {
	models := []*nn.LM{newLM(t, someConfigs()[0]), newLM(t, someConfigs()[1])}
	if dir := os.Getenv("CHECKPOINT_SAVES_UNTIL_KILLED"); dir != "" { // the program that is killed
		for i := 0; ; i++ {
			if err := Save(dir, models[i%2]); err != nil {
				fmt.Println("failed:", err)
				os.Exit(1)
			}
			if i == 0 {
				fmt.Println("started")
			}
		}
	}
	if runtime.GOOS == "js" || runtime.GOOS == "wasip1" {
		t.Skip("no processes here")
	}
	dir := t.TempDir()
	if err := Save(dir, models[0]); err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for kill := range 12 {
		child := exec.Command(os.Args[0], "-test.run=^TestKilledSave$")
		child.Env = append(os.Environ(), "CHECKPOINT_SAVES_UNTIL_KILLED="+dir)
		pipe, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		out := bufio.NewReader(pipe)
		first, _ := out.ReadString('\n')
		time.Sleep(time.Duration(7*kill) * time.Millisecond)
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(out)
		_ = child.Wait() // it was killed
		if said := first + string(rest); said != "started\n" {
			t.Fatalf("a save failed: %s", said)
		}
		got, err := Load(dir)
		if err != nil {
			t.Fatalf("after kill %d: %v", kill, err)
		}
		which := slices.IndexFunc(models, func(m *nn.LM) bool { return reflect.DeepEqual(m.Config(), got.Config()) })
		if which < 0 {
			t.Fatalf("after kill %d the configuration is %+v", kill, got.Config())
		}
		seen[which] = true
		sameWeights(t, got.Params(), models[which].Params())
	}
	t.Logf("checkpoints found: %v", seen)
}

// Loaded weights and saved files do not depend on the number of processors. A second save writes the same file.
func TestSaveIsReproducible(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	lm := newLM(t, someConfigs()[1])
	if err := errors.Join(Save(a, lm), Save(b, lm)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{configFile, weightsFile} {
		if !bytes.Equal(get(t, filepath.Join(a, name)), get(t, filepath.Join(b, name))) {
			t.Errorf("%s differs", name)
		}
	}
}

// errors.Is recognises the errors of the file system.
func TestNoDirectory(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want one that is fs.ErrNotExist", err)
	}
}

// A file gives the same weights from memory, mapped, and through a buffer.
func TestStreamed(t *testing.T) {
	dir := t.TempDir()
	lm := newLM(t, nn.LMConfig{Config: nn.Config{DModel: 256}, Vocab: 1500}) // an embedding of more than a piece
	if err := Save(dir, lm); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, weightsFile)
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, c := range map[string]tensorfile.Contents{"streamed": tensorfile.Streamed{File: file}, "in memory": tensorfile.Memory(get(t, path))} {
		f, err := tensorfile.Read(c, int64(len(get(t, path))))
		if err != nil {
			t.Fatal(err)
		}
		r := &Reader{tensors: f.ByName()}
		got := newLM(t, lm.Config(), layer.WithZeros())
		if err := r.LoadInto(got, ""); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sameWeights(t, got.Params(), lm.Params())
	}
	if err := (tensorfile.Streamed{File: file}).Pieces(0, 1<<30, func([]byte) error { return nil }); err == nil {
		t.Error("more bytes than the file has were read")
	}
}

// The layout has only Mamba blocks. A Pattern of Mamba blocks only is saved, and any other is an error.
func TestSaveKinds(t *testing.T) {
	dir := t.TempDir()
	cfg := nn.LMConfig{Config: nn.Config{DModel: 4, NLayer: 2, Pattern: []nn.Kind{nn.Mamba, nn.SwiGLU}}, Vocab: 5}
	err := Save(dir, nn.NewLM(cfg))
	if err == nil || !strings.Contains(err.Error(), "Pattern[1] is swiglu, want mamba") {
		t.Errorf("error %v", err)
	}
	cfg.Pattern = []nn.Kind{nn.Mamba}
	if err := Save(dir, nn.NewLM(cfg)); err != nil {
		t.Error(err)
	}
	if _, err := Load(dir); err != nil {
		t.Error(err)
	}
}
