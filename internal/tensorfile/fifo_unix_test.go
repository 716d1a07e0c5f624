//go:build unix

package tensorfile

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A named pipe in the lock file's place is an error, and does not wait.
func TestLockFileIsAPipe(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, ".s.lock"), 0o666); err != nil {
		t.Skip("this file system has no named pipes: ", err)
	}
	if err := Replace(filepath.Join(dir, "s"), text("new")); err == nil || !strings.Contains(err.Error(), "is a named pipe, no regular file") {
		t.Errorf("error %v", err)
	}
}

// What is not a regular file stays as it is. A test that runs as root once replaced a device by a file.
func TestReplaceIrregular(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := unix.Mkfifo(in("pipe"), 0o666); err != nil {
		t.Skip("this file system has no named pipes: ", err)
	}
	if err := os.Mkdir(in("folder"), 0o777); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", in("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for _, name := range []string{"pipe", "folder", "socket"} {
		before, err := os.Lstat(in(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := Replace(in(name), text("new")); err == nil || !strings.Contains(err.Error(), ", no regular file, and is not replaced") {
			t.Errorf("%s: error %v", name, err)
		}
		if after, err := os.Lstat(in(name)); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s was replaced: %v, %v", name, after, err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 3 {
		t.Errorf("left in the folder: %v, %v", names, err)
	}
	// A symbolic link is replaced itself, whatever it leads to.
	if err := os.Symlink(in("pipe"), in("link")); err != nil {
		t.Fatal(err)
	}
	if err := Replace(in("link"), text("new")); err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(in("link")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the link is %v, %v", info, err)
	}
}

// changing is a place where a regular file is replaced by a named pipe between Stat and OpenFile.
type changing struct {
	file string
	open *os.File
}

func (c *changing) Stat(string) (os.FileInfo, error) { return os.Stat(c.file) }

func (c *changing) OpenFile(name string, flag int, perm os.FileMode) (f *os.File, err error) {
	c.open, err = os.OpenFile(name, flag, perm)
	return c.open, err
}

// A named pipe that takes a file's place at the last moment is an error as well. It does not wait, and the pipe is closed.
func TestPipeAtTheLastMoment(t *testing.T) {
	dir := t.TempDir()
	c := &changing{file: filepath.Join(dir, "file")}
	if err := os.WriteFile(c.file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o666); err != nil {
		t.Skip("this file system has no named pipes: ", err)
	}
	watchdog := time.AfterFunc(time.Minute, func() { panic("opening the pipe waits") })
	defer watchdog.Stop()
	if _, err := openRegular(c, pipe, os.O_RDONLY); err == nil || !strings.Contains(err.Error(), "is a named pipe, no regular file") {
		t.Errorf("error %v", err)
	}
	if _, err := c.open.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the pipe is open: %v", err)
	}
}

// A file with holes can be larger than the machine's memory and the disk. It is an error at once.
func TestFileOfHoles(t *testing.T) {
	const size = 1 << 40
	path := filepath.Join(t.TempDir(), "s")
	header := fmt.Sprintf(`{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]},"__metadata__":{"sha256":"%s"}}`, int64(size/4), int64(size), strings.Repeat("0", 64))
	b := safetensorsFile(header, nil)
	if err := errors.Join(os.WriteFile(path, b, 0o666), os.Truncate(path, int64(len(b))+size)); err != nil {
		t.Skip("this file system has no file of a TiB: ", err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, read := ReadFile(path, 2<<40)
	for _, err := range []error{f.Check(), read} {
		if err == nil || !strings.Contains(err.Error(), "1 TiB, more than this machine's memory") {
			t.Errorf("error %v", err)
		}
	}
}
