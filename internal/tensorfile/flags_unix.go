//go:build unix

package tensorfile

import "golang.org/x/sys/unix"

const (
	noFollow = unix.O_NOFOLLOW // opening a symbolic link is an error
	nonBlock = unix.O_NONBLOCK // opening a named pipe does not wait
)
