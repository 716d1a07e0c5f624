package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/gomamba/mamba/nn"
)

// A save is prepared in a folder of its own within the directory, whose name starts with unfinished. Renaming that folder to
// committed is the one step that makes it count: before, the old checkpoint is read, and after, whatever lies in committed
// is read in place of the files of the same name (folder.open). Then its files are moved into place.
const (
	unfinished = ".checkpoint.tmp-"
	committed  = ".checkpoint.new"
)

const (
	configFile  = "config.json"
	weightsFile = "model.safetensors"
)

// Save writes a language model to a directory in the Hugging Face layout, config.json and model.safetensors, so that Load and
// transformers (MambaForCausalLM) load it. The directory is made if need be; its other files, a tokenizer say, stay. A float32
// model is written in float32, a float64 one in float64: loading it again in its type gives the same weights, bit for bit.
// A model with layers of other kinds than Mamba is an error.
//
// A program or machine that dies at any moment leaves a directory that Load reads: with the old checkpoint, or the new one.
// (Other programs find them mixed if it dies between two renames at the very end and the configuration has changed; the next
// Save repairs that.) A weight that is not a number is an error, and the old checkpoint stays. One Save at a time may write to
// a directory.
func Save(dir string, lm *nn.LM) error {
	if err := lm.Err(); err != nil {
		return err
	}
	for _, p := range lm.Params() {
		if p.LoRA() != nil { // it would be lost without a word
			return fmt.Errorf("checkpoint: save to %s: %s has a LoRA: merge or remove it first", dir, p.Name)
		}
	}
	for i, kind := range lm.Config().Pattern {
		if kind != nn.Mamba {
			return fmt.Errorf("checkpoint: save to %s: Pattern[%d] is %s, want mamba: the layout has no other layers", dir, i, kind)
		}
	}
	if err := save(dir, lm); err != nil {
		return fmt.Errorf("checkpoint: save to %s: %w", dir, err)
	}
	return nil
}

func save(dir string, lm *nn.LM) error {
	if err := lm.Params().ToHost(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if err := finish(dir); err != nil { // what an earlier save committed and could not finish
		return err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files { // what earlier ones left behind without a commit
		if !strings.HasPrefix(f.Name(), unfinished) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	folder, err := os.MkdirTemp(dir, unfinished+"*")
	if err != nil {
		return err
	}
	if err := write(folder, lm); err != nil {
		return errors.Join(err, os.RemoveAll(folder))
	}
	if err := os.Rename(folder, filepath.Join(dir, committed)); err != nil {
		return errors.Join(err, os.RemoveAll(folder))
	}
	for _, d := range []string{dir, filepath.Dir(filepath.Clean(dir))} { // the directory itself may be new
		if err := syncFolder(d); err != nil {
			return err
		}
	}
	return finish(dir)
}

// write writes the files of a checkpoint, down to the disk.
func write(folder string, lm *nn.LM) error {
	text, err := json.MarshalIndent(savedConfigOf(lm), "", "  ")
	if err != nil {
		return err
	}
	err = writeFile(filepath.Join(folder, configFile), func(f *os.File) error {
		_, err := f.Write(append(text, '\n'))
		return err
	})
	if err != nil {
		return err
	}
	err = writeFile(filepath.Join(folder, weightsFile), func(f *os.File) error { return writeSafetensors(f, lm) })
	if err != nil {
		return err
	}
	return syncFolder(folder)
}

func writeFile(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Sync()); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// finish moves the files of a committed save into place. It may be interrupted and done again.
func finish(dir string) error {
	from := filepath.Join(dir, committed)
	if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(from, weightsFile)); err == nil {
		if err := removeShards(dir); err != nil {
			return err
		}
	}
	for _, name := range []string{weightsFile, configFile} {
		err := os.Rename(filepath.Join(from, name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // moved already
			return err
		}
	}
	if err := syncFolder(dir); err != nil {
		return err
	}
	return os.Remove(from)
}

var shardName = regexp.MustCompile(`^model-\d+-of-\d+\.safetensors$`)

// removeShards removes the shards of the checkpoint that is replaced, and their index.
func removeShards(dir string) error {
	index := filepath.Join(dir, weightsFile+".index.json")
	text, err := os.ReadFile(index)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var i struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if json.Unmarshal(text, &i) == nil { // otherwise it names none
		for _, shard := range i.WeightMap {
			if !shardName.MatchString(shard) {
				continue
			}
			if err := os.Remove(filepath.Join(dir, shard)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return os.Remove(index)
}

// syncFolder brings the names in a folder down to the disk. Windows cannot and need not.
func syncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
