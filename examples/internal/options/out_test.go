package options

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckPNG(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "old.png")
	if err := os.WriteFile(old, []byte("picture"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.png"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, want string }{
		{"", ""},
		{old, ""},
		{filepath.Join(dir, "new.png"), ""},
		{filepath.Join(dir, "NEW.PNG"), ""},
		{filepath.Join(dir, "new.jpg"), "for flag -out: should end in .png"},
		{filepath.Join(dir, "new"), "for flag -out: should end in .png"},
		{filepath.Join(dir, "none", "new.png"), "should be a file that can be written: "},
		{filepath.Join(dir, "folder.png"), "should be a file that can be written: "},
		{filepath.Join(old, "new.png"), "should be a file that can be written: "},
	} {
		err := CheckPNG(test.path)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.path, err, test.want)
		}
		if err != nil && strings.Count(err.Error(), test.path) != 1 {
			t.Errorf("%v should name the file once", err)
		}
	}
	if data, err := os.ReadFile(old); err != nil || string(data) != "picture" {
		t.Errorf("the old file has %q, %v", data, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("there is %v, %v", left, err)
	}
}
