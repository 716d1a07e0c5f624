package images

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/gomamba/mamba/internal/benchtest"
)

// positions is a sample whose image has the place of each cell in its channels, and whose labels number the cells.
func positions(sizes ...int) *Sample {
	im, err := New(sizes, 3)
	if err != nil {
		panic(err)
	}
	l := &Labels{Size: sizes, Values: make([]int32, len(im.Pix)/3)}
	for i := range l.Values {
		l.Values[i] = int32(i)
		x, rest := i%sizes[len(sizes)-1], i/sizes[len(sizes)-1]
		y, z := rest%sizes[len(sizes)-2], rest/sizes[len(sizes)-2]
		im.Pix[3*i], im.Pix[3*i+1], im.Pix[3*i+2] = float32(z), float32(y), float32(x)
	}
	return &Sample{Image: im, Labels: l}
}

// Flips and turns move cells and change no value: the labels number the cells that the image shows, neighbours stay neighbours, and all eight positions
// of a square occur.
func TestFlipsAndTurns(t *testing.T) {
	for _, c := range []struct{ image, patch []int }{{[]int{9, 14}, []int{5, 5}}, {[]int{9, 14}, []int{4, 7}}, {[]int{6, 9, 8}, []int{3, 4, 4}}, {[]int{5, 5}, []int{5, 5}}} {
		s := positions(c.image...)
		seen := map[[2]int32]bool{}
		for index := range uint64(100) {
			p, err := Patches{Size: c.patch, Augment: Augment{Flips: true, Turns: true}, Seed: 3}.Draw(s, index)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range p.Labels.Values {
				if want := s.Image.Pix[3*v : 3*v+3]; !slices.Equal(p.Image.Pix[3*i:3*i+3], want) {
					t.Fatalf("%v: cell %d has the label of %v, but the image of %v", c, i, want, p.Image.Pix[3*i:3*i+3])
				}
			}
			width := c.patch[len(c.patch)-1]
			seen[[2]int32{p.Labels.Values[1] - p.Labels.Values[0], p.Labels.Values[width] - p.Labels.Values[0]}] = true
		}
		if len(seen) != 8 {
			t.Errorf("%v: %d positions occur, want 8: %v", c, len(seen), seen)
		}
	}
}

// Rotation, scaling and elastic deformation show image and labels at the same places: labels are those of the nearest cell.
func TestGeometryOfImageAndLabels(t *testing.T) {
	for _, c := range []struct {
		image, patch []int
		a            Augment
	}{
		{[]int{60, 70}, []int{24, 24}, Augment{Rotate: 45}},
		{[]int{60, 70}, []int{24, 24}, Augment{Rotate: 45, Scale: 0.3, Elastic: 1, Control: 8, Flips: true, Turns: true}},
		{[]int{24, 40, 40}, []int{6, 10, 12}, Augment{Rotate: 45, Tilt: 20, Scale: 0.3, Elastic: 0.7, Control: 6, Flips: true, Turns: true}},
	} {
		s := positions(c.image...)
		s.Labels.Spacing = []float64{2, 1, 1}[3-len(c.image):]
		moved := 0
		for index := range uint64(20) {
			p, err := Patches{Size: c.patch, Augment: c.a, Seed: 5}.Draw(s, index)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range p.Labels.Values {
				nearest := s.Image.Pix[3*v : 3*v+3]
				for a, x := range p.Image.Pix[3*i : 3*i+3] {
					edge := float32(axis(c.image, a) - 1)
					if x < 1 || x > edge-1 { // the mirror image goes on beyond
						continue
					}
					if d := math.Abs(float64(x - nearest[a])); d > 0.5001 {
						t.Fatalf("%+v: axis %d of cell %d is at %v, but its label at %v", c, a, i, x, nearest[a])
					} else if d > 0.01 {
						moved++
					}
				}
			}
		}
		if moved == 0 {
			t.Errorf("%+v: nothing moved", c)
		}
	}
}

// A rotation keeps distances in millimetres, a scaling multiplies them, and the root mean square of an elastic deformation is what it should be.
func TestGeometryIsMetric(t *testing.T) {
	s := positions(40, 200, 200)
	s.Image.Spacing = []float64{4, 1, 1}
	at := func(p *Sample, i int) (mm [3]float64) {
		for a, s := range s.Image.Spacing {
			mm[a] = s * float64(p.Image.Pix[3*i+a])
		}
		return mm
	}
	for index := range uint64(20) {
		p, err := Patches{Size: []int{2, 8, 8}, Augment: Augment{Rotate: 180, Tilt: 10}, Seed: 1}.Draw(s, index)
		if err != nil {
			t.Fatal(err)
		}
		inside := true
		for i, edge := range map[int]float32{0: 39, 1: 199, 2: 199} {
			for k := i; k < len(p.Image.Pix); k += 3 {
				inside = inside && p.Image.Pix[k] >= 1 && p.Image.Pix[k] <= edge-1
			}
		}
		if !inside {
			continue
		}
		for i, want := range map[int]float64{7: 7, 56: 7, 64: 4} { // along width, height, depth
			a, b := at(p, 0), at(p, i)
			if d := math.Hypot(math.Hypot(a[0]-b[0], a[1]-b[1]), a[2]-b[2]); math.Abs(d-want) > 1e-3 {
				t.Errorf("patch %d: cells of a distance of %v are %v apart", index, want, d)
			}
		}
	}
	flat := positions(300, 300)
	sum, n := 0., 0
	for index := range uint64(40) {
		p, err := Patches{Size: []int{64, 64}, Augment: Augment{Elastic: 3, Control: 8}, Seed: 2}.Draw(flat, index)
		if err != nil {
			t.Fatal(err)
		}
		q, err := Patches{Size: []int{64, 64}, Seed: 2}.Draw(flat, index)
		if err != nil {
			t.Fatal(err)
		}
		for i := range p.Image.Pix {
			if d := float64(p.Image.Pix[i] - q.Image.Pix[i]); i%3 > 0 && math.Abs(d) < 30 {
				sum, n = sum+d*d, n+1
			}
		}
	}
	if rms := math.Sqrt(sum / float64(n)); math.Abs(rms-3) > 0.3 {
		t.Errorf("the deformation has a root mean square of %v, want 3", rms)
	}
}

// What changes the values keeps their order or their mean, as its comment says, and never touches the labels.
func TestValues(t *testing.T) {
	s := someSamples([]int{32, 32}, 1)[0]
	draw := func(a Augment) *Image {
		t.Helper()
		p, err := Patches{Size: []int{32, 32}, Augment: a, Seed: 4}.Draw(s, 7)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(p.Labels.Values, s.Labels.Values) {
			t.Errorf("%+v changes labels", a)
		}
		return p.Image
	}
	mean, deviation, least, most := s.Image.statistics(1)
	m, d, _, _ := draw(Augment{Contrast: 0.5}).statistics(1)
	if math.Abs(m-mean) > 1e-6 || d == deviation || d > 1.5*deviation || d < deviation/1.5 {
		t.Errorf("contrast: mean %v, deviation %v, from %v, %v", m, d, mean, deviation)
	}
	m, d, _, _ = draw(Augment{Brightness: 0.5}).statistics(1)
	if m == mean || math.Abs(m-mean) > 0.5*deviation || math.Abs(d-deviation) > 1e-6 {
		t.Errorf("brightness: mean %v, deviation %v, from %v, %v", m, d, mean, deviation)
	}
	im := draw(Augment{Gamma: 0.8})
	_, _, low, high := im.statistics(1)
	if math.Abs(low-least) > 1e-5 || math.Abs(high-most) > 1e-5 || sameBits(im.Pix, s.Image.Pix) {
		t.Errorf("gamma: %v to %v, from %v to %v", low, high, least, most)
	}
	for i := range im.Pix {
		for j := i % 2; j < 40; j += 2 {
			if s.Image.Pix[i] < s.Image.Pix[j] && im.Pix[i] > im.Pix[j] {
				t.Fatalf("gamma changes the order of %v and %v", s.Image.Pix[i], s.Image.Pix[j])
			}
		}
	}
	im = draw(Augment{Noise: 0.5})
	sum := 0.
	for i, v := range im.Pix {
		sum += math.Pow(float64(v-s.Image.Pix[i]), 2)
	}
	if rms := math.Sqrt(sum / float64(len(im.Pix))); rms == 0 || rms > 0.6 {
		t.Errorf("noise of %v", rms)
	}
	flat, err := New([]int{4, 4}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := (Patches{Size: []int{4, 4}, Augment: everything}).Draw(&Sample{Image: flat}, 0); err != nil || !sameBits(p.Image.Pix, flat.Pix) {
		t.Errorf("a patch of one value changes: %v, %v", p, err)
	}
}

// A power in a table is that of the mathematical library, up to rounding.
func TestPower(t *testing.T) {
	for _, gamma := range []float64{0.3, 0.7, 1, 1.8, 3} {
		im := random([]int{50, 50}, 1, 9)
		_, _, least, most := im.statistics(0)
		want := slices.Clone(im.Pix)
		for i, v := range want {
			want[i] = float32(least + (most-least)*math.Pow((float64(v)-least)/(most-least), gamma))
		}
		power(im, 0, gamma, least, most)
		for i, v := range im.Pix {
			if d := math.Abs(float64(v-want[i])) / (most - least); !(d < 3e-3) {
				t.Fatalf("power %v: %v, want %v", gamma, v, want[i])
			}
		}
	}
}

// The share of patches that should holds the foreground, each of its classes as often, also where a class has a single cell.
func TestForeground(t *testing.T) {
	s := positions(40, 60)
	clear(s.Labels.Values)
	s.Labels.Values[0] = 1 // in a corner
	for i := 40*60 - 300; i < 40*60-1; i++ {
		s.Labels.Values[i] = 2
	}
	counts := [3]int{}
	const n = 2000
	for index := range uint64(n) {
		p, err := Patches{Size: []int{8, 8}, Foreground: 0.5, Seed: 1, Augment: Augment{Flips: true, Turns: true}}.Draw(s, index)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(p.Labels.Values, 1) {
			counts[1]++
		}
		if slices.Contains(p.Labels.Values, 2) {
			counts[2]++
		}
	}
	if share := float64(counts[1]) / n; share < 0.22 || share > 0.28 {
		t.Errorf("class 1 is in %v of the patches, want a quarter", share)
	}
	if share := float64(counts[2]) / n; share < 0.29 || share > 0.36 { // a quarter, and some of those from anywhere
		t.Errorf("class 2 is in %v of the patches", share)
	}
	none := Patches{Size: []int{8, 8}, Foreground: 1, Background: 0}
	clear(s.Labels.Values)
	if _, err := none.Draw(&Sample{Image: s.Image, Labels: s.Labels}, 1); err != nil {
		t.Errorf("a sample without foreground: %v", err)
	}
}

// Spacings that differ by all that they may give places far outside, and no panic.
func TestExtremeSpacing(t *testing.T) {
	for _, spacing := range [][]float64{{leastSpacing, mostSpacing, 1}, {mostSpacing, leastSpacing, mostSpacing}, {1, 1, leastSpacing}} {
		s := positions(3, 4, 5)
		s.Image.Spacing = spacing
		for index := range uint64(20) {
			if _, err := (Patches{Size: []int{4, 4, 4}, Augment: everything}).Draw(s, index); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// An image smaller than a patch goes on by its mirror image.
func TestSmallImage(t *testing.T) {
	s := positions(3, 1)
	p, err := Patches{Size: []int{7, 3}}.Draw(s, 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := []int32{2, 2, 2, 1, 1, 1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 1, 1, 1, 0, 0, 0}; !slices.Equal(p.Labels.Values, want) {
		t.Errorf("%v, want %v", p.Labels.Values, want)
	}
}

// The time of one sample of one channel, with all that there is, with flips and turns, and alone.
func BenchmarkDraw(b *testing.B) {
	for _, c := range []struct{ image, patch []int }{{[]int{640, 640}, []int{512, 512}}, {[]int{140, 140, 140}, []int{128, 128, 128}}} {
		if testing.Short() && len(c.patch) == 3 {
			continue
		}
		s := someSamples(c.image, 1)[0]
		s.Image, _ = s.Image.channel(0)
		for _, a := range []struct {
			name string
			Augment
		}{{"everything", Augment{Flips: true, Turns: true, Rotate: 30, Tilt: 10, Scale: 0.25, Elastic: 5, Brightness: 0.3, Contrast: 0.3, Gamma: 0.3, Noise: 0.1}}, {"turns", Augment{Flips: true, Turns: true}}, {"crop", Augment{}}} {
			b.Run(fmt.Sprintf("%dD/%s", len(c.patch), a.name), func(b *testing.B) {
				benchtest.Processors(b)
				for i := range b.N {
					if _, err := (Patches{Size: c.patch, Augment: a.Augment}).Draw(s, uint64(i)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func (im *Image) channel(c int) (*Image, error) {
	out, err := New(im.Size, 1)
	for i := range out.Pix {
		out.Pix[i] = im.Pix[i*im.Channels+c]
	}
	return out, err
}
