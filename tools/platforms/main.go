// Platforms checks the packages of a module for other platforms. It finds what the compiler and go vet would say, from the sources alone:
// nothing is compiled, which takes a fifth of the time if the build cache has nothing of them.
//
//	go run ./platforms [-tests=false] FOLDER OS/ARCHITECTURE ...
//
// It type-checks all packages with their dependencies and tests, runs the analyzers of go vet, and looks for functions that have neither
// a body nor assembly. It does not see what only code generation finds, such as a frame that is too large.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"log"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/tools/go/analysis/checker"
	"golang.org/x/tools/go/analysis/suite/vet"
	"golang.org/x/tools/go/packages"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("platforms: ")
	tests := flag.Bool("tests", true, "also check tests")
	flag.Parse()
	if flag.NArg() < 2 {
		log.Fatal("usage: platforms [-tests=false] FOLDER OS/ARCHITECTURE ...")
	}
	failed := false
	for _, platform := range flag.Args()[1:] {
		fmt.Println(platform)
		found, err := check(flag.Arg(0), platform, *tests)
		if err != nil {
			log.Fatal(platform, ": ", err)
		}
		for _, problem := range found {
			fmt.Println(problem)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

// check returns the problems of the packages below a folder on a platform.
func check(folder, platform string, tests bool) ([]string, error) {
	goos, goarch, _ := strings.Cut(platform, "/")
	config := &packages.Config{
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedCompiledGoFiles | packages.NeedImports | packages.NeedDeps | packages.NeedTypes |
			packages.NeedTypesSizes | packages.NeedSyntax | packages.NeedTypesInfo | packages.NeedModule,
		Dir:   folder,
		Env:   append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0"),
		Tests: tests,
	}
	list, err := packages.Load(config, "./...")
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no packages in %s", folder)
	}
	found := map[string]bool{} // a package and its form for tests have the same ones
	packages.Visit(list, nil, func(p *packages.Package) {
		for _, err := range p.Errors {
			found[err.Error()] = true
		}
	})
	for _, p := range list {
		functions, err := withoutBody(p)
		if err != nil {
			return nil, err
		}
		for _, f := range functions {
			found[fmt.Sprintf("%s: %s has neither a body nor assembly", p.Fset.Position(f.Pos()), f.Name.Name)] = true
		}
	}
	if len(found) == 0 {
		if err := analyze(list, found); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// withoutBody returns the functions of a package that have neither a body nor assembly.
func withoutBody(p *packages.Package) ([]*ast.FuncDecl, error) {
	var assembly []byte
	for _, file := range p.OtherFiles {
		if filepath.Ext(file) != ".s" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		assembly = append(assembly, text...)
	}
	var all []*ast.FuncDecl
	for _, file := range p.Syntax {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body == nil && !linked(file, f) && !bytes.Contains(assembly, []byte("TEXT ·"+f.Name.Name+"(")) {
				all = append(all, f)
			}
		}
	}
	return all, nil
}

// linked reports whether a function is that of another package.
func linked(file *ast.File, f *ast.FuncDecl) bool {
	for _, group := range file.Comments {
		for _, comment := range group.List {
			if strings.HasPrefix(comment.Text, "//go:linkname "+f.Name.Name+" ") {
				return true
			}
		}
	}
	return false
}

// analyze adds what go vet would say.
func analyze(list []*packages.Package, found map[string]bool) error {
	graph, err := checker.Analyze(vet.Suite, list, nil)
	if err != nil {
		return err
	}
	for action := range graph.All() {
		if !action.IsRoot {
			continue
		}
		if action.Err != nil {
			return fmt.Errorf("%v: %w", action, action.Err)
		}
		for _, d := range action.Diagnostics {
			found[fmt.Sprintf("%s: %s", action.Package.Fset.Position(d.Pos), d.Message)] = true
		}
	}
	return nil
}
