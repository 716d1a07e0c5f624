//go:build unix

package tensorfile

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	noFollow = unix.O_NOFOLLOW // opening a symbolic link is an error
	nonBlock = unix.O_NONBLOCK // opening a named pipe does not wait
)

// hasLinks reports whether a file has several names.
func hasLinks(info os.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && s.Nlink > 1
}
