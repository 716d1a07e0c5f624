package nn

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/tensorfile"
)

// A sequence that continues from its state, in memory or from a file, with the same Generator or another, has the same tokens and states as
// one without interruption, bit for bit.
func TestContinue(t *testing.T) {
	for _, dt := range []tensor.Dtype{tensor.Float32, tensor.Float64} {
		for _, width := range []int{1, 4} {
			lm := smallLM(dt, width)
			for name, options := range samplings {
				whole := NewSequence(5, prompts[1]...)
				want := must(newGenerator(t, lm, GenerateConfig{Sampling: options, MaxTokens: 12}).Continue(t.Context(), []*Sequence{whole}, nil))[0]
				for _, saved := range []bool{false, true} {
					s, tokens := NewSequence(5, prompts[1]...), []int(nil)
					for _, n := range []int{1, 4, 7} {
						g := newGenerator(t, lm, GenerateConfig{Sampling: options, MaxTokens: n})
						tokens = append(tokens, must(g.Continue(t.Context(), []*Sequence{s}, nil))[0]...)
						if saved {
							s = reload(t, s)
						}
					}
					if !slices.Equal(tokens, want) {
						t.Errorf("%v, d_conv %d, %s, saved %t: %v, want %v", dt, width, name, saved, tokens, want)
					} else if err := differ(s, whole); err != nil {
						t.Errorf("%v, d_conv %d, %s, saved %t: %v", dt, width, name, saved, err)
					}
				}
			}
		}
	}
}

// reload saves a sequence and loads it.
func reload(t *testing.T, s *Sequence) *Sequence {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sequence.safetensors")
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	loaded, err := LoadSequence(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := differ(loaded, s); err != nil {
		t.Errorf("loaded: %v", err)
	}
	return loaded
}

// A sequence with appended tokens gives the same as one whose prompt is all of its tokens: the prompt, the generated and the appended ones.
func TestAppend(t *testing.T) {
	lm := smallLM(tensor.Float64, 4)
	g := newGenerator(t, lm, GenerateConfig{MaxTokens: 5, Piece: 3})
	s := NewSequence(0, 1, 2, 3)
	first := must(g.Continue(t.Context(), []*Sequence{s}, nil))[0]
	if got := s.Pending(); !slices.Equal(got, first[4:]) {
		t.Errorf("pending is %v, want the last of %v", got, first)
	}
	s.Append(4, 5, 6, 7, 8)
	if n := len(s.Pending()); n != 6 {
		t.Errorf("%d tokens are pending, want 6", n)
	}
	got := must(g.Continue(t.Context(), []*Sequence{s}, nil))[0]
	whole := NewSequence(0, slices.Concat([]int{1, 2, 3}, first, []int{4, 5, 6, 7, 8})...)
	if want := must(g.Continue(t.Context(), []*Sequence{whole}, nil))[0]; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if err := values(s).near(values(whole), 1e-12); err != nil {
		t.Error(err)
	}
}

// A clone continues like the original and does not change it. With another seed it gets other tokens.
func TestClone(t *testing.T) {
	lm := smallLM(tensor.Float64, 4)
	g := newGenerator(t, lm, GenerateConfig{Sampling: Sampling{Temperature: 2}, MaxTokens: 10})
	s := NewSequence(3, 1, 2)
	must(g.Continue(t.Context(), []*Sequence{s}, nil))
	kept, same, other := s.Clone(), s.Clone(), s.Clone()
	other.Reseed(77)
	got := must(g.Continue(t.Context(), []*Sequence{same, other}, nil))
	if err := differ(kept, s); err != nil {
		t.Errorf("the original has changed: %v", err)
	}
	want := must(g.Continue(t.Context(), []*Sequence{s}, nil))[0]
	if !slices.Equal(got[0], want) || slices.Equal(got[1], want) {
		t.Errorf("the clones continue with %v, the original with %v", got, want)
	}
}

// A sequence copies the caller's prompt.
func TestPromptIsCopied(t *testing.T) {
	prompt := []int{1, 2, 3}
	s := NewSequence(0, prompt...)
	prompt[0] = 9
	if got := s.Pending(); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("pending is %v", got)
	}
}

// The size of a sequence does not grow with its length.
func TestSequenceSize(t *testing.T) {
	lm := smallLM(tensor.Float32, 4)
	g := newGenerator(t, lm, GenerateConfig{Sampling: Sampling{Temperature: 50}, MaxTokens: 200}) // nearly uniform, so that all tokens are drawn
	s := NewSequence(0, 1)
	var sizes []int
	for range 2 {
		must(g.Continue(t.Context(), []*Sequence{s}, nil))
		var file bytes.Buffer
		if err := s.write(&file); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, file.Len())
	}
	if sizes[0] != sizes[1] || cap(s.pending) > 4 {
		t.Errorf("files of %v bytes, room for %d pending tokens", sizes, cap(s.pending))
	}
}

// A file is replaced as a whole or not at all.
func TestSaveReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	for _, prompt := range [][]int{{1, 2}, {3}} {
		if err := NewSequence(1, prompt...).Save(path); err != nil {
			t.Fatal(err)
		}
		if got := must(LoadSequence(path)).Pending(); !slices.Equal(got, prompt) {
			t.Errorf("loaded %v, want %v", got, prompt)
		}
	}
	if files := must(os.ReadDir(dir)); len(files) != 1 {
		t.Errorf("the folder holds %v", files)
	}
	if err := NewSequence(1, 2).Save(filepath.Join(dir, "none", "s")); err == nil || !strings.HasPrefix(err.Error(), "nn: save sequence: ") {
		t.Errorf("a folder that does not exist: the error is %v", err)
	}
	if err := NewSequence(1, 2).Save(dir); err == nil {
		t.Error("saved over a folder")
	}
	if files := must(os.ReadDir(filepath.Dir(dir))); len(files) != 1 {
		t.Errorf("a failed Save left %v", files)
	}
}

// sequenceFile returns a file that Save has written.
func sequenceFile(t testing.TB) []byte {
	lm := smallLM(tensor.Float32, 2)
	g := must(NewGenerator(lm, GenerateConfig{MaxTokens: 3}))
	defer g.Close()
	s := NewSequence(1, 2, 3)
	must(g.Continue(t.Context(), []*Sequence{s}, nil))
	var file bytes.Buffer
	if err := s.write(&file); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// A file that is cut off at any byte, changed, or of another kind is an error.
func TestLoadSequenceErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	load := func(data []byte) error {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := LoadSequence(path)
		return err
	}
	file := sequenceFile(t)
	if err := load(file); err != nil {
		t.Fatal(err)
	}
	for n := range len(file) {
		if load(file[:n]) == nil {
			t.Fatalf("%d of %d bytes are no error", n, len(file))
		}
	}
	for i := range file { // one bit of any byte
		damaged := bytes.Clone(file)
		damaged[i] ^= 1 << (i % 8)
		f, err := tensorfile.Read(tensorfile.Memory(damaged), int64(len(damaged)))
		if err == nil {
			err = new(Sequence).parse(f)
		}
		if err == nil {
			t.Fatalf("bit %d of byte %d is flipped, and there is no error", i%8, i)
		}
	}
	good := must(tensorfile.Read(tensorfile.Memory(file), int64(len(file))))
	// sealed returns a file with changed contents and their right checksum.
	sealed := func(change func(metadata map[string]string, arrays map[string]*tensorfile.Array)) []byte {
		metadata, arrays := maps.Clone(good.Metadata), map[string]*tensorfile.Array{}
		delete(metadata, "sha256")
		for name, f := range good.ByName() {
			a := &tensorfile.Array{Name: name, Shape: f.Shape}
			if f.Dtype == tensorfile.Int64 {
				a.Data = make([]int64, f.Size/8)
			} else {
				a.Data = make([]float32, f.Size/4)
			}
			if err := tensorfile.Copy([]tensorfile.Job{{From: f, To: a.Data}}); err != nil {
				t.Fatal(err)
			}
			arrays[name] = a
		}
		change(metadata, arrays)
		var all []tensorfile.Array
		for _, name := range slices.Sorted(maps.Keys(arrays)) {
			all = append(all, *arrays[name])
		}
		var out bytes.Buffer
		if err := tensorfile.WriteSealed(&out, metadata, all); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	type (
		notes = map[string]string
		parts = map[string]*tensorfile.Array
	)
	var unsealed bytes.Buffer
	if err := tensorfile.Write(&unsealed, map[string]string{"format": "gomamba sequence 1", "random": good.Metadata["random"]}, nil); err != nil {
		t.Fatal(err)
	}
	if err := load(sealed(func(notes, parts) {})); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		data []byte
		want string
	}{
		{sealed(func(m notes, _ parts) { m["format"] = "gomamba sequence 9" }), `: its format is "gomamba sequence 9", want "gomamba sequence 2"`},
		{sealed(func(m notes, _ parts) { m["random"] = "zzzzzzzz" }), ": random is "},
		{sealed(func(_ notes, p parts) { p["layers.0.scan"].Data = make([]int64, 12*3) }), ": layers.0.scan is of I64, want float32 or float64"},
		{sealed(func(_ notes, p parts) { p["pending"].Data = []float64{1} }), ": pending is of F64 [1], want a vector of int64"},
		{sealed(func(_ notes, p parts) { delete(p, "pending") }), ": pending is missing"},
		{sealed(func(_ notes, p parts) { delete(p, "seen") }), ": seen is missing"},
		{sealed(func(_ notes, p parts) { p["pending"].Data = []int64{-1} }), ": pending[0] is -1, want 0 to 268435455"},
		{sealed(func(_ notes, p parts) { p["pending"].Data = []int64{1 << 40} }), ": pending[0] is 1099511627776, want 0 to 268435455"},
		{unsealed.Bytes(), ": it has no checksum: it was written before checksums existed"},
		{must(os.ReadFile(filepath.Join(tiny, "expected.safetensors"))), ": it has no checksum"},
		{nil, "the file has 0 bytes, too few for a header"},
	} {
		if err := load(c.data); err == nil || !strings.HasPrefix(err.Error(), "nn: load sequence: "+path) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	if _, err := LoadSequence(path + ".none"); err == nil || !strings.HasPrefix(err.Error(), "nn: load sequence: ") {
		t.Errorf("a file that does not exist: the error is %v", err)
	}
}

// Any file is a sequence or an error, and a Generator can continue any sequence that it accepts.
func FuzzLoadSequence(f *testing.F) {
	f.Add(sequenceFile(f))
	lm := smallLM(tensor.Float32, 2)
	g := must(NewGenerator(lm, GenerateConfig{MaxTokens: 1}))
	f.Cleanup(func() { g.Close() })
	f.Fuzz(func(t *testing.T, data []byte) {
		s := new(Sequence)
		f, err := tensorfile.Read(tensorfile.Memory(data), int64(len(data)))
		if err != nil || s.parse(f) != nil {
			return
		}
		_, _ = g.Continue(t.Context(), []*Sequence{s}, nil) // a state with a NaN gives an error
		var file bytes.Buffer
		if err := s.write(&file); err != nil {
			t.Fatal(err)
		}
	})
}
