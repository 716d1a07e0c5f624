package mamba_test

import (
	"os"
	"os/exec"
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
