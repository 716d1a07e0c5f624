//go:build linux && (amd64 || arm64)

package cuda

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/ebitengine/purego"
)

// blasLibrary is cuBLAS, loaded once.
type blasLibrary struct{ address [blasCalls]uintptr }

// blasMajors are the versions that are known to have the functions as we call them, the newest first.
var blasMajors = []string{"13", "12", "11"}

// blasFolders are where toolkits, distributions and Python's packages put cuBLAS, "" being wherever the loader looks.
func blasFolders() []string {
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

var loadBLAS = sync.OnceValues(findBLAS)

func findBLAS() (*blasLibrary, error) {
	open := func(file string) (*blasLibrary, error) {
		// It looks for its own other half, which may be beside it and nowhere the loader looks.
		if dir := filepath.Dir(file); dir != "." {
			if lt, _ := filepath.Glob(filepath.Join(dir, "libcublasLt.so.*")); len(lt) > 0 {
				_, _ = purego.Dlopen(lt[0], purego.RTLD_NOW|purego.RTLD_GLOBAL)
			}
		}
		handle, err := purego.Dlopen(file, purego.RTLD_NOW|purego.RTLD_GLOBAL)
		if err != nil {
			return nil, err
		}
		b := new(blasLibrary)
		for i, name := range blasSymbols {
			if b.address[i], err = purego.Dlsym(handle, name); err != nil {
				return nil, err
			}
		}
		return b, nil
	}
	if file := os.Getenv("MAMBA_CUBLAS"); file != "" {
		b, err := open(file)
		if err != nil {
			return nil, fmt.Errorf("cuda: cuBLAS: MAMBA_CUBLAS is %s: %w", file, err)
		}
		return b, nil
	}
	var wrong error
	for _, folder := range blasFolders() {
		for _, major := range blasMajors {
			file := filepath.Join(folder, "libcublas.so."+major)
			if folder != "" {
				if _, err := os.Stat(file); err != nil {
					continue
				}
			}
			b, err := open(file)
			if err == nil {
				return b, nil
			}
			if folder != "" || wrong == nil {
				wrong = err // a file that does not load tells more than the loader that finds none
			}
		}
	}
	return nil, fmt.Errorf("cuda: no cuBLAS (libcublas.so.13, .12 or .11) where the loader looks, in $CUDA_HOME, $CUDA_PATH or the usual "+
		"folders; install it, or name its file in $MAMBA_CUBLAS: %w", wrong)
}

func (b *blasLibrary) call(f blasCall, args ...uintptr) int {
	code, _, _ := purego.SyscallN(b.address[f], args...)
	return int(int32(code))
}
