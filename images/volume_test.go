package images

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Resampling to the same size changes nothing, constants stay, ramps stay ramps away from borders, and corners stay where they are in space.
func TestResample(t *testing.T) {
	im := random([]int{4, 5, 6}, 2, 1)
	same, err := im.Resample(im.Size)
	if err != nil || !sameBits(same.Pix, im.Pix) {
		t.Errorf("%v, error %v", same, err)
	}
	s := positions(8, 12, 10)
	s.Image.Spacing, s.Image.Affine = []float64{5, 1, 2}, &[3][4]float64{{2, 0.5, 0, 10}, {0, 1, 0.3, 20}, {0.1, 0, 5, 30}}
	for _, to := range [][]int{{16, 12, 10}, {4, 6, 5}, {8, 31, 7}, {1, 1, 1}} {
		out, err := s.Image.Resample(to)
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(out.Pix) / 3 {
			at := [3]int{i / to[2] / to[1], i / to[2] % to[1], i % to[2]}
			for a := range 3 {
				n := s.Image.Size[a]
				step := float64(n) / float64(to[a])
				want := (float64(at[a])+0.5)*step - 0.5
				if want < math.Max(step, 1) || want > float64(n)-1-math.Max(step, 1) {
					want = min(max(want, 0), float64(n)-1) // near a border cells are missing on one side
					if math.Abs(float64(out.Pix[3*i+a])-want) > step {
						t.Errorf("%v: cell %v shows %v of axis %d, want about %v", to, at, out.Pix[3*i+a], a, want)
					}
				} else if math.Abs(float64(out.Pix[3*i+a])-want) > 1e-4*float64(n) && n%to[a] == 0 || math.Abs(float64(out.Pix[3*i+a])-want) > 0.5 {
					t.Errorf("%v: cell %v shows %v of axis %d, want %v", to, at, out.Pix[3*i+a], a, want)
				}
			}
		}
		place := func(im *Image, x, y, z float64) (p [3]float64) {
			for r, row := range im.Affine {
				p[r] = row[0]*x + row[1]*y + row[2]*z + row[3]
			}
			return p
		}
		for _, corner := range [][3]float64{{0, 0, 0}, {1, 1, 1}, {1, 0, 1}} {
			at := func(im *Image) [3]float64 {
				return place(im, corner[0]*float64(im.Size[2])-0.5, corner[1]*float64(im.Size[1])-0.5, corner[2]*float64(im.Size[0])-0.5)
			}
			if a, b := at(s.Image), at(out); math.Hypot(math.Hypot(a[0]-b[0], a[1]-b[1]), a[2]-b[2]) > 1e-9 {
				t.Errorf("%v: the corner %v moved from %v to %v", to, corner, a, b)
			}
		}
		for a, n := range to {
			if got, want := out.Spacing[a]*float64(n), s.Image.Spacing[a]*float64(s.Image.Size[a]); math.Abs(got-want) > 1e-9 {
				t.Errorf("%v: axis %d is %v long, want %v", to, a, got, want)
			}
		}
	}
	sizes, err := s.Image.SizeAt(s.Image.Size, []float64{2, 2, 2})
	if err != nil || !slices.Equal(sizes, []int{20, 6, 10}) {
		t.Errorf("size %v, error %v", sizes, err)
	}
	// Labels that are blocks come back from a finer grid, and so do scores.
	l := &Labels{Size: []int{2, 3}, Values: []int32{0, 1, 2, 2, 0, 1}}
	fine, err := l.Resample([]int{8, 9})
	if err != nil || fine.Values[3*9+4] != 1 || fine.Values[4*9] != 2 {
		t.Fatalf("%v, error %v", fine, err)
	}
	grid, err := New([]int{2, 3}, 1)
	if err != nil {
		t.Fatal(err)
	}
	grid.Spacing = []float64{7, 7}
	back, err := fine.Like(grid)
	if err != nil || !slices.Equal(back.Values, l.Values) || back.Spacing[0] != 7 {
		t.Errorf("%v, error %v, want %v", back, err, l.Values)
	}
	scores, err := New([]int{8, 9}, 3)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range fine.Values {
		scores.Pix[3*i+int(v)] = 1
	}
	if scores, err = scores.Like(grid); err != nil {
		t.Fatal(err)
	}
	if back, err = scores.Argmax(); err != nil || !slices.Equal(back.Values, l.Values) || back.Spacing[0] != 7 {
		t.Errorf("%v, error %v, want %v", back, err, l.Values)
	}
}

// A volume is normalized by its own values, or by the foreground of a data set, whose outliers are clipped.
func TestNormalization(t *testing.T) {
	im := random([]int{50, 40}, 2, 3)
	n, err := MeasureImage(im)
	if err != nil {
		t.Fatal(err)
	}
	out, err := n.Apply(im)
	if err != nil {
		t.Fatal(err)
	}
	for c := range 2 {
		if mean, deviation, _, _ := out.statistics(c); math.Abs(mean) > 1e-6 || math.Abs(deviation-1) > 1e-6 {
			t.Errorf("channel %d: mean %v, deviation %v", c, mean, deviation)
		}
	}
	im.Pix[5] = float32(math.NaN())
	_, err = MeasureImage(im)
	wantError(t, err, "NaN", "in cell [")
	_, err = (Normalization{{High: 1, Deviation: 1}, {High: 1, Deviation: 1}}).Apply(im)
	wantError(t, err, "NaN", "in cell [")

	s := positions(1, 1001)
	s.Labels.Values = make([]int32, 1001)
	for i := range 1001 {
		s.Image.Pix[3*i] = -1000
		if i > 0 {
			s.Labels.Values[i], s.Image.Pix[3*i] = 1+int32(i%2), float32(i-1)
		}
	}
	n, err = MeasureForeground(Samples{s}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if i := n[0]; math.Abs(i.Mean-499.5) > 1e-9 || math.Abs(i.Low-4.995) > 1e-4 || math.Abs(i.High-994.005) > 1e-4 || math.Abs(i.Deviation-288.675) > 1e-3 {
		t.Errorf("%+v", i)
	}
	if n[1].Deviation != 1 {
		t.Errorf("a channel of one value has deviation %v, want 1", n[1].Deviation)
	}
	clear(s.Labels.Values)
	_, err = MeasureForeground(Samples{s}, 0)
	wantError(t, err, "1 sample", "class is not 0")
}

func TestSlice(t *testing.T) {
	s := positions(3, 4, 5)
	s.Image.Spacing = []float64{3, 2, 1}
	im, err := s.Image.Slice(2)
	if err != nil || !slices.Equal(im.Size, []int{4, 5}) || im.Pix[0] != 2 || !slices.Equal(im.Spacing, []float64{2, 1}) {
		t.Errorf("%v, error %v", im, err)
	}
	l, err := s.Labels.Slice(1)
	if err != nil || l.Values[0] != 20 || len(l.Values) != 20 {
		t.Errorf("%v, error %v", l, err)
	}
	_, err = s.Image.Slice(3)
	wantError(t, err, "slice 3 of 3 × 4 × 5")
}

// A data set of the Decathlon is read from its dataset.json; a source of files keeps what fits into memory and reads the rest again.
func TestDecathlon(t *testing.T) {
	dir := t.TempDir()
	const text = `{"name": "Toy", "description": "x", "tensorImageSize": "4D", "modality": {"0": "FLAIR", "1": "CT"}, "labels": {"0": "background", "2": "tumour", "1": "liver"}, "numTraining": 2, "numTest": 1,
		"training": [{"image": "./imagesTr/a_10.nii.gz", "label": "./labelsTr/a_10.nii.gz"}, {"image": "./imagesTr/a_2.nii.gz", "label": "./labelsTr/a_2.nii.gz"}], "test": ["./imagesTs/a_3.nii.gz", "./imagesTs/none.nii.gz"]}`
	save(t, dir, "dataset.json", []byte(text))
	_, err := Decathlon(dir)
	wantError(t, err, "dataset.json", filepath.Join("imagesTr", "a_10.nii.gz"))
	for _, folder := range []string{"imagesTr", "labelsTr", "imagesTs"} {
		_ = os.Mkdir(filepath.Join(dir, folder), 0o777)
	}
	im := random([]int{3, 4, 5}, 2, 1)
	l := &Labels{Size: im.Size, Values: make([]int32, 60)}
	l.Values[7] = 2
	for name, labels := range map[string]bool{"imagesTr/a_10.nii.gz": false, "imagesTr/a_2.nii.gz": false, "imagesTs/a_3.nii.gz": false, "labelsTr/a_10.nii.gz": true, "labelsTr/a_2.nii.gz": true} {
		if path := filepath.Join(dir, name); labels {
			err = WriteLabels(path, l)
		} else {
			err = WriteNIfTI(path, im)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	d, err := Decathlon(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d.Name != "Toy" || !slices.Equal(d.Modality, []string{"FLAIR", "CT"}) || !slices.Equal(d.Classes, Classes{0, 1, 2}) || !slices.Equal(d.Labels, []string{"background", "liver", "tumour"}) ||
		len(d.Training) != 2 || d.Training[0].Name != "a_10" || len(d.Test) != 1 {
		t.Errorf("%+v", d)
	}
	reads := 0
	source, err := NewFiles(d.Training, d.Classes, 1000, func(s *Sample) (*Sample, error) { reads++; return s, nil }) // 720 bytes each
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 0, 1, 1, 0} {
		s, err := source.Load(i)
		if err != nil || s.Name != d.Training[i].Name || !sameBits(s.Image.Pix, im.Pix) || !slices.Equal(s.Labels.Values, l.Values) {
			t.Fatalf("%v, error %v", s, err)
		}
	}
	if reads != 3 {
		t.Errorf("%d files were read, want 3", reads)
	}
	for what, text := range map[string]string{
		"outside of": strings.Replace(text, "./imagesTr/a_2", "../imagesTr/a_2", 1), `"x", want an integer`: strings.Replace(text, `"2": "tumour"`, `"x": "tumour"`, 1),
		"none for channel 1": strings.Replace(text, `"1": "CT"`, `"2": "CT"`, 1), "no images": `{"labels": {"0": "a", "1": "b"}}`, "unexpected end": text[:50], "a value twice": strings.Replace(text, `"2": "tumour"`, `"01": "tumour"`, 1),
	} {
		save(t, dir, "dataset.json", []byte(text))
		_, err := Decathlon(dir)
		if what == "outside of" {
			what = "inside of the folder"
		}
		wantError(t, err, "dataset.json", what)
	}
}
