package mamba_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// page is a Markdown file of the repository.
type page struct {
	path string
	text string
}

func pages(t *testing.T) (all []page) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || d.Name() == "node_modules") { // that of tools/serveclient
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		all = append(all, page{path, string(text)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 5 {
		t.Fatalf("%d Markdown files, want all of them", len(all))
	}
	return all
}

var (
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	quoted  = regexp.MustCompile("`([^`\n]+)`")
	listing = regexp.MustCompile("(?ms)^```\\w+ (\\S+)\n(.*?)^```$")
	goBlock = regexp.MustCompile("(?ms)^```go\n(.*?)^```$")
	// A file or folder of the repository: it has a slash or one of our extensions.
	file   = regexp.MustCompile(`^[A-Za-z0-9_./-]+\.(go|md|cu|sh|cuh|safetensors)$|^(internal|cuda|examples|docs|tools|testdata)/[A-Za-z0-9_./-]+$`)
	symbol = regexp.MustCompile(`^(?:github\.com/gomamba/mamba/)?([a-z]+)\.([A-Z]\w*)(?:\.([A-Z]\w*))?`)
)

// anchor returns the anchor that GitHub gives a heading.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
}

// Every relative link of a page leads to a file, and to a heading where it names one.
func TestDocumentationLinks(t *testing.T) {
	anchors := map[string][]string{}
	for _, p := range pages(t) {
		for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(p.text, ""), -1) {
			anchors[p.path] = append(anchors[p.path], anchor(h[1]))
		}
	}
	for _, p := range pages(t) {
		for _, l := range link.FindAllStringSubmatch(fence.ReplaceAllString(p.text, ""), -1) {
			if strings.Contains(l[1], "://") {
				continue
			}
			to, fragment, _ := strings.Cut(l[1], "#")
			path := p.path
			if to != "" {
				path = filepath.Join(filepath.Dir(p.path), to)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: the link %s leads nowhere: %v", p.path, l[1], err)
			} else if fragment != "" && !slices.Contains(anchors[path], fragment) {
				t.Errorf("%s: the link %s names no heading, want one of %v", p.path, l[1], anchors[path])
			}
		}
	}
}

// Every file that a page names in code marks exists: by its path from the root, from the page, or by its name alone.
func TestDocumentationFiles(t *testing.T) {
	names := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		names[d.Name()] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		for _, q := range quoted.FindAllStringSubmatch(fence.ReplaceAllString(p.text, ""), -1) {
			name := strings.TrimPrefix(q[1], "./")
			if !file.MatchString(name) || p.path == "CHANGELOG.md" {
				continue
			}
			_, fromRoot := os.Stat(name)
			_, fromPage := os.Stat(filepath.Join(filepath.Dir(p.path), name))
			if fromRoot != nil && fromPage != nil && (strings.Contains(name, "/") || !names[name]) {
				t.Errorf("%s names the file %s, which is not there", p.path, name)
			}
		}
	}
}

// library is the packages of the module and those that programs of the pages import, from the build cache.
type library struct {
	types.Importer
	paths map[string]string // by name
}

func newLibrary(t *testing.T, fset *token.FileSet) library {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{.Name}} {{.ImportPath}} {{.Export}}", "./...", "testing")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	l, files := library{paths: map[string]string{}}, map[string]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		files[f[1]] = f[2]
		ours := strings.HasPrefix(f[1], "github.com/gomamba/mamba/")
		if ours && (strings.Contains(f[1], "/internal/") || f[0] == "main") {
			continue
		}
		standard := !strings.Contains(f[1], ".")
		if ours || standard && l.paths[f[0]] == "" || f[1] == "gorgonia.org/tensor" {
			l.paths[f[0]] = f[1]
		}
	}
	l.paths["G"] = "gorgonia.org/gorgonia"
	l.Importer = importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if files[path] == "" {
			return nil, fmt.Errorf("no package %s", path)
		}
		return os.Open(files[path])
	})
	return l
}

// given are what the pages' fragments use and do not declare: what a reader has already.
const given = `
	ctx context.Context, t *testing.T, dir, path string, cfg nn.Config, block *nn.MambaBlock, stack *nn.MambaStack, lm *nn.LM,
	params layer.Params, x, y, start *G.Node, g *G.ExprGraph, prompts [][]int, documents []train.Document`

// The Go programs and fragments of the pages compile. A fragment is compiled as the body of a function that returns an error,
// with imports for the packages that it names.
func TestDocumentationPrograms(t *testing.T) {
	fset := token.NewFileSet()
	l := newLibrary(t, fset)
	checked := 0
	for _, p := range pages(t) {
		for i, b := range goBlock.FindAllStringSubmatch(p.text, -1) {
			name := fmt.Sprintf("%s, Go block %d", p.path, i+1)
			source := b[1]
			if !strings.HasPrefix(source, "package ") {
				source = l.complete(source)
			}
			f, err := parser.ParseFile(fset, name, source, 0)
			if err != nil {
				t.Error(err)
				continue
			}
			cfg := types.Config{Importer: l, Error: func(err error) {
				if e := err.(types.Error); !e.Soft || strings.HasPrefix(b[1], "package ") { // what is not used is no fault of a fragment
					t.Error(err)
				}
			}}
			cfg.Check("documentation", fset, []*ast.File{f}, nil)
			checked++
		}
	}
	if checked < 5 {
		t.Errorf("%d programs were checked, want all of them", checked)
	}
}

// The guide's program that trains a classifier is the example of package train, whose output a test compares.
func TestDocumentationClassifier(t *testing.T) {
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	example := read("train/example_problem_test.go")
	_, functions, _ := strings.Cut(example, "\nconst batchSize")
	functions, _, ok := strings.Cut(functions, "\t// Output:")
	functions = regexp.MustCompile(`// .*\nfunc ExampleNewTrainer`).ReplaceAllString(functions, "func main")
	if !ok || !strings.Contains(read("docs/guide.md"), "\nconst batchSize"+functions+"}\n```\n") {
		t.Error("the classifier of docs/guide.md differs from ExampleNewTrainer in train/example_problem_test.go")
	}
}

// A listing that names its file, as in "```go op/min_gru.go", is a part of the file, or several parts with an empty line between them.
func TestDocumentationListings(t *testing.T) {
	listings := 0
	for _, p := range pages(t) {
		for _, l := range listing.FindAllStringSubmatch(p.text, -1) {
			text, err := os.ReadFile(l[1])
			if err != nil {
				t.Errorf("%s lists a file: %v", p.path, err)
				continue
			}
			listings++
			if strings.Contains(string(text), l[2]) {
				continue
			}
			for part := range strings.SplitSeq(l[2], "\n\n") {
				if !strings.Contains(string(text), strings.Trim(part, "\n")) {
					t.Errorf("%s: %s has no such lines:\n%s", p.path, l[1], part)
				}
			}
		}
	}
	if listings < 8 {
		t.Errorf("the pages list %d files, want the 8 of docs/adding-a-layer.md", listings)
	}
}

// complete makes a file of a fragment.
func (l library) complete(fragment string) string {
	body := fragment
	if !strings.HasPrefix(fragment, "func ") {
		body = "func _(" + given + ") error {\n" + fragment + "\nreturn nil }"
	}
	body += "\nfunc MyOperator(x *G.Node) (*G.Node, error) { return x, nil }\n"
	imports := ""
	for _, name := range slices.Sorted(maps.Keys(l.paths)) {
		if regexp.MustCompile(`\b` + name + `\.[A-Z]`).MatchString(body) {
			imports += fmt.Sprintf("import %s %q\n", name, l.paths[name])
		}
	}
	return "package documentation\n" + imports + body
}

// Every exported name of our packages that a page has in code marks exists: `nn.NewLM`, `op.BlockConfig.Recompute`.
func TestDocumentationNames(t *testing.T) {
	l := newLibrary(t, token.NewFileSet())
	for _, p := range pages(t) {
		if p.path == "CHANGELOG.md" { // it has old names, too
			continue
		}
		for _, q := range quoted.FindAllStringSubmatch(fence.ReplaceAllString(p.text, ""), -1) {
			s := symbol.FindStringSubmatch(q[1])
			if s == nil || !strings.HasPrefix(l.paths[s[1]], "github.com/gomamba/") {
				continue
			}
			pkg, err := l.Import(l.paths[s[1]])
			if err != nil {
				t.Fatal(err)
			}
			object := pkg.Scope().Lookup(s[2])
			if object == nil {
				t.Errorf("%s names %s, which package %s does not have", p.path, q[1], s[1])
				continue
			}
			if s[3] == "" {
				continue
			}
			if member, _, _ := types.LookupFieldOrMethod(object.Type(), true, pkg, s[3]); member == nil {
				t.Errorf("%s names %s, but %s.%s has no field or method %s", p.path, q[1], s[1], s[2], s[3])
			}
		}
	}
}

// ARCHITECTURE.md lists every package with what it imports of ours, and a package imports only packages further down.
func TestDocumentationImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	const module = "github.com/gomamba/mamba/"
	imports := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		name, ours := strings.CutPrefix(f[0], module)
		if !ours || strings.HasPrefix(name, "examples/") {
			continue
		}
		imports[name] = []string{}
		for _, path := range f[1:] {
			if path, ours := strings.CutPrefix(path, module); ours {
				imports[name] = append(imports[name], path)
			}
		}
	}
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z/]+)` \\| .* \\| ([^|(]*?)(?: \\(.*)? \\|$").FindAllStringSubmatch(string(text), -1) {
		name := row[1]
		want, ok := imports[name]
		if !ok {
			continue // a row of another table, or another module
		}
		listed := []string{}
		for _, q := range quoted.FindAllStringSubmatch(row[2], -1) {
			listed = append(listed, q[1])
			if seen[q[1]] {
				t.Errorf("ARCHITECTURE.md: %s imports %s, which stands above it", name, q[1])
			}
		}
		slices.Sort(listed)
		if !slices.Equal(listed, want) {
			t.Errorf("ARCHITECTURE.md: %s is listed as importing %v, but it imports %v", name, listed, want)
		}
		seen[name] = true
	}
	for name := range imports {
		if !seen[name] {
			t.Errorf("ARCHITECTURE.md does not list package %s", name)
		}
	}
}
