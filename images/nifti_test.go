package images

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// golden is what nibabel reads from a file (testdata/nifti/make.py).
type golden struct {
	Shape  []int
	Zooms  []float64
	Affine [][]float64
	Values []string
}

func goldens(t testing.TB) (all map[string]golden) {
	t.Helper()
	text, err := os.ReadFile("testdata/nifti/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 30 {
		t.Fatalf("%d files, want 30", len(all))
	}
	return all
}

// Every type in both byte orders, scaled, compressed, of two to four axes, with sform, qform or none, is read as nibabel reads it.
func TestNIfTIAgainstNibabel(t *testing.T) {
	for name, want := range goldens(t) {
		im, err := Read(filepath.Join("testdata/nifti", name))
		if err != nil {
			t.Error(err)
			continue
		}
		axes := min(len(want.Shape), 3)
		channels := 1
		if len(want.Shape) == 4 {
			channels = want.Shape[3]
		}
		if !slices.Equal(im.Size, reversed(want.Shape[:axes])) || im.Channels != channels || im.Bits != 0 {
			t.Errorf("%s: size %v, %d channels, want the shape %v", name, im.Size, im.Channels, want.Shape)
		}
		for a, s := range want.Zooms {
			if math.Abs(im.Spacing[axes-1-a]-s) > 1e-6 {
				t.Errorf("%s: spacing %v, want %v from the last axis on", name, im.Spacing, want.Zooms)
			}
		}
		if (im.Affine == nil) != (want.Affine == nil) {
			t.Fatalf("%s: affine %v, want %v", name, im.Affine, want.Affine)
		}
		for r, row := range want.Affine {
			for c, x := range row {
				if math.Abs(im.Affine[r][c]-x) > 2e-6*math.Abs(x)+1e-6 {
					t.Errorf("%s: affine %v, want %v", name, im.Affine, want.Affine)
				}
			}
		}
		n := len(im.Pix) / channels
		for i, s := range want.Values {
			x, err := strconv.ParseFloat(s, 64)
			if got := im.Pix[i%n*channels+i/n]; err != nil || got != float32(x) {
				t.Fatalf("%s: value %d is %v, want %s", name, i, got, s)
			}
		}
	}
}

// A result on the grid of a file has that file's spacing, forms, units and description; values come back as they were written.
func TestNIfTIOnTheSameGrid(t *testing.T) {
	dir := t.TempDir()
	for name, path := range map[string]string{"float32-big.nii": "a.nii.gz", "four.nii.gz": "a.nii", "two.nii": "a.nii", "qform-left.nii": "a.nii.gz", "noform.nii": "a.nii"} {
		im, err := Read(filepath.Join("testdata/nifti", name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, path)
		if err := WriteNIfTI(path, im); err != nil {
			t.Fatal(err)
		}
		back, err := ReadNIfTI(path)
		if err != nil {
			t.Fatal(err)
		}
		if !sameBits(back.Pix, im.Pix) || !slices.Equal(back.Size, im.Size) || back.Channels != im.Channels || !slices.Equal(back.Spacing, im.Spacing) {
			t.Errorf("%s: %v, want %v", name, back, im)
		}
		if a, b := im.nifti, back.nifti; a.SForm != b.SForm || a.QForm != b.QForm || a.Rows != b.Rows || a.Quaternion != b.Quaternion || a.QOffset != b.QOffset || a.Pixdim != b.Pixdim || a.Units != b.Units || a.Description != b.Description {
			t.Errorf("%s: header %+v, want the geometry of %+v", name, b, a)
		}
		if name != "qform-left.nii" {
			continue
		}
		for _, values := range [][]int32{{0, 255}, {-3, 300}, {0, 1 << 25}} {
			l := &Labels{Size: im.Size, Grid: im.Grid, Values: make([]int32, 24)}
			copy(l.Values, values)
			path := filepath.Join(dir, "labels.nii.gz")
			if err := WriteLabels(path, l); err != nil {
				t.Fatal(err)
			}
			back, err := ReadLabels(path)
			if err != nil || !slices.Equal(back.Values, l.Values) || back.nifti.Rows != im.nifti.Rows {
				t.Errorf("%s: labels %v, error %v, want %v", name, back, err, l.Values)
			}
		}
	}
	// A grid that was changed, and one that no file had, become an sform.
	im := random([]int{2, 3, 4}, 1, 1)
	im.Spacing, im.Affine = []float64{3, 2, 1}, &[3][4]float64{{1, 0, 0, 5}, {0, 2, 0, 6}, {0, 0, 3, 7}}
	q, err := Read("testdata/nifti/qform.nii")
	if err != nil {
		t.Fatal(err)
	}
	q.Affine = im.Affine
	for _, im := range []*Image{im, q} {
		path := filepath.Join(dir, "own.nii")
		if err := WriteNIfTI(path, im); err != nil {
			t.Fatal(err)
		}
		if back, err := Read(path); err != nil || *back.Affine != *im.Affine || !slices.Equal(back.Spacing, im.Spacing) {
			t.Errorf("%v, error %v", back, err)
		}
	}
	wantError(t, WriteNIfTI(filepath.Join(dir, "x.png"), im), "x.png", ".nii.gz")
	wantError(t, WriteNIfTI(filepath.Join(dir, "x.nii"), random([]int{1, 40000}, 1, 1)), "x.nii", "1 × 40000", "32767")
}

// Headers that are absurd, or of what is not read, are errors that name the file, what was found, and what is allowed.
func TestNIfTIHostile(t *testing.T) {
	dir := t.TempDir()
	file, err := os.ReadFile("testdata/nifti/int16.nii")
	if err != nil {
		t.Fatal(err)
	}
	set := func(at int, value any) []byte {
		var b bytes.Buffer
		if err := binary.Write(&b, binary.LittleEndian, value); err != nil {
			t.Fatal(err)
		}
		f := slices.Clone(file)
		copy(f[at:], b.Bytes())
		return f
	}
	nan := float32(math.NaN())
	for _, c := range []struct {
		name string
		data []byte
		want []string
	}{
		{"empty", nil, []string{"is empty"}},
		{"short", file[:100], []string{"100 bytes", "348"}},
		{"truncated", file[:len(file)-1], []string{"3 × 4 × 2", "48 bytes", "399 bytes", "truncated"}},
		{"magic", set(344, [4]byte{'x', 'y', 'z'}), []string{"magic", `"n+1\x00"`}},
		{"pair", set(344, [4]byte{'n', 'i', '1'}), []string{".hdr and .img"}},
		{"no axes", set(40, int16(0)), []string{"dim[0] is 0"}},
		{"many axes", set(40, int16(200)), []string{"dim[0] is 200", "2 to 4"}},
		{"five axes", set(40, [6]int16{5, 3, 2, 2, 1, 2}), []string{"5 axes", "at most four"}},
		{"one axis", set(40, [2]int16{1, 3}), []string{"one axis"}},
		{"negative", set(42, int16(-3)), []string{"dim[1] is -3"}},
		{"zero", set(46, int16(0)), []string{"dim[3] is 0"}},
		{"huge", set(40, [8]int16{4, 32767, 32767, 32767, 32767}), []string{"32767 × 32767 × 32767 × 32767", "memory"}},
		{"large", set(40, [4]int16{3, 500, 500, 500}), []string{"500 × 500 × 500", "truncated"}},
		{"complex", set(70, [2]int16{32, 64}), []string{"type 32", "complex"}},
		{"rgb", set(70, [2]int16{128, 24}), []string{"type 128", "colours"}},
		{"type", set(70, int16(77)), []string{"type 77"}},
		{"bits", set(72, int16(8)), []string{"bitpix is 8", "16 bits"}},
		{"offset before", set(108, float32(100)), []string{"vox_offset is 100", "352"}},
		{"offset NaN", set(108, nan), []string{"vox_offset is NaN"}},
		{"offset after", set(108, float32(1<<20)), []string{"truncated"}},
		{"offset huge", set(108, float32(1e30)), []string{"vox_offset is 1e+30"}},
		{"spacing", set(80, float32(math.Inf(1))), []string{"pixdim[1] is +Inf"}},
		{"sform", set(280, nan), []string{"sform", "NaN"}},
		{"intercept", set(112, [2]float32{2, nan}), []string{"scl_inter is NaN"}},
	} {
		_, err := Read(save(t, dir, c.name+".nii", c.data))
		wantError(t, err, append(c.want, c.name+".nii")...)
		if c.name == "empty" {
			continue
		}
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(c.data)
		_ = z.Close()
		if _, err = Read(save(t, dir, c.name+".nii.gz", b.Bytes())); err == nil {
			t.Errorf("%s, compressed: no error", c.name)
		}
	}
	damaged, err := os.ReadFile("testdata/nifti/scaled.nii.gz")
	if err != nil {
		t.Fatal(err)
	}
	damaged[len(damaged)-6] ^= 1
	_, err = Read(save(t, dir, "damaged.nii.gz", damaged))
	wantError(t, err, "damaged.nii.gz", "checksum")
	quaternion := set(252, [2]int16{1, 0})
	copy(quaternion[256:], []byte{0, 0, 0, 64})
	_, err = Read(save(t, dir, "q.nii", quaternion))
	wantError(t, err, "quaternion", "(2, ")
	_, err = Read(save(t, dir, "cut.nii.gz", []byte("\x1f\x8b\x08")))
	wantError(t, err, "cut.nii.gz", "compressed")
	_, err = ReadLabels("testdata/nifti/float32.nii")
	wantError(t, err, "float32.nii", "index [0 0 0]", "an integer")
	_, err = ReadLabels("testdata/nifti/four.nii.gz")
	wantError(t, err, "four.nii.gz", "4 steps")
	_, err = ReadNIfTI(save(t, dir, "x.png", grayFile(t, 2, 2, 1)))
	wantError(t, err, "x.png", "no NIfTI-1")
}

// Whatever a file has, reading it returns an image that can be written and read again, or an error.
func FuzzNIfTI(f *testing.F) {
	for name := range goldens(f) {
		data, err := os.ReadFile(filepath.Join("testdata/nifti", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = readNIfTILabels(data)
		im, err := readNIfTI(data)
		if err != nil {
			return
		}
		if err := im.check(); err != nil {
			t.Fatal(err)
		}
		n := len(im.Pix) / im.Channels
		h, err := newHeader(im.Size, im.Channels, im.Grid, 16, 4)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		err = h.write(&b, len(im.Pix), 4, func(b []byte, i int) {
			binary.LittleEndian.PutUint32(b, math.Float32bits(im.Pix[i%n*im.Channels+i/n]))
		})
		if err != nil {
			t.Fatal(err)
		}
		back, err := readNIfTI(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(back.Pix, im.Pix, func(x, y float32) bool { return x == y || x != x && y != y }) || !slices.Equal(back.Spacing, im.Spacing) || (back.Affine == nil) != (im.Affine == nil) {
			t.Fatalf("%v, want %v", back, im)
		}
	})
}
