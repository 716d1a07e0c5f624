// Package task makes data for training and evaluation.
//
// ReadText and GoSource read text from a file, a folder or Go's standard library. Split separates it into a training part and a held-out
// part. Sampler (for training) and Windows (for evaluation) cut it into windows of bytes with their targets. Bigram is a baseline for
// byte-level models on the same windows.
//
// NewSelectiveCopying, NewCopying, NewInductionHeads and NewAssociativeRecall are synthetic tasks. A Stream draws their sequences from a seed,
// without end. Accuracy counts the right predictions.
//
// The package does not know graphs or tensors: ids and targets are slices of int, (batch, length).
package task

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// File is one file of a Text.
type File struct {
	Name string // relative to the Text's path, with slashes on every system
	Data []byte
}

// Text is the content of a file, or of the text files in a folder and its subfolders, sorted by name.
type Text struct {
	Path  string
	Files []File
}

// Size returns the number of bytes in all files.
func (t Text) Size() int {
	n := 0
	for _, f := range t.Files {
		n += len(f.Data)
	}
	return n
}

// Join returns the bytes of all files, one after the other.
func (t Text) Join() []byte {
	joined := make([]byte, 0, t.Size())
	for _, f := range t.Files {
		joined = append(joined, f.Data...)
	}
	return joined
}

// ReadText reads at most limit bytes of text from a file or from the files below a folder.
//
// A file is read up to the limit, whatever its bytes. Of a folder, ReadText takes the regular files that look like text: valid UTF-8 without
// a zero byte. It leaves out hidden files and folders, and second copies of the same bytes. If there is more than limit bytes, it chooses
// files by a hash of their names: from the whole folder, and the same files every time.
//
// It is an error if path is neither a regular file nor a folder, if path or anything below it cannot be read, or if it has no text. The
// error names the path.
func ReadText(path string, limit int) (Text, error) {
	return readText(path, limit, func(string, fs.DirEntry) bool { return true }, func([]byte) bool { return true })
}

// readText is ReadText of the files and folders for which wantName, with the name below path, and wantData are true.
func readText(path string, limit int, wantName func(string, fs.DirEntry) bool, wantData func([]byte) bool) (Text, error) {
	if limit < 1 {
		return Text{}, fmt.Errorf("task: read text: limit is %d bytes, should be at least 1", limit)
	}
	info, err := os.Stat(path)
	if err != nil {
		return Text{}, readError(path, err)
	}
	text := Text{Path: path}
	if !info.IsDir() && !info.Mode().IsRegular() { // to open a pipe would wait for a writer
		return Text{}, fmt.Errorf("task: read text: %s is %v, should be a regular file or a folder", path, info.Mode().Type())
	}
	if info.IsDir() {
		text.Files, err = readDir(path, limit, wantName, wantData)
	} else {
		var data []byte
		data, err = readFile(path, limit)
		text.Files = []File{{Name: filepath.Base(path), Data: data}}
	}
	if err != nil {
		return Text{}, err
	}
	if text.Size() == 0 {
		if info.IsDir() {
			return Text{}, fmt.Errorf("task: read text: %s: no text files in this directory", path)
		}
		return Text{}, fmt.Errorf("task: read text: %s: the file is empty", path)
	}
	return text, nil
}

func readDir(path string, limit int, wantName func(string, fs.DirEntry) bool, wantData func([]byte) bool) ([]File, error) {
	names, err := listFiles(path, wantName)
	if err != nil {
		return nil, err
	}
	sortByHash(names)
	var files []File
	seen := make(map[[sha256.Size]byte]bool)
	for _, name := range names {
		if limit == 0 {
			break
		}
		data, err := readFile(filepath.Join(path, filepath.FromSlash(name)), limit)
		if err != nil {
			return nil, err
		}
		// With a copy in the other part of a split, a model would be tested on its training text.
		sum := sha256.Sum256(data)
		if len(data) == 0 || seen[sum] || !looksLikeText(data) || !wantData(data) {
			continue
		}
		seen[sum] = true
		files = append(files, File{Name: name, Data: data})
		limit -= len(data)
	}
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	return files, nil
}

// listFiles returns the names of the wanted regular files below path.
func listFiles(path string, want func(string, fs.DirEntry) bool) ([]string, error) {
	// WalkDir does not enter a root that is a symbolic link. Distributions link Go's source.
	root, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, readError(path, err)
	}
	var names []string
	err = filepath.WalkDir(root, func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			return readError(p, err)
		}
		if p == root {
			return nil
		}
		relative, err := filepath.Rel(root, p)
		if err != nil {
			return readError(p, err)
		}
		name := filepath.ToSlash(relative)
		wanted := !strings.HasPrefix(entry.Name(), ".") && want(name, entry)
		switch {
		case entry.IsDir() && !wanted:
			return fs.SkipDir
		case entry.Type().IsRegular() && wanted:
			names = append(names, name)
		}
		return nil
	})
	return names, err
}

// sortByHash sorts names by a hash, so that the first names are a fair sample of all.
func sortByHash(names []string) {
	slices.SortFunc(names, func(a, b string) int {
		ha, hb := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
		return bytes.Compare(ha[:], hb[:])
	})
}

func readFile(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, readError(path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)))
	if err != nil {
		return nil, readError(path, err)
	}
	return data, nil
}

// readError returns an error with the path and the system's reason, without the name of the system call.
func readError(path string, err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	return fmt.Errorf("task: read text: %s: %w", path, err)
}

// looksLikeText reports whether the beginning of data is UTF-8 without zero bytes.
func looksLikeText(data []byte) bool {
	head := data[:min(len(data), 8000)]
	if bytes.IndexByte(head, 0) >= 0 {
		return false
	}
	for len(head) > 0 {
		r, size := utf8.DecodeRune(head)
		if r == utf8.RuneError && size == 1 {
			// The head or the limit can end inside a rune.
			return len(head) < utf8.UTFMax && !utf8.FullRune(head)
		}
		head = head[size:]
	}
	return true
}
