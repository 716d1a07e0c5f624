package report

import (
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/plot"

	"github.com/gomamba/mamba/train"
)

// drawn returns the picture that WritePNG writes.
func drawn(t *testing.T, panels ...Panel) image.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "picture.png")
	if err := WritePNG(path, panels...); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	picture, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	if size := picture.Bounds().Size(); size.X < 1000 || size.Y < 500 {
		t.Errorf("the picture is %v pixels large", size)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("beside the picture there is %v, %v", left, err)
	}
	return picture
}

// box returns how many pixels have nearly a colour, and the rectangle around those.
func box(picture image.Image, c color.Color) (pixels int, around image.Rectangle) {
	size := picture.Bounds()
	wantR, wantG, wantB, _ := c.RGBA()
	near := func(got, want uint32) bool { return max(got, want)-min(got, want) < 32<<8 }
	for y := size.Min.Y; y < size.Max.Y; y++ {
		for x := size.Min.X; x < size.Max.X; x++ {
			if r, g, b, _ := picture.At(x, y).RGBA(); near(r, wantR) && near(g, wantG) && near(b, wantB) {
				pixels++
				around = around.Union(image.Rect(x, y, x+1, y+1))
			}
		}
	}
	return pixels, around
}

func rising() Line { return Line{X: []float64{1, 2, 4, 8}, Y: []float64{40, 50, 55, 60}} }

func TestPanelAxes(t *testing.T) {
	falling := Line{X: []float64{1, 2, 4, 8}, Y: []float64{60, 55, 50, 40}}
	for _, p := range []Panel{{}, {LogX: true}, {LogY: true}, {LogX: true, LogY: true}, {LogX: true, Percent: true}} {
		p.X, p.Y, p.Lines = "across", "up", []Line{rising(), falling}
		picture := drawn(t, p)
		for i := range 2 {
			if pixels, _ := box(picture, Color(i)); pixels < 200 {
				t.Errorf("%+v: line %d has %d pixels", p, i, pixels)
			}
		}
	}
}

func TestPanelDashed(t *testing.T) {
	dashed := rising()
	dashed.Dashed = true
	whole, _ := box(drawn(t, Panel{Lines: []Line{rising()}}), Color(0))
	if broken, _ := box(drawn(t, Panel{Lines: []Line{dashed}}), Color(0)); broken == 0 || broken >= whole {
		t.Errorf("%d pixels dashed, %d whole", broken, whole)
	}
}

// The axis begins and ends near the points, so that they fill the height; of percents it is the whole range.
func TestPanelUsesItsHeight(t *testing.T) {
	_, r := box(drawn(t, Panel{Lines: []Line{rising()}}), Color(0))
	if r.Dy() < 350 {
		t.Errorf("the points from 40 to 60 are %d pixels high, want nearly all", r.Dy())
	}
	_, part := box(drawn(t, Panel{Percent: true, Lines: []Line{rising()}}), Color(0))
	if part.Dy() == 0 || part.Dy() > r.Dy()/3 {
		t.Errorf("40 to 60 percent are %d pixels high, want a fifth of about %d", part.Dy(), r.Dy())
	}
}

// Two panels are side by side, and the second has its own axes.
func TestPanelsSideBySide(t *testing.T) {
	left, right := rising(), rising()
	right.Color = Color(3)
	for i := range right.Y {
		right.Y[i] *= 1000
	}
	picture := drawn(t, Panel{Lines: []Line{left}}, Panel{Lines: []Line{right}})
	middle := picture.Bounds().Dx() / 2
	_, a := box(picture, Color(0))
	_, b := box(picture, Color(3))
	if a.Max.X > middle || b.Min.X < middle || a.Dy() != b.Dy() {
		t.Errorf("the lines are in %v and %v of %v", a, b, picture.Bounds())
	}
}

// The names stand beside the ends of their lines, in their colours, and apart where the ends are at one height.
func TestPanelLabels(t *testing.T) {
	one, two := rising(), rising()
	one.Name, two.Name = "one", "two"
	without := drawn(t, Panel{Lines: []Line{rising()}})
	_, bare := box(without, Color(0))
	picture := drawn(t, Panel{Lines: []Line{one, two}})
	_, first := box(picture, Color(0))
	_, second := box(picture, Color(1))
	if first.Max.X <= bare.Dx() || second.Max.X <= first.Min.X || first.Min.Y >= second.Min.Y {
		t.Errorf("the names reach to %v and %v, want the first above the second", first, second)
	}
}

func TestSpread(t *testing.T) {
	for _, test := range []struct{ from, want []float64 }{
		{nil, nil},
		{[]float64{5}, []float64{5}},
		{[]float64{0, 100}, []float64{0, 100}},
		{[]float64{50, 50}, []float64{45, 55}},
		{[]float64{50, 50, 50}, []float64{40, 50, 60}},
		{[]float64{0, 2, 40}, []float64{-4, 6, 40}},
		{[]float64{0, 9, 18, 19}, []float64{-3, 7, 17, 27}[:4]},
	} {
		got := spread(test.from, 10, -100, 200)
		if len(got) != len(test.want) {
			t.Fatalf("%v: %v", test.from, got)
		}
		moved, least := 0.0, 0.0
		for i := range got {
			moved += (got[i] - test.from[i]) * (got[i] - test.from[i])
			least += (test.want[i] - test.from[i]) * (test.want[i] - test.from[i])
			if i > 0 && got[i]-got[i-1] < 10-1e-9 {
				t.Errorf("%v: %v are nearer than 10", test.from, got)
			}
		}
		if moved > least+1e-9 {
			t.Errorf("%v moves to %v, want %v", test.from, got, test.want)
		}
	}
}

// Names stay in their range, above and below, and still apart.
func TestSpreadInRange(t *testing.T) {
	for _, test := range []struct{ from, want []float64 }{
		{[]float64{-3}, []float64{0}},
		{[]float64{33}, []float64{30}},
		{[]float64{1, 2, 3}, []float64{0, 10, 20}},
		{[]float64{5, 29, 30}, []float64{5, 20, 30}},
		{[]float64{30, 30, 30, 30}, []float64{0, 10, 20, 30}},
	} {
		if got := spread(test.from, 10, 0, 30); !slices.Equal(got, test.want) {
			t.Errorf("%v moves to %v, want %v", test.from, got, test.want)
		}
	}
}

// A picture has room for all names, however many lines end at one place.
func TestPanelOfManyLines(t *testing.T) {
	for _, end := range []float64{0, 1, 40} {
		var p Panel
		for i := range 30 {
			p.Lines = append(p.Lines, Line{Name: fmt.Sprint("line ", i), X: []float64{0, 1}, Y: []float64{float64(i), end}, Color: Color(i % 5)})
		}
		ends := []color.Color{color.RGBA{200, 0, 200, 255}, color.RGBA{0, 200, 200, 255}} // of the names at the top and at the bottom
		p.Lines[0].Color, p.Lines[29].Color = ends[0], ends[1]
		picture := drawn(t, p)
		b := picture.Bounds()
		right := image.Rect(b.Max.X-80, b.Min.Y, b.Max.X, b.Max.Y) // names only
		for _, c := range ends {
			pixels, at := box(picture.(interface {
				SubImage(image.Rectangle) image.Image
			}).SubImage(right), c)
			if pixels == 0 || at.Min.Y < 5 || at.Max.Y > b.Max.Y-5 || at.Dy() < 10 {
				t.Errorf("lines end at %v: the name of colour %v is at %v, %d pixels, of a picture of %v", end, c, at, pixels, b)
			}
		}
	}
}

// A single point, a constant, and points without a logarithm beside others are drawn.
func TestPanelOfLittle(t *testing.T) {
	unfit := Line{X: []float64{0, -1, 2, 4}, Y: []float64{3, 3, 0, -4}}
	for _, p := range []Panel{{}, {LogX: true, LogY: true}, {LogX: true, Percent: true}} {
		for _, at := range []float64{0.25, 1, 64} {
			p.Lines = []Line{{}, {X: []float64{at}, Y: []float64{at}}}
			picture := drawn(t, p)
			if pixels, _ := box(picture, Color(0)); pixels > 0 {
				t.Errorf("%+v: the line without points has %d pixels", p, pixels)
			}
			if pixels, _ := box(picture, Color(1)); pixels == 0 {
				t.Errorf("%+v: the point is gone", p)
			}
		}
	}
	for _, ys := range [][]float64{{0, 0}, {1, math.Nextafter(1, 2)}, {-1e150, 1e150}, {1e-150, 1e150}, {5e-324, 0}} {
		drawn(t, Panel{Lines: []Line{{X: ys, Y: ys}}})
		if ys[1] > 0 {
			drawn(t, Panel{LogX: true, LogY: true, Lines: []Line{{X: ys, Y: []float64{1e-150, 1e150}}}})
		}
	}
	picture := drawn(t, Panel{LogX: true, LogY: true, Lines: []Line{unfit, rising()}})
	if pixels, _ := box(picture, Color(0)); pixels > 0 {
		t.Errorf("numbers that are not above 0 have %d pixels on logarithmic axes", pixels)
	}
	if pixels, _ := box(picture, Color(1)); pixels == 0 {
		t.Error("the line beside them is gone")
	}
}

// Whatever is wrong is an error that says what, and the file stays.
func TestWritePNGErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "picture.png")
	if err := os.WriteFile(path, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	one := []float64{1}
	for _, test := range []struct {
		panels []Panel
		want   string
	}{
		{nil, "there is no panel"},
		{make([]Panel, 1<<20), "there are 1048576 panels: their pixels need"},
		{[]Panel{{Y: "up"}}, `panel "up" has no point to draw`},
		{[]Panel{{Lines: []Line{rising()}}, {Y: "up"}}, `panel "up" has no point to draw`},
		{[]Panel{Loss{}.Panel(nil)}, `panel "loss, nats per token" has no point to draw`},
		{[]Panel{Loss{}.Panel(new(train.Curve))}, "has no point to draw"},
		{[]Panel{Loss{Levels: []Level{{"other", 3}}}.Panel(new(train.Curve))}, "has no point to draw"},
		{[]Panel{{LogY: true, Lines: []Line{{X: one, Y: []float64{0}}}}}, "has no point to draw"},
		{[]Panel{{Lines: []Line{{Name: "a", X: one}}}}, `line "a": X has 1 numbers and Y has 0, want as many`},
		{[]Panel{{Lines: []Line{{Name: "a", X: one, Y: []float64{math.NaN()}}}}}, `line "a": point 0 is (1, NaN), want numbers from -1e+150 to 1e+150`},
		{[]Panel{{Lines: []Line{{Name: "a", X: []float64{math.Inf(1)}, Y: one}}}}, `line "a": point 0 is (+Inf, 1), want numbers from -1e+150 to 1e+150`},
		{[]Panel{{Lines: []Line{rising()}, Levels: []Level{{"l", math.Inf(1)}}}}, `level "l" is +Inf, want a number from -1e+150 to 1e+150`},
		{[]Panel{{LogY: true, Lines: []Line{rising()}, Levels: []Level{{"l", 0}}}}, `level "l" is 0, want a number from -1e+150 to 1e+150, and on a logarithmic axis from 1e-150`},
	} {
		if err := WritePNG(path, test.panels...); err == nil || !strings.HasPrefix(err.Error(), "report: ") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.panels, err, test.want)
		}
	}
	if err := WritePNG(filepath.Join(path, "none", "picture.png"), Panel{Lines: []Line{rising()}}); err == nil {
		t.Error("a folder that does not exist is no error")
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "before" {
		t.Errorf("the file has %q, %v", data, err)
	}
}

func TestColor(t *testing.T) {
	for i := -7; i < 20; i++ {
		if Color(i) != Color(i+6) || Color(i) == Color(i+1) {
			t.Errorf("position %d has %v", i, Color(i))
		}
	}
}

// The ticks of a loss curve, of percents and of lengths.
func TestTicks(t *testing.T) {
	for _, test := range []struct {
		ticks     func(low, high float64) []plot.Tick
		low, high float64
		want      string
	}{
		{evenNumbers, 0, 1600, "0 250 500 750 1000 1250 1500"},
		{evenNumbers, 0, 300, "0 50 100 150 200 250 300"},
		{evenNumbers, 0, 4000, "0 1000 2000 3000 4000"},
		{evenNumbers, 0, 100, "0 20 40 60 80 100"},
		{evenNumbers, 1.81, 2.74, "2 2.2 2.4 2.6"},
		{evenNumbers, -3, 3, "-3 -2 -1 0 1 2 3"},
		{evenNumbers, 0.5, 1.5, "0.6 0.8 1 1.2 1.4"},
		{roundNumbers, 1.9, 10.2, "2 3 4 5 6 8 10"},
		{roundNumbers, 0.5, 62000, "1 10 100 1000 10000"},
		{powersOf2, 256, 65536, "256 _ 1024 _ 4096 _ 16384 _ 65536"},
		{powersOf2, 3, 9, "4 8"},
		{powersOf2, 64, 1 << 20, "64 _ _ 512 _ _ 4096 _ _ 32768 _ _ 262144 _ _"},
	} {
		var got []string
		for _, tick := range test.ticks(test.low, test.high) {
			if tick.Label == "" {
				tick.Label = "_"
			} else if math.Abs(tick.Value) >= 1 && tick.Label != fmt.Sprint(float64(int64(tick.Value*1000+0.5))/1000) && tick.Value > 0 {
				t.Errorf("the tick at %v is called %s", tick.Value, tick.Label)
			}
			got = append(got, tick.Label)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("from %v to %v: %v, want %s", test.low, test.high, got, test.want)
		}
	}
}

// A long run has its single steps pale and their mean in front; both hold a spike, which is not cut. What is held out has another colour.
func TestLoss(t *testing.T) {
	c := new(train.Curve)
	for step := 1; step <= 400; step++ {
		loss := 1 + 4/float64(step)
		if step == 300 {
			loss = 6
		}
		c.Training = append(c.Training, train.Point{Step: step, Loss: loss})
	}
	c.HeldOut = []train.Point{{Step: 200, Loss: 1.2}, {Step: 400, Loss: 1.1}}
	p := Loss{Label: "bits", Scale: 2, Levels: []Level{{"other", 4}}}.Panel(c)
	if len(p.Lines) != 3 || !p.LogY || p.Y != "bits" || !strings.Contains(p.X, "mean of 8 steps") {
		t.Fatalf("the panel is %+v", p)
	}
	single, mean, held := p.Lines[0], p.Lines[1], p.Lines[2]
	if !single.Pale || single.Name != "" || slices.Max(single.Y) != 12 || len(single.X) != 400 {
		t.Errorf("the single steps are %v", single.Y)
	}
	if mean.Name != "training" || len(mean.X) != 393 || mean.X[0] != 4 || mean.Y[392] < 2 || mean.Y[392] > 2.1 {
		t.Errorf("the means are %v at %v", mean.Y, mean.X)
	}
	if held.Name != "held out" || held.Color == mean.Color || held.Y[0] != 2.4 {
		t.Errorf("what is held out is %+v", held)
	}
	right := drawn(t, p).(interface {
		SubImage(image.Rectangle) image.Image
	}).SubImage(image.Rect(500, 0, 760, 600)) // without the label of the axis
	if pixels, spike := box(right, pale(Color(0))); pixels < 100 || spike.Min.Y < 45 || spike.Min.Y > 100 {
		t.Errorf("the spike is in %v, want it to end just below the upper end of the axis", spike)
	}
	drawn(t, Loss{}.Panel(&train.Curve{HeldOut: []train.Point{{Step: 0, Loss: 3}}}))
	short := Loss{}.Panel(&train.Curve{Training: []train.Point{{Step: 1, Loss: 2}, {Step: 2, Loss: 1.5}}})
	if len(short.Lines) != 1 || short.LogY || short.X != "step" {
		t.Errorf("two steps are %+v", short)
	}
}
