package tensorfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
)

var interceptor atomic.Pointer[func(op, name string) error]

// Intercept calls f before every operation on a disk: lock, create, write, sync, close, rename, remove, mkdir, sync folder, open and
// read. If f returns an error, the operation fails with it and does nothing. restore ends this. f runs in one goroutine at a time,
// and must not use this package.
//
// It is for tests, which record the order of the operations or make one of them fail.
func Intercept(f func(op, name string) error) (restore func()) {
	var mu sync.Mutex
	alone := func(op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		return f(op, name)
	}
	old := interceptor.Swap(&alone)
	return func() { interceptor.Store(old) }
}

var steps atomic.Uint64

// Steps returns how many operations on disks have begun in this process, and how many pieces of tensors were written or hashed: a sign that a long save makes
// progress.
func Steps() uint64 { return steps.Load() }

func operation(op, name string) error {
	steps.Add(1)
	if f := interceptor.Load(); f != nil {
		return (*f)(op, name)
	}
	return nil
}

// Folder is an open folder to write to. Names are relative to it. A symbolic link that leads out of it is an error, even if the
// link is made while the folder is open.
type Folder struct{ root *os.Root }

// MakeFolder makes a folder, and those that it is in, if they do not exist. Their names are synced.
func MakeFolder(path string) error {
	if path == "" {
		return errors.New("the path of the folder is empty")
	}
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		return fmt.Errorf("%s is %s, want a folder", path, kindOf(info.Mode()))
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	in := filepath.Dir(path)
	if in == path {
		return err
	}
	if err := MakeFolder(in); err != nil {
		return err
	}
	d, err := OpenFolder(in)
	if err != nil {
		return err
	}
	if err = d.Mkdir(filepath.Base(path)); errors.Is(err, os.ErrExist) { // another process has made it
		err = nil
	}
	if err == nil {
		err = d.Sync()
	}
	return errors.Join(err, d.Close())
}

// OpenFolder opens a folder. Close it.
func OpenFolder(path string) (*Folder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Folder{root}, nil
}

// Close closes the folder.
func (d *Folder) Close() error { return d.root.Close() }

// Open opens a folder within the folder. The name must not be a symbolic link.
func (d *Folder) Open(name string) (*Folder, error) {
	info, err := d.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is %s, want a folder", filepath.Join(d.root.Name(), name), kindOf(info.Mode()))
	}
	root, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	return &Folder{root}, nil
}

// ReadFile returns the contents of a regular file of at most limit bytes.
func (d *Folder) ReadFile(name string, limit int64) ([]byte, error) {
	return readFile(d.root, name, limit)
}

// Lstat describes what has a name, without following a symbolic link.
func (d *Folder) Lstat(name string) (os.FileInfo, error) { return d.root.Lstat(name) }

// Names returns the names in the folder, sorted.
func (d *Folder) Names() ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	entries, err := f.ReadDir(-1)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, errors.Join(err, f.Close())
}

// Create makes a file with what write writes, and syncs it. It is an error if the name exists. After an error there is no file.
func (d *Folder) Create(name string, write func(io.Writer) error) error {
	if err := operation("create", name); err != nil {
		return err
	}
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(&syncing{diskFile: diskFile{f, name}}, 1<<20)
	if err = write(w); err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = diskFile{f, name}.sync("sync")
	}
	if err = errors.Join(err, diskFile{f, name}.close()); err != nil {
		return errors.Join(err, d.Remove(name))
	}
	return nil
}

// diskFile is a file whose operations can be intercepted.
type diskFile struct {
	file *os.File
	name string
}

func (f diskFile) Write(b []byte) (int, error) {
	if err := operation("write", f.name); err != nil {
		return 0, err
	}
	return f.file.Write(b)
}

// syncing is a file that is synced while it is written, every syncBytes: one sync of a large file can take minutes on a slow disk, in which a process shows no sign of life
// (Steps). A disk that does not answer at all still shows none.
type syncing struct {
	diskFile
	unsynced int
}

var syncBytes = 64 << 20 // a variable for tests

func (f *syncing) Write(b []byte) (int, error) {
	n, err := f.diskFile.Write(b)
	if f.unsynced += n; err == nil && f.unsynced >= syncBytes {
		f.unsynced, err = 0, f.sync("sync")
	}
	return n, err
}

// sync writes what the file holds to the disk. op is what the interceptor sees.
func (f diskFile) sync(op string) error {
	if err := operation(op, f.name); err != nil {
		return err
	}
	return f.file.Sync()
}

func (f diskFile) close() error {
	return errors.Join(operation("close", f.name), f.file.Close())
}

// Mkdir makes a folder within the folder. It is an error if the name exists.
func (d *Folder) Mkdir(name string) error {
	if err := operation("mkdir", name); err != nil {
		return err
	}
	return d.root.Mkdir(name, 0o777)
}

// Rename gives a new name to a file or folder. It replaces a file of that name. Symbolic links are renamed, not followed.
func (d *Folder) Rename(from, to string) error {
	if err := operation("rename", to); err != nil {
		return err
	}
	return d.root.Rename(from, to)
}

// Remove removes a file, a symbolic link or an empty folder.
func (d *Folder) Remove(name string) error {
	if err := operation("remove", name); err != nil {
		return err
	}
	return d.root.Remove(name)
}

// RemoveAll removes a folder and everything in it. It does not follow symbolic links.
func (d *Folder) RemoveAll(name string) error {
	if err := operation("remove", name); err != nil {
		return err
	}
	return d.root.RemoveAll(name)
}

// Sync writes the folder's list of names to the disk. Windows cannot do this, and does not need to.
func (d *Folder) Sync() error {
	if runtime.GOOS == "windows" {
		return operation("sync folder", d.root.Name())
	}
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(diskFile{f, d.root.Name()}.sync("sync folder"), f.Close())
}

// opener opens files: os.Root, or system.
type opener interface {
	Stat(name string) (os.FileInfo, error)
	OpenFile(name string, flag int, perm os.FileMode) (*os.File, error)
}

// system opens any path.
type system struct{}

func (system) Stat(name string) (os.FileInfo, error) { return os.Stat(name) }

func (system) OpenFile(name string, flag int, perm os.FileMode) (*os.File, error) {
	return os.OpenFile(name, flag, perm)
}

// OpenFile opens a regular file for reading. Anything else is an error at once: a named pipe would wait for its other end, and a
// device might have no end.
func OpenFile(path string) (*os.File, error) { return openRegular(system{}, path, os.O_RDONLY) }

// OpenRegular is like OpenFile, for a file in a folder.
func OpenRegular(root *os.Root, name string) (*os.File, error) {
	return openRegular(root, name, os.O_RDONLY)
}

func openRegular(o opener, name string, flag int) (*os.File, error) {
	if err := operation("open", name); err != nil {
		return nil, err
	}
	info, err := o.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is %s, no regular file", name, kindOf(info.Mode()))
	}
	f, err := o.OpenFile(name, flag|nonBlock, 0)
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err == nil && !info.Mode().IsRegular() { // it was replaced after Stat
		err = fmt.Errorf("%s is %s, no regular file", name, kindOf(info.Mode()))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// kindOf returns what a file is, for an error.
func kindOf(m os.FileMode) string {
	switch {
	case m.IsRegular():
		return "a file"
	case m.IsDir():
		return "a folder"
	case m&os.ModeSymlink != 0:
		return "a symbolic link"
	case m&os.ModeNamedPipe != 0:
		return "a named pipe"
	case m&os.ModeSocket != 0:
		return "a socket"
	case m&os.ModeDevice != 0:
		return "a device"
	}
	return "a special file"
}
