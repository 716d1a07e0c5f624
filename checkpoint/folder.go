package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/gomamba/mamba/internal/tensorfile"
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

// open returns a file of the directory. The error is fs.ErrNotExist if there is none.
//
// A save that was interrupted after its commit has left files in the folder tensorfile.Committed. They are newer than those of the
// same name in the directory itself.
func (f *folder) open(name string) (*os.File, error) {
	if name != path.Base(name) || strings.ContainsAny(name, `/\`) || !filepath.IsLocal(name) {
		return nil, fmt.Errorf("%q is no name of a file in the directory", name)
	}
	for _, folder := range tensorfile.Places(f.root) {
		file, err := f.openPath(folder + name)
		if !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	return nil, &fs.PathError{Op: "open", Path: filepath.Join(f.path, name), Err: fs.ErrNotExist}
}

func (f *folder) openPath(p string) (*os.File, error) {
	root := f.root
	info, err := root.Lstat(p)
	if err != nil {
		return nil, err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		if blob, ok := f.blob(p); ok {
			blobs, err := os.OpenRoot(filepath.Join(f.path, "..", "..", "blobs"))
			if err != nil {
				return nil, err
			}
			defer blobs.Close()
			root, p = blobs, blob
		}
	}
	return tensorfile.OpenRegular(root, p)
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
	file, err := f.open(name)
	if err != nil {
		return nil, err
	}
	text, err := tensorfile.ReadAll(file, name, limit)
	return text, errors.Join(err, file.Close())
}
