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

// GoSource reads at most limit bytes of the source of Go's standard library. It is real text, on every machine with a Go installation. Tests,
// test data, vendored packages, the commands and generated files are left out. The installation is that of the environment variable
// GOROOT, or else of the command `go env GOROOT`, or else the one that built this program.
//
// It is an error if none of these has the source. The error names the folders.
func GoSource(limit int) (Text, error) {
	roots := []string{os.Getenv("GOROOT"), goEnvRoot(), build.Default.GOROOT}
	return goSourceIn(roots, limit)
}

// goEnvRoot asks the go command for its installation, which a program built with -trimpath does not know. It returns "" if there is no go
// command.
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
		// Any folder can be called src. That of Go has package fmt.
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

// generated matches the line that marks a generated file: https://go.dev/s/generatedcode.
var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.\r?$`)

func isWrittenByHand(data []byte) bool {
	return !generated.Match(data)
}
