package experiment

import (
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gonum.org/v1/plot/plotutil"
)

// draw returns the picture that is written.
func draw(t *testing.T, how Picture, series ...Series) image.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "picture.png")
	how.X, how.Y = "across", "up"
	if err := how.WritePNG(path, series); err != nil {
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
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("beside the picture there is %v, %v", left, err)
	}
	return picture
}

// inked returns how many pixels have the colour of a series, in the left half, where no legend is, and how high they reach.
func inked(picture image.Image, series int) (pixels, height int) {
	want := color.RGBAModel.Convert(plotutil.Color(series))
	size := picture.Bounds()
	top, bottom := size.Max.Y, size.Min.Y
	for y := size.Min.Y; y < size.Max.Y; y++ {
		for x := size.Min.X; x < size.Max.X/2; x++ {
			if color.RGBAModel.Convert(picture.At(x, y)) == want {
				pixels++
				top, bottom = min(top, y), max(bottom, y)
			}
		}
	}
	return pixels, max(bottom-top, 0)
}

var rising = Series{Name: "rising", X: []float64{1, 2, 4, 8}, Y: []float64{40, 50, 55, 60}}

func TestPictureAxes(t *testing.T) {
	falling := Series{Name: "falling", X: rising.X, Y: []float64{60, 55, 50, 40}}
	for _, how := range []Picture{{}, {LogX: true}, {LogY: true}, {LogX: true, LogY: true}, {LogX: true, Percent: true}, {TopLeft: true}} {
		picture := draw(t, how, rising, falling)
		for i := range 2 {
			if pixels, _ := inked(picture, i); pixels < 20 {
				t.Errorf("%+v: series %d has %d pixels", how, i, pixels)
			}
		}
	}
}

func TestPictureDashed(t *testing.T) {
	dashed := rising
	dashed.Dashed = true
	whole, _ := inked(draw(t, Picture{}, rising), 0)
	if broken, _ := inked(draw(t, Picture{}, dashed), 0); broken == 0 || broken >= whole {
		t.Errorf("%d pixels dashed, %d whole", broken, whole)
	}
}

func TestPicturePercent(t *testing.T) {
	_, whole := inked(draw(t, Picture{}, rising), 0)
	if _, part := inked(draw(t, Picture{Percent: true}, rising), 0); part == 0 || part > whole/2 {
		t.Errorf("40 to 60 percent of 100 are %d pixels high, %d where the axis ends with the line", part, whole)
	}
}

// A run that is interrupted early, or whose numbers have no logarithm, still has its picture.
func TestPictureOfLittle(t *testing.T) {
	nothing := Series{Name: "nothing"}
	unfit := Series{Name: "unfit", X: []float64{0, -1, 2, 4}, Y: []float64{3, 3, 0, -4}}
	for _, how := range []Picture{{}, {LogX: true, LogY: true}, {LogX: true, Percent: true}} {
		draw(t, how)
		draw(t, how, nothing)
		for _, at := range []float64{0.25, 1, 64} {
			picture := draw(t, how, nothing, Series{Name: "point", X: []float64{at}, Y: []float64{at}})
			if pixels, _ := inked(picture, 0); pixels > 0 {
				t.Errorf("%+v: the series without points has %d pixels", how, pixels)
			}
		}
	}
	picture := draw(t, Picture{LogX: true, LogY: true}, unfit, rising)
	if pixels, _ := inked(picture, 0); pixels > 0 {
		t.Errorf("numbers that are not above 0 have %d pixels on logarithmic axes", pixels)
	}
	if pixels, _ := inked(picture, 1); pixels == 0 {
		t.Error("the series beside them is gone")
	}
}

func TestPictureErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "picture.png")
	if err := (Picture{}).WritePNG(path, []Series{rising}); err == nil || !strings.HasPrefix(err.Error(), "-out is ") {
		t.Errorf("a folder that does not exist: %v", err)
	}
	// What was there stays if there is nothing better.
	path = filepath.Join(t.TempDir(), "picture.png")
	if err := os.WriteFile(path, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := (Picture{}).WritePNG(path, []Series{{X: []float64{1}, Y: []float64{math.NaN()}}}); err == nil {
		t.Error("a point that is not a number is no error")
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "before" {
		t.Errorf("the file has %q, %v", data, err)
	}
}

func TestPowers(t *testing.T) {
	ticks := powers{2}.Ticks(64, 1<<20)
	labels := 0
	for _, tick := range ticks {
		if tick.Label != "" {
			labels++
		}
	}
	if len(ticks) != 15 || ticks[0].Value != 64 || ticks[14].Value != 1<<20 || labels != 8 {
		t.Errorf("%d ticks, %d of them with labels: %v", len(ticks), labels, ticks)
	}
	if ticks := (powers{2}).Ticks(3, 9); len(ticks) != 2 || ticks[0].Label != "4" || ticks[1].Label != "8" {
		t.Errorf("from 3 to 9: %v", ticks)
	}
}
