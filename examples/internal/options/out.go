package options

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// CheckPNG returns an error, before the work, if the picture that -out names could not be written after it. An empty path means
// no picture.
func CheckPNG(path string) error {
	if path == "" {
		return nil
	}
	if !strings.EqualFold(filepath.Ext(path), ".png") {
		return fmt.Errorf("invalid value %q for flag -out: should end in .png", path)
	}
	// A picture is written beside the old one and renamed, so the folder must accept new files.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return OutError(path, &fs.PathError{Err: errors.New("it is a directory or another special file")})
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".check-*")
	if err != nil {
		return OutError(path, err)
	}
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
		return OutError(path, err)
	}
	return nil
}

// OutError adds -out to an error of the file system, and what it should name. It returns other errors as they are.
func OutError(path string, err error) error { return outError(path, "file", err) }

// OutDirError is OutError for a program whose -out names a directory.
func OutDirError(path string, err error) error { return outError(path, "directory", err) }

func outError(path, what string, err error) error {
	var pathError *fs.PathError
	var linkError *os.LinkError
	switch {
	case errors.As(err, &pathError):
		err = pathError.Err
	case errors.As(err, &linkError):
		err = linkError.Err
	default:
		return err
	}
	return fmt.Errorf("-out is %q, should be a %s that can be written: %w", path, what, err)
}
