//go:build unix

package task

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A pipe is refused without being opened, which would wait for a writer.
func TestReadPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skipf("no pipes here: %v", err)
	}
	if _, err := ReadText(path, 100); err == nil || !strings.Contains(err.Error(), path+" is p---------, should be a regular file or a folder") {
		t.Errorf("%v", err)
	}
}
