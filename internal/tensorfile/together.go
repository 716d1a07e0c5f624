package tensorfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Files that belong together are written to a folder of their own within their directory, whose name is unfinished and a random
// number. Renaming that folder to Committed is the one step that makes them count. Before it, readers see the old files. After it,
// they take the files in Committed in place of those of the same name in the directory (Places). Then the files are moved.
const (
	unfinished = ".checkpoint.tmp-"
	Committed  = ".checkpoint.new"
)

// NewFile is a file to be written.
type NewFile struct {
	Name  string
	Write func(io.Writer) error
}

// AcquireFolder locks a directory for ReplaceAll. It makes the directory if it does not exist.
func AcquireFolder(dir string) (*Lock, error) {
	if dir == "" { // which filepath.Join would take for the current folder
		return nil, errors.New("the folder's path is empty, want one such as \".\"")
	}
	if err := MakeFolder(dir); err != nil {
		return nil, err
	}
	return Acquire(filepath.Join(dir, "checkpoint"))
}

// ReplaceAll replaces files together. A program or machine that stops at any moment leaves all old files or all new ones, for
// readers that look in Places. Call it in Lock.Do. After an error before the commit, the old files are unchanged.
func (d *Folder) ReplaceAll(files ...NewFile) error {
	if err := d.Finish(); err != nil { // what an earlier process committed and could not finish
		return err
	}
	for _, f := range files {
		if err := d.replaceable(f.Name); err != nil {
			return err
		}
	}
	names, err := d.Names()
	if err != nil {
		return err
	}
	for _, name := range names { // what earlier processes left without a commit
		if strings.HasPrefix(name, unfinished) {
			if err := d.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	folder := unfinished + RandomName()
	if err := d.Mkdir(folder); err != nil {
		return err
	}
	err = d.prepare(folder, files)
	if err == nil {
		err = d.Rename(folder, Committed)
	}
	if err != nil {
		return errors.Join(err, d.RemoveAll(folder))
	}
	if err := d.Sync(); err != nil {
		return err
	}
	return d.Finish()
}

// prepare writes files to a folder and syncs them.
func (d *Folder) prepare(folder string, files []NewFile) error {
	in, err := d.Open(folder)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err == nil {
			err = in.Create(f.Name, f.Write)
		}
	}
	if err == nil {
		err = in.Sync()
	}
	return errors.Join(err, in.Close())
}

// Finish moves committed files into place. It may be interrupted and done again.
func (d *Folder) Finish() error {
	in, err := d.Open(Committed) // an error for a symbolic link, whose target is not ours
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := in.Names()
	if err = errors.Join(err, in.Close()); err != nil {
		return err
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(b, a) }) // model.safetensors before config.json
	for _, name := range names {
		if err := d.Rename(Committed+"/"+name, name); err != nil {
			return err
		}
	}
	if err := d.Sync(); err != nil {
		return err
	}
	return d.Remove(Committed)
}

// Places returns where the files of a directory may be, the newest first, as beginnings of their paths.
func Places(root *os.Root) []string {
	if info, err := root.Lstat(Committed); err == nil && info.IsDir() { // a symbolic link is not ours
		return []string{Committed + "/", ""}
	}
	return []string{""}
}

// Together calls read, and calls it again if the files that it read were replaced meanwhile, so that they belong together. open opens
// a file that is always replaced with the others. If its error is fs.ErrNotExist, there is none.
func Together(open func() (*os.File, error), read func() error) error {
	for range 1000 { // during each round but the last, files were saved
		again, err := together(open, read)
		if !again {
			return err
		}
	}
	return fmt.Errorf("the files change all the time")
}

func together(open func() (*os.File, error), read func() error) (again bool, err error) {
	before, err := open()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	defer before.Close() // not before read has ended: then a new file could be taken for this one, since it may get the same inode
	result := read()
	after, err := open()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	defer after.Close()
	if before == nil || after == nil {
		return before != after, result
	}
	a, errA := before.Stat()
	b, errB := after.Stat()
	if err := errors.Join(errA, errB); err != nil {
		return false, err
	}
	return !os.SameFile(a, b), result
}
