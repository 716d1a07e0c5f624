//go:build unix

package main

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Data that is a pipe is refused without being opened, which would wait for a writer.
func TestDataIsAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skipf("no pipes here: %v", err)
	}
	if _, err := readDocuments(path); err == nil || !strings.Contains(err.Error(), path+" is a named pipe") {
		t.Errorf("%v", err)
	}
}
