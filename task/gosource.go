package task

import (
	"context"
	"fmt"
	"go/build"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// GoSource reads at most limit bytes of the source of Go's standard library from the Go installation of this machine. It is real text
// that every machine with Go has. GoSource leaves out tests, test data, vendored packages, the commands, and files that were generated
// by a program. It looks for the installation in the environment variable GOROOT, then in the output of `go env GOROOT`, and then in the
// place of the installation that built this program.
//
// It is an error, which names these places, if none of them has the source.
func GoSource(limit int) (Text, error) {
	roots := []string{os.Getenv("GOROOT"), goEnvRoot(), build.Default.GOROOT}
	return goSourceIn(roots, limit)
}

// goEnvRoot asks the go command, which knows its installation even where the program was built with -trimpath. It is
// empty if there is no go command.
func goEnvRoot() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func goSourceIn(roots []string, limit int) (Text, error) {
	var looked []string
	for _, root := range roots {
		if root == "" {
			continue
		}
		source := filepath.Join(root, "src")
		// Any directory may be called src: the one we look for has a package that every release had.
		if _, err := os.Stat(filepath.Join(source, "fmt", "print.go")); err == nil {
			return readText(source, limit, isLibraryFile, isWrittenByHand)
		}
		looked = append(looked, source)
	}
	if looked == nil {
		return Text{}, fmt.Errorf("task: Go source: no Go installation found: GOROOT is not set and there is no go command")
	}
	return Text{}, fmt.Errorf("task: Go source: no standard library in %s", strings.Join(looked, ", "))
}

func isLibraryFile(name string, entry fs.DirEntry) bool {
	if entry.IsDir() {
		base := entry.Name()
		return name != "cmd" && base != "testdata" && base != "vendor"
	}
	return strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
}

// generated is the line by which Go's tools recognise generated files: https://go.dev/s/generatedcode.
var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.\r?$`)

func isWrittenByHand(data []byte) bool {
	return !generated.Match(data)
}
