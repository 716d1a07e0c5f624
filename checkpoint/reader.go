package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/gomamba/mamba/internal/gguf"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// Load returns the language model in the directory of a checkpoint, or in a GGUF file, which has the ending .gguf. The weights are float32, or of the type that
// nn.WithDtype sets; the option Weights keeps or makes narrower ones, which generate only. The weights of a GGUF file keep the file's types by default. A GGUF file is loaded with a dtype of float32; Save makes a directory of it that has no such limit.
// nn.WithName puts a name in front of their names.
//
// It is an error if config.json asks for anything that is not supported; if a tensor is missing, superfluous or of another shape
// (one error lists all of them); or if a weight is not a number. Nothing is allocated for the model until its configuration has
// been compared with the files.
func Load(dir string, opts ...nn.Option) (*nn.LM, error) {
	isGGUF := gguf.IsFile(dir)
	types, place, opts, err := weightTypes(opts, isGGUF)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %s: %w", dir, err)
	}
	if isGGUF {
		return loadGGUF(dir, types, place, opts)
	}
	r, err := Open(dir)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cfg, err := r.Config()
	if err != nil {
		return nil, err
	}
	if types != "" && types != "float32" {
		return r.loadNarrow(cfg, types, place, opts)
	}
	lm := nn.NewLM(cfg, append(slices.Clone(opts), layer.WithZeros())...)
	if err := r.LoadInto(lm, ""); err != nil {
		return nil, err
	}
	return lm, nil
}

// Reader is an open checkpoint. Several goroutines may call its methods at the same time, except for Close.
type Reader struct {
	dir      string
	files    []tensorfile.Contents
	tensors  map[string]*tensorfile.Tensor
	metadata map[string]string
	config   *config // nil if there is no config.json
}

// Open opens the checkpoint in a directory. It reads the configuration and the names, types and shapes of the tensors; their
// numbers are read when they are loaded. Close the Reader after that.
//
// Open also opens a directory without config.json, for LoadInto and LoadParams. Options that do not show in the shapes of
// tensors, such as NormEps, are then not checked.
func Open(dir string) (*Reader, error) {
	r := &Reader{dir: dir}
	if err := r.open(); err != nil {
		r.Close()
		return nil, r.fail(err)
	}
	return r, nil
}

func (r *Reader) fail(err error) error { return fmt.Errorf("checkpoint: %s: %w", r.dir, err) }

// opened returns an error if the Reader is nil or closed.
func (r *Reader) opened() error {
	if r == nil || r.tensors == nil {
		return errors.New("checkpoint: the reader is missing or closed, want one that Open returned")
	}
	return nil
}

// Close closes the files. Weights that were loaded stay valid. A second Close does nothing.
func (r *Reader) Close() error {
	if r == nil {
		return r.opened()
	}
	var errs []error
	for _, f := range r.files {
		errs = append(errs, f.Close())
	}
	r.files, r.tensors, r.metadata = nil, nil, nil
	return errors.Join(errs...)
}

// open opens the files. If a Save replaces them at the same time, it opens all of them again, so that they belong together.
func (r *Reader) open() error {
	f, err := openFolder(r.dir)
	if err != nil {
		return err
	}
	defer f.close()
	return tensorfile.Together(func() (*os.File, error) { return f.open(configFile) }, func() error { // every Save replaces config.json
		if err := r.Close(); err != nil { // the files of the previous attempt
			return err
		}
		return r.openAll(f)
	})
}

func (r *Reader) openAll(f *folder) error {
	text, err := f.read(configFile, 1<<20)
	if err == nil {
		r.config, err = parseConfig(text)
	} else if errors.Is(err, fs.ErrNotExist) {
		r.config, err = nil, nil
	}
	if err != nil {
		return err
	}
	if err := r.openWeights(f); err != nil {
		return err
	}
	switch e := r.tensors[originalEmbedding]; {
	case e != nil && r.tensors[embedding] == nil:
		delete(r.tensors, originalEmbedding)
		e.Name = embedding
		r.tensors[embedding] = e
	case e != nil && r.config != nil:
		return fmt.Errorf("%s is there twice, also as %s", embedding, originalEmbedding)
	}
	return nil
}

// openWeights opens the files with the weights.
func (r *Reader) openWeights(f *folder) error {
	name, err := f.weights()
	if err != nil {
		return err
	}
	var entries []*tensorfile.Tensor
	if strings.HasSuffix(name, ".index.json") {
		entries, err = r.openShards(f, name)
	} else {
		entries, err = r.openFile(f, name)
	}
	if err != nil {
		return err
	}
	return r.index(entries)
}

// index makes the tensors available by their names.
func (r *Reader) index(entries []*tensorfile.Tensor) error {
	r.tensors = make(map[string]*tensorfile.Tensor, len(entries))
	for _, e := range entries {
		if r.tensors[e.Name] != nil {
			return fmt.Errorf("%s is there twice", e.Name)
		}
		r.tensors[e.Name] = e
	}
	return nil
}

// indexFile lists the files of a checkpoint that consists of several files.
const (
	indexFile = weightsFile + ".index.json"
	maxIndex  = 8 << 20
)

// weightFiles are the possible names of the file with the weights, in the order of preference.
var weightFiles = []string{
	weightsFile, indexFile, "pytorch_model.bin", "pytorch_model.bin.index.json",
}

// weights returns the name of the file with the weights, or of the index that lists several files.
func (f *folder) weights() (string, error) {
	for _, folder := range tensorfile.Places(f.root) {
		for _, name := range weightFiles {
			if f.exists(folder + name) {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("no weights: none of %s is there", strings.Join(weightFiles, ", "))
}

// openFile opens a file of weights.
func (r *Reader) openFile(f *folder, name string) ([]*tensorfile.Tensor, error) {
	file, err := f.open(name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	entries, err := r.read(file, info.Size(), func(c tensorfile.Contents, size int64) ([]*tensorfile.Tensor, error) {
		if strings.HasSuffix(name, ".safetensors") {
			return r.readSafetensors(c, size)
		}
		return readTorch(c, size)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return entries, nil
}

// read maps a file and calls f with it.
func (r *Reader) read(file *os.File, size int64, f func(c tensorfile.Contents, size int64) ([]*tensorfile.Tensor, error)) ([]*tensorfile.Tensor, error) {
	c := tensorfile.Map(file, size)
	r.files = append(r.files, c)
	return f(c, size)
}

func (r *Reader) readSafetensors(c tensorfile.Contents, size int64) ([]*tensorfile.Tensor, error) {
	s, err := tensorfile.Read(c, size)
	if err != nil {
		return nil, err
	}
	r.note(s.Metadata)
	return s.Tensors, nil
}

// OpenFile opens one file of weights, for LoadInto and LoadParams: a safetensors file if its name ends in .safetensors, else a file that torch.save
// wrote, such as a released .pth. Of a directory it opens the files with the weights that Open would, whatever its config.json is.
//
// A released file of a training run is a dictionary that has the weights beside the state of an optimizer, options, numbers and other objects. from is
// the name of the dictionary with the weights, as "model_ema". With "", the weights are the whole file if it has tensors, else the first of model,
// state_dict, model_state_dict, network_weights, net, module, model_ema and state_dict_ema. Everything else is stepped over: nothing is called, and
// numbers that are not loaded are not read. A file that names functions of the system is an error. Tensors of integers are no weights and are left out,
// and so is a prefix "module." of all names.
//
// Errors: a file that cannot be read; the format of PyTorch before 1.6; no such dictionary; a from with a safetensors file or a directory.
func OpenFile(path, from string) (*Reader, error) {
	r := &Reader{dir: path}
	if err := r.openOne(path, from); err != nil {
		r.Close()
		return nil, r.fail(err)
	}
	return r, nil
}

func (r *Reader) openOne(path, from string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if from != "" {
			return fmt.Errorf("from is %q, want none: a directory has one dictionary", from)
		}
		f, err := openFolder(path)
		if err != nil {
			return err
		}
		defer f.close()
		return r.openWeights(f)
	}
	file, err := tensorfile.OpenFile(path)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	entries, err := r.read(file, info.Size(), func(c tensorfile.Contents, size int64) ([]*tensorfile.Tensor, error) {
		switch {
		case !strings.HasSuffix(path, ".safetensors"):
			return readReleased(c, size, from)
		case from != "":
			return nil, fmt.Errorf("from is %q, want none: a safetensors file has one dictionary", from)
		}
		return r.readSafetensors(c, size)
	})
	if err != nil {
		return err
	}
	return r.index(entries)
}

// openShards opens the files that an index names, and checks that they have the tensors that the index says.
func (r *Reader) openShards(f *folder, index string) ([]*tensorfile.Tensor, error) {
	text, err := f.read(index, maxIndex)
	if err != nil {
		return nil, err
	}
	var i struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(text, &i); err != nil {
		return nil, fmt.Errorf("%s: %w", index, err)
	}
	suffix := path.Ext(strings.TrimSuffix(index, ".index.json"))
	shards := map[string]bool{}
	for name, shard := range i.WeightMap {
		if !strings.HasSuffix(shard, suffix) {
			return nil, fmt.Errorf("%s: %s is in %q, want a name that ends in %s", index, name, shard, suffix)
		}
		shards[shard] = true
	}
	var all []*tensorfile.Tensor
	var m tensorfile.Misfit
	for _, shard := range slices.Sorted(maps.Keys(shards)) {
		entries, err := r.openFile(f, shard)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if i.WeightMap[e.Name] != shard {
				m.Superfluous = append(m.Superfluous, fmt.Sprintf("%s in %s, where %s does not have it", e.Name, shard, index))
			}
		}
		all = append(all, entries...)
	}
	there := make(map[string]bool, len(all))
	for _, e := range all {
		there[e.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(i.WeightMap)) {
		if !there[name] {
			m.Missing = append(m.Missing, fmt.Sprintf("%s in %s", name, i.WeightMap[name]))
		}
	}
	return all, m.Err()
}

// Names returns the sorted names of the tensors in the Hugging Face layout. The tensor backbone.embedding.weight of the original layout
// has the name backbone.embeddings.weight.
func (r *Reader) Names() []string { return slices.Sorted(maps.Keys(r.tensors)) }

// note adds the metadata of a file. If several shards have the same key, the value of the first shard counts.
func (r *Reader) note(metadata map[string]string) {
	if r.metadata == nil {
		r.metadata = map[string]string{}
	}
	for key, value := range metadata {
		if _, ok := r.metadata[key]; !ok && key != "format" { // a key of the format itself, with the value "pt"
			r.metadata[key] = value
		}
	}
}

// Metadata returns a copy of the metadata that was given to SaveParams, or that the file of the weights has. Files of PyTorch
// (.bin) have none.
func (r *Reader) Metadata() map[string]string { return maps.Clone(r.metadata) }

// Config returns the configuration of the language model in the checkpoint. It is an error if there is no config.json, or if the
// tensors are not those of that model. So nn.NewLM can build what Config returns: no size in it is larger than the files show.
func (r *Reader) Config() (nn.LMConfig, error) {
	if err := r.opened(); err != nil {
		return nn.LMConfig{}, err
	}
	if r.config == nil {
		return nn.LMConfig{}, r.fail(fmt.Errorf("config.json: %w: a language model has one; Open and LoadParams read weights without it", fs.ErrNotExist))
	}
	cfg := r.config.lm
	if !r.config.biasKnown {
		// Versions of transformers differ in the default of use_bias. The names of the tensors show whether there are biases.
		cfg.Bias = r.tensors["backbone.layers.0.mixer.in_proj.bias"] != nil
	}
	if cfg.NLayer > len(r.tensors) {
		return nn.LMConfig{}, r.fail(fmt.Errorf("config.json has %d layers, but the files only %d tensors", cfg.NLayer, len(r.tensors)))
	}
	err := tensorfile.Match(r.tensors, lmTensors(cfg), func(name string) bool {
		return name != head || cfg.UntiedHead // the file may have a tied head, which LoadInto compares with the embedding
	})
	if err != nil {
		return nn.LMConfig{}, r.fail(err)
	}
	return cfg, nil
}

// Part is what LoadInto fills: an nn.MambaBlock, nn.MambaStack or nn.LM, a layer of package layer, or your own model if it embeds
// layer.Base.
type Part interface {
	Name() string
	Params() layer.Params
	Err() error
}

// LoadInto fills the weights of a part with the tensors whose names begin with a prefix. With the prefix "backbone.layers.3", the
// weight norm.weight gets the tensor backbone.layers.3.norm.weight. The prefix of a language model's stack is "backbone". The
// prefix "" stands for the whole checkpoint. If the part has a name of its own, LoadInto ignores that name.
//
// It is an error, and nothing changes, if a tensor is missing or has another shape, or if the checkpoint has a tensor for a
// module of the part, such as a bias, that is not a weight of the part. One error lists all such tensors. Other tensors with the
// prefix are left alone, so a stack of fewer layers takes the first ones. If the part has a method Config, its NormEps must be
// that of config.json, since no tensor shows it.
//
// A weight that is not a number is an error too, but other weights may be filled by then. The values are written in place, so
// graphs that use the weights see them.
func (r *Reader) LoadInto(part Part, prefix string) error {
	if err := r.opened(); err != nil {
		return err
	}
	if part == nil {
		return r.fail(errors.New("the part is missing, want a layer or a model"))
	}
	if err := part.Err(); err != nil {
		return err
	}
	if err := complete(part.Params()); err != nil {
		return r.fail(err)
	}
	if err := r.agrees(part); err != nil {
		return r.fail(err)
	}
	return r.load(part.Params(), ownNames(part), prefix)
}

// LoadParams fills each weight with the tensor of the same name, or of the name after a prefix. The prefix "" reads what
// SaveParams wrote. The errors are those of LoadInto.
func (r *Reader) LoadParams(params layer.Params, prefix string) error {
	if err := r.opened(); err != nil {
		return err
	}
	if err := complete(params); err != nil {
		return r.fail(err)
	}
	return r.load(params, fullNames(params), prefix)
}

func (r *Reader) load(params layer.Params, names []string, prefix string) error {
	wants := make([]tensorfile.Want, len(params))
	jobs := make([]tensorfile.Job, len(params))
	modules, seen := map[string]bool{}, map[string]bool{}
	for i, name := range names {
		if prefix != "" {
			name = prefix + "." + name
		}
		if r.tensors[name] == nil {
			name = canonical(name)
		}
		if seen[name] {
			return r.fail(fmt.Errorf("two weights have the name %s", name))
		}
		seen[name], modules[module(name)] = true, true
		data, err := elements(params[i])
		if err != nil {
			return r.fail(err)
		}
		wants[i] = tensorfile.Want{Name: name, Shape: params[i].Value.Shape()}
		jobs[i] = tensorfile.Job{From: r.tensors[name], To: data}
	}
	if err := tensorfile.Match(r.tensors, wants, func(name string) bool { return modules[module(name)] }); err != nil {
		return r.fail(err)
	}
	if err := tensorfile.Fill(jobs); err != nil {
		return r.fail(err)
	}
	params.ValuesChanged()
	return nil
}

// module returns the name of a tensor up to its last dot: the name of the module to which the tensor belongs.
func module(name string) string { return name[:strings.LastIndexByte(name, '.')+1] }

// ownNames returns the names of the weights without the name of the part, in order.
func ownNames(part Part) []string {
	names := make([]string, 0, len(part.Params()))
	for _, p := range part.Params() {
		name, ok := strings.CutPrefix(p.Name, part.Name()+".")
		if !ok { // the part has no name
			break
		}
		names = append(names, name)
	}
	if len(names) < len(part.Params()) {
		return fullNames(part.Params())
	}
	return names
}

// agrees compares the options that no tensor shows with config.json.
func (r *Reader) agrees(part Part) error {
	if r.config == nil {
		return nil
	}
	var c nn.Config
	switch p := part.(type) {
	case interface{ Config() nn.Config }:
		c = p.Config()
	case interface{ Config() nn.LMConfig }:
		c = p.Config().Config
		if untied := p.Config().UntiedHead; untied != r.config.lm.UntiedHead {
			return fmt.Errorf("config.json has an untied head: %t, the model: %t", r.config.lm.UntiedHead, untied)
		}
		a, b := r.tensors[embedding], r.tensors[head]
		if r.config.lm.UntiedHead || a == nil || b == nil {
			break
		}
		if same, err := tensorfile.Equal(a, b); err != nil {
			return err
		} else if !same {
			return fmt.Errorf("%s differs from %s, but config.json says that the head is tied to the embedding", head, embedding)
		}
	default:
		return nil
	}
	if c.NormEps != r.config.lm.NormEps {
		return fmt.Errorf("config.json has a layer_norm_epsilon of %g, the model one of %g", r.config.lm.NormEps, c.NormEps)
	}
	return nil
}

var _ = []Part{(*nn.MambaBlock)(nil), (*nn.MambaStack)(nil), (*nn.LM)(nil), (*layer.Linear)(nil)}
