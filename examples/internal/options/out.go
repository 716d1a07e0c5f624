package options

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// CheckPNG finds out before the work whether the picture that -out names can be written after it. No name is no picture.
func CheckPNG(path string) error {
	if path == "" {
		return nil
	}
	if !strings.EqualFold(filepath.Ext(path), ".png") {
		return fmt.Errorf("invalid value %q for flag -out: should end in .png", path)
	}
	_, missing := os.Stat(path)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return OutError(path, err)
	}
	if err := f.Close(); err != nil {
		return OutError(path, err)
	}
	if missing != nil {
		return os.Remove(path)
	}
	return nil
}

// OutError is an error of the file that -out names.
func OutError(path string, err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	return fmt.Errorf("-out is %q, should be a file that can be written: %w", path, err)
}
