package cuda

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPTXIsOfTheSources fails if a source has changed since the PTX was made. Then run go generate ./cuda.
func TestPTXIsOfTheSources(t *testing.T) {
	if _, err := os.Stat("kernels"); errors.Is(err, fs.ErrNotExist) {
		t.Skip("the sources are not here: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, pattern := range []string{"*.cuh", "*.cu", "generate.sh"} {
		some, err := filepath.Glob(filepath.Join("kernels", pattern))
		if err != nil || len(some) == 0 {
			t.Fatalf("%s: %v, %v", pattern, some, err)
		}
		some = slices.DeleteFunc(some, func(file string) bool { return filepath.Base(file) == "bench.cu" })
		slices.Sort(some)
		files = append(files, some...)
	}
	h := sha256.New()
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(text)
	}
	recorded, err := os.ReadFile("kernels/sources.sha256")
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != strings.TrimSpace(string(recorded)) {
		t.Errorf("the sources' hash is %s, the PTX was made from %s: run go generate ./cuda", got, recorded)
	}
}

// TestPTXHasTheKernels checks that the PTX has every kernel that a scan can need, and that scanArgs has the size that the kernels expect.
func TestPTXHasTheKernels(t *testing.T) {
	sizes := append(slices.Clone(scanSizes), scanFew)
	for _, size := range sizes {
		for _, groups := range [][2]int{{1, 1}, {0, 1}, {1, 0}, {0, 0}} {
			for _, start := range []Array[uint8]{{}, {stream: new(Stream)}} {
				s := Scan[float32]{B: Projection[float32]{Groups: groups[0]}, C: Projection[float32]{Groups: groups[1]}, Start: start}
				if size == scanFew && !s.usual() {
					continue
				}
				passes := map[string]scanPass{"forward": size.forward, "backward": size.backward}
				if size.chunked {
					passes["ends"] = size.forward
					passes["carries"] = scanPass{size.backward.split, size.backward.states, 1, 256, 0, false, 0}
				}
				check := func(direction string, pass scanPass) {
					file, name := s.kernel(pass, direction, size)
					text, err := readPTX(file)
					if err != nil {
						t.Fatal(err)
					}
					entry := regexp.MustCompile(`\.entry ` + name + `\(\s*\.param \.align 8 \.b8 ` + name + `_param_0\[(\d+)\]\s*\)\s*\.maxntid (\d+), 1, 1`)
					m := entry.FindStringSubmatch(string(text))
					if m == nil {
						t.Errorf("%s is not in %s", name, file)
						return
					}
					if want := sizeOfScanArgs(); m[1] != want {
						t.Errorf("%s takes %s bytes, want %s", name, m[1], want)
					}
					if want := itoa(pass.threads); m[2] != want {
						t.Errorf("%s runs on %s threads, want %s", name, m[2], want)
					}
				}
				for direction, pass := range passes {
					check(direction, pass)
				}
				if size.asyncForward != nil && s.usual() {
					check("forward", *size.asyncForward)
				}
				if size.asyncBackward != nil && s.usual() {
					check("first", *size.asyncForward)
					check("few", *size.asyncFew)
					check("backward", *size.asyncBackward)
					check("carries", asyncCarries)
					s.Z = Array[float32]{stream: new(Stream)}
					check("forward", *size.asyncForward)
					check("few", *size.asyncFew)
					check("backward", *size.asyncBackward)
					check("two", *size.asyncBackward)
				}
			}
		}
	}
}
