package tokens

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/gomlx/go-huggingface/hub"
)

const commit = "0123456789abcdef0123456789abcdef01234567"

// fakeHub is a hub of one repository, on this machine.
type fakeHub struct {
	*httptest.Server
	files map[string][]byte
	large map[string]bool // kept in LFS
	send  map[string][]byte
	cut   int // bytes after which the connection breaks, once
	mu    sync.Mutex
	asked []string
}

// newHub makes it the hub of this test, with a cache of its own.
func newHub(t *testing.T) (s *fakeHub, cacheDir string) {
	t.Helper()
	weights := make([]byte, 100_000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range weights {
		weights[i] = byte(r.Uint32())
	}
	s = &fakeHub{
		files: map[string][]byte{
			"config.json": []byte(`{"model_type":"mamba"}`), "tokenizer.json": []byte("{}"), "model.safetensors": weights,
			"README.md": []byte("read me"), "pytorch_model.bin": []byte("the same weights again"),
		},
		large: map[string]bool{"model.safetensors": true, "pytorch_model.bin": true},
		send:  map[string][]byte{},
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	cacheDir = t.TempDir()
	t.Setenv("HF_ENDPOINT", s.URL)
	t.Setenv("HF_HUB_CACHE", cacheDir)
	return s, cacheDir
}

func (s *fakeHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, strings.TrimSpace(r.URL.Path+" "+r.Header.Get("Range")))
	switch name, isFile := strings.CutPrefix(r.URL.Path, "/owner/name/resolve/"+commit+"/"); {
	case r.URL.Path == "/api/models/owner/name/revision/main":
		var siblings []map[string]any
		for name, data := range s.files {
			file := map[string]any{"rfilename": name, "size": len(data), "blobId": fmt.Sprintf("%x", sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(data)), data...)))}
			if s.large[name] {
				file["lfs"] = map[string]any{"sha256": fmt.Sprintf("%x", sha256.Sum256(data)), "size": len(data)}
			}
			siblings = append(siblings, file)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"id": "owner/name", "sha": commit, "siblings": siblings})
	case isFile && s.files[name] != nil:
		data := s.files[name]
		if s.send[name] != nil {
			data = s.send[name]
		}
		if s.cut > 0 && len(data) > s.cut {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:s.cut])
			s.cut = 0
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	default:
		http.Error(w, "no such repository", http.StatusNotFound)
	}
}

// requests returns what was asked for since the last call.
func (s *fakeHub) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

func expect(t *testing.T, s *fakeHub, dir string) {
	t.Helper()
	for _, name := range []string{"config.json", "tokenizer.json", "model.safetensors"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, s.files[name]) {
			t.Errorf("%s has %d bytes, %v", name, len(got), err)
		}
	}
	for _, name := range []string{"README.md", "pytorch_model.bin"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s was downloaded", name)
		}
	}
}

// A model comes into the cache as Hugging Face's programs lay it out, and is not asked for again.
func TestDownload(t *testing.T) {
	s, cacheDir := newHub(t)
	var seen []Progress
	cfg := DownloadConfig{Progress: func(p Progress) { seen = append(seen, p) }}
	dir, err := Download(t.Context(), "owner/name", cfg)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(cacheDir, "models--owner--name")
	if want := filepath.Join(root, "snapshots", commit); dir != want {
		t.Errorf("the directory is %s, want %s", dir, want)
	}
	expect(t, s, dir)
	link, err := os.Readlink(filepath.Join(dir, "model.safetensors"))
	if want := fmt.Sprintf("../../blobs/%x", sha256.Sum256(s.files["model.safetensors"])); err != nil || filepath.ToSlash(link) != want {
		t.Errorf("the weights link to %s, %v, want %s", link, err, want)
	}
	if ref, err := os.ReadFile(filepath.Join(root, "refs", "main")); err != nil || string(ref) != commit {
		t.Errorf("refs/main is %q, %v", ref, err)
	}
	total, sizes := int64(0), map[string]int64{}
	for _, p := range seen {
		if p.Done > p.Total || p.File == "" {
			t.Errorf("progress is %+v", p)
		}
		total, sizes[p.File] = p.Total, p.Size
	}
	want := map[string]int64{}
	for _, name := range []string{"config.json", "tokenizer.json", "model.safetensors"} {
		want[name] = int64(len(s.files[name]))
	}
	if last := seen[len(seen)-1]; !maps.Equal(sizes, want) || last.Done != total || total <= sizes["model.safetensors"] {
		t.Errorf("progress of %v ends at %+v, want all of %v", sizes, last, want)
	}

	s.requests()
	s.Close() // there is no network any more
	seen = nil
	again, err := Download(t.Context(), "owner/name", cfg)
	if err != nil || again != dir || seen != nil || len(s.requests()) > 0 {
		t.Errorf("again: %s, %v, %v", again, err, seen)
	}
}

// A download that breaks off goes on where it was, at once, and in another process that finds what the first has left.
func TestResume(t *testing.T) {
	s, cacheDir := newHub(t)
	s.cut = 30_000
	dir, err := Download(t.Context(), "owner/name", DownloadConfig{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, s, dir)
	weights := "/owner/name/resolve/" + commit + "/model.safetensors"
	if got := s.requests(); !slices.ContainsFunc(got, func(r string) bool { return strings.HasPrefix(r, weights+" bytes=") }) {
		t.Errorf("no request for a part among %q", got)
	}

	for _, left := range []int{40_000, 99_999, 100_000, 100_001} {
		if err := os.RemoveAll(cacheDir); err != nil {
			t.Fatal(err)
		}
		blobs := filepath.Join(cacheDir, "models--owner--name", "blobs")
		if err := os.MkdirAll(blobs, 0o755); err != nil {
			t.Fatal(err)
		}
		data := append(slices.Clone(s.files["model.safetensors"]), 1)[:left]
		if err := os.WriteFile(filepath.Join(blobs, fmt.Sprintf("%x.incomplete", sha256.Sum256(s.files["model.safetensors"]))), data, 0o644); err != nil {
			t.Fatal(err)
		}
		if dir, err = Download(t.Context(), "owner/name", DownloadConfig{}); err != nil {
			t.Fatal(err)
		}
		expect(t, s, dir)
		got := slices.DeleteFunc(s.requests(), func(r string) bool { return !strings.HasPrefix(r, weights) })
		want := []string{fmt.Sprintf("%s bytes=%d-", weights, left)}
		switch {
		case left == 100_000: // only its name was missing
			want = nil
		case left > 100_000: // that is something else
			want = []string{weights}
		}
		if len(got) != len(want) || len(got) > 0 && got[0] != want[0] {
			t.Errorf("%d bytes were there: asked for %q, want %q", left, got, want)
		}
	}
}

// Bytes that are not the file's are an error, and are not kept.
func TestCorrupt(t *testing.T) {
	for _, change := range []func(data []byte) []byte{
		func(data []byte) []byte { data[5]++; return data },
		func(data []byte) []byte { return append(data, data...) },
		func(data []byte) []byte { return data[:len(data)-1] },
	} {
		for _, name := range []string{"model.safetensors", "config.json"} {
			s, cacheDir := newHub(t)
			s.send[name] = change(slices.Clone(s.files[name]))
			if _, err := Download(t.Context(), "owner/name", DownloadConfig{}); err == nil || !strings.HasPrefix(err.Error(), "tokens: download owner/name: "+name+": ") {
				t.Fatalf("%s: %v", name, err)
			}
			delete(s.send, name)
			dir, err := Download(t.Context(), "owner/name", DownloadConfig{})
			if err != nil {
				t.Fatal(err)
			}
			expect(t, s, dir)
			if err := os.RemoveAll(cacheDir); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCancel(t *testing.T) {
	newHub(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Download(ctx, "owner/name", DownloadConfig{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	// A hub that takes a request and never answers, and one that sends the list of files and nothing else.
	for name, list := range map[string]bool{"list": false, "file": true} {
		s, cacheDir := newHub(t)
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan struct{})
		silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if list && strings.HasPrefix(r.URL.Path, "/api/") {
				s.ServeHTTP(w, r)
				return
			}
			cancel()
			<-over
		}))
		t.Setenv("HF_ENDPOINT", silent.URL)
		if _, err := Download(ctx, "owner/name", DownloadConfig{CacheDir: cacheDir}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		close(over)
		silent.Close()
	}
}

// Of two downloads of one file, also in two processes, the second waits for the first; and no longer than its context.
func TestLock(t *testing.T) {
	s, cacheDir := newHub(t)
	locks := filepath.Join(cacheDir, ".locks", "models--owner--name")
	if err := os.MkdirAll(locks, 0o755); err != nil {
		t.Fatal(err)
	}
	var held []*flock.Flock
	for name, data := range s.files {
		if s.large[name] {
			lock := flock.New(filepath.Join(locks, fmt.Sprintf("%x.lock", sha256.Sum256(data))))
			if ok, err := lock.TryLock(); !ok || err != nil {
				t.Fatal(ok, err)
			}
			held = append(held, lock)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan struct{})
	cfg := DownloadConfig{Progress: func(p Progress) {
		if p.File == "model.safetensors" && waiting != nil {
			cancel()
			close(waiting)
			waiting = nil
		}
	}}
	reached := waiting
	if _, err := Download(ctx, "owner/name", cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("the file is locked: %v, want that it waited until its context ended", err)
	}
	<-reached

	// The process with the lock finishes the file: then the other one does not download it.
	weights := "/owner/name/resolve/" + commit + "/model.safetensors"
	data := s.files["model.safetensors"]
	blob := filepath.Join(cacheDir, "models--owner--name", "blobs", fmt.Sprintf("%x", sha256.Sum256(data)))
	reached = make(chan struct{})
	waiting = reached
	cancel = func() {}
	done := make(chan error)
	go func() {
		_, err := Download(t.Context(), "owner/name", cfg)
		done <- err
	}()
	<-reached
	if err := os.WriteFile(blob, data, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, lock := range held {
		if err := lock.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if asked := s.requests(); slices.Contains(asked, weights) {
		t.Errorf("the weights were locked, and asked for: %q", asked)
	}
	var wait sync.WaitGroup
	other := t.TempDir()
	for range 2 {
		wait.Go(func() {
			dir, err := Download(t.Context(), "owner/name", DownloadConfig{CacheDir: other})
			if err != nil {
				t.Error(err)
				return
			}
			expect(t, s, dir)
		})
	}
	wait.Wait()
	if n := len(slices.DeleteFunc(s.requests(), func(r string) bool { return r != weights })); n != 1 {
		t.Errorf("two downloads asked for the weights %d times", n)
	}
}

// What is no name, no context and no folder is an error.
func TestDownloadArguments(t *testing.T) {
	newHub(t)
	var none context.Context
	if _, err := Download(none, "owner/name", DownloadConfig{}); err == nil || err.Error() != "tokens: download: ctx is nil, should be a context" {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"", "name", "../..", "a/b/c", "/etc"} {
		if _, err := Download(t.Context(), name, DownloadConfig{}); err == nil || !strings.HasSuffix(err.Error(), "should be OWNER/NAME of the Hugging Face hub") {
			t.Errorf("%q: %v", name, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Download(t.Context(), "owner/name", DownloadConfig{CacheDir: file}); err == nil {
		t.Error("no error with a file for the cache")
	}
}

// Without a network, and for a repository that is not there, the error is one line that says what was asked for.
func TestDownloadErrors(t *testing.T) {
	s, _ := newHub(t)
	if _, err := Download(t.Context(), "owner/other", DownloadConfig{}); err == nil || !strings.Contains(err.Error(), "no such repository") || strings.Contains(err.Error(), "\n") {
		t.Errorf("no such repository: %v", err)
	}
	s.Close()
	if _, err := Download(t.Context(), "owner/name", DownloadConfig{}); err == nil || !strings.HasPrefix(err.Error(), `tokens: download owner/name: Get "`+s.URL+`/api/models/owner/name/revision/main`) || strings.Contains(err.Error(), "\n") {
		t.Errorf("no network: %v", err)
	}
}

// Names from the hub do not lead out of the cache.
func TestHostileNames(t *testing.T) {
	for _, answer := range []string{
		`{"sha":"../../../x","siblings":[{"rfilename":"config.json","size":1,"blobId":"` + commit + `"}]}`,
		`{"sha":"","siblings":[]}`,
		`{"sha":"` + commit + `","siblings":[{"rfilename":"config.json","size":1,"blobId":"../../../x"}]}`,
		`{"sha":"` + commit + `","siblings":[{"rfilename":"config.json","size":1,"lfs":{"sha256":""}}]}`,
	} {
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, answer) }))
		t.Setenv("HF_ENDPOINT", h.URL)
		t.Setenv("HF_HUB_CACHE", t.TempDir())
		if _, err := Download(t.Context(), "owner/name", DownloadConfig{}); err == nil || !strings.Contains(err.Error(), "the hub names the ") {
			t.Errorf("%s: %v", answer, err)
		}
		h.Close()
	}
}

// Of the weights that a repository has in several formats, one is downloaded.
func TestWanted(t *testing.T) {
	for _, c := range []struct{ has, want string }{
		{"README.md config.json model.safetensors pytorch_model.bin", "config.json model.safetensors"},
		{"config.json pytorch_model.bin tokenizer_config.json tokenizer.json", "config.json pytorch_model.bin tokenizer.json"},
		{
			"model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json",
			"model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json",
		},
		{
			"generation_config.json model-00001-of-00002.safetensors pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json",
			"generation_config.json pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json",
		},
		{"README.md adapter_config.json adapter_model.safetensors", "adapter_config.json adapter_model.safetensors"},
		{"sub/config.json ../config.json model-00001-of-00002.safetensors", ""},
	} {
		var files []*hub.FileInfo
		for _, name := range strings.Fields(c.has) {
			files = append(files, &hub.FileInfo{Name: name})
		}
		var got []string
		for _, f := range wanted(files) {
			got = append(got, f.Name)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("of %s: %q, want %s", c.has, got, c.want)
		}
	}
}

func TestIsRepository(t *testing.T) {
	for name, want := range map[string]bool{
		"state-spaces/mamba-130m-hf": true, "a/b.c_d": true,
		"": false, "name": false, "/a/b": false, "./a": false, "../a": false, "a/..": false, "a/b/c": false, "a//b": false, "a/b c": false,
	} {
		if got := IsRepository(name); got != want {
			t.Errorf("%q: %t, want %t", name, got, want)
		}
	}
}

// The cache is where Hugging Face's programs have it.
func TestCache(t *testing.T) {
	t.Setenv("HOME", "/h")
	for _, c := range []struct{ hub, home, xdg, want string }{
		{"/a", "/b", "/c", "/a"}, {"", "/b", "/c", "/b/hub"}, {"", "", "/c", "/c/huggingface/hub"}, {"", "", "", "/h/.cache/huggingface/hub"},
	} {
		t.Setenv("HF_HUB_CACHE", c.hub)
		t.Setenv("HF_HOME", c.home)
		t.Setenv("XDG_CACHE_HOME", c.xdg)
		if got := filepath.ToSlash(cache()); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
