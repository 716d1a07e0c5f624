package tensorfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"github.com/gofrs/flock"
)

// ErrLocked is in the errors of Acquire and Replace if another process holds the lock.
var ErrLocked = errors.New("another process is writing it")

// Lock is this process's right to write a file. While it is held, no other process can acquire it. Any number of goroutines of
// the process may hold it together. A lock ends with its process, even if the process is killed.
type Lock struct {
	*holder
	once sync.Once
	err  error
}

// holder is a lock file, held once for the whole process.
type holder struct {
	dir, name string // of what is locked
	file      *flock.Flock
	uses      int
	writing   sync.Mutex // one goroutine writes at a time
}

var holders = struct {
	sync.Mutex
	of map[string]*holder
}{of: map[string]*holder{}}

// Acquire locks a path for this process. The path itself need not exist, but its folder must. Release the lock.
//
// The lock is a file beside the path, ".NAME.lock", which holds the number of the process and is removed by Release. If another
// process has the lock, the error is ErrLocked and names that process. A file system without locks is used without them.
func Acquire(path string) (*Lock, error) {
	dir, name := filepath.Split(path)
	if name == "" || name == "." || name == ".." {
		return nil, fmt.Errorf("path is %q, want the name of a file", path)
	}
	dir, err := filepath.EvalSymlinks(filepath.Clean(dir))
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return nil, err
	}
	holders.Lock()
	defer holders.Unlock()
	key := filepath.Join(dir, name)
	h := holders.of[key]
	if h == nil {
		h = &holder{dir: dir, name: name}
		if err := h.acquire(path); err != nil {
			return nil, err
		}
		holders.of[key] = h
	}
	h.uses++
	return &Lock{holder: h}, nil
}

// Do opens the folder of the locked path and calls f. Goroutines wait for each other.
func (l *Lock) Do(f func(*Folder) error) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.renew(); err != nil {
		return err
	}
	d, err := OpenFolder(l.dir)
	if err != nil {
		return err
	}
	return errors.Join(f(d), d.Close())
}

// Release ends the use of the lock. Further calls do nothing and return the same error.
func (l *Lock) Release() error {
	l.once.Do(func() {
		holders.Lock()
		defer holders.Unlock()
		if l.uses--; l.uses == 0 {
			delete(holders.of, filepath.Join(l.dir, l.name))
			l.err = l.release()
		}
	})
	return l.err
}

func (h *holder) lockFile() string { return filepath.Join(h.dir, "."+h.name+".lock") }

func (h *holder) acquire(path string) error {
	if err := operation("lock", h.name); errors.Is(err, errors.ErrUnsupported) {
		return nil
	} else if err != nil {
		return err
	}
	file := h.lockFile()
	f := flock.New(file, flock.SetFlag(os.O_RDWR|os.O_CREATE|noFollow|nonBlock), flock.SetPermissions(0o666))
	for {
		ok, err := f.TryLock()
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			return nil
		case err != nil:
			return err
		case !ok:
			return fmt.Errorf("%s: %w%s", path, ErrLocked, holderOf(file))
		}
		// The process that held the lock may have removed the file after this one opened it. Then this lock locks nothing.
		if locks(f) {
			break
		}
		if err := f.Unlock(); err != nil {
			return err
		}
	}
	info, err := f.Stat()
	created := err == nil && info.Mode().IsRegular() && info.Size() == 0 && !hasLinks(info)
	if err := h.claim(file); err != nil {
		if created {
			err = errors.Join(err, os.Remove(file))
		}
		return errors.Join(err, f.Unlock())
	}
	h.file = f
	return nil
}

// locks reports whether a locked file is still the one that has its name.
func locks(f *flock.Flock) bool {
	opened, err := f.Stat()
	there, err2 := os.Lstat(f.Path())
	return f.Locked() && err == nil && err2 == nil && os.SameFile(opened, there)
}

// renew acquires the lock again if somebody has removed the lock file meanwhile. It is an error if another process has acquired it.
func (h *holder) renew() error {
	if h.file == nil || locks(h.file) {
		return nil
	}
	lost := h.file
	err := h.acquire(filepath.Join(h.dir, h.name))
	if err == nil {
		err = lost.Close()
	}
	return err
}

// claim writes the number of the process into the lock file, after it has removed what a killed process left.
func (h *holder) claim(file string) error {
	f, err := openRegular(system{}, file, os.O_RDWR|noFollow)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return err
	}
	if _, err := processOf(text); len(text) > 0 && err != nil || hasLinks(info) { // a link would lead to a file of somebody else
		return fmt.Errorf("%s is no lock file of this package: remove it or save elsewhere", file)
	}
	if len(text) > 0 { // Release removes the file, so the process that wrote this number was killed.
		folder, err := OpenFolder(h.dir)
		if err != nil {
			return err
		}
		if err := errors.Join(folder.sweep(h.name), folder.Close()); err != nil {
			return err
		}
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	return err
}

func (h *holder) release() error {
	if h.file == nil {
		return nil
	}
	if !locks(h.file) { // a file of this name now belongs to another process
		return h.file.Close()
	}
	var err error
	if runtime.GOOS != "windows" { // where an open file cannot be removed
		if err = operation("remove", filepath.Base(h.lockFile())); err == nil {
			err = os.Remove(h.lockFile())
		}
	}
	return errors.Join(err, h.file.Unlock())
}

func processOf(text []byte) (int, error) { return strconv.Atoi(string(bytes.TrimSpace(text))) }

// holderOf returns ", process 123" if a lock file says so.
func holderOf(file string) string {
	f, err := openRegular(system{}, file, os.O_RDONLY|noFollow)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, 64))
	if process, err := processOf(text); err == nil {
		return fmt.Sprintf(", process %d", process)
	}
	return ""
}
