package tokens

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/gomlx/go-huggingface/hub"
)

// DownloadConfig says how Download works. The zero value is useful.
type DownloadConfig struct {
	// CacheDir is the folder of the cache. The default is the one that Hugging Face's programs use: $HF_HUB_CACHE, or $HF_HOME/hub, or
	// $XDG_CACHE_HOME/huggingface/hub, or ~/.cache/huggingface/hub.
	CacheDir string
	// Progress is called when a file begins, and whenever bytes have arrived. It is not called if nothing has to be downloaded.
	Progress func(Progress)
}

// Progress says how far a download is.
type Progress struct {
	File        string // the file that is downloaded now
	Size        int64  // of that file, in bytes
	Done, Total int64  // of all files that were missing, in bytes; Done falls if the server has to send a file again
}

var repository = regexp.MustCompile(`^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$`)

// IsRepository reports whether name has the form of a repository's name, "OWNER/NAME".
func IsRepository(name string) bool {
	return repository.MatchString(name) && !strings.Contains(name, "..")
}

// Download returns a folder for Open and checkpoint.Load with the model of a repository of the Hugging Face hub, such as
// "state-spaces/mamba-130m-hf". The folder has the model's configuration, tokenizer.json and weights, or a LoRA adapter.
//
// Files that are not in the cache are downloaded. A download that was interrupted continues where it stopped, in this process or
// another. If two processes want the same file, the second waits for the first. The hash of every file is checked. If all files
// are in the cache, the network is not used. The environment variable HF_ENDPOINT sets the address of the hub, which is
// https://huggingface.co by default. The repository must be public.
//
// It is an error if name is not "OWNER/NAME", if ctx ends, if the hub does not answer or does not have the repository, or if the
// hash of a file is not the one that the hub gives.
func Download(ctx context.Context, name string, cfg DownloadConfig) (dir string, err error) {
	if ctx == nil {
		return "", errors.New("tokens: download: ctx is nil, should be a context")
	}
	if !IsRepository(name) {
		return "", fmt.Errorf("tokens: download: name is %q, should be OWNER/NAME of the Hugging Face hub", name)
	}
	if cfg.CacheDir == "" {
		cfg.CacheDir = cache()
	}
	if dir, err = download(ctx, name, cfg); err != nil {
		return "", fmt.Errorf("tokens: download %s: %w", name, plain(err))
	}
	return dir, nil
}

func download(ctx context.Context, name string, cfg DownloadConfig) (dir string, err error) {
	repo := hub.New(name).WithCacheDir(cfg.CacheDir)
	repo.Verbosity = 0
	root, err := repo.CacheDir()
	if err != nil {
		return "", err
	}
	locks := filepath.Join(cfg.CacheDir, ".locks", filepath.Base(root)) // where Hugging Face's programs have them
	if err := ask(ctx, repo, locks, false); err != nil {
		return "", err
	}
	if dir, missing, err := lacks(root, repo.Info()); err != nil || len(missing) == 0 {
		return dir, err
	}
	if err := ask(ctx, repo, locks, true); err != nil { // the cached answer may be old
		return "", err
	}
	dir, missing, err := lacks(root, repo.Info())
	if err != nil {
		return "", err
	}
	var show Progress
	for _, file := range missing {
		show.Total += file.Size
	}
	add := func(bytes int64) {
		show.Done += bytes
		if cfg.Progress != nil {
			cfg.Progress(show)
		}
	}
	for _, file := range missing {
		from, err := repo.FileURL(file.Name)
		if err != nil {
			return "", err
		}
		show.File, show.Size = file.Name, file.Size
		add(0)
		blob := filepath.Join(root, "blobs", blobName(file))
		if err := fetch(ctx, from, blob, locks, file, add); err != nil {
			return "", fmt.Errorf("%s: %w", file.Name, plain(err))
		}
		if err := link(filepath.Join(dir, file.Name), filepath.Join("..", "..", "blobs", filepath.Base(blob))); err != nil {
			return "", err
		}
	}
	return dir, mark(root, repo.Info().CommitHash)
}

// ask gets the list of the repository's files, from the cache or, with again, from the hub. The library takes no context: when ctx ends,
// its request is left to end by itself. It holds a lock meanwhile, since the library's own renaming fails if two processes ask at once.
func ask(ctx context.Context, repo *hub.Repo, locks string, again bool) error {
	lock, err := lockFile(ctx, locks, "info")
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer lock.Close()
		if !again {
			done <- repo.DownloadInfo(false)
			return
		}
		_, err := repo.FileURL("") // asks the hub, and remembers that it did
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cache returns the folder that Hugging Face's programs use, from the same variables of the environment.
func cache() string {
	if dir := os.Getenv("HF_HUB_CACHE"); dir != "" {
		return dir
	}
	if dir := os.Getenv("HF_HOME"); dir != "" {
		return filepath.Join(dir, "hub")
	}
	return hub.DefaultCacheDir()
}

// lacks returns the folder of a snapshot, and the files of the model that are not in it.
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
	// Hashes become names of files in the cache, and must not lead out of it.
	hexadecimal = regexp.MustCompile(`^[0-9a-f]{40,64}$`)

	shard  = regexp.MustCompile(`^(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)$`)
	always = []string{"config.json", "generation_config.json", "tokenizer.json", "adapter_config.json", "adapter_model.safetensors"}
)

// wanted returns the files of a model among those of its repository. Of weights in several formats it returns those that
// checkpoint.Load prefers.
func wanted(files []*hub.FileInfo) (w []*hub.FileInfo) {
	has := func(name string) bool {
		return slices.ContainsFunc(files, func(f *hub.FileInfo) bool { return f.Name == name })
	}
	weights := ""
	for _, name := range []string{"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"} {
		if weights == "" && has(name) {
			weights = name
		}
	}
	isShard := func(name string) bool {
		return strings.HasSuffix(weights, ".index.json") && shard.MatchString(name) &&
			filepath.Ext(name) == filepath.Ext(strings.TrimSuffix(weights, ".index.json"))
	}
	for _, f := range files {
		if slices.Contains(always, f.Name) || f.Name == weights || isShard(f.Name) {
			w = append(w, f)
		}
	}
	return w
}

// link makes path a link to a blob. The link is relative, so that the cache can be moved.
func link(path, blob string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(blob, path)
}

// mark records the snapshot of the main branch. Hugging Face's programs read this when they have no network.
func mark(root, commit string) error {
	path := filepath.Join(root, "refs", "main")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(commit), 0o644)
}

// plain returns an error of one line. Of an error of the network it leaves out what the library says around it.
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
