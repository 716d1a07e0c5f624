package mamba_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every package that a program can import is in the table of doc.go and in that of the README.
func TestPackagesAreListed(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{if ne .Name \"main\"}}{{.ImportPath}}{{end}}", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	const module = "github.com/gomamba/mamba"
	count := 0
	for _, path := range strings.Fields(string(out)) {
		name := strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
		if name == "" || strings.HasPrefix(name, "internal/") || strings.Contains(name, "/internal/") || strings.HasPrefix(name, "tools/") {
			continue
		}
		count++
		for file, line := range map[string]string{"doc.go": "//\t" + name + " ", "README.md": "[`" + name + "`](" + name + ")"} {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), line) {
				t.Errorf("%s does not name package %s", file, name)
			}
		}
	}
	if count < 10 {
		t.Errorf("%d packages, want all", count)
	}
}

// Only tasks of package cuda queue kernels, products, transforms, fills and copies on a device. A direct call of the driver or a library would
// overtake the tasks that a stream holds back (cuda/replay.go).
func TestOnlyTasksQueueWork(t *testing.T) {
	queues := regexp.MustCompile(`(do|call)\([^)]*\b(cublas\w*Gemm|cufftExec|cuLaunch|cuMemset|cuMemcpyDtoD)`)
	files, err := filepath.Glob("cuda/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files of package cuda: %v", err)
	}
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range queues.FindAllString(string(text), -1) {
			if found++; file != filepath.Join("cuda", "replay.go") && file != filepath.Join("cuda", "module.go") {
				t.Errorf("%s: %s…, want a task (Stream.queue)", file, call)
			}
		}
	}
	if found < 5 {
		t.Errorf("%d calls found, want those of replay.go and module.go", found)
	}
}
