package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// folder is a checkpoint's directory. Nothing outside it is read: os.Root follows symbolic links that stay inside and refuses
// the others. The one exception is Hugging Face's cache, where the files of a snapshot are links into the folder of blobs
// beside it.
type folder struct {
	path string // without symbolic links
	root *os.Root
}

func openFolder(dir string) (*folder, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &folder{dir, root}, nil
}

func (f *folder) close() error { return f.root.Close() }

// open returns a file of the directory and its size; an error that is fs.ErrNotExist if there is none.
//
// A save that was interrupted after its commit has left files in the folder named committed: they are newer than those of
// the same name in the directory itself.
func (f *folder) open(name string) (*os.File, int64, error) {
	if name != path.Base(name) || strings.ContainsAny(name, `/\`) || !filepath.IsLocal(name) {
		return nil, 0, fmt.Errorf("%q is no name of a file in the directory", name)
	}
	for _, p := range []string{committed + "/" + name, name} {
		file, size, err := f.openPath(p)
		if !errors.Is(err, fs.ErrNotExist) {
			return file, size, err
		}
	}
	return nil, 0, &fs.PathError{Op: "open", Path: filepath.Join(f.path, name), Err: fs.ErrNotExist}
}

func (f *folder) openPath(p string) (*os.File, int64, error) {
	root := f.root
	info, err := root.Lstat(p)
	if err != nil {
		return nil, 0, err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		if blob, ok := f.blob(p); ok {
			blobs, err := os.OpenRoot(filepath.Join(f.path, "..", "..", "blobs"))
			if err != nil {
				return nil, 0, err
			}
			defer blobs.Close()
			root, p = blobs, blob
		}
		if info, err = root.Stat(p); err != nil {
			return nil, 0, err
		}
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for its writer
		return nil, 0, fmt.Errorf("%s is no regular file", p)
	}
	file, err := root.Open(p)
	if err != nil {
		return nil, 0, err
	}
	if info, err = file.Stat(); err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// blob returns the name within ../../blobs that a link of Hugging Face's cache points to.
func (f *folder) blob(link string) (string, bool) {
	target, err := f.root.Readlink(link)
	if err != nil || strings.Contains(link, "/") {
		return "", false
	}
	name, ok := strings.CutPrefix(filepath.ToSlash(target), "../../blobs/")
	return name, ok && name == path.Base(name) && filepath.IsLocal(name)
}

func (f *folder) exists(p string) bool {
	_, err := f.root.Lstat(p)
	return err == nil
}

// read returns the contents of a file that is not to be large.
func (f *folder) read(name string, limit int64) ([]byte, error) {
	file, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if size > limit {
		return nil, fmt.Errorf("%s has %d bytes, want at most %d", name, size, limit)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(file, text); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return text, nil
}
