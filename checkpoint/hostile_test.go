package checkpoint

import (
	"archive/zip"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/tensorfile"
)

// hostile is a checkpoint with an error in it.
type hostile struct {
	name    string
	fixture string
	spoil   func(t *testing.T, dir string)
	want    string // in the error
}

// spoil returns a change of one file.
func spoil(name string, change func(t *testing.T, b []byte) []byte) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		path := filepath.Join(dir, name)
		put(t, path, change(t, get(t, path)))
	}
}

func cut(n int) func(*testing.T, []byte) []byte {
	return func(_ *testing.T, b []byte) []byte { return b[:len(b)-n] }
}

func keep(n int) func(*testing.T, []byte) []byte {
	return func(_ *testing.T, b []byte) []byte { return b[:n] }
}

func header(old, replacement string) func(*testing.T, []byte) []byte {
	return func(t *testing.T, b []byte) []byte { return editHeader(t, b, old, replacement) }
}

func headerLength(n func(size int) uint64) func(*testing.T, []byte) []byte {
	return func(_ *testing.T, b []byte) []byte {
		binary.LittleEndian.PutUint64(b, n(len(b)))
		return b
	}
}

// last overwrites the end of a file, which is the end of the last tensor.
func last(bits ...byte) func(*testing.T, []byte) []byte {
	return func(_ *testing.T, b []byte) []byte {
		copy(b[len(b)-len(bits):], bits)
		return b
	}
}

func whole(text string) func(*testing.T, []byte) []byte {
	return func(*testing.T, []byte) []byte { return []byte(text) }
}

func withOptions(fields map[string]any) func(*testing.T, string) {
	return func(t *testing.T, dir string) { setOptions(t, dir, fields) }
}

// outside moves a file out of the directory and puts a link in its place.
func outside(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		target := filepath.Join(t.TempDir(), "target")
		put(t, target, get(t, filepath.Join(dir, name)))
		link(t, target, filepath.Join(dir, name))
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	_ = os.Remove(path)
	if err := os.Symlink(target, path); err != nil {
		t.Skip("this system makes no symbolic links: ", err)
	}
}

func torchPickle(pickle string, storages ...string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		put(t, filepath.Join(dir, "pytorch_model.bin"), torchFile(t, pickle, storages...))
	}
}

var six = strings.Repeat("\x00\x00\x80\x3f", 6) // six ones

const bin = "pytorch_model.bin"

func hostiles() []hostile {
	const shard = "model-00002-of-00005.safetensors"
	index := weightsFile + ".index.json"
	nan := binary.LittleEndian.AppendUint32(nil, math.Float32bits(float32(math.NaN())))
	first := `"backbone.embeddings.weight":{"dtype":"F32","shape":[96,32],"data_offsets":[0,12288]}`
	tensor := pTensor(pStorage("FloatStorage", "0", 6), 0, shape23(), stride31())
	return []hostile{
		// safetensors
		{"a byte too few", tiny, spoil(weightsFile, cut(1)), "want a part of the"},
		{"half of it", tiny, spoil(weightsFile, func(_ *testing.T, b []byte) []byte { return b[:len(b)/2] }), "want a part of the"},
		{"a byte too many", tiny, spoil(weightsFile, func(_ *testing.T, b []byte) []byte { return append(b, 0) }), "the tensors end at byte"},
		{"half of the header", tiny, spoil(weightsFile, keep(1000)), "the header is said to have"},
		{"four bytes", tiny, spoil(weightsFile, keep(4)), "too few for a header"},
		{"empty", tiny, spoil(weightsFile, keep(0)), "too few for a header"},
		{"header one longer", tiny, spoil(weightsFile, headerLength(func(int) uint64 { return 3464 + 1 })), "header"},
		{"header as long as the file", tiny, spoil(weightsFile, headerLength(func(n int) uint64 { return uint64(n) })), "the header is said to have"},
		{"header of gigabytes", tiny, spoil(weightsFile, headerLength(func(int) uint64 { return 5 << 30 })), "the header is said to have 5368709120 bytes"},
		{"header of all bits", tiny, spoil(weightsFile, headerLength(func(int) uint64 { return math.MaxUint64 })), "the header is said to have"},
		{"header of nothing", tiny, spoil(weightsFile, headerLength(func(int) uint64 { return 0 })), "unexpected EOF"},
		{"offsets out of bounds", tiny, spoil(weightsFile, header("[0,12288]", "[0,9999999]")), "want a part of the"},
		{"offsets past any file", tiny, spoil(weightsFile, header("[0,12288]", "[9223372036854775806,9223372036854775807]")), "want a part of the"},
		{"offsets backwards", tiny, spoil(weightsFile, header("[0,12288]", "[12288,0]")), "want a part of the"},
		{"offsets overlap", tiny, spoil(weightsFile, header("[12288,14336]", "[12284,14332]")), "where the tensor before it ends"},
		{"offsets leave a hole", tiny, spoil(weightsFile, header("[12288,14336]", "[12292,14340]")), "where the tensor before it ends"},
		{"a shape that overflows", tiny, spoil(weightsFile, header("[96,32]", "[4294967296,4294967296,12288]")), "does not make"},
		{"a dimension of 64 bits", tiny, spoil(weightsFile, header("[96,32]", "[18446744073709551615,32]")), "18446744073709551615 is no whole number from 0 to 2^63-1"},
		{"a dimension past an int", tiny, spoil(weightsFile, header("[96,32]", "[9999999999999999999,32]")), "9999999999999999999 is no whole number"},
		{"a negative dimension", tiny, spoil(weightsFile, header("[96,32]", "[-96,32]")), "-96 is no whole number"},
		{"nine dimensions", tiny, spoil(weightsFile, header("[96,32]", "[1,1,1,1,1,1,1,96,32]")), "more than 8 dimensions"},
		{"a type unheard of", tiny, spoil(weightsFile, header(`"F32"`, `"F31"`)), "F31"},
		{"a type that is no weight's", tiny, spoil(weightsFile, header(`"F32"`, `"I32"`)), "is of I32, want F32, F16, BF16 or F64"},
		{"a key too many", tiny, spoil(weightsFile, header(`"dtype":`, `"more":[],"dtype":`)), "not one of dtype, shape and data_offsets"},
		{"a key twice", tiny, spoil(weightsFile, header(`"dtype":`, `"shape":[1],"dtype":`)), `"shape" is there twice`},
		{"a key too few", tiny, spoil(weightsFile, header(`"dtype":"F32",`, ``)), "lacks one of"},
		{"a name twice", tiny, spoil(weightsFile, header(first, first+","+first)), `"backbone.embeddings.weight" is there twice`},
		{"a name without end", tiny, spoil(weightsFile, header("backbone.embeddings", strings.Repeat("x", 600))), "a name has"},
		{"a header that is no JSON", tiny, spoil(weightsFile, header("{", "[")), "unexpected"},
		{"a header of many brackets", tiny, spoil(weightsFile, whole(string(safetensorsFile(strings.Repeat("[", 1<<20), nil)))), "unexpected"},
		{"a header of many tensors", tiny, spoil(weightsFile, whole(string(safetensorsFile("{"+strings.Repeat(`"":{"dtype":"","shape":[],"data_offsets":[]},`, 40000)+"}", nil)))), "lacks one of"},
		{"a header that is no text", tiny, spoil(weightsFile, header("backbone", "\xff\xfe")), "not UTF-8"},
		{"something behind the header", tiny, spoil(weightsFile, whole(string(safetensorsFile("{} {}", nil)))), "unexpected"},
		{"no tensors", tiny, spoil(weightsFile, whole(string(safetensorsFile("{}", nil)))), "3 layers, but the files only 0 tensors"},
		{"a weight that is no number", tiny, spoil(weightsFile, last(nan...)), "is not a number"},
		{"a bfloat16 that is no number", sharded, spoil(shard, last(0xc0, 0xff)), "is not a number"},
		{"a tensor missing", tiny, spoil(weightsFile, header("backbone.norm_f", "backbone.norm_g")), "missing: backbone.norm_f.weight (32)\n\tsuperfluous: backbone.norm_g.weight (32)"},

		// shards
		{"a shard missing", sharded, func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, shard)); err != nil {
				t.Fatal(err)
			}
		}, shard},
		{"a shard truncated", sharded, spoil(shard, cut(2)), shard},
		{"a shard twice", sharded, func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, shard), get(t, filepath.Join(dir, "model-00001-of-00005.safetensors")))
		}, "superfluous: backbone.embeddings.weight in " + shard},
		{"an index that is no JSON", sharded, spoil(index, whole("{")), index},
		{"an index of nothing", sharded, spoil(index, whole("{}")), "3 layers, but the files only 0 tensors"},
		{"an index that leads up", sharded, spoil(index, whole(`{"weight_map": {"a": "../model.safetensors"}}`)), "want one without a path"},
		{"an index that leads down", sharded, spoil(index, whole(`{"weight_map": {"a": "x/model.safetensors"}}`)), "want one without a path"},
		{"an index that leads anywhere", sharded, spoil(index, whole(`{"weight_map": {"a": "/etc/passwd.safetensors"}}`)), "want one without a path"},
		{"an index that leads nowhere", sharded, spoil(index, whole(`{"weight_map": {"a": ""}}`)), "ends in .safetensors"},
		{"an index that leads to itself", sharded, spoil(index, whole(`{"weight_map": {"a": "model.safetensors.index.json"}}`)), "ends in .safetensors"},

		// files
		{"a link out of the directory", tiny, outside(weightsFile), "escapes"},
		{"a configuration out of the directory", tiny, outside(configFile), "escapes"},
		{"a shard out of the directory", sharded, outside(shard), "escapes"},
		{"an index out of the directory", sharded, outside(index), "escapes"},
		{"a pickle out of the directory", original, outside(bin), "escapes"},
		{"a link to itself", tiny, func(t *testing.T, dir string) { link(t, weightsFile, filepath.Join(dir, weightsFile)) }, weightsFile},
		{"a directory for a file", tiny, func(t *testing.T, dir string) {
			path := filepath.Join(dir, weightsFile)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(path, 0o777); err != nil {
				t.Fatal(err)
			}
		}, "no regular file"},
		{"no weights", tiny, func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, weightsFile)); err != nil {
				t.Fatal(err)
			}
		}, "no weights: none of model.safetensors, "},
		{"no configuration", tiny, func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, configFile)); err != nil {
				t.Fatal(err)
			}
		}, "config.json"},
		{"a configuration of megabytes", tiny, spoil(configFile, whole(strings.Repeat(" ", 2<<20))), "want at most"},

		// sizes that the files do not have
		{"a billion layers", tiny, withOptions(map[string]any{"num_hidden_layers": 1 << 28}), "268435456 layers, but the files only 32 tensors"},
		{"a large vocabulary", tiny, withOptions(map[string]any{"vocab_size": 1 << 28}), "misshapen: backbone.embeddings.weight is (96, 32), want (268435456, 32)"},
		{"a wide model", tiny, withOptions(map[string]any{"hidden_size": 1 << 27, "intermediate_size": nil}), "misshapen"},
		{"a large state", tiny, withOptions(map[string]any{"state_size": 1 << 28}), "misshapen"},
		{"a wide convolution", tiny, withOptions(map[string]any{"conv_kernel": 1 << 28}), "misshapen"},
		{"a large rank", tiny, withOptions(map[string]any{"time_step_rank": 1 << 28}), "misshapen"},
		{"another width inside", tiny, withOptions(map[string]any{"intermediate_size": 65}), "misshapen"},
		{"a head that is not there", tiny, withOptions(map[string]any{"tie_word_embeddings": false}), "missing: lm_head.weight (96, 32)"},
		{"biases that are not there", tiny, withOptions(map[string]any{"use_bias": true}), "missing: backbone.layers.0.mixer.in_proj.bias (128)"},
		{"biases that should not be there", tiny, withOptions(map[string]any{"use_conv_bias": false}), "superfluous: backbone.layers.0.mixer.conv1d.bias (64)"},

		// pickles
		{"a pickle truncated", original, spoil(bin, cut(1)), bin},
		{"half a pickle", original, spoil(bin, func(_ *testing.T, b []byte) []byte { return b[:len(b)/2] }), "zip"},
		{"an empty pickle", original, spoil(bin, keep(0)), "zip"},
		{"a format of old", original, spoil(bin, whole("\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")), "PyTorch before 1.6"},
		{"another zip file", original, func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, bin), zipFile(t, zip.Store, "a", "b"))
		}, "no data.pkl"},
		{"a compressed zip file", original, func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, bin), zipFile(t, zip.Deflate, "archive/data.pkl", strings.Repeat("}", 1<<20)))
		}, "is compressed"},
		{"two pickles", original, func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, bin), zipFile(t, zip.Store, "a/data.pkl", "", "b/data.pkl", ""))
		}, "two pickles"},
		{"a name twice in the zip file", original, func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, bin), zipFile(t, zip.Store, "a/data.pkl", "", "a/data.pkl", ""))
		}, "there twice"},
		{"the other byte order", original, func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, bin), zipFile(t, zip.Store, "a/data.pkl", "", "a/byteorder", "big"))
		}, `byte order is "big"`},
		{"a pickle that calls the system", original, torchPickle("\x80\x02" + pGlobal("posix", "system") + pTuple(pString("true")) + "R."), `it names "posix.system"`},
		{"a pickle that calls the system within", original, torchPickle(pDict(pString("a"), pGlobal("os", "system")+pTuple(pString("true"))+"R")), `it names "os.system"`},
		{"a pickle that evaluates", original, torchPickle(pDict(pString("a"), pGlobal("builtins", "eval")+pTuple(pString("1"))+"R")), `it names "builtins.eval"`},
		{"a pickle of the old instances", original, torchPickle("\x80\x02(S'true'\nios\nsystem\n."), "opcode"},
		{"a pickle of new objects", original, torchPickle("\x80\x02" + pGlobal("torch", "FloatStorage") + ")\x81."), "opcode 0x81"},
		{"a pickle with names from its stack", original, torchPickle("\x80\x02" + pString("os") + pString("system") + "\x93."), "opcode 0x93"},
		{"a pickle of a later protocol", original, torchPickle("\x80\x04}."), "protocol 4"},
		{"a pickle of other numbers", original, torchPickle(pDict(pString("a"), pTensor(pStorage("LongStorage", "0", 6), 0, shape23(), stride31())), six), `it names "torch.LongStorage"`},
		{"a pickle that calls a storage", original, torchPickle(pDict(pString("a"), pGlobal("torch", "FloatStorage")+")R")), "it calls the name torch.FloatStorage"},
		{"a pickle that calls a string", original, torchPickle(pDict(pString("a"), pString("b")+")R")), "it calls a string"},
		{"a pickle of no tensor", original, torchPickle(pDict(pString("a"), pInt(3))), "a is 3, want a tensor"},
		{"a pickle of a dictionary within", original, torchPickle(pDict(pString("a"), "}")), "a is a dictionary, want a tensor"},
		{"a pickle of a list", original, torchPickle("\x80\x02]."), "it is a list"},
		{"a pickle of nothing", original, torchPickle("\x80\x02."), "0 objects"},
		{"a pickle without an end", original, torchPickle("\x80\x02}"), "ends too early"},
		{"a pickle that goes on", original, torchPickle("\x80\x02}.}"), "after its end"},
		{"a pickle with a key that is no name", original, torchPickle(pDict(pInt(1), tensor), six), "a key is 1"},
		{"a pickle with a name twice", original, torchPickle(pDict(pString("a"), tensor, pString("a"), tensor), six), "there twice"},
		{"a string of gigabytes", original, torchPickle("\x80\x02X\xff\xff\xff\xffabc."), "a string of 4294967295 bytes"},
		{"a number of many bytes", original, torchPickle("\x80\x02\x8a\x20" + strings.Repeat("a", 32) + "."), "a number of 32 bytes"},
		{"memory of gigabytes", original, torchPickle("\x80\x02}r\xff\xff\xff\xff."), "object 4294967295 is stored, want 0 as the next number"},
		{"memory never stored", original, torchPickle("\x80\x02j\xff\xff\xff\xff."), "was never stored"},
		{"many marks", original, torchPickle("\x80\x02" + strings.Repeat("(", 1<<20)), "on the stack"},
		{"a tuple of nothing", original, torchPickle("\x80\x02\x87."), "the stack is empty"},
		{"a mark as a value", original, torchPickle("\x80\x02}(a."), "no object after the mark"},
		{"no mark", original, torchPickle("\x80\x02}u."), "no mark"},
		{"half an item", original, torchPickle("\x80\x02}(" + pInt(1) + "u."), "items of another kind"},
		{"items of a number", original, torchPickle("\x80\x02" + pInt(1) + pInt(2) + "a."), "1 holds no items"},
		{"a storage of gigabytes", original, torchPickle(pDict(pString("a"), pTensor(pStorage("FloatStorage", "0", 1<<30), 0, shape23(), stride31())), six), "1073741824 elements, but there are 24 bytes"},
		{"a storage of fewer than none", original, torchPickle(pDict(pString("a"), pTensor(pStorage("FloatStorage", "0", -1), 0, shape23(), stride31())), six), "-1 elements"},
		{"a storage that is missing", original, torchPickle(pDict(pString("a"), pTensor(pStorage("FloatStorage", "7", 6), 0, shape23(), stride31())), six), "archive/data/7 is missing"},
		{"a storage elsewhere", original, torchPickle(pDict(pString("a"), pTensor(pStorage("FloatStorage", "../../x", 6), 0, shape23(), stride31())), six), "is missing in the zip file"},
		{"a storage that is none", original, torchPickle(pDict(pString("a"), pTensor(pTuple(pString("storage"))+"Q", 0, shape23(), stride31()))), "is not a storage"},
		{"a tensor past its storage", original, torchPickle(pDict(pString("a"), pTensor(pStorage("FloatStorage", "0", 6), 1, shape23(), stride31())), six), "does not fit its storage"},
		{"a tensor before its storage", original, torchPickle(pDict(pString("a"), pTensor(pStorage("FloatStorage", "0", 6), -1, shape23(), stride31())), six), "does not fit its storage"},
		{"a tensor that overflows", original, torchPickle(pDict(pString("a"), pTensor(pStorage("FloatStorage", "0", 6), 0, pTuple(pLong(1<<62), pLong(1<<62)), stride31())), six), "does not fit its storage"},
		{"a tensor of fewer than none", original, torchPickle(pDict(pString("a"), pTensor(pStorage("FloatStorage", "0", 6), 0, pTuple(pInt(-2), pInt(3)), stride31())), six), "dimension 0 is -2"},
		{"a tensor that is turned", original, torchPickle(pDict(pString("a"), pTensor(pStorage("FloatStorage", "0", 6), 0, shape23(), pTuple(pInt(1), pInt(2)))), six), "one after another"},
		{"a tensor of one element, spread", original, torchPickle(pDict(pString("a"), pTensor(pStorage("FloatStorage", "0", 6), 0, shape23(), pTuple(pInt(0), pInt(0)))), six), "one after another"},
		{"tensors on one another", original, torchPickle(pDict(pString("a"), tensor, pString("b"), tensor), six), "a and b overlap"},
		{"another model's tensors", original, torchPickle(pDict(pString("a"), tensor), six), "3 layers, but the files only 1 tensors"},
		{"a pickled weight that is no number", original, func(t *testing.T, dir string) {
			b := get(t, filepath.Join(dir, bin))
			copy(b[16192:], nan) // within the second storage
			put(t, filepath.Join(dir, bin), b)
		}, "is not a number"},
	}
}

// Each of these files gives an error that says what is wrong. Nothing panics. Reading allocates at most the size of the files and
// 512 KiB.
func TestHostileFiles(t *testing.T) {
	for _, c := range hostiles() {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			dir := copyOf(t, c.fixture)
			c.spoil(t, dir)
			var err error
			n := allocated(func() { _, err = Load(dir) })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
			if limit := dirSize(t, dir) + 512<<10; n > limit {
				t.Errorf("%d bytes allocated, want at most %d", n, limit)
			}
		})
	}
}

// A pickle that only makes objects is an error. Reading it takes little more memory than the file.
func TestManyObjects(t *testing.T) {
	for name, text := range map[string]string{
		"dictionaries": strings.Repeat("}}}\x87", 1<<18),
		"tuples":       strings.Repeat(")\x85", 1<<19),
		"strings":      strings.Repeat(pString("")+pString("")+"\x86", 1<<17),
	} {
		file := torchFile(t, "\x80\x02"+text+".")
		n := allocated(func() {
			if _, err := readTorch(tensorfile.Memory(file), int64(len(file))); err == nil {
				t.Errorf("%s: no error", name)
			}
		})
		if limit := uint64(4 * len(file)); n > limit {
			t.Errorf("%s: %d bytes allocated, want at most %d", name, n, limit)
		}
	}
}

// One error lists all tensors that do not fit.
func TestAllMisfitsInOneError(t *testing.T) {
	dir := copyOf(t, sharded)
	index := filepath.Join(dir, indexFile)
	put(t, index, []byte(strings.Replace(string(get(t, index)), `"weight_map": {`, `"weight_map": {"more.weight": "model-00001-of-00005.safetensors", `, 1)))
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "missing: more.weight in model-00001-of-00005.safetensors") {
		t.Errorf("an index that names more than there is: error %v", err)
	}
	dir = copyOf(t, tiny)
	path := filepath.Join(dir, weightsFile)
	b := editHeader(t, get(t, path), "backbone.norm_f", "backbone.norm_g")
	b = editHeader(t, b, "layers.1.mixer.D", "layers.7.mixer.D")
	b = editHeader(t, b, "[96,32]", "[32,96]")
	put(t, path, b)
	_, err := Load(dir)
	want := fmt.Sprintf("checkpoint: %s: 5 tensors do not fit:"+`
	missing: backbone.layers.1.mixer.D (64)
	missing: backbone.norm_f.weight (32)
	superfluous: backbone.layers.7.mixer.D (64)
	superfluous: backbone.norm_g.weight (32)
	misshapen: backbone.embeddings.weight is (32, 96), want (96, 32)`, dir)
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// In the cache of Hugging Face the files of a snapshot are links to files in another folder. They are followed.
func TestHuggingFaceCache(t *testing.T) {
	repo := filepath.Join(t.TempDir(), "models--state-spaces--mamba-tiny")
	snapshot, blobs := filepath.Join(repo, "snapshots", "0123abcd"), filepath.Join(repo, "blobs")
	for _, d := range []string{snapshot, blobs} {
		if err := os.MkdirAll(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	fixture, err := filepath.Abs(tiny)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Load(fixture)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{configFile, weightsFile} {
		put(t, filepath.Join(blobs, "hash-of-"+name), get(t, filepath.Join(fixture, name)))
		link(t, "../../blobs/hash-of-"+name, filepath.Join(snapshot, name))
	}
	link(t, filepath.Join("snapshots", "0123abcd"), filepath.Join(repo, "main"))
	t.Chdir(snapshot)
	for _, dir := range []string{snapshot, filepath.Join(repo, "main"), "."} {
		lm, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		sameWeights(t, lm.Params(), want.Params())
	}

	// A link in that folder that leads out of it is not followed.
	put(t, filepath.Join(repo, "secret"), get(t, filepath.Join(fixture, configFile)))
	for _, target := range []string{"../../secret", "../../blobs/../secret", "../../blobs/..", filepath.Join(blobs, "hash-of-"+configFile)} {
		link(t, target, filepath.Join(snapshot, configFile))
		if _, err := Load(snapshot); err == nil {
			t.Errorf("a link to %s was followed", target)
		}
	}
	link(t, "../secret", filepath.Join(blobs, "hash-of-"+configFile))
	link(t, "../../blobs/hash-of-"+configFile, filepath.Join(snapshot, configFile))
	if _, err := Load(snapshot); err == nil {
		t.Error("a blob that is a link out was followed")
	}
}

// A link to a file in the same directory is followed.
func TestLinkWithin(t *testing.T) {
	dir := copyOf(t, tiny)
	if err := os.Rename(filepath.Join(dir, weightsFile), filepath.Join(dir, "weights")); err != nil {
		t.Fatal(err)
	}
	link(t, "weights", filepath.Join(dir, weightsFile))
	if _, err := Load(dir); err != nil {
		t.Error(err)
	}
}

// If a file becomes shorter while it is open, there is an error, and the program does not end. If only the last bytes are missing, a
// mapped file reads as zeros there.
func TestFileCutOffWhileOpen(t *testing.T) {
	for _, missing := range []int64{1, 100, 20000} {
		dir := copyOf(t, tiny)
		r := open(t, dir)
		cfg, err := r.Config()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, weightsFile)
		if err := os.Truncate(path, int64(len(get(t, path)))-missing); err != nil {
			t.Skip("this system does not cut off open files: ", err)
		}
		if err := r.LoadInto(newLM(t, cfg), ""); err == nil {
			t.Errorf("%d bytes are missing: no error", missing)
		}
	}
}
