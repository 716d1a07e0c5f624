// Package task makes the data that models train on.
//
// ReadText and GoSource read text from a file, a directory, or the source of Go's standard library. Split divides it into a training
// part and a held-out part. Sampler and Windows cut these into windows of byte ids and their targets, for training and for evaluation.
// Bigram is the baseline that a byte-level model has to beat on the same windows.
//
// NewSelectiveCopying, NewCopying, NewInductionHeads and NewAssociativeRecall return synthetic tasks. A Stream draws batches of one from
// a seed, and Accuracy counts the right answers.
//
// The package does not use graphs or tensors. Ids and targets are plain slices in the order (batch, length).
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

// Text is the text of one path: a single file, or the text files below a directory in the order of their names.
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

// ReadText reads at most limit bytes of text from a file or from the files below a directory.
//
// A single file is read up to the limit, whatever its bytes are. Below a directory, ReadText reads the regular files that look like text
// (valid UTF-8 without a zero byte). It leaves out hidden files and directories, and second copies of the same bytes. If the files
// exceed the limit, a hash of their names chooses among them, so that the choice is spread over the whole directory, and the same every
// time.
//
// It is an error, which names the path, if the path is neither a regular file nor a directory, if it or a file below it cannot be read,
// or if there is no text in it.
func ReadText(path string, limit int) (Text, error) {
	return readText(path, limit, func(string, fs.DirEntry) bool { return true }, func([]byte) bool { return true })
}

// readText is ReadText for the files and directories whose name below path, and then whose contents, are wanted.
func readText(path string, limit int, wantName func(string, fs.DirEntry) bool, wantData func([]byte) bool) (Text, error) {
	if limit < 1 {
		return Text{}, fmt.Errorf("task: read text: limit is %d bytes, should be at least 1", limit)
	}
	info, err := os.Stat(path)
	if err != nil {
		return Text{}, readError(path, err)
	}
	text := Text{Path: path}
	if info.IsDir() {
		text.Files, err = readDir(path, limit, wantName, wantData)
	} else if !info.Mode().IsRegular() {
		return Text{}, fmt.Errorf("task: read text: %s: this is neither a regular file nor a directory", path)
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
		// A copy that ended up on the other side of a split would test a model on what it was trained on.
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
	// WalkDir does not enter a root that is a symbolic link, and distributions link Go's source.
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

// sortByHash puts names into an order that has nothing to do with what they mean, so that the first of them are a fair
// sample of all.
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

// readError says which path could not be read, and the system's reason, without the name of the system call.
func readError(path string, err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	return fmt.Errorf("task: read text: %s: %w", path, err)
}

// looksLikeText tells whether the beginning of data is UTF-8 without zero bytes.
func looksLikeText(data []byte) bool {
	head := data[:min(len(data), 8000)]
	if bytes.IndexByte(head, 0) >= 0 {
		return false
	}
	for len(head) > 0 {
		r, size := utf8.DecodeRune(head)
		if r == utf8.RuneError && size == 1 {
			// The end of the head or the limit may have cut a rune in two.
			return len(head) < utf8.UTFMax && !utf8.FullRune(head)
		}
		head = head[size:]
	}
	return true
}
