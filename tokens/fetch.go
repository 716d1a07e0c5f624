package tokens

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"github.com/gomlx/go-huggingface/hub"
)

// client gives up on a server that does not answer within a minute, but not on one that sends slowly.
var client = func() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = time.Minute
	return &http.Client{Transport: transport}
}()

// blobName returns a file's name in the cache: the hash that it is checked by.
func blobName(file *hub.FileInfo) string {
	if file.LFS != nil {
		return file.LFS.SHA256
	}
	return file.BlobID
}

// lockFile waits for the lock of a name in the folder of locks, until ctx ends. The caller closes it.
func lockFile(ctx context.Context, locks, name string) (*flock.Flock, error) {
	if err := os.MkdirAll(locks, 0o755); err != nil {
		return nil, err
	}
	lock := flock.New(filepath.Join(locks, name+".lock"))
	if _, err := lock.TryLockContext(ctx, 100*time.Millisecond); err != nil {
		return nil, err
	}
	return lock, nil
}

// fetch downloads a file to path. It continues what an earlier attempt has left, in this process or another one, and tries again as long
// as bytes arrive. It calls add with the number of bytes that it has found or received.
//
// The library would begin again from the start, with half a gigabyte and more.
func fetch(ctx context.Context, from, path, locks string, file *hub.FileInfo, add func(bytes int64)) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	lock, err := lockFile(ctx, locks, filepath.Base(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if _, err := os.Stat(path); err == nil {
		add(file.Size)
		return nil
	}
	part, err := os.OpenFile(path+".incomplete", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer part.Close()
	have, err := part.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	add(have)
	for have != file.Size {
		n, err := request(ctx, from, part, have, file.Size, add)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && n <= have {
			return err
		}
		have = n
	}
	if err := check(part, file); err != nil {
		return errors.Join(err, part.Truncate(0))
	}
	if err := part.Sync(); err != nil {
		return err
	}
	if err := part.Close(); err != nil {
		return err
	}
	return os.Rename(part.Name(), path)
}

// request asks for the bytes from offset have on, and returns how many bytes the file has afterwards.
func request(ctx context.Context, from string, part *os.File, have, size int64, add func(bytes int64)) (int64, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return have, err
	}
	if have > 0 && have < size {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	answer, err := client.Do(r)
	if err != nil {
		return have, err
	}
	defer answer.Body.Close()
	var first int64
	switch answer.StatusCode {
	case http.StatusOK: // the whole file
	case http.StatusPartialContent:
		if _, err := fmt.Sscanf(answer.Header.Get("Content-Range"), "bytes %d-", &first); err != nil || first != have {
			return have, fmt.Errorf("the server sends %q, was asked for bytes from %d", answer.Header.Get("Content-Range"), have)
		}
	default:
		return have, fmt.Errorf("GET %s: %s", from, answer.Status)
	}
	if first == 0 && have > 0 {
		add(-have)
		if err := part.Truncate(0); err != nil {
			return 0, err
		}
	}
	if _, err := part.Seek(first, io.SeekStart); err != nil {
		return first, err
	}
	// At most one byte too many is read: a server that sends another file must not fill the disk.
	n, err := io.Copy(io.MultiWriter(part, counter(add)), io.LimitReader(answer.Body, size-first+1))
	if err == nil && first+n != size {
		err = fmt.Errorf("%d bytes came, should be %d", first+n, size)
	}
	if first+n > size {
		return 0, errors.Join(err, part.Truncate(0))
	}
	return first + n, err
}

type counter func(bytes int64)

func (c counter) Write(p []byte) (int, error) {
	c(int64(len(p)))
	return len(p), nil
}

// check compares the hash of the whole file: SHA-256 for a large file, git's SHA-1 for another one.
func check(part *os.File, file *hub.FileInfo) error {
	var h hash.Hash
	if file.LFS != nil {
		h = sha256.New()
	} else {
		h = sha1.New()
		fmt.Fprintf(h, "blob %d\x00", file.Size)
	}
	if _, err := part.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(h, part); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != blobName(file) {
		return fmt.Errorf("its hash is %s, should be %s: download it again", got, blobName(file))
	}
	return nil
}
