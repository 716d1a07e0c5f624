package tensorfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// The operations that the interceptor sees are done, too: each returns the system's error for a file that is closed.
func TestOperationsReachTheSystem(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	file := diskFile{f, "file"}
	if err := file.close(); err != nil {
		t.Fatal(err)
	}
	_, written := file.Write([]byte("text"))
	for what, err := range map[string]error{"write": written, "sync": file.sync("sync"), "close": file.close()} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s of a closed file: error %v, want %v", what, err, os.ErrClosed)
		}
	}
}

// A file is created, never opened: an existing file or link of its name is an error and stays as it was.
func TestCreateIsExclusive(t *testing.T) {
	dir, other := t.TempDir(), filepath.Join(t.TempDir(), "precious")
	for _, path := range []string{other, filepath.Join(dir, "file")} {
		if err := os.WriteFile(path, []byte("precious"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"file"}
	if err := os.Symlink(other, filepath.Join(dir, "link")); err == nil { // not every system makes links
		names = append(names, "link")
	}
	d, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, name := range names {
		if err := d.Create(name, text("new")); !errors.Is(err, os.ErrExist) {
			t.Errorf("creating %s: error %v, want %v", name, err, os.ErrExist)
		}
		contains(t, filepath.Join(dir, name), "precious")
	}
	contains(t, other, "precious")
}
