//go:build unix

package mamba_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// Every public reader of files refuses, at once and without allocating, what is no regular file, is empty, or does not end. A reader that
// would wait is ended by a watchdog, which fails the test.
func TestReadersOfNoFile(t *testing.T) {
	newLM := func() *nn.LM {
		return nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4, DState: 2}, Vocab: 5})
	}
	trainer := func(file string) *train.Trainer {
		tr, err := train.New(newLM(), train.Config{Batch: 1, Length: 4, Steps: 1, Data: []train.Document{{Tokens: []int{1, 2, 3}}},
			AdamW: train.AdamWConfig{LearnRate: 0.01}, File: file})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := tr.Close(); err != nil {
				t.Error(err)
			}
		})
		return tr
	}
	adapted := newLM()
	if _, err := adapted.Params().AddLoRA(layer.LoRAConfig{Rank: 1}); err != nil {
		t.Fatal(err)
	}
	// Each reader reads one file of a folder that it is given.
	readers := []struct {
		name, file string
		fill       func(dir string) error // with files that can be read
		read       func(dir string) error
	}{
		{"train.Saved", "state", func(dir string) error { return trainer(filepath.Join(dir, "state")).Run(context.Background()) },
			func(dir string) error { _, _, err := train.Saved(filepath.Join(dir, "state")); return err }},
		{"Trainer.Resume", "state", func(dir string) error { return trainer(filepath.Join(dir, "state")).Run(context.Background()) },
			func(dir string) error { _, err := trainer(filepath.Join(dir, "state")).Resume(); return err }},
		{"nn.LoadSequence", "sequence", func(dir string) error { return nn.NewSequence(1, 2, 3).Save(filepath.Join(dir, "sequence")) },
			func(dir string) error { _, err := nn.LoadSequence(filepath.Join(dir, "sequence")); return err }},
		{"train.LoadLoRA, its configuration", "adapter_config.json", func(dir string) error { return train.SaveLoRA(dir, "", adapted.Params()) },
			func(dir string) error { return train.LoadLoRA(dir, newLM().Params()) }},
		{"train.LoadLoRA, its weights", "adapter_model.safetensors", func(dir string) error { return train.SaveLoRA(dir, "", adapted.Params()) },
			func(dir string) error { return train.LoadLoRA(dir, newLM().Params()) }},
		{"checkpoint.Load, its configuration", "config.json", func(dir string) error { return checkpoint.Save(dir, newLM()) },
			func(dir string) error { _, err := checkpoint.Load(dir); return err }},
		{"checkpoint.Load, its weights", "model.safetensors", func(dir string) error { return checkpoint.Save(dir, newLM()) },
			func(dir string) error { _, err := checkpoint.Load(dir); return err }},
		{"checkpoint.OpenFile", "w.pth", func(dir string) error {
			text, err := os.ReadFile(filepath.Join("checkpoint", "testdata", "released.pth"))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, "w.pth"), text, 0o666))
		}, func(dir string) error {
			r, err := checkpoint.OpenFile(filepath.Join(dir, "w.pth"), "")
			if err != nil {
				return err
			}
			return r.Close()
		}},
		{"checkpoint.Save, over an index", "model.safetensors.index.json", func(dir string) error {
			return errors.Join(checkpoint.Save(dir, newLM()), os.WriteFile(filepath.Join(dir, "model.safetensors.index.json"), []byte("{}"), 0o666))
		}, func(dir string) error { return checkpoint.Save(dir, newLM()) }},
	}
	link := func(target string) func(path string) error {
		return func(path string) error { return os.Symlink(target, path) }
	}
	for _, r := range readers {
		for _, c := range []struct {
			name string
			make func(path string) error
		}{
			{"a named pipe", func(path string) error { return unix.Mkfifo(path, 0o666) }},
			{"a folder", func(path string) error { return os.Mkdir(path, 0o777) }},
			{"an empty file", func(path string) error { return os.WriteFile(path, nil, 0o666) }},
			{"/dev/zero", link("/dev/zero")},
			{"/dev/null", link("/dev/null")},
			{"/proc/cpuinfo", link("/proc/cpuinfo")},
			{"/proc/self/mem", link("/proc/self/mem")},
			{"itself", func(path string) error { return os.Symlink(filepath.Base(path), path) }},
			{"a header of gigabytes", func(path string) error {
				return os.WriteFile(path, []byte("\x00\x00\x00\x40\x01\x00\x00\x00{}"), 0o666)
			}},
			{"zeros", func(path string) error { return os.WriteFile(path, make([]byte, 4096), 0o666) }},
			{"text", func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("{"), 5000), 0o666) }},
		} {
			if r.name == "checkpoint.Save, over an index" && (c.name == "an empty file" || c.name == "zeros" || c.name == "text" || c.name == "a header of gigabytes") {
				continue // an index that names no files is removed
			}
			dir := t.TempDir()
			if err := r.fill(dir); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, r.file)
			if err := errors.Join(os.RemoveAll(path), c.make(path)); err != nil {
				t.Fatal(err)
			}
			watchdog := time.AfterFunc(time.Minute, func() {
				panic(r.name + " of " + c.name + " waits")
			})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := r.read(dir)
			runtime.ReadMemStats(&after)
			watchdog.Stop()
			if err == nil {
				t.Errorf("%s of %s: no error", r.name, c.name)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("%s of %s: %d bytes allocated", r.name, c.name, n)
			}
		}
		if err := r.read(func() string { // and the file itself is read
			dir := t.TempDir()
			if err := r.fill(dir); err != nil {
				t.Fatal(err)
			}
			return dir
		}()); err != nil {
			t.Errorf("%s: %v", r.name, err)
		}
	}
}
