package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

const (
	configFile  = "config.json"
	weightsFile = "model.safetensors"
)

// Save writes a language model to a directory in the Hugging Face layout: config.json and model.safetensors. Load and transformers
// (MambaForCausalLM) load it. Save makes the directory if it does not exist, and leaves other files in it, such as a tokenizer, as
// they are. A float32 model is written in float32 and a float64 model in float64. Loading it in its type gives the same weights,
// bit for bit.
//
// A program or machine that stops at any moment leaves a directory that Load reads, with the old checkpoint or the new one. (Other
// programs find old and new files mixed if it stops between the last two renames and the configuration has changed. The next Save
// repairs that.)
//
// It is an error, and the old checkpoint stays, if a weight is narrow (see Weights) or not a number, if a weight has a LoRA, if the model has layers of
// other kinds than Mamba (SaveParams saves those), or if another process is saving to the directory.
func Save(dir string, lm *nn.LM) error {
	if err := lm.Err(); err != nil {
		return err
	}
	for i, kind := range lm.Config().Pattern {
		if kind != nn.Mamba {
			return fmt.Errorf("checkpoint: save to %s: Pattern[%d] is %s, want mamba: the layout has no other layers; SaveParams saves them", dir, i, kind)
		}
	}
	var text []byte
	err := complete(lm.Params())
	if err == nil {
		text, err = json.MarshalIndent(savedConfigOf(lm), "", "  ")
	}
	if err == nil {
		err = save(dir, append(text, '\n'), ownNames(lm), lm.Params(), nil)
	}
	if err != nil {
		return fmt.Errorf("checkpoint: save to %s: %w", dir, err)
	}
	return nil
}

// SaveParams writes the weights of any model to a directory: a stack, a block, layers, or a model of yours. Reader.LoadParams and
// Reader.LoadInto read them, and Reader.Metadata the metadata, which may be nil.
//
//	params := append(slices.Clone(block.Params()), layer.NewParam("scale", scale, false))
//	err := checkpoint.SaveParams(dir, params, map[string]string{"tokenizer": "bytes"})
//
// The weights are in model.safetensors, under their names. The file is replaced as a whole, as by Save.
//
// It is an error, and the old file stays, if two weights have the same name, if a weight is not a number or has a LoRA, if the
// metadata has the key "format", which the file's format needs, if another process is saving to the directory, or if the directory
// has a config.json, which would describe another model.
func SaveParams(dir string, params layer.Params, metadata map[string]string) error {
	err := complete(params)
	if _, ok := metadata["format"]; ok {
		err = fmt.Errorf(`the metadata has the key "format", want any other`)
	}
	if err == nil {
		err = save(dir, nil, fullNames(params), params, metadata)
	}
	if err != nil {
		return fmt.Errorf("checkpoint: save to %s: %w", dir, err)
	}
	return nil
}

// save writes weights, and a configuration unless it is nil.
func save(dir string, config []byte, names []string, params layer.Params, metadata map[string]string) (err error) {
	if len(params) == 0 {
		return fmt.Errorf("there are no weights, want at least one")
	}
	for _, p := range params {
		if p.LoRA() != nil { // it would be lost without a word
			return fmt.Errorf("%s has a LoRA: merge or remove it first", p.Name)
		}
	}
	if err := params.ToHost(); err != nil {
		return err
	}
	weights, err := arrays(names, params)
	if err != nil {
		return err
	}
	files := []tensorfile.NewFile{{Name: weightsFile, Write: func(w io.Writer) error { return tensorfile.Write(w, metadata, weights) }}}
	if config != nil {
		files = append(files, tensorfile.NewFile{Name: configFile, Write: func(w io.Writer) error {
			_, err := w.Write(config)
			return err
		}})
	}
	lock, err := tensorfile.AcquireFolder(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	return lock.Do(func(d *tensorfile.Folder) error {
		for _, name := range []string{configFile, tensorfile.Committed + "/" + configFile} {
			if _, err := d.Lstat(name); err == nil && config == nil {
				return fmt.Errorf("%s exists and describes another model, want a directory without it", configFile)
			}
		}
		if err := d.ReplaceAll(files...); err != nil {
			return err
		}
		return removeShards(d)
	})
}

var shardName = regexp.MustCompile(`^model-\d+-of-\d+\.safetensors$`)

// removeShards removes the shards of a checkpoint that was replaced, and their index. Until then readers prefer model.safetensors.
func removeShards(d *tensorfile.Folder) error {
	text, err := d.ReadFile(indexFile, maxIndex)
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
			if err := d.Remove(shard); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return d.Remove(indexFile)
}
