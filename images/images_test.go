package images

import (
	"bytes"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/image/tiff"
)

// save writes a file into a folder of the test.
func save(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func encoded(t testing.TB, m image.Image, f func(io.Writer, image.Image) error) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := f(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func asTIFF(w io.Writer, m image.Image) error { return tiff.Encode(w, m, nil) }

func asJPEG(w io.Writer, m image.Image) error { return jpeg.Encode(w, m, nil) }

// wantError fails the test if an error does not have some words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error %v, want one with %q", err, w)
		}
	}
}

// Each kind of pixel becomes the numbers that were saved, from PNG and from TIFF.
func TestRead(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	bounds := image.Rect(0, 0, 7, 5)
	gray, gray16, rgba, nrgba64 := image.NewGray(bounds), image.NewGray16(bounds), image.NewRGBA(bounds), image.NewNRGBA64(bounds)
	transparent := image.NewNRGBA(bounds)
	pal := image.NewPaletted(bounds, color.Palette{color.RGBA{0, 0, 0, 255}, color.RGBA{255, 0, 0, 255}, color.RGBA{0, 255, 0, 255}})
	var want8, want16, wantRGB, wantRGB16, wantPalette []float32
	var labels8, labels16, labelsRGB, labelsPalette []int32
	for y := range 5 {
		for x := range 7 {
			v, v16 := uint8(r.IntN(256)), uint16(r.IntN(65536))
			c := color.RGBA{uint8(r.IntN(256)), uint8(r.IntN(256)), uint8(r.IntN(256)), 255}
			c16 := color.NRGBA64{uint16(r.IntN(65536)), uint16(r.IntN(65536)), uint16(r.IntN(65536)), 65535}
			gray.SetGray(x, y, color.Gray{v})
			gray16.SetGray16(x, y, color.Gray16{v16})
			rgba.SetRGBA(x, y, c)
			transparent.SetNRGBA(x, y, color.NRGBA{c.R, c.G, c.B, uint8(1 + r.IntN(255))})
			nrgba64.SetNRGBA64(x, y, c16)
			index := uint8(r.IntN(3))
			pal.SetColorIndex(x, y, index)
			want8, labels8 = append(want8, float32(v)/255), append(labels8, int32(v))
			want16, labels16 = append(want16, float32(v16)/65535), append(labels16, int32(v16))
			wantRGB = append(wantRGB, float32(c.R)/255, float32(c.G)/255, float32(c.B)/255)
			labelsRGB = append(labelsRGB, colored|int32(c.R)<<16|int32(c.G)<<8|int32(c.B))
			wantRGB16 = append(wantRGB16, float32(c16.R)/65535, float32(c16.G)/65535, float32(c16.B)/65535)
			p := [3]float32{}
			if index > 0 {
				p[index-1] = 1
			}
			wantPalette, labelsPalette = append(wantPalette, p[:]...), append(labelsPalette, int32(index))
		}
	}
	dir := t.TempDir()
	for _, c := range []struct {
		name           string
		m              image.Image
		bits, channels int
		pix            []float32
		labels         []int32 // nil: an error
		noTIFF         bool    // premultiplied there
	}{
		{"gray", gray, 8, 1, want8, labels8, false}, {"gray16", gray16, 16, 1, want16, labels16, false}, {"rgba", rgba, 8, 3, wantRGB, labelsRGB, false},
		{"nrgba64", nrgba64, 16, 3, wantRGB16, nil, false}, {"palette", pal, 8, 3, wantPalette, labelsPalette, false}, {"transparent", transparent, 8, 3, wantRGB, labelsRGB, false},
	} {
		for ending, f := range map[string]func(io.Writer, image.Image) error{".png": png.Encode, ".tif": asTIFF} {
			path := save(t, dir, c.name+ending, encoded(t, c.m, f))
			im, err := Read(path)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(im.Size, []int{5, 7}) || im.Channels != c.channels || im.Bits != c.bits || !slices.Equal(im.Pix, c.pix) {
				t.Errorf("%s: size %v, %d channels, %d bits, %v, want %v", path, im.Size, im.Channels, im.Bits, im.Pix, c.pix)
			}
			l, err := ReadLabels(path)
			if c.labels == nil {
				wantError(t, err, path, "16 bits", "want grey")
			} else if err != nil || !slices.Equal(l.Values, c.labels) {
				t.Errorf("%s: labels %v, error %v, want %v", path, l, err, c.labels)
			}
			if c.channels == 3 && ending == ".png" || c.bits == 16 || c.channels == 1 {
				again := filepath.Join(dir, "again.png") // what is written is read as it was
				if err := WritePNG(again, im); err != nil {
					t.Fatal(err)
				}
				if back, err := Read(again); err != nil || !slices.Equal(back.Pix, im.Pix) || back.Bits != im.Bits {
					t.Errorf("%s: written and read: %v, want %v", path, err, im.Pix)
				}
				if l != nil && err == nil {
					if err := WriteLabels(again, l); err != nil {
						t.Fatal(err)
					}
					if back, err := ReadLabels(again); err != nil || !slices.Equal(back.Values, l.Values) {
						t.Errorf("%s: labels written and read: %v, %v, want %v", path, back, err, l.Values)
					}
				}
			}
		}
	}
	path := save(t, dir, "photo.jpg", encoded(t, gray, asJPEG))
	if im, err := Read(path); err != nil || im.Channels != 1 || !slices.Equal(im.Size, []int{5, 7}) {
		t.Errorf("%v, error %v", im, err)
	}
	_, err := ReadLabels(path)
	wantError(t, err, path, "JPEG", "want PNG")
}

// Pictures have the colours of the classes; an overlay keeps the background as it is.
func TestPictures(t *testing.T) {
	l := &Labels{Size: []int{1, 3}, Values: []int32{0, 1, 2}}
	picture, err := l.Picture(3)
	if err != nil || !slices.Equal(picture.Pix[:3], []float32{0, 0, 0}) || [3]float32(picture.Pix[6:]) != Color(2) {
		t.Errorf("%v, error %v", picture, err)
	}
	im := &Image{Size: []int{1, 3}, Channels: 1, Pix: []float32{0.2, 0.4, 0.6}}
	for background, want := range map[int][3][3]float32{0: {{0.2, 0.2, 0.2}, Color(1), Color(2)}, 1: {Color(1), {0.4, 0.4, 0.4}, Color(2)}, -1: {{}, Color(1), Color(2)}} {
		o, err := Overlay(im, l, background, 1)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range slices.Concat(want[0][:], want[1][:], want[2][:]) {
			if math.Abs(float64(o.Pix[i]-v)) > 1e-6 {
				t.Errorf("background %d: %v, want %v", background, o.Pix, want)
			}
		}
	}
	row, err := Beside(2, im, picture)
	if err != nil || !slices.Equal(row.Size, []int{1, 8}) || row.Channels != 3 || row.Pix[3*3] != 1 || row.Pix[0] != 0.2 {
		t.Errorf("%v, error %v", row, err)
	}
	_, err = Overlay(im, &Labels{Size: []int{3, 1}, Values: l.Values}, 0, 1)
	wantError(t, err, "1 × 3", "3 × 1")
}

// A label has at most MaxClasses values, and classes go back to values.
func TestClasses(t *testing.T) {
	l := &Labels{Size: []int{2, 3}, Values: []int32{255, 0, 7000, 7000, 0, 255}}
	classes, err := ClassesOf(l)
	if err != nil || !slices.Equal(classes, Classes{0, 255, 7000}) {
		t.Fatalf("classes %v, error %v", classes, err)
	}
	index, err := classes.Index(l)
	if err != nil || !slices.Equal(index.Values, []int32{1, 0, 2, 2, 0, 1}) {
		t.Fatalf("%v, error %v", index, err)
	}
	if back, err := classes.Values(index); err != nil || !slices.Equal(back.Values, l.Values) {
		t.Errorf("%v, error %v, want %v", back, err, l.Values)
	}
	_, err = Classes{0, 255}.Index(l)
	wantError(t, err, "7000", "[0 255]")
	many := &Labels{Size: []int{40, 25}, Values: make([]int32, 1000)}
	for i := range many.Values {
		many.Values[i] = int32(i)
	}
	_, err = ClassesOf(many)
	wantError(t, err, "more than 256 different values", "at most 256")
}

// grayFile returns a PNG of one grey.
func grayFile(t testing.TB, height, width int, level uint8) []byte {
	m := image.NewGray(image.Rect(0, 0, width, height))
	for i := range m.Pix {
		m.Pix[i] = level
	}
	return encoded(t, m, png.Encode)
}

// Files of a folder belong together by their names, in the order of their numbers. What does not fit is named.
func TestPairs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"image/10.png", "image/2.png", "image/b.png", "label/b.png", "label/2.png", "label/10.png"} {
		save(t, dir, name, grayFile(t, 4, 6, uint8(len(name)-11)))
	}
	save(t, dir, "image/.hidden", nil)
	pairs, err := Pairs(dir)
	if err != nil || len(pairs) != 3 || pairs[0].Name != "2" || pairs[1].Name != "10" || pairs[2].Name != "b" {
		t.Fatalf("%v, error %v", pairs, err)
	}
	samples, classes, err := ReadPairs(pairs, nil)
	if err != nil || !slices.Equal(classes, Classes{0, 1}) || samples[1].Labels.Values[0] != 1 || samples[0].Labels.Values[0] != 0 {
		t.Fatalf("classes %v, error %v", classes, err)
	}
	_, _, err = ReadPairs(pairs, Classes{0, 2})
	wantError(t, err, "10.png", "the value 1")

	other := save(t, dir, "label/2.png", grayFile(t, 4, 5, 1))
	_, _, err = ReadPairs(pairs, nil)
	wantError(t, err, other, "4 × 6", "4 × 5")
	two := save(t, dir, "label/2.tif", nil)
	_, err = Pairs(dir)
	wantError(t, err, two, other, "one name")
	_ = os.Remove(two)
	_ = os.Remove(other)
	_, err = Pairs(dir)
	wantError(t, err, "image/2.png has no label")
	_ = os.Rename(filepath.Join(dir, "image/2.png"), other)
	_, err = Pairs(dir)
	wantError(t, err, "label/2.png has no image")
	_, err = Pairs(t.TempDir())
	wantError(t, err, "image")
}

func TestByClass(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"dog/1.png", "cat/1.png", "cat/2.png"} {
		save(t, dir, name, grayFile(t, 1, 1, 0))
	}
	names, paths, class, err := ByClass(dir)
	if err != nil || !slices.Equal(names, []string{"cat", "dog"}) || !slices.Equal(class, []int{0, 0, 1}) || !strings.HasSuffix(paths[2], "1.png") {
		t.Errorf("%v %v %v, error %v", names, paths, class, err)
	}
	_ = os.MkdirAll(filepath.Join(dir, "empty"), 0o777)
	_, _, _, err = ByClass(dir)
	wantError(t, err, "empty has no files")
}

func random(size []int, channels int, seed uint64) *Image {
	r := rand.New(rand.NewPCG(seed, 0))
	im, err := New(size, channels)
	if err != nil {
		panic(err)
	}
	for i := range im.Pix {
		im.Pix[i] = float32(r.NormFloat64())
	}
	return im
}

// pointwise is a model of two classes whose scores depend on the cell's values alone. It uses its memory again, as a model may.
func pointwise(channels int) Model {
	var scores []float32
	return func(windows []float32, n int) ([]float32, error) {
		scores = scores[:0]
		for i := 0; i < len(windows); i += channels {
			scores = append(scores, -windows[i], float32(math.Copysign(0, -1))) // -0 must stay -0
		}
		return scores, nil
	}
}

// local is a model that sees where in the window a cell is.
func local(channels int) Model {
	return func(windows []float32, n int) ([]float32, error) {
		var scores []float32
		for i := 0; i < len(windows); i += channels {
			scores = append(scores, windows[i]*float32(i%7), windows[i]-float32(i%(len(windows)/n)%5))
		}
		return scores, nil
	}
}

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

// Where one window covers all, the result is the model's, bit for bit; so is that of the whole image at once.
func TestOneWindowIsWhole(t *testing.T) {
	for _, sizes := range [][]int{{9, 12}, {1, 1}, {4, 9, 5}} {
		for _, model := range []Model{pointwise(2), local(2)} {
			im := random(sizes, 2, 1)
			want, _ := model(im.Pix, 1)
			want = slices.Clone(want)
			for _, w := range []Windows{{Size: sizes}, {Size: sizes, Overlap: 0.5, Batch: 3}, {Whole: true}} {
				got, err := w.Scores(im, 2, model)
				if err != nil {
					t.Fatal(err)
				}
				if !sameBits(got.Pix, want) || !slices.Equal(got.Size, sizes) || got.Channels != 2 {
					t.Errorf("%v: %v: %v, want %v", sizes, w, got.Pix, want)
				}
			}
		}
	}
}

// Windows over a model that looks at each cell alone give that cell's score, up to rounding, for all sizes, overlaps, batches and flips.
func TestWindows(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 60 {
		axes := 2 + r.IntN(2)
		sizes, window := make([]int, axes), make([]int, axes)
		for a := range axes {
			sizes[a], window[a] = 1+r.IntN(20), 1+r.IntN(12)
		}
		im := random(sizes, 2, r.Uint64())
		im.Spacing = []float64{1, 2, 3}[:axes]
		want, _ := pointwise(2)(im.Pix, 1)
		w := Windows{Size: window, Overlap: 0.9 * r.Float64(), Batch: r.IntN(5), Flips: r.IntN(2) == 1}
		got, err := w.Scores(im, 2, pointwise(2))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Spacing, im.Spacing) {
			t.Errorf("spacing %v, want %v", got.Spacing, im.Spacing)
		}
		for i, v := range got.Pix {
			if d := math.Abs(float64(v - want[i])); !(d <= 1e-5) {
				t.Fatalf("%v in windows %+v: score %d is %v, want %v", sizes, w, i, v, want[i])
			}
		}
		l, err := w.Labels(im, 2, pointwise(2))
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range l.Values {
			if scores := got.Pix[2*i : 2*i+2]; (v == 1) != (scores[1] > scores[0]) {
				t.Fatalf("cell %d has class %d, scores %v", i, v, scores)
			}
		}
	}
}

// The weights of the windows at a cell add up to 1, are largest in the middle of a window, and no step between windows is longer than the overlap allows.
func TestWeights(t *testing.T) {
	for _, c := range []struct{ n, window int }{{100, 16}, {17, 16}, {5, 9}, {64, 1}} {
		s := starts(c.n, c.window, 0.5)
		sum := make([]float64, c.n)
		for k, row := range weights(c.n, c.window, s) {
			if k > 0 && s[k]-s[k-1] > max(1, c.window/2) {
				t.Errorf("%v: windows begin at %v", c, s)
			}
			for i, w := range row {
				if at := s[k] + i; at >= 0 && at < c.n {
					sum[at] += float64(w)
				}
			}
		}
		for i, v := range sum {
			if math.Abs(v-1) > 1e-6 {
				t.Errorf("%v: the weights at %d add up to %v", c, i, v)
			}
		}
	}
}

func TestWholeNeedsMemory(t *testing.T) {
	im := random([]int{64, 64}, 1, 1)
	_, err := Windows{Whole: true, BytesPerCell: 1 << 20, Memory: 1 << 30}.Scores(im, 2, pointwise(1))
	wantError(t, err, "64 × 64 at once", "4 GiB", "1048576 bytes for each cell", "memory of 1 GiB", "use windows")
	if _, err := (Windows{Whole: true, BytesPerCell: 1 << 18, Memory: 1 << 30}).Scores(im, 2, pointwise(1)); err != nil {
		t.Error(err)
	}
}

// everything is an augmentation with all that there is.
var everything = Augment{Flips: true, Turns: true, Rotate: 30, Tilt: 10, Scale: 0.3, Elastic: 2, Control: 5, Brightness: 0.3, Contrast: 0.3, Gamma: 0.4, Noise: 0.2}

func someSamples(sizes []int, n int) (s Samples) {
	for i := range n {
		im := random(sizes, 2, uint64(i))
		l := &Labels{Size: sizes, Values: make([]int32, len(im.Pix)/2)}
		for j := range l.Values {
			if im.Pix[2*j] > 1 {
				l.Values[j] = 1
			}
		}
		s = append(s, &Sample{Name: string(rune('a' + i)), Image: im, Labels: l, Class: i})
	}
	return s
}

// A batch has the same bits for any number of workers, in any order, and from a new Batches, as after a run was resumed.
func TestBatchesAreReproducible(t *testing.T) {
	cases := []struct{ image, patch []int }{{[]int{20, 24}, []int{16, 12}}, {[]int{6, 12, 10}, []int{4, 8, 8}}}
	if testing.Short() {
		cases = cases[:1]
	}
	for _, c := range cases {
		samples := someSamples(c.image, 5)
		make := func(seed uint64, workers int) *Batches {
			b, err := NewBatches(samples, Patches{Size: c.patch, Augment: everything, Seed: seed, Foreground: 0.5}, 3, workers)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		first, other := make(7, 1), make(8, 0)
		var all []*Batch
		for i := range 6 {
			b, err := first.At(i)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b)
			if o, err := other.At(i); err != nil || sameBits(o.Pix, b.Pix) {
				t.Errorf("batch %d of another seed is the same, error %v", i, err)
			}
		}
		for _, workers := range []int{1, 2, 8} {
			again := make(7, workers)
			for _, i := range []int{5, 0, 3, 4} {
				b, err := again.At(i)
				if err != nil {
					t.Fatal(err)
				}
				if !sameBits(b.Pix, all[i].Pix) || !slices.Equal(b.Labels, all[i].Labels) || !slices.Equal(b.Names, all[i].Names) || !slices.Equal(b.Classes, all[i].Classes) {
					t.Errorf("%v: batch %d by %d workers differs", c.patch, i, workers)
				}
			}
		}
		var names string // 15 patches: three epochs
		for _, b := range all[:5] {
			names += strings.Join(b.Names, "")
		}
		for epoch := range 3 {
			if s := []byte(names[5*epoch : 5*epoch+5]); string(slices.Sorted(slices.Values(s))) != "abcde" {
				t.Errorf("epoch %d takes %s, want each sample once", epoch, s)
			}
		}
	}
}
