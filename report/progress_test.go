package report

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gomamba/mamba/train"
)

// steps calls Update after each step up to the last.
func steps(p *Progress, last int) {
	c := new(train.Curve)
	for step := 1; step <= last; step++ {
		c.Training = append(c.Training, train.Point{Step: step, Loss: 2})
		p.Update(c)
	}
	p.Finish()
}

// What a newcomer writes works: no field but Out, or Out and Steps, and no Start.
func TestProgressZeroFields(t *testing.T) {
	for _, test := range []struct {
		p    Progress
		last string
	}{
		{Progress{}, `^step 40  loss 2\.000  [\d.e+]+ steps/s$`},
		{Progress{Steps: 40}, `^step 40 of 40  loss 2\.000  [\d.e+]+ steps/s  0s left$`},
		{Progress{Steps: 40, Tokens: 7}, `^step 40 of 40  loss 2\.000  \d+ tokens/s  0s left$`},
		{Progress{Steps: -3}, `^step 40  loss 2\.000  `},
		{Progress{Steps: math.MaxInt, Tokens: math.MaxInt}, ``},           // nothing to show yet
		{Progress{Steps: 10}, `^step 40 of 10  loss 2\.000  .* 0s left$`}, // more steps than it was told of
	} {
		var out strings.Builder
		test.p.Out = &out
		steps(&test.p, 40)
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if !regexp.MustCompile(test.last).MatchString(lines[len(lines)-1]) {
			t.Errorf("%+v: the last line is %q, want %s", test.p, lines[len(lines)-1], test.last)
		}
	}
}

// Where there is nothing to show, nothing is shown, and nothing panics.
func TestProgressOfNothing(t *testing.T) {
	var out strings.Builder
	for _, columns := range []int{0, 80} {
		p := &Progress{Out: &out, columns: func() int { return columns }}
		p.Update(nil)
		p.Update(new(train.Curve))
		p.Update(&train.Curve{HeldOut: []train.Point{{Step: 1, Loss: 1}}})
		p.Finish()
	}
	new(Progress).Finish()
	var none *Progress
	none.Start(3)
	steps(none, 2)
	if out.String() != "" {
		t.Errorf("it shows %q", &out)
	}
}

// Without a terminal there is a line for each twentieth of the steps, and for each evaluation.
func TestProgressLines(t *testing.T) {
	var out strings.Builder
	p := Progress{Out: &out, Steps: 40, Tokens: 10,
		Summary: func(c *train.Curve, last int) string { return fmt.Sprintf("mean %.1f", c.Mean(last)) },
		Rate:    func(float64) string { return "fast" }}
	p.Start(2)
	c := &train.Curve{Training: []train.Point{{Step: 1, Loss: 8}, {Step: 2, Loss: 4}}}
	for step := 3; step <= 40; step++ {
		c.Training = append(c.Training, train.Point{Step: step, Loss: 4})
		if step == 7 {
			c.HeldOut = append(c.HeldOut, train.Point{Step: 7, Loss: 1})
		}
		p.Update(c)
	}
	p.Finish()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 20 || !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "step  7 of 40  mean 4.0  fast  ") }) ||
		!strings.HasSuffix(lines[19], "0s left") {
		t.Errorf("the progress is\n%s", out.String())
	}
}

// Without a Summary the line has the metrics of the last evaluation.
func TestProgressMetrics(t *testing.T) {
	var out strings.Builder
	p := Progress{Out: &out, Steps: 1}
	p.Update(&train.Curve{Training: []train.Point{{Step: 1, Loss: 2}}, HeldOut: []train.Point{{Step: 0, Loss: 4}, {Step: 1, Loss: 3}},
		Metrics: map[string][]float64{"recall": {0, 0.25}, "accuracy": {0, 0.5}, "other": {7}}})
	if want := "step 1 of 1  loss 2.000  held out 3.000  accuracy 0.5  recall 0.25  "; !strings.HasPrefix(out.String(), want) {
		t.Errorf("the progress is %q, want %q", &out, want)
	}
}

// On a terminal each line has a bar and fits; one that is narrow, or says that it has no width, gets plain lines.
func TestProgressWidths(t *testing.T) {
	for _, summary := range []string{"loss 1.5", "loss 1.234  perplexity 3.435  held out 3.501", strings.Repeat("x", 300), ""} {
		for _, columns := range []int{0, 1, 39, 40, 41, 60, 80, 81, 132, 500} {
			var out strings.Builder
			p := &Progress{Out: &out, Steps: 50, Tokens: 1e6, columns: func() int { return columns },
				Summary: func(*train.Curve, int) string { return summary }}
			p.Start(0)
			steps(p, 50)
			if columns < 40 {
				if strings.ContainsAny(out.String(), "\r|") || strings.Count(out.String(), "\n") != 25 {
					t.Errorf("%d columns: want 25 plain lines, have %q", columns, &out)
				}
				continue
			}
			if strings.Count(out.String(), "\n") != 1 || !strings.HasSuffix(out.String(), "\n") {
				t.Errorf("%d columns: want one line, redrawn, have %q", columns, &out)
			}
			full := ""
			for frame := range strings.SplitSeq(strings.TrimSuffix(out.String(), "\n"), "\r") {
				if n := utf8.RuneCountInString(frame); n >= columns {
					t.Errorf("%d columns: %q has %d", columns, frame, n)
				}
				if strings.TrimSpace(frame) == "" {
					continue
				}
				full = frame
				if bar := regexp.MustCompile(`\|(.*)\|`).FindStringSubmatch(frame); bar == nil || utf8.RuneCountInString(bar[1]) < leastBar {
					t.Errorf("%d columns: no bar of %d columns in %q", columns, leastBar, frame)
				}
			}
			if !strings.Contains(full, "100%") || len(summary) < 100 && columns >= 80 && !(strings.Contains(full, summary) && strings.Contains(full, "0s left")) {
				t.Errorf("%d columns: the last frame is %q, want %q and the time left", columns, full, summary)
			}
		}
	}
}

// A file, a pipe and /dev/null are no terminals.
func TestColumns(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if a, b, c := columns(file), columns(null), columns(new(strings.Builder)); a != 0 || b != 0 || c != 0 {
		t.Errorf("they have %d, %d and %d columns, want 0", a, b, c)
	}
}
