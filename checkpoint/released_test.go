package checkpoint

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/tensorfile"
)

// values returns the tensors of a file as float32.
func (r *Reader) values(t testing.TB) map[string][]float32 {
	t.Helper()
	all := map[string][]float32{}
	for name, e := range r.tensors {
		all[name] = make([]float32, e.Size/e.Dtype.Size())
		if err := tensorfile.Fill([]tensorfile.Job{{From: e, To: all[name]}}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// OpenFile finds the weights in files that Python wrote (testdata/released.py), beside an optimizer, options of argparse and yacs, numbers of NumPy,
// integers, sets, times and paths, in protocols 2 and 4.
func TestReleasedFile(t *testing.T) {
	for _, c := range []struct {
		from  string
		scale float32
	}{{"", 1}, {"model", 1}, {"model_ema", 10}} {
		for _, name := range []string{"released.pth", "released4.pth"} {
			r, err := OpenFile(filepath.Join("testdata", name), c.from)
			if err != nil {
				t.Fatalf("%s, %q: %v", name, c.from, err)
			}
			s, got := c.scale, r.values(t)
			want := map[string][]float32{"head.weight": {0, s, 2 * s, 3 * s, 4 * s, 5 * s}, "head.bias": {s, -s}, "A_log": {s}, "D": {s / 2}}
			if len(got) != len(want) {
				t.Errorf("%s, %q: the tensors %v, want 4", name, c.from, r.Names())
			}
			for name, w := range want {
				if !slices.Equal(got[name], w) {
					t.Errorf("%s, %q: %v, want %v", name, c.from, got[name], w)
				}
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A file with the names of functions that attack, in any place and by any opcode, is an error. So is one without weights, or of the old format. Nothing
// panics, and no more memory is taken than the file's size allows.
func TestHostileReleasedFiles(t *testing.T) {
	tensor := pTensor(pStorage("FloatStorage", "0", 6), 0, shape23(), stride31())
	model := pDict(pString("a"), tensor)
	model = model[2 : len(model)-1] // without its protocol and end
	beside := func(text string) string { return pDict(pString("model"), model, pString("args"), text) }
	short := func(s string) string { return "\x8c" + string(rune(len(s))) + s }
	released, err := os.ReadFile("testdata/released.pth")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pickle, from, want string
	}{
		"good":                        {beside("N"), "", ""},
		"the last of a name":          {pDict(pString("model"), "}", pString("model"), model), "", ""},
		"system":                      {beside(pGlobal("posix", "system") + pTuple(pString("true")) + "R"), "", `it names "posix.system"`},
		"system that is not called":   {beside(pGlobal("os", "system")), "", `it names "os.system"`},
		"a module of system":          {beside(pGlobal("os.path", "join")), "", `it names "os.path.join"`},
		"system from the stack":       {beside(short("subprocess") + short("Popen") + "\x93"), "", `it names "subprocess.Popen"`},
		"system through a module":     {beside(short("torch") + short("os.system") + "\x93"), "", `it names "torch.os.system"`},
		"a short string that is none": {beside("\x8c\x01\xff"), "", "not UTF-8"},
		"a number beside the model":   {pDict(pString("best"), tensor, pString("model"), model), "", ""},
		"an average without weights":  {pDict(pString("model"), "}", pString("model_ema"), model), "", ""},
		"eval":                        {beside(pGlobal("builtins", "eval") + pTuple(pString("1")) + "R"), "", `it names "builtins.eval"`},
		"getattr of Python 2":         {beside(pGlobal("__builtin__", "getattr")), "", `it names "__builtin__.getattr"`},
		"import":                      {beside(pGlobal("builtins", "__import__")), "", `it names "builtins.__import__"`},
		"download":                    {beside(pGlobal("torch.hub", "load")), "", `it names "torch.hub.load"`},
		"system in a tensor's type":   {beside(pGlobal("torch._tensor", "_rebuild_from_type_v2") + pTuple(pGlobal("os", "system"), "N", pTuple(pString("true")), "N") + "R"), "", `it names "os.system"`},
		"old instances":               {beside("(S'true'\nios\nsystem\n"), "", "opcode"},
		"names from the registry":     {beside("\x82\x01"), "", "opcode 0x82"},
		"a name of numbers":           {beside(pInt(1) + pInt(2) + "\x93"), "", "a name is (1, 2), want two strings"},
		"a whole model":               {"\x80\x02" + pGlobal("vmamba", "VSSM") + ")\x81}b.", "", "an object of vmamba.VSSM, want a dictionary of tensors: save the state_dict"},
		"no weights":                  {pDict(pString("epoch"), pInt(3), pString("args"), "N"), "", "it has epoch, args, want a dictionary of tensors named model, state_dict"},
		"another name":                {beside("N"), "ema", "it has model, args, want a dictionary of tensors named ema"},
		"an empty dictionary":         {pDict(pString("model"), "}"), "", "no tensors of floating-point numbers"},
		"a name twice":                {pDict(pString("model"), "}("+pString("a")+tensor+pString("a")+tensor+"u"), "", "a is there twice"},
		"a key that is no name":       {pDict(pString("model"), "}("+pInt(1)+tensor+"u"), "", "a key is 1, want a name"},
		"a long string":               {beside("X\xff\xff\xff\xffabc"), "", "an object of 4294967295 bytes"},
		"bytes without end":           {beside("\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc"), "", "but the pickle ends"},
		"a long number":               {beside("\x8b\xff\xff\xff\x7fabc"), "", "an object of 2147483647 bytes"},
		"protocol 6":                  {"\x80\x06}.", "", "protocol 6"},
		"no mark":                     {"\x80\x02}\x91.", "", "there is no mark"},
		"a stack of one":              {"\x80\x02N\x81.", "", "the stack is empty"},
		"a memo of nothing":           {"\x80\x04\x94.", "", "the stack is empty"},
		"a tensor past its storage":   {pDict(pString("model"), "}("+pString("a")+pTensor(pStorage("FloatStorage", "0", 6), 1, shape23(), stride31())+"u"), "", "does not fit its storage"},
		"tensors over each other":     {pDict(pString("model"), "}("+pString("a")+tensor+pString("b")+tensor+"u"), "", "a and b overlap"},
		"a tensor of a number":        {beside(pGlobal("torch._utils", "_rebuild_tensor_v2") + pTuple(pInt(1)) + "R"), "", "a tensor of 1 arguments"},
		"a tensor of no storage":      {beside(pGlobal("torch._utils", "_rebuild_tensor_v2") + pTuple(pInt(1), pInt(0), ")", ")") + "R"), "", "a tensor is not (storage"},
		"many objects":                {"\x80\x02" + strings.Repeat("}0", 1<<16), "", "more objects than"},
		"many names":                  {"\x80\x04" + strings.Repeat("N\x940", 1<<16), "", "more objects than"},
		"a dictionary within another": {pDict(pString("model"), "}("+pString("model")+model+"u"), "", "no tensors of floating-point numbers"},
	} {
		path := filepath.Join(t.TempDir(), "file.pth")
		put(t, path, torchFile(t, c.pickle, six))
		var err error
		n := allocated(func() {
			var r *Reader
			if r, err = OpenFile(path, c.from); err == nil {
				err = r.Close()
			}
		})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
		if limit := 8*uint64(len(c.pickle)) + 512<<10; n > limit {
			t.Errorf("%s: %d bytes allocated, want at most %d", name, n, limit)
		}
	}
	dir := t.TempDir()
	for name, c := range map[string]struct{ text, from, want string }{
		"old.pth":          {"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.", "", "the format of PyTorch before 1.6: load it in PyTorch and save it again"},
		"cut.pth":          {string(released[:len(released)-1]), "", "zip"},
		"w.safetensors":    {string(safetensorsFile("{}", nil)), "model", `from is "model", want none`},
		"none.safetensors": {"", "", "too few for a header"},
	} {
		path := filepath.Join(dir, name)
		put(t, path, []byte(c.text))
		if _, err := OpenFile(path, c.from); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
	if _, err := OpenFile(dir, ""); err == nil {
		t.Error("a directory was opened as a file")
	}
}

// Whatever byte of a released file is changed, or wherever it ends, reading it gives an error or tensors, and does not panic.
func TestDamagedReleasedFile(t *testing.T) {
	for _, name := range []string{"released.pth", "released4.pth"} {
		whole, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(whole); i += 5 {
			damaged := slices.Clone(whole)
			damaged[i] ^= byte(1 << (i % 8))
			for _, b := range [][]byte{damaged, whole[:i]} {
				if entries, err := readReleased(tensorfile.Memory(b), int64(len(b)), ""); err == nil {
					checkEntries(t, entries, int64(len(b)))
				}
			}
		}
	}
}

func FuzzReleased(f *testing.F) {
	for _, name := range []string{"released.pth", "released4.pth"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if entries, err := readReleased(tensorfile.Memory(b), int64(len(b)), ""); err == nil {
			checkEntries(t, entries, int64(len(b)))
		}
	})
}
