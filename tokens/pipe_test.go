//go:build unix

package tokens

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A pipe is refused without being opened, which would wait for a writer.
func TestPipe(t *testing.T) {
	for _, name := range []string{"tokenizer.json", "generation_config.json", "config.json"} {
		dir := t.TempDir()
		if name != "tokenizer.json" {
			dir = write(t, nil)
		}
		path := filepath.Join(dir, name)
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Skipf("no pipes here: %v", err)
		}
		if _, err := Open(dir, 464); err == nil || !strings.Contains(err.Error(), path+" is a named pipe") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
