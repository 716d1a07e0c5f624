package tensorfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Files that are replaced while they are read are read again, also if a file gets the inode of one that is gone.
func TestTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, saves := range []int{0, 1, 2, 3} { // before there is a file, and after
		rounds := 0
		err := Together(func() (*os.File, error) { return OpenFile(path) }, func() error {
			if rounds++; rounds > 1 {
				return fs.ErrClosed
			}
			for range saves {
				if err := Replace(path, text("new")); err != nil {
					t.Fatal(err)
				}
			}
			return nil
		})
		if again := errors.Is(err, fs.ErrClosed); again != (saves > 0) || rounds != 1+min(saves, 1) {
			t.Errorf("%d saves: %d rounds, error %v", saves, rounds, err)
		}
	}
	want := errors.New("no file")
	if err := Together(func() (*os.File, error) { return nil, want }, func() error { return nil }); err != want {
		t.Errorf("error %v, want %v", err, want)
	}
}

// If one of the files cannot be replaced, none is.
func TestReplaceAllOverAFolder(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "b"), 0o777), os.WriteFile(filepath.Join(dir, "a"), []byte("old"), 0o666)); err != nil {
		t.Fatal(err)
	}
	l, err := AcquireFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = l.Do(func(d *Folder) error { return d.ReplaceAll(NewFile{"a", text("new")}, NewFile{"b", text("new")}) })
	if err == nil || !strings.Contains(err.Error(), "b is a folder, no regular file, and is not replaced") {
		t.Errorf("error %v", err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
	contains(t, filepath.Join(dir, "a"), "old")
	namesAre(t, dir, "a", "b")
}

// The path of a folder means the same with separators after it. An empty path is an error, and not the working directory.
func TestMakeFolder(t *testing.T) {
	dir := t.TempDir()
	if err := MakeFolder(dir + "/a/b//"); err != nil {
		t.Fatal(err)
	}
	namesAre(t, dir, "a")
	namesAre(t, filepath.Join(dir, "a"), "b")
	namesAre(t, filepath.Join(dir, "a", "b"))
	if err := MakeFolder(""); err == nil {
		t.Error("the empty path: no error")
	}
}
