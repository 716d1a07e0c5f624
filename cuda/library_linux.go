//go:build linux && (amd64 || arm64)

package cuda

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ebitengine/purego"
)

// libraryFolders returns the folders where toolkits, distributions and Python packages install their libraries. "" stands for the loader's own
// search.
func libraryFolders() []string {
	folders := []string{""}
	for _, variable := range []string{"CUDA_HOME", "CUDA_PATH"} {
		if root := os.Getenv(variable); root != "" {
			folders = append(folders, root, filepath.Join(root, "lib64"), filepath.Join(root, "lib"))
		}
	}
	for _, pattern := range []string{
		"/usr/local/cuda/lib64", "/usr/local/cuda-*/lib64", "/usr/local/cuda*/targets/*/lib", "/opt/cuda/lib64",
		"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64",
		"/usr/lib/python3*/*-packages/nvidia/*/lib", "/usr/local/lib/python3*/*-packages/nvidia/*/lib",
		"/opt/conda/lib", "/opt/conda/lib/python3*/site-packages/nvidia/*/lib",
	} {
		found, _ := filepath.Glob(pattern)
		slices.Sort(found)
		slices.Reverse(found) // the newest first
		folders = append(folders, found...)
	}
	return folders
}

// find loads the library and returns the addresses of its functions.
func (l *library) find() ([]uintptr, error) {
	open := func(file string) ([]uintptr, error) {
		// What it needs may not be on the loader's path. So load that first.
		if dir := filepath.Dir(file); dir != "." && l.needs != "" {
			if found, _ := filepath.Glob(filepath.Join(dir, l.needs)); len(found) > 0 {
				_, _ = purego.Dlopen(found[0], purego.RTLD_NOW|purego.RTLD_GLOBAL)
			}
		}
		handle, err := purego.Dlopen(file, purego.RTLD_NOW|purego.RTLD_GLOBAL)
		if err != nil {
			return nil, err
		}
		address := make([]uintptr, len(l.symbols))
		for i, name := range l.symbols {
			if address[i], err = purego.Dlsym(handle, name); err != nil {
				return nil, err
			}
		}
		return address, nil
	}
	if file := os.Getenv(l.variable); file != "" {
		address, err := open(file)
		if err != nil {
			return nil, fmt.Errorf("cuda: %s: %s is %s: %w", l.name, l.variable, file, err)
		}
		return address, nil
	}
	var wrong error
	for _, folder := range libraryFolders() {
		for _, major := range l.majors {
			file := filepath.Join(folder, l.file+"."+major)
			if folder != "" {
				if _, err := os.Stat(file); err != nil {
					continue
				}
			}
			address, err := open(file)
			if err == nil {
				return address, nil
			}
			if folder != "" || wrong == nil {
				wrong = err // the error of a file that exists is more useful than the loader's "not found"
			}
		}
	}
	last := len(l.majors) - 1
	return nil, fmt.Errorf("cuda: no %s (%s.%s or .%s) where the loader looks, in $CUDA_HOME, $CUDA_PATH or the usual folders; install it, or "+
		"name its file in $%s: %w", l.name, l.file, strings.Join(l.majors[:last], ", ."), l.majors[last], l.variable, wrong)
}

// invoke calls the function at an address.
//
//go:uintptrescapes
func invoke(address uintptr, args ...uintptr) int {
	code, _, _ := purego.SyscallN(address, args...)
	return int(int32(code))
}
