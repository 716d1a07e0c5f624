package mamba_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/tokens"
	"github.com/gomamba/mamba/train"
)

// openFiles returns how many files of a folder the process has open or mapped into its memory, or skips the test.
func openFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	const fds = "/proc/self/fd"
	entries, err := os.ReadDir(fds)
	if err != nil {
		t.Skip("this system does not list open files: ", err)
	}
	for _, e := range entries {
		if path, err := os.Readlink(filepath.Join(fds, e.Name())); err == nil && strings.HasPrefix(path, dir) {
			n++
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return n + strings.Count(string(maps), dir)
}

// Whatever reads or writes files leaves none of them open or mapped, not even if the disk fails at any operation, or if the files are
// cut off anywhere.
func TestNoFileStaysOpen(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the collector would close what was forgotten
	newLM := func() *nn.LM { return nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4, DState: 2}, Vocab: 5}) }
	adapted := newLM()
	if _, err := adapted.Params().AddLoRA(layer.LoRAConfig{Rank: 1}); err != nil {
		t.Fatal(err)
	}
	trainer := func(dir string, do func(*train.Trainer) error) error {
		tr, err := train.New(newLM(), train.Config{Batch: 1, Length: 4, Steps: 1, Data: []train.Document{{Tokens: []int{1, 2, 3}}},
			AdamW: train.AdamWConfig{LearnRate: 0.01}, File: filepath.Join(dir, "state")})
		if err != nil {
			return err
		}
		return errors.Join(do(tr), tr.Close())
	}
	tokenizer, err := os.ReadFile(filepath.Join("testdata", "neox-tokenizer-tiny", "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		write, read func(dir string) error
	}{
		{"a sequence", func(dir string) error { return nn.NewSequence(1, 2, 3).Save(filepath.Join(dir, "sequence")) },
			func(dir string) error { _, err := nn.LoadSequence(filepath.Join(dir, "sequence")); return err }},
		{"a training state", func(dir string) error {
			return trainer(dir, func(tr *train.Trainer) error { return tr.Run(context.Background()) })
		}, func(dir string) error { _, _, err := train.Saved(filepath.Join(dir, "state")); return err }},
		{"a training state, to resume", func(dir string) error {
			return trainer(dir, func(tr *train.Trainer) error { return tr.Run(context.Background()) })
		}, func(dir string) error {
			return trainer(dir, func(tr *train.Trainer) error { _, err := tr.Resume(); return err })
		}},
		{"a LoRA", func(dir string) error { return train.SaveLoRA(dir, "", adapted.Params()) },
			func(dir string) error { return train.LoadLoRA(dir, newLM().Params()) }},
		{"a checkpoint", func(dir string) error { return checkpoint.Save(dir, newLM()) },
			func(dir string) error { _, err := checkpoint.Load(dir); return err }},
		{"a tokenizer", func(dir string) error { return os.WriteFile(filepath.Join(dir, "tokenizer.json"), tokenizer, 0o666) },
			func(dir string) error { _, err := tokens.Open(dir, 1<<20); return err }},
	} {
		t.Run(c.name, func(t *testing.T) {
			// try calls do with the operation k of the disk failing, and returns whether there is one.
			try := func(dir string, k int, do func(dir string) error) bool {
				n, errDisk := 0, errors.New("the disk fails")
				restore := tensorfile.Intercept(func(op, name string) error {
					if n++; n-1 == k {
						return errDisk
					}
					return nil
				})
				err := do(dir)
				restore()
				if open := openFiles(t, dir); open > 0 {
					t.Errorf("%d files are open after the failure of operation %d: %v", open, k, err)
				}
				if n <= k && err != nil {
					t.Errorf("no operation fails, but %v", err)
				}
				return n > k
			}
			for k := 0; try(t.TempDir(), k, c.write); k++ {
			}
			dir := t.TempDir()
			if err := c.write(dir); err != nil {
				t.Fatal(err)
			}
			for k := 0; try(dir, k, c.read); k++ {
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				path := filepath.Join(dir, e.Name())
				whole, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				for part := range 8 {
					if err := os.WriteFile(path, whole[:part*len(whole)/8], 0o666); err != nil {
						t.Fatal(err)
					}
					if err := c.read(dir); err == nil {
						t.Errorf("%d/8 of %s are read without an error", part, e.Name())
					}
					if open := openFiles(t, dir); open > 0 {
						t.Errorf("%d files are open after reading %d/8 of %s", open, part, e.Name())
					}
				}
				if err := os.WriteFile(path, whole, 0o666); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
