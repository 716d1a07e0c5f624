package checkpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/nn"
)

// If there is a symbolic link in the place of the folder of a commit, Save does not follow it. Nothing in its target changes.
func TestSaveFollowsNoLink(t *testing.T) {
	lm, theirs := newLM(t, someConfigs()[0]), newLM(t, someConfigs()[1])
	other, dir := t.TempDir(), t.TempDir()
	if err := errors.Join(Save(other, theirs), Save(dir, lm)); err != nil {
		t.Fatal(err)
	}
	link(t, other, filepath.Join(dir, tensorfile.Committed))
	for name, err := range map[string]error{"Save": Save(dir, lm), "SaveParams": SaveParams(dir, lm.Params(), nil)} {
		if err == nil || !strings.Contains(err.Error(), "is a symbolic link, want a folder") && name == "Save" {
			t.Errorf("%s: error %v", name, err)
		}
	}
	filesAre(t, other, configFile, weightsFile)
	for where, want := range map[string]*nn.LM{other: theirs, dir: lm} { // a reader does not follow it either
		got, err := Load(where)
		if err != nil {
			t.Fatal(err)
		}
		sameWeights(t, got.Params(), want.Params())
	}
	// Links in the places of the files are replaced and not followed.
	if err := os.Remove(filepath.Join(dir, tensorfile.Committed)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{configFile, weightsFile} {
		link(t, filepath.Join(other, name), filepath.Join(dir, name))
	}
	if err := Save(dir, lm); err != nil {
		t.Fatal(err)
	}
	got, err := Load(other)
	if err != nil {
		t.Fatal(err)
	}
	sameWeights(t, got.Params(), theirs.Params())
}

var errDisk = errors.New("the disk fails")

// Whatever operation of the disk fails while a checkpoint is saved, there is an error, the directory is read as the old checkpoint or
// as the new one, and the next Save leaves nothing behind.
func TestSaveOnAFailingDisk(t *testing.T) {
	old, fresh := newLM(t, someConfigs()[0]), newLM(t, someConfigs()[1])
	for k := 0; ; k++ {
		dir := t.TempDir()
		if err := Save(dir, old); err != nil {
			t.Fatal(err)
		}
		n, failed := 0, ""
		restore := tensorfile.Intercept(func(op, name string) error {
			if n++; n-1 == k {
				failed = op + " " + filepath.Base(name)
				return errDisk
			}
			return nil
		})
		err := Save(dir, fresh)
		restore()
		got, wrong := Load(dir)
		if wrong != nil {
			t.Fatalf("%s fails: %v", failed, wrong)
		}
		want := old
		if reflect.DeepEqual(got.Config(), fresh.Config()) {
			want = fresh
		}
		sameWeights(t, got.Params(), want.Params())
		if failed == "" {
			if err != nil || want != fresh || k < 20 {
				t.Errorf("%d operations, error %v", k, err)
			}
			return
		}
		if !errors.Is(err, errDisk) {
			t.Errorf("%s fails: error %v, want it", failed, err)
		}
		if err := Save(dir, old); err != nil {
			t.Errorf("%s failed: then %v", failed, err)
		}
		filesAre(t, dir, configFile, weightsFile)
	}
}

// Files are synced before the rename that makes them count, and the directory after it.
func TestSaveOrder(t *testing.T) {
	var ops []string
	restore := tensorfile.Intercept(func(op, name string) error {
		if op == "sync" || op == "sync folder" || op == "rename" {
			if strings.HasPrefix(filepath.Base(name), ".checkpoint.tmp-") {
				name = "prepared"
			}
			ops = append(ops, op+" "+filepath.Base(name))
		}
		return nil
	})
	defer restore()
	dir := filepath.Join(t.TempDir(), "dir")
	if err := Save(dir, newLM(t, someConfigs()[0])); err != nil {
		t.Fatal(err)
	}
	want := []string{"sync folder " + filepath.Base(filepath.Dir(dir)), "sync model.safetensors", "sync config.json", "sync folder prepared",
		"rename .checkpoint.new", "sync folder dir", "rename model.safetensors", "rename config.json", "sync folder dir"}
	if !reflect.DeepEqual(ops, want) {
		t.Errorf("the operations are\n%q, want\n%q", ops, want)
	}
}

// A second process that saves to a directory gets an error that names the first, and nothing is mixed.
func TestTwoSaves(t *testing.T) {
	lm := newLM(t, someConfigs()[0])
	if dir := os.Getenv("CHECKPOINT_HOLDS"); dir != "" { // the first process
		lock, err := tensorfile.AcquireFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("holds")
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = lock.Release()
		os.Exit(0)
	}
	dir := t.TempDir()
	first := exec.Command(must(os.Executable()), "-test.run=^TestTwoSaves$")
	first.Env = append(os.Environ(), "CHECKPOINT_HOLDS="+dir)
	stdin, out := must(first.StdinPipe()), must(first.StdoutPipe())
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Process.Kill() }() // it may have ended
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "holds\n" {
		t.Fatalf("the first process says %q", line)
	}
	err := Save(dir, lm)
	if !errors.Is(err, tensorfile.ErrLocked) || !strings.Contains(err.Error(), dir) || !strings.HasSuffix(err.Error(), fmt.Sprint("process ", first.Process.Pid)) {
		t.Errorf("error %v, want the directory and process %d", err, first.Process.Pid)
	}
	if err := errors.Join(stdin.Close(), first.Wait()); err != nil {
		t.Fatal(err)
	}
	if err := Save(dir, lm); err != nil {
		t.Errorf("after the first process: %v", err)
	}
	filesAre(t, dir, configFile, weightsFile)
}

// A reader always gets files that belong together, also if another goroutine saves at the same time, in shards or with other options.
// Goroutines save one after another.
func TestLoadWhileSaving(t *testing.T) {
	dir := t.TempDir()
	models := []*nn.LM{newLM(t, someConfigs()[0]), newLM(t, nn.LMConfig{Config: nn.Config{DModel: 8, NLayer: 2, NormEps: 1e-3}, Vocab: 11}, nn.WithSeed(9))}
	if err := Save(dir, models[0]); err != nil {
		t.Fatal(err)
	}
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	var savers sync.WaitGroup
	done := make(chan struct{})
	for _, lm := range models {
		savers.Go(func() {
			for range rounds {
				if err := Save(dir, lm); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { savers.Wait(); close(done) }()
	for loads := 0; ; loads++ {
		got, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		want := models[0]
		if got.Config().NormEps == 1e-3 {
			want = models[1]
		}
		sameWeights(t, got.Params(), want.Params())
		select {
		case <-done:
			t.Logf("%d loads during %d saves", loads, 2*rounds)
			return
		default:
		}
	}
}

// After Open no file stays open, also after an error, and also in the cache of Hugging Face.
func TestFilesAreClosed(t *testing.T) {
	const fds = "/proc/self/fd"
	if _, err := os.ReadDir(fds); err != nil {
		t.Skip("this system does not list open files: ", err)
	}
	repo := t.TempDir()
	snapshot, blobs := filepath.Join(repo, "snapshots", "0"), filepath.Join(repo, "blobs")
	for _, d := range []string{snapshot, blobs} {
		if err := os.MkdirAll(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{configFile, weightsFile} {
		put(t, filepath.Join(blobs, name), get(t, filepath.Join(tiny, name)))
		link(t, "../../blobs/"+name, filepath.Join(snapshot, name))
	}
	broken := copyOf(t, tiny)
	put(t, filepath.Join(broken, weightsFile), get(t, filepath.Join(tiny, weightsFile))[:5000])
	saved := t.TempDir()
	lm := newLM(t, someConfigs()[0])
	work := func() {
		for _, dir := range []string{snapshot, tiny, sharded, original} {
			if _, err := Load(dir); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Load(broken); err == nil {
			t.Fatal("a broken checkpoint was loaded")
		}
		if err := errors.Join(Save(saved, lm), SaveParams(filepath.Join(saved, "params"), lm.Params(), nil)); err != nil {
			t.Fatal(err)
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would close what was forgotten
	work()
	before := len(must(os.ReadDir(fds)))
	for range 3 {
		work()
	}
	if after := len(must(os.ReadDir(fds))); after != before {
		t.Errorf("%d files are open, want %d", after, before)
	}
}
