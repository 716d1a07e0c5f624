// Package download brings a model of the Hugging Face hub into its cache on this machine, where Hugging Face's own programs
// find it and look for it, for the examples.
package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/gomlx/go-huggingface/hub"
)

var repository = regexp.MustCompile(`^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$`)

// IsRepository is whether a name can be that of a repository, OWNER/NAME.
func IsRepository(name string) bool {
	return repository.MatchString(name) && !strings.Contains(name, "..")
}

// Model returns the directory of a repository's model in the cache: configuration, tokenizer and weights. What is not there
// is downloaded, and what is there in part is completed; every file is checked by its hash. With all there, nothing is asked
// of the network. Progress goes to out: a bar on a terminal, and otherwise a line for each file.
func Model(ctx context.Context, name string, out io.Writer) (dir string, err error) {
	repo := hub.New(name).WithCacheDir(cache())
	repo.Verbosity = 0
	if err := repo.DownloadInfo(false); err != nil {
		return "", plain(err)
	}
	root, err := repo.CacheDir()
	if err != nil {
		return "", plain(err)
	}
	if dir, missing, err := lacks(root, repo.Info()); err != nil || len(missing) == 0 {
		return dir, err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if _, err := repo.FileURL(""); err != nil { // asks the hub again: what was known may be old
		return "", plain(err)
	}
	dir, missing, err := lacks(root, repo.Info())
	if err != nil {
		return "", err
	}
	show := newProgress(out, missing)
	defer show.finish()
	for _, file := range missing {
		from, err := repo.FileURL(file.Name)
		if err != nil {
			return "", plain(err)
		}
		blob := filepath.Join(root, "blobs", blobName(file))
		show.begin(file)
		if err := fetch(ctx, from, blob, file, show.add); err != nil {
			return "", fmt.Errorf("%s: %w", file.Name, plain(err))
		}
		if err := link(filepath.Join(dir, file.Name), filepath.Join("..", "..", "blobs", filepath.Base(blob))); err != nil {
			return "", err
		}
	}
	return dir, mark(root, repo.Info().CommitHash)
}

// cache is the folder that Hugging Face's programs use, by the same variables of the environment.
func cache() string {
	if dir := os.Getenv("HF_HUB_CACHE"); dir != "" {
		return dir
	}
	if dir := os.Getenv("HF_HOME"); dir != "" {
		return filepath.Join(dir, "hub")
	}
	return hub.DefaultCacheDir()
}

// lacks returns the directory of a snapshot and the files of the model that are not in it.
func lacks(root string, info *hub.RepoInfo) (dir string, missing []*hub.FileInfo, err error) {
	if !hexadecimal.MatchString(info.CommitHash) {
		return "", nil, fmt.Errorf("the hub names the commit %q, should be its hash", info.CommitHash)
	}
	dir = filepath.Join(root, "snapshots", info.CommitHash)
	for _, file := range wanted(info.Siblings) {
		if !hexadecimal.MatchString(blobName(file)) {
			return "", nil, fmt.Errorf("the hub names the hash %q for %s, should be hexadecimal", blobName(file), file.Name)
		}
		if _, err := os.Stat(filepath.Join(dir, file.Name)); err != nil {
			missing = append(missing, file)
		}
	}
	return dir, missing, nil
}

var (
	// Hashes are names of files in the cache, which must not lead out of it.
	hexadecimal = regexp.MustCompile(`^[0-9a-f]{40,64}$`)

	shard  = regexp.MustCompile(`^model-\d+-of-\d+\.safetensors$`)
	always = []string{"config.json", "generation_config.json", "tokenizer.json"}
)

// wanted returns the files of a model among those of its repository: weights in the one format that is read first.
func wanted(files []*hub.FileInfo) (w []*hub.FileInfo) {
	has := func(name string) bool {
		return slices.ContainsFunc(files, func(f *hub.FileInfo) bool { return f.Name == name })
	}
	weights := func(name string) bool { return name == "pytorch_model.bin" }
	switch {
	case has("model.safetensors"):
		weights = func(name string) bool { return name == "model.safetensors" }
	case has("model.safetensors.index.json"):
		weights = func(name string) bool { return name == "model.safetensors.index.json" || shard.MatchString(name) }
	}
	for _, f := range files {
		if slices.Contains(always, f.Name) || weights(f.Name) {
			w = append(w, f)
		}
	}
	return w
}

// link makes the snapshot's file a link to the blob, relative, so that the cache can be moved.
func link(path, blob string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(blob, path)
}

// mark says which snapshot the main branch is, as Hugging Face's programs want to know without a network.
func mark(root, commit string) error {
	path := filepath.Join(root, "refs", "main")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(commit), 0o644)
}

// plain returns an error in one line; of one of the network, what a user can do something with.
func plain(err error) error {
	var wrong *url.Error
	if errors.As(err, &wrong) {
		return wrong
	}
	if text := err.Error(); strings.Contains(text, "\n") {
		return errors.New(strings.Join(strings.Fields(text), " "))
	}
	return err
}
