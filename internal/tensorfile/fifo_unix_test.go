//go:build unix

package tensorfile

import (
	"path/filepath"
	"strings"
	"testing"

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
