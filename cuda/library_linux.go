//go:build linux && (amd64 || arm64)

package cuda

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
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
	home, _ := os.UserHomeDir()
	python, _ := exec.LookPath("python3")
	environment := filepath.Dir(filepath.Dir(python)) // a virtual or conda environment, if one is active
	for _, pattern := range []string{
		"/usr/local/cuda/lib64", "/usr/local/cuda-*/lib64", "/usr/local/cuda*/targets/*/lib", "/opt/cuda/lib64",
		"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64",
		"/usr/lib/python3*/*-packages/nvidia/*/lib", "/usr/local/lib/python3*/*-packages/nvidia/*/lib",
		"/opt/conda/lib", "/opt/conda/lib/python3*/site-packages/nvidia/*/lib",
		environment + "/lib", environment + "/lib/python3*/site-packages/nvidia/*/lib", home + "/.local/lib/python3*/site-packages/nvidia/*/lib",
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
	majors := l.majors[0]
	if last := len(l.majors) - 1; last > 0 {
		majors = strings.Join(l.majors[:last], ", .") + " or ." + l.majors[last]
	}
	return nil, fmt.Errorf("cuda: no %s (%s.%s) where the loader looks, in $CUDA_HOME, $CUDA_PATH or the usual folders; install %s, or "+
		"name its file in $%s: %w", l.name, l.file, majors, cmp.Or(l.install, "it"), l.variable, wrong)
}

// invoke calls the function at an address.
//
//go:uintptrescapes
func invoke(address uintptr, args ...uintptr) int {
	code, _, _ := purego.SyscallN(address, args...)
	return int(int32(code))
}

// lastError calls ncclGetLastError at an address.
func lastError(address uintptr) string {
	var f func(handle uintptr) string
	purego.RegisterFunc(&f, address)
	return f(0)
}

// initRank calls ncclCommInitRankConfig at an address, which takes its id by value.
func initRank(address uintptr, handle *uintptr, size int, id ConnectionID, rank int) int {
	var f func(handle *uintptr, size int32, id struct{ Bytes ConnectionID }, rank int32, config *ncclConfig) int32
	purego.RegisterFunc(&f, address)
	return int(f(handle, int32(size), struct{ Bytes ConnectionID }{id}, int32(rank), &blocking))
}
