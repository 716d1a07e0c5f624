package task

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// writeFiles makes a directory with the given files.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func names(text Text) []string {
	var names []string
	for _, f := range text.Files {
		names = append(names, f.Name)
	}
	return names
}

func TestReadTextFile(t *testing.T) {
	dir := writeFiles(t, map[string]string{"a.bin": "ab\x00\xffcd"})
	path := filepath.Join(dir, "a.bin")
	text, err := ReadText(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	if text.Path != path || !reflect.DeepEqual(names(text), []string{"a.bin"}) {
		t.Errorf("read %q with files %q", text.Path, names(text))
	}
	if got := string(text.Join()); got != "ab\x00\xffcd" || text.Size() != 6 {
		t.Errorf("a file that is named is taken as it is: got %q, %d bytes", got, text.Size())
	}
	if text, err = ReadText(path, 3); err != nil || string(text.Join()) != "ab\x00" {
		t.Errorf("limit 3: got %q, %v", text.Join(), err)
	}
}

func TestReadTextDirectory(t *testing.T) {
	dir := writeFiles(t, map[string]string{
		"b.txt":          "second",
		"a/deep/x.txt":   "first é",
		"a/copy.txt":     "second",
		"c.txt":          "third",
		"zero.bin":       "a\x00b",
		"latin1.txt":     "caf\xe9 au lait",
		"empty.txt":      "",
		".hidden":        "hidden",
		".git/objects/x": "hidden too",
	})
	text, err := ReadText(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	got := names(text)
	if len(got) != 3 || !slices.IsSorted(got) {
		t.Fatalf("read %q, want three texts of different bytes in the order of their names", got)
	}
	joined := string(text.Join())
	for _, want := range []string{"first é", "second", "third"} {
		if strings.Count(joined, want) != 1 {
			t.Errorf("%q has %q %d times, want once", joined, want, strings.Count(joined, want))
		}
	}
	again, err := ReadText(dir, 1000)
	if err != nil || !reflect.DeepEqual(text, again) {
		t.Errorf("second reading differs: %q, %v", names(again), err)
	}
}

func TestReadTextDirectoryLimit(t *testing.T) {
	files := make(map[string]string)
	for c := 'a'; c <= 'z'; c++ {
		files["dir/"+string(c)+".txt"] = strings.Repeat(string(c), 10)
	}
	dir := writeFiles(t, files)
	text, err := ReadText(dir, 55)
	if err != nil {
		t.Fatal(err)
	}
	if text.Size() != 55 || len(text.Files) != 6 {
		t.Errorf("limit 55 gave %d bytes of %d files, want 55 of 6", text.Size(), len(text.Files))
	}
	if got := names(text); got[5] == "dir/f.txt" {
		t.Errorf("limit took the first names %q, should be spread over all", got)
	}
}

func TestReadTextThroughLink(t *testing.T) {
	dir := writeFiles(t, map[string]string{"real/a.txt": "linked"})
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "real"), link); err != nil {
		t.Skipf("no symbolic links on this system: %v", err)
	}
	text, err := ReadText(link, 100)
	if err != nil || string(text.Join()) != "linked" {
		t.Errorf("got %q, %v", text.Join(), err)
	}
}

func TestReadTextErrors(t *testing.T) {
	dir := writeFiles(t, map[string]string{
		"empty.txt":    "",
		"file.txt":     "text",
		"binary/a.bin": "\x00\x01",
		"sub/x":        "",
	})
	for _, test := range []struct {
		path  string
		limit int
		want  string // after the path
		is    error
	}{
		{"missing.txt", 100, ": ", fs.ErrNotExist},
		{"empty.txt", 100, ": the file is empty", nil},
		{"binary", 100, ": no text files in this directory", nil},
		{"sub", 100, ": no text files in this directory", nil},
		{"file.txt/x", 100, ": ", nil},
	} {
		path := filepath.Join(dir, filepath.FromSlash(test.path))
		_, err := ReadText(path, test.limit)
		if err == nil {
			t.Errorf("%s: no error", test.path)
			continue
		}
		message := err.Error()
		if !strings.HasPrefix(message, "task: read text: "+path+test.want) || strings.Contains(message, "\n") {
			t.Errorf("%s: %q should be one line beginning with %q", test.path, message, "task: read text: "+path+test.want)
		}
		if test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("%s: %v is no %v", test.path, err, test.is)
		}
	}
	_, err := ReadText(filepath.Join(dir, "file.txt"), 0)
	if err == nil || err.Error() != "task: read text: limit is 0 bytes, should be at least 1" {
		t.Errorf("limit 0: %v", err)
	}
}

func TestReadTextUnreadable(t *testing.T) {
	dir := writeFiles(t, map[string]string{"a.txt": "text", "b.txt": "more"})
	path := filepath.Join(dir, "b.txt")
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	if f, err := os.Open(path); err == nil {
		f.Close()
		t.Skip("this user may read files that nobody may read")
	}
	for _, read := range []string{path, dir} {
		_, err := ReadText(read, 100)
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), path) {
			t.Errorf("reading %s: %v", read, err)
		}
	}
}

func TestLooksLikeText(t *testing.T) {
	for _, test := range []struct {
		data string
		want bool
	}{
		{"plain\n", true},
		{"naïve 日本", true},
		{"zero\x00", false},
		{"bad \xff bytes", false},
		{"cut off 日"[:len("cut off 日")-1], true},
		{strings.Repeat("x", 7999) + "é", true},
		{strings.Repeat("x", 9000) + "\x00", true},
	} {
		if got := looksLikeText([]byte(test.data)); got != test.want {
			t.Errorf("looksLikeText(%.20q) = %v", test.data, got)
		}
	}
}

func TestGoSource(t *testing.T) {
	text, err := GoSource(300_000)
	if err != nil {
		t.Fatal(err)
	}
	if text.Size() != 300_000 {
		t.Errorf("got %d bytes, want 300000", text.Size())
	}
	for _, f := range text.Files {
		if !strings.HasSuffix(f.Name, ".go") || strings.HasSuffix(f.Name, "_test.go") ||
			strings.HasPrefix(f.Name, "cmd/") || strings.Contains(f.Name, "testdata/") || strings.Contains(f.Name, "vendor/") {
			t.Errorf("%s should not be taken", f.Name)
		}
		if bytes.Contains(f.Data, []byte("\n// Code generated by")) {
			t.Errorf("%s is generated", f.Name)
		}
	}
}

func TestGoSourceIn(t *testing.T) {
	root := writeFiles(t, map[string]string{
		"src/fmt/print.go":      "package fmt\n",
		"src/fmt/print_test.go": "package fmt // test\n",
		"src/fmt/made.go":       "// Code generated by make; DO NOT EDIT.\n\npackage fmt\n",
		"src/fmt/asm.s":         "TEXT\n",
		"src/cmd/go/main.go":    "package main\n",
		"src/vendor/x/x.go":     "package x\n",
		"src/io/testdata/t.go":  "package t\n",
		"src/internal/cmd/c.go": "package cmd\n",
	})
	other := t.TempDir()
	text, err := goSourceIn([]string{"", other, root}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(text), []string{"fmt/print.go", "internal/cmd/c.go"}; !reflect.DeepEqual(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}

	_, err = goSourceIn([]string{"", other}, 1000)
	if want := "task: Go source: no standard library in " + filepath.Join(other, "src"); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err = goSourceIn([]string{"", ""}, 1000); err == nil || !strings.Contains(err.Error(), "no Go installation") {
		t.Errorf("no roots: %v", err)
	}
}
