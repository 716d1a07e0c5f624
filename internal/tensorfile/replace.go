package tensorfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Replace writes a file as a whole. A program or machine that stops at any moment leaves the old file or the new one.
//
// The new file is written under a random name in the same folder, synced, and renamed to path; then the folder is synced. After
// an error the old file is unchanged, and the file with the random name is removed. If the process was killed, the next Lock or
// Replace of the same path removes that file.
//
// A symbolic link at path is replaced by the file; its target does not change. It is an error if another process holds the Lock
// of path. Goroutines of one process wait for each other.
func Replace(path string, write func(io.Writer) error) (err error) {
	l, err := Acquire(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Release()) }()
	return l.Do(func(d *Folder) error { return d.replace(l.name, write) })
}

func (d *Folder) replace(name string, write func(io.Writer) error) error {
	if err := d.replaceable(name); err != nil {
		return err
	}
	temporary := "." + name + "." + RandomName() + ".tmp"
	if err := d.Create(temporary, write); err != nil {
		return err
	}
	if err := d.Rename(temporary, name); err != nil {
		return errors.Join(err, d.Remove(temporary))
	}
	return d.Sync()
}

// replaceable returns an error if a name is that of something else than a regular file or a symbolic link.
func (d *Folder) replaceable(name string) error {
	if info, err := d.Lstat(name); err == nil && !info.Mode().IsRegular() && info.Mode()&os.ModeSymlink == 0 {
		return fmt.Errorf("%s is %s, no regular file, and is not replaced", name, kindOf(info.Mode()))
	}
	return nil
}

// RandomName returns 16 hexadecimal digits that nobody can predict.
func RandomName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// sweep removes what killed processes left when they replaced a file of the given name.
func (d *Folder) sweep(name string) error {
	names, err := d.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		random, ok := strings.CutPrefix(n, "."+name+".")
		random, tmp := strings.CutSuffix(random, ".tmp")
		if _, err := hex.DecodeString(random); !ok || !tmp || err != nil || len(random) != 16 {
			continue
		}
		if err := d.Remove(n); err != nil {
			return err
		}
	}
	return nil
}
