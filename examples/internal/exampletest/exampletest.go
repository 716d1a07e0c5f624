// Package exampletest has what the tests of the examples share.
package exampletest

import (
	"image/png"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// PNG fails the test unless a file is a picture of at least 1000 by 500 pixels.
func PNG(t *testing.T, path string) {
	t.Helper()
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
		t.Errorf("%s is %v pixels large, want at least 1000 by 500", path, size)
	}
}

// flagLine is the line of a flag, with its type: a flag without one is a switch.
var flagLine = regexp.MustCompile(`^  -[a-z-]+( (int|float|string|file|directory|path|text))?$`)

// Usage fails the test unless the text that a program prints with -h has lines of at most 80 columns, a named type for each flag,
// at most one default for each flag, and all of the flags.
func Usage(t *testing.T, text string, flags ...string) {
	t.Helper()
	defaults := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > 80 {
			t.Errorf("a line of the usage has %d columns, want at most 80: %q", n, line)
		}
		if strings.HasPrefix(line, "  -") {
			defaults = 0
			if !flagLine.MatchString(line) {
				t.Errorf("%q names no type that a person knows", line)
			}
		}
		if defaults += strings.Count(line, "(default"); defaults > 1 {
			t.Errorf("a flag has two defaults, the second in %q", line)
		}
	}
	for _, name := range flags {
		if !regexp.MustCompile(`(?m)^  -` + name + `( |$)`).MatchString(text) {
			t.Errorf("the usage does not tell of -%s", name)
		}
	}
}
