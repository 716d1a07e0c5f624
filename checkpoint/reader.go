package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
)

// Load returns the language model of a checkpoint's directory. Weights are float32 unless an option, nn.WithDtype, says
// otherwise; nn.WithName puts a name in front of theirs.
//
// It is an error if config.json asks for anything that is not supported, if a tensor is missing, superfluous or of another
// shape (all are listed in the one error), or if a weight is not a number. Nothing is allocated for the model before its
// configuration fits the files.
func Load(dir string, opts ...nn.Option) (*nn.LM, error) {
	r, err := Open(dir)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cfg, err := r.Config()
	if err != nil {
		return nil, err
	}
	lm := nn.NewLM(cfg, append(slices.Clone(opts), layer.WithZeros())...)
	if err := r.LoadInto(lm, ""); err != nil {
		return nil, err
	}
	return lm, nil
}

// Reader is an open checkpoint. Its methods may be called at the same time, except for Close.
type Reader struct {
	dir     string
	files   []contents
	tensors map[string]*entry
	config  *config // nil without a config.json
}

// Open opens the checkpoint in a directory: its configuration, and the description of its tensors, whose numbers stay on
// file. Close it when the weights are loaded.
//
// A directory without config.json can be opened too, for the weights of a part: the caller then answers for the options
// that no tensor shows.
func Open(dir string) (*Reader, error) {
	r := &Reader{dir: dir, tensors: map[string]*entry{}}
	if err := r.open(); err != nil {
		r.Close()
		return nil, r.fail(err)
	}
	return r, nil
}

func (r *Reader) fail(err error) error { return fmt.Errorf("checkpoint: %s: %w", r.dir, err) }

// Close closes the files. What was loaded does not need them.
func (r *Reader) Close() error {
	var errs []error
	for _, f := range r.files {
		errs = append(errs, f.Close())
	}
	r.files, r.tensors = nil, nil
	return errors.Join(errs...)
}

func (r *Reader) open() error {
	f, err := openFolder(r.dir)
	if err != nil {
		return err
	}
	defer f.close()
	text, err := f.read("config.json", 1<<20)
	if err == nil {
		r.config, err = parseConfig(text)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	name, err := f.weights()
	if err != nil {
		return err
	}
	var entries []*entry
	if strings.HasSuffix(name, ".index.json") {
		entries, err = r.openShards(f, name)
	} else {
		entries, err = r.openFile(f, name)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		e.name = canonical(e.name)
		if r.tensors[e.name] != nil {
			return fmt.Errorf("%s is there twice", e.name)
		}
		r.tensors[e.name] = e
	}
	return nil
}

// weightFiles are the names that weights go by, the preferred one first.
var weightFiles = []string{
	"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
}

// weights returns the file that has the weights, or the list of their files.
func (f *folder) weights() (string, error) {
	for _, folder := range []string{committed + "/", ""} {
		for _, name := range weightFiles {
			if f.exists(folder + name) {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("no weights: none of %s is there", strings.Join(weightFiles, ", "))
}

// openFile opens a file of weights.
func (r *Reader) openFile(f *folder, name string) ([]*entry, error) {
	file, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	c := openContents(file, size)
	r.files = append(r.files, c)
	var entries []*entry
	if strings.HasSuffix(name, ".safetensors") {
		entries, err = readSafetensors(c, size)
	} else {
		entries, err = readTorch(c, size)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return entries, nil
}

// openShards opens the files that an index names, and holds their tensors against it.
func (r *Reader) openShards(f *folder, index string) ([]*entry, error) {
	text, err := f.read(index, 8<<20)
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
	var all []*entry
	var m misfit
	for _, shard := range slices.Sorted(maps.Keys(shards)) {
		entries, err := r.openFile(f, shard)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if i.WeightMap[e.name] != shard {
				m.superfluous = append(m.superfluous, fmt.Sprintf("%s in %s, where %s does not have it", e.name, shard, index))
			}
		}
		all = append(all, entries...)
	}
	there := make(map[string]bool, len(all))
	for _, e := range all {
		there[e.name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(i.WeightMap)) {
		if !there[name] {
			m.missing = append(m.missing, fmt.Sprintf("%s in %s", name, i.WeightMap[name]))
		}
	}
	return all, m.err()
}

// Names returns the names of the tensors, sorted, as the Hugging Face layout has them: backbone.embedding.weight of the
// original layout is backbone.embeddings.weight here.
func (r *Reader) Names() []string { return slices.Sorted(maps.Keys(r.tensors)) }

// Config returns the configuration of the language model that the checkpoint holds. It is an error if the tensors are not
// those of that model, so what it returns can be built: no size in it is larger than the files say.
func (r *Reader) Config() (nn.LMConfig, error) {
	if r.config == nil {
		return nn.LMConfig{}, r.fail(fmt.Errorf("config.json: %w", fs.ErrNotExist))
	}
	cfg := r.config.lm
	if !r.config.biasKnown {
		// The default of use_bias has changed between versions of transformers. The weights cannot be mistaken.
		cfg.Bias = r.tensors["backbone.layers.0.mixer.in_proj.bias"] != nil
	}
	if cfg.NLayer > len(r.tensors) {
		return nn.LMConfig{}, r.fail(fmt.Errorf("config.json has %d layers, but the files only %d tensors", cfg.NLayer, len(r.tensors)))
	}
	err := compare(r.tensors, lmTensors(cfg), func(name string) bool {
		return name != head || cfg.UntiedHead // a tied head may be on file: LoadInto holds it against the embedding
	})
	if err != nil {
		return nn.LMConfig{}, r.fail(err)
	}
	return cfg, nil
}

// Part is what weights are loaded into: nn.MambaBlock, nn.MambaStack, nn.LM, the layers of package layer, and any model of
// yours that embeds layer.Base.
type Part interface {
	Name() string
	Params() layer.Params
	Err() error
}

// LoadInto fills the weights of a part from the tensors behind a prefix: with "backbone.layers.3", the weight norm.weight
// takes its value from backbone.layers.3.norm.weight. The part's own name, if it was made with one, is left away first. The
// prefix of a language model's stack is "backbone", that of everything "".
//
// All tensors that do not fit are listed in one error, and nothing is changed: those that are missing, those of another
// shape, and those that belong to a module of the part, which has no such weight (a bias, say). What else is behind the prefix
// is for other parts: a stack of fewer layers takes the first ones. Where the part has a configuration (Config), its NormEps is
// held against the checkpoint's, since no tensor shows it. A weight that is not a number is an error too, but other weights
// may be filled by then.
//
// The values are written in place, so graphs that the weights are in see them.
func (r *Reader) LoadInto(part Part, prefix string) error {
	if err := part.Err(); err != nil {
		return err
	}
	if err := r.agrees(part); err != nil {
		return r.fail(err)
	}
	var wants []want
	var jobs []job
	modules := map[string]bool{}
	for i, name := range ownNames(part) {
		p := part.Params()[i]
		name = layer.Join(prefix, name)
		modules[module(name)] = true
		wants = append(wants, want{name, p.Value.Shape()})
		jobs = append(jobs, job{r.tensors[name], p.Value})
	}
	if err := compare(r.tensors, wants, func(name string) bool { return modules[module(name)] }); err != nil {
		return r.fail(err)
	}
	if err := fill(jobs); err != nil {
		return r.fail(err)
	}
	part.Params().ValuesChanged()
	return nil
}

// module returns the name of what a tensor is a weight of.
func module(name string) string { return name[:strings.LastIndexByte(name, '.')+1] }

// ownNames returns the names of the weights without the name of the part, in order.
func ownNames(part Part) []string {
	names := make([]string, 0, len(part.Params()))
	for _, p := range part.Params() {
		name, ok := strings.CutPrefix(p.Name, part.Name()+".")
		if !ok { // the part was made without a name
			break
		}
		names = append(names, name)
	}
	if len(names) < len(part.Params()) {
		names = names[:0]
		for _, p := range part.Params() {
			names = append(names, p.Name)
		}
	}
	return names
}

// agrees holds what no tensor shows against config.json.
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
		if same, err := equal(a, b); err != nil {
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
