package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// checkCurve finds out before the training whether the curve can be written after it.
func checkCurve(path string) error {
	if path == "" {
		return nil
	}
	_, missing := os.Stat(path)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return outError(path, err)
	}
	if err := f.Close(); err != nil {
		return outError(path, err)
	}
	if missing != nil {
		return os.Remove(path)
	}
	return nil
}

func outError(path string, err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	return fmt.Errorf("-out is %q, should be a file that can be written: %w", path, err)
}
