package asm

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"log"
	"path/filepath"
	"strings"
)

var packages = map[string]*types.Package{}

// typesOf returns the package in a folder, with the types that its files for amd64 declare. It ignores errors of type checking: the package
// does not compile while a signature is changed, and imports are not needed.
func typesOf(folder string) *types.Package {
	if pkg, ok := packages[folder]; ok {
		return pkg
	}
	names, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		log.Fatal(err)
	}
	target := build.Default
	target.GOARCH = "amd64"
	set := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if ok, err := target.MatchFile(folder, filepath.Base(name)); err != nil {
			log.Fatal(err)
		} else if !ok || strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			log.Fatal(err)
		}
		files = append(files, file)
	}
	config := types.Config{Error: func(error) {}}
	pkg, _ := config.Check(folder, set, files, nil)
	packages[folder] = pkg
	return pkg
}
