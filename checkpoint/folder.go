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

// folder is the directory of a checkpoint. Nothing outside of it is read: os.Root follows symbolic links that stay inside and refuses
// all others. The only exception is the cache of Hugging Face, in which the files of a snapshot are links to files in ../../blobs.
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

// open opens a file of the directory. The error is fs.ErrNotExist if there is no such file.
//
// If a save was interrupted after its commit, the new files are in the folder tensorfile.Committed. They take precedence over files of
// the same name in the directory itself.
func (f *folder) open(name string) (*os.File, error) {
	if name != path.Base(name) || strings.ContainsAny(name, `/\`) || !filepath.IsLocal(name) {
		return nil, fmt.Errorf("the name of a file is %q, want one without a path", name)
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

// blob returns the name of the file in ../../blobs to which a link in the cache of Hugging Face points.
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

// read returns the contents of a file of at most limit bytes.
func (f *folder) read(name string, limit int64) ([]byte, error) {
	file, err := f.open(name)
	if err != nil {
		return nil, err
	}
	text, err := tensorfile.ReadAll(file, name, limit)
	return text, errors.Join(err, file.Close())
}
