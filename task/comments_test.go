package task

import (
	"strings"
	"testing"
)

func TestComments(t *testing.T) {
	source := Text{Path: "src", Files: []File{
		{"a.go", []byte("// Copyright 2009 The Go Authors. All rights reserved.\n\n//go:build linux\n\n// Package a is\n//\n//\tcode\n// a package.\npackage a\n\nfunc f() {\n\t// not at the margin\n\treturn // behind code\n}\n// short\n")},
		{"b.go", []byte("// Package a is\n//\n//\tcode\n// a package.\n\n// At the end of the file")},
	}}
	code, comments := Comments(source, 10)
	if len(code.Files) != 1 || string(code.Files[0].Data) != "package a\n\nfunc f() {\n\treturn // behind code\n}\n" {
		t.Errorf("the code is %q", code.Files)
	}
	want := map[string]string{"a.go#1": "Package a is\n\n\tcode\na package.\n", "b.go#1": "At the end of the file"}
	for _, f := range comments.Files {
		if want[f.Name] != string(f.Data) {
			t.Errorf("%s is %q, want %q", f.Name, f.Data, want[f.Name])
		}
		delete(want, f.Name)
	}
	if len(want) != 0 || comments.Path != "src" {
		t.Errorf("%v are missing", want)
	}
}

// Of the real thing there is a lot of both.
func TestGoComments(t *testing.T) {
	source, err := GoSource(1 << 20)
	if err != nil {
		t.Skip(err)
	}
	code, comments := Comments(source, 80)
	if code.Size() < source.Size()/3 || comments.Size() < source.Size()/20 {
		t.Errorf("%d bytes of code and %d of comments in %d", code.Size(), comments.Size(), source.Size())
	}
	for _, f := range comments.Files {
		if strings.Contains(string(f.Data), "\n//") {
			t.Errorf("%s holds a mark: %q", f.Name, f.Data)
		}
	}
}
